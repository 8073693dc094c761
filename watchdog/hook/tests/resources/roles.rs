//! The client programs: what a test starts behind the hook.
// They call the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

use crate::node::ROLE;
use crate::program::{Program, SPIN, say};

const MIB: usize = 1 << 20;
/// What the test says, or nothing once it has closed our input.
fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Plays the role that the environment names. Alone it does nothing.
#[test]
#[ignore = "a client program for the other tests"]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "ways" => ways(),
        "graph-memory" => graph_memory(),
        "newest-names" => newest_names(),
        "freed-behind-work" => freed_behind_work(),
        "end-context" => end_context(false),
        "reset-context" => end_context(true),
        "context-memory created" => context_memory(false),
        "context-memory primary" => context_memory(true),
        "export" => export(),
        "import" => import(),
        "host-functions" => host_functions(),
        "copy unified" | "copy batch" | "copy rectangle" | "copy linear" | "set" => copy(&role),
        "green" => green(),
        "per-thread" => per_thread(),
        "two-gpus" => two_gpus(),
        "cold" => cold(),
        "grid 1" => grid(1),
        "grid 188" => grid(188),
        "grid 60000" => grid(60_000),
        "long-launch" => long_launch(),
        _ => panic!("no such role: {role}"),
    }
    while !hear().is_empty() {}
}

fn code(status: CUresult) -> i32 {
    status as i32
}

fn free_mib() -> usize {
    result::mem_get_info().unwrap().0 / MIB
}

fn nvml_agrees() -> bool {
    let nvml = nvml_wrapper::Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
    let memory = nvml.device_by_index(0).unwrap().memory_info().unwrap();
    let (free, total) = result::mem_get_info().unwrap();
    (memory.free, memory.total, memory.used) == (free as u64, total as u64, (total - free) as u64)
}

/// Takes memory in one way, or gives the handle that it took back.
type Take = fn(usize) -> (CUresult, u64);
type Give = fn(u64) -> CUresult;

fn ways() {
    let _context = CudaContext::new(0).unwrap();
    let all: [(&str, Take, Give); 9] = [
        ("linear", linear, free),
        ("pitched", pitched, free),
        ("managed", managed, free),
        ("flat array", flat_array, free_array),
        ("array", array, free_array),
        ("mipmapped array", mipmapped_array, free_mipmapped_array),
        ("physical", physical, free_physical),
        ("async", in_order, free_in_order),
        ("pool", from_pool, free_from_pool),
    ];
    for (way, take, give) in all {
        let (first, handle) = take(200 * MIB);
        let (second, _) = take(100 * MIB);
        let agrees = if nvml_agrees() { "agrees" } else { "differs" };
        assert_eq!(code(give(handle)), 0, "{way}");
        let (third, handle) = take(200 * MIB);
        let (first, second, third) = (code(first), code(second), code(third));
        say(&format!("{way}: 200 MiB {first}, 100 MiB more {second}, NVML {agrees}, 200 MiB again {third}"));
        assert_eq!(code(give(handle)), 0, "{way}");
    }
}

/// Takes the newest form that there is of a name, and calls it as an older one; and looks up what few headers declare.
fn newest_names() {
    let _context = CudaContext::new(0).unwrap();
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    let find = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
    let call = |name: &CStr, argument: usize| {
        let function = find(name);
        assert!(!function.is_null(), "{name:?}");
        let function: extern "C" fn(usize, usize) -> i32 = unsafe { std::mem::transmute(function) };
        function(argument, 0xbad)
    };
    let mut device = -1_i32;
    let got = call(c"cuCtxGetDevice_v2", (&raw mut device).expose_provenance());
    say(&format!("device {device}: {got}, waited {}", call(c"cuCtxSynchronize_v2", 0)));
    say(&format!("profiler {}, {}", call(c"cuProfilerStart", 0), call(c"cuProfilerStop", 0)));
}

/// Frees memory behind a kernel and takes as much again at once, which there is no room for before the kernel has ended.
fn freed_behind_work() {
    let program = Program::start();
    let stream = program.context.default_stream();
    let free_behind_work = |pointer| {
        program.spin(&stream, 50_000);
        code(unsafe { sys::cuMemFreeAsync(pointer, null_mut()) })
    };
    let (_, pointer) = in_order(200 * MIB);
    let freed = free_behind_work(pointer);
    let (again, pointer) = in_order(200 * MIB);
    say(&format!("freed {freed}, again from the pool {}", code(again)));
    let freed = free_behind_work(pointer);
    let (again, pointer) = linear(200 * MIB);
    say(&format!("freed {freed}, again by itself {}", code(again)));
    assert_eq!(code(free(pointer)), 0);

    keep_all();
    let (_, pointer) = in_order(200 * MIB);
    assert_eq!(code(free_in_order(pointer)), 0);
    let (again, pointer) = linear(200 * MIB);
    say(&format!("kept by the pool, again by itself {}", code(again)));
    assert_eq!(code(in_order(100 * MIB).0), 2);
    assert_eq!(code(free(pointer)), 0);
}

/// Has the default pool keep all that it gets.
fn keep_all() {
    let (mut pool, mut threshold) = (null_mut(), u64::MAX);
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let got = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, 0) };
    let set = unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) };
    assert_eq!((code(got), code(set)), (0, 0));
}

fn linear(bytes: usize) -> (CUresult, u64) {
    let mut pointer = 0;
    (unsafe { sys::cuMemAlloc_v2(&raw mut pointer, bytes) }, pointer)
}

fn pitched(bytes: usize) -> (CUresult, u64) {
    let (mut pointer, mut pitch) = (0, 0);
    (unsafe { sys::cuMemAllocPitch_v2(&raw mut pointer, &raw mut pitch, 4096, bytes / 4096, 4) }, pointer)
}

fn managed(bytes: usize) -> (CUresult, u64) {
    let mut pointer = 0;
    (unsafe { sys::cuMemAllocManaged(&raw mut pointer, bytes, 1) }, pointer)
}

fn free(pointer: u64) -> CUresult {
    unsafe { sys::cuMemFree_v2(pointer) }
}

fn flat_array(bytes: usize) -> (CUresult, u64) {
    let mut array = null_mut();
    let format = sys::CUarray_format::CU_AD_FORMAT_FLOAT;
    let (width, height) = (MIB / 4 / 256, bytes / MIB * 256);
    let shape = sys::CUDA_ARRAY_DESCRIPTOR { Width: width, Height: height, Format: format, NumChannels: 1 };
    (unsafe { sys::cuArrayCreate_v2(&raw mut array, &raw const shape) }, array as u64)
}

fn shape(bytes: usize) -> sys::CUDA_ARRAY3D_DESCRIPTOR {
    sys::CUDA_ARRAY3D_DESCRIPTOR {
        Width: 512,
        Height: 512,
        Depth: bytes / MIB,
        Format: sys::CUarray_format::CU_AD_FORMAT_FLOAT,
        NumChannels: 1,
        Flags: 0,
    }
}

fn array(bytes: usize) -> (CUresult, u64) {
    let (mut array, shape) = (null_mut(), shape(bytes));
    (unsafe { sys::cuArray3DCreate_v2(&raw mut array, &raw const shape) }, array as u64)
}

fn free_array(array: u64) -> CUresult {
    unsafe { sys::cuArrayDestroy(array as sys::CUarray) }
}

fn mipmapped_array(bytes: usize) -> (CUresult, u64) {
    let (mut array, shape) = (null_mut(), shape(bytes));
    (unsafe { sys::cuMipmappedArrayCreate(&raw mut array, &raw const shape, 1) }, array as u64)
}

fn free_mipmapped_array(array: u64) -> CUresult {
    unsafe { sys::cuMipmappedArrayDestroy(array as sys::CUmipmappedArray) }
}

fn physical(bytes: usize) -> (CUresult, u64) {
    let mut properties = unsafe { std::mem::zeroed::<sys::CUmemAllocationProp>() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let mut handle = 0;
    (unsafe { sys::cuMemCreate(&raw mut handle, bytes, &raw const properties, 0) }, handle)
}

fn free_physical(handle: u64) -> CUresult {
    unsafe { sys::cuMemRelease(handle) }
}

fn in_order(bytes: usize) -> (CUresult, u64) {
    let mut pointer = 0;
    (unsafe { sys::cuMemAllocAsync(&raw mut pointer, bytes, null_mut()) }, pointer)
}

/// By default a pool gives everything back when work is waited for.
fn free_in_order(pointer: u64) -> CUresult {
    let status = unsafe { sys::cuMemFreeAsync(pointer, null_mut()) };
    assert_eq!(code(unsafe { sys::cuStreamSynchronize(null_mut()) }), 0);
    status
}

static POOL: std::sync::atomic::AtomicPtr<c_void> = std::sync::atomic::AtomicPtr::new(null_mut());

fn from_pool(bytes: usize) -> (CUresult, u64) {
    use std::sync::atomic::Ordering::SeqCst;
    let mut pool = POOL.load(SeqCst).cast::<sys::CUmemPoolHandle_st>();
    if pool.is_null() {
        let mut properties = unsafe { std::mem::zeroed::<sys::CUmemPoolProps>() };
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        assert_eq!(code(unsafe { sys::cuMemPoolCreate(&raw mut pool, &raw const properties) }), 0);
        POOL.store(pool.cast(), SeqCst);
    }
    let mut pointer = 0;
    (unsafe { sys::cuMemAllocFromPoolAsync(&raw mut pointer, bytes, pool, null_mut()) }, pointer)
}

fn free_from_pool(pointer: u64) -> CUresult {
    let status = free_in_order(pointer);
    let pool = POOL.load(std::sync::atomic::Ordering::SeqCst).cast();
    assert_eq!(code(unsafe { sys::cuMemPoolTrimTo(pool, 0) }), 0);
    status
}

/// A graph that takes memory and gives it back.
fn graph_of(stream: sys::CUstream, mib: usize) -> sys::CUgraphExec {
    let (mut graph, mut executable, mut pointer) = (null_mut(), null_mut(), 0);
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        sys::cuStreamBeginCapture_v2(stream, mode).result().unwrap();
        sys::cuMemAllocAsync(&raw mut pointer, mib * MIB, stream).result().unwrap();
        sys::cuMemFreeAsync(pointer, stream).result().unwrap();
        sys::cuStreamEndCapture(stream, &raw mut graph).result().unwrap();
        sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0).result().unwrap();
    }
    executable
}

fn graph_memory() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let [first, second, third] = [200, 250, 280].map(|mib| graph_of(stream.cu_stream(), mib));
    let launch = |graph| unsafe { code(sys::cuGraphLaunch(graph, stream.cu_stream())) };
    say(&format!("captured free {}", free_mib()));
    say(&format!("launched {}", launch(first)));
    stream.synchronize().unwrap();
    say(&format!("kept free {}", free_mib()));
    say(&format!("again {}", launch(first)));
    stream.synchronize().unwrap();
    say(&format!("another graph {}", launch(second)));
    stream.synchronize().unwrap();
    say(&format!("kept free {}", free_mib()));
    say(&format!("too large a graph {}", launch(third)));
    assert_eq!(code(unsafe { sys::cuDeviceGraphMemTrim(0) }), 0);
    say(&format!("after the trim {}", free_mib()));
}

fn created() -> sys::CUcontext {
    let mut context = null_mut();
    assert_eq!(code(unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) }), 0);
    context
}

fn primary() -> sys::CUcontext {
    let mut context = null_mut();
    unsafe {
        assert_eq!(code(sys::cuDevicePrimaryCtxRetain(&raw mut context, 0)), 0);
        assert_eq!(code(sys::cuCtxSetCurrent(context)), 0);
    }
    context
}

/// Launches `micros` of work in the present context.
fn launch(micros: u32) {
    let (mut module, mut function, mut micros) = (null_mut(), null_mut(), micros);
    let text = std::ffi::CString::new(SPIN).unwrap();
    unsafe {
        assert_eq!(code(sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast())), 0);
        assert_eq!(code(sys::cuModuleGetFunction(&raw mut function, module, c"spin_us".as_ptr())), 0);
        let mut parameters = [(&raw mut micros).cast::<c_void>()];
        let status = sys::cuLaunchKernel(
            function,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            null_mut(),
            parameters.as_mut_ptr(),
            null_mut(),
        );
        assert_eq!(code(status), 0);
    }
}

/// With memory of several kinds and work in flight.
fn end_context(reset: bool) {
    result::init().unwrap();
    let context = if reset { primary() } else { created() };
    assert_eq!(code(linear(64 * MIB).0), 0);
    assert_eq!(code(array(64 * MIB).0), 0);
    assert_eq!(code(managed(64 * MIB).0), 0);
    launch(50_000);
    say("taken");
    hear();
    let status =
        unsafe { if reset { sys::cuDevicePrimaryCtxReset_v2(0) } else { sys::cuCtxDestroy_v2(context) } };
    say(&format!("ended {}", code(status)));
    let again = if reset { primary() } else { created() };
    launch(1_000);
    assert_eq!(code(unsafe { sys::cuCtxSynchronize() }), 0);
    assert!(!again.is_null());
    say("launched in another one");
}

fn context_memory(of_device: bool) {
    result::init().unwrap();
    let context = if of_device { primary() } else { created() };
    say(&format!("free {}", free_mib()));
    let status = unsafe {
        if of_device { sys::cuDevicePrimaryCtxRelease_v2(0) } else { sys::cuCtxDestroy_v2(context) }
    };
    say(&format!("after its end {}", code(status)));
}

fn export() {
    let _context = CudaContext::new(0).unwrap();
    let (status, pointer) = linear(200 * MIB);
    assert_eq!(code(status), 0);
    let mut handle = unsafe { std::mem::zeroed::<sys::CUipcMemHandle>() };
    assert_eq!(code(unsafe { sys::cuIpcGetMemHandle(&raw mut handle, pointer) }), 0);
    let bytes = handle.reserved.map(|byte| format!("{:02x}", byte.cast_unsigned())).concat();
    say(&format!("handle {bytes}"));
    hear();
}

fn import() {
    let _context = CudaContext::new(0).unwrap();
    let text = hear();
    let mut handle = unsafe { std::mem::zeroed::<sys::CUipcMemHandle>() };
    for (at, byte) in handle.reserved.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap().cast_signed();
    }
    let mut pointer = 0;
    say(&format!("opened {}", code(unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut pointer, handle, 1) })));
    hear();
    say(&format!("closed {}", code(unsafe { sys::cuIpcCloseMemHandle(pointer) })));
}

unsafe extern "C" fn sleep(_: *mut c_void) {
    std::thread::park_timeout(Duration::from_millis(20));
}

/// Kernels of 100 µs in rows, and a function on the host between the rows.
fn host_functions() {
    let program = Program::start();
    let stream = program.context.new_stream().unwrap();
    for _ in 0..30 {
        program.spin(&stream, 100);
    }
    for _ in 0..5 {
        assert_eq!(code(unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(sleep), null_mut()) }), 0);
        for _ in 0..30 {
            program.spin(&stream, 100);
        }
    }
    stream.synchronize().unwrap();
    say("done");
}

fn copy(role: &str) {
    let _context = CudaContext::new(0).unwrap();
    let bytes = 4 * MIB;
    let (from, to) = (linear(bytes).1, linear(bytes).1);
    let mut host = vec![0u8; bytes];
    let here = host.as_mut_ptr();
    unsafe {
        let (up, down) = match role {
            "copy unified" => {
                (sys::cuMemcpy(from, here as u64, bytes), sys::cuMemcpy(here as u64, from, bytes))
            }
            "copy rectangle" => (
                sys::cuMemcpy2D_v2(&rectangle(End::Gpu(from), End::Host(here), bytes)),
                sys::cuMemcpy2D_v2(&rectangle(End::Host(here), End::Gpu(from), bytes)),
            ),
            "copy batch" => (batch(from, here as u64, bytes), batch(here as u64, from, bytes)),
            _ => (
                sys::cuMemcpyHtoD_v2(from, here.cast(), bytes),
                sys::cuMemcpyDtoH_v2(here.cast(), from, bytes),
            ),
        };
        say(&format!("to the GPU {}", code(up)));
        say(&format!("from the GPU {}", code(down)));
        say("within the GPU");
        let status = match role {
            "copy unified" => sys::cuMemcpyAsync(to, from, bytes, null_mut()),
            "copy rectangle" => sys::cuMemcpy2D_v2(&rectangle(End::Gpu(to), End::Gpu(from), bytes)),
            "copy batch" => batch(to, from, bytes),
            "set" => sys::cuMemsetD32_v2(to, 7, bytes / 4),
            _ => sys::cuMemcpyDtoD_v2(to, from, bytes),
        };
        say(&format!("done {}", code(status)));
        assert_eq!(code(sys::cuCtxSynchronize()), 0);
    }
}

fn batch(to: u64, from: u64, bytes: usize) -> CUresult {
    let (mut to, mut from, mut bytes, mut index, mut failed) = ([to], [from], [bytes], [0], 0);
    let stream = stream();
    let mut attributes = [unsafe { std::mem::zeroed::<sys::CUmemcpyAttributes>() }];
    attributes[0].srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    unsafe {
        sys::cuMemcpyBatchAsync(
            to.as_mut_ptr(),
            from.as_mut_ptr(),
            bytes.as_mut_ptr(),
            1,
            attributes.as_mut_ptr(),
            index.as_mut_ptr(),
            1,
            &raw mut failed,
            stream,
        )
    }
}

fn stream() -> sys::CUstream {
    let mut stream = null_mut();
    assert_eq!(code(unsafe { sys::cuStreamCreate(&raw mut stream, 0) }), 0);
    stream
}

enum End {
    Host(*mut u8),
    Gpu(u64),
}

fn rectangle(to: End, from: End, bytes: usize) -> sys::CUDA_MEMCPY2D {
    let (host, device) = (sys::CUmemorytype::CU_MEMORYTYPE_HOST, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE);
    let parts = |end| match end {
        End::Host(pointer) => (host, pointer, 0),
        End::Gpu(pointer) => (device, null_mut(), pointer),
    };
    let ((from, from_host, from_device), (to, to_host, to_device)) = (parts(from), parts(to));
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: from,
        srcHost: from_host.cast(),
        srcDevice: from_device,
        srcArray: null_mut(),
        srcPitch: 1024,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: to,
        dstHost: to_host.cast(),
        dstDevice: to_device,
        dstArray: null_mut(),
        dstPitch: 1024,
        WidthInBytes: 1024,
        Height: bytes / 1024,
    }
}

fn green() {
    let program = Program::start();
    let (mut part, mut count, mut description) = (null_mut(), 1, null_mut());
    let (mut green, mut stream) = (null_mut(), null_mut());
    unsafe {
        let (mut whole, mut half) =
            (std::mem::zeroed::<sys::CUdevResource>(), std::mem::zeroed::<sys::CUdevResource>());
        let sms = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        assert_eq!(code(sys::cuDeviceGetDevResource(0, &raw mut whole, sms)), 0);
        let status = sys::cuDevSmResourceSplitByCount(
            &raw mut half,
            &raw mut count,
            &raw const whole,
            null_mut(),
            0,
            40,
        );
        assert_eq!(code(status), 0);
        assert_eq!(code(sys::cuDevResourceGenerateDesc(&raw mut description, &raw mut half, 1)), 0);
        assert_eq!(code(sys::cuGreenCtxCreate(&raw mut green, description, 0, 1)), 0);
        assert_eq!(code(sys::cuGreenCtxStreamCreate(&raw mut stream, green, 1, 0)), 0);
        assert_eq!(code(sys::cuCtxFromGreenCtx(&raw mut part, green)), 0);
        assert_eq!(code(sys::cuCtxSetCurrent(part)), 0);
        let (mut module, mut function, mut micros) = (null_mut(), null_mut(), 1_000u32);
        let text = std::ffi::CString::new(SPIN).unwrap();
        assert_eq!(code(sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast())), 0);
        assert_eq!(code(sys::cuModuleGetFunction(&raw mut function, module, c"spin_us".as_ptr())), 0);
        let mut parameters = [(&raw mut micros).cast::<c_void>()];
        for _ in 0..40 {
            let status = sys::cuLaunchKernel(
                function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                null_mut(),
            );
            assert_eq!(code(status), 0);
        }
        assert_eq!(code(sys::cuStreamSynchronize(stream)), 0);
        assert_eq!(code(sys::cuGreenCtxDestroy(green)), 0);
        program.context.bind_to_thread().unwrap();
    }
    say("done");
}

/// Four threads, each on its own default stream.
fn per_thread() {
    let program = Program::start();
    let (mut module, mut function) = (null_mut(), null_mut());
    let text = std::ffi::CString::new(SPIN).unwrap();
    unsafe {
        assert_eq!(code(sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast())), 0);
        assert_eq!(code(sys::cuModuleGetFunction(&raw mut function, module, c"spin_us".as_ptr())), 0);
    }
    let function = function as usize;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                program.context.bind_to_thread().unwrap();
                let mut micros = 1_000u32;
                let mut parameters = [(&raw mut micros).cast::<c_void>()];
                let own = 2 as sys::CUstream;
                for _ in 0..10 {
                    let status = unsafe {
                        sys::cuLaunchKernel(
                            function as sys::CUfunction,
                            1,
                            1,
                            1,
                            1,
                            1,
                            1,
                            0,
                            own,
                            parameters.as_mut_ptr(),
                            null_mut(),
                        )
                    };
                    assert_eq!(code(status), 0);
                }
                assert_eq!(code(unsafe { sys::cuStreamSynchronize(own) }), 0);
            });
        }
    });
    say("done");
}

fn two_gpus() {
    let contexts = [0, 1].map(|gpu| CudaContext::new(gpu).unwrap());
    let take = |context: &Arc<CudaContext>, what: &str| {
        context.bind_to_thread().unwrap();
        say(&format!("{what} {}", code(linear(100 * MIB).0)));
    };
    take(&contexts[0], "on the first");
    take(&contexts[1], "on the second");
    take(&contexts[1], "more on the second");
    // In turns, on the default stream of each.
    for _ in 0..20 {
        for context in &contexts {
            context.bind_to_thread().unwrap();
            launch(500);
        }
    }
    for context in &contexts {
        context.synchronize().unwrap();
    }
    say("done");
}

/// Kernels of kinds that were never seen before.
fn cold() {
    let program = Program::start();
    let stream = program.context.default_stream();
    let start = Instant::now();
    for blocks in [1, 10, 100, 1000] {
        program.spin_wide(&stream, 100_000, blocks);
    }
    say(&format!("waited {}", start.elapsed().as_millis()));
    stream.synchronize().unwrap();
}

fn grid(blocks: u32) {
    let program = Program::start();
    let stream = program.context.new_stream().unwrap();
    for _ in 0..60 {
        program.spin_wide(&stream, 1_000, blocks);
    }
    stream.synchronize().unwrap();
    say("done");
}

fn long_launch() {
    let program = Program::start();
    assert_eq!(code(linear(64 * MIB).0), 0);
    program.spin(&program.context.default_stream(), 2_000_000);
    say("launched");
    loop {
        program.spin(&program.context.default_stream(), 2_000_000);
    }
}
