//! How fast the simulator is, how long decisions take, and how much memory a long run needs.

use std::sync::{Arc, Mutex, PoisonError};

use faas_sim::arrivals::{Load, Segment};
use faas_sim::cluster::Cluster;
use faas_sim::report::Report;
use gpu_share::annotations::Wish;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};
use rustix::time::{ClockId, clock_gettime};
use scaler::policy::{Decision, FunctionView, Policy};

use crate::figures::{Bar, Figure, number, short};
use crate::sim::policies::policy;
use crate::sim::scenario::Scenario;

/// The day's functions and GPUs, and how often they are decided on.
const FUNCTIONS: usize = 1_000;
const GPUS: u32 = 100;
const DAY_TICK: Nanos = Nanos::from_secs(10);

/// All of them.
pub(super) fn figures(quick: bool) -> anyhow::Result<Vec<Figure>> {
    Ok([events(quick)?, day(quick)?, decisions(quick)?, memory(quick)?].concat())
}

/// A scenario of functions under a steady load, each with an SM share of 20 %.
fn steady(functions: usize, gpus: u32, rate: f64, seconds: f64) -> anyhow::Result<Scenario> {
    let mut scenario = Scenario::read("bench", &text(functions, gpus), std::path::Path::new("."))?;
    for function in &mut scenario.spec.functions {
        function.load = Load::Poisson(vec![Segment { seconds, from: rate, to: rate }]);
    }
    scenario.spec.seconds = seconds;
    Ok(scenario)
}

fn text(functions: usize, gpus: u32) -> String {
    let function = |index| {
        format!(
            "  - {{name: f{index}, model: shufflenet_v2_x0_5, annotations: {{sm: \"20\", quota: \"50\", memory: 1Gi, \
             slo: \"p95<60ms\", replicas: \"1..4\"}}, serving: {{cpu-ms: {{mean: 3, cv: 0.3}}}}, \
             load: {{mmpp: {{rate: 1, dispersion: 1, seconds: 1}}}}}}\n"
        )
    };
    let functions: String = (0..functions).map(function).collect();
    format!("gpus: {{count: {gpus}}}\nfunctions:\n{functions}")
}

/// Events a second of a loaded cluster: the simulator's own speed under a policy whose decisions are cheap, and with
/// gpufn's decisions five times a second.
fn events(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let scenario = steady(100, 40, 50.0, if quick { 60.0 } else { 600.0 })?;
    let mut figures = Vec::new();
    for (id, name, bar) in [
        ("sim-events-per-second", "hpa", Bar::AtLeast(5e6)),
        ("sim-events-per-second-gpufn", "gpufn", Bar::Any),
    ] {
        let (report, took) = timed(&scenario, name)?;
        let how = format!(
            "{} events in {} s of one core: 100 functions with 50 requests a second each on 40 GPUs, quotas metered and \
             lent, neighbours, {} rounds of decisions of {name}",
            report.events,
            short(took),
            report.rounds
        );
        figures.push(Figure::new(id, number(report.events) / took, "/s", bar, how));
    }
    Ok(figures)
}

/// Seconds that this thread has computed: what else runs on the machine does not count.
#[allow(clippy::cast_precision_loss)] // Seconds of one process.
fn computed() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn timed(scenario: &Scenario, name: &str) -> anyhow::Result<(Report, f64)> {
    let cluster = Cluster::new(&scenario.under(false, 1), policy(name, scenario, 1)?)?;
    let started = computed();
    let report = cluster.run();
    Ok((report, computed() - started))
}

/// A day of a thousand functions: the rows of Azure's day, each 25 times, moved around the clock.
fn day(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let mut scenario = Scenario::open("azure-40")?;
    let rows = scenario.spec.functions.clone();
    scenario.spec.functions =
        (0..FUNCTIONS).map(|index| moved(&rows[index % rows.len()], index, rows.len())).collect();
    scenario.spec.cards.count = GPUS;
    scenario.spec.control.tick = DAY_TICK;
    if quick {
        scenario.spec.functions.iter_mut().for_each(first_hour);
        scenario.spec.seconds = 3_600.0;
    }
    let (report, took) = timed(&scenario, "gpufn")?;
    let total = report.total();
    let how = format!(
        "{FUNCTIONS} functions on {GPUS} GPUs: Azure's 40 rows 25 times, moved around the clock; {} requests, {} events, {} \
         decisions in rounds {} s apart; {} of them late or failed; one core",
        total.arrived,
        report.events,
        report.shown,
        DAY_TICK.secs_f64(),
        format_args!("{} %", short(total.violations_percent())),
    );
    // The bar is for a whole day.
    let (id, bar) =
        if quick { ("sim-hour-seconds", Bar::Any) } else { ("sim-day-seconds", Bar::AtMost(60.0)) };
    Ok(vec![Figure::new(id, took, "s", bar, how)])
}

fn moved(row: &faas_sim::spec::FunctionSpec, index: usize, rows: usize) -> faas_sim::spec::FunctionSpec {
    let mut function = row.clone();
    function.name = format!("{}-{index}", row.name);
    if let Load::Minutes(minutes) = &mut function.load {
        let length = minutes.len().max(1);
        minutes.rotate_left(index / rows * length / FUNCTIONS.div_ceil(rows) % length);
    }
    function
}

fn first_hour(function: &mut faas_sim::spec::FunctionSpec) {
    if let Load::Minutes(minutes) = &mut function.load {
        minutes.truncate(60);
    }
}

/// How long decisions take, for one function and for a thousand that all have requests.
fn decisions(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (functions, gpus, most) in [(1, 4, 1.0), (FUNCTIONS, 400, 100.0)] {
        let scenario = steady(functions, gpus, 5.0, if quick { 20.0 } else { 60.0 })?;
        let times = Arc::new(Mutex::new(Vec::new()));
        let clocked = Timed { policy: policy("gpufn", &scenario, 1)?, times: times.clone() };
        Cluster::new(&scenario.under(false, 1), Box::new(clocked))?.run();
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_by(f64::total_cmp);
        let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN);
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        let how = format!(
            "99th percentile of the time on a core of {} decisions of gpufn, all of whose functions have 5 requests a second; median {} ms",
            times.len(),
            short(median)
        );
        figures.push(Figure::new(
            format!("decision-ms-{functions}-functions"),
            p99,
            "ms",
            Bar::AtMost(most),
            how,
        ));
    }
    Ok(figures)
}

/// A policy whose decisions are timed, in milliseconds.
struct Timed {
    policy: Box<dyn Policy>,
    times: Arc<Mutex<Vec<f64>>>,
}

impl Policy for Timed {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn share(&self, wish: &Wish, gpu_memory: Bytes) -> Share {
        self.policy.share(wish, gpu_memory)
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        let started = computed();
        let decisions = self.policy.decide(now, functions);
        let took = (computed() - started) * 1e3;
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        decisions
    }
}

/// How much more memory the process has after a run ten times as long.
fn memory(quick: bool) -> anyhow::Result<Vec<Figure>> {
    let short_run = if quick { 60.0 } else { 300.0 };
    // What the first run leaves to the allocator is there for the second.
    timed(&steady(20, 8, 50.0, short_run)?, "gpufn")?;
    let before = resident()?;
    let (report, _) = timed(&steady(20, 8, 50.0, 10.0 * short_run)?, "gpufn")?;
    let grown = 100.0 * (resident()? / before - 1.0);
    let how = format!(
        "resident memory after {} requests against after a tenth of them, {} MiB; at most {} were alive at once",
        report.total().arrived,
        short(before / 1024.0),
        report.most_alive
    );
    Ok(vec![Figure::new("sim-memory-grown", grown, "%", Bar::AtMost(10.0), how)])
}

/// Resident memory of this process, KiB.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.ok_or_else(|| anyhow::anyhow!("/proc/self/status has no VmRSS"))
}
