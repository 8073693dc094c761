//! Nodes that are paid for by the hour: with autoscalers for pods and nodes as in Kubernetes, or a fixed number of them.

use gpu_share::invalid::Invalid;
use serde::Deserialize;

use super::bill::{Bill, Charge, HOUR};
use super::distribution::Distribution;
use super::fleet::Scaling;
use super::latency::{Servers, Service};
use super::prices::{Price, amount, within};
use super::{FINE, Operation, Unfit, Workload, whole};

/// Kubernetes nodes: a horizontal autoscaler of pods by their use of CPU, and one of nodes by what pods request.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // As the file has them.
pub struct Nodes {
    /// Name of the platform.
    pub name: String,
    /// A node, for an hour.
    node_hour: Price,
    /// The cluster itself, for an hour.
    #[serde(default)]
    cluster_hour: Option<Price>,
    /// Cores of a node that pods may have.
    node_vcpu: f64,
    /// Cores that a pod requests.
    pod_vcpu: f64,
    /// Cores that a pod may use.
    pod_limit_vcpu: f64,
    /// Part of its request that a pod should use, by which the autoscaler of pods goes.
    target: f64,
    /// Bounds and delays of the autoscaler of pods.
    pods: Scaling,
    /// Bounds and delays of the autoscaler of nodes.
    nodes: Scaling,
}

impl Nodes {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        hourly(&self.node_hour, self.cluster_hour.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        within("nodeVcpu", self.node_vcpu, 0.1, 1024.0)?;
        within("podVcpu", self.pod_vcpu, 0.001, self.node_vcpu)?;
        within("podLimitVcpu", self.pod_limit_vcpu, self.pod_vcpu, self.node_vcpu)?;
        within("target", self.target, 0.01, 10.0)?;
        self.pods.check().map_err(|error| error.within("pods"))?;
        self.nodes.check().map_err(|error| error.within("nodes"))
    }

    /// What `node_seconds` of nodes cost while the cluster runs for `seconds`.
    pub fn bill(&self, node_seconds: f64, seconds: f64) -> Bill {
        by_the_hour(&self.node_hour, self.cluster_hour.as_ref(), node_seconds, seconds)
    }

    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let cpu = work.cpu.as_ref().ok_or(Unfit::NoCpuTime)?;
        let load = work.load.refined(FINE);
        let of_pod = self.target * self.pod_vcpu;
        let needed: Vec<_> = load.rates().iter().map(|rate| whole(rate * cpu.mean() / of_pod)).collect();
        let pods = self.pods.follow(&needed, load.step());
        let on_node = whole_down(self.node_vcpu / self.pod_vcpu).max(1);
        let needed: Vec<_> = pods.paid.iter().map(|pods| pods.div_ceil(on_node)).collect();
        let nodes = self.nodes.follow(&needed, load.step());
        let serving = pods.serving.iter().zip(&nodes.serving).map(|(&pods, &nodes)| {
            let pods = pods.min(nodes.saturating_mul(on_node));
            let cores =
                (f64::from(pods) * self.pod_limit_vcpu.max(1.0)).min(f64::from(nodes) * self.node_vcpu);
            Servers { count: whole_down(cores).max(pods.min(1)), service: 0 }
        });
        let servers: Vec<_> = serving.collect();
        let node_seconds = load.step() * nodes.paid.iter().map(|&nodes| f64::from(nodes)).sum::<f64>();
        // A pod that may use less than a core takes so much longer.
        let slower = 1.0 / self.pod_limit_vcpu.min(1.0);
        let service = Service {
            held: cpu.mean() * slower,
            held_scv: cpu.scv(),
            takes: cpu.stretched(slower, work.beside),
        };
        Ok(Operation {
            bill: self.bill(node_seconds, load.seconds()),
            runs: runs("nodes", &nodes.paid, 1.0),
            assumptions: vec![format!(
                "{}: pods are added where they use more than {} % of the {} vCPU that they request, nodes where pods \
                 find no room; other work on the nodes is not counted",
                self.name,
                100.0 * self.target,
                self.pod_vcpu
            )],
            load,
            servers,
            services: vec![service],
            cold: (0.0, 0.0),
        })
    }
}

/// A fixed number of nodes, and containers on them that take one request at a time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnNodes {
    /// Name of the platform.
    pub name: String,
    /// A node, for an hour.
    node_hour: Price,
    /// The cluster itself, for an hour.
    #[serde(default)]
    cluster_hour: Option<Price>,
    /// How many nodes.
    nodes: u32,
    /// Nodes of these that run functions.
    workers: u32,
    /// Cores of a node.
    node_vcpu: f64,
    /// Containers that may run at a time on all nodes.
    containers: u32,
    /// What the platform adds to each request, milliseconds.
    overhead_ms: f64,
}

impl OwnNodes {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        hourly(&self.node_hour, self.cluster_hour.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        within("nodes", f64::from(self.nodes), 1.0, 10_000.0)?;
        within("workers", f64::from(self.workers), 1.0, f64::from(self.nodes))?;
        within("nodeVcpu", self.node_vcpu, 0.1, 1024.0)?;
        within("containers", f64::from(self.containers), 1.0, 100_000.0)?;
        amount("overheadMs", self.overhead_ms)
    }

    /// What the nodes cost for `seconds`.
    pub fn bill(&self, seconds: f64) -> Bill {
        by_the_hour(&self.node_hour, self.cluster_hour.as_ref(), f64::from(self.nodes) * seconds, seconds)
    }

    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let cpu = work.cpu.as_ref().ok_or(Unfit::NoCpuTime)?;
        let beside = work.beside + self.overhead_ms / 1e3;
        let cores = whole_down(f64::from(self.workers) * self.node_vcpu).max(1);
        let (count, service) = tighter(self.containers, cores, cpu, beside);
        let load = work.load.refined(FINE);
        Ok(Operation {
            bill: self.bill(load.seconds()),
            runs: format!("{} nodes", self.nodes),
            assumptions: vec![format!(
                "{}: {} containers that are warm and take one request at a time; {} ms of the platform's own",
                self.name, self.containers, self.overhead_ms
            )],
            servers: vec![Servers { count, service: 0 }; load.rates().len()],
            services: vec![service],
            cold: (0.0, 0.0),
            load,
        })
    }
}

/// Of the places that requests hold while they run, and the cores that they hold while they compute: the one that
/// is fuller, as a number of servers and what each request asks of one.
pub(super) fn tighter(places: u32, cores: u32, cpu: &Distribution, beside: f64) -> (u32, Service) {
    let takes = cpu.stretched(1.0, beside);
    if takes.mean() / f64::from(places.max(1)) > cpu.mean() / f64::from(cores.max(1)) {
        (places, Service { held: takes.mean(), held_scv: takes.scv(), takes })
    } else {
        (cores, Service { held: cpu.mean(), held_scv: cpu.scv(), takes })
    }
}

/// What runs, in words: its mean, where any is there for a part `there` of the time, and most.
pub(super) fn runs(what: &str, counts: &[u32], there: f64) -> String {
    let (mean, most) = mean_and_most(counts);
    format!("{:.1} {what}, {most} at most", there * mean)
}

#[allow(clippy::cast_precision_loss)] // Steps of a load.
fn mean_and_most(counts: &[u32]) -> (f64, u32) {
    let sum: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    (sum / counts.len().max(1) as f64, counts.iter().copied().max().unwrap_or(0))
}

pub(super) fn hourly<'a>(node: &'a Price, cluster: Option<&'a Price>) -> Vec<(&'static str, &'a Price)> {
    let cluster = cluster.map(|price| ("clusterHour", price));
    std::iter::once(("nodeHour", node)).chain(cluster).collect()
}

/// What nodes and the cluster cost.
pub(super) fn by_the_hour(node: &Price, cluster: Option<&Price>, node_seconds: f64, seconds: f64) -> Bill {
    let cluster = cluster.map(|price| Charge::new("cluster hours", seconds / HOUR, price.amount));
    let nodes = Charge::new("node hours", node_seconds / HOUR, node.amount);
    Bill { charges: std::iter::once(nodes).chain(cluster).collect() }
}

/// Whole things in `quantity`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate.
pub(super) fn whole_down(quantity: f64) -> u32 {
    (quantity + 1e-9).floor() as u32
}
