//! The simulator against what was published: runs of HAS-GPU, FaST-GShare and KServe through their own client, and
//! FaST-GShare's curves of replicas side by side.

use std::path::Path;

use faas_sim::arrivals::{Load, Segment};
use faas_sim::cluster::Cluster;
use faas_sim::gpu::{Contention, Enforcement};
use faas_sim::random::Spread;
use faas_sim::spec::{Cards, Control, Faults, FunctionSpec, Routing, Spec};
use faas_sim::surface::Surfaces;
use gpu_share::annotations::{Priority, Replicas, Scaling, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::ledger::Sharing;
use gpu_share::quota::WINDOW;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use scaler::policy::{Action, Decision, FunctionView, Policy};

use self::misfit::misfit;
use self::recorded::Recorded;
use crate::figures::{Bar, Figure, number, short, table};
use crate::sim::load::text;
use crate::sim::neighbours::Neighbours;
use crate::sim::policies::policy;
use crate::sim::scenario::{Scenario, known_surfaces, known_traces};

mod misfit;
mod recorded;

/// The published runs.
const RUNS: &str = include_str!("../../../scenarios/published-runs.csv");
/// Memory of the cards that they ran on, and of a pod: HAS-GPU's default, and what the manifests of FaST-GShare ask for.
const CARD: Bytes = Bytes::gib(16);
const POD: Bytes = Bytes::mib(3_700);
const FAST_POD: Bytes = Bytes(2_700_000_000);
/// Seeds over which a run is simulated.
const SEEDS: u64 = 5;

/// How far the simulation may be off, in percent: GPU fraction, median and 95th percentile.
const FRACTION: f64 = 15.0;
const P50: f64 = 15.0;
const P95: f64 = 30.0;
/// Of a curve, in percent.
const CURVE: f64 = 10.0;

/// One published run.
#[derive(Clone, Debug, PartialEq)]
struct Published {
    run: String,
    system: String,
    function: String,
    trace: String,
    p50: f64,
    p95: f64,
    fraction: Option<f64>,
}

/// What is simulated of a function.
struct Function {
    /// What its image runs, and what the scaler takes it for.
    model: &'static str,
    believed: &'static str,
    /// Milliseconds beside the GPU: what the median of a run on whole GPUs (KServe) leaves beyond the inference, 70 where
    /// there is none, as the authors' scaler assumes.
    beside: f64,
    sm: u8,
    /// By its manifest.
    batch: u32,
}

fn function(published: &Published) -> Option<Function> {
    let (model, beside, sm) = match (published.function.as_str(), published.system.as_str()) {
        ("resnet", _) => ("resnet50", 64.0, 30),
        // Its manifest deploys the image of mobilenet.
        ("convnext", "has") | ("mobilenet", _) => ("mobilenet_v3_large", 70.0, 30),
        ("convnext", _) => ("convnext_large", 74.0, 30),
        ("bert", "kserve") => ("bert", 25.0, 100),
        ("bert", _) => ("bert-qa", 25.0, 50),
        _ => return None,
    };
    let believed = if published.function == "convnext" { "convnext_large" } else { model };
    let batch = if published.system == "fast" { 1 } else { 4 };
    Some(Function { model, believed, beside, sm, batch })
}

/// Figures of all runs in `data`, or in what is shipped, and of the curves.
pub(super) fn figures(data: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let runs = match data {
        Some(path) => {
            let found = read(&text(path)?);
            found.map_err(|error| error.within(&path.display().to_string()))?
        }
        None => read(RUNS)?,
    };
    let (mut figures, mut rows) = (Vec::new(), Vec::new());
    for published in &runs {
        let Some(simulated) = simulate(published)? else { continue };
        rows.push(row(published, &simulated));
        figures.extend(held_against(published, &simulated));
    }
    let head = [
        "run",
        "fraction",
        "simulated",
        "p50 ms",
        "simulated",
        "recorded pods",
        "p95 ms",
        "simulated",
        "recorded pods",
    ];
    println!("{}", table(&head, &rows));
    figures.extend(curves()?);
    Ok(figures)
}

/// Means over seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Means {
    fraction: f64,
    p50: f64,
    p95: f64,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Simulated {
    /// Under the published rule.
    rule: Means,
    /// Under the pods that were recorded.
    recorded: Option<Means>,
}

impl Simulated {
    /// What latencies are held against. The rule of FaST-GShare's runs is not published: there it is what was recorded.
    fn served(&self, system: &str) -> Means {
        self.recorded.filter(|_| system == "fast").unwrap_or(self.rule)
    }
}

fn simulate(published: &Published) -> anyhow::Result<Option<Simulated>> {
    let (Some(function), Some(name)) = (function(published), system(&published.system)) else {
        return Ok(None);
    };
    let recorded = Recorded::of(&published.run)?;
    let lead = recorded.as_ref().map_or(0.0, |recorded| recorded.lead);
    let means = |policy: &Rule<'_>| means(|seed| scenario(published, &function, lead, seed), policy);
    let rule = means(&|scenario, seed| policy(name, scenario, seed))?;
    let recorded = recorded.map(|recorded| means(&|_, _| Ok(Box::new(recorded.clone())))).transpose()?;
    Ok(Some(Simulated { rule, recorded }))
}

/// The policy of a scenario and seed.
type Rule<'a> = dyn Fn(&Scenario, u64) -> Result<Box<dyn Policy>, Invalid> + 'a;

fn means(scenario: impl Fn(u64) -> anyhow::Result<Scenario>, policy: &Rule<'_>) -> anyhow::Result<Means> {
    let mut sum = Means::default();
    for seed in 1..=SEEDS {
        let scenario = scenario(seed)?;
        let report = Cluster::new(&scenario.spec, policy(&scenario, seed)?)?.run();
        let total = report.total();
        let quantile = |part| total.latency.quantile_ms(part).unwrap_or(f64::NAN);
        sum.fraction += report.mean_granted() / number(SEEDS);
        sum.p50 += quantile(0.5) / number(SEEDS);
        sum.p95 += quantile(0.95) / number(SEEDS);
    }
    Ok(sum)
}

fn system(name: &str) -> Option<&'static str> {
    match name {
        "has" => Some("has-gpu"),
        "fast" => Some("fast-gshare"),
        "kserve" => Some("kserve"),
        _ => None,
    }
}

/// A run, after `lead` seconds without requests, in which its scaler was at work already.
fn scenario(published: &Published, function: &Function, lead: f64, seed: u64) -> anyhow::Result<Scenario> {
    let trace = known_traces()?.find(&published.trace)?;
    let quiet = (lead > 0.0).then_some(Segment { seconds: lead, from: 0.0, to: 0.0 });
    let steps = trace.segments().iter().map(|s| Segment { seconds: s.seconds, from: s.from, to: s.to });
    let steps: Vec<_> = quiet.into_iter().chain(steps).collect();
    let surfaces = known_surfaces()?;
    let is_kserve = published.system == "kserve";
    let memory = if published.system == "fast" { FAST_POD } else { POD };
    let sm = SmShare::from_percent(function.sm)?;
    let spec = Spec {
        cards: cards(10, Enforcement::LaunchGated),
        control: Control {
            tick: if is_kserve { Nanos::from_secs(2) } else { Nanos::from_secs(1) },
            delay: Nanos::from_millis(500),
            cold_start: Spread { mean: 12.0, cv: 0.25 },
            timeout: Nanos::from_secs(60),
            routing: if is_kserve { Routing::Least } else { Routing::Random },
        },
        faults: Faults::default(),
        functions: vec![FunctionSpec {
            name: published.function.clone(),
            wish: Wish {
                share: Share::new(sm, Quota::from_percent(30)?, Quota::WHOLE, memory)?,
                slo: None,
                scaling: Scaling::Hybrid,
                model: Some(function.believed.into()),
                batch: function.batch,
                replicas: Replicas { min: 1, max: if is_kserve { 2 } else { 30 } },
                priority: Priority::default(),
            },
            surface: surfaces.find(function.model)?,
            contention: Neighbours::published()?.of(function.model),
            load: Load::Client(steps),
            cpu: Spread { mean: function.beside / 1e3, cv: 0.1 },
            workers: 0,
            limit: if is_kserve { 15 } else { 0 },
            fill: Nanos::ZERO,
        }],
        seconds: lead + trace.seconds(),
        seed,
    };
    Ok(Scenario::of(spec, surfaces)?)
}

fn cards(count: u32, enforcement: Enforcement) -> Cards {
    Cards { count, per_node: 1, memory: CARD, sharing: Sharing::Mps, enforcement }
}

fn row(published: &Published, simulated: &Simulated) -> Vec<String> {
    let recorded = |pick: fn(Means) -> f64| simulated.recorded.map(pick).map(short).unwrap_or_default();
    vec![
        published.run.clone(),
        published.fraction.map(short).unwrap_or_default(),
        short(simulated.rule.fraction),
        short(published.p50),
        short(simulated.rule.p50),
        recorded(|means| means.p50),
        short(published.p95),
        short(simulated.rule.p95),
        recorded(|means| means.p95),
    ]
}

/// How far off the simulation is, held against the bars where the run is of an image network.
fn held_against(published: &Published, simulated: &Simulated) -> Vec<Figure> {
    let is_cnn = published.function != "bert";
    let figure = |what: &str, measured: f64, found: f64, recorded: Option<f64>, most: f64| {
        let off = 100.0 * (found / measured - 1.0).abs();
        let bar = if is_cnn { Bar::AtMost(most) } else { Bar::Any };
        let recorded = match recorded {
            Some(same) if same.to_bits() == found.to_bits() => " with the pods that the run recorded".into(),
            Some(recorded) => format!(" ({} with the pods that the run recorded)", short(recorded)),
            None => String::new(),
        };
        let why = misfit(published, what).filter(|_| off > most).map(|why| format!("; {why}"));
        let how = format!(
            "published {}, simulated {}{recorded}; mean of {SEEDS} seeds{}",
            short(measured),
            short(found),
            why.unwrap_or_default()
        );
        Figure::new(format!("sim-{}-{what}-off", published.run), off, "%", bar, how)
    };
    let (served, recorded) = (simulated.served(&published.system), simulated.recorded);
    let fraction = published
        .fraction
        .map(|measured| figure("fraction", measured, simulated.rule.fraction, None, FRACTION));
    let latencies = [
        figure("p50", published.p50, served.p50, recorded.map(|means| means.p50), P50),
        figure("p95", published.p95, served.p95, recorded.map(|means| means.p95), P95),
    ];
    fraction.into_iter().chain(latencies).collect()
}

/// FaST-GShare's curves: as many replicas as there are points, always busy.
fn curves() -> anyhow::Result<Vec<Figure>> {
    let neighbours = Neighbours::published()?;
    let mut figures = Vec::new();
    for (model, sm, points) in neighbours.curves() {
        let Some(&(_, alone)) = points.iter().find(|(replicas, _)| *replicas == 1) else { continue };
        let (mut worst, mut at) = (0.0_f64, 1);
        for &(replicas, rps) in points {
            let off = 100.0 * (side_by_side(alone, sm, replicas, neighbours.of(model))? / rps - 1.0).abs();
            if off > worst {
                (worst, at) = (off, replicas);
            }
        }
        let how = format!(
            "largest error of the requests a second of 1 to 9 replicas at an SM share of {sm} % ({at} replicas); one \
             coefficient for each curve"
        );
        figures.push(Figure::new(
            format!("sim-spatial-{model}-sm{sm}-off"),
            worst,
            "%",
            Bar::AtMost(CURVE),
            how,
        ));
    }
    Ok(figures)
}

/// Requests a second of `replicas` of a model of which one alone bears `alone`.
fn side_by_side(alone: f64, sm: u8, replicas: u32, contention: Contention) -> anyhow::Result<f64> {
    let lines = format!("model,batch,sm,quota,latency_ms\nm,1,{sm},100,{}\n", 1e3 / alone);
    let share = Share::new(SmShare::from_percent(sm)?, Quota::WHOLE, Quota::WHOLE, Bytes::gib(1))?;
    let spec = Spec {
        cards: cards(1, Enforcement::GpuTime { window: WINDOW, lends: false }),
        control: Control {
            tick: Nanos::from_secs(1),
            delay: Nanos::ZERO,
            cold_start: Spread { mean: 0.0, cv: 0.0 },
            timeout: Nanos::from_secs(10_000),
            routing: Routing::Least,
        },
        faults: Faults::default(),
        functions: vec![FunctionSpec {
            name: "m".into(),
            wish: Wish {
                share,
                slo: None,
                scaling: Scaling::Off,
                model: None,
                batch: 1,
                replicas: Replicas { min: replicas, max: replicas },
                priority: Priority::default(),
            },
            surface: Surfaces::parse(&lines)?.find("m")?,
            contention,
            // More than any of them bears, through enough workers to keep all replicas busy.
            load: Load::Client(vec![Segment { seconds: 20.0, from: 500.0, to: 500.0 }]),
            cpu: Spread { mean: 0.0, cv: 0.0 },
            workers: 0,
            limit: 0,
            fill: Nanos::ZERO,
        }],
        seconds: 1.0,
        seed: 1,
    };
    let report = Cluster::new(&spec, Box::new(SideBySide { share, replicas }))?.run();
    Ok(number(report.total().finished) / report.ended)
}

/// So many replicas on one GPU, whatever their SM shares sum to.
struct SideBySide {
    share: Share,
    replicas: u32,
}

impl Policy for SideBySide {
    fn name(&self) -> &'static str {
        "side-by-side"
    }

    fn share(&self, _: &Wish, _: Bytes) -> Share {
        self.share
    }

    fn places(&self) -> bool {
        true
    }

    fn decide(&mut self, _: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        let missing = functions.iter().flat_map(|view| {
            let present = u32::try_from(view.replicas.len()).unwrap_or(u32::MAX);
            (present..self.replicas).map(|_| Decision {
                action: Action::Start { function: view.name.clone(), share: self.share, gpu: 0 },
                reason: String::new(),
            })
        });
        missing.collect()
    }
}

/// Reads a table of runs by the names of its columns.
fn read(text: &str) -> Result<Vec<Published>, Invalid> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    let head = lines.next().map_or("", |(_, line)| line);
    let columns: Vec<_> = head.split(',').collect();
    let column = |name: &str| {
        let found = columns.iter().position(|column| *column == name);
        found.ok_or_else(|| Invalid::new("head of the runs", head, format!("columns with {name} among them")))
    };
    let [run, system, function, trace] = ["run", "system", "function", "trace"].map(column);
    let [p50, p95, fraction] = ["p50_ms", "p95_ms", "mean_gpu_fraction"].map(column);
    let (run, system, function, trace) = (run?, system?, function?, trace?);
    let (p50, p95, fraction) = (p50?, p95?, fraction?);
    let mut runs = Vec::new();
    for (index, line) in lines {
        let bad = || {
            Invalid::new(
                format!("line {} of the runs", index + 1),
                line,
                "as many columns as the head has, and numbers above 0",
            )
        };
        let cells: Vec<_> = line.split(',').collect();
        if cells.len() != columns.len() {
            return Err(bad());
        }
        let number = |at: usize| {
            cells[at].parse().ok().filter(|value: &f64| *value > 0.0 && value.is_finite()).ok_or_else(bad)
        };
        runs.push(Published {
            run: cells[run].into(),
            system: cells[system].into(),
            function: cells[function].into(),
            trace: cells[trace].into(),
            p50: number(p50)?,
            p95: number(p95)?,
            fraction: if cells[fraction].is_empty() { None } else { Some(number(fraction)?) },
        });
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_runs_are_read() {
        let runs = read(RUNS).unwrap();
        assert_eq!(runs.len(), 34);
        let first = &runs[0];
        assert_eq!(
            (first.run.as_str(), first.trace.as_str(), first.fraction),
            ("has-bert-stress-1", "has-stress", Some(0.4544))
        );
        assert!(runs.iter().all(|run| function(run).is_some() && system(&run.system).is_some()));
        let traces = known_traces().unwrap();
        assert!(runs.iter().all(|run| traces.find(&run.trace).is_ok()));
    }

    #[test]
    fn a_column_that_is_missing_and_a_bad_line_are_refused() {
        assert!(read("run,system\n").unwrap_err().to_string().starts_with("head of the runs is "));
        let head = "run,system,function,trace,p50_ms,p95_ms,mean_gpu_fraction\n";
        for line in ["a,has,resnet,t,1,2", "a,has,resnet,t,-1,2,0.1", "a,has,resnet,t,1,x,0.1"] {
            let error = read(&format!("{head}{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of the runs is "), "{error}");
        }
    }

    #[test]
    fn one_replica_alone_bears_what_was_measured_and_three_what_neighbours_leave() {
        let contention = Contention::new([0.1, 0.1, 0.1]);
        let alone = side_by_side(50.0, 24, 1, contention).unwrap();
        assert!((alone - 50.0).abs() < 0.5, "{alone}");
        let three = side_by_side(50.0, 24, 3, contention).unwrap();
        assert!((three - 150.0 / 1.2).abs() < 2.0, "{three}");
    }
}
