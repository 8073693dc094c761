//! How long a piece of GPU work is expected to take, learnt from measurements.
//!
//! Kept by function and order of magnitude of its size, since one kernel serves many batch sizes. It measures nothing.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gpu_share::units::Nanos;

use crate::gate::{LONGEST, WINDOW_ALONE};

/// What is expected of work that was never measured: more than may be queued, so that nothing is queued behind it.
const UNKNOWN: Nanos = Nanos(WINDOW_ALONE.0 + 1);
/// No work counts for less, so that what is queued is bounded in number too.
const LEAST: Nanos = Nanos::from_micros(1);
/// Of the first so many measurements the smallest holds: the first launch of a kernel also loads it.
const FIRST: u64 = 3;
/// Kinds of work that are kept; beyond that all others share one.
const MOST_KINDS: usize = 1 << 16;

/// What one kind of work is expected to take.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    nanos: AtomicU64,
    least: AtomicU64,
    samples: AtomicU64,
}

impl Cost {
    /// The GPU time to reserve for one launch.
    pub(crate) fn estimate(&self) -> Nanos {
        match self.nanos.load(Ordering::Relaxed) {
            0 => UNKNOWN,
            nanos => Nanos(nanos),
        }
    }

    /// The least that one launch takes, 0 if it was never measured. Follows what grows, slowly.
    pub(crate) fn least(&self) -> Nanos {
        Nanos(self.least.load(Ordering::Relaxed))
    }

    /// Whether it was ever measured.
    pub(crate) fn is_known(&self) -> bool {
        self.nanos.load(Ordering::Relaxed) != 0
    }

    /// One launch took `measured` between its events, of which `used` is charged. Only the harvester learns, so load and
    /// store need not be one.
    pub(crate) fn learn(&self, measured: Nanos, used: Nanos) {
        let (longest, measured) = (measured.clamp(LEAST, LONGEST), used.clamp(LEAST, LONGEST));
        let samples = self.samples.fetch_add(1, Ordering::Relaxed);
        let old = self.nanos.load(Ordering::Relaxed);
        let new = match samples {
            0 => measured.0,
            1..FIRST => old.min(measured.0),
            _ => old - old / 4 + measured.0 / 4,
        };
        self.nanos.store(new.max(LEAST.0), Ordering::Relaxed);
        let least = match self.least.load(Ordering::Relaxed) {
            0 => longest.0,
            least => longest.0.min(least + measured.0.saturating_sub(least) / 32),
        };
        self.least.store(least, Ordering::Relaxed);
    }

    /// Launches of several kinds, this one among them, were expected to take `expected` and took `measured`, of which
    /// `used` is charged.
    pub(crate) fn scale(&self, expected: Nanos, measured: Nanos, used: Nanos) {
        let old = self.nanos.load(Ordering::Relaxed);
        if old != 0 && expected.0 != 0 {
            let share = |of: Nanos| {
                let share = u128::from(old) * u128::from(of.0) / u128::from(expected.0);
                Nanos(u64::try_from(share).unwrap_or(u64::MAX))
            };
            self.learn(share(measured), share(used));
        }
    }
}

/// Names a kind of work: a function or operation, and the order of magnitude of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    what: usize,
    magnitude: u32,
}

impl Kind {
    /// `what` at `size` (blocks or bytes).
    pub(crate) fn new(what: usize, size: u64) -> Self {
        Self { what, magnitude: size.max(1).ilog2() }
    }

    #[allow(clippy::cast_possible_truncation)] // A place in a small table is wanted.
    fn place(self) -> usize {
        let mixed = (self.what as u64 ^ u64::from(self.magnitude) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 58) as usize
    }
}

/// What is known of all kinds of work.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    kinds: Mutex<HashMap<Kind, &'static Cost>>,
    others: Cost,
}

thread_local! {
    /// The kinds that this thread launched last.
    static RECENT: [Cell<Option<(Kind, &'static Cost)>>; 64] = const { [const { Cell::new(None) }; 64] };
}

impl Costs {
    /// The cost of `kind`, from this thread's recent ones if it is there.
    pub(crate) fn of(&'static self, kind: Kind) -> &'static Cost {
        RECENT.with(|recent| {
            let place = &recent[kind.place()];
            match place.get() {
                Some((known, cost)) if known == kind => cost,
                _ => {
                    let cost = self.find(kind);
                    place.set(Some((kind, cost)));
                    cost
                }
            }
        })
    }

    #[cold]
    fn find(&'static self, kind: Kind) -> &'static Cost {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&kind) {
            return &self.others;
        }
        kinds.entry(kind).or_insert_with(|| Box::leak(Box::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(cost: &Cost, measured: Nanos) {
        cost.learn(measured, measured);
    }

    #[test]
    fn nothing_is_queued_behind_unknown_work() {
        assert!(Cost::default().estimate() > WINDOW_ALONE);
        assert!(!Cost::default().is_known());
    }

    #[test]
    fn a_first_launch_that_loads_its_kernel_does_not_spoil_the_estimate() {
        let cost = Cost::default();
        learn(&cost, Nanos::from_millis(30));
        learn(&cost, Nanos::from_micros(100));
        assert_eq!(cost.estimate(), Nanos::from_micros(100));
    }

    #[test]
    fn an_estimate_follows_what_is_measured() {
        let cost = Cost::default();
        (0..3).for_each(|_| learn(&cost, Nanos::from_micros(100)));
        (0..20).for_each(|_| learn(&cost, Nanos::from_micros(400)));
        let estimate = cost.estimate().0;
        assert!((390_000..=400_000).contains(&estimate), "{estimate}");
        (0..40).for_each(|_| {
            cost.scale(Nanos::from_micros(400), Nanos::from_micros(200), Nanos::from_micros(200));
        });
        assert!(cost.estimate() < Nanos::from_micros(201));
    }

    #[test]
    fn the_least_is_taken_at_once_and_left_slowly() {
        let cost = Cost::default();
        assert_eq!(cost.least(), Nanos::ZERO);
        for micros in [900, 100, 900, 900] {
            learn(&cost, Nanos::from_micros(micros));
        }
        let least = cost.least();
        assert!((Nanos::from_micros(100)..Nanos::from_micros(160)).contains(&least), "{least:?}");
        (0..200).for_each(|_| learn(&cost, Nanos::from_micros(900)));
        assert!(cost.least() > Nanos::from_micros(890));
    }

    #[test]
    fn sizes_of_one_magnitude_share_an_estimate_and_others_do_not() {
        let costs: &'static Costs = Box::leak(Box::default());
        let at = |blocks| core::ptr::from_ref(costs.of(Kind::new(7, blocks)));
        assert_eq!(at(64), at(100));
        assert_ne!(at(64), at(128));
        assert_eq!(at(0), at(1));
    }

    proptest::proptest! {
        #[test]
        fn no_measurement_makes_an_estimate_that_does_not_fit(
            spans in proptest::collection::vec(proptest::num::u64::ANY, 1..50),
        ) {
            let cost = Cost::default();
            for span in spans {
                learn(&cost, Nanos(span));
                cost.scale(Nanos(span / 3), Nanos(span), Nanos(span / 2));
                proptest::prop_assert!((LEAST..=LONGEST).contains(&cost.estimate()));
            }
        }
    }
}
