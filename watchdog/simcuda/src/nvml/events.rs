//! Sets of events: which GPUs a program listens to, and what it has heard. The daemon has the events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::query::{events, stats};
use super::{FIRST_DEVICE, NvmlError, Result, gpu};
use crate::driver::{Handle, Out};
use crate::fault::Events;

/// `nvmlEventTypeXidCriticalError`, the only kind that is simulated.
pub(super) const XID: u64 = 8;
/// Longest question of many that one wait is made of.
const QUESTION: Duration = Duration::from_secs(1);
/// Handles of sets are numbers above this.
const FIRST_SET: Handle = 0x5151_2000;

/// `nvmlEventData_t`; the instances are those of MIG, which is off.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct EventData {
    device: Handle,
    kind: u64,
    xid: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

#[derive(Clone, Debug, Default)]
struct Set {
    gpus: BTreeSet<usize>,
    /// Number of the last event that was heard, or that was before the set.
    heard: u64,
}

#[derive(Debug, Default)]
struct Sets {
    count: usize,
    open: BTreeMap<Handle, Set>,
}

static SETS: Mutex<Sets> = Mutex::new(Sets { count: 0, open: BTreeMap::new() });

fn sets() -> MutexGuard<'static, Sets> {
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn create(out: Out<Handle>) -> Result {
    let heard = stats()?.events;
    let mut sets = sets();
    let handle = FIRST_SET + sets.count;
    sets.count += 1;
    sets.open.insert(handle, Set { gpus: BTreeSet::new(), heard });
    Ok(out.set(handle)?)
}

pub(super) fn register(device: Handle, kinds: u64, set: Handle) -> Result {
    let index = gpu(device)?.device.index as usize;
    if kinds & !XID != 0 {
        return Err(NvmlError::NOT_SUPPORTED);
    }
    let mut sets = sets();
    let set = sets.open.get_mut(&set).ok_or(NvmlError::INVALID_ARGUMENT)?;
    if kinds != 0 {
        set.gpus.insert(index);
    }
    Ok(())
}

pub(super) fn free(set: Handle) -> Result {
    sets().open.remove(&set).map(|_| ()).ok_or(NvmlError::INVALID_ARGUMENT)
}

/// Waits for an event of one of the set's GPUs; a GPU that is lost can't have any.
pub(super) fn wait(handle: Handle, out: Out<EventData>, milliseconds: u32) -> Result {
    let deadline = Instant::now() + Duration::from_millis(milliseconds.into());
    loop {
        let set = sets().open.get(&handle).cloned().ok_or(NvmlError::INVALID_ARGUMENT)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let Events { events: heard, lost, .. } = events(set.heard, left.min(QUESTION))?;
        if let Some(event) = heard.iter().find(|event| set.gpus.contains(&event.gpu)) {
            if let Some(set) = sets().open.get_mut(&handle) {
                set.heard = event.number;
            }
            let device = FIRST_DEVICE + event.gpu;
            let none = u32::MAX;
            let data =
                EventData { device, kind: XID, xid: event.xid, gpu_instance: none, compute_instance: none };
            return Ok(out.set(data)?);
        }
        if lost.iter().any(|gpu| set.gpus.contains(gpu)) {
            return Err(NvmlError::GPU_IS_LOST);
        }
        // A wait that the daemon ended may be some microseconds short of what was asked for.
        if left <= QUESTION && heard.is_empty() || Instant::now() >= deadline {
            return Err(NvmlError::TIMEOUT);
        }
        if let (Some(last), Some(set)) = (heard.last(), sets().open.get_mut(&handle)) {
            // Of other GPUs.
            set.heard = last.number;
        }
    }
}
