//! Metrics of the node agent, all of them here and in `front_end`, in a registry of their own.
//!
//! Owns names, labels and units. Figures come from an observation when somebody asks; only latencies are counted as
//! they happen. Never reads state itself.

use std::sync::{Mutex, PoisonError};

use gpu_share::binding::GpuId;
use gpu_share::protocol::{BindingStatus, GpuStatus};
use gpu_share::units::Nanos;
use prometheus::core::{Collector, GenericCounterVec, GenericGaugeVec};
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::owner::Observation;

use front_end::FrontEnd;

pub(crate) mod front_end;

const GPU: [&str; 1] = ["gpu"];
const BINDING: [&str; 5] = ["gpu", "binding", "namespace", "function", "instance"];

/// The metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Figures are replaced for every answer, so answers are made one at a time.
    rendering: Mutex<()>,
    bindings: IntGaugeVec,
    gpu_memory: IntGaugeVec,
    free_units: IntGaugeVec,
    largest_fit: IntGaugeVec,
    healthy: IntGaugeVec,
    xids: IntCounterVec,
    nvml_up: IntGaugeVec,
    holds: IntCounterVec,
    revocations: IntCounterVec,
    overdue: IntCounterVec,
    overrun: CounterVec,
    floor: GaugeVec,
    grant: GaugeVec,
    ceiling: GaugeVec,
    used: CounterVec,
    throttled: CounterVec,
    launches: IntCounterVec,
    unknown: IntCounterVec,
    faults: IntCounterVec,
    memory: IntGaugeVec,
    memory_limit: IntGaugeVec,
    processes: IntGaugeVec,
    mps_up: IntGaugeVec,
    /// From a line's arrival until its consequences are in the pages.
    pub(crate) decision: Histogram,
    /// What the front end for the kubelet does.
    pub(crate) front_end: FrontEnd,
}

impl Metrics {
    /// All metrics, registered.
    pub fn new() -> prometheus::Result<Self> {
        let r = Registry::new();
        // 10 µs to 0.16 s.
        let buckets = prometheus::exponential_buckets(1e-5, 2.0, 15)?;
        let decision = HistogramOpts::new(
            "gpufn_node_decision_seconds",
            "Time from a container's message until its consequences are in the pages",
        );
        Ok(Self {
            bindings: gauge(&r, "gpufn_node_bindings", "Bindings on a GPU", &GPU)?,
            gpu_memory: gauge(&r, "gpufn_node_gpu_memory_bytes", "Memory of a GPU", &GPU)?,
            free_units: gauge(&r, "gpufn_node_free_units", "Units that no floor and no grant covers", &GPU)?,
            largest_fit: gauge(
                &r,
                "gpufn_node_largest_fit_units",
                "The most units that one new binding could have",
                &GPU,
            )?,
            healthy: gauge(&r, "gpufn_node_gpu_healthy", "1 while a GPU takes new bindings", &GPU)?,
            xids: counter(&r, "gpufn_node_xids_total", "Xids that the driver reported", &["gpu", "xid"])?,
            nvml_up: gauge(&r, "gpufn_node_nvml_up", "1 while GPUs can be asked how they are", &[])?,
            holds: counter(&r, "gpufn_node_holds_total", "Times that the right to run was given", &GPU)?,
            revocations: counter(
                &r,
                "gpufn_node_revocations_total",
                "Times that the right to run was revoked",
                &GPU,
            )?,
            overdue: counter(
                &r,
                "gpufn_node_overdue_total",
                "Revoked rights that were not given back in time",
                &GPU,
            )?,
            overrun: counter(
                &r,
                "gpufn_node_overrun_seconds_total",
                "Time from revocations to yields",
                &GPU,
            )?,
            floor: gauge(&r, "gpufn_node_floor_ratio", "Guaranteed part of the GPU's time", &BINDING)?,
            grant: gauge(
                &r,
                "gpufn_node_grant_ratio",
                "Part of the GPU's time granted now, 0 while parked",
                &BINDING,
            )?,
            ceiling: gauge(&r, "gpufn_node_ceiling_ratio", "Largest part of the GPU's time", &BINDING)?,
            used: counter(&r, "gpufn_node_used_seconds_total", "GPU time used", &BINDING)?,
            throttled: counter(
                &r,
                "gpufn_node_throttled_seconds_total",
                "Time waited for the right to run",
                &BINDING,
            )?,
            launches: counter(&r, "gpufn_node_launches_total", "GPU work launched", &BINDING)?,
            unknown: counter(
                &r,
                "gpufn_node_unknown_calls_total",
                "Ways to the GPU handed out that the hook does not know, and contexts beyond the SM share",
                &BINDING,
            )?,
            faults: counter(&r, "gpufn_node_faults_total", "Xids that were traced to a binding", &BINDING)?,
            memory: gauge(&r, "gpufn_node_memory_bytes", "GPU memory held", &BINDING)?,
            memory_limit: gauge(
                &r,
                "gpufn_node_memory_limit_bytes",
                "GPU memory that may be held",
                &BINDING,
            )?,
            processes: gauge(&r, "gpufn_node_processes", "Processes attached", &BINDING)?,
            mps_up: gauge(
                &r,
                "gpufn_node_mps_up",
                "1 while the multi-process service that the agent keeps is usable",
                &[],
            )?,
            decision: registered(&r, Histogram::with_opts(decision.buckets(buckets))?)?,
            front_end: FrontEnd::new(&r)?,
            registry: r,
            rendering: Mutex::new(()),
        })
    }

    /// All metrics in the text format, with the figures of `observation`.
    pub fn render(&self, observation: &Observation) -> prometheus::Result<String> {
        let _rendering = self.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget();
        self.nvml_up.with_label_values::<&str>(&[]).set(observation.status.blind.is_none().into());
        for gpu in &observation.status.gpus {
            self.set_gpu(gpu, observation);
            for binding in &gpu.bindings {
                self.set_binding(binding);
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Notes how the multi-process service is; there is no such figure where the agent keeps none.
    pub(crate) fn mps_is_up(&self, up: bool) {
        self.mps_up.with_label_values::<&str>(&[]).set(up.into());
    }

    /// Counts an Xid.
    pub(crate) fn count_xid(&self, gpu: &GpuId, xid: u64) {
        self.xids.with_label_values(&[gpu.0.as_str(), &xid.to_string()]).inc();
    }

    /// Released bindings leave no series behind.
    fn forget(&self) {
        let Self { floor, grant, ceiling, memory, memory_limit, processes, bindings, .. } = self;
        [floor, grant, ceiling].into_iter().for_each(GaugeVec::reset);
        let of_gpus = [bindings, &self.gpu_memory, &self.free_units, &self.largest_fit, &self.healthy];
        [memory, memory_limit, processes].into_iter().chain(of_gpus).for_each(IntGaugeVec::reset);
        [&self.used, &self.throttled, &self.overrun].into_iter().for_each(CounterVec::reset);
        [&self.launches, &self.unknown, &self.faults, &self.holds, &self.revocations, &self.overdue]
            .into_iter()
            .for_each(IntCounterVec::reset);
    }

    fn set_gpu(&self, gpu: &GpuStatus, observation: &Observation) {
        let labels = [gpu.gpu.id.0.as_str()];
        let tally = observation.tallies.get(&gpu.gpu.id).copied().unwrap_or_default();
        self.bindings.with_label_values(&labels).set(signed(gpu.bindings.len() as u64));
        self.gpu_memory.with_label_values(&labels).set(signed(gpu.gpu.memory.0));
        self.free_units.with_label_values(&labels).set(gpu.free_units.0.into());
        self.largest_fit.with_label_values(&labels).set(gpu.largest_fit.0.into());
        self.healthy.with_label_values(&labels).set(gpu.health.takes_bindings().into());
        self.holds.with_label_values(&labels).inc_by(tally.holds);
        self.revocations.with_label_values(&labels).inc_by(tally.revocations);
        self.overdue.with_label_values(&labels).inc_by(tally.overdue);
        self.overrun.with_label_values(&labels).inc_by(tally.overrun.secs_f64());
    }

    fn set_binding(&self, status: &BindingStatus) {
        let binding = &status.binding;
        let (owner, share) = (&binding.owner, &binding.share);
        let labels = [
            binding.gpu.0.as_str(),
            binding.id.as_str(),
            owner.namespace.as_str(),
            owner.function.as_str(),
            owner.instance.as_str(),
        ];
        self.floor.with_label_values(&labels).set(share.floor.fraction());
        self.grant.with_label_values(&labels).set(binding.grant.fraction());
        self.ceiling.with_label_values(&labels).set(share.ceiling.fraction());
        self.used.with_label_values(&labels).inc_by(Nanos::secs_f64(status.used));
        self.throttled.with_label_values(&labels).inc_by(Nanos::secs_f64(status.throttled));
        self.launches.with_label_values(&labels).inc_by(status.launches);
        self.unknown.with_label_values(&labels).inc_by(status.unknown);
        self.faults.with_label_values(&labels).inc_by(status.faults);
        self.memory.with_label_values(&labels).set(signed(status.memory_used.0));
        self.memory_limit.with_label_values(&labels).set(signed(share.memory.0));
        self.processes.with_label_values(&labels).set(signed(status.processes.len() as u64));
    }
}

fn gauge<P>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GenericGaugeVec<P>>
where
    P: prometheus::core::Atomic + 'static,
{
    registered(registry, GenericGaugeVec::new(Opts::new(name, help), labels)?)
}

fn counter<P>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GenericCounterVec<P>>
where
    P: prometheus::core::Atomic + 'static,
{
    registered(registry, GenericCounterVec::new(Opts::new(name, help), labels)?)
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// The library's integers are signed.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use gpu_share::binding::Owner;
    use gpu_share::ledger::{Gpu, Sharing};
    use gpu_share::protocol::Bind;
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Units};

    use super::front_end::Call;
    use super::*;
    use crate::arbiter::Rules;
    use crate::node::{GpuOffer, Node};
    use crate::refused::Refused;

    fn observation() -> Observation {
        let gpu = Gpu {
            id: GpuId("GPU-1".into()),
            index: 0,
            name: "simulated".into(),
            memory: Bytes::gib(16),
            sharing: Sharing::Exclusive,
        };
        let mut node = Node::new([gpu], Units::PER_GPU, Rules::default());
        let bind = Bind { owner: Owner::default(), share: Share::whole_gpu(Bytes::gib(1)) };
        node.bind("b-1".to_string().try_into().unwrap(), bind, Nanos::ZERO).unwrap();
        Observation {
            status: node.status("0", 1),
            tallies: BTreeMap::from([(GpuId("GPU-1".into()), crate::arbiter::Tally::default())]),
        }
    }

    #[test]
    fn the_readme_lists_exactly_the_metrics_that_are_exported() {
        let metrics = Metrics::new().unwrap();
        metrics.mps_is_up(true);
        metrics.count_xid(&GpuId("GPU-1".into()), 31);
        let front_end = &metrics.front_end;
        drop(front_end.call(Call::Allocate));
        front_end.refused(Call::Allocate, &Refused::NoRoom(String::new()));
        front_end.registered();
        let units = gpu_share::ledger::Offer::default();
        front_end.offer(&[GpuOffer { gpu: GpuId("GPU-1".into()), units, largest: Units(0) }]);
        front_end.claims(1);
        front_end.event("GpuUnhealthy");
        let text = metrics.render(&observation()).unwrap();
        let exported: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.replace(' ', " | "))
            .collect();
        let listed: BTreeSet<_> = include_str!("../README.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `gpufn_node_"))
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                format!("gpufn_node_{} | {}", cells[0].trim_end_matches('`'), cells[1])
            })
            .collect();
        assert_eq!(listed, exported);
    }

    #[test]
    fn a_released_binding_leaves_no_series_behind() {
        let (metrics, mut observation) = (Metrics::new().unwrap(), observation());
        assert!(metrics.render(&observation).unwrap().contains("binding=\"b-1\""));
        observation.status.gpus[0].bindings.clear();
        assert!(!metrics.render(&observation).unwrap().contains("b-1"));
    }
}
