//! What the web page shows, as JSON: `GET /v1/overview`, as far as the scaler knows it.
//!
//! Names and units are those of `gpufn up`, which knows more; what is not known here is left out.

use std::collections::BTreeMap;

use gpu_share::annotations::{Scaling, Wish};
use gpu_share::units::{Area, Bytes};
use serde::Serialize;

use super::fleet::{Pod, PodName, Shown};

/// Everything at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Overview {
    /// Program and version.
    pub(super) server: String,
    /// Seconds since the scaler started.
    pub(super) uptime_s: f64,
    pub(super) gpus: Vec<GpuView>,
    /// In the order of their names.
    pub(super) functions: Vec<FunctionSummary>,
}

/// A GPU on which some replica is.
#[derive(Debug, Default, Serialize)]
pub(super) struct GpuView {
    uuid: String,
    node: Option<String>,
    memory_bytes: u64,
    memory_bound_bytes: u64,
    /// The sum of the replicas' dominant shares.
    reserved_ratio: f64,
}

/// One function.
#[derive(Debug, Serialize)]
pub(super) struct FunctionSummary {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) model: Option<String>,
    pub(super) policy: Option<Scaling>,
    pub(super) slo: Option<String>,
    pub(super) slo_bound_ms: Option<f64>,
    pub(super) replicas_wanted: u32,
    /// Replicas that are needed by what KEDA was told last.
    pub(super) replicas_needed: Option<f64>,
    pub(super) rate_rps: f64,
    /// The rate to be ready for when a replica that is started now serves.
    pub(super) forecast_rps: f64,
    pub(super) in_flight: f64,
    pub(super) held: u32,
    /// Why its need can't be told, if it can't.
    pub(super) problem: Option<String>,
    pub(super) replicas: Vec<ReplicaSummary>,
}

/// One replica.
#[derive(Debug, Serialize)]
pub(super) struct ReplicaSummary {
    instance: String,
    /// `starting`, `ready`, `parked` or `draining`.
    state: &'static str,
    node: Option<String>,
    gpu: Option<String>,
    #[serde(flatten)]
    share: Option<ShareView>,
}

/// The share of a replica.
#[derive(Debug, Serialize)]
struct ShareView {
    sm_percent: u8,
    floor_percent: f64,
    grant_percent: Option<f64>,
    ceiling_percent: f64,
    memory_limit_bytes: u64,
    #[serde(skip)]
    cost: Area,
}

impl ReplicaSummary {
    /// A pod of a function that asks for `wish`, on GPUs with `gpu_memory`.
    pub(super) fn of(name: &PodName, pod: &Pod, wish: Option<&Wish>, gpu_memory: Bytes) -> Self {
        let Shown { node, gpu, grant } = pod.shown.clone();
        let state = match (pod.is_ending, pod.ready_at) {
            (true, _) => "draining",
            (false, None) => "starting",
            (false, Some(_)) if grant.is_some_and(gpu_share::units::Quota::is_zero) => "parked",
            (false, Some(_)) => "ready",
        };
        let share = wish.map(|wish| ShareView {
            sm_percent: wish.share.sm.percent(),
            floor_percent: wish.share.floor.percent(),
            grant_percent: grant.map(gpu_share::units::Quota::percent),
            ceiling_percent: wish.share.ceiling.percent(),
            memory_limit_bytes: wish.share.memory.0,
            cost: wish.share.dominant_at(grant.unwrap_or(wish.share.floor), gpu_memory),
        });
        Self { instance: name.name.clone(), state, node, gpu, share }
    }
}

/// The GPUs that replicas are on, by node and name.
pub(super) fn gpus(functions: &[FunctionSummary], gpu_memory: Bytes) -> Vec<GpuView> {
    let mut gpus: BTreeMap<(Option<&str>, &str), (Area, u64)> = BTreeMap::new();
    for replica in functions.iter().flat_map(|function| &function.replicas) {
        let (Some(gpu), Some(share)) = (&replica.gpu, &replica.share) else { continue };
        let (reserved, bound) = gpus.entry((replica.node.as_deref(), gpu)).or_default();
        *reserved = [*reserved, share.cost].into_iter().sum();
        *bound += share.memory_limit_bytes;
    }
    let view = |((node, uuid), (reserved, bound)): ((Option<&str>, &str), (Area, u64))| GpuView {
        uuid: uuid.into(),
        node: node.map(str::to_string),
        memory_bytes: gpu_memory.0,
        memory_bound_bytes: bound,
        reserved_ratio: reserved.gpus(),
    };
    gpus.into_iter().map(view).collect()
}
