//! Arrays, with levels of detail or without: here, memory of the device with rows one behind the other.

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

/// An array with levels of detail, the finest first, each of half the size of the one before.
#[derive(Debug)]
pub(super) struct Mipmap {
    levels: Vec<Handle>,
}

fn create_mipmap(out: Out<Handle>, finest: Descriptor3D, levels: u32) -> Result {
    let most = 1 + finest.width.max(finest.height).max(finest.depth).max(1).ilog2();
    if out.is_null() || levels == 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    let driver = driver()?;
    let mut made = Vec::new();
    for level in 0..levels.min(most) {
        // An extent of zero means that there is no such dimension.
        let half = |extent: usize| if extent == 0 { 0 } else { (extent >> level).max(1) };
        let (width, height, depth) = (half(finest.width), half(finest.height), half(finest.depth));
        match Array::create(driver, Descriptor3D { width, height, depth, ..finest }) {
            Ok(array) => made.push(driver.arrays.add(array)),
            Err(error) => {
                destroy_all(driver, &made)?;
                return Err(error);
            }
        }
    }
    out.set(driver.mipmaps.add(Mipmap { levels: made }))
}

fn destroy_all(driver: &Driver, arrays: &[Handle]) -> Result {
    arrays.iter().try_for_each(|&array| release_at(driver.arrays.remove(array)?.base))
}

/// `CUDA_ARRAY_MEMORY_REQUIREMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Requirements {
    bytes: usize,
    alignment: usize,
    reserved: [u32; 4],
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

    fn [cuArrayGetMemoryRequirements] (out: Out<Requirements>, array: Handle, _device: i32) {
        let array = driver()?.arrays.get(array)?;
        let bytes = array.plane * array.descriptor.depth.max(1);
        out.set(Requirements { bytes, alignment: 512, reserved: [0; 4] })
    }

    fn [cuMipmappedArrayCreate] (out: Out<Handle>, finest: In<Descriptor3D>, levels: u32) {
        create_mipmap(out, finest.get()?, levels)
    }

    fn [cuMipmappedArrayGetLevel] (out: Out<Handle>, array: Handle, level: u32) {
        let array = driver()?.mipmaps.get(array)?;
        out.set(*array.levels.get(level as usize).ok_or(CudaError::INVALID_VALUE)?)
    }

    fn [cuMipmappedArrayDestroy] (array: Handle) {
        let driver = driver()?;
        destroy_all(driver, &driver.mipmaps.remove(array)?.levels)
    }
}
