//! The periodic server: who may run now, and by when work is done.
//!
//! Owns the time credit of one binding inside windows of length Π. It knows nothing of CUDA, clocks or files: callers
//! pass `now` and act on the answer. Arbiter, hook (while the node agent is away), simulator and scaler all run this
//! code, so what is enforced, simulated and promised is one thing.

use crate::units::{Nanos, Quota};

/// Π: the window over which a quota is kept, unless configured otherwise.
pub const WINDOW: Nanos = Nanos::from_millis(10);

/// Answer to "may work start now?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, and what starts may run for this long before the credit is gone (`Nanos(u64::MAX)`: without end).
    Run(Nanos),
    /// Not before this time, unless the quota grows.
    WaitUntil(Nanos),
    /// Not at all: the quota is zero.
    Never,
}

/// Supplies `quota` of the time: credit flows in at that rate, GPU time used flows out.
///
/// Idle time is not saved up: while nothing runs, credit is at most one window's supply, so that any interval `t`
/// supplies at most `q·(t + Π)` and, to whoever wants it, at least `q·(t − 2(1−q)Π)` (periodic resource model, Shin and
/// Lee, RTSS 2003). An overrun (kernels can't be preempted) is a debt, repaid before the next start, so that the
/// long-run rate holds.
#[derive(Clone, Debug)]
pub struct QuotaServer {
    quota: Quota,
    window: Nanos,
    /// Nanoseconds times 10^6: multiplying by parts per million loses nothing.
    credit: i128,
    last: Nanos,
    running: bool,
}

/// Credit is kept in nanoseconds times this.
const SCALE: i128 = 1_000_000;

impl QuotaServer {
    /// A server that supplies `quota` of every `window`, starting with one window's supply at `now`.
    pub fn new(quota: Quota, window: Nanos, now: Nanos) -> Self {
        let mut server = Self { quota, window, credit: 0, last: now, running: false };
        server.credit = server.supply();
        server
    }

    /// Whether work may start at `now`.
    pub fn ask(&mut self, now: Nanos) -> Verdict {
        self.refill(now);
        let rate = i128::from(self.quota.ppm());
        if self.quota.is_zero() {
            return Verdict::Never;
        }
        if self.quota == Quota::WHOLE {
            return Verdict::Run(Nanos(u64::MAX));
        }
        // Waking for a sliver of credit would cost more than it gives: start with a window's supply or 2 ms of it.
        let enough = self.supply().min(i128::from(Nanos::from_millis(2).0) * SCALE);
        if self.credit >= enough {
            // Credit still flows in while it is spent, so it lasts 1/(1−q) times as long.
            return Verdict::Run(saturating_nanos(self.credit / (SCALE - rate)));
        }
        Verdict::WaitUntil(now + saturating_nanos((enough - self.credit + rate - 1) / rate))
    }

    /// Whether there is credit at `now`, without the threshold for a new start: what runs may run on.
    pub fn has_credit(&mut self, now: Nanos) -> bool {
        self.refill(now);
        self.quota == Quota::WHOLE || self.credit > 0
    }

    /// The credit at `now`, none while there is a debt.
    pub fn credit(&mut self, now: Nanos) -> Nanos {
        self.refill(now);
        saturating_nanos(self.credit / SCALE)
    }

    /// The credit at `now` beyond what one window supplies; there is some only while work runs.
    pub fn surplus(&mut self, now: Nanos) -> Nanos {
        self.refill(now);
        saturating_nanos((self.credit - self.supply()) / SCALE)
    }

    /// Work begins at `now`: from here on credit is not clamped, or a long kernel would lose what flows in under it.
    pub fn begin(&mut self, now: Nanos) {
        self.refill(now);
        self.running = true;
    }

    /// Work that occupied the GPU for `used` has ended at `now`.
    pub fn end(&mut self, used: Nanos, now: Nanos) {
        self.refill(now);
        self.credit -= i128::from(used.0) * SCALE;
        self.running = false;
        self.clamp();
    }

    /// From `now` on supplies `quota`; what flowed in before stays.
    pub fn resize(&mut self, quota: Quota, now: Nanos) {
        self.refill(now);
        self.quota = quota;
        self.clamp();
    }

    /// The quota that it supplies.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// What one window supplies.
    fn supply(&self) -> i128 {
        i128::from(self.window.0) * i128::from(self.quota.ppm())
    }

    fn refill(&mut self, now: Nanos) {
        let passed = now.since(self.last);
        self.last = self.last.max(now);
        self.credit += i128::from(passed.0) * i128::from(self.quota.ppm());
        self.clamp();
    }

    fn clamp(&mut self) {
        if !self.running {
            self.credit = self.credit.min(self.supply());
        }
    }
}

/// The latest that work needing GPU time `work` ends under `quota`: `e/q + 2(1−q)Π` plus the longest kernel that runs
/// on the GPU. `None` under a quota of zero.
pub fn completion_bound(work: Nanos, quota: Quota, window: Nanos, longest_kernel: Nanos) -> Option<Nanos> {
    if quota.is_zero() {
        return None;
    }
    let idle = 1.0 - quota.fraction();
    let stretched = work.secs_f64() / quota.fraction() + 2.0 * idle * window.secs_f64();
    Some(Nanos::from_secs_f64(stretched) + longest_kernel)
}

/// Adds up the time that intervals cover, overlaps once: streams of one function run beside each other on one GPU.
///
/// Intervals come in the order of their ends, as finished work is found.
#[derive(Clone, Debug, Default)]
pub struct BusyUnion {
    until: Nanos,
    total: Nanos,
}

impl BusyUnion {
    /// Adds the interval from `start` to `end` and returns how much of it was not covered before.
    pub fn add(&mut self, start: Nanos, end: Nanos) -> Nanos {
        let fresh = end.since(start.max(self.until));
        self.until = self.until.max(end);
        self.total += fresh;
        fresh
    }

    /// Time covered by all intervals so far.
    pub fn total(&self) -> Nanos {
        self.total
    }
}

fn saturating_nanos(value: i128) -> Nanos {
    Nanos(u64::try_from(value.max(0)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    /// Runs kernels of `kernel` back to back until `end`, as one backlogged client alone on a GPU; returns what it got.
    fn backlogged(server: &mut QuotaServer, kernel: Nanos, from: Nanos, end: Nanos) -> Nanos {
        let (mut now, mut used) = (from, Nanos::ZERO);
        while now < end {
            match server.ask(now) {
                Verdict::Run(_) => loop {
                    server.begin(now);
                    now += kernel;
                    used += kernel;
                    server.end(kernel, now);
                    if !server.has_credit(now) || now >= end {
                        break;
                    }
                },
                Verdict::WaitUntil(then) => now = then,
                Verdict::Never => return used,
            }
        }
        used
    }

    #[test]
    fn a_backlogged_client_gets_its_quota_whatever_its_kernels() {
        let span = Nanos::from_secs(20);
        for percent in [5, 10, 30, 50, 80, 95, 100] {
            for micros in [10, 100, 1_000, 5_000, 20_000, 50_000] {
                let mut server = QuotaServer::new(quota(percent), WINDOW, Nanos::ZERO);
                let used = backlogged(&mut server, Nanos::from_micros(micros), Nanos::ZERO, span);
                let percent_got = 100.0 * used.secs_f64() / span.secs_f64();
                assert!(
                    (percent_got - f64::from(percent)).abs() < 0.35,
                    "{percent} %, {micros} µs: {percent_got}"
                );
            }
        }
    }

    #[test]
    fn an_overrun_is_repaid_before_the_next_start() {
        let mut server = QuotaServer::new(quota(10), WINDOW, Nanos::ZERO);
        server.begin(Nanos::ZERO);
        server.end(Nanos::from_millis(50), Nanos::from_millis(50));
        // It has used 50 ms, got 1 ms at the start and 5 ms since, and starts again with 1 ms.
        let Verdict::WaitUntil(then) = server.ask(Nanos::from_millis(50)) else { panic!("it must wait") };
        assert_eq!(then, Nanos::from_millis(50 + 450));
    }

    #[test]
    fn an_idle_window_is_not_saved_up() {
        let mut server = QuotaServer::new(quota(20), WINDOW, Nanos::ZERO);
        let start = Nanos::from_secs(10);
        let used = backlogged(&mut server, Nanos::from_micros(100), start, start + Nanos::from_millis(100));
        assert!(used <= Nanos::from_millis(22) + Nanos::from_micros(100), "{used:?}");
    }

    #[test]
    fn a_quota_of_zero_never_runs_and_wakes_when_resized() {
        let mut server = QuotaServer::new(Quota::ZERO, WINDOW, Nanos::ZERO);
        assert_eq!(server.ask(Nanos::from_secs(1)), Verdict::Never);
        server.resize(quota(50), Nanos::from_secs(1));
        assert!(matches!(server.ask(Nanos::from_millis(1_005)), Verdict::Run(_)));
    }

    #[test]
    fn a_resize_is_followed_from_then_on() {
        let mut server = QuotaServer::new(quota(30), WINDOW, Nanos::ZERO);
        let second = Nanos::from_secs(1);
        backlogged(&mut server, Nanos::from_millis(1), Nanos::ZERO, second);
        server.resize(quota(60), second);
        let used = backlogged(&mut server, Nanos::from_millis(1), second, second + Nanos::from_millis(200));
        assert!((0.55..=0.66).contains(&(used.secs_f64() / 0.2)), "{used:?}");
    }

    #[test]
    fn overlapping_streams_are_counted_once() {
        let mut union = BusyUnion::default();
        union.add(Nanos(0), Nanos(10));
        assert_eq!(union.add(Nanos(5), Nanos(12)), Nanos(2));
        assert_eq!(union.add(Nanos(6), Nanos(12)), Nanos(0));
        union.add(Nanos(20), Nanos(21));
        assert_eq!(union.total(), Nanos(13));
    }

    proptest! {
        /// Design 5.9: the published bound, for any quota, window and work.
        #[test]
        fn work_ends_within_the_published_bound(
            percent in 1u8..=100, kernel in 1_000u64..5_000_000, kernels in 1u64..60, idle in 0u64..50_000_000,
            window in 1_000_000u64..20_000_000,
        ) {
            let (quota, window, kernel) = (quota(percent), Nanos(window), Nanos(kernel));
            let mut server = QuotaServer::new(quota, window, Nanos::ZERO);
            let start = Nanos(idle);
            let (mut now, mut left) = (start, kernels);
            while left > 0 {
                match server.ask(now) {
                    Verdict::Run(_) => loop {
                        server.begin(now);
                        now += kernel;
                        server.end(kernel, now);
                        left -= 1;
                        if left == 0 || !server.has_credit(now) { break; }
                    },
                    Verdict::WaitUntil(then) => now = then,
                    Verdict::Never => unreachable!("the quota is above zero"),
                }
            }
            let work = Nanos(kernel.0 * kernels);
            let bound = completion_bound(work, quota, window, kernel).unwrap();
            prop_assert!(now.since(start) <= bound, "{:?} > {:?}", now.since(start), bound);
        }

        #[test]
        fn any_interval_supplies_at_most_its_quota_and_one_window(
            percent in 1u8..100, kernel in 1_000u64..2_000_000, idle in 0u64..50_000_000, span in 1_000_000u64..500_000_000,
        ) {
            let mut server = QuotaServer::new(quota(percent), WINDOW, Nanos::ZERO);
            let (start, kernel) = (Nanos(idle), Nanos(kernel));
            let used = backlogged(&mut server, kernel, start, start + Nanos(span));
            let most = quota(percent).fraction() * (Nanos(span) + WINDOW + kernel).secs_f64() + kernel.secs_f64();
            prop_assert!(used.secs_f64() <= most + 1e-6, "{used:?} > {most}");
        }
    }
}
