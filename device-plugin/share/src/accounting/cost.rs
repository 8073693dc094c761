//! How long a piece of GPU work is expected to take, learnt from measurements.
//!
//! It measures nothing, and knows no names: who launches keeps one of these for each kind of work.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::units::Nanos;

use super::admission::{LONGEST, WINDOW_ALONE};

/// What is expected of work that was never measured: more than may be queued, so that nothing is queued behind it.
const UNKNOWN: Nanos = Nanos(WINDOW_ALONE.0 + 1);
/// No work counts for less, so that what is queued is bounded in number too.
const LEAST: Nanos = Nanos::from_micros(1);
/// Of the first so many measurements the smallest holds: the first launch of a kernel also loads it.
const FIRST: u64 = 3;
/// Measurements after which work may be measured exactly again.
const EXACT_EVERY: u64 = 256;

/// What one kind of work is expected to take.
#[derive(Debug, Default)]
pub struct Cost {
    nanos: AtomicU64,
    least: AtomicU64,
    samples: AtomicU64,
    /// Measurements that there must be before it is measured exactly again.
    exact_from: AtomicU64,
    doubted: AtomicBool,
}

/// Where in a [`Cost`] lies what [`Cost::known_nanos`] reads, for code that can't call it.
pub const NANOS: usize = core::mem::offset_of!(Cost, nanos);

impl Cost {
    /// The GPU time to reserve for one launch.
    #[inline]
    pub fn estimate(&self) -> Nanos {
        match self.nanos.load(Ordering::Relaxed) {
            0 => UNKNOWN,
            nanos => Nanos(nanos),
        }
    }

    /// The same in nanoseconds for work that was measured before, 0 for other work.
    #[inline]
    pub fn known_nanos(&self) -> u64 {
        self.nanos.load(Ordering::Relaxed)
    }

    /// The least that one launch takes, 0 if it was never measured. Follows what grows, slowly.
    #[inline]
    pub fn least(&self) -> Nanos {
        Nanos(self.least.load(Ordering::Relaxed))
    }

    /// Whether it was ever measured.
    #[inline]
    pub fn is_known(&self) -> bool {
        self.nanos.load(Ordering::Relaxed) != 0
    }

    /// One launch took `measured` between its events, of which `used` is charged. Only the harvester learns, so load and
    /// store need not be one.
    pub fn learn(&self, measured: Nanos, used: Nanos) {
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

    /// What was measured may have been a wait for the host.
    pub fn doubt(&self) {
        if self.samples.load(Ordering::Relaxed) >= self.exact_from.load(Ordering::Relaxed) {
            self.doubted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether its next launch should be measured without a wait for the host.
    #[inline]
    pub fn wants_exactness(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) && self.is_known()
    }

    /// A launch was put where its measurement can hold no wait.
    pub fn is_measured_exactly(&self) {
        self.doubted.store(false, Ordering::Relaxed);
        let next = self.samples.load(Ordering::Relaxed) + EXACT_EVERY;
        self.exact_from.store(next, Ordering::Relaxed);
    }

    /// Launches of several kinds, this one among them, were expected to take `expected` and took `measured`, of which
    /// `used` is charged.
    pub fn scale(&self, expected: Nanos, measured: Nanos, used: Nanos) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(cost: &Cost, measured: Nanos) {
        cost.learn(measured, measured);
    }

    #[test]
    fn work_in_doubt_is_measured_exactly_once_in_a_while() {
        let cost = Cost::default();
        cost.doubt();
        assert!(!cost.wants_exactness(), "nothing is known yet");
        learn(&cost, Nanos::from_micros(20));
        assert!(cost.wants_exactness());
        cost.is_measured_exactly();
        cost.doubt();
        assert!(!cost.wants_exactness());
        (0..EXACT_EVERY).for_each(|_| learn(&cost, Nanos::from_micros(20)));
        cost.doubt();
        assert!(cost.wants_exactness());
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
