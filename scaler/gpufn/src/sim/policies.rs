//! The policies that are compared, by name, with what each is told.

use std::collections::HashMap;
use std::sync::Arc;

use faas_sim::arrivals::Intensity;
use gpu_share::invalid::Invalid;
use gpu_share::units::Nanos;
use scaler::policy::{FastGshare, Faults, Future, HasGpu, Oracle, Policy, by_name};

use super::scenario::{Scenario, latency_of};

/// Names of all policies, in the order in which they are shown.
pub(super) const NAMES: [&str; 9] =
    ["gpufn", "oracle", "has-gpu", "has-gpu-fixed", "fast-gshare", "themis", "kserve", "knative-kpa", "hpa"];

/// Whether the system that a policy is of gates launches, as the hook of HAS-GPU and FaST-GShare does.
pub(super) fn is_launch_gated(name: &str) -> bool {
    matches!(name, "has-gpu" | "fast-gshare")
}

/// Whether a policy's rule does not know objectives: then its runs are the same whatever the objective is.
pub(super) fn is_blind_to_objectives(name: &str) -> bool {
    matches!(name, "has-gpu" | "has-gpu-fixed" | "kserve" | "knative-kpa" | "hpa")
}

/// The policy called `name` for a run of `scenario` with `seed`.
pub(super) fn policy(name: &str, scenario: &Scenario, seed: u64) -> Result<Box<dyn Policy>, Invalid> {
    let gpus = scenario.spec.cards.count;
    let latency = || latency_of(&scenario.surfaces, is_launch_gated(name));
    match name {
        "has-gpu" => Ok(Box::new(HasGpu::new(Faults::ALL, gpus, latency()))),
        "has-gpu-fixed" => Ok(Box::new(HasGpu::new(Faults::NONE, gpus, latency()))),
        "fast-gshare" => Ok(Box::new(FastGshare::new(gpus, latency()))),
        "oracle" => Ok(Box::new(Oracle::new(scenario.profiles.clone(), future(scenario, seed)))),
        _ if NAMES.contains(&name) => by_name(name, scenario.profiles.clone()),
        _ => Err(Invalid::new("policy", name, format!("one of {}", NAMES.join(", ")))),
    }
}

/// The rates that a run will have.
fn future(scenario: &Scenario, seed: u64) -> Future {
    let functions = scenario.spec.functions.iter().zip(0..);
    let rates: HashMap<String, Intensity> =
        functions.map(|(f, index)| (f.name.clone(), Intensity::of(&f.load, seed, index))).collect();
    Arc::new(move |name: &str, from: Nanos, to: Nanos| {
        rates.get(name).map_or(0.0, |rates| rates.most(from, to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_are_blind_to_objectives_run_the_same_under_any() {
        let mut scenario = Scenario::open("has-standard").unwrap();
        scenario.spec.seconds = 20.0;
        for name in NAMES.into_iter().filter(|name| is_blind_to_objectives(name)) {
            let run = |times| {
                let scenario = scenario.with_slo(times);
                let spec = scenario.under(is_launch_gated(name), 1);
                let mut cluster =
                    faas_sim::cluster::Cluster::new(&spec, policy(name, &scenario, 1).unwrap()).unwrap();
                cluster.advance(Nanos::from_secs(60));
                let total = cluster.finish().total();
                (total.latency, total.reserved.to_bits())
            };
            assert_eq!(run(1.5), run(5.0), "{name}");
        }
    }

    #[test]
    fn every_policy_is_found_by_its_name_and_runs() {
        let mut scenario = Scenario::open("has-standard").unwrap();
        scenario.spec.seconds = 20.0;
        for name in NAMES {
            assert_eq!(policy(name, &scenario, 1).unwrap().name(), name);
            let spec = scenario.under(is_launch_gated(name), 1);
            let mut cluster =
                faas_sim::cluster::Cluster::new(&spec, policy(name, &scenario, 1).unwrap()).unwrap();
            cluster.advance(Nanos::from_secs(60));
            let total = cluster.finish().total();
            assert!(total.finished > 200, "{name}: {} of {}", total.finished, total.arrived);
        }
        let error = policy("magic", &scenario, 1).err().unwrap().to_string();
        assert!(error.starts_with("policy is \"magic\", allowed is one of gpufn, oracle"), "{error}");
    }
}
