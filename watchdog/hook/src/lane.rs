//! A lane: what the hook keeps for one stream, above all the batch of launches that is being measured on it.
//!
//! Lock-free, since every launch passes here. It never calls the driver: whoever opens or closes a batch records the
//! event that it is told to.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use gpu_share::units::Nanos;

use crate::cost::Cost;

/// Launches that one batch holds at most.
pub(crate) const MOST: usize = 64;
/// Estimated GPU time after which a batch is closed.
const ENOUGH: Nanos = Nanos(500_000);

// One word holds the open batch: estimated nanoseconds, launches, threads that are just launching, and three marks.
const LAUNCH: u64 = 1 << 36;
const ENTERING: u64 = 1 << 44;
const OPENING: u64 = 1 << 61;
const OPEN: u64 = 1 << 62;
const CLOSING: u64 = 1 << 63;

/// One stream of one context.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The stream's context.
    pub(crate) context: usize,
    /// The stream.
    pub(crate) stream: usize,
    /// The stream is the default stream of the thread that made this: no other thread can record on it.
    pub(crate) own: bool,
    batch: AtomicU64,
    start: AtomicUsize,
    since: AtomicU64,
    costs: [AtomicPtr<Cost>; MOST],
}

/// How a launch takes part in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It opens a batch: record the start, then call [`Lane::opened`] (or [`Lane::abandon`]), launch, [`Lane::leave`].
    Opens,
    /// It joined: launch, then call [`Lane::leave`].
    Joined,
    /// The batch is just being opened or closed: measure this launch by itself.
    Alone,
}

/// A batch whose last launch is on the stream.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) start: usize,
    pub(crate) launches: u64,
    pub(crate) expected: Nanos,
    /// Time from the recorded start to the last launch: the GPU can have waited for launches so long.
    pub(crate) gap: Nanos,
    /// Time between the last launch and the recorded end, as far as it is known.
    pub(crate) tail: Nanos,
    pub(crate) costs: Vec<&'static Cost>,
}

impl Lane {
    pub(crate) fn new(context: usize, stream: usize, own: bool) -> Self {
        Self {
            context,
            stream,
            own,
            batch: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            costs: [const { AtomicPtr::new(ptr::null_mut()) }; MOST],
        }
    }

    /// A launch expected to take `expected` enters. With `dense` there is work queued before it, so the batch may stay
    /// open for the next launch; else it would measure the gap up to that one, so it is closed.
    pub(crate) fn enter(&self, cost: &'static Cost, expected: Nanos, dense: bool) -> Entry {
        let mut seen = self.batch.load(Ordering::Acquire);
        loop {
            let (next, entry) = match seen {
                0 if dense => (OPENING, Entry::Opens),
                _ if seen & OPEN == 0 || seen & CLOSING != 0 => return Entry::Alone,
                _ => (joined(seen, expected, dense), Entry::Joined),
            };
            match self.batch.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if entry == Entry::Joined {
                        self.note(launches(seen), cost);
                    }
                    return entry;
                }
                Err(now) => seen = now,
            }
        }
    }

    fn note(&self, at: u64, cost: &'static Cost) {
        if let Some(place) = usize::try_from(at).ok().and_then(|at| self.costs.get(at)) {
            place.store(ptr::from_ref(cost).cast_mut(), Ordering::Relaxed);
        }
    }

    /// The start of the batch is recorded at `now`; the opener's own launch is its first.
    pub(crate) fn opened(&self, start: usize, cost: &'static Cost, expected: Nanos, now: Nanos) {
        self.since.store(now.0, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.note(0, cost);
        self.batch.store(joined(OPEN, expected, true), Ordering::Release);
    }

    /// The start of the batch could not be recorded.
    pub(crate) fn abandon(&self) {
        self.batch.store(0, Ordering::Release);
    }

    /// The launch is on the stream. If this was the last one of the batch, record its end and call [`Lane::filled`].
    #[must_use]
    pub(crate) fn leave(&self) -> bool {
        is_filled(self.batch.fetch_sub(ENTERING, Ordering::AcqRel) - ENTERING)
    }

    /// Closes the open batch, if there is one. If nobody is just launching, record its end and call [`Lane::filled`].
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        let close = |seen: u64| (seen & OPEN != 0 && seen & CLOSING == 0).then_some(seen | CLOSING);
        match self.batch.fetch_update(Ordering::AcqRel, Ordering::Acquire, close) {
            Ok(seen) => is_filled(seen | CLOSING),
            Err(_) => false,
        }
    }

    /// Takes the closed batch out at `now`, so that the next one can be opened.
    pub(crate) fn filled(&self, now: Nanos) -> Filled {
        let batch = self.batch.load(Ordering::Acquire);
        let count = usize::try_from(launches(batch)).unwrap_or(MOST).min(MOST);
        let cost = |place: &AtomicPtr<Cost>| {
            // SAFETY: only references to costs are stored, and those live for ever.
            unsafe { place.swap(ptr::null_mut(), Ordering::Relaxed).as_ref() }
        };
        let filled = Filled {
            start: self.start.load(Ordering::Relaxed),
            launches: launches(batch),
            expected: Nanos(batch & (LAUNCH - 1)),
            gap: now.since(Nanos(self.since.load(Ordering::Relaxed))),
            tail: Nanos::ZERO,
            costs: self.costs[..count].iter().filter_map(cost).collect(),
        };
        self.batch.store(0, Ordering::Release);
        filled
    }

    /// The open batch as a number that changes with each launch, 0 if there is none.
    pub(crate) fn progress(&self) -> u64 {
        self.batch.load(Ordering::Acquire)
    }
}

fn joined(batch: u64, expected: Nanos, dense: bool) -> u64 {
    let next = batch + ENTERING + LAUNCH + expected.0;
    let full = launches(next) >= MOST as u64 || next & (LAUNCH - 1) >= ENOUGH.0;
    if full || !dense { next | CLOSING } else { next }
}

fn launches(batch: u64) -> u64 {
    batch / LAUNCH % (ENTERING / LAUNCH)
}

fn is_filled(batch: u64) -> bool {
    batch & CLOSING != 0 && (batch / ENTERING).is_multiple_of(OPENING / ENTERING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Nanos = Nanos::from_micros(1);

    fn cost() -> &'static Cost {
        Box::leak(Box::default())
    }

    fn open(lane: &Lane, expected: Nanos) -> bool {
        assert_eq!(lane.enter(cost(), expected, true), Entry::Opens);
        lane.opened(9, cost(), expected, US);
        lane.leave()
    }

    #[test]
    fn a_batch_ends_after_half_a_millisecond_of_work() {
        let lane = Lane::new(1, 2, false);
        assert!(!open(&lane, Nanos::from_micros(200)));
        assert_eq!(lane.enter(cost(), Nanos::from_micros(299), true), Entry::Joined);
        assert!(!lane.leave());
        assert_eq!(lane.enter(cost(), US, true), Entry::Joined);
        assert!(lane.leave());
        let filled = lane.filled(US + US);
        assert_eq!((filled.start, filled.launches, filled.expected), (9, 3, Nanos::from_micros(500)));
        assert_eq!(filled.gap, US);
        assert_eq!(filled.costs.len(), 3);
        assert_eq!(lane.progress(), 0);
    }

    #[test]
    fn a_batch_ends_after_its_most_launches() {
        let lane = Lane::new(1, 2, false);
        let mut ended = open(&lane, US);
        for _ in 1..MOST {
            assert!(!ended);
            assert_eq!(lane.enter(cost(), US, true), Entry::Joined);
            ended = lane.leave();
        }
        assert!(ended);
        assert_eq!(lane.filled(US).costs.len(), MOST);
    }

    #[test]
    fn a_launch_with_nothing_before_it_is_measured_alone_and_ends_an_open_batch() {
        let lane = Lane::new(1, 2, false);
        assert_eq!(lane.enter(cost(), US, false), Entry::Alone);
        assert!(!open(&lane, US));
        assert_eq!(lane.enter(cost(), US, false), Entry::Joined);
        assert!(lane.leave());
    }

    #[test]
    fn the_end_is_recorded_by_the_last_who_launches() {
        let lane = Lane::new(1, 2, false);
        assert_eq!(lane.enter(cost(), US, true), Entry::Opens);
        assert_eq!(lane.enter(cost(), US, true), Entry::Alone);
        lane.opened(9, cost(), US, US);
        assert_eq!(lane.enter(cost(), US, true), Entry::Joined);
        assert!(!lane.close());
        assert!(!lane.close());
        assert_eq!(lane.enter(cost(), US, true), Entry::Alone);
        assert!(!lane.leave());
        assert!(lane.leave());
    }

    #[test]
    fn threads_on_one_stream_lose_no_launch() {
        let lane = Lane::new(1, 2, false);
        let (measured, opened) = (AtomicU64::new(0), AtomicU64::new(0));
        let finish = || measured.fetch_add(lane.filled(US).launches, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        match lane.enter(cost_shared(), US, true) {
                            Entry::Alone => {
                                measured.fetch_add(1, Ordering::SeqCst);
                                continue;
                            }
                            Entry::Opens => lane.opened(1, cost_shared(), US, US),
                            Entry::Joined => {}
                        }
                        opened.fetch_add(1, Ordering::SeqCst);
                        if lane.leave() {
                            finish();
                        }
                    }
                });
            }
        });
        if lane.close() {
            finish();
        }
        assert_eq!(measured.into_inner(), 60_000);
        assert!(opened.into_inner() > 0);
    }

    fn cost_shared() -> &'static Cost {
        static COST: std::sync::OnceLock<Cost> = std::sync::OnceLock::new();
        COST.get_or_init(Cost::default)
    }
}
