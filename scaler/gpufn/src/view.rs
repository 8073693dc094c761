//! What `gpufn up` tells others about itself, as JSON: `GET /v1/overview` and `GET /v1/decisions?after=SEQ`.
//!
//! Only the shapes; `up` fills them, `top`, `demo` and the web page read them. The scaler tells a part of the same.

use gpu_share::annotations::Scaling;
use gpu_share::ledger::Sharing;
use gpu_share::protocol::Health;
use serde::{Deserialize, Serialize};

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Who tells this: program and version.
    #[serde(default)]
    pub server: String,
    /// Seconds since `up` started.
    pub uptime_s: f64,
    /// The scaling policy.
    pub policy: String,
    /// The GPUs.
    pub gpus: Vec<GpuView>,
    /// The functions, by name.
    pub functions: Vec<FunctionSummary>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuView {
    /// Its UUID.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Whether processes run beside each other on it.
    #[serde(default)]
    pub sharing: Option<Sharing>,
    /// Whether it can be trusted.
    #[serde(default)]
    pub health: Health,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Memory bound to functions, bytes.
    pub memory_bound_bytes: u64,
    /// Part of the GPU that is reserved now: the sum of the bindings' dominant shares.
    pub reserved_ratio: f64,
}

/// One function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionSummary {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Name of its profile.
    pub model: Option<String>,
    /// Which scaling it allows, if it has a share.
    #[serde(default)]
    pub policy: Option<Scaling>,
    /// Its objective, as written.
    pub slo: Option<String>,
    /// Longest latency that keeps the objective, ms.
    #[serde(default)]
    pub slo_bound_ms: Option<f64>,
    /// Latency of the last 10 s at the objective's percentile, ms.
    #[serde(default)]
    pub slo_latency_ms: Option<f64>,
    /// Replicas that there should be.
    #[serde(default)]
    pub replicas_wanted: u32,
    /// Requests per second over the last two seconds.
    pub rate_rps: f64,
    /// Requests at its replicas.
    pub in_flight: u32,
    /// Requests held until a replica is ready.
    pub held: u32,
    /// Requests so far.
    pub requests_total: u64,
    /// Of these, answered with a status of 500 or more, or not at all.
    pub failed_total: u64,
    /// Of these, later than the objective allows (failed ones included).
    pub late_total: u64,
    /// Median latency of the last 10 s, ms, as the gateway saw it.
    pub p50_ms: Option<f64>,
    /// 95th percentile of the last 10 s, ms.
    pub p95_ms: Option<f64>,
    /// 99th percentile of the last 10 s, ms.
    pub p99_ms: Option<f64>,
    /// GPU-seconds that its replicas kept from others so far: per moment the larger of memory share, SM share times
    /// grant, and SM share times GPU time really used.
    pub reserved_gpu_seconds: f64,
    /// GPU-seconds of work so far: SM share times GPU time used.
    pub used_gpu_seconds: f64,
    /// Times a replica's quota was changed while it ran.
    pub vertical_changes: u64,
    /// Times the wanted number of replicas changed.
    pub horizontal_changes: u64,
    /// Times a replica was parked.
    pub parks: u64,
    /// Times a parked replica was woken.
    pub wakes: u64,
    /// Replicas started while requests could have used them (all but those of the deployment itself).
    pub cold_starts: u64,
    /// Why it has fewer replicas than wanted, if it does: no room on a GPU, or replicas that die young.
    #[serde(default)]
    pub problem: Option<String>,
    /// Its replicas, oldest first.
    pub replicas: Vec<ReplicaSummary>,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSummary {
    /// Its name.
    pub instance: String,
    /// `starting`, `ready`, `parked` or `draining`.
    pub state: String,
    /// It is of an earlier deployment, and goes when one of the present deployment is ready.
    #[serde(default)]
    pub outdated: bool,
    /// Its binding, if it has a share.
    pub binding: Option<String>,
    /// UUID of its GPU.
    pub gpu: Option<String>,
    /// Row of the GPU that it runs in.
    pub row: Option<u32>,
    /// SM share, percent.
    pub sm_percent: u8,
    /// Quota floor, percent.
    pub floor_percent: f64,
    /// Quota now, percent.
    pub grant_percent: f64,
    /// Quota ceiling, percent.
    pub ceiling_percent: f64,
    /// Its watchdog's process.
    pub watchdog_pid: Option<u32>,
    /// The function's own process, as it attached to its binding.
    pub pid: Option<u32>,
    /// Port of its watchdog.
    pub port: u16,
    /// GPU time used so far, seconds.
    pub used_seconds: f64,
    /// GPU memory held, bytes.
    pub memory_used_bytes: u64,
    /// GPU memory that it may hold, bytes.
    pub memory_limit_bytes: u64,
    /// Requests at this replica.
    pub in_flight: u32,
    /// Seconds since it started.
    pub age_s: f64,
}

/// One thing that was done to a function, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Number, rising by one.
    pub seq: u64,
    /// Seconds since `up` started.
    pub at_s: f64,
    /// The function.
    pub function: String,
    /// The replica, where it is about one.
    pub instance: Option<String>,
    /// `grant`, `withdraw`, `park`, `wake`, `scale`, `start`, `stop` or `died`.
    pub action: String,
    /// Quota percent or replica count before.
    pub from: Option<f64>,
    /// Quota percent or replica count after.
    pub to: Option<f64>,
    /// Why, in one line.
    pub reason: String,
}
