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

fn attribute(pool: sys::CUmemoryPool, which: sys::CUmemPool_attribute) -> u64 {
    let mut value = 0_u64;
    ok(unsafe { sys::cuMemPoolGetAttribute(pool, which, (&raw mut value).cast()) });
    value >> 20
}

/// What a pool has used and reserved, in MiB, while it may keep some; and what the card holds more.
pub(crate) fn keep_in_a_pool() -> String {
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
        CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    };
    let gpu = Gpu::new();
    let (stream, mut pool, mut first, mut second) = (gpu.stream(1), std::ptr::null_mut(), 0, 0);
    ok(unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, 0) });
    let mut threshold = 96_u64 << 20;
    ok(unsafe {
        sys::cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut threshold).cast())
    });
    let before = gpu.context.mem_get_info().unwrap().0;
    let mut report = Vec::new();
    let mut note = || {
        ok(unsafe { sys::cuStreamSynchronize(stream) });
        let used = attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
        let reserved = attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        let card = (before - gpu.context.mem_get_info().unwrap().0) >> 20;
        report.push(format!("{used}/{reserved}/{card}"));
    };
    ok(unsafe { sys::cuMemAllocAsync(&raw mut first, SIZE, stream) });
    ok(unsafe { sys::cuMemAllocAsync(&raw mut second, SIZE, stream) });
    note();
    ok(unsafe { sys::cuMemFreeAsync(first, stream) });
    ok(unsafe { sys::cuMemFreeAsync(second, stream) });
    note();
    ok(unsafe { sys::cuMemAllocAsync(&raw mut first, SIZE, stream) });
    note();
    ok(unsafe { sys::cuMemPoolTrimTo(pool, 80 << 20) });
    note();
    ok(unsafe { sys::cuMemFree_v2(first) });
    ok(unsafe { sys::cuMemPoolTrimTo(pool, 0) });
    note();
    report.join(" ")
}

/// Two pieces side by side are one range for a copy; one piece at two addresses is the same memory.
pub(crate) fn map_piece_by_piece() -> String {
    const PIECE: usize = 2 << 20;
    let gpu = Gpu::new();
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let (mut range, mut piece) = (0, [0; 2]);
    ok(unsafe { sys::cuMemAddressReserve(&raw mut range, 4 * PIECE, 0, 0, 0) });
    for (index, handle) in piece.iter_mut().enumerate() {
        ok(unsafe { sys::cuMemCreate(handle, PIECE, &raw const properties, 0) });
        ok(unsafe { sys::cuMemMap(range + (index * PIECE) as u64, PIECE, 0, *handle, 0) });
    }
    ok(unsafe { sys::cuMemMap(range + 3 * PIECE as u64, PIECE, 0, piece[0], 0) });
    ok(unsafe { sys::cuMemsetD32_v2(range, 0, PIECE / 4) });
    let over_the_edge = range + PIECE as u64 - 8;
    ok(unsafe { sys::cuMemcpyHtoD_v2(over_the_edge, [1.0_f32, 2.0, 3.0, 4.0].as_ptr().cast(), 16) });
    let again = gpu.peek(over_the_edge, 4);
    let twin = gpu.peek(range + 4 * PIECE as u64 - 8, 2);
    let hole = code(unsafe { sys::cuMemsetD32_v2(range + 2 * PIECE as u64, 0, 4) });
    let outside = code(unsafe { sys::cuMemMap(range + 4 * PIECE as u64, PIECE, 0, piece[0], 0) });
    format!("{again:?} {twin:?} {hole} {outside}")
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
