//! What came of runs, as a table and as JSON.

use faas_sim::report::{Outcome, Report};
use serde_json::{Value, json};
use std::fmt::Write as _;

use super::runs::Done;
use super::scenario::Scenario;
use crate::figures::{number, short, table};

/// Functions that are shown one by one; of more, only all together.
const MOST_FUNCTIONS: usize = 12;

/// Mean and half the width of its 95 % confidence interval over runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mean {
    pub(super) mean: f64,
    pub(super) half: f64,
}

impl Mean {
    /// Of values that are drawn independently; of one, the interval is not known.
    pub(super) fn of(values: &[f64]) -> Self {
        let count = number(values.len() as u64);
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        let half = match values.len() {
            0 | 1 => f64::NAN,
            n => student(n - 1) * (squares / (count - 1.0) / count).sqrt(),
        };
        Self { mean, half }
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.half.is_finite() {
            write!(f, "{} ± {}", short(self.mean), short(self.half))
        } else {
            f.write_str(&short(self.mean))
        }
    }
}

/// The 97.5 % quantile of Student's distribution.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    TABLE.get(freedom.saturating_sub(1)).copied().unwrap_or_else(|| 1.96 + 2.4 / number(freedom as u64))
}

/// Runs of one label, in the order in which labels first come.
pub(super) fn by_label(done: &[Done]) -> Vec<(&str, Vec<&Done>)> {
    let mut labels: Vec<(&str, Vec<&Done>)> = Vec::new();
    for run in done {
        match labels.iter_mut().find(|(label, _)| *label == run.label) {
            Some((_, runs)) => runs.push(run),
            None => labels.push((&run.label, vec![run])),
        }
    }
    labels
}

/// The mean of a figure over runs.
pub(super) fn mean(runs: &[&Done], figure: impl Fn(&Report) -> f64) -> Mean {
    Mean::of(&runs.iter().map(|run| figure(&run.report)).collect::<Vec<_>>())
}

fn percentile(outcome: &Outcome, quantile: f64) -> f64 {
    outcome.latency.quantile_ms(quantile).unwrap_or(f64::NAN)
}

/// A row for each label, and for each function if there is one run only.
pub(super) fn text(scenario: &Scenario, done: &[Done]) -> String {
    let mut text = format!("{}: {}\n\n", scenario.name, scenario.about);
    let head = [
        "",
        "requests",
        "violations %",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "GPUs",
        "granted",
        "used",
        "grants",
        "starts",
        "replicas",
    ];
    let rows: Vec<_> = by_label(done)
        .iter()
        .map(|(label, runs)| {
            let of =
                |figure: &dyn Fn(&Outcome) -> f64| mean(runs, |report| figure(&report.total())).to_string();
            let rate =
                |figure: &dyn Fn(&Outcome) -> f64| mean(runs, |r| figure(&r.total()) / r.seconds).to_string();
            vec![
                (*label).to_string(),
                of(&|total| number(total.arrived)),
                of(&Outcome::violations_percent),
                of(&|total| percentile(total, 0.5)),
                of(&|total| percentile(total, 0.95)),
                of(&|total| percentile(total, 0.99)),
                rate(&|total| total.reserved),
                rate(&|total| total.granted),
                rate(&|total| total.used),
                of(&|total| number(total.grants)),
                of(&|total| number(total.cold_starts)),
                of(&|total| f64::from(total.most_replicas)),
            ]
        })
        .collect();
    text += &table(&head, &rows);
    if let [run] = done {
        text += &functions(&run.report);
        let (events, took, rounds) = (run.report.events, run.took, run.report.rounds);
        let millions = short(number(events) / took.max(1e-9) / 1e6);
        let took = short(took);
        let _ = writeln!(
            text,
            "\n{events} events in {took} s, {millions} million a second; {rounds} rounds of decisions"
        );
    }
    text
}

fn functions(report: &Report) -> String {
    if report.functions.len() < 2 || report.functions.len() > MOST_FUNCTIONS {
        return String::new();
    }
    let head = ["function", "requests", "violations %", "p50 ms", "p95 ms", "GPUs", "starts"];
    let row = |function: &Outcome| {
        vec![
            function.name.clone(),
            function.arrived.to_string(),
            short(function.violations_percent()),
            short(percentile(function, 0.5)),
            short(percentile(function, 0.95)),
            short(function.reserved / report.seconds),
            function.cold_starts.to_string(),
        ]
    };
    format!("\n{}", table(&head, &report.functions.iter().map(row).collect::<Vec<_>>()))
}

/// Every run, with all that was counted.
pub(super) fn json(done: &[Done]) -> Value {
    done.iter()
        .map(|run| {
            let report = &run.report;
            json!({
                "label": run.label,
                "seed": run.seed,
                "seconds": report.seconds,
                "ended_s": report.ended,
                "events": report.events,
                "total": outcome(&report.total(), report.seconds),
                "functions": report.functions.iter().map(|f| outcome(f, report.seconds)).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn outcome(outcome: &Outcome, seconds: f64) -> Value {
    json!({
        "name": outcome.name,
        "requests": outcome.arrived,
        "finished": outcome.finished,
        "failed": outcome.failed,
        "late": outcome.late,
        "violations_percent": outcome.violations_percent(),
        "p50_ms": outcome.latency.quantile_ms(0.5),
        "p95_ms": outcome.latency.quantile_ms(0.95),
        "p99_ms": outcome.latency.quantile_ms(0.99),
        "reserved_gpu_seconds": outcome.reserved,
        "granted_gpu_seconds": outcome.granted,
        "used_gpu_seconds": outcome.used,
        "mean_gpus": outcome.reserved / seconds,
        "grant_changes": outcome.grants,
        "cold_starts": outcome.cold_starts,
        "parks": outcome.parks,
        "wakes": outcome.wakes,
        "no_room": outcome.refused,
        "most_replicas": outcome.most_replicas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_students() {
        let Mean { mean, half } = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((mean - 3.0).abs() < 1e-9);
        assert!((half - 2.776 * (2.5_f64 / 5.0).sqrt()).abs() < 1e-9);
        assert!(Mean::of(&[1.0]).half.is_nan());
        assert_eq!(Mean::of(&[1.0]).to_string(), "1");
    }
}
