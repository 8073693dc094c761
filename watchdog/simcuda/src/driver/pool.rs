//! Stream-ordered allocation and its pools. A pool keeps memory that was given back to it up to its release threshold;
//! what lies above goes back to the card in stream order, without waiting for the next synchronisation.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::wire::Request;

use super::abi::{Location, PoolProperties};
use super::graph;
use super::memory::{Kind, allocate_address, counted};
use super::state::{Context, Driver, Registry, driver, lock, new_handle};
use super::{CudaError, DefaultStream, Handle, In, Out, Result, driver};

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default)]
struct Book {
    used: u64,
    most_used: u64,
    /// Taken from the card: what is used, and what is kept.
    reserved: u64,
    most_reserved: u64,
    /// What goes back to the card once frees that are queued are done.
    leaving: u64,
    threshold: u64,
}

impl Book {
    fn kept(&self) -> u64 {
        self.reserved.saturating_sub(self.used)
    }

    /// Counts `bytes` as used. Returns how many of them have to come from the card.
    fn take(&mut self, bytes: u64) -> u64 {
        let fresh = bytes.saturating_sub(self.kept());
        self.used += bytes;
        self.reserved += fresh;
        self.most_used = self.most_used.max(self.used);
        self.most_reserved = self.most_reserved.max(self.reserved);
        fresh
    }

    /// Undoes [`Book::take`].
    fn untake(&mut self, bytes: u64, fresh: u64) {
        self.used -= bytes;
        self.reserved -= fresh;
    }

    /// A free of `bytes` is queued. Returns how many of them will go back to the card.
    fn plan(&mut self, bytes: u64) -> u64 {
        let above = (self.reserved - self.leaving).saturating_sub(self.threshold);
        let leaves = bytes.min(above);
        self.leaving += leaves;
        leaves
    }

    /// A free that was planned is done.
    fn settle(&mut self, bytes: u64, leaves: u64) {
        self.used -= bytes;
        self.reserved -= leaves;
        self.leaving -= leaves;
    }

    /// Gives up what is kept, down to `floor` bytes in all. Returns how much that is.
    fn trim(&mut self, floor: u64) -> u64 {
        let gone = self.reserved.saturating_sub(floor.max(self.used));
        self.reserved -= gone;
        gone
    }
}

/// A pool of device memory.
#[derive(Debug, Default)]
pub(super) struct Pool {
    gpu: u8,
    book: Mutex<Book>,
    /// It was destroyed: what is still allocated from it can only be freed.
    closed: AtomicBool,
    /// Settings that the program made that change nothing here.
    settings: Mutex<HashMap<u32, u64>>,
}

impl Pool {
    fn new(gpu: u8, threshold: u64) -> Self {
        let book = Mutex::new(Book { threshold, ..Book::default() });
        Self { gpu, book, ..Self::default() }
    }

    /// Takes memory for an allocation of `size` bytes.
    pub(super) fn take(&self, driver: &Driver, context: &Context, size: u64) -> Result {
        let bytes = counted(size);
        let fresh = lock(&self.book).take(bytes);
        if fresh == 0 {
            return Ok(());
        }
        super::memory::take(driver, context, fresh).inspect_err(|_| lock(&self.book).untake(bytes, fresh))
    }

    pub(super) fn plan(&self, size: u64) -> u64 {
        lock(&self.book).plan(counted(size))
    }

    pub(super) fn settle(&self, size: u64, leaves: u64) {
        lock(&self.book).settle(counted(size), leaves);
    }

    /// Gives what it keeps back to the card, down to `floor` bytes.
    pub(super) fn trim(&self, driver: &Driver, floor: u64) -> Result {
        let bytes = lock(&self.book).trim(floor);
        if bytes == 0 { Ok(()) } else { driver.link.send(&Request::Free { gpu: self.gpu, bytes }) }
    }
}

/// The pools of all devices.
#[derive(Debug)]
pub(super) struct Pools {
    all: Registry<Pool>,
    defaults: Vec<Handle>,
    current: Mutex<Vec<Handle>>,
    /// Memory of graphs, for each device: it is kept until it is trimmed.
    graphs: Vec<Arc<Pool>>,
}

fn position(ordinal: i32) -> Result<usize> {
    usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)
}

impl Pools {
    /// The pools of GPUs with these numbers.
    pub(super) fn new(gpus: impl Iterator<Item = u8> + Clone) -> Self {
        let all = Registry::default();
        let defaults: Vec<Handle> = gpus.clone().map(|gpu| all.add(Pool::new(gpu, 0))).collect();
        let graphs = gpus.map(|gpu| Arc::new(Pool::new(gpu, u64::MAX))).collect();
        Self { all, current: Mutex::new(defaults.clone()), defaults, graphs }
    }

    fn default_of(&self, ordinal: i32) -> Result<Handle> {
        self.defaults.get(position(ordinal)?).copied().ok_or(CudaError::INVALID_DEVICE)
    }

    fn current_of(&self, ordinal: i32) -> Result<Handle> {
        lock(&self.current).get(position(ordinal)?).copied().ok_or(CudaError::INVALID_DEVICE)
    }

    fn set_current(&self, ordinal: i32, pool: Handle) -> Result {
        self.open(pool)?;
        *lock(&self.current).get_mut(position(ordinal)?).ok_or(CudaError::INVALID_DEVICE)? = pool;
        Ok(())
    }

    /// A pool, also if it was destroyed and something is still allocated from it.
    pub(super) fn get(&self, pool: Handle) -> Result<Arc<Pool>> {
        self.all.get(pool)
    }

    fn open(&self, pool: Handle) -> Result<Arc<Pool>> {
        let pool = self.all.get(pool)?;
        if pool.closed.load(Ordering::Acquire) { Err(CudaError::INVALID_HANDLE) } else { Ok(pool) }
    }

    /// The memory of graphs on a device.
    pub(super) fn of_graphs(&self, ordinal: i32) -> Result<&Arc<Pool>> {
        self.graphs.get(position(ordinal)?).ok_or(CudaError::INVALID_DEVICE)
    }

    /// Gives all that the pools of a GPU keep back to the card.
    pub(super) fn trim_all(&self, driver: &Driver, gpu: u8) -> Result {
        let mut pools = self.all.all();
        pools.extend(self.graphs.iter().cloned());
        pools.iter().filter(|pool| pool.gpu == gpu).try_for_each(|pool| pool.trim(driver, 0))
    }
}

fn allocate_from(
    driver: &Driver,
    out: Out<u64>,
    size: usize,
    handle: Handle,
    stream: Handle,
    default: DefaultStream,
) -> Result {
    let stream = driver.stream(stream, default)?;
    let context = driver.context(stream.context)?;
    let pool = driver.pools.open(handle)?;
    if out.is_null() || size == 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    if stream.is_capturing() {
        return out.set(graph::capture_allocation(driver, &stream, &context, size as u64)?);
    }
    pool.take(driver, &context, size as u64)?;
    match allocate_address(driver, &context, size as u64, Kind::Pooled(handle)) {
        Ok(base) => out.set(base),
        Err(error) => {
            let leaves = pool.plan(size as u64);
            pool.settle(size as u64, leaves);
            driver.link.send(&Request::Free { gpu: context.gpu, bytes: leaves })?;
            Err(error)
        }
    }
}

fn read(pool: &Pool, attribute: u32, value: Out<u64>) -> Result {
    let book = *lock(&pool.book);
    value.set(match attribute {
        // Reuse policies are on by default and are 32 bits wide.
        1..=3 => {
            let set = lock(&pool.settings).get(&attribute).copied().unwrap_or(1);
            return value.cast::<u32>().set(u32::try_from(set).unwrap_or(1));
        }
        4 => book.threshold,
        5 => book.reserved,
        6 => book.most_reserved,
        7 => book.used,
        8 => book.most_used,
        _ => return Err(CudaError::INVALID_VALUE),
    })
}

fn write(pool: &Pool, attribute: u32, value: Out<u64>) -> Result {
    match attribute {
        1..=3 => {
            let set = u64::from(value.cast::<u32>().get()?);
            lock(&pool.settings).insert(attribute, set);
        }
        4 => lock(&pool.book).threshold = value.get()?,
        6 | 8 => reset_high(pool, attribute == 8, value)?,
        _ => return Err(CudaError::INVALID_VALUE),
    }
    Ok(())
}

/// High-water marks can be set back, to zero alone.
fn reset_high(pool: &Pool, used: bool, value: Out<u64>) -> Result {
    if value.get()? != 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    let mut book = lock(&pool.book);
    if used {
        book.most_used = book.used;
    } else {
        book.most_reserved = book.reserved;
    }
    Ok(())
}

/// Attributes of the memory of graphs: used now and at most, reserved now and at most.
fn graph_attribute(device: i32, attribute: u32) -> Result<u64> {
    let book = *lock(&driver()?.pools.of_graphs(device)?.book);
    match attribute {
        0 => Ok(book.used),
        1 => Ok(book.most_used),
        2 => Ok(book.reserved),
        3 => Ok(book.most_reserved),
        _ => Err(CudaError::INVALID_VALUE),
    }
}

driver! {
    fn [cuMemAllocAsync | cuMemAllocAsync_ptsz] default (out: Out<u64>, size: usize, stream: Handle) {
        let driver = driver()?;
        let ordinal = driver.context(driver.stream(stream, default)?.context)?.ordinal;
        allocate_from(driver, out, size, driver.pools.current_of(ordinal)?, stream, default)
    }

    fn [cuMemAllocFromPoolAsync | cuMemAllocFromPoolAsync_ptsz] default
        (out: Out<u64>, size: usize, pool: Handle, stream: Handle) {
        allocate_from(driver()?, out, size, pool, stream, default)
    }

    fn [cuDeviceGetDefaultMemPool] (out: Out<Handle>, device: i32) {
        out.set(driver()?.pools.default_of(device)?)
    }

    fn [cuDeviceGetMemPool] (out: Out<Handle>, device: i32) {
        out.set(driver()?.pools.current_of(device)?)
    }

    fn [cuDeviceSetMemPool] (device: i32, pool: Handle) {
        driver()?.pools.set_current(device, pool)
    }

    fn [cuMemPoolCreate] (out: Out<Handle>, properties: In<PoolProperties>) {
        let driver = driver()?;
        let index = driver.device(properties.get()?.location.id)?.index;
        let gpu = u8::try_from(index).map_err(|_| CudaError::INVALID_DEVICE)?;
        let handle = new_handle();
        driver.pools.all.insert(handle, Arc::new(Pool::new(gpu, 0)));
        out.set(handle)
    }

    fn [cuMemPoolDestroy] (pool: Handle) {
        let driver = driver()?;
        let pools = &driver.pools;
        if pools.defaults.contains(&pool) {
            return Err(CudaError::INVALID_VALUE);
        }
        let gone = pools.open(pool)?;
        gone.closed.store(true, Ordering::Release);
        // What is still allocated goes back to the card when it is freed: the threshold is none.
        lock(&gone.book).threshold = 0;
        gone.trim(driver, 0)?;
        let mut current = lock(&pools.current);
        for (slot, &default) in current.iter_mut().zip(&pools.defaults) {
            if *slot == pool {
                *slot = default;
            }
        }
        Ok(())
    }

    fn [cuMemPoolTrimTo] (pool: Handle, keep: usize) {
        let driver = driver()?;
        driver.pools.open(pool)?.trim(driver, keep as u64)
    }

    fn [cuMemPoolGetAttribute] (pool: Handle, attribute: u32, value: Out<u64>) {
        read(&*driver()?.pools.open(pool)?, attribute, value)
    }

    fn [cuMemPoolSetAttribute] (pool: Handle, attribute: u32, value: Out<u64>) {
        write(&*driver()?.pools.open(pool)?, attribute, value)
    }

    fn [cuMemPoolSetAccess] (pool: Handle, _map: In<u8>, _count: usize) {
        driver()?.pools.open(pool).map(|_| ())
    }

    fn [cuMemPoolGetAccess] (flags: Out<u32>, pool: Handle, location: In<Location>) {
        driver()?.pools.open(pool)?;
        driver()?.device(location.get()?.id)?;
        // Reading and writing.
        flags.set(3)
    }

    fn [cuDeviceGetGraphMemAttribute] (device: i32, attribute: u32, value: Out<u64>) {
        value.set(graph_attribute(device, attribute)?)
    }

    fn [cuDeviceSetGraphMemAttribute] (device: i32, attribute: u32, value: Out<u64>) {
        match attribute {
            1 | 3 => reset_high(&**driver()?.pools.of_graphs(device)?, attribute == 1, value),
            _ => Err(CudaError::INVALID_VALUE),
        }
    }

    fn [cuDeviceGraphMemTrim] (device: i32) {
        let driver = driver()?;
        driver.pools.of_graphs(device)?.trim(driver, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pool_keeps_up_to_its_threshold_and_trims_on_demand() {
        let mut book = Book { threshold: 100, ..Book::default() };
        assert_eq!(book.take(150), 150);
        assert_eq!(book.plan(150), 50);
        book.settle(150, 50);
        assert_eq!((book.reserved, book.used, book.most_reserved), (100, 0, 150));
        assert_eq!(book.take(60), 0);
        assert_eq!(book.trim(80), 20);
        assert_eq!(book.trim(0), 20);
        assert_eq!(book.reserved, 60);
    }

    proptest! {
        #[test]
        fn what_is_taken_from_the_card_comes_back(threshold in 0_u64..500, sizes in prop::collection::vec((1_u64..200, any::<bool>()), 1..40)) {
            let mut book = Book { threshold, ..Book::default() };
            let (mut held, mut planned, mut from_card) = (Vec::new(), Vec::new(), 0_u64);
            for (size, frees) in sizes {
                if frees && !held.is_empty() {
                    let bytes = held.remove(0);
                    planned.push((bytes, book.plan(bytes)));
                } else {
                    from_card += book.take(size);
                    held.push(size);
                }
                if planned.len() > 2 {
                    let (bytes, leaves) = planned.remove(0);
                    book.settle(bytes, leaves);
                    from_card -= leaves;
                }
                prop_assert!(book.used <= book.reserved);
                prop_assert_eq!(from_card, book.reserved);
            }
            for (bytes, leaves) in planned {
                book.settle(bytes, leaves);
            }
            for bytes in held {
                let leaves = book.plan(bytes);
                book.settle(bytes, leaves);
            }
            prop_assert!(book.reserved <= threshold);
            book.trim(0);
            prop_assert_eq!((book.used, book.reserved, book.leaving), (0, 0, 0));
        }
    }
}
