//! What changed over time in a run: rate, grant, use, replicas, 95th percentile, GPUs reserved.
//!
//! Pure: from outcomes of requests and overviews to points. A gap is a point whose value is not a number.

use serde::{Serialize, Serializer};

use crate::figures::number;
use crate::load::send::Outcome;
use crate::load::summary::percentile;
use crate::view::{FunctionSummary, Overview};

/// An overview, and when it was taken.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// Seconds since the start of the load.
    pub at_s: f64,
    /// What was seen.
    pub overview: Overview,
}

/// Values over time, by rising time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series(pub Vec<(f64, f64)>);

impl Serialize for Series {
    /// As `[[seconds, value or null], …]`, to three decimals.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        serializer.collect_seq(
            self.0
                .iter()
                .map(|&(at, value)| (round(at), Some(value).filter(|value| value.is_finite()).map(round))),
        )
    }
}

/// How one function fared over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct FunctionSeries {
    /// Requests per second.
    pub rate_rps: Series,
    /// 95th percentile of the latency, failed requests counted as long as they took, ms.
    pub p95_ms: Series,
    /// Quota of all its replicas, percent of the time.
    pub grant_percent: Series,
    /// GPU time that it used, percent of the time.
    pub used_percent: Series,
    /// Replicas that are ready or parked.
    pub replicas: Series,
}

/// Seconds that a point of rate and latency stands for: long enough for a 95th percentile to mean something.
const BUCKET_S: f64 = 1.5;

/// Shortest time between two looks that a difference is taken over, so that it spans several steps of the accounting.
const APART_S: f64 = 0.95;

impl FunctionSeries {
    /// Of the function called `name`, whose requests ended as `outcomes` say.
    pub(super) fn of(name: &str, outcomes: &[&Outcome], looks: &[Look], seconds: f64) -> Self {
        let here = |overview: &Overview| overview.functions.iter().find(|f| f.name == name).cloned();
        let at_each = |value: &dyn Fn(&FunctionSummary) -> f64| {
            Series(looks.iter().filter_map(|look| Some((look.at_s, value(&here(&look.overview)?)))).collect())
        };
        let used = |overview: &Overview| {
            here(overview).map(|function| function.replicas.iter().map(|r| r.used_seconds).sum::<f64>())
        };
        Self {
            rate_rps: buckets(outcomes, seconds, |bucket| length(bucket) / BUCKET_S),
            p95_ms: buckets(outcomes, seconds, |bucket| {
                let mut latencies: Vec<_> = bucket.iter().map(|outcome| outcome.latency_ms).collect();
                latencies.sort_by(f64::total_cmp);
                percentile(&latencies, 95.0).unwrap_or(f64::NAN)
            }),
            grant_percent: at_each(&|f| f.replicas.iter().map(|r| r.grant_percent).sum()),
            used_percent: differences(looks, used, 100.0),
            replicas: at_each(&|f| {
                f.replicas.iter().filter(|r| r.state == "ready" || r.state == "parked").map(|_| 1.0).sum()
            }),
        }
    }
}

/// GPUs that all functions together kept from others.
pub(super) fn reserved_gpus(looks: &[Look]) -> Series {
    let reserved =
        |overview: &Overview| Some(overview.functions.iter().map(|f| f.reserved_gpu_seconds).sum::<f64>());
    differences(looks, reserved, 1.0)
}

fn length(bucket: &[&Outcome]) -> f64 {
    number(u64::try_from(bucket.len()).unwrap_or(u64::MAX))
}

/// `value` of the requests of each stretch of time, at its middle.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // A few hundred.
fn buckets(outcomes: &[&Outcome], seconds: f64, value: impl Fn(&[&Outcome]) -> f64) -> Series {
    let count = (seconds / BUCKET_S).ceil().clamp(0.0, 1e5) as usize;
    let mut filled = vec![Vec::new(); count];
    for &outcome in outcomes {
        if let Some(bucket) = filled.get_mut((outcome.at_s / BUCKET_S) as usize) {
            bucket.push(outcome);
        }
    }
    let middle = |index: usize| (index as f64 + 0.5) * BUCKET_S;
    Series(filled.iter().enumerate().map(|(index, bucket)| (middle(index), value(bucket))).collect())
}

/// How fast `total` grew between looks, times `factor`. Where a replica that is gone takes its part along, zero.
fn differences(looks: &[Look], total: impl Fn(&Overview) -> Option<f64>, factor: f64) -> Series {
    let mut points = Vec::new();
    let mut last: Option<(f64, f64, f64)> = None;
    for look in looks {
        let Some(now) = total(&look.overview) else { continue };
        let Some((at, uptime, before)) = last else {
            last = Some((look.at_s, look.overview.uptime_s, now));
            continue;
        };
        let passed = look.overview.uptime_s - uptime;
        if passed >= APART_S {
            points.push((f64::midpoint(at, look.at_s), (now - before).max(0.0) / passed * factor));
            last = Some((look.at_s, look.overview.uptime_s, now));
        }
    }
    Series(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::ReplicaSummary;

    fn outcome(at_s: f64, latency_ms: f64) -> Outcome {
        Outcome { target: 0, at_s, lag_ms: 0.0, latency_ms, answer: Ok(200) }
    }

    fn look(at_s: f64, used_seconds: f64, reserved_gpu_seconds: f64) -> Look {
        let replica =
            ReplicaSummary { state: "ready".into(), used_seconds, grant_percent: 40.0, ..Default::default() };
        let parked = ReplicaSummary { state: "parked".into(), ..Default::default() };
        let starting = ReplicaSummary { state: "starting".into(), ..Default::default() };
        let function = FunctionSummary {
            name: "f".into(),
            reserved_gpu_seconds,
            replicas: vec![replica, parked, starting],
            ..Default::default()
        };
        let overview = Overview { uptime_s: 100.0 + at_s, functions: vec![function], ..Default::default() };
        Look { at_s, overview }
    }

    #[test]
    fn rate_and_percentile_are_of_each_stretch_of_time() {
        let outcomes = [outcome(0.1, 10.0), outcome(0.2, 30.0), outcome(3.1, 50.0)];
        let outcomes: Vec<_> = outcomes.iter().collect();
        let series = FunctionSeries::of("f", &outcomes, &[], 4.5);
        let rates: Vec<_> = series.rate_rps.0.iter().map(|(at, rate)| (*at, rate * BUCKET_S)).collect();
        assert_eq!(rates, [(0.75, 2.0), (2.25, 0.0), (3.75, 1.0)]);
        assert_eq!((series.p95_ms.0[0].1, series.p95_ms.0[2].1), (30.0, 50.0));
        assert!(series.p95_ms.0[1].1.is_nan());
        assert_eq!(serde_json::to_string(&series.p95_ms).unwrap(), "[[0.75,30.0],[2.25,null],[3.75,50.0]]");
    }

    #[test]
    fn use_and_reservation_are_differences_over_a_second() {
        let looks = [look(0.0, 0.0, 5.0), look(0.25, 0.1, 5.1), look(1.0, 0.5, 5.5), look(2.0, 0.5, 5.8)];
        let series = FunctionSeries::of("f", &[], &looks, 2.0);
        assert_eq!(series.used_percent.0, [(0.5, 50.0), (1.5, 0.0)]);
        assert_eq!(series.replicas.0[0], (0.0, 2.0));
        assert_eq!(series.grant_percent.0[0], (0.0, 40.0));
        let reserved = reserved_gpus(&looks).0;
        assert!((reserved[0].1 - 0.5).abs() < 1e-9 && (reserved[1].1 - 0.3).abs() < 1e-9, "{reserved:?}");
    }

    #[test]
    fn a_function_that_is_not_there_has_no_points() {
        let series = FunctionSeries::of("g", &[], &[look(0.0, 0.0, 0.0)], 0.0);
        assert_eq!(series, FunctionSeries::default());
    }
}
