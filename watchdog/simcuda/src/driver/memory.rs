//! Memory: real in this process, counted at the daemon. A device pointer is the address of a private mapping, whose
//! pages exist only once they are written.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::wire::{Request, Task};

use super::abi::Location;
use super::context::synchronize;
use super::graph::NodeKind;
use super::state::{Context, Driver, driver, lock};
use super::stream::Operation;
use super::{CudaError, DefaultStream, Handle, Out, Result, driver};

/// Device pointers are multiples of this, and memory is counted in it.
pub(super) const GRANULE: u64 = 512;

/// What kind of memory lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// On the device.
    Device,
    /// On the device, taken from a pool.
    Pooled(Handle),
    /// Reachable from both sides, and counted as device memory.
    Managed,
    /// Page-locked host memory that the driver made.
    Host,
    /// The program's own memory, page-locked by it.
    Registered,
    /// A virtual address range that physical memory is mapped to.
    Mapped(Handle),
}

impl Kind {
    /// Whether the GPU's memory backs it.
    pub(super) fn is_device(self) -> bool {
        !matches!(self, Self::Host | Self::Registered)
    }
}

/// A stretch of memory that the driver knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
    pub(super) context: Handle,
    pub(super) gpu: u8,
    flags: u32,
    /// It will be given back in stream order.
    leaving: bool,
}

impl Allocation {
    pub(super) fn mapped(base: u64, size: u64, physical: Handle, context: Handle, gpu: u8) -> Self {
        Self { base, size, kind: Kind::Mapped(physical), context, gpu, flags: 0, leaving: false }
    }

    /// Bytes in the daemon's book.
    fn counted(&self) -> u64 {
        counted(self.size)
    }
}

fn counted(size: u64) -> u64 {
    size.div_ceil(GRANULE) * GRANULE
}

/// All memory that the driver knows, by address.
#[derive(Debug, Default)]
pub(super) struct Allocations(Mutex<BTreeMap<u64, Allocation>>);

impl Allocations {
    /// The memory that `address` lies in.
    pub(super) fn find(&self, address: u64) -> Option<Allocation> {
        let all = lock(&self.0);
        let (_, allocation) = all.range(..=address).next_back()?;
        (address - allocation.base < allocation.size.max(1)).then_some(*allocation)
    }

    /// Whether all of the `length` bytes from `address` are device memory that is in use.
    pub(super) fn is_device_range(&self, address: u64, length: u64) -> bool {
        length == 0
            || self
                .find(address)
                .is_some_and(|found| found.kind.is_device() && length <= found.size - (address - found.base))
    }

    /// Whether a kernel may use all of the `length` bytes from `address`.
    pub(super) fn is_reachable(&self, address: u64, length: u64) -> bool {
        length == 0 || self.find(address).is_some_and(|found| length <= found.size - (address - found.base))
    }

    pub(super) fn insert(&self, allocation: Allocation) {
        lock(&self.0).insert(allocation.base, allocation);
    }

    /// Takes the memory that begins at `base` out of the table, if `fits`.
    pub(super) fn remove(&self, base: u64, fits: impl Fn(&Allocation) -> bool) -> Option<Allocation> {
        let mut all = lock(&self.0);
        if !fits(all.get(&base)?) {
            return None;
        }
        all.remove(&base)
    }

    /// Marks the memory that begins at `base` as one that leaves in stream order; only once.
    fn mark_leaving(&self, base: u64) -> Option<Allocation> {
        let mut all = lock(&self.0);
        let allocation = all.get_mut(&base).filter(|found| found.kind.is_device() && !found.leaving)?;
        allocation.leaving = true;
        Some(*allocation)
    }

    /// Gives back all memory of a context that is destroyed.
    pub(super) fn release_context(&self, driver: &Driver, context: Handle) -> Result {
        let gone: Vec<Allocation> = lock(&self.0)
            .extract_if(.., |_, allocation| allocation.context == context)
            .map(|(_, gone)| gone)
            .collect();
        gone.iter().try_for_each(|allocation| release(driver, allocation))
    }
}

/// Maps fresh memory; its pages exist once they are touched.
pub(super) fn map(size: u64) -> Result<u64> {
    let length = usize::try_from(size).map_err(|_| CudaError::OUT_OF_MEMORY)?;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(CudaError::OUT_OF_MEMORY);
    }
    Ok(address.expose_provenance() as u64)
}

/// Unmaps memory that [`map`] made.
pub(super) fn unmap(base: u64, size: u64) {
    let Ok(address) = usize::try_from(base) else { return };
    let Ok(length) = usize::try_from(size) else { return };
    // SAFETY: only called with what `map` returned and was taken out of the table, so nobody else unmaps it.
    unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(address), length) };
}

/// Takes device memory from the card.
pub(super) fn take(driver: &Driver, context: &Context, size: u64) -> Result {
    let (gpu, bytes) = (context.gpu, counted(size));
    let ask = || driver.link.call(|token| Request::Allocate { token, gpu, bytes }).map(|_| ());
    match ask() {
        // Memory that is given back in stream order may be on its way.
        Err(CudaError::OUT_OF_MEMORY) => {
            synchronize(driver, context)?;
            ask()
        }
        other => other,
    }
}

/// Allocates `size` bytes in `context`.
pub(super) fn allocate(driver: &Driver, context: &Context, size: u64, kind: Kind, flags: u32) -> Result<u64> {
    if size == 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    if kind.is_device() {
        take(driver, context, size)?;
    }
    let base = map(size).inspect_err(|_| {
        if kind.is_device() {
            let _ = driver.link.send(&Request::Free { gpu: context.gpu, bytes: counted(size) });
        }
    })?;
    let (context, gpu) = (context.handle, context.gpu);
    driver.memory.insert(Allocation { base, size, kind, context, gpu, flags, leaving: false });
    Ok(base)
}

/// Gives back memory that was taken out of the table.
fn release(driver: &Driver, allocation: &Allocation) -> Result {
    match allocation.kind {
        Kind::Registered | Kind::Mapped(_) => return Ok(()),
        Kind::Pooled(pool) => driver.pools.give_back(pool, allocation.counted()),
        Kind::Device | Kind::Managed | Kind::Host => {}
    }
    unmap(allocation.base, allocation.size);
    if allocation.kind == Kind::Host {
        return Ok(());
    }
    driver.link.send(&Request::Free { gpu: allocation.gpu, bytes: allocation.counted() })
}

/// Frees device memory; like the real driver, only once all work is done.
pub(super) fn release_at(pointer: u64) -> Result {
    let driver = driver()?;
    if pointer == 0 {
        return Ok(());
    }
    let found = driver.memory.find(pointer).filter(|found| found.base == pointer && !found.leaving);
    let found = found.ok_or(CudaError::INVALID_VALUE)?;
    if let Ok(context) = driver.contexts.get(found.context) {
        synchronize(driver, &context)?;
    }
    let fits = |found: &Allocation| matches!(found.kind, Kind::Device | Kind::Pooled(_) | Kind::Managed);
    let gone = driver.memory.remove(pointer, fits).ok_or(CudaError::INVALID_VALUE)?;
    release(driver, &gone)
}

/// Frees device memory once what is queued on the stream is done.
fn free_later(pointer: u64, stream: Handle, default: DefaultStream) -> Result {
    let driver = driver()?;
    let stream = driver.stream(stream, default)?;
    stream.refuse_capture()?;
    let leaving = driver.memory.mark_leaving(pointer).ok_or(CudaError::INVALID_VALUE)?;
    let effect = move || {
        if let Some(gone) = driver.memory.remove(leaving.base, |found| found.leaving) {
            unmap(gone.base, gone.size);
            if let Kind::Pooled(pool) = gone.kind {
                driver.pools.give_back(pool, gone.counted());
            }
        }
    };
    let task = Some(Task::Release(leaving.counted()));
    stream.enqueue(
        driver,
        Operation { kind: NodeKind::MemFree, task, effect: Some(std::sync::Arc::new(effect)) },
    )
}

fn allocate_host(out: Out<u64>, size: usize, flags: u32) -> Result {
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let driver = driver()?;
    out.set(allocate(driver, &*driver.current()?, size as u64, Kind::Host, flags)?)
}

fn find_host(address: u64) -> Result<Allocation> {
    let found = driver()?.memory.find(address);
    found.filter(|found| !found.kind.is_device()).ok_or(CudaError::INVALID_VALUE)
}

/// One attribute of a pointer, by the numbers of `CUpointer_attribute`.
fn pointer_attribute(data: Out<u64>, attribute: u32, pointer: u64) -> Result {
    const HOST: u32 = 1;
    const DEVICE: u32 = 2;
    let driver = driver()?;
    let found = driver.memory.find(pointer).ok_or(CudaError::INVALID_VALUE)?;
    let kind = if found.kind.is_device() && found.kind != Kind::Managed { DEVICE } else { HOST };
    match attribute {
        1 => data.set(found.context as u64),
        2 => data.cast::<u32>().set(kind),
        // The host can't use what only the device has.
        4 if kind == DEVICE => Err(CudaError::INVALID_VALUE),
        3 | 4 => data.set(pointer),
        6 | 10 | 15 => data.cast::<u8>().set(0),
        8 => data.cast::<u8>().set(u8::from(found.kind == Kind::Managed)),
        9 => data.cast::<i32>().set(driver.context(found.context).map_or(0, |context| context.ordinal)),
        // The start also serves as the buffer's number.
        7 | 11 => data.set(found.base),
        12 => data.set(found.size),
        13 => data.cast::<u8>().set(1),
        14 => data.cast::<u32>().set(0),
        16 => data.cast::<u32>().set(3),
        17 => data.set(if let Kind::Pooled(pool) = found.kind { pool as u64 } else { 0 }),
        _ => Err(CudaError::NOT_SUPPORTED),
    }
}

driver! {
    fn [cuMemGetInfo_v2] (free: Out<usize>, total: Out<usize>) {
        let driver = driver()?;
        let gpu = driver.current()?.gpu;
        let [now, all] = driver.link.call(|token| Request::Memory { token, gpu })?;
        free.set(usize::try_from(now).unwrap_or(usize::MAX))?;
        total.set(usize::try_from(all).unwrap_or(usize::MAX))
    }

    fn [cuMemAlloc_v2] (out: Out<u64>, size: usize) {
        let driver = driver()?;
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(allocate(driver, &*driver.current()?, size as u64, Kind::Device, 0)?)
    }

    fn [cuMemAllocPitch_v2] (out: Out<u64>, pitch: Out<usize>, width: usize, height: usize, _element: u32) {
        let driver = driver()?;
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        let row = counted(width as u64);
        let size = row.checked_mul(height as u64).ok_or(CudaError::OUT_OF_MEMORY)?;
        pitch.set(usize::try_from(row).map_err(|_| CudaError::OUT_OF_MEMORY)?)?;
        out.set(allocate(driver, &*driver.current()?, size, Kind::Device, 0)?)
    }

    fn [cuMemAllocManaged] (out: Out<u64>, size: usize, flags: u32) {
        let driver = driver()?;
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(allocate(driver, &*driver.current()?, size as u64, Kind::Managed, flags)?)
    }

    fn [cuMemFree_v2] (pointer: u64) {
        release_at(pointer)
    }

    fn [cuMemFreeAsync | cuMemFreeAsync_ptsz] default (pointer: u64, stream: Handle) {
        free_later(pointer, stream, default)
    }

    fn [cuMemGetAddressRange_v2] (base: Out<u64>, size: Out<usize>, pointer: u64) {
        let found = driver()?.memory.find(pointer).filter(|found| found.kind.is_device());
        let found = found.ok_or(CudaError::NOT_FOUND)?;
        base.set_if_wanted(found.base);
        size.set_if_wanted(usize::try_from(found.size).unwrap_or(usize::MAX));
        Ok(())
    }

    fn [cuMemHostAlloc] (out: Out<u64>, size: usize, flags: u32) {
        allocate_host(out, size, flags)
    }

    fn [cuMemAllocHost_v2] (out: Out<u64>, size: usize) {
        allocate_host(out, size, 0)
    }

    fn [cuMemFreeHost] (pointer: u64) {
        let driver = driver()?;
        let gone = driver.memory.remove(pointer, |found| found.kind == Kind::Host);
        release(driver, &gone.ok_or(CudaError::INVALID_VALUE)?)
    }

    fn [cuMemHostRegister cuMemHostRegister_v2] (pointer: u64, size: usize, flags: u32) {
        let driver = driver()?;
        let context = driver.current()?;
        if pointer == 0 || size == 0 {
            return Err(CudaError::INVALID_VALUE);
        }
        if driver.memory.find(pointer).is_some() {
            return Err(CudaError::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let (context, gpu, size) = (context.handle, context.gpu, size as u64);
        let kind = Kind::Registered;
        driver.memory.insert(Allocation { base: pointer, size, kind, context, gpu, flags, leaving: false });
        Ok(())
    }

    fn [cuMemHostUnregister] (pointer: u64) {
        let gone = driver()?.memory.remove(pointer, |found| found.kind == Kind::Registered);
        gone.map(|_| ()).ok_or(CudaError::HOST_MEMORY_NOT_REGISTERED)
    }

    fn [cuMemHostGetDevicePointer_v2] (out: Out<u64>, pointer: u64, _flags: u32) {
        find_host(pointer)?;
        out.set(pointer)
    }

    fn [cuMemHostGetFlags] (flags: Out<u32>, pointer: u64) {
        flags.set(find_host(pointer)?.flags)
    }

    fn [cuPointerGetAttribute] (data: Out<u64>, attribute: u32, pointer: u64) {
        pointer_attribute(data, attribute, pointer)
    }

    fn [cuPointerGetAttributes] (count: u32, attributes: super::In<u32>, data: super::In<Out<u64>>, pointer: u64) {
        for index in 0..count as usize {
            let slot = data.at(index)?;
            // Unlike the function for one attribute, this one succeeds for memory that the driver does not know.
            if pointer_attribute(slot, attributes.at(index)?, pointer).is_err() {
                slot.cast::<u32>().set_if_wanted(0);
            }
        }
        Ok(())
    }

    fn [cuPointerSetAttribute] (_value: super::In<u8>, _attribute: u32, pointer: u64) {
        driver()?.memory.find(pointer).map(|_| ()).ok_or(CudaError::INVALID_VALUE)
    }

    fn [cuMemAdvise] (_pointer: u64, _size: usize, _advice: u32, _device: i32) {
        driver().map(|_| ())
    }

    fn [cuMemAdvise_v2] (_pointer: u64, _size: usize, _advice: u32, _location: Location) {
        driver().map(|_| ())
    }

    fn [cuMemPrefetchAsync | cuMemPrefetchAsync_ptsz] default
        (_pointer: u64, _size: usize, _device: i32, stream: Handle) {
        driver()?.stream(stream, default).map(|_| ())
    }

    fn [cuMemPrefetchAsync_v2 | cuMemPrefetchAsync_v2_ptsz] default
        (_pointer: u64, _size: usize, _location: Location, _flags: u32, stream: Handle) {
        driver()?.stream(stream, default).map(|_| ())
    }
}
