//! Scenario files: what is simulated, as people write it.
//!
//! Every value is checked when it is read; what is wrong is refused with its place, its value and what is allowed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use faas_sim::arrivals::Load;
use faas_sim::gpu::{Contention, Enforcement};
use faas_sim::random::Spread;
use faas_sim::spec::{Cards, Control, Faults, FunctionSpec, Routing, Spec};
use faas_sim::surface::Surfaces;
use gpu_share::annotations::{Slo, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::ledger::Sharing;
use gpu_share::quota::WINDOW;
use gpu_share::units::{Bytes, Nanos, SmShare};
use serde::Deserialize;

use super::load::{Minutes, Wanted, scaled};
use super::neighbours::Neighbours;
use crate::load::trace::Traces;

/// Measured latencies that are known without a file.
const HAS_GPU: &str = scaler::profile::shipped::LATENCIES;
const SHIPPED: &str = include_str!("../../../../device-plugin/share/profiles/v100.csv");
const BERT_QA: &str = include_str!("../../scenarios/bert-qa.csv");
/// Traces beside those that every command knows.
const PUBLISHED: &str = include_str!("../../scenarios/published.csv");

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    /// One sentence for people.
    #[serde(default)]
    pub(super) about: String,
    #[serde(default)]
    gpus: GpusFile,
    #[serde(default)]
    control: ControlFile,
    #[serde(default)]
    faults: FaultsFile,
    /// CSV file of further measured latencies, `model,batch,sm,quota,latency_ms`.
    profiles: Option<PathBuf>,
    /// CSV file of further traces.
    traces: Option<PathBuf>,
    /// Seconds that costs are counted for [default: the longest load].
    seconds: Option<f64>,
    #[serde(default)]
    functions: Vec<FunctionFile>,
    /// A function for each row of a file of counts.
    fleet: Option<FleetFile>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct GpusFile {
    count: u32,
    per_node: u32,
    memory: String,
    sharing: Sharing,
    /// How shares are enforced [default: as each policy's system does].
    enforcement: Option<EnforcementFile>,
    window_ms: f64,
    lends: bool,
    /// Whether neighbours cost time, as measured.
    contention: bool,
}

impl Default for GpusFile {
    fn default() -> Self {
        Self {
            count: 4,
            per_node: 1,
            memory: "16Gi".into(),
            sharing: Sharing::Mps,
            enforcement: None,
            window_ms: WINDOW.millis_f64(),
            lends: true,
            contention: true,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EnforcementFile {
    LaunchGated,
    GpuTime,
    Ideal,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ControlFile {
    tick_ms: f64,
    delay_ms: f64,
    cold_start_s: SpreadFile,
    timeout_s: f64,
    routing: RoutingFile,
}

impl Default for ControlFile {
    fn default() -> Self {
        let cold_start_s = SpreadFile { mean: 8.0, cv: 0.25 };
        Self { tick_ms: 200.0, delay_ms: 20.0, cold_start_s, timeout_s: 60.0, routing: RoutingFile::Least }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RoutingFile {
    Least,
    Random,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SpreadFile {
    mean: f64,
    cv: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FaultsFile {
    replica_mtbf_s: Option<f64>,
    node_mtbf_s: Option<f64>,
    repair_s: f64,
    losses: Vec<LossFile>,
}

impl Default for FaultsFile {
    fn default() -> Self {
        Self { replica_mtbf_s: None, node_mtbf_s: None, repair_s: 300.0, losses: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LossFile {
    at_s: f64,
    node: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FunctionFile {
    name: String,
    model: String,
    /// What it would be deployed with, without `gpufn.dev/`.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    load: Wanted,
    #[serde(default)]
    serving: Serving,
}

/// How requests are served.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Serving {
    cpu_ms: SpreadFile,
    workers: u32,
    limit: u32,
    fill_ms: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FleetFile {
    /// The counts; `azure-40` and `azure-250` are shipped.
    counts: String,
    /// Models, given to the rows in turn.
    models: Vec<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Objectives as multiples of what a lone request takes on a whole GPU; the rows get them in turn.
    #[serde(default)]
    slo_times: Vec<f64>,
    #[serde(default)]
    serving: Serving,
}

/// A scenario, ready to be run under any policy.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) about: String,
    /// As it is run; how shares are enforced may be the policy's matter.
    pub(super) spec: Spec,
    /// What policies are told of models.
    pub(super) profiles: Profiles,
    pub(super) surfaces: Surfaces,
    pub(super) enforcement: Option<Enforcement>,
    metered: Enforcement,
}

/// Scenarios that are shipped, by name.
const SCENARIOS: [(&str, &str); 4] = [
    ("has-standard", include_str!("../../scenarios/has-standard.yaml")),
    ("mmpp", include_str!("../../scenarios/mmpp.yaml")),
    ("ramp", include_str!("../../scenarios/ramp.yaml")),
    ("azure-40", include_str!("../../scenarios/azure-40.yaml")),
];

/// Counts that are shipped.
const COUNTS: [(&str, &[u8]); 2] = [
    ("azure-40", include_bytes!("../../scenarios/azure-40.csv.gz")),
    ("azure-250", include_bytes!("../../scenarios/azure-250.csv.gz")),
];

impl Scenario {
    /// The scenario that `name` is: one that is shipped, or a file.
    pub(super) fn open(name: &str) -> anyhow::Result<Self> {
        if let Some((_, text)) = SCENARIOS.iter().find(|(shipped, _)| *shipped == name) {
            return Self::read(name, text, Path::new("."));
        }
        let path = Path::new(name);
        if !path.exists() && path.extension().is_none() {
            let names: Vec<_> = SCENARIOS.iter().map(|(name, _)| *name).collect();
            return Err(
                Invalid::new("scenario", name, format!("a file, or one of {}", names.join(", "))).into()
            );
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {name}"))?;
        Self::read(name, &text, path.parent().unwrap_or_else(|| Path::new(".")))
    }

    /// Reads a scenario; files that it names are in `folder`.
    pub(super) fn read(name: &str, text: &str, folder: &Path) -> anyhow::Result<Self> {
        let file: File = serde_yaml::from_str(text).map_err(|error| {
            let place = error.location().map(|at| format!(" (line {}, column {})", at.line(), at.column()));
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().replace('\n', " ");
            Invalid::new(
                format!("scenario {name}{}", place.unwrap_or_default()),
                message,
                "a scenario's YAML",
            )
        })?;
        file.scenario(name, folder)
    }

    /// A scenario that was put together elsewhere, run as it is under every policy.
    pub(super) fn of(spec: Spec, surfaces: Surfaces) -> Result<Self, Invalid> {
        let (profiles, enforcement) = (surfaces.profiles()?, spec.cards.enforcement);
        Ok(Self {
            name: String::new(),
            about: String::new(),
            spec,
            profiles,
            surfaces,
            enforcement: Some(enforcement),
            metered: enforcement,
        })
    }

    /// The spec of a run: shares are enforced by gating launches, if so and unless the scenario says how.
    pub(super) fn under(&self, launch_gated: bool, seed: u64) -> Spec {
        let own = if launch_gated { Enforcement::LaunchGated } else { self.metered };
        let mut spec = self.spec.clone();
        spec.cards.enforcement = self.enforcement.unwrap_or(own);
        spec.seed = seed;
        spec
    }

    /// Cuts loads and costs off after so many seconds.
    pub(super) fn shorten(&mut self, seconds: f64) {
        self.spec.seconds = self.spec.seconds.min(seconds);
        for function in &mut self.spec.functions {
            match &mut function.load {
                Load::Minutes(minutes) => {
                    minutes.truncate(whole((seconds / 60.0).ceil()).unwrap_or(1) as usize);
                }
                Load::Mmpp { seconds: length, .. } => *length = length.min(seconds),
                Load::Times(times) => times.retain(|at| at.secs_f64() < seconds),
                Load::Poisson(_) | Load::Client(_) => {}
            }
        }
    }

    /// The same with `knob` at `value`; nothing if there is no such knob.
    pub(super) fn varied(&self, knob: &str, value: f64) -> Option<Self> {
        let mut scenario = self.clone();
        match knob {
            "slo" => return Some(self.with_slo(value)),
            "gpus" => scenario.spec.cards.count = whole(value)?,
            "cold-start" => scenario.spec.control.cold_start.mean = value,
            "delay" => scenario.spec.control.delay = Nanos::from_secs_f64(value),
            "tick" => scenario.spec.control.tick = Nanos::from_secs_f64(value),
            "rate" => {
                for function in &mut scenario.spec.functions {
                    function.load = scaled(&function.load, value);
                }
            }
            _ => return None,
        }
        Some(scenario)
    }

    /// The same with every objective at so many times what a lone request takes on a whole GPU.
    pub(super) fn with_slo(&self, times: f64) -> Self {
        let mut scenario = self.clone();
        for function in &mut scenario.spec.functions {
            let percentile = function.wish.slo.map_or(0.95, |slo| slo.percentile);
            function.wish.slo = Some(slo_of(function, times, percentile));
        }
        scenario
    }
}

/// The objective at so many times what a lone request takes on a whole GPU.
fn slo_of(function: &FunctionSpec, times: f64, percentile: f64) -> Slo {
    let alone = function.surface.gpu_time(SmShare::WHOLE, 1).secs_f64() + function.cpu.mean;
    Slo { percentile, bound: Nanos::from_secs_f64(times * alone) }
}

/// Traces that are known without a file.
pub(super) fn known_traces() -> Result<Traces, Invalid> {
    Ok(Traces::parse(PUBLISHED)?.with(Traces::shipped()?))
}

/// Latencies that are known without a file.
pub(crate) fn known_surfaces() -> Result<Surfaces, Invalid> {
    Ok(Surfaces::of_profiles(SHIPPED)?.with(Surfaces::parse(HAS_GPU)?).with(Surfaces::parse(BERT_QA)?))
}

impl File {
    fn scenario(&self, name: &str, folder: &Path) -> anyhow::Result<Scenario> {
        let mut surfaces = known_surfaces()?;
        if let Some(path) = self.profiles.as_ref().map(|path| folder.join(path)) {
            let further = Surfaces::parse(&super::load::text(&path)?);
            surfaces = surfaces.with(further.map_err(|error| error.within(&path.display().to_string()))?);
        }
        let mut traces = known_traces()?;
        if let Some(path) = self.traces.as_ref().map(|path| folder.join(path)) {
            let further = Traces::parse(&super::load::text(&path)?);
            traces = traces.with(further.map_err(|error| error.within(&path.display().to_string()))?);
        }
        let memory = self.gpus.memory()?;
        let world = World {
            memory,
            profiles: surfaces.profiles()?,
            surfaces,
            contention: self.gpus.contention,
            neighbours: Neighbours::published()?,
        };
        let mut functions = Vec::new();
        for (index, function) in self.functions.iter().enumerate() {
            let field = format!("functions[{index}]");
            let load = function.load.load(&field, folder, &traces)?;
            functions.push(world.function(&field, function, load)?);
        }
        if let Some(fleet) = &self.fleet {
            fleet.add(&world, folder, &mut functions)?;
        }
        let longest = functions.iter().map(|function| function.load.seconds()).fold(0.0, f64::max);
        let seconds = positive("seconds", self.seconds.unwrap_or_else(|| longest.max(1.0)), 1e9)?;
        let metered = Enforcement::GpuTime {
            window: millis("gpus.window-ms", self.gpus.window_ms, 1e4)?,
            lends: self.gpus.lends,
        };
        let enforcement = self.gpus.enforcement.map(|wanted| match wanted {
            EnforcementFile::LaunchGated => Enforcement::LaunchGated,
            EnforcementFile::GpuTime => metered,
            EnforcementFile::Ideal => Enforcement::Ideal,
        });
        let cards = Cards {
            count: self.gpus.count,
            per_node: self.gpus.per_node,
            memory,
            sharing: self.gpus.sharing,
            enforcement: enforcement.unwrap_or(metered),
        };
        let spec = Spec {
            cards,
            control: self.control.control()?,
            faults: self.faults.faults()?,
            functions,
            seconds,
            seed: 1,
        };
        spec.check()?;
        let World { profiles, surfaces, .. } = world;
        Ok(Scenario {
            name: name.into(),
            about: self.about.clone(),
            spec,
            profiles,
            surfaces,
            enforcement,
            metered,
        })
    }
}

/// What functions are made in.
struct World {
    memory: Bytes,
    surfaces: Surfaces,
    profiles: Profiles,
    contention: bool,
    neighbours: Neighbours,
}

impl World {
    fn function(&self, field: &str, file: &FunctionFile, load: Load) -> Result<FunctionSpec, Invalid> {
        self.made(field, &file.name, &file.model, &file.annotations, (load, file.serving))
    }

    fn made(
        &self,
        field: &str,
        name: &str,
        model: &str,
        annotations: &BTreeMap<String, String>,
        (load, serving): (Load, Serving),
    ) -> Result<FunctionSpec, Invalid> {
        if name.is_empty() {
            return Err(Invalid::new(format!("{field}.name"), name, "a name"));
        }
        let surface = self.surfaces.find(model).map_err(|error| error.within(field))?;
        let mut full: BTreeMap<String, String> =
            annotations.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), value.clone())).collect();
        full.insert("gpufn.dev/model".into(), model.into());
        let wish = Wish::read(&full, self.memory, &self.profiles).map_err(|error| error.within(field))?;
        let missing = || Invalid::new(format!("{field}.annotations"), "no share", "sm, quota or memory");
        Ok(FunctionSpec {
            name: name.into(),
            wish: wish.ok_or_else(missing)?,
            surface,
            contention: if self.contention { self.neighbours.of(model) } else { Contention::default() },
            load,
            cpu: serving.cpu_ms.spread(&format!("{field}.cpu-ms"), 1e-3)?,
            workers: serving.workers,
            limit: serving.limit,
            fill: millis(&format!("{field}.fill-ms"), serving.fill_ms, 1e5)?,
        })
    }
}

impl FleetFile {
    fn add(&self, world: &World, folder: &Path, functions: &mut Vec<FunctionSpec>) -> anyhow::Result<()> {
        if self.models.is_empty() {
            return Err(Invalid::new("fleet.models", "none", "at least one model").into());
        }
        if let Some(times) = self.slo_times.iter().find(|times| !(1.0..=1e4).contains(*times)) {
            return Err(Invalid::new("fleet.slo-times", times, "1 to 10000").into());
        }
        let counts = match COUNTS.iter().find(|(name, _)| *name == self.counts) {
            Some((_, bytes)) => Minutes::parse(&super::load::unpacked(bytes)?)?,
            None => Minutes::read(&folder.join(&self.counts))?,
        };
        for (index, (name, minutes)) in counts.0.into_iter().enumerate() {
            let model = &self.models[index % self.models.len()];
            let load = Load::Minutes(minutes);
            let mut function = world.made("fleet", &name, model, &self.annotations, (load, self.serving))?;
            if !self.slo_times.is_empty() {
                let times = self.slo_times[index % self.slo_times.len()];
                function.wish.slo = Some(slo_of(&function, times, 0.95));
            }
            functions.push(function);
        }
        Ok(())
    }
}

impl GpusFile {
    fn memory(&self) -> Result<Bytes, Invalid> {
        let digits = self.memory.strip_suffix("Gi").and_then(|digits| digits.parse().ok());
        let gib = digits.filter(|gib| (1..=1024).contains(gib));
        gib.map(Bytes::gib).ok_or_else(|| Invalid::new("gpus.memory", &self.memory, "1Gi to 1024Gi"))
    }
}

impl ControlFile {
    fn control(self) -> Result<Control, Invalid> {
        Ok(Control {
            tick: millis("control.tick-ms", positive("control.tick-ms", self.tick_ms, 1e6)?, 1e6)?,
            delay: millis("control.delay-ms", self.delay_ms, 1e6)?,
            cold_start: self.cold_start_s.spread("control.cold-start-s", 1.0)?,
            timeout: Nanos::from_secs_f64(positive("control.timeout-s", self.timeout_s, 1e6)?),
            routing: match self.routing {
                RoutingFile::Least => Routing::Least,
                RoutingFile::Random => Routing::Random,
            },
        })
    }
}

impl FaultsFile {
    fn faults(&self) -> Result<Faults, Invalid> {
        let checked =
            |field: &str, value: Option<f64>| value.map(|value| positive(field, value, 1e12)).transpose();
        let loss = |loss: &LossFile| Ok((within("faults.losses.at-s", loss.at_s, 1e9)?, loss.node));
        Ok(Faults {
            replica_mtbf: checked("faults.replica-mtbf-s", self.replica_mtbf_s)?,
            node_mtbf: checked("faults.node-mtbf-s", self.node_mtbf_s)?,
            repair: positive("faults.repair-s", self.repair_s, 1e9)?,
            losses: self.losses.iter().map(loss).collect::<Result<_, Invalid>>()?,
        })
    }
}

impl SpreadFile {
    /// In seconds, where a unit of the file is `unit` of them.
    fn spread(self, field: &str, unit: f64) -> Result<Spread, Invalid> {
        let mean = within(&format!("{field}.mean"), self.mean, 1e6)?;
        Ok(Spread { mean: mean * unit, cv: within(&format!("{field}.cv"), self.cv, 10.0)? })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked.
fn whole(value: f64) -> Option<u32> {
    (value.fract() == 0.0 && (1.0..=1e6).contains(&value)).then_some(value as u32)
}

fn within(field: &str, value: f64, most: f64) -> Result<f64, Invalid> {
    if (0.0..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Invalid::new(field, value, format!("0 to {most}")))
    }
}

fn positive(field: &str, value: f64, most: f64) -> Result<f64, Invalid> {
    let sound = value > 0.0 && value <= most;
    if sound { Ok(value) } else { Err(Invalid::new(field, value, format!("above 0, at most {most}"))) }
}

fn millis(field: &str, value: f64, most: f64) -> Result<Nanos, Invalid> {
    Ok(Nanos::from_secs_f64(within(field, value, most)? / 1e3))
}

/// The surfaces, for policies that are told latencies at quotas.
pub(super) fn latency_of(surfaces: &Surfaces, gated: bool) -> scaler::policy::LatencyOf {
    let surfaces = surfaces.clone();
    Arc::new(move |model, batch, sm, quota| {
        let surface = surfaces.find(model).ok()?;
        Some(if gated {
            surface.gated(sm, quota, batch)
        } else {
            Nanos::from_secs_f64(surface.gpu_time(sm, batch).secs_f64() / quota.fraction())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: &str = "functions:\n  - name: f\n    model: resnet50\n    annotations: {sm: \"10\", quota: \"20\", memory: 1Gi, \
                            slo: \"p95<100ms\"}\n    load: {trace: has-standard}\n";

    fn read(text: &str) -> anyhow::Result<Scenario> {
        Scenario::read("s.yaml", text, Path::new("."))
    }

    #[test]
    fn the_shipped_scenarios_are_read() {
        for (name, _) in SCENARIOS {
            let scenario = Scenario::open(name).unwrap();
            assert!(!scenario.about.is_empty() && scenario.spec.seconds > 100.0, "{name}");
        }
        assert_eq!(Scenario::open("azure-40").unwrap().spec.functions.len(), 40);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_its_place() {
        let cases = [
            ("gpus: {count: 0}\n", "gpus is \"0\", allowed is 1 to"),
            ("gpus: {memory: 5}\n", "gpus.memory is \"5\", allowed is 1Gi to 1024Gi"),
            ("gpus: {cards: 1}\n", "scenario s.yaml (line 1, column 8) is \"gpus: unknown field `cards`"),
            ("control: {tick-ms: -5}\n", "control.tick-ms is \"-5\", allowed is above 0"),
            ("control: {cold-start-s: {mean: .nan}}\n", "control.cold-start-s.mean is \"NaN\""),
            ("faults: {losses: [{at-s: 5, node: 9}]}\n", "node that is lost is \"9\", allowed is 0 to 3"),
            ("seconds: 0\n", "seconds is \"0\", allowed is above 0"),
        ];
        for (head, message) in cases {
            let error = read(&format!("{head}{FUNCTION}")).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let changes = [
            ("resnet50", "resnet", "functions[0], model is \"resnet\", allowed is one of alexnet"),
            ("sm: \"10\"", "sm: \"0\"", "functions[0], gpufn.dev/sm is \"0\""),
            (
                "p95<100ms",
                "p95<5ms",
                "function f, slo is \"p95<5ms\", allowed is a longer one: cannot be met: fastest is ",
            ),
            ("has-standard", "none", "functions[0], trace is \"none\""),
            ("sm: \"10\", quota: \"20\", memory: 1Gi, ", "", "functions[0].annotations is \"no share\""),
            ("name: f", "name: ''", "functions[0].name is \"\""),
        ];
        for (from, to, message) in changes {
            let error = read(&FUNCTION.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        assert!(read("{}").unwrap_err().to_string().starts_with("functions is \"0\", allowed is 1 to"));
        assert!(
            Scenario::open("none")
                .unwrap_err()
                .to_string()
                .starts_with("scenario is \"none\", allowed is a file, or")
        );
    }

    #[test]
    fn every_error_of_a_scenario_is_bad_usage() {
        for text in ["{}", "gpus: 5", "functions: [{}]"] {
            assert!(read(text).unwrap_err().is::<Invalid>(), "{text}");
        }
    }

    #[test]
    fn objectives_are_multiples_of_a_lone_request_on_a_whole_gpu() {
        let scenario = read(FUNCTION).unwrap();
        let alone = scenario.spec.functions[0].surface.gpu_time(SmShare::WHOLE, 1);
        let bound = scenario.with_slo(3.0).spec.functions[0].wish.slo.unwrap().bound;
        assert!((bound.secs_f64() / alone.secs_f64() - 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_knob_changes_what_it_is_named_for_and_nothing_else() {
        let scenario = read(FUNCTION).unwrap();
        assert_eq!(scenario.varied("gpus", 9.0).unwrap().spec.cards.count, 9);
        assert!(
            (scenario.varied("rate", 2.0).unwrap().spec.functions[0].load.requests() - 5380.0).abs() < 1.0
        );
        assert!(scenario.varied("gpus", 1.5).is_none());
        assert!(scenario.varied("colour", 1.0).is_none());
    }
}
