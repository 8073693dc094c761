//! What a replica keeps from others, and what it uses, in GPU-seconds. Pure: callers pass the time.

use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota};

/// GPU-seconds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// Integral of the larger of memory share, SM share × grant, and SM share × GPU time really used.
    pub(crate) reserved: f64,
    /// SM share × GPU time used.
    pub(crate) used: f64,
}

impl core::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.reserved += other.reserved;
        self.used += other.used;
    }
}

/// Meter of one binding, from the moment that it exists until its release.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    sm: f64,
    memory: f64,
    grant: Quota,
    /// Start of the open interval, and up to where its grants are summed.
    start: Nanos,
    summed: Nanos,
    /// SM share × grant over the open interval, GPU-seconds.
    granted: f64,
    used: Nanos,
    totals: Totals,
}

impl Meter {
    /// A meter that starts at `now`, with `grant`.
    pub(crate) fn new(share: &Share, gpu_memory: Bytes, grant: Quota, now: Nanos) -> Self {
        Self {
            sm: share.sm.fraction(),
            memory: Area::of_memory(share.memory, gpu_memory).gpus(),
            grant,
            start: now,
            summed: now,
            granted: 0.0,
            used: Nanos::ZERO,
            totals: Totals::default(),
        }
    }

    /// From `now` on the binding has another grant.
    pub(crate) fn set_grant(&mut self, grant: Quota, now: Nanos) {
        self.sum_grant(now);
        self.grant = grant;
    }

    /// Closes the interval at `now`, up to which the binding used `used` of GPU time in all; returns what it used in it.
    ///
    /// A smaller figure than before means that the counter started again.
    pub(crate) fn advance(&mut self, used: Nanos, now: Nanos) -> Nanos {
        self.sum_grant(now);
        let fresh = if used < self.used { used } else { used.since(self.used) };
        let spent = self.sm * fresh.secs_f64();
        let held = self.memory * now.since(self.start).secs_f64();
        self.totals += Totals { reserved: held.max(self.granted).max(spent), used: spent };
        (self.used, self.start, self.granted) = (used, self.start.max(now), 0.0);
        fresh
    }

    /// Up to the last closed interval.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// GPU time used so far, as last told.
    pub(crate) fn used(&self) -> Nanos {
        self.used
    }

    fn sum_grant(&mut self, now: Nanos) {
        self.granted += self.sm * self.grant.fraction() * now.since(self.summed).secs_f64();
        self.summed = self.summed.max(now);
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::units::SmShare;

    use super::*;

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    fn meter(grant: u8, memory: Bytes) -> Meter {
        let sm = SmShare::from_percent(50).unwrap();
        let share = Share::new(sm, percent(10), percent(100), memory).unwrap();
        Meter::new(&share, Bytes::gib(16), percent(grant), Nanos::ZERO)
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn the_larger_of_memory_grant_and_use_is_reserved() {
        let second = Nanos::from_secs(1);
        let mut by_grant = meter(40, Bytes::gib(1));
        by_grant.advance(Nanos::from_millis(100), second);
        assert!(close(by_grant.totals().reserved, 0.2));
        assert!(close(by_grant.totals().used, 0.05));
        let mut by_memory = meter(10, Bytes::gib(8));
        by_memory.advance(Nanos::ZERO, second);
        assert!(close(by_memory.totals().reserved, 0.5));
        let mut by_use = meter(10, Bytes::gib(1));
        by_use.advance(Nanos::from_millis(600), second);
        assert!(close(by_use.totals().reserved, 0.3));
    }

    #[test]
    fn a_grant_counts_for_as_long_as_it_lasted() {
        let mut meter = meter(20, Bytes::ZERO);
        meter.set_grant(percent(80), Nanos::from_millis(500));
        meter.set_grant(Quota::ZERO, Nanos::from_millis(750));
        meter.advance(Nanos::ZERO, Nanos::from_secs(1));
        assert!(close(meter.totals().reserved, 0.5 * (0.2 * 0.5 + 0.8 * 0.25)));
    }

    #[test]
    fn a_counter_that_started_again_is_not_negative_use() {
        let mut meter = meter(20, Bytes::ZERO);
        assert_eq!(meter.advance(Nanos(100), Nanos(1_000)), Nanos(100));
        assert_eq!(meter.advance(Nanos(30), Nanos(2_000)), Nanos(30));
        assert_eq!(meter.used(), Nanos(30));
    }

    proptest::proptest! {
        #[test]
        fn ticks_of_any_length_reserve_the_same_of_a_constant_grant(cuts in proptest::collection::vec(1u64..50, 1..40)) {
            let mut meter = meter(30, Bytes::gib(1));
            let mut now = Nanos::ZERO;
            for cut in cuts {
                now += Nanos::from_millis(cut);
                meter.advance(Nanos::ZERO, now);
            }
            proptest::prop_assert!((meter.totals().reserved - 0.15 * now.secs_f64()).abs() < 1e-9);
        }
    }
}
