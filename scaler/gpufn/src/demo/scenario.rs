//! What the demo runs: four functions, the load on each, and the times of its requests.
//!
//! Pure. Both runs of a demo get the same scenario.

use std::time::Duration;

use gpu_share::annotations::{Slo, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::units::Bytes;
use serde::Serialize;

use crate::load::schedule::{Arrivals, schedule};
use crate::load::send::Planned;
use crate::load::trace::Traces;
use crate::load::{merge, seed_of};
use crate::stack::{self, FunctionDeployment};

/// The functions of the demo, as anybody would deploy them.
const STACK: &str = include_str!("../../../../faas-templates/stack.yaml");

/// The load on each function, by name: the trace (`*` is the first one of the file that was
/// given, `has-standard` of those that are shipped) and its transforms.
const LOADS: [(&str, &str); 4] =
    [("resnet50", "*"), ("convnext-base", "*:shift=125"), ("vgg16", "idle-burst"), ("bert", "*:invert")];

/// Length of a second of the trace in the short form of the demo: a step of 5 s lasts 1.5 s.
const SHORT: f64 = 0.3;

/// Memory of the simulated GPU that annotations are read for.
pub(super) const GPU_MEMORY: Bytes = Bytes::gib(16);

/// One function of the demo.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// What is deployed.
    pub deployment: FunctionDeployment,
    /// Its objective.
    pub slo: Slo,
    /// Its load, as trace and transforms.
    pub load: String,
}

impl Function {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.deployment.service
    }
}

/// What both runs do.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// The functions.
    pub functions: Vec<Function>,
    /// The requests by rising time; their target is the index of the function.
    pub requests: Vec<Planned>,
    /// How long the load lasts.
    pub seconds: f64,
    /// How it was made.
    pub made: Made,
}

/// How a scenario was made, for the report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Made {
    /// Length of a second of the trace.
    pub time_scale: f64,
    /// Seed of the arrivals.
    pub seed: u64,
    /// Function and load of it.
    pub loads: Vec<(String, String)>,
}

impl Scenario {
    /// The demo's scenario: `bin` is the folder of the functions' program, `traces` what loads are taken from.
    pub(super) fn new(bin: &str, traces: &Traces, full: bool, seed: u64) -> Result<Self, Invalid> {
        let variable = |name: &str| (name == "GPUFN_BIN").then(|| bin.to_string());
        let no_file = |_: &str| Err(std::io::ErrorKind::NotFound.into());
        let deployments = stack::read(STACK, variable, no_file)?;
        let time_scale = if full { 1.0 } else { SHORT };
        let (mut functions, mut times, mut seconds) = (Vec::new(), Vec::new(), 0.0_f64);
        for (index, (name, load)) in LOADS.into_iter().enumerate() {
            let load = load.replace('*', traces.first());
            let trace = traces.find(&load)?;
            seconds = seconds.max(trace.seconds() * time_scale);
            times.push(schedule(&trace, time_scale, Arrivals::Poisson, seed_of(seed, index)));
            let deployment = deployments.iter().find(|deployment| deployment.service == name);
            functions.push(function(name, deployment, load)?);
        }
        let loads = functions.iter().map(|f| (f.name().to_string(), f.load.clone())).collect();
        Ok(Self { functions, requests: merge(times), seconds, made: Made { time_scale, seed, loads } })
    }

    /// The bound of the function with `index`.
    pub(super) fn bound(&self, index: usize) -> Duration {
        self.functions.get(index).map_or(Duration::MAX, |function| function.slo.bound.into())
    }
}

fn function(name: &str, deployment: Option<&FunctionDeployment>, load: String) -> Result<Function, Invalid> {
    let missing = |what: &str| Invalid::new(format!("function {name}"), "", what);
    let deployment = deployment.ok_or_else(|| missing("an entry in the stack file"))?.clone();
    let wish = Wish::read(&deployment.annotations, GPU_MEMORY, &Profiles::shipped())?;
    let slo = wish.and_then(|wish| wish.slo).ok_or_else(|| missing("a share and an objective"))?;
    Ok(Function { deployment, slo, load })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(full: bool) -> Scenario {
        Scenario::new("/opt/gpufn/bin", &Traces::shipped().unwrap(), full, 1).unwrap()
    }

    #[test]
    fn the_four_functions_fit_side_by_side_on_one_gpu() {
        let scenario = scenario(false);
        let wish = |function: &Function| {
            Wish::read(&function.deployment.annotations, GPU_MEMORY, &Profiles::shipped()).unwrap().unwrap()
        };
        let wishes: Vec<_> = scenario.functions.iter().map(wish).collect();
        assert!(wishes.iter().map(|wish| u32::from(wish.share.sm.percent())).sum::<u32>() <= 100);
        // One more replica of each kind still has its memory.
        let memory: Bytes = wishes.iter().map(|wish| wish.share.memory).sum();
        assert!(memory + memory <= GPU_MEMORY, "{memory}");
        assert!(scenario.functions[0].deployment.image.starts_with("file:///opt/gpufn/bin/"));
    }

    #[test]
    fn the_same_seed_gives_the_same_requests_and_another_one_others() {
        let traces = Traces::shipped().unwrap();
        let requests = |seed| Scenario::new("/b", &traces, false, seed).unwrap().requests;
        assert_eq!(requests(1), requests(1));
        assert_ne!(requests(1), requests(2));
        assert!(requests(1).is_sorted_by_key(|request| request.at));
    }

    #[test]
    fn the_full_form_has_steps_of_five_seconds() {
        assert!((scenario(true).seconds - 250.0).abs() < 1e-6);
        assert!((scenario(false).seconds - 75.0).abs() < 1e-6);
    }

    #[test]
    fn other_traces_of_the_same_form_can_be_tried() {
        let text = "trace,shape,step,start_s,duration_s,rps\nmine,hold,0,0,100,5\n";
        let traces = Traces::shipped().unwrap().with(Traces::parse(text).unwrap());
        let scenario = Scenario::new("/b", &traces, false, 1).unwrap();
        let loads: Vec<_> = scenario.made.loads.iter().map(|(_, load)| load.as_str()).collect();
        assert_eq!(loads, ["mine", "mine:shift=125", "idle-burst", "mine:invert"]);
    }
}
