//! The client programs: what a test starts behind the hook.
// They call the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{Read, Write};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

use crate::node::ROLE;
use crate::program::{Program, say};

/// Plays the role that the environment names. Alone it does nothing.
#[test]
#[ignore = "a client program for the other tests"]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let name = words.next().unwrap();
    let numbers = words.map(|word| word.parse::<u32>().unwrap()).collect::<Vec<_>>();
    match (name, &numbers[..]) {
        ("init", []) => init(),
        ("launch-for-ever", []) => launch_for_ever(),
        ("burst", [kernels, micros]) => burst(*kernels, *micros, 1),
        ("burst-on-two-streams", [kernels, micros]) => burst(*kernels, *micros, 2),
        ("trickle", [kernels, micros]) => trickle(*kernels, *micros),
        ("graph", [kernels, micros]) => graph(*kernels, *micros),
        ("memory", []) => memory(),
        ("addresses", []) => addresses(),
        ("fork", []) => fork(),
        _ => panic!("no such role: {role}"),
    }
    wait_for_the_end();
}

/// Until the test closes our input.
fn wait_for_the_end() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}

fn init() {
    match result::init() {
        Ok(()) => say("init ok"),
        Err(error) => say(&format!("init {:?}", error.0)),
    }
}

fn launch_for_ever() {
    let program = Program::start();
    let stream = program.context.default_stream();
    let memory = unsafe { result::malloc_sync(64 << 20) }.unwrap();
    assert_ne!(memory, 0);
    say("ready");
    loop {
        program.spin(&stream, 1_000);
    }
}

fn burst(kernels: u32, micros: u32, streams: usize) {
    let program = Program::start();
    let streams = (0..streams).map(|_| program.context.new_stream().unwrap()).collect::<Vec<_>>();
    for _ in 0..kernels {
        for stream in &streams {
            program.spin(stream, micros);
        }
    }
    program.context.synchronize().unwrap();
    say("done");
}

/// Launches, waits for the end, and pauses ten times as long.
fn trickle(kernels: u32, micros: u32) {
    let program = Program::start();
    let stream = program.context.default_stream();
    for _ in 0..kernels {
        program.spin(&stream, micros);
        stream.synchronize().unwrap();
        std::thread::park_timeout(std::time::Duration::from_micros(u64::from(micros) * 10));
    }
    say("done");
}

fn graph(kernels: u32, micros: u32) {
    let program = Program::start();
    let stream = program.context.new_stream().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    for _ in 0..kernels {
        program.spin(&stream, micros);
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    say("captured");
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    say("done");
}

fn nvml_memory() -> (u64, u64) {
    let nvml = nvml_wrapper::Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
    let memory = nvml.device_by_index(0).unwrap().memory_info().unwrap();
    (memory.free, memory.total)
}

fn outcome<T>(result: &Result<T, cudarc::driver::DriverError>) -> String {
    result.as_ref().map_or_else(|error| format!("{:?}", error.0), |_| "ok".to_owned())
}

fn memory() {
    let context = CudaContext::new(0).unwrap();
    say(&format!("total {}", context.total_mem().unwrap()));
    let first = unsafe { result::malloc_sync(512 << 20) };
    say(&format!("first {}", outcome(&first)));
    let second = unsafe { result::malloc_sync(513 << 20) };
    say(&format!("second {}", outcome(&second)));
    let (free, total) = context.mem_get_info().unwrap();
    say(&format!("free {free} of {total}"));
    let (free, total) = nvml_memory();
    say(&format!("nvml {free} of {total}"));
    let third = unsafe { result::malloc_async(std::ptr::null_mut(), 512 << 20) };
    say(&format!("third {}", outcome(&third)));
    unsafe { result::free_async(third.unwrap(), std::ptr::null_mut()) }.unwrap();
    unsafe { result::free_sync(first.unwrap()) }.unwrap();
    say(&format!("after all are freed {}", context.mem_get_info().unwrap().0));
    virtual_memory(&context);
}

/// Makes memory, maps it, gives the handle back at once, and unmaps it.
fn virtual_memory(context: &CudaContext) {
    const SIZE: usize = 128 << 20;
    let mut properties = unsafe { std::mem::zeroed::<sys::CUmemAllocationProp>() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let (mut handle, mut address) = (0, 0);
    unsafe {
        sys::cuMemCreate(&raw mut handle, SIZE, &raw const properties, 0).result().unwrap();
        sys::cuMemAddressReserve(&raw mut address, SIZE, 0, 0, 0).result().unwrap();
        let mapped = sys::cuMemMap(address, SIZE, 0, handle, 0);
        sys::cuMemRelease(handle).result().unwrap();
        say(&format!("virtual {}", outcome(&mapped.result())));
        say(&format!("while mapped {}", context.mem_get_info().unwrap().0));
        sys::cuMemUnmap(address, SIZE).result().unwrap();
    }
    say(&format!("after unmapping {}", context.mem_get_info().unwrap().0));
}

type AskOne = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> CUresult;
type AskTwo = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> CUresult;

/// The file that the code at `address` was loaded from.
fn file_of(address: *mut c_void) -> String {
    let mut info = unsafe { std::mem::zeroed::<libc::Dl_info>() };
    assert_ne!(unsafe { libc::dladdr(address, &raw mut info) }, 0);
    unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()
}

/// Which library the addresses of all that is asked for lie in.
fn libraries(ask: AskTwo, names: &[(&str, &[c_int], u64)]) -> String {
    let mut seen = Vec::new();
    for (name, versions, flags) in names {
        let text = CString::new(*name).unwrap();
        for version in *versions {
            let mut address = std::ptr::null_mut();
            let status =
                unsafe { ask(text.as_ptr(), &raw mut address, *version, *flags, std::ptr::null_mut()) };
            assert_eq!(status, CUresult::CUDA_SUCCESS, "{name} {version}");
            let place = if file_of(address).ends_with("libsimcuda.so") { "driver" } else { "hook" };
            seen.push((place, *name, *version));
        }
    }
    let first = seen[0].0;
    let others = seen.iter().filter(|(place, ..)| *place != first).collect::<Vec<_>>();
    assert!(others.is_empty(), "{first}, but {others:?}");
    first.to_owned()
}

fn addresses() {
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null());
    // The very first call asks for addresses.
    let ask = unsafe { libc::dlsym(library, c"cuGetProcAddress_v2".as_ptr()) };
    let ask = unsafe { std::mem::transmute::<*mut c_void, AskTwo>(ask) };
    let watched: &[(&str, &[c_int], u64)] = &[
        ("cuInit", &[2000, 12000], 0),
        ("cuLaunchKernel", &[4000, 7000, 12090], 0),
        ("cuLaunchKernel", &[7000, 12090], 2),
        ("cuLaunchKernelEx", &[11060, 12090], 0),
        ("cuGraphLaunch", &[10000, 12090], 2),
        ("cuMemAlloc", &[2000, 3020, 12090], 0),
        ("cuMemFree", &[2000, 3020, 12090], 0),
        ("cuMemGetInfo", &[2000, 3020, 12090], 0),
        ("cuMemAllocAsync", &[11020, 12090], 2),
        ("cuCtxSynchronize", &[2000, 12090], 0),
        ("cuStreamSynchronize", &[2000, 7000], 2),
        ("cuGetProcAddress", &[11030, 12000, 12090], 0),
    ];
    say(&format!("watched {}", libraries(ask, watched)));
    let others: &[(&str, &[c_int], u64)] = &[
        ("cuDriverGetVersion", &[2020, 12090], 0),
        ("cuMemHostAlloc", &[2020, 12090], 0),
        ("cuStreamCreate", &[2000, 12090], 0),
    ];
    say(&format!("others {}", libraries(ask, others)));
    if std::env::var_os("GPUFN_BINDING").is_some() {
        both_versions(ask);
    }
}

/// Both forms of `cuGetProcAddress` take the arguments that they have, and a form of an old version is that form.
fn both_versions(ask: AskTwo) {
    let asked = c"cuGetProcAddress".as_ptr();
    let null = std::ptr::null_mut();
    let (mut one, mut two, mut address) = (null, null, null);
    let ok = CUresult::CUDA_SUCCESS;
    assert_eq!(unsafe { ask(asked, &raw mut one, 11030, 0, std::ptr::null_mut()) }, ok);
    let one = unsafe { std::mem::transmute::<*mut c_void, AskOne>(one) };
    assert_eq!(unsafe { one(c"cuMemAlloc".as_ptr(), &raw mut address, 11030, 0) }, ok);
    assert!(!file_of(address).ends_with("libsimcuda.so"));
    say("version one ok");
    assert_eq!(unsafe { one(asked, &raw mut two, 12000, 0) }, ok);
    let two = unsafe { std::mem::transmute::<*mut c_void, AskTwo>(two) };
    let mut found = -1;
    assert_eq!(unsafe { two(c"cuMemAlloc".as_ptr(), &raw mut address, 12000, 0, &raw mut found) }, ok);
    assert_eq!(found, 0);
    say("version two ok");
    let context = CudaContext::new(0).unwrap();
    assert_eq!(
        unsafe { ask(c"cuCtxSynchronize".as_ptr(), &raw mut address, 2000, 0, std::ptr::null_mut()) },
        ok
    );
    let synchronize =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> CUresult>(address) };
    assert_eq!(unsafe { synchronize() }, ok);
    drop(context);
    say("synchronize ok");
}

fn fork() {
    let program = Program::start();
    let stream = program.context.default_stream();
    program.spin(&stream, 100);
    stream.synchronize().unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = unsafe { sys::cuInit(0) } as i32;
        say(&format!("child {status}"));
        writer.write_all(b".").unwrap();
        // The parent ends first: nothing of the child may keep its connection open.
        unsafe { libc::sleep(600) };
        unsafe { libc::_exit(0) };
    }
    reader.read_exact(&mut [0]).unwrap();
    program.spin(&stream, 100);
    stream.synchronize().unwrap();
    say("parent ok");
    let keeper = unsafe { libc::fork() };
    if keeper != 0 {
        unsafe { libc::_exit(0) };
    }
    // Only forked children are left: this one ends the other when the test is over.
    say("parent gone");
    wait_for_the_end();
    unsafe { libc::kill(child, libc::SIGKILL) };
    unsafe { libc::_exit(0) };
}
