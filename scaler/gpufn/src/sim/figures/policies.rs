//! All policies on all traces: what each misses and what it costs.
//!
//! A miss is a request that was late or got no answer; cost is what was kept from others (the larger of time granted, time
//! used and memory), in GPUs. Each is a mean over seeds.

use std::path::Path;

use anyhow::Context as _;
use faas_sim::bound::least_gpus;
use faas_sim::report::{Outcome, Report};
use faas_sim::surface::Surface;
use gpu_share::annotations::Slo;
use gpu_share::share::Share;
use gpu_share::units::SmShare;

use crate::figures::{Bar, Figure, number, table};
use crate::sim::policies::{NAMES, is_blind_to_objectives};
use crate::sim::runs::{Done, Run, run_all};
use crate::sim::scenario::Scenario;
use crate::sim::show::{Mean, by_label, mean};

/// Objectives, as multiples of what a lone request takes on a whole GPU.
const SLOS: [f64; 4] = [1.5, 2.0, 3.0, 5.0];
const QUICK_SLOS: [f64; 1] = [3.0];
const SEEDS: u64 = 5;
const QUICK_SEEDS: u64 = 2;

/// HAS-GPU's published claims: cost against KServe, violations and cost against FaST-GShare.
const AGAINST_KSERVE: f64 = 10.8;
const AGAINST_FAST: (f64, f64) = (4.8, 1.72);
/// GPUs that KServe is charged with in the published runs.
const KSERVE_GPUS: f64 = 2.0;
/// Against `has-gpu-fixed`: so many times fewer violations at no more cost, or so many times less cost.
const AGAINST_FIXED: (f64, f64) = (2.0, 1.5);
/// Against the least that a schedule can cost which knows the future, and the violations that it may have, percent.
const AGAINST_LEAST: (f64, f64) = (1.25, 1.0);
/// Largest ratio that is told.
const LARGEST: f64 = 1_000.0;
/// Where more SMs save less than this part of the time is a model's SM share.
const KNEE: f64 = 0.1;

/// A kind of trace.
struct Family {
    name: String,
    scenario: Scenario,
}

impl Family {
    fn is_has(&self) -> bool {
        self.name.starts_with("has-")
    }

    fn is_azure(&self) -> bool {
        self.name.starts_with("azure-")
    }
}

/// What came of one policy on one family with one objective.
#[derive(Clone, Debug)]
struct Found {
    policy: String,
    violations: Mean,
    cost: Mean,
}

/// Figures of all families, or of the scenario in `data`.
pub(super) fn figures(data: Option<&Path>, quick: bool) -> anyhow::Result<Vec<Figure>> {
    let (slos, seeds) = if quick { (&QUICK_SLOS[..], QUICK_SEEDS) } else { (&SLOS[..], SEEDS) };
    let families = match data {
        Some(path) => {
            vec![Family { name: "data".into(), scenario: Scenario::open(&path.to_string_lossy())? }]
        }
        None => families(quick)?,
    };
    let (mut figures, mut rows) = (Vec::new(), Vec::new());
    for family in &families {
        let blind = done(family, slos[0], seeds, is_blind_to_objectives)?;
        let least = least(family, seeds);
        for &slo in slos {
            let mut runs = blind.clone();
            runs.extend(done(family, slo, seeds, |name| !is_blind_to_objectives(name))?);
            let results = results(family, slo, &runs);
            rows.extend(results.iter().map(|result| row(family, slo, result)));
            rows.push(vec![
                format!("{}, {slo} times, no schedule below", family.name),
                String::new(),
                least.to_string(),
            ]);
            figures.extend(compared(family, slo, seeds, &results, least));
        }
    }
    println!("{}", table(&["trace, objective, policy", "late or failed %", "GPUs"], &rows));
    Ok(figures)
}

fn families(quick: bool) -> anyhow::Result<Vec<Family>> {
    let named = |name: &str, yaml: &str| -> anyhow::Result<Family> {
        let mut scenario = Scenario::read(name, yaml, Path::new("."))?;
        for function in &mut scenario.spec.functions {
            let share = function.wish.share;
            function.wish.share = Share { sm: knee(&function.surface).unwrap_or(share.sm), ..share };
        }
        if quick {
            scenario.shorten(1_800.0);
        }
        Ok(Family { name: name.into(), scenario })
    };
    let merged = |batch: u32, load: &str| {
        format!(
            "gpus: {{count: 10}}\nfunctions:\n  - name: resnet50\n    model: resnet50\n    annotations: {{sm: \"10\", quota: \
             \"20\", memory: 1500Mi, replicas: \"1..16\", batch: \"{batch}\"}}\n    serving: {{cpu-ms: {{mean: 3, cv: \
             0.3}}}}\n    load: {load}\n"
        )
    };
    let one = |load: &str| merged(1, load);
    let fleet = |counts: &str, gpus: u32| {
        format!(
            "gpus: {{count: {gpus}}}\ncontrol: {{tick-ms: 1000}}\nfleet:\n  counts: {counts}\n  models: [resnet50, \
             mobilenet_v3_large, convnext_base, vgg16]\n  annotations: {{sm: \"20\", quota: \"20\", memory: 1500Mi, replicas: \
             \"0..16\"}}\n  slo-times: [3]\n  serving: {{cpu-ms: {{mean: 3, cv: 0.3}}}}\n"
        )
    };
    let bursts = |dispersion: u32| format!("{{mmpp: {{rate: 40, dispersion: {dispersion}, seconds: 900}}}}");
    let mmpp = |dispersion: u32| one(&bursts(dispersion));
    let families = [
        ("has-standard", one("{trace: has-standard}")),
        ("has-stress", one("{trace: has-stress}")),
        ("azure-40", fleet("azure-40", 24)),
        ("azure-250", fleet("azure-250", 64)),
        ("ramp", one("{trace: fast-ramp}")),
        ("mmpp-1", mmpp(1)),
        ("mmpp-4", mmpp(4)),
        ("mmpp-16", mmpp(16)),
        ("mmpp-4-batch-4", merged(4, &bursts(4))),
    ];
    families.iter().map(|(name, yaml)| named(name, yaml)).collect()
}

/// The smallest SM share whose time is near the best.
fn knee(surface: &Surface) -> Option<SmShare> {
    let sms: Vec<_> = (1..=20).filter_map(|step| SmShare::from_percent(5 * step).ok()).collect();
    let time = |sm: &SmShare| surface.gpu_time(*sm, 1);
    let best = sms.iter().map(time).min()?;
    sms.iter().find(|sm| time(sm).secs_f64() <= best.secs_f64() * (1.0 + KNEE)).copied()
}

/// Runs of the policies that `wanted` names.
fn done(family: &Family, slo: f64, seeds: u64, wanted: fn(&str) -> bool) -> anyhow::Result<Vec<Done>> {
    let scenario = family.scenario.with_slo(slo);
    let runs: Vec<_> = NAMES
        .iter()
        .filter(|policy| wanted(policy))
        .flat_map(|policy| (1..=seeds).map(move |seed| (policy, seed)))
        .map(|(policy, seed)| Run {
            label: (*policy).into(),
            policy: (*policy).into(),
            seed,
            scenario: scenario.clone(),
        })
        .collect();
    eprintln!("{}, {slo} times a lone request", family.name);
    run_all(&runs).with_context(|| family.name.clone())
}

/// GPUs that the cheapest schedule needs at least.
fn least(family: &Family, seeds: u64) -> Mean {
    let bounds = (1..=seeds).map(|seed| least_gpus(&family.scenario.under(false, seed)));
    Mean::of(&bounds.collect::<Vec<_>>())
}

fn results(family: &Family, slo: f64, done: &[Done]) -> Vec<Found> {
    let bounds: Vec<_> = family.scenario.with_slo(slo).spec.functions.iter().map(|f| f.wish.slo).collect();
    let labels = by_label(done);
    let found = |policy: &&str| {
        let (_, runs) = labels.iter().find(|(label, _)| label == policy)?;
        Some(Found {
            policy: (*policy).into(),
            violations: mean(runs, |report| violations_percent(report, &bounds)),
            cost: mean(runs, Report::mean_reserved),
        })
    };
    NAMES.iter().filter_map(found).collect()
}

/// Part of the requests that were later than the objectives `bounds` of their functions allow, or not answered, %.
fn violations_percent(report: &Report, bounds: &[Option<Slo>]) -> f64 {
    let late = |(function, slo): (&Outcome, &Option<Slo>)| {
        number(function.failed) + slo.map_or(0.0, |slo| function.latency.beyond(slo.bound))
    };
    let late: f64 = report.functions.iter().zip(bounds).map(late).sum();
    let arrived: u64 = report.functions.iter().map(|function| function.arrived).sum();
    100.0 * late / number(arrived.max(1))
}

fn row(family: &Family, slo: f64, result: &Found) -> Vec<String> {
    vec![
        format!("{}, {slo} times, {}", family.name, result.policy),
        result.violations.to_string(),
        result.cost.to_string(),
    ]
}

fn compared(family: &Family, slo: f64, seeds: u64, results: &[Found], least: Mean) -> Vec<Figure> {
    let find = |name: &str| results.iter().find(|result| result.policy == name);
    let Some(ours) = find("gpufn") else { return Vec::new() };
    let id = |what: &str| format!("policy-{}-slo{}-{what}", family.name, slo);
    let against = |theirs: &Found| {
        format!(
            "gpufn {} % late or failed on {} GPUs, {} {} % on {}; {seeds} seeds, 95 % intervals",
            ours.violations, ours.cost, theirs.policy, theirs.violations, theirs.cost
        )
    };
    let mut figures = Vec::new();
    let mut add = |what: &str, value: f64, bar: Bar, how: String| {
        figures.push(Figure::new(id(what), value, "", bar, how));
    };
    if family.is_has() {
        let charged = format!(
            "gpufn {} GPUs, kserve charged {KSERVE_GPUS} as in the published runs; {seeds} seeds",
            ours.cost
        );
        add(
            "cost-below-kserve-charged",
            ratio(KSERVE_GPUS, ours.cost.mean),
            Bar::AtLeast(AGAINST_KSERVE),
            charged,
        );
        if let Some(fast) = find("fast-gshare") {
            let violations = ratio(fast.violations.mean, ours.violations.mean);
            add("violations-below-fast-gshare", violations, Bar::AtLeast(AGAINST_FAST.0), against(fast));
            add(
                "cost-below-fast-gshare",
                ratio(fast.cost.mean, ours.cost.mean),
                Bar::AtLeast(AGAINST_FAST.1),
                against(fast),
            );
        }
    }
    if let Some(kserve) = find("kserve") {
        add("cost-below-kserve", ratio(kserve.cost.mean, ours.cost.mean), Bar::Any, against(kserve));
    }
    if let Some(fixed) = find("has-gpu-fixed") {
        add("over-has-gpu-fixed", advantage(ours, fixed), Bar::AtLeast(1.0), against(fixed));
    }
    if let Some(oracle) = find("oracle") {
        add("cost-of-oracle", ratio(ours.cost.mean, oracle.cost.mean), Bar::Any, against(oracle));
    }
    let how = format!(
        "gpufn {} GPUs, no schedule under which none is late below {least}; {seeds} seeds",
        ours.cost
    );
    let bar = if family.is_azure() { Bar::AtMost(AGAINST_LEAST.0) } else { Bar::Any };
    add("cost-of-least", ratio(ours.cost.mean, least.mean), bar, how);
    if family.is_azure() {
        let how = format!("{seeds} seeds, 95 % interval {}", ours.violations);
        figures.push(Figure::new(
            id("violations"),
            ours.violations.mean,
            "%",
            Bar::AtMost(AGAINST_LEAST.1),
            how,
        ));
    }
    figures
}

/// How many times `theirs` is `ours`: nothing over nothing is once.
fn ratio(theirs: f64, ours: f64) -> f64 {
    if theirs <= 0.0 && ours <= 0.0 { 1.0 } else { (theirs / ours.max(f64::MIN_POSITIVE)).min(LARGEST) }
}

/// At least 1 where we have half the violations at no more cost, or two thirds of the cost at no more violations.
fn advantage(ours: &Found, theirs: &Found) -> f64 {
    let (violations, cost) =
        (ratio(theirs.violations.mean, ours.violations.mean), ratio(theirs.cost.mean, ours.cost.mean));
    let (fewer, cheaper) = AGAINST_FIXED;
    (violations / fewer).min(cost).max((cost / cheaper).min(violations))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(violations: f64, cost: f64) -> Found {
        let mean = |mean| Mean { mean, half: 0.0 };
        Found { policy: String::new(), violations: mean(violations), cost: mean(cost) }
    }

    #[test]
    fn an_advantage_is_half_the_misses_at_no_more_cost_or_two_thirds_of_the_cost_at_no_more_misses() {
        let theirs = found(4.0, 0.3);
        for (violations, cost, holds) in [
            (2.0, 0.3, true),
            (2.1, 0.3, false),
            (2.0, 0.31, false),
            (4.0, 0.2, true),
            (4.1, 0.2, false),
            (0.0, 0.3, true),
        ] {
            let value = advantage(&found(violations, cost), &theirs);
            assert_eq!(value >= 1.0 - 1e-9, holds, "{violations} % on {cost}: {value}");
        }
        assert!(advantage(&found(0.0, 0.2), &found(0.0, 0.3)) >= 1.0 - 1e-9);
    }

    #[test]
    fn all_families_can_be_simulated() {
        let names: Vec<_> = families(true).unwrap().into_iter().map(|family| family.name).collect();
        assert_eq!(
            names,
            [
                "has-standard",
                "has-stress",
                "azure-40",
                "azure-250",
                "ramp",
                "mmpp-1",
                "mmpp-4",
                "mmpp-16",
                "mmpp-4-batch-4"
            ]
        );
    }
}
