//! Wrappers of copies within GPU memory and of sets: they occupy the GPU as kernels do.
//!
//! Copies from and to the host run on engines of their own and pass uncharged; those through unified addresses, whose
//! direction only the driver knows, do too.

use super::operation;
use crate::abi::{DevicePtr, Handle};
use crate::names::index;
use crate::wrappers::wrappers;

fn area(width: usize, height: usize, element: u64) -> u64 {
    (width as u64).saturating_mul(height as u64).saturating_mul(element)
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
    [cuMemsetD8_v2, cuMemsetD8_v2_ptds](to: DevicePtr, value: u8, count: usize) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, count as u64, real)
    }
    [cuMemsetD8Async, cuMemsetD8Async_ptsz](
        to: DevicePtr, value: u8, count: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD8_v2, Some(stream), per_thread, count as u64, real)
    }
    [cuMemsetD16_v2, cuMemsetD16_v2_ptds](to: DevicePtr, value: u16, count: usize) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, area(count, 1, 2), real)
    }
    [cuMemsetD16Async, cuMemsetD16Async_ptsz](
        to: DevicePtr, value: u16, count: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD8_v2, Some(stream), per_thread, area(count, 1, 2), real)
    }
    [cuMemsetD32_v2, cuMemsetD32_v2_ptds](to: DevicePtr, value: u32, count: usize) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, area(count, 1, 4), real)
    }
    [cuMemsetD32Async, cuMemsetD32Async_ptsz](
        to: DevicePtr, value: u32, count: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD8_v2, Some(stream), per_thread, area(count, 1, 4), real)
    }
    [cuMemsetD2D8_v2, cuMemsetD2D8_v2_ptds](
        to: DevicePtr, pitch: usize, value: u8, width: usize, height: usize
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width, height, 1), real)
    }
    [cuMemsetD2D8Async, cuMemsetD2D8Async_ptsz](
        to: DevicePtr, pitch: usize, value: u8, width: usize, height: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, Some(stream), per_thread, area(width, height, 1), real)
    }
    [cuMemsetD2D16_v2, cuMemsetD2D16_v2_ptds](
        to: DevicePtr, pitch: usize, value: u16, width: usize, height: usize
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width, height, 2), real)
    }
    [cuMemsetD2D16Async, cuMemsetD2D16Async_ptsz](
        to: DevicePtr, pitch: usize, value: u16, width: usize, height: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, Some(stream), per_thread, area(width, height, 2), real)
    }
    [cuMemsetD2D32_v2, cuMemsetD2D32_v2_ptds](
        to: DevicePtr, pitch: usize, value: u32, width: usize, height: usize
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width, height, 4), real)
    }
    [cuMemsetD2D32Async, cuMemsetD2D32Async_ptsz](
        to: DevicePtr, pitch: usize, value: u32, width: usize, height: usize, stream: Handle
    ) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, Some(stream), per_thread, area(width, height, 4), real)
    }
}
