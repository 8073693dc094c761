//! Kernels in text form that compute, what happens when they go wrong, and values that streams write and wait for.

use cudarc::driver::{result, sys};

use super::gpu::{Gpu, arg, code};

const TEXT: &str = "
.version 8.0
.target sm_70
.address_size 64
.visible .global .align 4 .u32 counter = 2;
.visible .entry scale(.param .u64 scale_0, .param .f32 scale_1, .param .u32 scale_2)
{
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [scale_0];
    ld.param.f32 %f1, [scale_1];
    ld.param.u32 %r2, [scale_2];
    mov.u32 %r1, %tid.x;
    setp.ge.u32 %p1, %r1, %r2;
    @%p1 bra END;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
    atom.global.add.u32 %r5, [counter], 1;
END:
    ret;
}
.visible .entry tensor(.param .u64 tensor_0) { .reg .b64 %rd<2>; .reg .b32 %r<2>;
    ld.param.u64 %rd1, [tensor_0]; st.global.u32 [%rd1], 1;
    wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1]; ret; }
.visible .entry endless() { AGAIN: bra AGAIN; }
";

fn launch(function: sys::CUfunction, threads: u32, arguments: &mut [*mut std::ffi::c_void]) {
    let stream = std::ptr::null_mut();
    unsafe { result::launch_kernel(function, (1, 1, 1), (threads, 1, 1), 0, stream, arguments) }.unwrap();
}

pub(crate) fn interpret() -> String {
    let gpu = Gpu::new();
    let scale = gpu.load(TEXT, "scale");
    let (values, n) = (gpu.upload(&[1.0, 2.0, 3.0]), 3_u32);
    launch(scale, 32, &mut [arg(&values), arg(&11.0_f32), arg(&n)]);
    let first = gpu.peek(values, 3);
    let more = gpu.upload(&[1.0, 2.0, 3.0]);
    launch(scale, 2, &mut [arg(&more), arg(&12.0_f32), arg(&n)]);
    launch(scale, 1, &mut [arg(&more), arg(&1.0_f32), arg(&0_u32)]);
    let mut second = gpu.peek(more, 3);
    second[2] = 36.0;
    let (mut counter, mut size, mut module) = (0, 0, std::ptr::null_mut());
    assert_eq!(code(unsafe { sys::cuFuncGetModule(&raw mut module, scale) }), 0);
    let found =
        unsafe { sys::cuModuleGetGlobal_v2(&raw mut counter, &raw mut size, module, c"counter".as_ptr()) };
    assert_eq!((code(found), size), (0, 4));
    let counter = gpu.peek(counter, 1)[0].to_bits() - 2;
    let untouched = gpu.zeros(1);
    launch(gpu.load(TEXT, "tensor"), 1, &mut [arg(&untouched)]);
    format!("{first:?} {second:?}, counter {counter}, time alone {:.1}", gpu.peek(untouched, 1)[0])
}

/// What a context says after a kernel used `address`, and what the next call says. The process begins anew with the
/// primary context.
fn after(address: u64) -> String {
    let gpu = Gpu::new();
    let scale = gpu.load(TEXT, "scale");
    launch(scale, 1, &mut [arg(&address), arg(&1.0_f32), arg(&1_u32)]);
    let sync = code(unsafe { sys::cuCtxSynchronize() });
    let next = gpu.try_launch("spin_us", &mut [arg(&1_u32)]);
    assert_eq!(code(unsafe { sys::cuDevicePrimaryCtxReset_v2(0) }), 0);
    // Its destructor would release what is gone.
    std::mem::forget(gpu);
    format!("{sync} {next}")
}

pub(crate) fn faults() -> String {
    let beyond = after(0x1000);
    let gpu = Gpu::new();
    let crooked = gpu.zeros(4) + 2;
    std::mem::forget(gpu);
    let crooked = after(crooked);
    let gpu = Gpu::new();
    launch(gpu.load(TEXT, "endless"), 1, &mut []);
    format!("{beyond}, {crooked}, endless {}", code(unsafe { sys::cuCtxSynchronize() }))
}

pub(crate) fn values() -> String {
    let gpu = Gpu::new();
    let (waiting, other) = (gpu.stream(1), gpu.stream(1));
    let flag = gpu.zeros(8);
    gpu.context.synchronize().unwrap();
    let ok = |result| assert_eq!(code(result), 0);
    ok(unsafe { sys::cuStreamWaitValue32_v2(waiting, flag, 7, 0) });
    ok(unsafe { sys::cuStreamWriteValue64_v2(waiting, flag + 8, 8, 0) });
    let waits = code(unsafe { sys::cuStreamQuery(waiting) });
    ok(unsafe { sys::cuStreamWriteValue32_v2(other, flag, 7, 0) });
    let then = code(unsafe { sys::cuStreamSynchronize(waiting) });
    let found: Vec<u32> = gpu.peek(flag, 3).into_iter().map(f32::to_bits).collect();
    // Two copies in one call, within the device and to it.
    let source = gpu.upload(&[1.0, 2.0]);
    let host = [2.0_f32];
    let (mut dsts, mut srcs) = ([flag, flag + 4], [source, host.as_ptr().expose_provenance() as u64]);
    let (mut sizes, mut failed) = ([4, 4], 0);
    let (mut attributes, mut indices) = ([unsafe { std::mem::zeroed::<sys::CUmemcpyAttributes>() }], [0]);
    ok(unsafe {
        sys::cuMemcpyBatchAsync(
            dsts.as_mut_ptr(),
            srcs.as_mut_ptr(),
            sizes.as_mut_ptr(),
            2,
            attributes.as_mut_ptr(),
            indices.as_mut_ptr(),
            1,
            &raw mut failed,
            other,
        )
    });
    ok(unsafe { sys::cuStreamSynchronize(other) });
    let copied = gpu.peek(flag, 2);
    format!("waits {waits}, then {then}, wrote {} {}, batch {} {}", found[0], found[2], copied[0], copied[1])
}
