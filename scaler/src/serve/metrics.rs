//! Metrics of the scaler, all of them here, in a registry of their own. Owns names, labels and units.

use prometheus::core::{Collector, GenericCounterVec, GenericGaugeVec};
use prometheus::{
    HistogramOpts, HistogramTimer, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The metrics and their registry.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    calls: HistogramVec,
    errors: IntCounterVec,
    streams: IntGaugeVec,
    reads: HistogramVec,
    failures: IntCounterVec,
    functions: IntGaugeVec,
    api_server: IntGaugeVec,
    leader: IntGaugeVec,
    decisions: IntCounterVec,
    control: HistogramVec,
    writes: HistogramVec,
}

/// An open stream, counted until dropped.
#[derive(Debug)]
pub(super) struct Open(prometheus::IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All metrics, registered.
    pub(super) fn new() -> prometheus::Result<Self> {
        let r = Registry::new();
        // 10 µs to 0.3 s, and 1 ms to 4 s.
        let brief = prometheus::exponential_buckets(1e-5, 2.0, 16)?;
        let long = prometheus::exponential_buckets(1e-3, 2.0, 13)?;
        let calls = HistogramOpts::new("gpufn_scaler_call_seconds", "Time until a call of KEDA is answered");
        let reads = HistogramOpts::new("gpufn_scaler_read_seconds", "Time until the source of load was read");
        let control = HistogramOpts::new(
            "gpufn_scaler_control_seconds",
            "Time that each part of a control period takes",
        );
        let writes =
            HistogramOpts::new("gpufn_scaler_write_seconds", "Time until the API server has taken a change");
        Ok(Self {
            leader: gauge(&r, "gpufn_scaler_leader", "1 while this scaler leads", &[])?,
            decisions: counter(
                &r,
                "gpufn_scaler_decisions_total",
                "Changes that were decided, by what became of them",
                &["action", "outcome"],
            )?,
            control: registered(&r, HistogramVec::new(control.buckets(long.clone()), &["part"])?)?,
            writes: registered(&r, HistogramVec::new(writes.buckets(long.clone()), &[])?)?,
            calls: registered(&r, HistogramVec::new(calls.buckets(brief), &["call"])?)?,
            errors: counter(
                &r,
                "gpufn_scaler_call_errors_total",
                "Calls of KEDA answered by an error",
                &["call", "code"],
            )?,
            streams: gauge(&r, "gpufn_scaler_streams", "Streams that KEDA has open", &["call"])?,
            reads: registered(&r, HistogramVec::new(reads.buckets(long), &[])?)?,
            failures: counter(
                &r,
                "gpufn_scaler_read_failures_total",
                "Times that the source could not be read",
                &[],
            )?,
            functions: gauge(
                &r,
                "gpufn_scaler_functions",
                "Functions, by whether their need can be told",
                &["state"],
            )?,
            api_server: gauge(
                &r,
                "gpufn_scaler_api_server_up",
                "1 while the API server shows objects of a kind",
                &["kind"],
            )?,
            registry: r,
        })
    }

    /// Measures a call until the timer is dropped.
    pub(super) fn call(&self, call: &str) -> HistogramTimer {
        self.calls.with_label_values(&[call]).start_timer()
    }

    /// A call was answered by an error.
    pub(super) fn call_failed(&self, call: &str, code: tonic::Code) {
        self.errors.with_label_values(&[call, &format!("{code:?}")]).inc();
    }

    /// A stream is open.
    pub(super) fn stream(&self, call: &str) -> Open {
        let gauge = self.streams.with_label_values(&[call]);
        gauge.inc();
        Open(gauge)
    }

    /// Measures a reading until the timer is dropped.
    pub(super) fn reads(&self) -> HistogramTimer {
        self.reads.with_label_values::<&str>(&[]).start_timer()
    }

    /// The source could not be read.
    pub(super) fn read_failed(&self) {
        self.failures.with_label_values::<&str>(&[]).inc();
    }

    /// Whether the API server shows objects of a kind.
    pub(super) fn api_server_shows(&self, kind: &str, is_up: bool) {
        self.api_server.with_label_values(&[kind]).set(is_up.into());
    }

    /// Whether this scaler leads.
    pub(super) fn leads(&self, leads: bool) {
        self.leader.with_label_values::<&str>(&[]).set(leads.into());
    }

    /// A change was decided.
    pub(super) fn decided(&self, action: &str, outcome: &str) {
        self.decisions.with_label_values(&[action, outcome]).inc();
    }

    /// Measures a part of a control period until the timer is dropped.
    pub(super) fn control(&self, part: &str) -> HistogramTimer {
        self.control.with_label_values(&[part]).start_timer()
    }

    /// Measures a write until the timer is dropped.
    pub(super) fn writes(&self) -> HistogramTimer {
        self.writes.with_label_values::<&str>(&[]).start_timer()
    }

    /// All of them in the text format, where of `all` functions `known` can be told of.
    pub(super) fn text(&self, all: usize, known: usize) -> prometheus::Result<String> {
        let set = |state: &str, count: usize| {
            self.functions.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("known", known);
        set("unknown", all.saturating_sub(known));
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A gauge, registered.
pub(crate) fn gauge<P>(
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

/// A counter, registered.
pub(crate) fn counter<P>(
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

/// A metric, once the registry has it.
pub(crate) fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_readme_lists_exactly_the_metrics_that_are_exported() {
        let metrics = Metrics::new().unwrap();
        drop(metrics.call("GetMetrics"));
        metrics.call_failed("GetMetrics", tonic::Code::Unavailable);
        drop((metrics.stream("StreamIsActive"), metrics.reads()));
        metrics.read_failed();
        metrics.api_server_shows("pods", true);
        metrics.leads(true);
        metrics.decided("raise", "done");
        drop((metrics.control("read"), metrics.writes()));
        let text = metrics.text(3, 2).unwrap();
        let exported: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.replace(' ', " | "))
            .collect();
        let (readme, _) = include_str!("../../README.md").split_once("# The admission webhook").unwrap();
        let listed: BTreeSet<_> = readme
            .lines()
            .filter_map(|line| line.strip_prefix("| `gpufn_scaler_"))
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                format!("gpufn_scaler_{} | {}", cells[0].trim_end_matches('`'), cells[1])
            })
            .collect();
        assert_eq!(listed, exported);
    }
}
