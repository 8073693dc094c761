//! All ways of taking memory.

use cudarc::driver::sys;

use super::gpu::{Gpu, code};

const SIZE: usize = 64 << 20;

fn ok(result: sys::CUresult) {
    assert_eq!(code(result), 0);
}

/// Takes 64 MiB in each way, and says how much the card then holds more, in MiB.
pub(crate) fn take_and_give_back() -> String {
    let gpu = Gpu::new();
    let free = || gpu.context.mem_get_info().unwrap().0;
    let before = free();
    let mut report = Vec::new();
    let mut count = |name: &str, take: &dyn Fn() -> Box<dyn Fn()>| {
        let start = free();
        let give_back = take();
        report.push(format!("{name} {}", (start - free()) >> 20));
        give_back();
        gpu.context.synchronize().unwrap();
    };
    count("malloc", &plain);
    count("pool", &pooled);
    count("managed", &managed);
    count("pitch", &pitched);
    count("array", &array);
    count("physical", &physical);
    count("host", &host);
    format!("{}, back {}", report.join(", "), (before - free()) >> 20)
}

fn plain() -> Box<dyn Fn()> {
    let mut pointer = 0;
    ok(unsafe { sys::cuMemAlloc_v2(&raw mut pointer, SIZE) });
    Box::new(move || ok(unsafe { sys::cuMemFree_v2(pointer) }))
}

fn pooled() -> Box<dyn Fn()> {
    let (mut pointer, stream) = (0, std::ptr::null_mut());
    ok(unsafe { sys::cuMemAllocAsync(&raw mut pointer, SIZE, stream) });
    let mut pool = std::ptr::null_mut();
    ok(unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, 0) });
    let mut reserved = 0_u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
    ok(unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut reserved).cast()) });
    assert_eq!(reserved, SIZE as u64);
    Box::new(move || ok(unsafe { sys::cuMemFreeAsync(pointer, std::ptr::null_mut()) }))
}

fn managed() -> Box<dyn Fn()> {
    let mut pointer = 0;
    ok(unsafe { sys::cuMemAllocManaged(&raw mut pointer, SIZE, 1) });
    Box::new(move || ok(unsafe { sys::cuMemFree_v2(pointer) }))
}

fn pitched() -> Box<dyn Fn()> {
    let (mut pointer, mut pitch) = (0, 0);
    // Rows of 1000 bytes take 1024 each.
    ok(unsafe { sys::cuMemAllocPitch_v2(&raw mut pointer, &raw mut pitch, 1000, SIZE / 1024, 4) });
    assert_eq!(pitch, 1024);
    Box::new(move || ok(unsafe { sys::cuMemFree_v2(pointer) }))
}

fn array() -> Box<dyn Fn()> {
    let descriptor = sys::CUDA_ARRAY_DESCRIPTOR_st {
        Width: 4096,
        Height: SIZE / 4096 / 4,
        Format: sys::CUarray_format::CU_AD_FORMAT_FLOAT,
        NumChannels: 1,
    };
    let mut array = std::ptr::null_mut();
    ok(unsafe { sys::cuArrayCreate_v2(&raw mut array, &raw const descriptor) });
    let (sent, mut received) = ([7_u8; 64], [0_u8; 64]);
    ok(unsafe { sys::cuMemcpyHtoA_v2(array, 128, sent.as_ptr().cast(), 64) });
    ok(unsafe { sys::cuMemcpyAtoH_v2(received.as_mut_ptr().cast(), array, 128, 64) });
    assert_eq!(sent, received);
    let array = array.expose_provenance();
    Box::new(move || ok(unsafe { sys::cuArrayDestroy(std::ptr::with_exposed_provenance_mut(array)) }))
}

fn physical() -> Box<dyn Fn()> {
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let (mut handle, mut address) = (0, 0);
    ok(unsafe { sys::cuMemCreate(&raw mut handle, SIZE, &raw const properties, 0) });
    ok(unsafe { sys::cuMemAddressReserve(&raw mut address, SIZE, 0, 0, 0) });
    ok(unsafe { sys::cuMemMap(address, SIZE, 0, handle, 0) });
    ok(unsafe { sys::cuMemRelease(handle) });
    ok(unsafe { sys::cuMemsetD32_v2(address, 5, SIZE / 4) });
    Box::new(move || {
        ok(unsafe { sys::cuMemUnmap(address, SIZE) });
        ok(unsafe { sys::cuMemAddressFree(address, SIZE) });
    })
}

fn host() -> Box<dyn Fn()> {
    let mut pointer = std::ptr::null_mut();
    ok(unsafe { sys::cuMemHostAlloc(&raw mut pointer, SIZE, 0) });
    let pointer = pointer.expose_provenance();
    Box::new(move || ok(unsafe { sys::cuMemFreeHost(std::ptr::with_exposed_provenance_mut(pointer)) }))
}
