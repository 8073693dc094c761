//! What a load came to, per function.
//!
//! Pure. Percentiles are exact (nearest rank) and of the requests that were answered well; failed ones count as late.

use std::time::Duration;

use serde::Serialize;

use super::send::Outcome;
use crate::figures::{number, short, table};

/// How the requests of one function ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The function.
    pub function: String,
    /// Requests sent.
    pub sent: u64,
    /// Of these, answered with a status below 400.
    pub ok: u64,
    /// Of these, answered otherwise or not at all.
    pub failed: u64,
    /// Of these, failed or slower than the bound, if one was given.
    pub late: Option<u64>,
    /// Median latency of those that are ok, ms.
    pub p50_ms: Option<f64>,
    /// 95th percentile, ms.
    pub p95_ms: Option<f64>,
    /// 99th percentile, ms.
    pub p99_ms: Option<f64>,
    /// Largest, ms.
    pub max_ms: Option<f64>,
    /// Answered requests per second of the load.
    pub rate_rps: f64,
    /// 99th percentile of how much later than planned requests started, ms: the error of this client.
    pub lag_p99_ms: Option<f64>,
}

impl Summary {
    /// What `outcomes` of `function` came to in `seconds`.
    pub fn of<'a>(
        function: &str,
        outcomes: &(impl Iterator<Item = &'a Outcome> + Clone),
        bound: Option<Duration>,
        seconds: f64,
    ) -> Self {
        let count = |kept: &dyn Fn(&Outcome) -> bool| {
            u64::try_from(outcomes.clone().filter(|outcome| kept(outcome)).count()).unwrap_or(u64::MAX)
        };
        let latencies = sorted(outcomes.clone().filter(|outcome| outcome.is_ok()).map(|o| o.latency_ms));
        let lags = sorted(outcomes.clone().map(|outcome| outcome.lag_ms));
        let (sent, ok) = (count(&|_| true), count(&Outcome::is_ok));
        Self {
            function: function.into(),
            sent,
            ok,
            failed: sent - ok,
            late: bound.map(|bound| count(&|outcome| outcome.is_late(bound))),
            p50_ms: percentile(&latencies, 50.0),
            p95_ms: percentile(&latencies, 95.0),
            p99_ms: percentile(&latencies, 99.0),
            max_ms: latencies.last().copied(),
            rate_rps: if seconds > 0.0 { number(ok) / seconds } else { 0.0 },
            lag_p99_ms: percentile(&lags, 99.0),
        }
    }

    /// Late requests in percent of those sent.
    pub fn late_percent(&self) -> Option<f64> {
        self.late.filter(|_| self.sent > 0).map(|late| 100.0 * number(late) / number(self.sent))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest of `sorted` that is at least as large as `percent` of them.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // An index, clamped.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// `summaries` as a table.
pub fn text(summaries: &[Summary]) -> String {
    let head = [
        "function",
        "sent",
        "ok",
        "failed",
        "late",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
        "ok/s",
        "lag p99 ms",
    ];
    let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), short);
    let rows: Vec<_> = summaries
        .iter()
        .map(|summary| {
            let late = summary.late_percent().map_or_else(|| "-".into(), |late| format!("{} %", short(late)));
            vec![
                summary.function.clone(),
                summary.sent.to_string(),
                summary.ok.to_string(),
                summary.failed.to_string(),
                late,
                ms(summary.p50_ms),
                ms(summary.p95_ms),
                ms(summary.p99_ms),
                ms(summary.max_ms),
                short(summary.rate_rps),
                ms(summary.lag_p99_ms),
            ]
        })
        .collect();
    table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::super::send::Failure;
    use super::*;

    fn outcome(latency_ms: f64, answer: Result<u16, Failure>) -> Outcome {
        Outcome { target: 0, at_s: 0.0, lag_ms: 0.1, latency_ms, answer }
    }

    #[test]
    fn failed_requests_are_late_and_not_in_the_percentiles() {
        let outcomes = [
            outcome(10.0, Ok(200)),
            outcome(20.0, Ok(200)),
            outcome(150.0, Ok(202)),
            outcome(1.0, Ok(503)),
            outcome(5000.0, Err(Failure::Timeout)),
        ];
        let summary = Summary::of("f", &outcomes.iter(), Some(Duration::from_millis(100)), 10.0);
        assert_eq!((summary.sent, summary.ok, summary.failed, summary.late), (5, 3, 2, Some(3)));
        assert_eq!((summary.p50_ms, summary.max_ms), (Some(20.0), Some(150.0)));
        assert_eq!(summary.late_percent(), Some(60.0));
    }

    #[test]
    fn nothing_sent_is_no_division_by_zero() {
        let summary = Summary::of("f", &[].iter(), Some(Duration::ZERO), 0.0);
        assert_eq!((summary.late_percent(), summary.p99_ms, summary.rate_rps), (None, None, 0.0));
        assert!(text(&[summary]).contains('f'));
    }

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 95.0), Some(95.0));
        assert_eq!(percentile(&values[..1], 99.0), Some(1.0));
        assert_eq!(percentile(&[], 50.0), None);
    }
}
