//! Virtual memory management: address ranges, physical memory, and mapping one to the other. Physical memory is
//! counted when it is created; the bytes live in the address range, so one handle can't be seen through two ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::wire::Request;

use super::abi::{Location, PhysicalProperties};
use super::context::synchronize;
use super::memory::{Allocation, Kind, map, take, unmap};
use super::state::{Driver, driver, new_handle};
use super::{CudaError, Handle, In, Out, Result, driver};

/// Physical memory comes in multiples of this.
const GRANULARITY: u64 = 2 << 20;

/// Location kind: a device.
const DEVICE: u32 = 1;

/// Physical memory.
#[derive(Debug)]
pub(super) struct Physical {
    size: u64,
    ordinal: i32,
    context: Handle,
    gpu: u8,
    handle_types: u32,
    /// Its handle, and each mapping of it.
    uses: AtomicU32,
}

fn create(driver: &Driver, size: u64, properties: PhysicalProperties) -> Result<Handle> {
    if properties.location.kind != DEVICE {
        return Err(CudaError::NOT_SUPPORTED);
    }
    if size == 0 || !size.is_multiple_of(GRANULARITY) {
        return Err(CudaError::INVALID_VALUE);
    }
    let device = driver.device(properties.location.id)?;
    let gpu = u8::try_from(device.index).map_err(|_| CudaError::INVALID_DEVICE)?;
    let context = driver.current()?;
    if context.gpu == gpu {
        take(driver, &context, size)?;
    } else {
        driver.link.call(|token| Request::Allocate { token, gpu, bytes: size })?;
    }
    let handle = new_handle();
    let physical = Physical {
        size,
        ordinal: properties.location.id,
        context: context.handle,
        gpu,
        handle_types: properties.handle_types,
        uses: AtomicU32::new(1),
    };
    driver.physical.insert(handle, Arc::new(physical));
    Ok(handle)
}

/// Takes one use away; the last one gives the memory back.
fn release(driver: &Driver, handle: Handle) -> Result {
    let physical = driver.physical.get(handle)?;
    if physical.uses.fetch_sub(1, Ordering::AcqRel) > 1 {
        return Ok(());
    }
    driver.physical.remove(handle)?;
    driver.link.send(&Request::Free { gpu: physical.gpu, bytes: physical.size })
}

driver! {
    fn [cuMemGetAllocationGranularity] (out: Out<usize>, _properties: In<PhysicalProperties>, _option: u32) {
        driver()?;
        out.set(usize::try_from(GRANULARITY).unwrap_or(usize::MAX))
    }

    fn [cuMemCreate] (out: Out<u64>, size: usize, properties: In<PhysicalProperties>, _flags: u64) {
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(create(driver()?, size as u64, properties.get()?)? as u64)
    }

    fn [cuMemRelease] (handle: u64) {
        release(driver()?, usize::try_from(handle).map_err(|_| CudaError::INVALID_VALUE)?)
    }

    fn [cuMemAddressReserve] (out: Out<u64>, size: usize, _alignment: usize, _wish: u64, _flags: u64) {
        driver()?;
        if size == 0 || out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(map(size as u64)?)
    }

    fn [cuMemAddressFree] (pointer: u64, size: usize) {
        if driver()?.memory.find(pointer).is_some() {
            return Err(CudaError::INVALID_VALUE);
        }
        unmap(pointer, size as u64);
        Ok(())
    }

    fn [cuMemMap] (pointer: u64, size: usize, offset: usize, handle: u64, _flags: u64) {
        let driver = driver()?;
        let handle = usize::try_from(handle).map_err(|_| CudaError::INVALID_VALUE)?;
        let physical = driver.physical.get(handle)?;
        let size = size as u64;
        if offset != 0 || size > physical.size || driver.memory.find(pointer).is_some() {
            return Err(CudaError::INVALID_VALUE);
        }
        physical.uses.fetch_add(1, Ordering::AcqRel);
        driver.memory.insert(Allocation::mapped(pointer, size, handle, physical.context, physical.gpu));
        Ok(())
    }

    fn [cuMemUnmap] (pointer: u64, size: usize) {
        let driver = driver()?;
        let end = pointer.saturating_add(size as u64);
        let mut at = pointer;
        while at < end {
            // Work that is queued may still use it.
            let user = driver.memory.find(at).and_then(|found| driver.contexts.get(found.context).ok());
            user.map_or(Ok(()), |context| synchronize(driver, &context))?;
            let gone = driver.memory.remove(at, |found| matches!(found.kind, Kind::Mapped(_)));
            let gone = gone.ok_or(CudaError::INVALID_VALUE)?;
            if let Kind::Mapped(physical) = gone.kind {
                release(driver, physical)?;
            }
            at = gone.base + gone.size;
        }
        Ok(())
    }

    fn [cuMemSetAccess] (pointer: u64, _size: usize, _access: In<u8>, _count: usize) {
        driver()?.memory.find(pointer).map(|_| ()).ok_or(CudaError::INVALID_VALUE)
    }

    fn [cuMemGetAccess] (flags: Out<u64>, _location: In<Location>, pointer: u64) {
        driver()?.memory.find(pointer).ok_or(CudaError::INVALID_VALUE)?;
        flags.set(3)
    }

    fn [cuMemGetAllocationPropertiesFromHandle] (out: Out<PhysicalProperties>, handle: u64) {
        let physical = driver()?.physical.get(usize::try_from(handle).map_err(|_| CudaError::INVALID_VALUE)?)?;
        let location = Location { kind: DEVICE, id: physical.ordinal };
        let handle_types = physical.handle_types;
        out.set(PhysicalProperties { kind: 1, handle_types, location, metadata: 0, flags: [0; 8] })
    }

    fn [cuMemRetainAllocationHandle] (out: Out<u64>, pointer: u64) {
        let driver = driver()?;
        let found = driver.memory.find(pointer).ok_or(CudaError::INVALID_VALUE)?;
        let Kind::Mapped(handle) = found.kind else { return Err(CudaError::INVALID_VALUE) };
        driver.physical.get(handle)?.uses.fetch_add(1, Ordering::AcqRel);
        out.set(handle as u64)
    }
}
