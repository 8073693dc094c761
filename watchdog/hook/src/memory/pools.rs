//! Wrappers of stream-ordered memory. A pool is charged with what it keeps of the card (its reserved memory), not with
//! what is asked of it: what a program frees stays in the pool until the pool gives it up.
//!
//! A pool that can't say what it keeps is charged by pointers, like other memory.

use core::sync::atomic::Ordering;

use gpu_share::units::Bytes;

use super::holdings::Key;
use super::{Memory, contexts, give_back, take_pointer};
use crate::abi::{
    AllocationProperties, DevicePtr, GRAPH_RESERVED, GRAPH_USED, Handle, LOCATION_DEVICE, POOL_RESERVED,
    POOL_USED, Status,
};
use crate::driver;
use crate::session::{Session, session};
use crate::sync::{is_any_capturing, is_capturing};
use crate::wrappers::wrappers;

/// Where memory is kept for reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pool {
    /// A pool of the driver's.
    Handle(usize),
    /// What graphs of this device keep for their memory nodes.
    Graphs(i32),
}

impl Pool {
    /// What it keeps of the card, and what of that is given out.
    pub(super) fn state(self) -> Option<(Bytes, Bytes)> {
        Some((self.ask(POOL_RESERVED, GRAPH_RESERVED)?, self.ask(POOL_USED, GRAPH_USED)?))
    }

    fn keeps(self) -> Option<Bytes> {
        self.ask(POOL_RESERVED, GRAPH_RESERVED)
    }

    /// Has it give up what is not in use. One that was destroyed meanwhile refuses, and keeps nothing.
    fn trim(self) {
        let _ = match self {
            Self::Handle(pool) => driver::trim_pool(pool as Handle, 0),
            Self::Graphs(device) => driver::trim_graphs(device),
        };
    }

    fn ask(self, of_pool: i32, of_graphs: i32) -> Option<Bytes> {
        let mut value = 0;
        let status = match self {
            Self::Handle(pool) => driver::pool_attribute(pool as Handle, of_pool, &mut value),
            Self::Graphs(device) => driver::graph_memory(device, of_graphs, &mut value),
        };
        status.is_ok().then_some(Bytes(value))
    }
}

/// The pool of the present context's device.
fn current_pool() -> Option<Pool> {
    let (mut device, mut pool) = (0, core::ptr::null_mut());
    let found = driver::current_device(&mut device).is_ok() && driver::device_pool(&mut pool, device).is_ok();
    found.then_some(Pool::Handle(pool as usize))
}

/// What must be reserved before `bytes` are taken from a pool that keeps `reserved` and has given out `used` of it.
fn missing(bytes: Bytes, reserved: Bytes, used: Bytes) -> Bytes {
    bytes.saturating_sub(reserved.saturating_sub(used))
}

/// Takes `bytes` from `pool`; in a capturing stream nothing is taken yet.
///
/// # Safety
/// `out` is what the driver was given to write a pointer to.
unsafe fn take(
    pool: Option<Pool>,
    bytes: usize,
    (stream, per_thread): (Handle, bool),
    out: *mut DevicePtr,
    real: impl Fn() -> Status,
) -> Status {
    let Some(session) = session() else { return real() };
    let on_host = |pool| matches!(pool, Some(Pool::Handle(pool)) if session.memory.account().host_pools.contains(&pool));
    if is_capturing(stream, per_thread) || on_host(pool) {
        return real();
    }
    let Some(pool) = pool.filter(|pool| pool.state().is_some()) else {
        // SAFETY: the caller's promise.
        return unsafe { take_pointer(bytes as u64, out, real) };
    };
    contexts::charge_current(session);
    session.memory.within_pool(session, pool, Bytes(bytes as u64), real)
}

impl Memory {
    /// Lets `real` take `bytes` of what the pool keeps, and of the card what it lacks; then charges what the pool really
    /// keeps.
    pub(super) fn within_pool(
        &self,
        session: &Session,
        pool: Pool,
        bytes: Bytes,
        real: impl FnOnce() -> Status,
    ) -> Status {
        let lacking = || {
            let (reserved, used) = pool.state().unwrap_or_default();
            missing(bytes, reserved, used)
        };
        let Some(missing) = self.reserve_or_reclaim(session, lacking) else { return Status::OUT_OF_MEMORY };
        let status = real();
        self.charge_pool(session, pool, missing);
        status
    }

    /// Has all pools give up what is not in use, also what is to be freed once work is done that is queued now; the
    /// simulated driver does the same before it says that a card is full. Whether there was anything to ask.
    pub(super) fn reclaim(&self, session: &Session) -> bool {
        let pools = self.account().pools.keys().copied().collect::<Vec<_>>();
        if pools.is_empty() {
            return false;
        }
        // To wait would break a capture.
        if !is_any_capturing() {
            session.harvester.close_current(session);
            driver::synchronize();
        }
        for pool in pools {
            pool.trim();
        }
        self.settle_pools(session);
        true
    }

    /// Charges the pool with `more` that is reserved already, then with what it really keeps.
    fn charge_pool(&self, session: &Session, pool: Pool, more: Bytes) {
        *self.account().pools.entry(pool).or_default() += more;
        self.settle_pool(session, pool);
    }

    /// Corrects what the pool is charged with. More than the share has room for stays uncharged until there is room: it
    /// is taken already.
    fn settle_pool(&self, session: &Session, pool: Pool) {
        let Some(keeps) = pool.keeps() else { return };
        let mut account = self.account();
        let Some(charged) = account.pools.get_mut(&pool) else { return };
        let (more, less) = (keeps.saturating_sub(*charged), charged.saturating_sub(keeps));
        *charged = charged.saturating_sub(less);
        drop(account);
        self.free(session, less);
        if more > Bytes::ZERO && self.reserve(session, more) {
            *self.account().pools.entry(pool).or_default() += more;
        }
    }

    /// Corrects what all pools are charged with.
    pub(crate) fn settle_pools(&self, session: &Session) {
        let pools = self.account().pools.keys().copied().collect::<Vec<_>>();
        for pool in pools {
            self.settle_pool(session, pool);
        }
    }

    /// Work was waited for: pools may have given up what was freed before.
    pub(crate) fn settle_freed(&self, session: &Session) {
        if self.freed.load(Ordering::Relaxed) && self.freed.swap(false, Ordering::AcqRel) {
            self.settle_pools(session);
        }
    }
}

/// Gives a pointer back to its pool, or what it is charged with where it is charged by itself.
fn free(pointer: DevicePtr, real: impl FnOnce() -> Status) -> Status {
    let status = give_back(Key::Pointer(pointer), real);
    if let Some(session) = session() {
        session.memory.freed.store(true, Ordering::Release);
    }
    status
}

fn destroy(pool: Handle, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        let charged = session.memory.account().pools.remove(&Pool::Handle(pool as usize));
        session.memory.free(session, charged.unwrap_or_default());
    }
    status
}

/// A new pool; one whose memory lies elsewhere is never charged.
///
/// # Safety
/// Both pointers are the driver's own arguments.
unsafe fn create(
    out: *mut Handle,
    properties: *const AllocationProperties,
    real: impl FnOnce() -> Status,
) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        // SAFETY: the driver succeeded, so it read the one and wrote to the other.
        let (pool, kind) = unsafe { (*out as usize, (*properties).location_kind) };
        let host_pools = &mut session.memory.account().host_pools;
        if kind == LOCATION_DEVICE {
            host_pools.remove(&pool)
        } else {
            host_pools.insert(pool)
        };
    }
    status
}

pub(super) fn settled(real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session() {
        session.memory.settle_pools(session);
    }
    status
}

wrappers! {
    [cuMemAllocAsync, cuMemAllocAsync_ptsz](out: *mut DevicePtr, bytes: usize, stream: Handle) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take(current_pool(), bytes, (stream, per_thread), out, real) }
    }
    [cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync_ptsz](
        out: *mut DevicePtr, bytes: usize, pool: Handle, stream: Handle
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { take(Some(Pool::Handle(pool as usize)), bytes, (stream, per_thread), out, real) }
    }
    [cuMemFreeAsync, cuMemFreeAsync_ptsz](pointer: DevicePtr, stream: Handle) |real, per_thread| {
        free(pointer, real)
    }
    [cuMemFree_v2](pointer: DevicePtr) |real, per_thread| { free(pointer, real) }
    [cuMemPoolCreate](out: *mut Handle, properties: *const AllocationProperties) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        unsafe { create(out, properties, real) }
    }
    [cuMemPoolDestroy](pool: Handle) |real, per_thread| { destroy(pool, real) }
    [cuMemPoolTrimTo](pool: Handle, keep: usize) |real, per_thread| { settled(real) }
    [cuMemPoolSetAttribute](pool: Handle, attribute: i32, value: Handle) |real, per_thread| { settled(real) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pool_keeps_unused_is_not_reserved_again() {
        assert_eq!(missing(Bytes(100), Bytes(0), Bytes(0)), Bytes(100));
        assert_eq!(missing(Bytes(100), Bytes(300), Bytes(250)), Bytes(50));
        assert_eq!(missing(Bytes(100), Bytes(300), Bytes(100)), Bytes::ZERO);
        assert_eq!(missing(Bytes(100), Bytes(10), Bytes(50)), Bytes(100));
    }
}
