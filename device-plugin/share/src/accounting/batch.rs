//! Which launches are measured together, and what is charged for what lies between their two events.
//!
//! Counts nothing itself: the hook's lanes and the audit's virtual process do, and ask here.

use crate::units::Nanos;

use super::cost::Cost;
use super::timeline::Span;

/// Launches that one batch holds at most: as many of the shortest work as there is room for.
pub const MOST: usize = 500;
/// Estimated GPU time after which a batch is closed.
pub const ENOUGH: Nanos = Nanos::from_micros(500);
/// Work queued before a launch from which on the launch may share a batch: the GPU will not run dry while it is open.
pub const DENSE: Nanos = Nanos::from_micros(200);
/// An open batch that no launch joined for so long is closed.
pub const STALE: Nanos = Nanos::from_micros(100);

/// Whether a launch with `ahead` queued before it may share a batch with the next ones. What was never measured, and
/// what the caller waits for, is measured alone.
#[inline]
pub fn is_dense(ahead: Nanos, known: bool, blocks: bool) -> bool {
    ahead >= DENSE && known && !blocks
}

/// Whether a batch of so many launches and so much expected time is closed.
#[inline]
pub fn is_full(launches: u64, expected: Nanos) -> bool {
    launches >= MOST as u64 || expected >= ENOUGH
}

/// Launches between two events.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// How many.
    pub launches: u64,
    /// What was expected of them together.
    pub expected: Nanos,
    /// Time from the recorded start to the last launch: the GPU can have waited for launches so long.
    pub gap: Nanos,
    /// Time between the last launch and the recorded end, as far as it is known.
    pub tail: Nanos,
    /// What is known of each kind of work, and how often it was launched.
    pub costs: &'a [(&'a Cost, u64)],
}

impl Batch<'_> {
    /// What is charged of `span`. Takes out what is more than these kinds of work are known to take at least, as far as
    /// the GPU can have waited for the host so long: the events lie around the launches and not at their edges.
    pub fn without_gaps(&self, span: Span) -> Span {
        let least = self.costs.iter().map(|(cost, times)| Nanos(cost.least().0.saturating_mul(*times))).sum();
        let excess = span.length().since(least);
        let before = self.gap.min(excess);
        let after = self.tail.min(excess.since(before));
        Span { start: span.start + before, end: span.end.since(after) }
    }

    /// Has its kinds of work measured exactly, where much of `measured` can have been a wait for the host.
    pub fn doubt(&self, measured: Nanos) {
        if (self.gap + self.tail).0 >= measured.0 / 4 {
            self.costs.iter().for_each(|(cost, _)| cost.doubt());
        }
    }

    /// Corrects what is expected of the batch's kinds of work: `measured` between the events, `used` of it charged.
    pub fn learn(&self, measured: Nanos, used: Nanos) {
        let mut costs = self.costs.iter().map(|(cost, _)| *cost).collect::<Vec<_>>();
        costs.sort_by_key(|cost| core::ptr::from_ref(*cost));
        costs.dedup_by_key(|cost| core::ptr::from_ref(*cost));
        if let [only] = costs[..] {
            let each = |span: Nanos| Nanos(span.0 / self.launches.max(1));
            only.learn(each(measured), each(used));
            return;
        }
        for cost in costs {
            cost.scale(self.expected, measured, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Nanos = Nanos::from_micros(1);

    fn used(least: u64, gap: u64, tail: u64, measured: u64) -> Nanos {
        let cost = Cost::default();
        if least > 0 {
            cost.learn(Nanos::from_micros(least), Nanos::from_micros(least));
        }
        let (gap, tail) = (Nanos::from_micros(gap), Nanos::from_micros(tail));
        let batch = Batch { launches: 1, expected: US, gap, tail, costs: &[(&cost, 1)] };
        let start = Nanos::from_secs(1);
        batch.without_gaps(Span { start, end: start + Nanos::from_micros(measured) }).length()
    }

    #[test]
    fn a_wait_for_the_host_is_not_charged() {
        assert_eq!(used(100, 300, 50, 430), Nanos::from_micros(100));
    }

    #[test]
    fn a_kernel_that_takes_longer_than_it_did_is_charged_for_it() {
        assert_eq!(used(100, 3, 2, 430), Nanos::from_micros(425));
    }

    #[test]
    fn no_less_is_charged_than_the_least_that_is_known() {
        assert_eq!(used(100, 5_000, 5_000, 101), Nanos::from_micros(100));
        assert_eq!(used(100, 5_000, 5_000, 90), Nanos::from_micros(90));
    }

    #[test]
    fn loading_a_kernel_is_not_charged_as_running_it() {
        assert_eq!(used(0, 4_990, 0, 5_000), Nanos::from_micros(10));
    }

    #[test]
    fn work_that_the_gpu_may_have_waited_for_is_doubted() {
        let cost = Cost::default();
        cost.learn(US, US);
        let (gap, tail) = (Nanos::from_micros(10), Nanos::from_micros(10));
        let batch = Batch { launches: 1, expected: US, gap, tail, costs: &[(&cost, 1)] };
        batch.doubt(Nanos::from_micros(100));
        assert!(!cost.wants_exactness());
        batch.doubt(Nanos::from_micros(50));
        assert!(cost.wants_exactness());
    }

    #[test]
    fn a_batch_is_full_by_number_or_by_time() {
        assert!(!is_full(MOST as u64 - 1, Nanos::from_micros(499)));
        assert!(is_full(MOST as u64, US));
        assert!(is_full(1, ENOUGH));
    }

    #[test]
    fn only_measured_work_behind_other_work_shares_a_batch() {
        assert!(is_dense(DENSE, true, false));
        assert!(!is_dense(Nanos::ZERO, true, false));
        assert!(!is_dense(DENSE, false, false));
        assert!(!is_dense(DENSE, true, true));
    }

    #[test]
    fn kinds_in_one_batch_learn_in_proportion_to_what_was_expected_of_them() {
        let (short, long) = (Cost::default(), Cost::default());
        for _ in 0..4 {
            short.learn(Nanos::from_micros(100), Nanos::from_micros(100));
            long.learn(Nanos::from_micros(300), Nanos::from_micros(300));
        }
        let batch = Batch {
            launches: 2,
            expected: Nanos::from_micros(400),
            gap: US,
            tail: US,
            costs: &[(&short, 1), (&long, 1)],
        };
        batch.learn(Nanos::from_micros(800), Nanos::from_micros(800));
        assert_eq!(short.estimate(), Nanos::from_micros(125));
        assert_eq!(long.estimate(), Nanos::from_micros(375));
    }
}
