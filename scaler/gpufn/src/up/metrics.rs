//! Every metric of `up`, in one place. Names of the OpenFaaS gateway where it has one, `gpufn_up_…` elsewhere.

use gpu_share::units::Nanos;
use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{
    Counter, CounterVec, Encoder as _, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use super::platform::Platform;
use super::view;
use crate::view::{FunctionSummary, Overview};

/// Label of all metrics about one function.
const FUNCTION: &str = "function_name";

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    invocations: IntCounterVec,
    started: IntCounterVec,
    seconds: HistogramVec,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    restarts: IntCounterVec,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let metric = HistogramVec::new(HistogramOpts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        Ok(Self {
            invocations: counter(
                "gateway_function_invocation_total",
                "Requests that ended",
                &[FUNCTION, "code"],
            )?,
            started: counter("gateway_function_invocation_started", "Requests that came", &[FUNCTION])?,
            seconds: histogram(
                "gateway_functions_seconds",
                "Time from arrival to the last byte",
                &[FUNCTION, "code"],
            )?,
            requests: counter("provider_http_requests_total", "API requests", &["code", "method", "path"])?,
            request_seconds: histogram(
                "provider_http_request_duration_seconds",
                "Time to answer API requests",
                &["code", "method", "path"],
            )?,
            restarts: counter(
                "gpufn_up_child_restarts_total",
                "Times a supervised process was started again",
                &["child"],
            )?,
            registry,
        })
    }

    pub(crate) fn started(&self, function: &str) {
        self.started.with_label_values(&[function]).inc();
    }

    pub(crate) fn finished(&self, function: &str, code: &str, latency: Nanos) {
        self.invocations.with_label_values(&[function, code]).inc();
        self.seconds.with_label_values(&[function, code]).observe(latency.secs_f64());
    }

    pub(crate) fn answered(&self, code: &str, method: &str, path: &str, latency: Nanos) {
        let labels = [code, method, path];
        self.requests.with_label_values(&labels).inc();
        self.request_seconds.with_label_values(&labels).observe(latency.secs_f64());
    }

    pub(crate) fn restarted(&self, child: &str) {
        self.restarts.with_label_values(&[child]).inc();
    }

    /// Drops the series of a function that is no more.
    pub(crate) fn forget(&self, function: &str) {
        let _ = self.started.remove_label_values(&[function]);
        for family in self.invocations.collect() {
            for metric in family.get_metric() {
                let label =
                    |name: &str| metric.get_label().iter().find(|l| l.name() == name).map(LabelPair::value);
                if let (Some(name), Some(code)) = (label(FUNCTION), label("code"))
                    && name == function
                {
                    let _ = self.invocations.remove_label_values(&[name, code]);
                    let _ = self.seconds.remove_label_values(&[name, code]);
                }
            }
        }
    }
}

/// Everything in Prometheus' text format: what was counted, and how things are now.
pub(crate) fn render(platform: &Platform) -> Result<String, prometheus::Error> {
    let mut families = platform.metrics.registry.gather();
    families.extend(present(&view::overview(platform))?);
    // A family without a series is an error to the encoder.
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// A metric of one function, read from its summary.
type Reading = (&'static str, &'static str, fn(&FunctionSummary) -> f64);

#[allow(clippy::cast_precision_loss)] // Counts below 2^53.
const GAUGES: [Reading; 3] = [
    ("gpufn_up_held_requests", "Requests that wait for a replica", |f| f64::from(f.held)),
    ("gpufn_up_in_flight_requests", "Requests at replicas", |f| f64::from(f.in_flight)),
    ("gateway_service_count", "Replicas", |f| f.replicas.len() as f64),
];

#[allow(clippy::cast_precision_loss)] // Counts below 2^53.
const COUNTERS: [Reading; 9] = [
    ("gpufn_up_failed_requests_total", "Requests answered with 500 or more, or not at all", |f| {
        f.failed_total as f64
    }),
    ("gpufn_up_late_requests_total", "Requests later than the objective", |f| f.late_total as f64),
    ("gpufn_up_gpu_reserved_seconds_total", "GPU-seconds kept from others", |f| f.reserved_gpu_seconds),
    ("gpufn_up_gpu_used_seconds_total", "GPU-seconds of work", |f| f.used_gpu_seconds),
    ("gpufn_up_vertical_changes_total", "Quota changes of running replicas", |f| f.vertical_changes as f64),
    ("gpufn_up_horizontal_changes_total", "Changes of the wanted replicas", |f| f.horizontal_changes as f64),
    ("gpufn_up_parks_total", "Replicas parked", |f| f.parks as f64),
    ("gpufn_up_wakes_total", "Parked replicas woken", |f| f.wakes as f64),
    ("gpufn_up_cold_starts_total", "Replicas started beyond those of deployments", |f| f.cold_starts as f64),
];

/// How things are now, as families that live for one scrape.
fn present(overview: &Overview) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let mut families = Vec::new();
    let label = |function: &FunctionSummary| format!("{}.{}", function.name, function.namespace);
    for (name, help, read) in GAUGES {
        let gauge = GaugeVec::new(Opts::new(name, help), &[FUNCTION])?;
        for function in &overview.functions {
            gauge.with_label_values(&[label(function)]).set(read(function));
        }
        families.extend(gauge.collect());
    }
    for (name, help, read) in COUNTERS {
        let counter = CounterVec::new(Opts::new(name, help), &[FUNCTION])?;
        for function in &overview.functions {
            let one: Counter = counter.with_label_values(&[label(function)]);
            one.inc_by(read(function).max(0.0));
        }
        families.extend(counter.collect());
    }
    let grants =
        GaugeVec::new(Opts::new("gpufn_up_grant_ratio", "Quota of a replica now"), &[FUNCTION, "instance"])?;
    for function in &overview.functions {
        for replica in function.replicas.iter().filter(|replica| replica.binding.is_some()) {
            let labels = [label(function), replica.instance.clone()];
            grants.with_label_values(&labels).set(replica.grant_percent / 100.0);
        }
    }
    families.extend(grants.collect());
    let reserved =
        GaugeVec::new(Opts::new("gpufn_up_gpu_reserved_ratio", "Part of a GPU that is reserved"), &["gpu"])?;
    for gpu in &overview.gpus {
        reserved.with_label_values(&[&gpu.uuid]).set(gpu.reserved_ratio);
    }
    families.extend(reserved.collect());
    Ok(families)
}

/// Names of all metrics, for the test that compares them with the README.
#[cfg(test)]
pub(crate) fn names() -> Vec<String> {
    let fixed = [
        "gateway_function_invocation_total",
        "gateway_function_invocation_started",
        "gateway_functions_seconds",
        "provider_http_requests_total",
        "provider_http_request_duration_seconds",
        "gpufn_up_child_restarts_total",
    ];
    let metrics = Metrics::new().unwrap();
    metrics.started("f.n");
    metrics.finished("f.n", "200", Nanos(1));
    metrics.answered("200", "GET", "/", Nanos(1));
    metrics.restarted("c");
    let counted: Vec<_> = metrics.registry.gather().iter().map(|family| family.name().to_string()).collect();
    assert!(fixed.iter().all(|name| counted.iter().any(|counted| counted == name)));
    let replica = crate::view::ReplicaSummary { binding: Some("b".into()), ..Default::default() };
    let function = FunctionSummary { replicas: vec![replica], ..Default::default() };
    let gpu = crate::view::GpuView::default();
    let overview = Overview { functions: vec![function], gpus: vec![gpu], ..Default::default() };
    let now = present(&overview).unwrap();
    counted.into_iter().chain(now.iter().map(|family| family.name().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_exactly_the_metrics_that_are_exported() {
        let readme = include_str!("../../README.md");
        let table = readme.split("## Metrics").nth(1).unwrap();
        let mut listed: Vec<_> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(str::to_string)
            .collect();
        let mut exported = names();
        listed.sort();
        exported.sort();
        assert_eq!(listed, exported);
    }

    #[test]
    fn a_function_that_is_removed_leaves_no_series() {
        let metrics = Metrics::new().unwrap();
        metrics.started("f.n");
        metrics.finished("f.n", "200", Nanos(1));
        metrics.finished("g.n", "200", Nanos(1));
        metrics.forget("f.n");
        let left: usize = metrics.registry.gather().iter().map(|family| family.get_metric().len()).sum();
        assert_eq!(left, 2);
    }
}
