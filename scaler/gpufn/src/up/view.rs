//! Fills the views that others read: the overview, and what a client is told of a function.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use gpu_share::names::annotation;
use gpu_share::protocol::GpuStatus;
use gpu_share::units::{Area, Bytes};

use super::function::Function;
use super::platform::Platform;
use super::replica::{Lease, Replica};
use crate::view::{FunctionSummary, GpuView, Overview, ReplicaSummary};
use openfaas::shapes::FunctionStatus;

/// Annotation that tells why a function has fewer replicas than wanted.
const PROBLEM: &str = "gpufn.dev/problem";
/// Label by which OpenFaaS' own tests know a function.
const LABEL_FUNCTION: &str = "faas_function";

/// Everything at this moment.
pub(crate) fn overview(platform: &Platform) -> Overview {
    let status = platform.status();
    Overview {
        server: format!("gpufn {}", env!("CARGO_PKG_VERSION")),
        uptime_s: platform.clock.now().secs_f64(),
        policy: platform.policy.lock().name().into(),
        gpus: status.iter().flat_map(|status| &status.gpus).map(gpu).collect(),
        functions: platform.functions().iter().map(|f| summary(platform, f)).collect(),
    }
}

fn gpu(status: &GpuStatus) -> GpuView {
    let bindings = || status.bindings.iter().map(|status| &status.binding);
    let reserved: Area = bindings().map(|binding| binding.cost(status.gpu.memory)).sum();
    let bound: Bytes = bindings().map(|binding| binding.share.memory).sum();
    GpuView {
        uuid: status.gpu.id.to_string(),
        name: status.gpu.name.clone(),
        sharing: Some(status.gpu.sharing),
        health: status.health.clone(),
        memory_bytes: status.gpu.memory.0,
        memory_bound_bytes: bound.0,
        reserved_ratio: reserved.gpus(),
    }
}

fn summary(platform: &Platform, function: &Arc<Function>) -> FunctionSummary {
    let now = platform.clock.now();
    let spec = function.spec();
    let wish = spec.wish.as_ref();
    let totals = function.totals();
    let counters = &function.counters;
    let slo = wish.and_then(|wish| wish.slo);
    let (rate, percentiles) = {
        let traffic = function.traffic();
        (traffic.rate(now), traffic.percentiles(now, slo.map(|slo| slo.percentile)))
    };
    FunctionSummary {
        name: function.id.name.clone(),
        namespace: function.id.namespace.clone(),
        model: wish.and_then(|wish| wish.model.clone()),
        policy: wish.map(|wish| wish.scaling),
        slo: slo.map(|slo| slo.to_string()),
        slo_bound_ms: slo.map(|slo| slo.bound.millis_f64()),
        slo_latency_ms: percentiles.and_then(|p| p.objective),
        replicas_wanted: function.wanted(),
        rate_rps: rate,
        in_flight: counters.in_flight.load(SeqCst),
        held: counters.held.load(SeqCst),
        requests_total: counters.requests.load(Relaxed),
        failed_total: counters.failed.load(Relaxed),
        late_total: counters.late.load(Relaxed),
        p50_ms: percentiles.map(|p| p.p50),
        p95_ms: percentiles.map(|p| p.p95),
        p99_ms: percentiles.map(|p| p.p99),
        reserved_gpu_seconds: totals.reserved,
        used_gpu_seconds: totals.used,
        vertical_changes: counters.vertical.load(Relaxed),
        horizontal_changes: counters.horizontal.load(Relaxed),
        parks: counters.parks.load(Relaxed),
        wakes: counters.wakes.load(Relaxed),
        cold_starts: counters.cold_starts.load(Relaxed),
        problem: function.health().problem.clone(),
        replicas: function.replicas().iter().map(|r| replica(r, spec.generation, platform)).collect(),
    }
}

fn replica(replica: &Replica, generation: u64, platform: &Platform) -> ReplicaSummary {
    let summary = ReplicaSummary {
        instance: replica.instance.to_string(),
        state: replica.phase().as_str().into(),
        outdated: replica.generation != generation,
        watchdog_pid: replica.watchdog.get().copied(),
        port: replica.address.get().map_or(0, std::net::SocketAddr::port),
        in_flight: replica.in_flight(),
        age_s: platform.clock.now().since(replica.born).secs_f64(),
        ..ReplicaSummary::default()
    };
    match replica.lease().as_ref() {
        Some(lease) => with_lease(summary, lease),
        None => summary,
    }
}

fn with_lease(summary: ReplicaSummary, lease: &Lease) -> ReplicaSummary {
    let binding = &lease.binding;
    ReplicaSummary {
        binding: Some(binding.id.to_string()),
        gpu: Some(binding.gpu.to_string()),
        row: Some(binding.row),
        sm_percent: binding.share.sm.percent(),
        floor_percent: binding.share.floor.percent(),
        grant_percent: binding.grant.percent(),
        ceiling_percent: binding.share.ceiling.percent(),
        pid: lease.processes.first().copied(),
        used_seconds: lease.meter.used().secs_f64(),
        memory_used_bytes: lease.memory_used.0,
        memory_limit_bytes: binding.share.memory.0,
        ..summary
    }
}

/// What a client is told of a function.
pub(crate) fn status(function: &Function) -> FunctionStatus {
    let spec = function.spec();
    let deployment = spec.deployment.clone();
    let mut annotations = deployment.annotations;
    let leases: Vec<_> = function.replicas().iter().filter_map(|replica| replica.lease().clone()).collect();
    if !leases.is_empty() {
        let joined = |text: fn(&Lease) -> String| leases.iter().map(text).collect::<Vec<_>>().join(",");
        annotations
            .insert(annotation::GRANT.into(), joined(|lease| format!("{}", lease.binding.grant.percent())));
        annotations.insert(annotation::GPU.into(), joined(|lease| lease.binding.gpu.to_string()));
    }
    if let Some(problem) = function.health().problem.clone() {
        annotations.insert(PROBLEM.into(), problem);
    }
    let mut labels = deployment.labels;
    labels.entry(LABEL_FUNCTION.into()).or_insert_with(|| function.id.name.clone());
    FunctionStatus {
        name: deployment.service,
        image: deployment.image,
        namespace: deployment.namespace,
        env_process: deployment.env_process,
        env_vars: deployment.env_vars,
        constraints: deployment.constraints,
        secrets: deployment.secrets,
        labels,
        annotations,
        limits: deployment.limits,
        requests: deployment.requests,
        read_only_root_filesystem: deployment.read_only_root_filesystem,
        invocation_count: function.counters.requests.load(Relaxed),
        replicas: function.wanted(),
        available_replicas: function.available(),
        created_at: spec.created_at.clone(),
        usage: None,
    }
}
