//! Wrappers of copies of rectangles, boxes and arrays. Those between two places on the GPU occupy it.

use super::copies::is_on_gpu;
use super::operation;
use crate::abi::{
    Copy2d, Copy3d, DevicePtr, DevicePtr32, Handle, MEMORY_ARRAY, MEMORY_DEVICE, MEMORY_UNIFIED, Status,
};
use crate::names::index;
use crate::session::session;
use crate::wrappers::wrappers;

/// Whether one end of a copy lies on the GPU.
fn is_there(kind: u32, pointer: DevicePtr) -> bool {
    matches!(kind, MEMORY_DEVICE | MEMORY_ARRAY) || (kind == MEMORY_UNIFIED && is_on_gpu(pointer))
}

trait Shape {
    /// Bytes that are copied from a place on the GPU to another one, 0 if either end is the host's.
    fn within_gpu(&self) -> u64;
}

impl Shape for Copy2d {
    fn within_gpu(&self) -> u64 {
        let within = is_there(self.from.kind, self.from.device) && is_there(self.to.kind, self.to.device);
        let bytes = (self.width as u64).saturating_mul(self.height as u64);
        if within { bytes.max(1) } else { 0 }
    }
}

impl Shape for Copy3d {
    fn within_gpu(&self) -> u64 {
        let within = is_there(self.from.kind, self.from.device) && is_there(self.to.kind, self.to.device);
        let sides = [self.width, self.height, self.depth];
        let bytes = sides.into_iter().fold(1u64, |bytes, side| bytes.saturating_mul(side as u64));
        if within { bytes.max(1) } else { 0 }
    }
}

/// # Safety
/// `shape` is the driver's own argument.
unsafe fn shaped<S: Shape>(
    shape: *const S,
    stream: Option<Handle>,
    per_thread: bool,
    mut real: impl FnMut() -> Status,
) -> Status {
    // SAFETY: null, or what the driver reads too.
    let bytes = match unsafe { shape.as_ref() } {
        Some(shape) if session().is_some() => shape.within_gpu(),
        _ => 0,
    };
    if bytes == 0 { real() } else { operation(index::cuMemcpy2D_v2, stream, per_thread, bytes, real) }
}

wrappers! {
    [cuMemcpy2D_v2, cuMemcpy2D_v2_ptds, cuMemcpy2DUnaligned_v2, cuMemcpy2DUnaligned_v2_ptds](
        shape: *const Copy2d
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { shaped(shape, None, per_thread, real) }
    }
    [cuMemcpy2DAsync_v2, cuMemcpy2DAsync_v2_ptsz](shape: *const Copy2d, stream: Handle) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { shaped(shape, Some(stream), per_thread, real) }
    }
    // Boxes between devices are laid out alike: a context lies where the others have nothing.
    [cuMemcpy3D_v2, cuMemcpy3D_v2_ptds, cuMemcpy3DPeer, cuMemcpy3DPeer_ptds](
        shape: *const Copy3d
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { shaped(shape, None, per_thread, real) }
    }
    [cuMemcpy3DAsync_v2, cuMemcpy3DAsync_v2_ptsz, cuMemcpy3DPeerAsync, cuMemcpy3DPeerAsync_ptsz](
        shape: *const Copy3d, stream: Handle
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { shaped(shape, Some(stream), per_thread, real) }
    }
    // The first API had other shapes, and is not looked into: all are charged.
    [cuMemcpy2D, cuMemcpy2DUnaligned, cuMemcpy3D](shape: Handle) |real, per_thread| {
        operation(index::cuMemcpy2D_v2, None, per_thread, 1, real)
    }
    [cuMemcpy2DAsync, cuMemcpy3DAsync](shape: Handle, stream: Handle) |real, per_thread| {
        operation(index::cuMemcpy2D_v2, Some(stream), per_thread, 1, real)
    }
    [cuMemcpyDtoA_v2, cuMemcpyDtoA_v2_ptds](
        to: Handle, offset: usize, from: DevicePtr, bytes: usize
    ) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes as u64, real)
    }
    [cuMemcpyAtoD_v2, cuMemcpyAtoD_v2_ptds](
        to: DevicePtr, from: Handle, offset: usize, bytes: usize
    ) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes as u64, real)
    }
    [cuMemcpyAtoA_v2, cuMemcpyAtoA_v2_ptds](
        to: Handle, to_offset: usize, from: Handle, from_offset: usize, bytes: usize
    ) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes as u64, real)
    }
    [cuMemcpyDtoA](to: Handle, offset: u32, from: DevicePtr32, bytes: u32) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes.into(), real)
    }
    [cuMemcpyAtoD](to: DevicePtr32, from: Handle, offset: u32, bytes: u32) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes.into(), real)
    }
    [cuMemcpyAtoA](
        to: Handle, to_offset: u32, from: Handle, from_offset: u32, bytes: u32
    ) |real, per_thread| {
        operation(index::cuMemcpyAtoA_v2, None, per_thread, bytes.into(), real)
    }
}
