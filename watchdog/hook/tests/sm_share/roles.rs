//! The client programs: what a test starts behind the hook.
// They call the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

use crate::node::ROLE;
use crate::program::say;

const MIB: usize = 1 << 20;

const TEXT: &str = "
.version 7.0
.target sm_70
.address_size 64
.visible .entry spin_us(.param .u32 spin_us_param_0) { ret; }
.visible .entry vgg16_layer() { ret; }
";

/// What the test says, or nothing once it has closed our input.
fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line
}

/// Plays the role that the environment names. Alone it does nothing.
#[test]
#[ignore = "a client program for the other tests"]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    result::init().unwrap();
    match role.as_str() {
        "one-context" => one_context(),
        "layers" => layers(),
        "launch-for-ever" => launch_for_ever(),
        "many-contexts" => many_contexts(),
        "reset" => reset(),
        "own-green" => own_green(),
        "own-green-alone" => own_green_alone(),
        "no-room" => no_room(),
        "primary" => primary(),
        "own-limits" => own_limits(),
        "bare" => bare(),
        _ => panic!("no such role: {role}"),
    }
    while !hear().is_empty() {}
}

fn code(status: CUresult) -> i32 {
    status as i32
}

fn ok(status: CUresult) {
    assert_eq!(code(status), 0);
}

fn created() -> sys::CUcontext {
    let mut context = null_mut();
    ok(unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) });
    assert_eq!(current(), context);
    context
}

fn destroy(context: sys::CUcontext) -> i32 {
    code(unsafe { sys::cuCtxDestroy_v2(context) })
}

fn current() -> sys::CUcontext {
    let mut context = null_mut();
    ok(unsafe { sys::cuCtxGetCurrent(&raw mut context) });
    context
}

fn none_is_current() -> &'static str {
    if current().is_null() { "none" } else { "one" }
}

fn free_mib() -> usize {
    result::mem_get_info().unwrap().0 / MIB
}

fn say_multiprocessors() {
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    let mut resource = unsafe { std::mem::zeroed::<sys::CUdevResource>() };
    ok(unsafe { sys::cuCtxGetDevResource(current(), &raw mut resource, kind) });
    say(&format!("multiprocessors {}", unsafe { resource.__bindgen_anon_1.sm.smCount }));
}

fn function(name: &CStr) -> sys::CUfunction {
    let (mut module, mut function) = (null_mut(), null_mut());
    let text = CString::new(TEXT).unwrap();
    unsafe {
        ok(sys::cuModuleLoadData(&raw mut module, text.as_ptr().cast()));
        ok(sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()));
    }
    function
}

/// Launches on the default stream.
fn launch(function: sys::CUfunction, blocks: u32, mut micros: u32) -> i32 {
    let mut parameters = [(&raw mut micros).cast::<c_void>()];
    let parameters = parameters.as_mut_ptr();
    code(unsafe {
        sys::cuLaunchKernel(function, blocks, 1, 1, 1, 1, 1, 0, null_mut(), parameters, null_mut())
    })
}

fn synchronize() {
    ok(unsafe { sys::cuCtxSynchronize() });
}

fn one_context() {
    let context = created();
    say_multiprocessors();
    say(&format!("launched {}", launch(function(c"spin_us"), 1, 1_000)));
    synchronize();
    let (first, second) = (destroy(context), destroy(context));
    say(&format!("destroyed {first}, again {second}, current {}", none_is_current()));
}

/// All layers of a model, once.
fn layers() {
    created();
    let layer = function(c"vgg16_layer");
    for _ in 0..16 {
        assert_eq!(launch(layer, 16, 0), 0);
    }
    synchronize();
    say("done");
}

fn launch_for_ever() {
    created();
    let spin = function(c"spin_us");
    assert_eq!(launch(spin, 1, 1_000), 0);
    synchronize();
    say("ready");
    loop {
        assert_eq!(launch(spin, 1, 1_000), 0);
    }
}

fn take_64_mib() {
    let mut pointer = 0;
    ok(unsafe { sys::cuMemAlloc_v2(&raw mut pointer, 64 * MIB) });
}

fn take_arrays_of_64_mib() {
    let shape = sys::CUDA_ARRAY3D_DESCRIPTOR {
        Width: 512,
        Height: 512,
        Depth: 64,
        Format: sys::CUarray_format::CU_AD_FORMAT_FLOAT,
        NumChannels: 1,
        Flags: 0,
    };
    let (mut array, mut mipmapped) = (null_mut(), null_mut());
    unsafe {
        ok(sys::cuArray3DCreate_v2(&raw mut array, &raw const shape));
        ok(sys::cuMipmappedArrayCreate(&raw mut mipmapped, &raw const shape, 1));
    }
}

/// One that stays, and others one after the other.
fn many_contexts() {
    let first = created();
    say(&format!("first: free {}", free_mib()));
    for _ in 0..30 {
        let other = created();
        take_64_mib();
        take_arrays_of_64_mib();
        assert_eq!(launch(function(c"spin_us"), 1, 200), 0);
        assert_eq!(destroy(other), 0);
        assert_eq!(current(), first);
    }
    say(&format!("after the others: free {}", free_mib()));
    hear();
    say(&format!("ended {}", destroy(first)));
}

fn reset() {
    let context = created();
    take_64_mib();
    assert_eq!(launch(function(c"spin_us"), 1, 1_000), 0);
    let reset = code(unsafe { sys::cuDevicePrimaryCtxReset_v2(0) });
    say(&format!("reset {reset}, destroyed {}", destroy(context)));
    hear();
    created();
    say_multiprocessors();
}

/// A green context that the program makes, of half of the multiprocessors, and current.
fn half() -> sys::CUgreenCtx {
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    let (mut description, mut green, mut context, mut count) = (null_mut(), null_mut(), null_mut(), 1);
    unsafe {
        let mut whole = std::mem::zeroed::<sys::CUdevResource>();
        let mut half = std::mem::zeroed::<sys::CUdevResource>();
        ok(sys::cuDeviceGetDevResource(0, &raw mut whole, kind));
        ok(sys::cuDevSmResourceSplitByCount(
            &raw mut half,
            &raw mut count,
            &raw const whole,
            null_mut(),
            0,
            40,
        ));
        ok(sys::cuDevResourceGenerateDesc(&raw mut description, &raw mut half, 1));
        ok(sys::cuGreenCtxCreate(&raw mut green, description, 0, 1));
        ok(sys::cuCtxFromGreenCtx(&raw mut context, green));
        ok(sys::cuCtxSetCurrent(context));
    }
    green
}

fn own_green() {
    let mut primary = null_mut();
    ok(unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut primary, 0) });
    let green = half();
    take_64_mib();
    let ended = code(unsafe { sys::cuGreenCtxDestroy(green) });
    ok(unsafe { sys::cuCtxSetCurrent(primary) });
    say(&format!("green one ended {ended}: free {}", free_mib()));
    say(&format!("primary one ended {}", code(unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) })));
}

fn own_green_alone() {
    half();
    take_64_mib();
    say_multiprocessors();
}

fn no_room() {
    let mut context = null_mut();
    let created = code(unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) });
    say(&format!("created {created}, current {}", none_is_current()));
}

fn primary() {
    let contexts = [(); 2].map(|()| CudaContext::new(0).unwrap());
    assert_eq!(contexts[0].cu_ctx(), contexts[1].cu_ctx());
    say_multiprocessors();
}

fn own_limits() {
    let mut context = null_mut();
    let mut parameters = unsafe { std::mem::zeroed::<sys::CUctxCreateParams>() };
    ok(unsafe { sys::cuCtxCreate_v4(&raw mut context, &raw mut parameters, 0, 0) });
    say_multiprocessors();
    assert_eq!(destroy(context), 0);
}

/// What a driver that knows little can do.
fn bare() {
    let mut context = null_mut();
    let created = code(unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, 0) });
    let launched = launch(0x1000 as sys::CUfunction, 1, 0);
    synchronize();
    say(&format!("created {created}, launched {launched}, destroyed {}", destroy(context)));
}
