//! Wrappers of sets: they occupy the GPU as kernels do.

use super::operation;
use crate::abi::{DevicePtr, DevicePtr32, Handle};
use crate::names::index;
use crate::wrappers::wrappers;

fn area(width: usize, height: usize, element: u64) -> u64 {
    (width as u64).saturating_mul(height as u64).saturating_mul(element)
}

wrappers! {
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
    // The first API, whose addresses and counts had 32 bits.
    [cuMemsetD8](to: DevicePtr32, value: u8, count: u32) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, count.into(), real)
    }
    [cuMemsetD16](to: DevicePtr32, value: u16, count: u32) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, area(count as usize, 1, 2), real)
    }
    [cuMemsetD32](to: DevicePtr32, value: u32, count: u32) |real, per_thread| {
        operation(index::cuMemsetD8_v2, None, per_thread, area(count as usize, 1, 4), real)
    }
    [cuMemsetD2D8](to: DevicePtr32, pitch: u32, value: u8, width: u32, height: u32) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width as usize, height as usize, 1), real)
    }
    [cuMemsetD2D16](to: DevicePtr32, pitch: u32, value: u16, width: u32, height: u32) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width as usize, height as usize, 2), real)
    }
    [cuMemsetD2D32](to: DevicePtr32, pitch: u32, value: u32, width: u32, height: u32) |real, per_thread| {
        operation(index::cuMemsetD2D8_v2, None, per_thread, area(width as usize, height as usize, 4), real)
    }
}
