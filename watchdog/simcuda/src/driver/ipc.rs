//! Memory and events that processes share by handles. A handle says which process to look at, and where in the file behind its
//! memory; it works between processes that see each other's `/proc`. Only the process that allocated is charged.

mod event;

use std::collections::BTreeMap;
use std::sync::Mutex;

pub(super) use self::event::SharedEvent;
use super::backing::{map_file, open_of_process, store};
use super::context::synchronize;
use super::mapping::unmap;
use super::memory::{Allocation, Kind};
use super::state::{driver, lock};
use super::{CudaError, Out, Result, driver};

/// `CUipcMemHandle`: 64 bytes, of which these are used.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemoryHandle {
    magic: u64,
    process: u32,
    descriptor: u32,
    place: u64,
    size: u64,
    rest: [u64; 4],
}

const MAGIC: u64 = u64::from_le_bytes(*b"simcuda1");

/// Memory of another process that is mapped here.
#[derive(Debug)]
struct Opened {
    base: u64,
    users: u32,
}

/// By process and place there.
static OPENED: Mutex<BTreeMap<(u32, u64), Opened>> = Mutex::new(BTreeMap::new());

fn export(pointer: u64) -> Result<MemoryHandle> {
    let found = driver()?.memory.find(pointer).ok_or(CudaError::INVALID_VALUE)?;
    let place = found.place_to_share().ok_or(CudaError::INVALID_VALUE)?;
    let descriptor = u32::try_from(store()?.descriptor()).map_err(|_| CudaError::INVALID_VALUE)?;
    let process = std::process::id();
    Ok(MemoryHandle { magic: MAGIC, process, descriptor, place, size: found.size, rest: [0; 4] })
}

fn open(handle: &MemoryHandle) -> Result<u64> {
    let driver = driver()?;
    let context = driver.current()?;
    let &MemoryHandle { magic, process, descriptor, place, size, .. } = handle;
    if magic != MAGIC || size == 0 {
        return Err(CudaError::INVALID_VALUE);
    }
    // A process can't open what is its own.
    if process == std::process::id() {
        return Err(CudaError::INVALID_CONTEXT);
    }
    let mut opened = lock(&OPENED);
    if let Some(known) = opened.get_mut(&(process, place)) {
        known.users += 1;
        return Ok(known.base);
    }
    let base = map_file(&open_of_process(process, descriptor)?, place, size, None)?;
    opened.insert((process, place), Opened { base, users: 1 });
    driver.memory.insert(Allocation::imported(base, size, &context));
    Ok(base)
}

fn close(pointer: u64) -> Result {
    let driver = driver()?;
    let found = driver.memory.find(pointer).filter(|found| found.kind == Kind::Imported);
    let found = found.ok_or(CudaError::INVALID_VALUE)?;
    if let Ok(context) = driver.contexts.get(found.context) {
        synchronize(driver, &context)?;
    }
    let mut opened = lock(&OPENED);
    let key = opened.iter().find(|(_, known)| known.base == found.base).map(|(key, _)| *key);
    let key = key.ok_or(CudaError::INVALID_VALUE)?;
    if let Some(known) = opened.get_mut(&key)
        && known.users > 1
    {
        known.users -= 1;
        return Ok(());
    }
    opened.remove(&key);
    let gone = driver.memory.remove(found.base, |found| found.kind == Kind::Imported);
    unmap(found.base, gone.ok_or(CudaError::INVALID_VALUE)?.size);
    Ok(())
}

driver! {
    fn [cuIpcGetMemHandle] (handle: Out<MemoryHandle>, pointer: u64) {
        handle.set(export(pointer)?)
    }

    fn [cuIpcOpenMemHandle cuIpcOpenMemHandle_v2] (out: Out<u64>, handle: MemoryHandle, _flags: u32) {
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        out.set(open(&handle)?)
    }

    fn [cuIpcCloseMemHandle] (pointer: u64) {
        close(pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_as_long_as_the_interface_says() {
        assert_eq!(size_of::<MemoryHandle>(), 64);
    }
}
