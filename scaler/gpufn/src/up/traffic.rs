//! Recent requests of one function: rate, latencies, and what the policy has not seen yet. Pure and bounded.

use std::collections::VecDeque;

use gpu_share::units::Nanos;

/// Arrivals are counted in slots of this length.
const SLOT: Nanos = Nanos::from_millis(100);
/// The rate is that of so many slots: two seconds.
const SLOTS: usize = 20;
/// Percentiles are those of the last ten seconds …
const RECENT: Nanos = Nanos::from_secs(10);
/// … or of the last so many requests, if there were more.
const RECENT_MAX: usize = 20_000;
/// Latencies kept for the policy between two decisions.
const UNDECIDED_MAX: usize = 20_000;

/// Recent requests of one function.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    finished: VecDeque<(Nanos, Nanos)>,
    slots: VecDeque<(u64, u32)>,
    arrivals: u64,
    latencies: Vec<Nanos>,
    last: Nanos,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    /// At the objective's percentile, if there is one.
    pub(crate) objective: Option<f64>,
}

impl Traffic {
    /// A request came.
    pub(crate) fn arrive(&mut self, now: Nanos) {
        self.arrivals += 1;
        self.last = now;
        let slot = now.0 / SLOT.0;
        match self.slots.back_mut() {
            Some((last, count)) if *last == slot => *count += 1,
            _ => self.slots.push_back((slot, 1)),
        }
        while self.slots.len() > SLOTS + 1 {
            self.slots.pop_front();
        }
    }

    /// A request ended.
    pub(crate) fn finish(&mut self, now: Nanos, latency: Nanos) {
        self.last = now;
        if self.finished.len() == RECENT_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back((now, latency));
        if self.latencies.len() < UNDECIDED_MAX {
            self.latencies.push(latency);
        }
    }

    /// What came and what ended since the last call.
    pub(crate) fn take_undecided(&mut self) -> (u64, Vec<Nanos>) {
        (core::mem::take(&mut self.arrivals), core::mem::take(&mut self.latencies))
    }

    /// Requests per second over the last two seconds.
    #[allow(clippy::cast_precision_loss)] // Twenty slots, far from 2^53.
    pub(crate) fn rate(&self, now: Nanos) -> f64 {
        let current = now.0 / SLOT.0;
        let first = current.saturating_sub(SLOTS as u64 - 1);
        let count: u32 = self.slots.iter().filter(|(slot, _)| *slot >= first).map(|(_, count)| count).sum();
        // The current slot is not over; the span is what passed since the first slot began, and at least one slot.
        let span = now.since(Nanos(first * SLOT.0)).max(SLOT);
        f64::from(count) / span.secs_f64()
    }

    /// Percentiles of what ended in the last ten seconds, if anything did; also the one of an objective, in (0, 1).
    pub(crate) fn percentiles(&self, now: Nanos, objective: Option<f64>) -> Option<Percentiles> {
        let recent = self.finished.iter().filter(|(ended, _)| now.since(*ended) <= RECENT);
        let mut latencies: Vec<_> = recent.map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let at = |part: f64| latencies.get(rank(latencies.len(), part)).map(|latency| latency.millis_f64());
        Some(Percentiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, objective: objective.and_then(at) })
    }

    /// When a request last came or ended.
    pub(crate) fn last(&self) -> Nanos {
        self.last
    }
}

/// Place of the smallest of `count` sorted values that at least `part` of them don't exceed.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
// Some thousands of values, far from 2^53; the product is not negative.
fn rank(count: usize, part: f64) -> usize {
    // 0.95 times 100 is a little more than 95.
    ((count as f64 * part - 1e-9).ceil() as usize).max(1) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_two_seconds() {
        let mut traffic = Traffic::default();
        for request in 0..100 {
            traffic.arrive(Nanos::from_millis(10 + request * 100));
        }
        let now = Nanos::from_millis(9_990);
        assert!((traffic.rate(now) - 10.0).abs() < 0.6, "{}", traffic.rate(now));
        assert!(traffic.rate(Nanos::from_secs(30)) < 0.1);
        assert_eq!(traffic.take_undecided().0, 100);
        assert_eq!(traffic.take_undecided().0, 0);
    }

    #[test]
    fn percentiles_are_exact_and_forget() {
        let mut traffic = Traffic::default();
        assert_eq!(traffic.percentiles(Nanos::ZERO, None), None);
        for latency in 1..=100 {
            traffic.finish(Nanos::from_secs(1), Nanos::from_millis(latency));
        }
        let seen = traffic.percentiles(Nanos::from_secs(2), Some(0.9)).unwrap();
        let Percentiles { p50, p95, p99, objective } = seen;
        assert_eq!((p50.round(), p95.round(), p99.round()), (50.0, 95.0, 99.0));
        assert_eq!(objective.map(f64::round), Some(90.0));
        assert_eq!(traffic.percentiles(Nanos::from_secs(12), None), None);
    }
}
