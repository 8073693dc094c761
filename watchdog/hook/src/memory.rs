//! Wrappers of what takes GPU memory and gives it back, and of the questions how much there is.
//!
//! Memory is reserved at the node agent before it is taken, so that two processes of a binding cannot both take the last
//! of it. Beyond the limit a program is told what a full card would tell it. Host memory is never counted.

pub(crate) mod arrays;
pub(crate) mod contexts;
pub(crate) mod graphs;
pub(crate) mod holdings;
pub(crate) mod mapped;
pub(crate) mod pools;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpu_share::protocol::FromContainer;
use gpu_share::units::Bytes;

use crate::abi::{DevicePtr, DevicePtr32, Status};
use crate::session::{Session, session};
use crate::wrappers::wrappers;

use crate::harvest::current;

use graphs::Graphs;
use holdings::{Holding, Holdings, Key};
use pools::Pool;

/// Rows of pitched memory begin at multiples of this, or of a divisor of it.
const PITCH: usize = 512;

#[derive(Debug, Default)]
struct Account {
    held: Bytes,
    /// What the binding's other processes held when the agent last answered.
    others: Bytes,
    holdings: Holdings,
    /// What each memory pool is charged with.
    pools: HashMap<Pool, Bytes>,
    /// Pools whose memory does not lie on a GPU.
    host_pools: HashSet<usize>,
}

/// What one process holds, and how it comes by more.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    account: Mutex<Account>,
    /// Memory was freed in the order of a stream since work was last waited for.
    freed: AtomicBool,
    pub(crate) graphs: Graphs,
}

/// What a binding's processes hold together, and the most that they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: Bytes,
    pub(crate) limit: Bytes,
}

impl Usage {
    /// What is left of the share, of a card of which `free` is left.
    pub(crate) fn free(self, free: u64) -> u64 {
        self.limit.saturating_sub(self.used).0.min(free)
    }
}

impl Memory {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins an agent, which is told what is held; nothing is taken or freed meanwhile.
    pub(crate) fn join<T>(&self, join: impl FnOnce(Bytes) -> io::Result<T>) -> io::Result<T> {
        let account = self.account();
        join(account.held)
    }

    /// Whether `bytes` may be taken; if so they count as held.
    fn reserve(&self, session: &Session, bytes: Bytes) -> bool {
        let mut account = self.account();
        let granted = match session.agent.reserve(bytes) {
            Some(answer) => {
                let own = if answer.granted { account.held + bytes } else { account.held };
                account.others = answer.used.saturating_sub(own);
                answer.granted
            }
            None => {
                session.limits().is_some_and(|limits| account.others + account.held + bytes <= limits.memory)
            }
        };
        if granted {
            account.held += bytes;
        }
        granted
    }

    /// The same of as much as `lacking` says, and says how much that was. If there is no room, pools give up first what
    /// they no longer keep, then all that is not in use. What a pool lacks is another amount after that.
    fn reserve_or_reclaim(&self, session: &Session, lacking: impl Fn() -> Bytes) -> Option<Bytes> {
        let reserve = || {
            let bytes = lacking();
            self.reserve(session, bytes).then_some(bytes)
        };
        reserve()
            .or_else(|| {
                self.settle_pools(session);
                reserve()
            })
            .or_else(|| self.reclaim(session).then(reserve).flatten())
    }

    /// What this process holds.
    pub(crate) fn held(&self) -> Bytes {
        self.account().held
    }

    fn free(&self, session: &Session, bytes: Bytes) {
        if bytes > Bytes::ZERO {
            let mut account = self.account();
            account.held = account.held.saturating_sub(bytes);
            session.agent.send(&FromContainer::Free { bytes });
        }
    }

    /// Changes what is known of the holdings, and gives back what is free by that.
    fn change(&self, session: &Session, change: impl FnOnce(&mut Holdings) -> Bytes) {
        let freed = change(&mut self.account().holdings);
        self.free(session, freed);
    }

    /// What the binding holds now.
    pub(crate) fn usage(&self, session: &Session) -> Option<Usage> {
        self.settle_pools(session);
        let mut account = self.account();
        if let Some(answer) = session.agent.reserve(Bytes::ZERO) {
            account.others = answer.used.saturating_sub(account.held);
            return Some(Usage { used: answer.used, limit: answer.limit });
        }
        let limit = session.limits()?.memory;
        Some(Usage { used: account.others + account.held, limit })
    }
}

/// Takes `bytes` with `real`, if the share has room; `keep` notes what they are given back with.
fn take(
    bytes: u64,
    real: impl FnOnce() -> Status,
    keep: impl FnOnce(&mut Holdings) -> Option<Bytes>,
) -> Status {
    let Some(session) = session() else { return real() };
    let bytes = Bytes(bytes);
    contexts::charge_current(session);
    if session.memory.reserve_or_reclaim(session, || bytes).is_none() {
        return Status::OUT_OF_MEMORY;
    }
    let status = real();
    let lost = if status.is_ok() { keep(&mut session.memory.account().holdings) } else { Some(bytes) };
    session.memory.free(session, lost.unwrap_or_default());
    status
}

/// Takes `bytes` that are given back with the pointer which `real` writes to `out`.
///
/// # Safety
/// `out` is what the driver was given to write a pointer to.
unsafe fn take_pointer<P: Copy + Into<u64>>(
    bytes: u64,
    out: *mut P,
    real: impl FnOnce() -> Status,
) -> Status {
    take(bytes, real, |holdings| {
        // SAFETY: the driver succeeded, so it wrote to a valid place.
        let pointer = unsafe { *out };
        holdings.insert(Key::Pointer(pointer.into()), here(Bytes(bytes)))
    })
}

/// What was taken in this thread's context.
fn here(bytes: Bytes) -> Holding {
    Holding { bytes, context: current() }
}

/// Gives back what `key` stands for, if `real` does so. It is forgotten first: the driver may hand the same name out to
/// another thread at once.
fn give_back(key: Key, real: impl FnOnce() -> Status) -> Status {
    let Some(session) = session() else { return real() };
    let known = session.memory.account().holdings.remove(key);
    let status = real();
    if let Some(holding) = known {
        if status.is_ok() {
            session.memory.free(session, holding.bytes);
        } else {
            session.memory.account().holdings.insert(key, holding);
        }
    }
    status
}

fn pitched(width: usize, height: usize) -> u64 {
    let row = width.checked_next_multiple_of(PITCH).unwrap_or(width);
    (row as u64).saturating_mul(height as u64)
}

/// Puts the share in place of the card; `write` is given what is free and what there is at all.
fn show(status: Status, free: impl FnOnce() -> u64, write: impl FnOnce(u64, u64)) -> Status {
    if status.is_ok()
        && let Some(usage) = session().and_then(|session| session.memory.usage(session))
    {
        write(usage.free(free()), usage.limit.0);
    }
    status
}

/// A number of the first API, which had 32 bits.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

wrappers! {
    [cuMemAlloc_v2](out: *mut DevicePtr, bytes: usize) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take_pointer(bytes as u64, out, real) }
    }
    [cuMemAlloc](out: *mut DevicePtr32, bytes: u32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take_pointer(bytes.into(), out, real) }
    }
    [cuMemAllocPitch_v2](
        out: *mut DevicePtr, pitch: *mut usize, width: usize, height: usize, element: u32
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take_pointer(pitched(width, height), out, real) }
    }
    [cuMemAllocPitch](
        out: *mut DevicePtr32, pitch: *mut u32, width: u32, height: u32, element: u32
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take_pointer(pitched(width as usize, height as usize), out, real) }
    }
    [cuMemAllocManaged](out: *mut DevicePtr, bytes: usize, flags: u32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take_pointer(bytes as u64, out, real) }
    }
    [cuMemFree](pointer: DevicePtr32) |real, per_thread| { give_back(Key::Pointer(pointer.into()), real) }
    [cuMemGetInfo_v2](free: *mut usize, total: *mut usize) |real, per_thread| {
        // SAFETY: the driver succeeded, so both are places that it wrote to.
        show(real(), || unsafe { *free } as u64, |left, limit| unsafe {
            *free = usize::try_from(left).unwrap_or(usize::MAX);
            *total = usize::try_from(limit).unwrap_or(usize::MAX);
        })
    }
    [cuMemGetInfo](free: *mut u32, total: *mut u32) |real, per_thread| {
        // SAFETY: the driver succeeded, so both are places that it wrote to.
        show(real(), || unsafe { *free }.into(), |left, limit| unsafe {
            *free = narrow(left);
            *total = narrow(limit);
        })
    }
    [cuDeviceTotalMem_v2](total: *mut usize, device: i32) |real, per_thread| {
        // SAFETY: the driver succeeded, so it is a place that it wrote to.
        show(real(), || 0, |_, limit| unsafe { *total = usize::try_from(limit).unwrap_or(usize::MAX) })
    }
    [cuDeviceTotalMem](total: *mut u32, device: i32) |real, per_thread| {
        // SAFETY: the driver succeeded, so it is a place that it wrote to.
        show(real(), || 0, |_, limit| unsafe { *total = narrow(limit) })
    }
}
