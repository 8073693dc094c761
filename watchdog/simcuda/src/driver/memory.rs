//! Memory: real in this process, counted at the daemon. A device pointer is the address of a mapping of this process,
//! whose pages exist only once they are written.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::wire::{Request, Task};

use super::abi::Location;
use super::backing::store;
use super::context::synchronize;
use super::graph::{self, NodeKind};
use super::mapping::{map, unmap, wait_for_kernels};
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
    /// On the device, for the nodes of a graph.
    Graph,
    /// On the device, allocated and counted by another process.
    Imported,
}

impl Kind {
    /// Whether the GPU's memory backs it.
    pub(super) fn is_device(self) -> bool {
        !matches!(self, Self::Host | Self::Registered)
    }

    /// Whether it can be freed in stream order.
    fn may_leave(self) -> bool {
        matches!(self, Self::Device | Self::Pooled(_) | Self::Managed)
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
    /// Where it lies in the file behind device memory.
    place: u64,
    flags: u32,
    /// It will be given back in stream order.
    leaving: bool,
}

impl Allocation {
    pub(super) fn mapped(base: u64, size: u64, physical: Handle, context: Handle, gpu: u8) -> Self {
        Self { base, size, kind: Kind::Mapped(physical), context, gpu, place: 0, flags: 0, leaving: false }
    }

    pub(super) fn imported(base: u64, size: u64, context: &Context) -> Self {
        let (context, gpu) = (context.handle, context.gpu);
        Self { base, size, kind: Kind::Imported, context, gpu, place: 0, flags: 0, leaving: false }
    }

    /// Where it lies in the file behind device memory, if another process may map it.
    pub(super) fn place_to_share(&self) -> Option<u64> {
        (self.kind == Kind::Device).then_some(self.place)
    }
}

/// Bytes as they are counted: the granule's multiple.
pub(super) fn counted(size: u64) -> u64 {
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
        self.is_covered(address, length, Kind::is_device)
    }

    /// Whether a kernel may use all of the `length` bytes from `address`.
    pub(super) fn is_reachable(&self, address: u64, length: u64) -> bool {
        self.is_covered(address, length, |_| true)
    }

    /// Whether memory of a kind lies at all of the `length` bytes from `address`. Physical memory may be mapped piece
    /// by piece.
    fn is_covered(&self, address: u64, length: u64, fits: impl Fn(Kind) -> bool) -> bool {
        let Some(end) = address.checked_add(length) else { return false };
        let mut at = address;
        while at < end {
            let Some(found) = self.find(at).filter(|found| fits(found.kind)) else { return false };
            let next = found.base + found.size;
            if next < end && !matches!(found.kind, Kind::Mapped(_)) {
                return false;
            }
            at = next;
        }
        true
    }

    /// Begin and end of all memory that a kernel may use, by address.
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        let range = |found: &Allocation| (found.base, found.base.saturating_add(found.size));
        lock(&self.0).values().map(range).collect()
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
        let allocation = all.get_mut(&base).filter(|found| found.kind.may_leave() && !found.leaving)?;
        allocation.leaving = true;
        Some(*allocation)
    }

    /// Whether any memory lies in the `length` bytes from `address`.
    pub(super) fn touches(&self, address: u64, length: u64) -> bool {
        let next = lock(&self.0).range(address..address.saturating_add(length)).next().is_some();
        next || self.find(address).is_some()
    }

    /// Makes all memory of one context that of another.
    pub(super) fn hand_over(&self, from: Handle, to: Handle) {
        for allocation in lock(&self.0).values_mut().filter(|allocation| allocation.context == from) {
            allocation.context = to;
        }
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

/// Takes device memory from the card.
pub(super) fn take(driver: &Driver, context: &Context, size: u64) -> Result {
    let (gpu, bytes) = (context.gpu, counted(size));
    let ask = || driver.link.call(|token| Request::Allocate { token, gpu, bytes }).map(|_| ());
    match ask() {
        // Memory that is given back in stream order may be on its way, and pools may keep some.
        Err(CudaError::OUT_OF_MEMORY) => {
            synchronize(driver, context)?;
            driver.pools.trim_all(driver, gpu)?;
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
    if !kind.is_device() {
        let base = map(size)?;
        let (context, gpu) = (context.handle, context.gpu);
        driver.memory.insert(Allocation { base, size, kind, context, gpu, place: 0, flags, leaving: false });
        return Ok(base);
    }
    take(driver, context, size)?;
    allocate_address(driver, context, size, kind).inspect_err(|_| {
        let _ = driver.link.send(&Request::Free { gpu: context.gpu, bytes: counted(size) });
    })
}

/// The address of device memory that is counted already.
pub(super) fn allocate_address(driver: &Driver, context: &Context, size: u64, kind: Kind) -> Result<u64> {
    let store = store()?;
    let place = store.take(size);
    let base = store.map(place, size)?;
    let (context, gpu) = (context.handle, context.gpu);
    driver.memory.insert(Allocation { base, size, kind, context, gpu, place, flags: 0, leaving: false });
    Ok(base)
}

/// Unmaps device memory that was taken out of the table, and drops its pages.
pub(super) fn drop_pages(allocation: &Allocation) {
    unmap(allocation.base, allocation.size);
    if let Ok(store) = store() {
        store.give_back(allocation.place, allocation.size);
    }
}

/// Gives back memory that was taken out of the table.
fn release(driver: &Driver, allocation: &Allocation) -> Result {
    let (gpu, size) = (allocation.gpu, allocation.size);
    let bytes = match allocation.kind {
        // Others give these back.
        Kind::Registered | Kind::Mapped(_) | Kind::Graph | Kind::Imported => return Ok(()),
        Kind::Host => {
            unmap(allocation.base, size);
            return Ok(());
        }
        Kind::Pooled(pool) => {
            let pool = driver.pools.get(pool)?;
            let leaves = pool.plan(size);
            pool.settle(size, leaves);
            leaves
        }
        Kind::Device | Kind::Managed => counted(size),
    };
    drop_pages(allocation);
    driver.link.send(&Request::Free { gpu, bytes })
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
    if found.kind == Kind::Graph {
        return graph::free_now(pointer);
    }
    let fits = |found: &Allocation| matches!(found.kind, Kind::Device | Kind::Pooled(_) | Kind::Managed);
    let gone = driver.memory.remove(pointer, fits).ok_or(CudaError::INVALID_VALUE)?;
    release(driver, &gone)
}

/// Frees device memory once what is queued on the stream is done.
fn free_later(pointer: u64, stream: Handle, default: DefaultStream) -> Result {
    let driver = driver()?;
    let stream = driver.stream(stream, default)?;
    if stream.is_capturing() {
        return graph::capture_free(driver, &stream, pointer);
    }
    if driver.memory.find(pointer).is_some_and(|found| found.kind == Kind::Graph && found.base == pointer) {
        return stream.enqueue(driver, graph::free_operation(driver, pointer)?);
    }
    let leaving = driver.memory.mark_leaving(pointer).ok_or(CudaError::INVALID_VALUE)?;
    let pool = if let Kind::Pooled(pool) = leaving.kind { Some(driver.pools.get(pool)?) } else { None };
    let bytes = pool.as_ref().map_or_else(|| counted(leaving.size), |pool| pool.plan(leaving.size));
    let effect = move || {
        if let Some(gone) = driver.memory.remove(leaving.base, |found| found.leaving) {
            drop_pages(&gone);
            if let Some(pool) = &pool {
                pool.settle(gone.size, bytes);
            }
        }
    };
    let task = Some(Task::Release(bytes));
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
        driver.memory.insert(Allocation { base: pointer, size, kind, context, gpu, place: 0, flags, leaving: false });
        Ok(())
    }

    fn [cuMemHostUnregister] (pointer: u64) {
        let gone = driver()?.memory.remove(pointer, |found| found.kind == Kind::Registered);
        wait_for_kernels();
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

    fn [cuMemPrefetchBatchAsync | cuMemPrefetchBatchAsync_ptsz] default (
        _pointers: usize, _sizes: usize, _count: usize, _locations: usize, _indices: usize, _location_count: usize,
        _flags: u64, stream: Handle,
    ) {
        driver()?.stream(stream, default).map(|_| ())
    }

    fn [cuMemDiscardBatchAsync | cuMemDiscardBatchAsync_ptsz] default
        (_pointers: usize, _sizes: usize, _count: usize, _flags: u64, stream: Handle) {
        driver()?.stream(stream, default).map(|_| ())
    }

    fn [cuMemDiscardAndPrefetchBatchAsync | cuMemDiscardAndPrefetchBatchAsync_ptsz] default (
        _pointers: usize, _sizes: usize, _count: usize, _locations: usize, _indices: usize, _location_count: usize,
        _flags: u64, stream: Handle,
    ) {
        driver()?.stream(stream, default).map(|_| ())
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
