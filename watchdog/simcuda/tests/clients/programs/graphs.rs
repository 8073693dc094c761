//! Memory of graphs, and graphs that change.

use cudarc::driver::{result, sys};

use super::gpu::{Gpu, arg, code};

const SIZE: usize = 64 << 20;

fn ok(result: sys::CUresult) {
    assert_eq!(code(result), 0);
}

/// Used by graphs and reserved for them, in MiB.
fn held() -> String {
    use sys::CUgraphMem_attribute::{
        CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT,
    };
    let get = |which| {
        let mut value = 0_u64;
        ok(unsafe { sys::cuDeviceGetGraphMemAttribute(0, which, (&raw mut value).cast()) });
        value >> 20
    };
    format!("{}/{}", get(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT), get(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT))
}

fn instantiate(graph: sys::CUgraph) -> sys::CUgraphExec {
    let mut executable = std::ptr::null_mut();
    ok(unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) });
    executable
}

pub(crate) fn memory() -> String {
    let gpu = Gpu::new();
    let stream = gpu.stream(1);
    let (mut graph, mut node) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(unsafe { sys::cuGraphCreate(&raw mut graph, 0) });
    let mut parameters: sys::CUDA_MEM_ALLOC_NODE_PARAMS = unsafe { std::mem::zeroed() };
    parameters.poolProps.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    parameters.poolProps.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    parameters.bytesize = SIZE;
    ok(unsafe {
        sys::cuGraphAddMemAllocNode(&raw mut node, graph, std::ptr::null(), 0, &raw mut parameters)
    });
    let executable = instantiate(graph);
    let mut report = vec![format!("made {}", held())];
    let free = gpu.context.mem_get_info().unwrap().0;
    ok(unsafe { sys::cuGraphLaunch(executable, stream) });
    let twice = code(unsafe { sys::cuGraphLaunch(executable, stream) });
    ok(unsafe { sys::cuStreamSynchronize(stream) });
    assert_eq!(free - gpu.context.mem_get_info().unwrap().0, SIZE);
    report.push(format!("held {}", held()));
    ok(unsafe { sys::cuMemFreeAsync(parameters.dptr, stream) });
    ok(unsafe { sys::cuStreamSynchronize(stream) });
    report.push(format!("freed {}", held()));
    ok(unsafe { sys::cuDeviceGraphMemTrim(0) });
    assert_eq!(gpu.context.mem_get_info().unwrap().0, free);
    report.push(format!("trimmed {}", held()));
    report.push(format!("captured {}, twice {twice}", captured(&gpu, stream)));
    ok(unsafe { sys::cuGraphExecDestroy(executable) });
    ok(unsafe { sys::cuGraphDestroy(graph) });
    report.join(", ")
}

/// A graph that is captured from allocation, work and free, launched three times; what it leaves in its result.
fn captured(gpu: &Gpu, stream: sys::CUstream) -> f32 {
    let (result, mut memory, mut graph) = (gpu.zeros(1), 0, std::ptr::null_mut());
    gpu.context.synchronize().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
    ok(unsafe { sys::cuMemAllocAsync(&raw mut memory, SIZE, stream) });
    ok(unsafe { sys::cuMemsetD32Async(memory, 5.0_f32.to_bits(), 1, stream) });
    ok(unsafe { sys::cuMemcpyDtoDAsync_v2(result, memory, 4, stream) });
    ok(unsafe { sys::cuMemFreeAsync(memory, stream) });
    ok(unsafe { sys::cuStreamEndCapture(stream, &raw mut graph) });
    let executable = instantiate(graph);
    for _ in 0..3 {
        ok(unsafe { sys::cuGraphLaunch(executable, stream) });
    }
    ok(unsafe { sys::cuStreamSynchronize(stream) });
    assert_eq!(held(), "0/64");
    ok(unsafe { sys::cuDeviceGraphMemTrim(0) });
    gpu.peek(result, 1)[0]
}

/// A graph of one kernel that takes so many microseconds.
fn spinning(gpu: &Gpu, microseconds: &u32) -> (sys::CUgraph, sys::CUgraphNode, sys::CUDA_KERNEL_NODE_PARAMS) {
    let (mut graph, mut node) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(unsafe { sys::cuGraphCreate(&raw mut graph, 0) });
    let mut arguments = [arg(microseconds)];
    let mut parameters: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    parameters.func = gpu.function("spin_us");
    (parameters.gridDimX, parameters.gridDimY, parameters.gridDimZ) = (1, 1, 1);
    (parameters.blockDimX, parameters.blockDimY, parameters.blockDimZ) = (1, 1, 1);
    parameters.kernelParams = arguments.as_mut_ptr();
    ok(unsafe {
        sys::cuGraphAddKernelNode_v2(&raw mut node, graph, std::ptr::null(), 0, &raw const parameters)
    });
    parameters.kernelParams = std::ptr::null_mut();
    (graph, node, parameters)
}

pub(crate) fn update() -> String {
    let gpu = Gpu::new();
    let stream = gpu.stream(1);
    let (graph, node, mut parameters) = spinning(&gpu, &1000);
    let executable = instantiate(graph);
    let time = || {
        gpu.spin_on(stream, 50_000);
        let start = gpu.event_on(stream);
        ok(unsafe { sys::cuGraphLaunch(executable, stream) });
        let milliseconds = gpu.elapsed(start, gpu.event_on(stream));
        format!("{milliseconds:.1} ms")
    };
    let first = time();
    let two = 2000_u32;
    let mut arguments = [arg(&two)];
    parameters.kernelParams = arguments.as_mut_ptr();
    ok(unsafe { sys::cuGraphExecKernelNodeSetParams_v2(executable, node, &raw const parameters) });
    let second = time();
    let (longer, ..) = spinning(&gpu, &3000);
    let mut info: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
    ok(unsafe { sys::cuGraphExecUpdate_v2(executable, longer, &raw mut info) });
    let third = time();
    let mut other = std::ptr::null_mut();
    unsafe { result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL) }
        .unwrap();
    ok(unsafe { sys::cuStreamEndCapture(stream, &raw mut other) });
    let refused = code(unsafe { sys::cuGraphExecUpdate_v2(executable, other, &raw mut info) });
    assert_eq!(info.result as u32, 2);
    ok(unsafe { sys::cuGraphNodeSetEnabled(executable, node, 0) });
    format!("{first}, {second} by a node, {third} by a graph, {refused} for another, {} disabled", time())
}

/// How often a user object was destroyed, after each step of the life of a graph that keeps it.
pub(crate) fn user_object() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static DESTROYED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn destroy(counter: *mut std::ffi::c_void) {
        unsafe { &*counter.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
    }
    let _gpu = Gpu::new();
    let counter = std::ptr::from_ref(&DESTROYED).cast_mut().cast();
    let (mut object, mut graph) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(unsafe { sys::cuUserObjectCreate(&raw mut object, counter, Some(destroy), 1, 1) });
    ok(unsafe { sys::cuGraphCreate(&raw mut graph, 0) });
    let refused = code(unsafe { sys::cuUserObjectRelease(object, 2) });
    // The program's only reference becomes the graph's.
    ok(unsafe { sys::cuGraphRetainUserObject(graph, object, 1, 1) });
    let mut report =
        vec![format!("refused {refused}"), format!("moved {}", DESTROYED.load(Ordering::Relaxed))];
    let executable = instantiate(graph);
    ok(unsafe { sys::cuGraphDestroy(graph) });
    report.push(format!("graph gone {}", DESTROYED.load(Ordering::Relaxed)));
    ok(unsafe { sys::cuGraphExecDestroy(executable) });
    report.push(format!("executable gone {}", DESTROYED.load(Ordering::Relaxed)));
    report.join(", ")
}
