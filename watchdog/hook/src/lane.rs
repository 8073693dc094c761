//! A lane: what the hook keeps for one stream, above all the batch of launches that is being measured on it.
//!
//! It never calls the driver: whoever opens or ends a batch records the event that it is told to. Launches of the thread
//! that opened the batch take part through its [`Seat`], without lock and without an atomic operation that others see.

pub(crate) mod seat;

use std::sync::{Mutex, MutexGuard, PoisonError};

use gpu_share::accounting::batch::{Batch, ENOUGH};
use gpu_share::units::Nanos;

use crate::cost::Cost;
use crate::gate::Held;
use seat::{Job, Seat};

/// Launches that follow each other within so long may share a batch though the GPU waits for them.
const BRISK: Nanos = Nanos::from_micros(20);
/// Only work so short does: what is longer costs next to nothing to measure by itself.
const SHORT: Nanos = Nanos::from_micros(50);
/// After so many such batches one launch is measured by itself, so that what is known of it stays true.
const SAMPLED: u32 = 8;
/// Batches of few launches that threads took from each other, from which on they share none.
const QUARRELS: u32 = 16;
/// Launches from which on a batch that another thread ended was worth it.
const WORTH: u64 = 8;

/// One stream of one context.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The stream's context.
    pub(crate) context: usize,
    /// The stream.
    pub(crate) stream: usize,
    /// The stream is the default stream of the thread that made this: no other thread can record on it.
    pub(crate) own: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// One for each thread that launched here.
    seats: Vec<&'static Seat>,
    /// When something was last launched, as far as it is known.
    last: Nanos,
    /// Batches of short work since a launch was last measured by itself.
    unsampled: u32,
    quarrels: u32,
}

/// A batch whose start is recorded.
#[derive(Debug)]
struct Open {
    seat: &'static Seat,
    start: usize,
    allowance: Nanos,
    since: Nanos,
    ahead: Nanos,
    /// Launches of kinds that had to leave their site to others.
    spilled: Vec<(&'static Cost, u64)>,
}

/// What a new batch begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// The event that was recorded.
    pub(crate) start: usize,
    /// When.
    pub(crate) since: Nanos,
    /// Work that was queued then, as estimated.
    pub(crate) ahead: Nanos,
    /// The right under which its launches pass.
    pub(crate) held: Held,
}

/// A batch that has ended: all of its launches are on the stream.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) start: usize,
    pub(crate) launches: u64,
    pub(crate) expected: Nanos,
    /// What was reserved for more launches.
    pub(crate) unspent: Nanos,
    /// Time from the recorded start to the last launch in which the GPU can have waited for launches.
    pub(crate) gap: Nanos,
    /// Time between the last launch and the recorded end, as far as it is known.
    pub(crate) tail: Nanos,
    /// Kinds of work, and how often each was launched.
    pub(crate) costs: Vec<(&'static Cost, u64)>,
}

impl Filled {
    /// What the rules of accounting need to know of it.
    pub(crate) fn measured(&self) -> Batch<'_> {
        let (launches, expected, costs) = (self.launches, self.expected, self.costs.as_slice());
        Batch { launches, expected, gap: self.gap, tail: self.tail, costs }
    }
}

impl Lane {
    pub(crate) const fn new(context: usize, stream: usize, own: bool) -> Self {
        let state = State { open: None, seats: Vec::new(), last: Nanos::ZERO, unsampled: 0, quarrels: 0 };
        Self { context, stream, own, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seat of `thread`, which names the stream `asked`.
    pub(crate) fn seat(&'static self, asked: usize, thread: usize) -> &'static Seat {
        let mut state = self.lock();
        let known = state.seats.iter().find(|seat| seat.is_of(asked, thread));
        known.copied().unwrap_or_else(|| {
            let seat: &'static Seat = Box::leak(Box::new(Seat::new(asked, thread, self)));
            state.seats.push(seat);
            seat
        })
    }

    /// Makes room at `seat` for launches of `job`.
    pub(crate) fn prepare(&self, seat: &'static Seat, job: Job, cost: &'static Cost) {
        let mut state = self.lock();
        let spilled = seat.install(job, cost);
        if let Some(open) = state.open.as_mut().filter(|open| core::ptr::eq(open.seat, seat)) {
            open.spilled.extend(spilled);
        }
    }

    /// Whether launches of this work may share a batch although the GPU waits for them: they follow each other so fast
    /// that the events would cost more than the work.
    pub(crate) fn is_brisk(&self, cost: &Cost, now: Nanos) -> bool {
        let state = self.lock();
        cost.is_known()
            && cost.estimate() <= SHORT
            && now.since(state.last) <= BRISK
            && state.unsampled < SAMPLED
    }

    /// A launch was measured by itself, at `now`.
    pub(crate) fn sampled(&self, now: Nanos) {
        let mut state = self.lock();
        state.last = now;
        state.unsampled = 0;
    }

    /// Opens a batch for `seat`, with one launch expected to take `expected`, which may start at once. `None` if another
    /// thread was first, or threads are at odds here. Says what is to be reserved for the launches to come.
    pub(crate) fn open(
        &self,
        seat: &'static Seat,
        (job, cost): (Job, &'static Cost),
        expected: Nanos,
        opening: &Opening,
    ) -> Option<Nanos> {
        let mut state = self.lock();
        if state.open.is_some() || state.quarrels >= QUARRELS {
            return None;
        }
        let left = ENOUGH.since(expected);
        seat.install(job, cost);
        seat.open(job, left, opening.held);
        state.unsampled = state.unsampled.saturating_add(1);
        state.open = Some(Open {
            seat,
            start: opening.start,
            allowance: expected + left,
            since: opening.since,
            ahead: opening.ahead,
            spilled: Vec::new(),
        });
        Some(left)
    }

    /// Lets no more launches into the open batch. `None` if there is none; else whether it is of another thread, which
    /// may be launching just now.
    pub(crate) fn mark_closed(&self, thread: usize) -> Option<bool> {
        let mut state = self.lock();
        let open = state.open.as_ref()?;
        open.seat.close();
        let (foreign, few) = (!open.seat.is_by(thread), open.seat.launches() < WORTH);
        if foreign && few {
            state.quarrels = state.quarrels.saturating_add(1);
        } else if foreign {
            state.quarrels = 0;
        }
        Some(foreign)
    }

    /// Lets no more launches into the open batch, and does not hold it against anybody.
    pub(crate) fn mark_stale(&self) {
        if let Some(open) = &self.lock().open {
            open.seat.close();
        }
    }

    /// Takes the closed batch out at `now`, after whose last launch nothing came for `idle`; record its end. `None` if there is
    /// none, or its thread is just launching: then that thread takes it out when it is done.
    pub(crate) fn take(&self, now: Nanos, idle: Nanos) -> Option<Filled> {
        let mut state = self.lock();
        let open = state.open.take_if(|open| open.seat.is_left())?;
        state.last = now.since(idle);
        let mut counts = open.spilled;
        let left = open.seat.empty(&mut counts);
        let span = now.since(idle).since(open.since);
        Some(Filled {
            start: open.start,
            launches: counts.iter().map(|(_, count)| *count).sum(),
            expected: open.allowance.since(left),
            unspent: left,
            // Until what was queued before it had ended, the GPU had something to do.
            gap: span.since(open.ahead),
            tail: idle,
            costs: counts,
        })
    }

    /// The open batch as a number that changes with each launch.
    pub(crate) fn progress(&self) -> Option<u64> {
        self.lock().open.as_ref().map(|open| open.seat.left())
    }
}

#[cfg(test)]
mod tests;
