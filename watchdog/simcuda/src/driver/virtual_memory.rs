//! Virtual memory management: address ranges, physical memory, and mapping one to the other. Physical memory is
//! counted when it is created; what another process made and gave away by a descriptor is counted there alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::wire::Request;

use super::abi::{Location, PhysicalProperties};
use super::backing::{map_file, memory_file, store};
use super::context::synchronize;
use super::mapping::{map, map_blank, unmap};
use super::memory::{Allocation, Kind, take};
use super::state::{Driver, driver, lock, new_handle};
use super::{CudaError, Handle, In, Out, Result, driver};

/// Physical memory comes in multiples of this, and address ranges begin at one.
const GRANULARITY: u64 = 2 << 20;

/// Location kind: a device.
const DEVICE: u32 = 1;

/// Handle type: a file descriptor.
const DESCRIPTOR: u32 = 1;

/// Where the bytes of physical memory are.
#[derive(Debug)]
enum Bytes {
    /// In the file behind this process's memory.
    Stored(u64),
    /// In a file of their own, which other processes may be given.
    Shareable(OwnedFd),
    /// In a file that another process made, where they are counted.
    Imported(OwnedFd),
}

/// Physical memory.
#[derive(Debug)]
pub(super) struct Physical {
    size: u64,
    ordinal: i32,
    context: Handle,
    gpu: u8,
    handle_types: u32,
    bytes: Bytes,
    /// Its handle, and each mapping of it.
    uses: AtomicU32,
}

impl Physical {
    /// Maps a part of it to a range of addresses that is reserved.
    fn map_at(&self, offset: u64, size: u64, address: u64) -> Result {
        match &self.bytes {
            Bytes::Stored(place) => store()?.map_at(place + offset, size, address),
            Bytes::Shareable(file) | Bytes::Imported(file) => {
                map_file(file, offset, size, Some(address)).map(|_| ())
            }
        }
    }
}

/// Address ranges that the program has reserved: begin and size.
static RESERVED: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// Whether the range lies in one that is reserved.
fn is_reserved(address: u64, size: u64) -> bool {
    let reserved = lock(&RESERVED);
    let Some((base, length)) = reserved.range(..=address).next_back() else { return false };
    address.checked_add(size).is_some_and(|end| end <= base + length)
}

/// Reserves addresses from a multiple of the granularity on.
fn reserve(size: u64, alignment: u64) -> Result<u64> {
    let alignment = alignment.max(GRANULARITY);
    if size == 0 || !alignment.is_power_of_two() {
        return Err(CudaError::INVALID_VALUE);
    }
    let length = size.checked_add(alignment).ok_or(CudaError::OUT_OF_MEMORY)?;
    let start = map(length)?;
    let base = start.next_multiple_of(alignment);
    let end = base + size.next_multiple_of(4096);
    if base > start {
        unmap(start, base - start);
    }
    if start + length > end {
        unmap(end, start + length - end);
    }
    lock(&RESERVED).insert(base, size);
    Ok(base)
}

/// The number of the GPU that memory in a file belongs to stands in the file's name.
fn file_name(gpu: u8) -> String {
    format!("simcuda-gpu-{gpu}")
}

fn create(driver: &Driver, size: u64, properties: PhysicalProperties) -> Result<Handle> {
    if properties.location.kind != DEVICE || properties.handle_types & !DESCRIPTOR != 0 {
        return Err(CudaError::NOT_SUPPORTED);
    }
    if size == 0 || !size.is_multiple_of(GRANULARITY) {
        return Err(CudaError::INVALID_VALUE);
    }
    let device = driver.device(properties.location.id)?;
    let gpu = u8::try_from(device.index).map_err(|_| CudaError::INVALID_DEVICE)?;
    let context = driver.current()?;
    let bytes = if properties.handle_types == DESCRIPTOR {
        Bytes::Shareable(memory_file(&file_name(gpu), size).ok_or(CudaError::OUT_OF_MEMORY)?)
    } else {
        Bytes::Stored(store()?.take(size))
    };
    if context.gpu == gpu {
        take(driver, &context, size)?;
    } else {
        driver.link.call(|token| Request::Allocate { token, gpu, bytes: size })?;
    }
    let (ordinal, handle_types) = (properties.location.id, properties.handle_types);
    Ok(add(
        driver,
        Physical {
            size,
            ordinal,
            context: context.handle,
            gpu,
            handle_types,
            bytes,
            uses: AtomicU32::new(1),
        },
    ))
}

fn add(driver: &Driver, physical: Physical) -> Handle {
    let handle = new_handle();
    driver.physical.insert(handle, Arc::new(physical));
    handle
}

/// Takes one use away; the last one gives the memory back.
fn release(driver: &Driver, handle: Handle) -> Result {
    let physical = driver.physical.get(handle)?;
    if physical.uses.fetch_sub(1, Ordering::AcqRel) > 1 {
        return Ok(());
    }
    driver.physical.remove(handle)?;
    match &physical.bytes {
        Bytes::Stored(place) => store()?.give_back(*place, physical.size),
        Bytes::Shareable(_) => {}
        Bytes::Imported(_) => return Ok(()),
    }
    driver.link.send(&Request::Free { gpu: physical.gpu, bytes: physical.size })
}

/// A new descriptor of physical memory, for the program to send to another process.
fn export(driver: &Driver, handle: Handle) -> Result<RawFd> {
    match &driver.physical.get(handle)?.bytes {
        Bytes::Shareable(file) | Bytes::Imported(file) => {
            let copy = file.try_clone().map_err(|_| CudaError::OUT_OF_MEMORY)?;
            Ok(copy.into_raw_fd())
        }
        Bytes::Stored(_) => Err(CudaError::INVALID_VALUE),
    }
}

/// Physical memory that a descriptor from another process stands for.
fn import(driver: &Driver, descriptor: RawFd) -> Result<Handle> {
    if descriptor < 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    // SAFETY: the program vouches that the descriptor is open during the call; it is copied at once.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let file = File::from(file.try_clone_to_owned().map_err(|_| CudaError::INVALID_VALUE)?);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let name = link.map_err(|_| CudaError::INVALID_VALUE)?.to_string_lossy().into_owned();
    let gpu = (0..u8::MAX).find(|&gpu| name.starts_with(&format!("/memfd:{} ", file_name(gpu))));
    let gpu = gpu.ok_or(CudaError::INVALID_VALUE)?;
    let ordinal = driver.devices.iter().position(|device| device.index == u32::from(gpu));
    let ordinal = ordinal.and_then(|at| i32::try_from(at).ok()).ok_or(CudaError::INVALID_DEVICE)?;
    let size = file.metadata().map_err(|_| CudaError::INVALID_VALUE)?.len();
    let (context, bytes) = (driver.current()?.handle, Bytes::Imported(file.into()));
    let handle_types = DESCRIPTOR;
    Ok(add(driver, Physical { size, ordinal, context, gpu, handle_types, bytes, uses: AtomicU32::new(1) }))
}

fn handle_of(handle: u64) -> Result<Handle> {
    usize::try_from(handle).map_err(|_| CudaError::INVALID_VALUE)
}

/// Takes the mapping that begins at `base` away and leaves the addresses reserved.
fn unmap_range(driver: &Driver, pointer: u64, size: u64) -> Result {
    let end = pointer.saturating_add(size);
    let mut at = pointer;
    while at < end {
        // Work that is queued may still use it.
        let user = driver.memory.find(at).and_then(|found| driver.contexts.get(found.context).ok());
        user.map_or(Ok(()), |context| synchronize(driver, &context))?;
        let gone = driver.memory.remove(at, |found| matches!(found.kind, Kind::Mapped(_)));
        let gone = gone.ok_or(CudaError::INVALID_VALUE)?;
        map_blank(gone.base, gone.size)?;
        if let Kind::Mapped(physical) = gone.kind {
            release(driver, physical)?;
        }
        at = gone.base + gone.size;
    }
    Ok(())
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
        release(driver()?, handle_of(handle)?)
    }

    fn [cuMemAddressReserve] (out: Out<u64>, size: usize, alignment: usize, _wish: u64, _flags: u64) {
        driver()?;
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(reserve(size as u64, alignment as u64)?)
    }

    fn [cuMemAddressFree] (pointer: u64, size: usize) {
        let in_use = |at: u64| driver().is_ok_and(|driver| driver.memory.find(at).is_some());
        let mut reserved = lock(&RESERVED);
        if reserved.get(&pointer) != Some(&(size as u64)) || in_use(pointer) {
            return Err(CudaError::INVALID_VALUE);
        }
        reserved.remove(&pointer);
        unmap(pointer, size as u64);
        Ok(())
    }

    fn [cuMemMap] (pointer: u64, size: usize, offset: usize, handle: u64, _flags: u64) {
        let driver = driver()?;
        let handle = handle_of(handle)?;
        let physical = driver.physical.get(handle)?;
        let (size, offset) = (size as u64, offset as u64);
        let fits = offset.checked_add(size).is_some_and(|end| end <= physical.size);
        let granular = [pointer, size, offset].iter().all(|value| value.is_multiple_of(GRANULARITY));
        if size == 0 || !fits || !granular || !is_reserved(pointer, size) || driver.memory.touches(pointer, size) {
            return Err(CudaError::INVALID_VALUE);
        }
        physical.map_at(offset, size, pointer)?;
        physical.uses.fetch_add(1, Ordering::AcqRel);
        driver.memory.insert(Allocation::mapped(pointer, size, handle, physical.context, physical.gpu));
        Ok(())
    }

    fn [cuMemUnmap] (pointer: u64, size: usize) {
        unmap_range(driver()?, pointer, size as u64)
    }

    fn [cuMemSetAccess] (pointer: u64, _size: usize, _access: In<u8>, _count: usize) {
        driver()?.memory.find(pointer).map(|_| ()).ok_or(CudaError::INVALID_VALUE)
    }

    fn [cuMemGetAccess] (flags: Out<u64>, _location: In<Location>, pointer: u64) {
        driver()?.memory.find(pointer).ok_or(CudaError::INVALID_VALUE)?;
        flags.set(3)
    }

    fn [cuMemGetAllocationPropertiesFromHandle] (out: Out<PhysicalProperties>, handle: u64) {
        let physical = driver()?.physical.get(handle_of(handle)?)?;
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

    fn [cuMemExportToShareableHandle] (out: Out<RawFd>, handle: u64, kind: u32, _flags: u64) {
        if kind != DESCRIPTOR {
            return Err(CudaError::NOT_SUPPORTED);
        }
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(export(driver()?, handle_of(handle)?)?)
    }

    // A descriptor is passed in place of a pointer.
    fn [cuMemImportFromShareableHandle] (out: Out<u64>, descriptor: usize, kind: u32) {
        if kind != DESCRIPTOR {
            return Err(CudaError::NOT_SUPPORTED);
        }
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        let descriptor = RawFd::try_from(descriptor).map_err(|_| CudaError::INVALID_VALUE)?;
        out.set(import(driver()?, descriptor)? as u64)
    }
}
