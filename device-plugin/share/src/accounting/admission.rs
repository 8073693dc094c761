//! How much work may be queued under a right, and for how long a launch waits for its own process.
//!
//! Knows neither clock nor lock: the hook's gate keeps the counts in atomics and asks here.

use crate::page::Slot;
use crate::units::{Nanos, Quota};

/// Most GPU time, as estimated, that is queued before another launch passes, so that a revoked right is given back soon.
/// Kernels of up to 4 ms must not wait for each other's ends.
pub const WINDOW: Nanos = Nanos::from_micros(4_500);
/// The same where the binding has all of the time and nobody waits for it.
pub const WINDOW_ALONE: Nanos = Nanos::from_millis(10);
/// Longest estimate that is kept.
pub const LONGEST: Nanos = Nanos::from_secs(4);
/// A launch that waited so long for its own process's work, while none of it ended, starts all the same: what runs may
/// be waiting for it (kernels that wait for kernels of another stream do).
pub const STALL: Nanos = Nanos::from_secs(1);

/// How much may be queued by a process whose binding has `grant`, where that is known.
pub fn window(grant: Option<Quota>) -> Nanos {
    if grant == Some(Quota::WHOLE) { WINDOW_ALONE } else { WINDOW }
}

/// Whether a launch passes with `ahead` queued before it, under the right `accepted` while the page shows `shown`.
#[inline]
pub fn admits(ahead: Nanos, window: Nanos, accepted: u32, shown: u32) -> bool {
    ahead <= window && Slot::is_held(accepted) && accepted == shown
}

/// How long a launch has waited while its own process's work made no progress.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    ended: u64,
    since: Nanos,
}

impl Patience {
    /// A launch that begins to wait at `now`, when `ended` batches have ended.
    pub fn new(ended: u64, now: Nanos) -> Self {
        Self { ended, since: now }
    }

    /// Whether it has waited long enough, with `ended` batches ended by `now` and work in flight or not.
    pub fn is_over(&mut self, ended: u64, busy: bool, now: Nanos) -> bool {
        if ended != self.ended || !busy {
            *self = Self::new(ended, now);
        }
        now.since(self.since) >= STALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_passes_under_the_right_that_the_page_shows_and_with_room() {
        assert!(admits(WINDOW, WINDOW, 3, 3));
        assert!(!admits(WINDOW + Nanos(1), WINDOW, 3, 3));
        assert!(!admits(Nanos::ZERO, WINDOW, 3, 4), "revoked");
        assert!(!admits(Nanos::ZERO, WINDOW, 4, 4), "no right at all");
    }

    #[test]
    fn more_is_queued_where_nobody_else_has_time() {
        assert_eq!(window(Some(Quota::WHOLE)), WINDOW_ALONE);
        assert_eq!(window(Quota::from_percent(99).ok()), WINDOW);
        assert_eq!(window(None), WINDOW);
    }

    #[test]
    fn patience_ends_only_while_work_is_in_flight_and_none_of_it_ends() {
        let start = Nanos::from_millis(1);
        let mut patience = Patience::new(7, start);
        assert!(!patience.is_over(7, true, start + Nanos(1)));
        assert!(patience.is_over(7, true, start + STALL));
        assert!(!patience.is_over(8, true, start + STALL));
        assert!(!patience.is_over(8, false, start + STALL + STALL));
    }
}
