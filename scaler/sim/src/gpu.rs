//! How long work takes on a share of a GPU: what each way of enforcing shares does to it, and what neighbours cost.
//!
//! The quota arithmetic is [`gpu_share::quota`]'s, the same that hook and arbiter run.

use gpu_share::quota::{QuotaServer, Verdict};
use gpu_share::units::{Nanos, Quota, SmShare};

/// How shares are enforced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Enforcement {
    /// Launches of kernels are gated, not the GPU's time: HAS-GPU as published. What a quota does is as measured.
    LaunchGated,
    /// GPU time is metered in windows of so long: gpufn. Time that nobody in the row uses is lent, if so.
    GpuTime {
        /// Π.
        window: Nanos,
        /// Whether it is lent, up to ceilings.
        lends: bool,
    },
    /// A share is a slower GPU of its own.
    Ideal,
}

/// What replicas that work beside each other cost each other: `1 + c·others`, as measured by FaST-GShare with 1 to 9
/// replicas of three models on one V100.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Contention {
    /// `c` at an SM share of 12 %, 24 % and 100 %.
    points: [f64; 3],
}

/// SM shares of the measured coefficients, percent.
const MEASURED: [f64; 3] = [12.0, 24.0, 100.0];

impl Contention {
    /// With these coefficients at 12 %, 24 % and 100 % of the SMs.
    pub const fn new(points: [f64; 3]) -> Self {
        Self { points }
    }

    /// How many times as long work takes at `sm` beside `others` busy replicas.
    pub fn slowdown(&self, sm: SmShare, others: u32) -> f64 {
        1.0 + self.coefficient(sm) * f64::from(others)
    }

    /// What each busy replica adds at `sm`, as a part: linear between the measured SM shares; below them as at the smallest
    /// one.
    pub fn coefficient(&self, sm: SmShare) -> f64 {
        let sm = f64::from(sm.percent());
        let [low, middle, high] = self.points;
        let mixed = |from: usize, a: f64, b: f64| {
            let part = (sm - MEASURED[from]) / (MEASURED[from + 1] - MEASURED[from]);
            a + part.clamp(0.0, 1.0) * (b - a)
        };
        if sm <= MEASURED[1] { mixed(0, low, middle) } else { mixed(1, middle, high) }
    }

    /// The coefficient that fits measured slowdowns of `(replicas, slowdown)` best, by least squares.
    pub fn fit(measured: &[(u32, f64)]) -> f64 {
        let (mut products, mut squares) = (0.0, 0.0);
        for &(replicas, slowdown) in measured {
            let others = f64::from(replicas.saturating_sub(1));
            // Relative errors: a slowdown of 9 is not to outweigh one of 1.2.
            products += others * (slowdown - 1.0) / (slowdown * slowdown);
            squares += others * others / (slowdown * slowdown);
        }
        if squares > 0.0 { products / squares } else { 0.0 }
    }
}

/// The GPU work of one replica: one batch after the other.
#[derive(Clone, Debug)]
pub struct Engine {
    enforcement: Enforcement,
    grant: Quota,
    server: QuotaServer,
    /// The server as it was when the present work began.
    before: QuotaServer,
    work: Option<Work>,
}

/// Work that is on the GPU.
#[derive(Clone, Copy, Debug)]
struct Work {
    started: Nanos,
    /// GPU time that it needs in all; under a launch gate, how long it takes.
    needs: Nanos,
}

impl Engine {
    /// An engine that has nothing to do.
    pub fn new(enforcement: Enforcement, grant: Quota, now: Nanos) -> Self {
        let window = match enforcement {
            Enforcement::GpuTime { window, .. } => window,
            _ => Nanos::ZERO,
        };
        let server = QuotaServer::new(grant, window, now);
        Self { enforcement, grant, before: server.clone(), server, work: None }
    }

    /// The quota that it is granted.
    pub fn grant(&self) -> Quota {
        self.grant
    }

    /// Begins work that needs `needs` at `now`, with `lent` beyond its grant; when that ends, `None` if never.
    pub fn begin(&mut self, needs: Nanos, lent: Quota, now: Nanos) -> Option<Nanos> {
        let quota = plus(self.grant, lent);
        if self.server.quota() != quota {
            self.server.resize(quota, now);
        }
        self.before.clone_from(&self.server);
        self.work = Some(Work { started: now, needs });
        self.run(needs, now)
    }

    /// The work has ended, or is given up.
    pub fn end(&mut self) {
        self.work = None;
    }

    /// From `now` on it has another grant; when the present work ends, if that is another time now. `Some(None)`: never.
    pub fn regrant(&mut self, grant: Quota, now: Nanos) -> Option<Option<Nanos>> {
        self.grant = grant;
        let Some(work) = self.work else {
            self.server.resize(grant, now);
            return None;
        };
        let left = match self.enforcement {
            // Kernels that are launched run on.
            Enforcement::LaunchGated => return None,
            Enforcement::Ideal => {
                let done = now.since(work.started).secs_f64() * self.server.quota().fraction();
                work.needs.since(Nanos::from_secs_f64(done))
            }
            Enforcement::GpuTime { .. } => {
                self.server.clone_from(&self.before);
                metered(&mut self.server, work.needs, work.started, now).1
            }
        };
        self.server.resize(grant, now);
        self.before.clone_from(&self.server);
        self.work = Some(Work { started: now, needs: left });
        Some(self.run(left, now))
    }

    fn run(&mut self, needs: Nanos, now: Nanos) -> Option<Nanos> {
        let quota = self.server.quota();
        match self.enforcement {
            Enforcement::LaunchGated => Some(now + needs),
            Enforcement::Ideal if quota.is_zero() => None,
            Enforcement::Ideal => Some(now + Nanos::from_secs_f64(needs.secs_f64() / quota.fraction())),
            Enforcement::GpuTime { .. } if quota == Quota::WHOLE => Some(now + needs),
            Enforcement::GpuTime { .. } => metered(&mut self.server, needs, now, Nanos(u64::MAX)).0,
        }
    }
}

fn plus(quota: Quota, more: Quota) -> Quota {
    Quota::from_ppm(quota.ppm() + more.ppm()).unwrap_or(Quota::WHOLE)
}

/// Runs work that keeps the GPU busy from `now` until it ends or `until`: when it ends, and what is left of it then.
fn metered(server: &mut QuotaServer, needs: Nanos, mut now: Nanos, until: Nanos) -> (Option<Nanos>, Nanos) {
    let mut left = needs;
    while left > Nanos::ZERO {
        match server.ask(now) {
            Verdict::Run(lasts) => {
                let slice = lasts.min(left).min(until.since(now));
                server.begin(now);
                now += slice;
                server.end(slice, now);
                left = left.since(slice);
            }
            Verdict::WaitUntil(then) => now = then.min(until),
            Verdict::Never => return (None, left),
        }
        if now >= until {
            break;
        }
    }
    (Some(now), left)
}

#[cfg(test)]
mod tests {
    use gpu_share::quota::{WINDOW, completion_bound};
    use proptest::prelude::*;

    use super::*;

    fn quota(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    const METERED: Enforcement = Enforcement::GpuTime { window: WINDOW, lends: false };

    #[test]
    fn metered_work_takes_ten_times_as_long_at_a_tenth_of_the_time_and_gated_work_does_not() {
        let second = Nanos::from_secs(1);
        let end = |enforcement| {
            let mut engine = Engine::new(enforcement, quota(10), Nanos::ZERO);
            engine.begin(second, Quota::ZERO, Nanos::ZERO).unwrap().secs_f64()
        };
        assert!((end(METERED) - 10.0).abs() < 0.02, "{}", end(METERED));
        assert!((end(Enforcement::Ideal) - 10.0).abs() < 1e-6);
        assert!((end(Enforcement::LaunchGated) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_left_goes_on_at_a_new_grant() {
        for enforcement in [METERED, Enforcement::Ideal] {
            let mut engine = Engine::new(enforcement, quota(20), Nanos::ZERO);
            engine.begin(Nanos::from_millis(400), Quota::ZERO, Nanos::ZERO);
            // 200 of 400 ms are done after a second; the rest takes a quarter of a second at 80 %.
            let end = engine.regrant(quota(80), Nanos::from_secs(1)).unwrap().unwrap();
            assert!((end.secs_f64() - 1.25).abs() < 0.02, "{enforcement:?}: {}", end.secs_f64());
        }
    }

    #[test]
    fn work_without_a_grant_waits_for_one() {
        for enforcement in [METERED, Enforcement::Ideal] {
            let mut engine = Engine::new(enforcement, Quota::ZERO, Nanos::ZERO);
            assert_eq!(engine.begin(Nanos::from_millis(10), Quota::ZERO, Nanos::ZERO), None);
            let end = engine.regrant(Quota::WHOLE, Nanos::from_secs(5)).unwrap().unwrap();
            assert_eq!(end, Nanos::from_millis(5_010));
        }
    }

    #[test]
    fn neighbours_cost_what_was_measured() {
        let contention = Contention::new([0.1, 0.2, 1.0]);
        let at = |percent, others| contention.slowdown(SmShare::from_percent(percent).unwrap(), others);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(at(12, 0), 1.0);
        close(at(6, 3), 1.3);
        close(at(18, 2), 1.3);
        close(at(62, 1), 1.6);
        close(Contention::fit(&[(1, 1.0), (3, 1.2), (5, 1.4)]), 0.1);
    }

    proptest! {
        #[test]
        fn metered_work_keeps_the_published_bound_whatever_happens_to_the_grant_before(
            percent in 1u8..=100, needs in 10_000u64..200_000_000, idle in 0u64..60_000_000,
        ) {
            let (quota, needs, start) = (quota(percent), Nanos(needs), Nanos(idle));
            let mut engine = Engine::new(METERED, quota, Nanos::ZERO);
            let end = engine.begin(needs, Quota::ZERO, start).unwrap();
            let bound = completion_bound(needs, quota, WINDOW, Nanos::ZERO).unwrap();
            prop_assert!(end.since(start) <= bound + Nanos(1_000), "{:?} > {:?}", end.since(start), bound);
        }
    }
}
