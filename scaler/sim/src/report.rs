//! What came of a run: latencies, misses, GPU-seconds, and how they went over time.

use gpu_share::units::Nanos;

/// Buckets of a factor of two: a value is known to 1.6 %.
const PER_OCTAVE: u64 = 64;

/// A histogram of times whose buckets widen with the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Histogram {
    /// Adds a time.
    pub fn add(&mut self, time: Nanos) {
        let bucket = bucket(time.0 / 1_000);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
        self.total += 1;
    }

    /// Adds those of another one.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total += other.total;
    }

    /// Times in it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Times longer than `time`, of those in its own bucket as many as its place there says.
    pub fn beyond(&self, time: Nanos) -> f64 {
        let micros = time.0 / 1_000;
        let own = bucket(micros);
        let above: u64 = self.counts.iter().skip(own + 1).map(|&count| u64::from(count)).sum();
        let (low, width) = bounds(own as u64);
        #[allow(clippy::cast_precision_loss)] // Counts of requests, below 2^53.
        let (above, part) = (above as f64, 1.0 - (micros - low) as f64 / width as f64);
        above + part * self.counts.get(own).copied().map_or(0.0, f64::from)
    }

    /// The time that a part `quantile` does not exceed, in milliseconds; `None` of none.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below 2^53.
    pub fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let rank = ((self.total as f64 * quantile).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            let before = seen;
            seen += u64::from(count);
            if seen >= rank {
                let (low, width) = bounds(bucket as u64);
                let part = (rank - before) as f64 / f64::from(count);
                return Some((low as f64 + part * width as f64) / 1e3);
            }
        }
        None
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }
}

#[allow(clippy::cast_possible_truncation)] // A few thousand.
fn bucket(micros: u64) -> usize {
    let shift = micros.max(1).ilog2().saturating_sub(PER_OCTAVE.ilog2());
    (u64::from(shift) * PER_OCTAVE + (micros >> shift)) as usize
}

/// The smallest value of a bucket, and its width.
fn bounds(bucket: u64) -> (u64, u64) {
    let shift = (bucket / PER_OCTAVE).saturating_sub(1);
    ((bucket - shift * PER_OCTAVE) << shift, 1 << shift)
}

/// What came of one function.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Requests that arrived.
    pub arrived: u64,
    /// Requests that were answered.
    pub finished: u64,
    /// Requests that were not: their replica failed, or the client gave up.
    pub failed: u64,
    /// Answered requests that were later than the objective allows.
    pub late: u64,
    /// Latencies of answered requests.
    pub latency: Histogram,
    /// GPU-seconds kept from others: the larger of time granted, time used and memory.
    pub reserved: f64,
    /// GPU-seconds granted: SM share times quota.
    pub granted: f64,
    /// GPU-seconds used: SM share times GPU time.
    pub used: f64,
    /// Changes of a grant.
    pub grants: u64,
    /// Replicas started after the beginning.
    pub cold_starts: u64,
    /// Times that a replica was parked.
    pub parks: u64,
    /// Times that a parked replica was woken by a request.
    pub wakes: u64,
    /// Replicas that found no room when they were to start; counted at each look.
    pub refused: u64,
    /// Most replicas at once.
    pub most_replicas: u32,
    /// Largest sum of SM share times quota at a look.
    pub most_granted: f64,
    /// How it went.
    pub timeline: Vec<Moment>,
}

impl Outcome {
    /// Part of the requests that were late or not answered, %.
    #[allow(clippy::cast_precision_loss)] // Counts of requests.
    pub fn violations_percent(&self) -> f64 {
        100.0 * (self.late + self.failed) as f64 / self.arrived.max(1) as f64
    }

    /// Adds another function's to this one's; the timeline stays.
    pub fn merge(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.finished += other.finished;
        self.failed += other.failed;
        self.late += other.late;
        self.latency.merge(&other.latency);
        self.reserved += other.reserved;
        self.granted += other.granted;
        self.used += other.used;
        self.grants += other.grants;
        self.cold_starts += other.cold_starts;
        self.parks += other.parks;
        self.wakes += other.wakes;
        self.refused += other.refused;
        self.most_replicas = self.most_replicas.max(other.most_replicas);
        self.most_granted = self.most_granted.max(other.most_granted);
    }
}

/// One stretch of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// Its end, in seconds.
    pub at: f64,
    /// Requests a second that arrived.
    pub rate: f64,
    /// 95th percentile of the latency, in milliseconds; not a number if none was answered.
    pub p95_ms: f64,
    /// Sum of SM share times quota at its end.
    pub granted: f64,
    /// Replicas at its end, those that start included.
    pub replicas: u32,
    /// GPUs kept from others in the mean.
    pub reserved: f64,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Seconds that costs were counted for.
    pub seconds: f64,
    /// Time of the last answer, in seconds.
    pub ended: f64,
    /// By function, in the order of the scenario.
    pub functions: Vec<Outcome>,
    /// Events that were worked off.
    pub events: u64,
    /// Decisions, as rounds and functions shown in them.
    pub rounds: u64,
    /// Functions shown, summed over rounds.
    pub shown: u64,
    /// Most requests that were alive at once.
    pub most_alive: u32,
}

impl Report {
    /// All functions together.
    pub fn total(&self) -> Outcome {
        let mut total = Outcome { name: "all".into(), ..Outcome::default() };
        for function in &self.functions {
            total.merge(function);
        }
        total
    }

    /// GPUs kept from others in the mean.
    pub fn mean_reserved(&self) -> f64 {
        self.total().reserved / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// SM share times quota in the mean: what the published runs call the GPU fraction.
    pub fn mean_granted(&self) -> f64 {
        self.total().granted / self.seconds.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quantile_is_known_to_two_percent() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=1000u64 {
            histogram.add(Nanos::from_millis(ms));
        }
        for (quantile, ms) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (0.0, 1.0), (1.0, 1000.0)] {
            let found = histogram.quantile_ms(quantile).unwrap();
            assert!((found / ms - 1.0).abs() < 0.02, "{quantile}: {found}");
        }
    }

    #[test]
    fn as_many_are_beyond_a_time_as_are() {
        let mut histogram = Histogram::default();
        for ms in 1..=1000u64 {
            histogram.add(Nanos::from_millis(ms));
        }
        for (ms, beyond) in [(0, 1000.0), (500, 500.0), (950, 50.0), (2_000, 0.0)] {
            let found = histogram.beyond(Nanos::from_millis(ms));
            assert!((found - beyond).abs() <= 0.016 * 1000.0, "{ms}: {found}");
        }
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket(micros in 0u64..10_000_000_000) {
            let (low, width) = bounds(bucket(micros) as u64);
            prop_assert!(low <= micros && micros < low + width, "{micros}: {low} + {width}");
        }
    }
}
