//! Writes into each `GPUFunctionProfile` what the functions that name it have, so that `kubectl get` tells it.
//!
//! Only the scaler that leads, only what has changed, and that at most every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::board::{Board, Model};
use super::control::Shared;
use super::fleet::{FIELD_MANAGER, FunctionName};
use super::lead::Leadership;
use crate::control::standing::Standing;
use crate::kind::{Condition, FunctionStatus, GPUFunctionProfile, GrantStatus, Status};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Longest time for one write.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who writes them.
pub(super) struct Statuses {
    pub(super) client: Client,
    pub(super) leadership: Arc<Leadership>,
    pub(super) board: Arc<Board>,
    pub(super) shared: Arc<Shared>,
}

impl Statuses {
    /// Writes them while this scaler leads, until dropped.
    pub(super) async fn run(self) {
        let mut written: HashMap<FunctionName, Status> = HashMap::new();
        loop {
            tokio::time::sleep(EVERY).await;
            if !self.leadership.is_ours() {
                written.clear();
                continue;
            }
            let models = self.board.models();
            written.retain(|name, _| models.contains_key(name));
            let named = self.board.named_models();
            for (name, model) in &models {
                let functions = named
                    .iter()
                    .filter(|(function, named)| function.namespace == name.namespace && *named == name.name);
                let standings = functions.filter_map(|(function, _)| {
                    Some((function.name.clone(), self.shared.standing(&function.to_string())?))
                });
                let status = status(model, &standings.collect::<Vec<_>>());
                let is_same = written.get(name).is_some_and(|before| is_same(before, &status));
                if !is_same && self.leadership.is_ours() && self.write(name, &status).await {
                    written.insert(name.clone(), status);
                }
            }
        }
    }

    /// Whether it was written.
    async fn write(&self, name: &FunctionName, status: &Status) -> bool {
        let profiles = Api::<GPUFunctionProfile>::namespaced(self.client.clone(), &name.namespace);
        let patch = Patch::Merge(json!({"status": status}));
        let how = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let written = tokio::time::timeout(PATIENCE, profiles.patch_status(&name.name, &how, &patch)).await;
        match written {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(profile = %name, %error, "a status is not written");
                false
            }
            Err(_) => false,
        }
    }
}

/// The same, whenever its conditions came to be.
fn is_same(before: &Status, now: &Status) -> bool {
    let timeless = |status: &Status| {
        let mut status = status.clone();
        status.conditions.iter_mut().for_each(|condition| condition.last_transition_time.clear());
        status
    };
    timeless(before) == timeless(now)
}

/// The status of a profile that these functions name.
fn status(model: &Model, functions: &[(String, Standing)]) -> Status {
    let tenth = |number: f64| (number * 10.0).round() / 10.0;
    let all = || functions.iter().map(|(_, standing)| standing);
    let grants = || all().flat_map(|standing| &standing.grants).map(|(_, percent)| *percent);
    let ready: usize = all().map(|standing| standing.ready).sum();
    let (least, most) = (grants().fold(f64::INFINITY, f64::min), grants().fold(0.0, f64::max));
    let quota = match grants().count() {
        0 => String::new(),
        _ if least.round() >= most.round() => format!("{most:.0} %"),
        _ => format!("{least:.0} to {most:.0} %"),
    };
    let (late, ended) = all().fold((0.0, 0.0), |sum, one| (sum.0 + one.late, sum.1 + one.ended));
    let slo = all().find_map(|standing| standing.slo.clone()).or_else(|| model.slo.clone());
    let accepted = model.times.as_ref().map(drop);
    Status {
        observed_generation: model.generation,
        ready: format!("{ready}/{}", grants().count()),
        replicas: u32::try_from(grants().count()).unwrap_or(u32::MAX),
        quota,
        rate: format!("{:.1}/s", all().map(|standing| standing.rate).sum::<f64>()),
        late: if slo.is_some() && ended >= 1.0 {
            format!("{:.1} %", 100.0 * late / ended)
        } else {
            String::new()
        },
        slo: slo.unwrap_or_default(),
        functions: functions
            .iter()
            .map(|(name, standing)| FunctionStatus {
                name: name.clone(),
                rate: tenth(standing.rate),
                forecast: tenth(standing.forecast),
                planned_quota: standing.planned.map(tenth),
                grants: standing
                    .grants
                    .iter()
                    .map(|(pod, percent)| GrantStatus { pod: pod.clone(), quota: tenth(*percent) })
                    .collect(),
            })
            .collect(),
        conditions: vec![Condition {
            type_: "Accepted".into(),
            status: if accepted.is_ok() { "True" } else { "False" }.into(),
            reason: if accepted.is_ok() { "Read" } else { "Invalid" }.into(),
            message: accepted.err().map(ToString::to_string).unwrap_or_default(),
            last_transition_time: Timestamp::now().to_string(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::invalid::Invalid;
    use gpu_share::latency::Profiles;

    use super::*;

    fn model() -> Model {
        Model { generation: 2, times: Ok(("fn/m@2".into(), Profiles::default())), slo: Some("p95<1s".into()) }
    }

    fn standing(percents: &[f64]) -> Standing {
        let grants =
            percents.iter().enumerate().map(|(place, percent)| (format!("f-{place}"), *percent)).collect();
        let (rate, forecast, planned) = (4.04, 6.0, Some(40.0));
        Standing { ready: 1, rate, forecast, planned, late: 1.0, ended: 50.0, slo: None, grants }
    }

    #[test]
    fn the_columns_tell_what_all_functions_of_a_profile_have() {
        let status =
            status(&model(), &[("a".into(), standing(&[20.0, 60.0])), ("b".into(), standing(&[40.0]))]);
        assert_eq!((status.ready.as_str(), status.replicas), ("2/3", 3));
        assert_eq!((status.quota.as_str(), status.rate.as_str()), ("20 to 60 %", "8.1/s"));
        assert_eq!((status.late.as_str(), status.slo.as_str()), ("2.0 %", "p95<1s"));
        assert_eq!(status.conditions[0].status, "True");
        assert_eq!(super::status(&model(), &[]).ready, "0/0");
    }

    #[test]
    fn a_profile_that_can_t_be_read_says_why_and_its_time_is_no_change() {
        let wrong = Model { times: Err(Invalid::new("spec.model", "x", "y")), ..model() };
        let (first, mut second) = (status(&wrong, &[]), status(&wrong, &[]));
        assert_eq!(first.conditions[0].message, "spec.model is \"x\", allowed is y");
        second.conditions[0].last_transition_time = "later".into();
        assert!(is_same(&first, &second) && !is_same(&first, &status(&model(), &[])));
    }
}
