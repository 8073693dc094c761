//! Arrays: here, memory of the device with rows one behind the other. Textures and surfaces are not simulated.

use super::memory::{Kind, allocate, release_at};
use super::state::{Driver, driver};
use super::{CudaError, Handle, In, Out, Result, driver};

/// `CUDA_ARRAY_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    width: usize,
    height: usize,
    format: u32,
    channels: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Descriptor3D {
    width: usize,
    height: usize,
    depth: usize,
    format: u32,
    channels: u32,
    flags: u32,
}

/// An array.
#[derive(Debug)]
pub(super) struct Array {
    pub(super) base: u64,
    /// Bytes of a row.
    pub(super) row: usize,
    /// Bytes of a plane.
    pub(super) plane: usize,
    descriptor: Descriptor3D,
}

/// Bytes of one channel of `CUarray_format`.
fn channel_size(format: u32) -> Result<usize> {
    match format {
        0x01 | 0x08 => Ok(1),
        0x02 | 0x09 | 0x10 => Ok(2),
        0x03 | 0x0a | 0x20 => Ok(4),
        _ => Err(CudaError::INVALID_VALUE),
    }
}

impl Array {
    /// Rows and planes, of which there is at least one.
    fn create(driver: &Driver, descriptor: Descriptor3D) -> Result<Self> {
        if descriptor.width == 0 || !matches!(descriptor.channels, 1 | 2 | 4) {
            return Err(CudaError::INVALID_VALUE);
        }
        let element = channel_size(descriptor.format)? * descriptor.channels as usize;
        let product = |a: usize, b: usize| a.checked_mul(b.max(1)).ok_or(CudaError::OUT_OF_MEMORY);
        let row = product(descriptor.width, element)?;
        let plane = product(row, descriptor.height)?;
        let size = product(plane, descriptor.depth)?;
        let base = allocate(driver, &*driver.current()?, size as u64, Kind::Device, 0)?;
        Ok(Self { base, row, plane, descriptor })
    }
}

fn create(out: Out<Handle>, descriptor: Descriptor3D) -> Result {
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let driver = driver()?;
    out.set(driver.arrays.add(Array::create(driver, descriptor)?))
}

driver! {
    fn [cuArrayCreate_v2] (out: Out<Handle>, descriptor: In<Descriptor>) {
        let Descriptor { width, height, format, channels } = descriptor.get()?;
        create(out, Descriptor3D { width, height, depth: 0, format, channels, flags: 0 })
    }

    fn [cuArray3DCreate_v2] (out: Out<Handle>, descriptor: In<Descriptor3D>) {
        create(out, descriptor.get()?)
    }

    fn [cuArrayGetDescriptor_v2] (out: Out<Descriptor>, array: Handle) {
        let Descriptor3D { width, height, format, channels, .. } = driver()?.arrays.get(array)?.descriptor;
        out.set(Descriptor { width, height, format, channels })
    }

    fn [cuArray3DGetDescriptor_v2] (out: Out<Descriptor3D>, array: Handle) {
        out.set(driver()?.arrays.get(array)?.descriptor)
    }

    fn [cuArrayDestroy] (array: Handle) {
        let driver = driver()?;
        release_at(driver.arrays.remove(array)?.base)
    }
}
