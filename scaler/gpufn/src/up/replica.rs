//! One replica as the gateway, the control loop and its own task see it. It holds state only; nothing here acts.
//!
//! ```text
//! starting ──► ready ◄──► parked        any of the three ──► draining ──► gone
//!     └───────────┴──────────┴──── its process ended ────────────────────► gone
//! ```

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gpu_share::binding::Binding;
use gpu_share::protocol::BindingStatus;
use gpu_share::units::{Bytes, Nanos, Quota};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::accounting::Meter;

/// What a replica is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Parked,
    Draining,
    Gone,
}

impl Phase {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Starting,
            1 => Self::Ready,
            2 => Self::Parked,
            3 => Self::Draining,
            _ => Self::Gone,
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Starting => 0,
            Self::Ready => 1,
            Self::Parked => 2,
            Self::Draining => 3,
            Self::Gone => 4,
        }
    }

    /// As views name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Parked => "parked",
            Self::Draining | Self::Gone => "draining",
        }
    }

    /// Whether requests may go to it.
    pub(crate) fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Parked)
    }
}

/// One replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) instance: Arc<str>,
    /// Generation of the deployment that it runs.
    pub(crate) generation: u64,
    pub(crate) born: Nanos,
    phase: AtomicU8,
    in_flight: AtomicU32,
    pub(crate) address: OnceLock<SocketAddr>,
    pub(crate) watchdog: OnceLock<u32>,
    lease: Mutex<Option<Lease>>,
    /// Told to finish what it has and end.
    pub(crate) drain: CancellationToken,
    /// Told to end at once.
    pub(crate) kill: CancellationToken,
    /// Why it was told so.
    fate: OnceLock<&'static str>,
    /// Its process has ended; requests at it have no answer any more.
    pub(crate) gone: CancellationToken,
    /// The last request left.
    pub(crate) emptied: Notify,
    /// Someone is waking it.
    pub(crate) waking: AtomicBool,
}

/// Its binding, and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// With the present grant.
    pub(crate) binding: Binding,
    pub(crate) meter: Meter,
    /// When the grant last changed.
    pub(crate) changed: Nanos,
    /// GPU time used that the policy has not seen yet.
    pub(crate) undecided: Nanos,
    pub(crate) processes: Vec<u32>,
    pub(crate) memory_used: Bytes,
    /// Reports in a row that did not know the binding.
    pub(crate) missing: u32,
}

impl Replica {
    /// A replica that is to start.
    pub(crate) fn new(instance: &str, generation: u64, born: Nanos) -> Self {
        Self {
            instance: instance.into(),
            generation,
            born,
            phase: AtomicU8::new(Phase::Starting.to_byte()),
            in_flight: AtomicU32::new(0),
            address: OnceLock::new(),
            watchdog: OnceLock::new(),
            lease: Mutex::new(None),
            drain: CancellationToken::new(),
            kill: CancellationToken::new(),
            fate: OnceLock::new(),
            gone: CancellationToken::new(),
            emptied: Notify::new(),
            waking: AtomicBool::new(false),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_byte(self.phase.load(SeqCst))
    }

    /// From one phase to another; false if it is not in the first.
    pub(crate) fn step(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from.to_byte(), to.to_byte(), SeqCst, SeqCst).is_ok()
    }

    /// To a phase that can be reached from any.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase.to_byte(), SeqCst);
    }

    /// Requests at it.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// A place for one request, if it serves.
    ///
    /// Count first, look again after: whoever drains does it the other way round, so one of the two sees the other.
    pub(crate) fn seat(self: &Arc<Self>) -> Option<Seat> {
        self.in_flight.fetch_add(1, SeqCst);
        let seat = Seat { replica: self.clone() };
        self.phase().serves().then_some(seat)
    }

    /// Tells it to end at once, and why.
    pub(crate) fn end_at_once(&self, why: &'static str) {
        let _ = self.fate.set(why);
        self.kill.cancel();
    }

    /// Why it was told to end at once, if it was.
    pub(crate) fn fate(&self) -> Option<&'static str> {
        self.fate.get().copied()
    }

    /// Its binding, if it has one.
    pub(crate) fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a grant; returns the one before if it is another.
    pub(crate) fn note_grant(&self, grant: Quota, now: Nanos) -> Option<Quota> {
        let mut lease = self.lease();
        let lease = lease.as_mut()?;
        let before = core::mem::replace(&mut lease.binding.grant, grant);
        if before == grant {
            return None;
        }
        lease.meter.set_grant(grant, now);
        lease.changed = now;
        Some(before)
    }
}

impl Lease {
    /// A lease that begins now.
    pub(crate) fn new(binding: Binding, gpu_memory: Bytes, now: Nanos) -> Self {
        Self {
            meter: Meter::new(&binding.share, gpu_memory, binding.grant, now),
            binding,
            changed: now,
            undecided: Nanos::ZERO,
            processes: Vec::new(),
            memory_used: Bytes::ZERO,
            missing: 0,
        }
    }

    /// Takes in what the node reports, up to `now`.
    pub(crate) fn observe(&mut self, status: &BindingStatus, now: Nanos) {
        self.undecided += self.meter.advance(status.used, now);
        self.processes.clone_from(&status.processes);
        self.memory_used = status.memory_used;
        self.missing = 0;
    }
}

/// A request's place at a replica, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) replica: Arc<Replica>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.replica.in_flight.fetch_sub(1, SeqCst) == 1 {
            self.replica.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_replica_has_no_seat_and_keeps_its_count_right() {
        let replica = Arc::new(Replica::new("i", 1, Nanos::ZERO));
        assert!(replica.seat().is_none(), "it is still starting");
        assert!(replica.step(Phase::Starting, Phase::Ready));
        let seat = replica.seat().unwrap();
        replica.enter(Phase::Draining);
        assert!(replica.seat().is_none());
        assert_eq!(replica.in_flight(), 1);
        drop(seat);
        assert_eq!(replica.in_flight(), 0);
    }
}
