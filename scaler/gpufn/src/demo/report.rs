//! What the two runs came to: rows of numbers, the comparison, and the figures that must hold.
//!
//! Pure: from what was observed to a report. How it looks is the page's matter.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::scenario::{Made, Scenario};
use super::series::{FunctionSeries, Look, Series, reserved_gpus};
use crate::figures::{Bar, Figure, Figures, Machine, number, short, table};
use crate::load::percent;
use crate::load::send::Outcome;
use crate::load::summary::Summary;
use crate::view::{DecisionRecord, FunctionSummary, Overview};

/// What was seen in one run.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Name of the run for people.
    pub label: &'static str,
    /// Simulated GPUs that there were.
    pub gpus: u32,
    /// How every request ended.
    pub outcomes: Vec<Outcome>,
    /// Overviews, the first one from before the load, the last one from after it.
    pub looks: Vec<Look>,
    /// What was decided during the load.
    pub decisions: Vec<DecisionRecord>,
}

/// Numbers of one function in one run, or of all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Row {
    /// The function, `total` for all.
    pub function: String,
    /// Requests sent.
    pub requests: u64,
    /// Of these, not answered well.
    pub failed: u64,
    /// Of these, failed or slower than the objective's bound.
    pub late: u64,
    /// Late requests, percent of those sent.
    pub late_percent: f64,
    /// Median latency, ms.
    pub p50_ms: Option<f64>,
    /// 95th percentile, ms.
    pub p95_ms: Option<f64>,
    /// 99th percentile, ms.
    pub p99_ms: Option<f64>,
    /// GPU-seconds kept from others during the load.
    pub reserved_gpu_seconds: f64,
    /// GPU-seconds of work.
    pub used_gpu_seconds: f64,
    /// What 1,000 requests cost at the given price, dollars.
    pub cost_per_1000: f64,
    /// Changes of a running replica's quota.
    pub vertical: u64,
    /// Changes of the number of replicas.
    pub horizontal: u64,
    /// Replicas started during the load.
    pub cold_starts: u64,
    /// Replicas parked.
    pub parks: u64,
    /// Replicas woken.
    pub wakes: u64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    /// Name for people.
    pub label: &'static str,
    /// The scaling policy, as `gpufn up` names it.
    pub policy: String,
    /// Simulated GPUs that there were.
    pub gpus: u32,
    /// All functions together.
    pub total: Row,
    /// Each function.
    pub functions: Vec<Row>,
    /// Quota changes during which the function's process stayed the same.
    pub vertical_with_same_pid: u64,
    /// GPUs reserved over time.
    pub reserved_gpus: Series,
    /// Each function over time.
    pub series: Vec<FunctionSeries>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Dollars for an hour of a whole GPU; a parameter.
    pub gpu_hour_price: f64,
    /// How the load was made.
    pub scenario: Made,
    /// Length of the load, seconds.
    pub seconds: f64,
    /// Objective of each function.
    pub objectives: Vec<String>,
    /// The run on one GPU.
    pub shared: Run,
    /// The run with whole GPUs.
    pub whole: Run,
    /// GPU-seconds reserved in the first run, percent of those in the second.
    pub reserved_percent_of_whole: f64,
    /// What the simulator says of the first run: each function.
    pub simulated: Vec<Row>,
    /// What must hold.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Report {
    /// The report on the runs on one GPU and on whole GPUs, both of `scenario`, and on the first one as it was simulated.
    pub(super) fn new(
        scenario: &Scenario,
        [shared, whole]: [&Observed; 2],
        simulated: &faas_sim::report::Report,
        price: f64,
        machine: Machine,
    ) -> Self {
        let (shared, whole) = (Run::new(scenario, shared, price), Run::new(scenario, whole, price));
        let ratio = 100.0 * shared.total.reserved_gpu_seconds / whole.total.reserved_gpu_seconds;
        let told = simulated_row(&simulated.total(), price);
        let simulated: Vec<_> =
            simulated.functions.iter().map(|outcome| simulated_row(outcome, price)).collect();
        let mut figures = figures(&shared, &whole, ratio);
        figures.extend(distances(&told, &simulated, &shared));
        Self {
            gpu_hour_price: price,
            scenario: scenario.made.clone(),
            seconds: scenario.seconds,
            objectives: scenario.functions.iter().map(|function| function.slo.to_string()).collect(),
            shared,
            whole,
            reserved_percent_of_whole: ratio,
            simulated,
            figures: Figures { name: "demo", figures, machine },
        }
    }

    /// The comparison as a table for the terminal.
    pub(super) fn table(&self) -> String {
        let head = [
            "function",
            "run",
            "requests",
            "late %",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "GPU-s kept",
            "GPU-s used",
            "$/1000",
            "vert",
            "horiz",
            "cold",
            "park",
            "wake",
        ];
        let runs = self.shared.functions.iter().zip(&self.simulated).zip(&self.whole.functions);
        let of_function = |((shared, simulated), whole): ((&Row, &Row), &Row)| {
            [
                cells(&shared.function, self.shared.label, shared),
                cells("", "simulated", simulated),
                cells("", self.whole.label, whole),
            ]
        };
        let (shared, whole) = (&self.shared.total, &self.whole.total);
        let total = [cells("total", self.shared.label, shared), cells("", self.whole.label, whole)];
        table(&head, &runs.flat_map(of_function).chain(total).collect::<Vec<_>>())
    }
}

fn cells(name: &str, run: &str, row: &Row) -> Vec<String> {
    let mut cells = vec![name.into(), run.into(), row.requests.to_string()];
    cells.extend(row.measured("-"));
    cells.extend([row.parks.to_string(), row.wakes.to_string()]);
    cells
}

impl Row {
    /// What terminal and page show alike, from the late share to the cold starts; `none` where nothing was measured.
    pub(super) fn measured(&self, none: &str) -> [String; 10] {
        let ms = |value: Option<f64>| value.map_or_else(|| none.into(), short);
        [
            short(self.late_percent),
            ms(self.p50_ms),
            ms(self.p95_ms),
            ms(self.p99_ms),
            short(self.reserved_gpu_seconds),
            short(self.used_gpu_seconds),
            format!("{:.4}", self.cost_per_1000),
            self.vertical.to_string(),
            self.horizontal.to_string(),
            self.cold_starts.to_string(),
        ]
    }
}

impl Run {
    fn new(scenario: &Scenario, observed: &Observed, price: f64) -> Self {
        let overview = |look: Option<&Look>| look.map(|look| look.overview.clone()).unwrap_or_default();
        let (before, after) = (overview(observed.looks.first()), overview(observed.looks.last()));
        let (mut functions, mut series) = (Vec::new(), Vec::new());
        for (index, function) in scenario.functions.iter().enumerate() {
            let outcomes: Vec<_> = observed.outcomes.iter().filter(|o| o.target == index).collect();
            let bound = scenario.bound(index);
            let summary =
                Summary::of(function.name(), &outcomes.iter().copied(), Some(bound), scenario.seconds);
            let change = Change::between(&before, &after, function.name());
            functions.push(row(summary, change, price));
            series.push(FunctionSeries::of(function.name(), &outcomes, &observed.looks, scenario.seconds));
        }
        let all = Summary::of("total", &observed.outcomes.iter(), None, scenario.seconds);
        Self {
            label: observed.label,
            policy: after.policy.clone(),
            gpus: observed.gpus,
            total: total(&all, &functions, price),
            functions,
            vertical_with_same_pid: vertical_with_same_pid(&observed.decisions, &observed.looks),
            reserved_gpus: reserved_gpus(&observed.looks),
            series,
        }
    }
}

/// What was counted between two overviews.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    reserved: f64,
    used: f64,
    vertical: u64,
    horizontal: u64,
    cold_starts: u64,
    parks: u64,
    wakes: u64,
}

impl Change {
    fn between(before: &Overview, after: &Overview, name: &str) -> Self {
        let find = |overview: &Overview| -> FunctionSummary {
            overview.functions.iter().find(|f| f.name == name).cloned().unwrap_or_default()
        };
        let (before, after) = (find(before), find(after));
        Self {
            reserved: after.reserved_gpu_seconds - before.reserved_gpu_seconds,
            used: after.used_gpu_seconds - before.used_gpu_seconds,
            vertical: after.vertical_changes.saturating_sub(before.vertical_changes),
            horizontal: after.horizontal_changes.saturating_sub(before.horizontal_changes),
            cold_starts: after.cold_starts.saturating_sub(before.cold_starts),
            parks: after.parks.saturating_sub(before.parks),
            wakes: after.wakes.saturating_sub(before.wakes),
        }
    }
}

fn row(summary: Summary, change: Change, price: f64) -> Row {
    let late = summary.late.unwrap_or_default();
    Row {
        requests: summary.sent,
        failed: summary.failed,
        late,
        late_percent: percent(late, summary.sent),
        p50_ms: summary.p50_ms,
        p95_ms: summary.p95_ms,
        p99_ms: summary.p99_ms,
        reserved_gpu_seconds: change.reserved,
        used_gpu_seconds: change.used,
        cost_per_1000: cost_per_1000(change.reserved, summary.sent, price),
        vertical: change.vertical,
        horizontal: change.horizontal,
        cold_starts: change.cold_starts,
        parks: change.parks,
        wakes: change.wakes,
        function: summary.function,
    }
}

fn total(all: &Summary, functions: &[Row], price: f64) -> Row {
    let sum = |count: fn(&Row) -> u64| functions.iter().map(count).sum();
    let reserved: f64 = functions.iter().map(|row| row.reserved_gpu_seconds).sum();
    // Each function has its own bound, so the late ones are counted there.
    let late = sum(|row| row.late);
    Row {
        function: "total".into(),
        requests: all.sent,
        failed: all.failed,
        late,
        late_percent: percent(late, all.sent),
        p50_ms: all.p50_ms,
        p95_ms: all.p95_ms,
        p99_ms: all.p99_ms,
        reserved_gpu_seconds: reserved,
        used_gpu_seconds: functions.iter().map(|row| row.used_gpu_seconds).sum(),
        cost_per_1000: cost_per_1000(reserved, all.sent, price),
        vertical: sum(|row| row.vertical),
        horizontal: sum(|row| row.horizontal),
        cold_starts: sum(|row| row.cold_starts),
        parks: sum(|row| row.parks),
        wakes: sum(|row| row.wakes),
    }
}

/// What the simulator says of one function.
fn simulated_row(outcome: &faas_sim::report::Outcome, price: f64) -> Row {
    let late = outcome.late + outcome.failed;
    let quantile = |part| outcome.latency.quantile_ms(part);
    Row {
        function: outcome.name.clone(),
        requests: outcome.arrived,
        failed: outcome.failed,
        late,
        late_percent: percent(late, outcome.arrived),
        p50_ms: quantile(0.5),
        p95_ms: quantile(0.95),
        p99_ms: quantile(0.99),
        reserved_gpu_seconds: outcome.reserved,
        used_gpu_seconds: outcome.used,
        cost_per_1000: cost_per_1000(outcome.reserved, outcome.arrived, price),
        vertical: outcome.grants,
        horizontal: outcome.cold_starts,
        cold_starts: outcome.cold_starts,
        parks: outcome.parks,
        wakes: outcome.wakes,
    }
}

/// How far the simulator is from what was measured on one GPU: all requests, and each function.
fn distances(total: &Row, functions: &[Row], measured: &Run) -> Vec<Figure> {
    let off = |told: f64, seen: f64| 100.0 * (told / seen - 1.0).abs();
    let gpu_seconds = |id: &str, of: fn(&Row) -> f64| {
        let (told, seen) = (of(total), of(&measured.total));
        let how = format!("{} GPU-seconds simulated, {} measured, all functions", short(told), short(seen));
        Figure::new(id, off(told, seen), "%", Bar::AtMost(10.0), how)
    };
    let p95 = |row: &Row| row.p95_ms.unwrap_or(f64::NAN);
    let each: Vec<_> =
        functions.iter().zip(&measured.functions).map(|(told, seen)| off(p95(told), p95(seen))).collect();
    let names = functions.iter().zip(&each).map(|(row, off)| format!("{} {} %", row.function, short(*off)));
    let names = names.collect::<Vec<_>>().join(", ");
    let how = format!(
        "{} ms simulated, {} ms measured, all requests",
        short(p95(total)),
        short(p95(&measured.total))
    );
    // What is no number stays none.
    let worst = each.iter().copied().fold(0.0, |worst: f64, off| if worst >= off { worst } else { off });
    vec![
        gpu_seconds("simulated-reserved-off", |row| row.reserved_gpu_seconds),
        gpu_seconds("simulated-used-off", |row| row.used_gpu_seconds),
        Figure::new("simulated-p95-off", off(p95(total), p95(&measured.total)), "%", Bar::AtMost(20.0), how),
        Figure::new("simulated-p95-worst-function-off", worst, "%", Bar::Any, names),
    ]
}

/// Dollars for 1,000 requests, when `requests` kept `gpu_seconds` and an hour of a GPU costs `price`.
fn cost_per_1000(gpu_seconds: f64, requests: u64, price: f64) -> f64 {
    if requests == 0 { 0.0 } else { gpu_seconds * price / 3600.0 * 1000.0 / number(requests) }
}

/// Grants to replicas whose function process was one and the same in every overview.
fn vertical_with_same_pid(decisions: &[DecisionRecord], looks: &[Look]) -> u64 {
    let mut pids = BTreeMap::<&str, BTreeSet<u32>>::new();
    let functions = looks.iter().flat_map(|look| &look.overview.functions);
    for replica in functions.flat_map(|function| &function.replicas) {
        pids.entry(&replica.instance).or_default().extend(replica.pid);
    }
    let one = |instance: &str| pids.get(instance).is_some_and(|pids| pids.len() == 1);
    let grants =
        decisions.iter().filter(|decision| decision.action == "grant" && decision.from != decision.to);
    let kept = grants.filter(|decision| decision.instance.as_deref().is_some_and(one)).count();
    u64::try_from(kept).unwrap_or(u64::MAX)
}

fn figures(shared: &Run, whole: &Run, ratio: f64) -> Vec<Figure> {
    let total = &shared.total;
    let count = |id: &str, value: u64, least: f64, how: &str| {
        Figure::new(id, number(value), "", Bar::AtLeast(least), how)
    };
    let mut figures = vec![
        count(
            "vertical-changes-same-pid",
            shared.vertical_with_same_pid,
            20.0,
            "quota changes of replicas whose function process is the same in every overview",
        ),
        count("horizontal-changes", total.horizontal, 1.0, "changes of the wanted number of replicas"),
        count("parks", total.parks, 1.0, "replicas whose grant went to 0 while they stayed loaded"),
        count("wakes", total.wakes, 1.0, "parked replicas that a request woke"),
    ];
    let late = "client side, counted from the planned start; failed requests are late, cold starts count";
    figures.extend(shared.functions.iter().map(|row| {
        Figure::new(format!("late-{}", row.function), row.late_percent, "%", Bar::AtMost(1.0), late)
    }));
    let how = format!(
        "{} of {} GPU-seconds reserved during the load",
        short(total.reserved_gpu_seconds),
        short(whole.total.reserved_gpu_seconds)
    );
    figures.push(Figure::new("reserved-of-whole-gpus", ratio, "%", Bar::AtMost(25.0), how));
    figures
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::load::trace::Traces;
    use crate::view::ReplicaSummary;

    fn look(at_s: f64, reserved: f64, changes: u64, pid: u32) -> Look {
        let names = ["resnet50", "convnext-base", "vgg16", "bert"];
        let function = |name: &str| FunctionSummary {
            name: name.into(),
            reserved_gpu_seconds: reserved,
            used_gpu_seconds: reserved / 2.0,
            vertical_changes: changes,
            horizontal_changes: changes / 10,
            parks: changes / 10,
            wakes: changes / 10,
            replicas: vec![ReplicaSummary {
                instance: format!("{name}-1"),
                state: "ready".into(),
                pid: Some(pid),
                grant_percent: 30.0,
                ..Default::default()
            }],
            ..Default::default()
        };
        let functions = names.map(function).to_vec();
        Look {
            at_s,
            overview: Overview { uptime_s: at_s, policy: "gpufn".into(), functions, ..Default::default() },
        }
    }

    fn grant(seq: u64) -> DecisionRecord {
        DecisionRecord {
            seq,
            function: "bert".into(),
            instance: Some("bert-1".into()),
            action: "grant".into(),
            from: Some(20.0),
            to: Some(45.0),
            ..Default::default()
        }
    }

    fn observed(label: &'static str, reserved: f64, latency_ms: f64) -> Observed {
        let outcome = |target| Outcome { target, at_s: 1.0, lag_ms: 0.1, latency_ms, answer: Ok(200) };
        Observed {
            label,
            gpus: 1,
            outcomes: (0..4).flat_map(|target| vec![outcome(target); 200]).collect(),
            looks: vec![look(0.0, 1.0, 0, 7), look(75.0, 1.0 + reserved, 10, 7)],
            decisions: (0..25).map(grant).collect(),
        }
    }

    pub(in super::super) fn report(latency_ms: f64) -> Report {
        let scenario = Scenario::new("/b", &Traces::shipped().unwrap(), false, 1).unwrap();
        let (shared, whole) = (observed("gpufn", 10.0, latency_ms), observed("whole GPUs", 75.0, 20.0));
        let machine = Machine { cpu: "a <cpu>".into(), cores: 2, gpu: "simulated V100".into() };
        Report::new(&scenario, [&shared, &whole], &simulated(9.5, 22.0), 2.5, machine)
    }

    /// Four functions that are said to keep so much, and to answer so fast.
    fn simulated(reserved: f64, latency_ms: f64) -> faas_sim::report::Report {
        let outcome = |name: &str| {
            let mut outcome =
                faas_sim::report::Outcome { name: name.into(), arrived: 200, ..Default::default() };
            (outcome.reserved, outcome.used) = (reserved, reserved / 2.0);
            outcome.latency.add(gpu_share::units::Nanos::from_secs_f64(latency_ms / 1e3));
            outcome
        };
        let functions = ["resnet50", "convnext-base", "vgg16", "bert"].map(outcome).into();
        faas_sim::report::Report { functions, ..Default::default() }
    }

    #[test]
    fn counters_are_differences_over_the_load() {
        let report = report(20.0);
        let total = &report.shared.total;
        assert_eq!((total.requests, total.late, total.vertical, total.horizontal), (800, 0, 40, 4));
        assert!((total.reserved_gpu_seconds - 40.0).abs() < 1e-9);
        assert!((report.reserved_percent_of_whole - 100.0 * 10.0 / 75.0).abs() < 1e-9);
        // 40 GPU-seconds at 2.50 an hour for 800 requests.
        assert!((total.cost_per_1000 - 40.0 * 2.5 / 3600.0 / 0.8).abs() < 1e-12);
        assert!(report.figures.all_ok(), "{}", report.figures.table());
    }

    #[test]
    fn each_function_is_held_to_its_own_bound() {
        let report = report(150.0);
        let late: Vec<_> = report.shared.functions.iter().map(|row| row.late).collect();
        assert_eq!(late, [200, 200, 200, 0]);
        assert!(!report.figures.all_ok());
        assert!(report.figures.table().contains("NOT OK"));
    }

    #[test]
    fn a_grant_to_a_replica_whose_process_changed_does_not_count() {
        let looks = [look(0.0, 0.0, 0, 7), look(1.0, 0.0, 0, 8)];
        assert_eq!(vertical_with_same_pid(&[grant(1)], &looks), 0);
        assert_eq!(vertical_with_same_pid(&[grant(1)], &looks[..1]), 1);
        let unchanged = DecisionRecord { to: Some(20.0), ..grant(1) };
        assert_eq!(vertical_with_same_pid(&[unchanged], &looks[..1]), 0);
    }

    #[test]
    fn the_json_has_the_machine_and_the_figures_beside_the_runs() {
        let json = serde_json::to_value(report(20.0)).unwrap();
        assert_eq!(json["machine"]["gpu"], "simulated V100");
        assert_eq!(json["name"], "demo");
        assert_eq!(json["shared"]["functions"][0]["function"], "resnet50");
        assert!(json["figures"].as_array().unwrap().iter().all(|figure| figure["ok"] == true));
    }

    #[test]
    fn the_simulator_is_held_against_what_was_measured() {
        let off = |id: &str, report: &Report| {
            report
                .figures
                .figures
                .iter()
                .find(|figure| figure.id == id)
                .map(|figure| (figure.value, figure.ok))
        };
        let near = report(20.0);
        let (value, ok) = off("simulated-reserved-off", &near).unwrap();
        assert!((value - 5.0).abs() < 1e-9 && ok);
        assert!(off("simulated-p95-off", &near).unwrap().1);
        assert!(near.table().contains("simulated"));
        let (value, ok) = off("simulated-p95-off", &report(40.0)).unwrap();
        assert!((value - 45.0).abs() < 2.0 && !ok, "{value}");
    }

    #[test]
    fn nothing_reserved_is_not_a_success() {
        let scenario = Scenario::new("/b", &Traces::shipped().unwrap(), false, 1).unwrap();
        let empty = Observed { label: "x", gpus: 1, outcomes: vec![], looks: vec![], decisions: vec![] };
        let report =
            Report::new(&scenario, [&empty, &empty], &simulated(0.0, 1.0), 2.5, Machine::here("none"));
        assert!(!report.figures.all_ok());
        assert!(report.table().contains("total"));
    }
}
