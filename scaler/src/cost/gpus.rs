//! GPUs: a whole one for each replica, or shares of them as gpufn hands them out.
//!
//! Replicas and grants are chosen by the scaler's own plan ([`crate::plan`]), at the rate of each step.

use std::collections::{BTreeMap, BTreeSet};

use gpu_share::invalid::Invalid;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use serde::Deserialize;

use super::bill::{Bill, Charge, HOUR};
use super::distribution::Distribution;
use super::fleet::{Fleet, Scaling};
use super::latency::{Servers, Service, place, rate_at};
use super::load::Load;
use super::nodes::{by_the_hour, hourly, runs};
use super::prices::{Price, within};
use super::{FINE, Operation, Unfit, Workload};
use crate::plan::{Load as Demand, Plan, Problem};
use crate::profile::Estimate;
use crate::queueing::Batching;

/// A GPU for each replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // As the file has them.
pub struct Gpus {
    /// Name of the platform.
    pub name: String,
    /// A node with its GPUs, for an hour.
    node_hour: Price,
    /// The cluster itself, for an hour.
    #[serde(default)]
    cluster_hour: Option<Price>,
    gpus_per_node: u32,
    gpu_memory_gib: f64,
    /// Bounds and delays of the autoscaler of replicas.
    scaling: Scaling,
}

impl Gpus {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        hourly(&self.node_hour, self.cluster_hour.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        within("gpusPerNode", f64::from(self.gpus_per_node), 1.0, 64.0)?;
        within("gpuMemoryGib", self.gpu_memory_gib, 1.0, 4096.0)?;
        self.scaling.check()
    }

    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let whole = Whole::of(work, self.gpu_memory_gib)?;
        let load = work.load.refined(FINE);
        let fleet = self.scaling.follow(&whole.needed(&load, self.scaling.most), load.step());
        let nodes = fleet.paid.iter().map(|gpus| f64::from(gpus.div_ceil(self.gpus_per_node)));
        let there = self.scaling.there(&load);
        let node_seconds = there * load.step() * nodes.sum::<f64>();
        Ok(Operation {
            bill: by_the_hour(&self.node_hour, self.cluster_hour.as_ref(), node_seconds, load.seconds()),
            runs: runs("GPUs", &fleet.paid, there),
            assumptions: vec![format!(
                "{}: a replica has a GPU to itself, starts in {} s and is paid for {} s after it is needed",
                self.name, self.scaling.start_seconds, self.scaling.hold_seconds
            )],
            servers: one_each(&fleet.serving),
            services: vec![whole.service()],
            cold: (1.0 - there, self.scaling.start_seconds),
            load,
        })
    }
}

/// Shares of GPUs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shares {
    /// Name of the platform.
    pub name: String,
    /// A node with its GPUs, for an hour.
    node_hour: Price,
    /// The cluster itself, for an hour.
    #[serde(default)]
    cluster_hour: Option<Price>,
    gpus_per_node: u32,
    gpu_memory_gib: f64,
    /// Part of the GPUs that is bound to functions, all together; without it this function is alone and pays for whole
    /// nodes.
    #[serde(default)]
    filled: Option<f64>,
    /// Π, milliseconds.
    window_ms: f64,
    /// Bounds and delays of the number of replicas.
    scaling: Scaling,
}

impl Shares {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        hourly(&self.node_hour, self.cluster_hour.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        within("gpusPerNode", f64::from(self.gpus_per_node), 1.0, 64.0)?;
        within("gpuMemoryGib", self.gpu_memory_gib, 1.0, 4096.0)?;
        within("windowMs", self.window_ms, 1.0, 1000.0)?;
        within("filled", self.filled.unwrap_or(1.0), 0.01, 1.0)?;
        self.scaling.check()
    }

    /// At the SM share, of those whose GPU time is known, that costs least.
    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let gpu = work.gpu.as_ref().ok_or(Unfit::NoGpuTime)?;
        let all = gpu.shares.iter().map(|(&sm, times)| self.at(work, sm, times));
        let mut best: Result<Operation, Unfit> = Err(Unfit::NoGpuTime);
        for operation in all {
            best = match (best, operation) {
                (Ok(best), Ok(other)) if other.bill.cost() < best.bill.cost() => Ok(other),
                (Ok(best), _) => Ok(best),
                (Err(_), other) => other,
            };
        }
        best
    }

    fn at(&self, work: &Workload, sm: SmShare, times: &Distribution) -> Result<Operation, Unfit> {
        let gpu_memory = gib(self.gpu_memory_gib);
        fits(work, gpu_memory)?;
        let share = Share::new(sm, work.quota, work.quota_limit, work.memory).map_err(Unfit::Wrong)?;
        let window = Nanos::from_secs_f64(self.window_ms / 1e3);
        let sizing = Sizing::new(work, times, share, window, gpu_memory)?;
        let load = work.load.refined(FINE);
        let fleet = self.scaling.follow(&sizing.needed(&load, self.scaling.most), load.step());
        let grants = sizing.grants(&load, &fleet);
        let bound = sizing.bound(&load, &fleet, &grants);
        let gpus: f64 = match self.filled {
            Some(filled) => bound.iter().sum::<f64>() / filled,
            None => grants
                .iter()
                .zip(&fleet.paid)
                .map(|(&grant, &paid)| self.alone(share, grant, gpu_memory, paid))
                .sum(),
        };
        let there = self.scaling.there(&load);
        let gpu_seconds = there * gpus * load.step();
        let mean = there * bound.iter().sum::<f64>() * load.step() / load.seconds();
        let quotas: Vec<_> = grants.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let serving = grants.iter().zip(&fleet.serving);
        let servers = serving.map(|(grant, &count)| Servers {
            count,
            service: quotas.binary_search(grant).unwrap_or_default(),
        });
        Ok(Operation {
            bill: self.bill(gpu_seconds, load.seconds()),
            runs: format!("{mean:.2} GPUs bound, {}, SM share {sm}", runs("replicas", &fleet.paid, there)),
            assumptions: vec![self.assumption()],
            servers: servers.collect(),
            services: quotas.iter().map(|&quota| sizing.service(quota)).collect(),
            cold: (1.0 - there, self.scaling.start_seconds),
            load,
        })
    }

    /// GPUs of whole nodes that `replicas` take where no other function is, at a grant of `grant` each.
    ///
    /// On one GPU stand as many rows as SM shares fit, and in each as many as quotas do, as far as memory goes.
    fn alone(&self, share: Share, grant: Quota, gpu_memory: Bytes, replicas: u32) -> f64 {
        let rows = 100 / u32::from(share.sm.percent());
        let members = Quota::WHOLE.ppm() / grant.max(share.floor).ppm().max(1);
        let by_memory = gpu_memory.0 / share.memory.0.max(1);
        let on_gpu = (rows * members).min(u32::try_from(by_memory).unwrap_or(u32::MAX)).max(1);
        let nodes = replicas.div_ceil(on_gpu).div_ceil(self.gpus_per_node);
        f64::from(nodes * self.gpus_per_node)
    }

    fn bill(&self, gpu_seconds: f64, seconds: f64) -> Bill {
        let price = self.node_hour.amount / f64::from(self.gpus_per_node);
        let cluster = self.cluster_hour.as_ref();
        let cluster = cluster.map(|price| Charge::new("cluster hours", seconds / HOUR, price.amount));
        let gpus = Charge::new("GPU hours", gpu_seconds / HOUR, price);
        Bill { charges: std::iter::once(gpus).chain(cluster).collect() }
    }

    fn assumption(&self) -> String {
        let paid = match self.filled {
            Some(filled) => {
                format!("pays for what is bound to it of GPUs that are filled to {} %", 100.0 * filled)
            }
            None => "is alone and pays for whole nodes".to_string(),
        };
        format!(
            "{}: the function {paid}; a request takes at most e/q + 2(1−q)·{} ms, the longest kernel beside it, and its \
             time beside the GPU",
            self.name, self.window_ms
        )
    }
}

/// A server for each of `counts` replicas.
pub(super) fn one_each(counts: &[u32]) -> Vec<Servers> {
    counts.iter().map(|&count| Servers { count, service: 0 }).collect()
}

/// A replica with a GPU to itself.
pub(super) struct Whole<'a> {
    sizing: Sizing<'a>,
    takes: Distribution,
}

impl<'a> Whole<'a> {
    pub(super) fn of(work: &'a Workload, gpu_memory_gib: f64) -> Result<Self, Unfit> {
        let gpu = work.gpu.as_ref().ok_or(Unfit::NoGpuTime)?;
        let memory = gib(gpu_memory_gib);
        fits(work, memory)?;
        let sizing = Sizing::new(work, &gpu.whole, Share::whole_gpu(memory), Nanos::ZERO, memory)?;
        Ok(Self { sizing, takes: gpu.whole.stretched(1.0, work.beside) })
    }

    /// Replicas that each step of `load` needs.
    pub(super) fn needed(&self, load: &Load, most: u32) -> Vec<u32> {
        self.sizing.needed(load, most)
    }

    /// A request alone on a GPU: no quota holds it up, and no other function's kernel.
    pub(super) fn service(&self) -> Service {
        Service { held: self.takes.mean(), held_scv: self.takes.scv(), takes: self.takes.clone() }
    }
}

/// Replicas and grants by the scaler's plan.
struct Sizing<'a> {
    work: &'a Workload,
    times: &'a Distribution,
    estimate: Estimate,
    share: Share,
    window: Nanos,
    gpu_memory: Bytes,
}

impl<'a> Sizing<'a> {
    fn new(
        work: &'a Workload,
        times: &'a Distribution,
        share: Share,
        window: Nanos,
        gpu_memory: Bytes,
    ) -> Result<Self, Unfit> {
        let estimate = estimate(work, times);
        if let Some(slo) = work.slo {
            let fastest = estimate.bound(share.ceiling, window);
            if fastest.is_none_or(|fastest| fastest > slo.bound) {
                return Err(Unfit::TooSlow { slo, fastest: fastest.unwrap_or_default() });
            }
        }
        Ok(Self { work, times, estimate, share, window, gpu_memory })
    }

    fn problem(&self) -> Problem<'_> {
        Problem {
            estimate: &self.estimate,
            share: &self.share,
            slo: self.work.slo,
            window: self.window,
            gpu_memory: self.gpu_memory,
        }
    }

    fn demand(&self, rate: f64) -> Demand<'static> {
        Demand { rate, arrival_scv: self.work.arrival_scv, recent: None }
    }

    /// Replicas that each step of `load` needs: none without requests, at most `most`.
    fn needed(&self, load: &Load, most: u32) -> Vec<u32> {
        let mut known: BTreeMap<i64, u32> = BTreeMap::new();
        let mut of = |rate: f64| {
            if rate <= 0.0 {
                return 0;
            }
            *known.entry(place(rate)).or_insert_with(|| {
                let plan: Option<Plan> =
                    self.problem().cheapest(&[], 1..=most, self.demand(rate_at(place(rate))), None);
                plan.map_or(most, |plan| plan.replicas)
            })
        };
        load.rates().iter().map(|&rate| of(rate)).collect()
    }

    /// The grant of each replica in each step: the smallest that bears the rate, or the ceiling.
    fn grants(&self, load: &Load, fleet: &Fleet) -> Vec<Quota> {
        let mut known: BTreeMap<(i64, u32), Quota> = BTreeMap::new();
        let mut of = |rate: f64, replicas: u32| {
            if rate <= 0.0 {
                return self.share.floor;
            }
            *known.entry((place(rate), replicas)).or_insert_with(|| {
                let caps = self.problem().extended(&[], replicas);
                let level = self.problem().level(&caps, self.demand(rate_at(place(rate))), None);
                level.unwrap_or(self.share.ceiling)
            })
        };
        load.rates().iter().zip(&fleet.serving).map(|(&rate, &replicas)| of(rate, replicas)).collect()
    }

    /// GPUs that are bound in each step: what dominates of each replica's time and memory, and the memory alone of those
    /// that are parked.
    fn bound(&self, load: &Load, fleet: &Fleet, grants: &[Quota]) -> Vec<f64> {
        let steps = load.rates().iter().zip(&fleet.paid).zip(grants);
        let of = |((&rate, &replicas), &grant): ((&f64, &u32), &Quota)| {
            let grant = if rate > 0.0 { grant } else { Quota::ZERO };
            f64::from(replicas) * self.share.dominant_at(grant, self.gpu_memory).gpus()
        };
        steps.map(of).collect()
    }

    /// What a request asks of a replica at `quota`.
    fn service(&self, quota: Quota) -> Service {
        let (part, held) = (quota.fraction().max(1e-6), self.estimate.held(quota));
        // The spread of the work itself, beside that of the window's phase.
        let work = self.times.mean() / part;
        let own = self.times.scv() * work * work / (held * held);
        let nothing = Estimate { gpu: Nanos::ZERO, uncertainty: 0.0, ..self.estimate };
        let more = nothing.bound(quota, self.window).unwrap_or_default().secs_f64();
        Service {
            held,
            held_scv: own + (self.estimate.phase(quota, self.window) / held).powi(2),
            takes: self.times.stretched(1.0 / part, more),
        }
    }
}

/// What the scaler would know of the function after a while: the mean, and how long the objective's percentile takes.
fn estimate(work: &Workload, times: &Distribution) -> Estimate {
    let percentile = work.slo.map_or(0.95, |slo| slo.percentile);
    let over = if times.mean() > 0.0 { times.quantile(percentile) / times.mean() - 1.0 } else { 0.0 };
    Estimate {
        gpu: Nanos::from_secs_f64(times.mean()),
        // A bound is at two standard errors.
        uncertainty: (over / 2.0).max(0.0),
        overhead: Nanos::from_secs_f64(work.beside),
        deviation: Nanos::ZERO,
        batching: Batching::NONE,
    }
}

/// Refuses a function that needs more memory than the GPU has.
fn fits(work: &Workload, gpu_memory: Bytes) -> Result<(), Unfit> {
    if work.memory <= gpu_memory {
        return Ok(());
    }
    Err(Unfit::Wrong(Invalid::new("memory", work.memory, format!("at most the GPU's {gpu_memory}"))))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked to be at most 4096.
fn gib(gib: f64) -> Bytes {
    Bytes((gib * 1_073_741_824.0) as u64)
}
