//! Green contexts.

use cudarc::driver::sys;

use super::gpu::{Gpu, code};

fn ok(result: sys::CUresult) {
    assert_eq!(code(result), 0);
}

fn sms(resource: &sys::CUdevResource) -> u32 {
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

const KIND: sys::CUdevResourceType = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;

fn blank() -> sys::CUdevResource {
    unsafe { std::mem::zeroed() }
}

/// A green context of `least` SMs or a little more, and how the device was cut.
fn create(least: u32) -> (sys::CUgreenCtx, String) {
    let (mut whole, mut parts, mut rest, mut count) = (blank(), [blank(), blank()], blank(), 2);
    ok(unsafe { sys::cuDeviceGetDevResource(0, &raw mut whole, KIND) });
    ok(unsafe {
        sys::cuDevSmResourceSplitByCount(
            parts.as_mut_ptr(),
            &raw mut count,
            &raw const whole,
            &raw mut rest,
            0,
            least,
        )
    });
    let (mut description, mut green) = (std::ptr::null_mut(), std::ptr::null_mut());
    ok(unsafe { sys::cuDevResourceGenerateDesc(&raw mut description, parts.as_mut_ptr(), 1) });
    ok(unsafe { sys::cuGreenCtxCreate(&raw mut green, description, 0, 1) });
    (green, format!("{} = {count} x {} + {}", sms(&whole), sms(&parts[0]), sms(&rest)))
}

fn stream_of(green: sys::CUgreenCtx) -> sys::CUstream {
    let mut stream = std::ptr::null_mut();
    ok(unsafe { sys::cuGreenCtxStreamCreate(&raw mut stream, green, 1, 0) });
    stream
}

pub(crate) fn split() -> String {
    let gpu = Gpu::new();
    let free = gpu.context.mem_get_info().unwrap().0;
    let (green, cut) = create(19);
    let taken = free - gpu.context.mem_get_info().unwrap().0;
    let (mut context, mut resource) = (std::ptr::null_mut(), blank());
    ok(unsafe { sys::cuCtxFromGreenCtx(&raw mut context, green) });
    ok(unsafe { sys::cuCtxGetDevResource(context, &raw mut resource, KIND) });
    let (mut whole, mut count) = (blank(), 1);
    ok(unsafe { sys::cuDeviceGetDevResource(0, &raw mut whole, KIND) });
    let too_many = unsafe {
        sys::cuDevSmResourceSplitByCount(
            std::ptr::null_mut(),
            &raw mut count,
            &raw const whole,
            std::ptr::null_mut(),
            0,
            82,
        )
    };
    // All layers of a model, on a quarter of the processors.
    let stream = stream_of(green);
    gpu.spin_on(stream, 50_000);
    let start = gpu.event_on(stream);
    for _ in 0..16 {
        gpu.launch_on(stream, "vgg16_layer", [16, 1, 1], &mut []);
    }
    let milliseconds = gpu.elapsed(start, gpu.event_on(stream));
    ok(unsafe { sys::cuGreenCtxDestroy(green) });
    format!(
        "{cut}, context {}, memory {taken}, {}, milliseconds {milliseconds}",
        sms(&resource),
        code(too_many)
    )
}

/// Keeps half of the processors busy.
pub(crate) fn saturate() {
    let gpu = Gpu::new();
    let (green, _) = create(40);
    let stream = stream_of(green);
    loop {
        gpu.spin_on(stream, 1000);
    }
}
