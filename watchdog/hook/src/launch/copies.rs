//! Wrappers of copies within GPU memory: they occupy the GPU as kernels do.
//!
//! Copies from and to the host run on engines of their own and pass uncharged. Where the call does not say which it is,
//! the driver is asked where the two addresses lie.

use super::operation;
use crate::abi::{DevicePtr, DevicePtr32, Handle, MEMORY_DEVICE, POINTER_MEMORY_TYPE, Status};
use crate::driver;
use crate::names::index;
use crate::session::session;
use crate::wrappers::wrappers;

/// Pairs of a batch that are looked at; the rest is taken to be like them.
const LOOKED_AT: usize = 256;

/// Whether `pointer` leads into GPU memory, managed memory included.
pub(super) fn is_on_gpu(pointer: DevicePtr) -> bool {
    let mut kind = 0;
    driver::pointer_attribute(&mut kind, POINTER_MEMORY_TYPE, pointer).is_ok()
        && kind == u64::from(MEMORY_DEVICE)
}

/// A copy whose direction its addresses tell.
fn unified(
    (to, from): (DevicePtr, DevicePtr),
    bytes: usize,
    stream: Option<Handle>,
    per_thread: bool,
    mut real: impl FnMut() -> Status,
) -> Status {
    if session().is_none() || !(is_on_gpu(to) && is_on_gpu(from)) {
        return real();
    }
    operation(index::cuMemcpyDtoD_v2, stream, per_thread, bytes as u64, real)
}

/// What a batch of copies moves within the GPU.
///
/// # Safety
/// Each list is null or has `count` entries, as the driver's reference asks.
unsafe fn within_gpu(to: *const DevicePtr, from: *const DevicePtr, sizes: *const usize, count: usize) -> u64 {
    if session().is_none() || to.is_null() || from.is_null() || sizes.is_null() {
        return 0;
    }
    let looked_at = count.min(LOOKED_AT);
    // SAFETY: the caller's promise, and no more than there are.
    let (to, from, sizes) = unsafe {
        (
            core::slice::from_raw_parts(to, looked_at),
            core::slice::from_raw_parts(from, looked_at),
            core::slice::from_raw_parts(sizes, looked_at),
        )
    };
    let moved = to.iter().zip(from).zip(sizes).filter(|((to, from), _)| is_on_gpu(**to) && is_on_gpu(**from));
    let bytes = moved.fold(0u64, |sum, (_, size)| sum.saturating_add(*size as u64));
    bytes.saturating_mul(count as u64) / (looked_at as u64).max(1)
}

/// A batch of copies, of which `bytes` are within the GPU.
fn batch(bytes: u64, stream: Handle, per_thread: bool, mut real: impl FnMut() -> Status) -> Status {
    if bytes == 0 {
        real()
    } else {
        operation(index::cuMemcpyBatchAsync, Some(stream), per_thread, bytes, real)
    }
}

wrappers! {
    [cuMemcpyDtoD_v2, cuMemcpyDtoD_v2_ptds](to: DevicePtr, from: DevicePtr, bytes: usize) |real, per_thread| {
        operation(index::cuMemcpyDtoD_v2, None, per_thread, bytes as u64, real)
    }
    [cuMemcpyDtoDAsync_v2, cuMemcpyDtoDAsync_v2_ptsz](
        to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemcpyDtoD_v2, Some(stream), per_thread, bytes as u64, real)
    }
    [cuMemcpyDtoD](to: DevicePtr32, from: DevicePtr32, bytes: u32) |real, per_thread| {
        operation(index::cuMemcpyDtoD_v2, None, per_thread, bytes.into(), real)
    }
    [cuMemcpyDtoDAsync](to: DevicePtr32, from: DevicePtr32, bytes: u32, stream: Handle) |real, per_thread| {
        operation(index::cuMemcpyDtoD_v2, Some(stream), per_thread, bytes.into(), real)
    }
    [cuMemcpy, cuMemcpy_ptds](to: DevicePtr, from: DevicePtr, bytes: usize) |real, per_thread| {
        unified((to, from), bytes, None, per_thread, real)
    }
    [cuMemcpyAsync, cuMemcpyAsync_ptsz](
        to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle
    ) |real, per_thread| {
        unified((to, from), bytes, Some(stream), per_thread, real)
    }
    [cuMemcpyWithAttributesAsync, cuMemcpyWithAttributesAsync_ptsz](
        to: DevicePtr, from: DevicePtr, bytes: usize, attributes: Handle, stream: Handle
    ) |real, per_thread| {
        unified((to, from), bytes, Some(stream), per_thread, real)
    }
    [cuMemcpyPeer, cuMemcpyPeer_ptds](
        to: DevicePtr, to_context: Handle, from: DevicePtr, from_context: Handle, bytes: usize
    ) |real, per_thread| {
        operation(index::cuMemcpyPeer, None, per_thread, bytes as u64, real)
    }
    [cuMemcpyPeerAsync, cuMemcpyPeerAsync_ptsz](
        to: DevicePtr, to_context: Handle, from: DevicePtr, from_context: Handle, bytes: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemcpyPeer, Some(stream), per_thread, bytes as u64, real)
    }
    [cuMemcpyBatchAsync, cuMemcpyBatchAsync_ptsz](
        to: *const DevicePtr, from: *const DevicePtr, sizes: *const usize, count: usize, attributes: Handle,
        indices: Handle, attribute_count: usize, failed: Handle, stream: Handle
    ) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        batch(unsafe { within_gpu(to, from, sizes, count) }, stream, per_thread, real)
    }
    [cuMemcpyBatchAsync_v2, cuMemcpyBatchAsync_v2_ptsz](
        to: *const DevicePtr, from: *const DevicePtr, sizes: *const usize, count: usize, attributes: Handle,
        indices: Handle, attribute_count: usize, stream: Handle
    ) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        batch(unsafe { within_gpu(to, from, sizes, count) }, stream, per_thread, real)
    }
    // The operations of these have no direction that could be seen without knowing more of them: all are charged.
    [cuMemcpy3DBatchAsync, cuMemcpy3DBatchAsync_ptsz](
        count: usize, operations: Handle, failed: Handle, flags: u64, stream: Handle
    ) |real, per_thread| {
        batch(count as u64, stream, per_thread, real)
    }
    [cuMemcpy3DBatchAsync_v2, cuMemcpy3DBatchAsync_v2_ptsz](
        count: usize, operations: Handle, flags: u64, stream: Handle
    ) |real, per_thread| {
        batch(count as u64, stream, per_thread, real)
    }
    [cuMemcpy3DWithAttributesAsync, cuMemcpy3DWithAttributesAsync_ptsz](
        operation: Handle, flags: u64, stream: Handle
    ) |real, per_thread| {
        batch(1, stream, per_thread, real)
    }
}
