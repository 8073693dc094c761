//! The run on one GPU, simulated: the same functions, profiles and requests under the same policy.
//!
//! Pure. What the simulator says is held against what was measured, for whoever wants to know how far to trust it.

use faas_sim::arrivals::Load;
use faas_sim::cluster::Cluster;
use faas_sim::gpu::{Contention, Enforcement};
use faas_sim::random::Spread;
use faas_sim::report::Report;
use faas_sim::spec::{Cards, Control, Faults, FunctionSpec, Routing, Spec};
use faas_sim::surface::Surfaces;
use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::ledger::Sharing;
use gpu_share::quota::WINDOW;
use gpu_share::units::Nanos;

use super::scenario::{Function, GPU_MEMORY, Scenario};
use crate::sim::known_surfaces;

/// How `gpufn up` decides: every 200 ms, and what it sees and does takes some milliseconds on one machine.
const TICK: Nanos = Nanos::from_millis(200);
const DELAY: Nanos = Nanos::from_millis(5);
/// Seconds that a process of the demo's program takes to be ready, and a request beside its GPU time: gateway, watchdog and
/// function.
const COLD_START: Spread = Spread { mean: 0.3, cv: 0.1 };
const BESIDE: Spread = Spread { mean: 0.002, cv: 0.3 };
/// Longest wait for an answer.
const TIMEOUT: Nanos = Nanos::from_secs(10);

/// What the simulator says that `scenario` comes to on `gpus` GPUs under the policy called `policy`.
pub(super) fn simulate(scenario: &Scenario, policy: &str, gpus: u32) -> Result<Report, Invalid> {
    let surfaces = known_surfaces()?;
    let functions = scenario.functions.iter().enumerate();
    let functions = functions.map(|(index, function)| spec_of(scenario, index, function, &surfaces));
    let spec = Spec {
        cards: Cards {
            count: gpus,
            per_node: gpus,
            memory: GPU_MEMORY,
            sharing: Sharing::Mps,
            enforcement: Enforcement::GpuTime { window: WINDOW, lends: true },
        },
        control: Control {
            tick: TICK,
            delay: DELAY,
            cold_start: COLD_START,
            timeout: TIMEOUT,
            routing: Routing::Least,
        },
        faults: Faults::default(),
        functions: functions.collect::<Result<_, _>>()?,
        seconds: scenario.seconds,
        seed: scenario.made.seed,
    };
    let policy = scaler::policy::by_name(policy, Profiles::shipped())?;
    Ok(Cluster::new(&spec, policy)?.run())
}

fn spec_of(
    scenario: &Scenario,
    index: usize,
    function: &Function,
    surfaces: &Surfaces,
) -> Result<FunctionSpec, Invalid> {
    let wish = Wish::read(&function.deployment.annotations, GPU_MEMORY, &Profiles::shipped())?;
    let missing = || Invalid::new(format!("function {}", function.name()), "", "a share and a model");
    let wish = wish.ok_or_else(missing)?;
    let requests = scenario.requests.iter().filter(|request| request.target == index);
    Ok(FunctionSpec {
        name: function.name().into(),
        surface: surfaces.find(wish.model.as_deref().unwrap_or_default())?,
        wish,
        // Neighbours cost nothing on a simulated GPU.
        contention: Contention::default(),
        load: Load::Times(requests.map(|request| request.at.into()).collect()),
        cpu: BESIDE,
        workers: 0,
        limit: 0,
        fill: Nanos::ZERO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::trace::Traces;

    #[test]
    fn the_simulated_run_has_the_requests_of_the_demo_and_ends_the_same_each_time() {
        let scenario = Scenario::new("/b", &Traces::shipped().unwrap(), false, 1).unwrap();
        let report = simulate(&scenario, "gpufn", 1).unwrap();
        let names: Vec<_> = report.functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["resnet50", "convnext-base", "vgg16", "bert"]);
        let total = report.total();
        assert_eq!((total.arrived, total.failed), (scenario.requests.len() as u64, 0));
        assert!(total.grants >= 20 && total.used > 1.0 && total.reserved > total.used);
        // As text: a moment without answers has no percentile, and what is no number equals nothing.
        let again = simulate(&scenario, "gpufn", 1).unwrap();
        assert!(format!("{again:?}") == format!("{report:?}"), "the second run ended differently");
        assert!(simulate(&scenario, "magic", 1).is_err());
    }
}
