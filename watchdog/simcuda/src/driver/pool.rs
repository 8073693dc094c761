//! Stream-ordered allocation and its pools. A pool holds exactly what is allocated from it: it keeps no spare memory.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::{Location, PoolProperties};
use super::memory::{GRANULE, Kind, allocate};
use super::state::{Driver, Registry, driver, lock, new_handle};
use super::{CudaError, DefaultStream, Handle, In, Out, Result, driver};

/// A pool of device memory.
#[derive(Debug, Default)]
pub(super) struct Pool {
    used: AtomicU64,
    high: AtomicU64,
    /// Settings that the program made; none of them changes what is simulated.
    settings: Mutex<HashMap<u32, u64>>,
}

/// The pools of all devices.
#[derive(Debug)]
pub(super) struct Pools {
    all: Registry<Pool>,
    defaults: Vec<Handle>,
    current: Mutex<Vec<Handle>>,
}

impl Pools {
    pub(super) fn new(devices: usize) -> Self {
        let all = Registry::default();
        let defaults: Vec<Handle> = (0..devices).map(|_| all.add(Pool::default())).collect();
        Self { all, current: Mutex::new(defaults.clone()), defaults }
    }

    fn default_of(&self, ordinal: i32) -> Result<Handle> {
        let index = usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)?;
        self.defaults.get(index).copied().ok_or(CudaError::INVALID_DEVICE)
    }

    fn current_of(&self, ordinal: i32) -> Result<Handle> {
        let index = usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)?;
        lock(&self.current).get(index).copied().ok_or(CudaError::INVALID_DEVICE)
    }

    fn set_current(&self, ordinal: i32, pool: Handle) -> Result {
        let index = usize::try_from(ordinal).map_err(|_| CudaError::INVALID_DEVICE)?;
        self.all.get(pool)?;
        *lock(&self.current).get_mut(index).ok_or(CudaError::INVALID_DEVICE)? = pool;
        Ok(())
    }

    /// Counts memory that leaves a pool.
    pub(super) fn give_back(&self, pool: Handle, bytes: u64) {
        if let Ok(pool) = self.all.get(pool) {
            pool.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn allocate_from(
    driver: &Driver,
    out: Out<u64>,
    size: usize,
    pool: Handle,
    stream: Handle,
    default: DefaultStream,
) -> Result {
    let stream = driver.stream(stream, default)?;
    stream.refuse_capture()?;
    let context = driver.context(stream.context)?;
    let pooled = driver.pools.all.get(pool)?;
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let base = allocate(driver, &context, size as u64, Kind::Pooled(pool), 0)?;
    let bytes = (size as u64).div_ceil(GRANULE) * GRANULE;
    let used = pooled.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
    pooled.high.fetch_max(used, Ordering::Relaxed);
    out.set(base)
}

fn read(pool: &Pool, attribute: u32, value: Out<u64>) -> Result {
    match attribute {
        // Reuse policies are on by default and are 32 bits wide.
        1..=3 => {
            let set = lock(&pool.settings).get(&attribute).copied().unwrap_or(1);
            value.cast::<u32>().set(u32::try_from(set).unwrap_or(1))
        }
        4 => value.set(lock(&pool.settings).get(&attribute).copied().unwrap_or(0)),
        5 | 7 => value.set(pool.used.load(Ordering::Relaxed)),
        6 | 8 => value.set(pool.high.load(Ordering::Relaxed)),
        _ => Err(CudaError::INVALID_VALUE),
    }
}

fn write(pool: &Pool, attribute: u32, value: Out<u64>) -> Result {
    let set = match attribute {
        1..=3 => u64::from(value.cast::<u32>().get()?),
        4 => value.get()?,
        // High-water marks can be set back to zero.
        6 | 8 => {
            pool.high.store(pool.used.load(Ordering::Relaxed), Ordering::Relaxed);
            return Ok(());
        }
        _ => return Err(CudaError::INVALID_VALUE),
    };
    lock(&pool.settings).insert(attribute, set);
    Ok(())
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
        driver.device(properties.get()?.location.id)?;
        let handle = new_handle();
        driver.pools.all.insert(handle, std::sync::Arc::default());
        out.set(handle)
    }

    fn [cuMemPoolDestroy] (pool: Handle) {
        let pools = &driver()?.pools;
        if pools.defaults.contains(&pool) {
            return Err(CudaError::INVALID_VALUE);
        }
        pools.all.remove(pool)?;
        let mut current = lock(&pools.current);
        for (slot, &default) in current.iter_mut().zip(&pools.defaults) {
            if *slot == pool {
                *slot = default;
            }
        }
        Ok(())
    }

    fn [cuMemPoolTrimTo] (pool: Handle, _keep: usize) {
        driver()?.pools.all.get(pool).map(|_| ())
    }

    fn [cuMemPoolGetAttribute] (pool: Handle, attribute: u32, value: Out<u64>) {
        read(&*driver()?.pools.all.get(pool)?, attribute, value)
    }

    fn [cuMemPoolSetAttribute] (pool: Handle, attribute: u32, value: Out<u64>) {
        write(&*driver()?.pools.all.get(pool)?, attribute, value)
    }

    fn [cuMemPoolSetAccess] (pool: Handle, _map: In<u8>, _count: usize) {
        driver()?.pools.all.get(pool).map(|_| ())
    }

    fn [cuMemPoolGetAccess] (flags: Out<u32>, pool: Handle, location: In<Location>) {
        driver()?.pools.all.get(pool)?;
        driver()?.device(location.get()?.id)?;
        // Reading and writing.
        flags.set(3)
    }
}
