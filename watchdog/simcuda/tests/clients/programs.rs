//! The client programs. They run in a process of their own, with the simulated driver on the library path.

mod computing;
mod gpu;
mod graphs;
mod green;
mod management;
mod memory;
mod sharing;

use std::io::{Read, Write};

use cudarc::driver::sys;

use crate::rig::ANSWER;
use gpu::Gpu;

pub(crate) fn run(name: &str) {
    match name {
        "compute" => answer(&compute()),
        "twenty_half_milliseconds" => answer(&twenty_half_milliseconds().to_string()),
        "between_queued_events" => answer(&between_queued_events().to_string()),
        "out_of_memory" => answer(&out_of_memory()),
        "inference" => answer(&inference().to_string()),
        "context" => answer(&context()),
        "saturate" => saturate(),
        "hoard" => hoard(),
        "management" => answer(&management::describe()),
        "events" => management::events(),
        "resolve" => answer(&management::resolve()),
        "graph" => answer(&graph()),
        "order" => answer(&order()),
        "staging" => answer(&staging()),
        "flood" => flood(),
        "lose_the_device" => lose_the_device(),
        "threads" => answer(&threads()),
        "memory" => answer(&memory::take_and_give_back()),
        "pool" => answer(&memory::keep_in_a_pool()),
        "pieces" => answer(&memory::map_piece_by_piece()),
        "export" => sharing::export(),
        "import" => answer(&sharing::import()),
        "graph_memory" => answer(&graphs::memory()),
        "graph_update" => answer(&graphs::update()),
        "user_object" => answer(&graphs::user_object()),
        "green" => answer(&green::split()),
        "green_saturate" => green::saturate(),
        "interpret" => answer(&computing::interpret()),
        "interpret_faults" => answer(&computing::faults()),
        "values" => answer(&computing::values()),
        "process_utilization" => answer(&management::utilization()),
        "illegal" => answer(&illegal()),
        "fork" => answer(&fork()),
        "initialise" => answer(&gpu::code(unsafe { sys::cuInit(0) }).to_string()),
        other => panic!("no program {other}"),
    }
}

pub(crate) fn answer(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{ANSWER}{text}").unwrap();
    out.flush().unwrap();
}

/// Until the test ends this process.
pub(crate) fn wait_for_the_end() {
    let _ = std::io::stdin().read(&mut [0]);
}

fn compute() -> String {
    let gpu = Gpu::new();
    format!("vector_add {}, saxpy {}, matmul {}", vector_add(&gpu), saxpy(&gpu), matmul(&gpu))
}

fn vector_add(gpu: &Gpu) -> f32 {
    let (left, right) = (gpu.upload(&vec![100.0; 1000]), gpu.upload(&vec![200.0; 1000]));
    let (out, n) = (gpu.zeros(1000), 1000_u32);
    gpu.launch("vector_add", &mut [gpu::arg(&out), gpu::arg(&left), gpu::arg(&right), gpu::arg(&n)]);
    let sums = gpu.download(out, 1000);
    assert!(sums.iter().all(|&sum| (sum - sums[0]).abs() < f32::EPSILON));
    sums[0]
}

fn saxpy(gpu: &Gpu) -> f32 {
    let (x, y, factor, n) = (gpu.upload(&[2.0; 8]), gpu.upload(&[1.0; 8]), 3.0_f32, 8_u32);
    gpu.launch("saxpy", &mut [gpu::arg(&n), gpu::arg(&factor), gpu::arg(&x), gpu::arg(&y)]);
    gpu.download(y, 8)[7]
}

fn matmul(gpu: &Gpu) -> String {
    let (left, right) = (gpu.upload(&[1.0, 2.0, 3.0, 4.0]), gpu.upload(&[5.0, 6.0, 7.0, 8.0]));
    let (out, n) = (gpu.zeros(4), 2_u32);
    gpu.launch("matmul", &mut [gpu::arg(&left), gpu::arg(&right), gpu::arg(&out), gpu::arg(&n)]);
    let product: Vec<String> = gpu.download(out, 4).iter().map(f32::to_string).collect();
    product.join(" ")
}

/// All layers of a model, in a share of the SMs; its batch is the last dimension of the grid.
fn inference() -> f32 {
    let gpu = Gpu::new();
    let stream = gpu.stream(1);
    gpu.spin_on(stream, 50_000);
    let (start, end) = (gpu.event_on(stream), {
        for _ in 0..16 {
            gpu.launch_on(stream, "vgg16_layer", [16, 1, 8], &mut []);
        }
        gpu.event_on(stream)
    });
    gpu.elapsed(start, end)
}

fn twenty_half_milliseconds() -> f32 {
    let gpu = Gpu::new();
    let stream = gpu.context.new_stream().unwrap();
    let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timing).unwrap();
    for _ in 0..20 {
        gpu.spin_on(stream.cu_stream(), 500);
    }
    let end = stream.record_event(timing).unwrap();
    start.elapsed_ms(&end).unwrap()
}

/// A kernel in front keeps the stream busy while all the rest is queued.
fn between_queued_events() -> f32 {
    let gpu = Gpu::new();
    let stream = gpu.context.new_stream().unwrap();
    let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    gpu.spin_on(stream.cu_stream(), 200_000);
    let start = stream.record_event(timing).unwrap();
    for _ in 0..20 {
        gpu.spin_on(stream.cu_stream(), 500);
    }
    let end = stream.record_event(timing).unwrap();
    start.elapsed_ms(&end).unwrap()
}

fn out_of_memory() -> String {
    let gpu = Gpu::new();
    let error = unsafe { cudarc::driver::result::malloc_sync(800 << 20) }.unwrap_err();
    let small = unsafe { cudarc::driver::result::malloc_sync(100 << 20) }.unwrap();
    gpu.launch("spin_us", &mut [gpu::arg(&5_u32)]);
    gpu.context.synchronize().unwrap();
    unsafe { cudarc::driver::result::free_sync(small) }.unwrap();
    format!("{} then fine", gpu::code(error.0))
}

fn context() -> String {
    let start = std::time::Instant::now();
    let gpu = Gpu::new();
    let milliseconds = start.elapsed().as_millis();
    let (free, total) = gpu.context.mem_get_info().unwrap();
    format!("{} {milliseconds}", (total - free) >> 20)
}

fn saturate() {
    let gpu = Gpu::new();
    loop {
        gpu.launch("spin_us", &mut [gpu::arg(&1000_u32)]);
    }
}

fn flood() {
    let gpu = Gpu::new();
    answer("flooding");
    loop {
        gpu.launch("spin_us", &mut [gpu::arg(&200_000_u32)]);
    }
}

fn hoard() {
    let gpu = Gpu::new();
    let _memory = unsafe { cudarc::driver::result::malloc_sync(1 << 30) }.unwrap();
    for _ in 0..100 {
        gpu.launch("spin_us", &mut [gpu::arg(&1_000_000_u32)]);
    }
    answer("ready");
    wait_for_the_end();
}

fn graph() -> String {
    let gpu = Gpu::new();
    let stream = gpu.context.new_stream().unwrap();
    let n = 4_u32;
    let (ones, sum) = (gpu.upload(&[1.0; 4]), gpu.zeros(4));
    gpu.context.synchronize().unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    for _ in 0..2 {
        let arguments = &mut [gpu::arg(&sum), gpu::arg(&sum), gpu::arg(&ones), gpu::arg(&n)];
        gpu.launch_on(stream.cu_stream(), "vector_add", [1, 1, 1], arguments);
        gpu.spin_on(stream.cu_stream(), 1490);
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    let before = gpu.peek(sum, 4)[0];
    gpu.spin_on(stream.cu_stream(), 100_000);
    let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timing).unwrap();
    graph.launch().unwrap();
    let end = stream.record_event(timing).unwrap();
    let milliseconds = start.elapsed_ms(&end).unwrap();
    let first = gpu.peek(sum, 4)[0];
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    let second = gpu.peek(sum, 4)[0];
    format!("{before} before, {first} and {second} after, {milliseconds:.1} ms")
}

fn order() -> String {
    use std::sync::{Arc, Mutex};
    let gpu = Gpu::new();
    let blocking = gpu.stream(0);
    let independent = gpu.stream(1);
    let log = Arc::new(Mutex::new(Vec::new()));
    let note = |stream, text: &'static str| gpu::call_on(stream, &log, text);
    // Work on a blocking stream, then the legacy stream, which waits for it; an independent stream does not.
    gpu.spin_on(blocking, 50_000);
    note(blocking, "kernel host");
    note(std::ptr::null_mut(), "barrier");
    note(independent, "independent");
    gpu.context.synchronize().unwrap();
    let log = log.lock().unwrap().clone();
    assert_eq!(log[0], "independent");
    format!("{}, independent first", log[1..].join(" "))
}

fn staging() -> String {
    let gpu = Gpu::new();
    let stream = gpu.stream(1);
    let target = gpu.zeros(4);
    gpu.context.synchronize().unwrap();
    gpu.spin_on(stream, 20_000);
    let mut host = [1.0_f32; 4];
    let result = unsafe { sys::cuMemcpyHtoDAsync_v2(target, host.as_ptr().cast(), 16, stream) };
    assert_eq!(gpu::code(result), 0);
    host.fill(9.0);
    gpu.context.synchronize().unwrap();
    let values: Vec<String> = gpu.peek(target, 4).iter().map(f32::to_string).collect();
    values.join(" ")
}

fn lose_the_device() {
    let gpu = Gpu::new();
    gpu.launch("spin_us", &mut [gpu::arg(&3_000_000_000_u32)]);
    answer("waiting");
    let sync = gpu::code(unsafe { sys::cuCtxSynchronize() });
    let launch = gpu.try_launch("spin_us", &mut [gpu::arg(&1_u32)]);
    let mut pointer = 0;
    let alloc = gpu::code(unsafe { sys::cuMemAlloc_v2(&raw mut pointer, 512) });
    answer(&format!("sync {sync}, launch {launch}, alloc {alloc}"));
    wait_for_the_end();
}

fn threads() -> String {
    let gpu = Gpu::new();
    std::thread::scope(|scope| {
        for number in 0..8_u8 {
            let gpu = &gpu;
            scope.spawn(move || {
                let stream = gpu.stream(1);
                let (sum, one, n) = (gpu.zeros(4), gpu.upload(&[f32::from(number); 4]), 4_u32);
                for _ in 0..50 {
                    let arguments = &mut [gpu::arg(&sum), gpu::arg(&sum), gpu::arg(&one), gpu::arg(&n)];
                    gpu.launch_on(stream, "vector_add", [1, 1, 1], arguments);
                    gpu.spin_on(stream, 100);
                }
                assert_eq!(gpu::code(unsafe { sys::cuStreamSynchronize(stream) }), 0);
                assert!((gpu.peek(sum, 4)[3] - 50.0 * f32::from(number)).abs() < 1e-3);
            });
        }
    });
    "8 threads, all sums right".into()
}

fn illegal() -> String {
    let gpu = Gpu::new();
    let (nowhere, n) = (0x1000_u64, 4_u32);
    gpu.launch("vector_add", &mut [gpu::arg(&nowhere), gpu::arg(&nowhere), gpu::arg(&nowhere), gpu::arg(&n)]);
    let sync = gpu::code(unsafe { sys::cuCtxSynchronize() });
    format!("{sync} {}", gpu.try_launch("spin_us", &mut [gpu::arg(&1_u32)]))
}

fn fork() -> String {
    let gpu = Gpu::new();
    let mut device = 0;
    // The child only calls one function of the driver and ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = gpu::code(unsafe { sys::cuCtxGetDevice(&raw mut device) });
        unsafe { libc::_exit(i32::try_from(code).unwrap_or(255)) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let parent = gpu::code(unsafe { sys::cuCtxGetDevice(&raw mut device) });
    gpu.context.synchronize().unwrap();
    format!("child {}, parent {parent}", libc::WEXITSTATUS(status))
}
