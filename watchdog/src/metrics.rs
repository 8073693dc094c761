//! The watchdog's metrics under of-watchdog's names, and the share's. Owns the registry; who serves it is `server`.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::gpu::{self, GpuShare};
use crate::limiter::Limiter;

/// Label of a request whose client went away before its answer was complete.
const ABORTED: &str = "499";

/// Why there are no metrics.
pub(crate) type MetricsError = prometheus::Error;

/// All metrics of a watchdog.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    in_flight: IntGauge,
    /// Those of status 200 by the method's place in [`METHODS`], once there are any: nearly all requests end so, and to
    /// look two series up takes longer than to count.
    good: [OnceLock<(IntCounter, Histogram)>; METHODS.len()],
    gpu: Option<GpuMetrics>,
    /// Only where requests may wait.
    queue: OnceLock<QueueMetrics>,
}

impl Metrics {
    /// Registers them; those of the share only where there is one.
    pub(crate) fn new(share: Option<GpuShare>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let labels = &["code", "method"];
        let requests =
            Opts::new("http_requests_total", "Requests answered by the function, by status and method.");
        let requests = IntCounterVec::new(requests, labels)?;
        let durations = HistogramOpts::new(
            "http_request_duration_seconds",
            "Time from a request's head to the end of its answer, by status and method.",
        );
        let durations = HistogramVec::new(durations, labels)?;
        let in_flight = IntGauge::new("http_requests_in_flight", "Requests being answered now.")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        let gpu = share.map(|share| GpuMetrics::new(share, &registry)).transpose()?;
        let good = Default::default();
        Ok(Self { registry, requests, durations, in_flight, good, gpu, queue: OnceLock::new() })
    }

    /// From now on the queue in front of `limiter` is shown, if it has one.
    pub(crate) fn watch_queue(&self, limiter: &Arc<Limiter>) -> Result<(), MetricsError> {
        if limiter.has_queue() {
            // Whoever asks twice has the same queue.
            let _ = self.queue.set(QueueMetrics::new(Arc::clone(limiter), &self.registry)?);
        }
        Ok(())
    }

    /// A request has begun.
    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// A request has ended: with `status`, or without its client (`None`).
    pub(crate) fn end(&self, method: &Method, status: Option<StatusCode>, took: Duration) {
        self.in_flight.dec();
        let place = place(method);
        let series = || {
            let labels = [status.as_ref().map_or(ABORTED, StatusCode::as_str), METHODS[place].1];
            (self.requests.with_label_values(&labels), self.durations.with_label_values(&labels))
        };
        let count = |(requests, durations): &(IntCounter, Histogram)| {
            requests.inc();
            durations.observe(took.as_secs_f64());
        };
        if status == Some(StatusCode::OK) {
            count(self.good[place].get_or_init(series));
        } else {
            count(&series());
        }
    }

    /// All of them in the text format.
    pub(crate) fn text(&self) -> Result<String, MetricsError> {
        if let Some(queue) = self.queue.get() {
            queue.refresh();
        }
        match &self.gpu {
            Some(gpu) => gpu.refreshed(|| self.encoded()),
            None => self.encoded(),
        }
    }

    fn encoded(&self) -> Result<String, MetricsError> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Methods and their labels; one label, the last, for all that a client may invent, or it could fill the memory with
/// series.
const METHODS: [(&str, &str); 11] = [
    ("GET", "get"),
    ("POST", "post"),
    ("PUT", "put"),
    ("HEAD", "head"),
    ("DELETE", "delete"),
    ("CONNECT", "connect"),
    ("OPTIONS", "options"),
    ("NOTIFY", "notify"),
    ("TRACE", "trace"),
    ("PATCH", "patch"),
    ("", "unknown"),
];

/// The method's place in [`METHODS`].
fn place(method: &Method) -> usize {
    METHODS.iter().position(|(name, _)| *name == method.as_str()).unwrap_or(METHODS.len() - 1)
}

/// The queue in front of the function.
#[derive(Debug)]
struct QueueMetrics {
    limiter: Arc<Limiter>,
    length: IntGauge,
    age: Gauge,
}

impl QueueMetrics {
    fn new(limiter: Arc<Limiter>, registry: &Registry) -> Result<Self, MetricsError> {
        let length = IntGauge::new("gpufn_function_queue_length", "Requests that wait for a slot.")?;
        let age = Gauge::new("gpufn_function_queue_age_seconds", "Time that the oldest of them has waited.")?;
        registry.register(Box::new(length.clone()))?;
        registry.register(Box::new(age.clone()))?;
        Ok(Self { limiter, length, age })
    }

    fn refresh(&self) {
        let backlog = self.limiter.backlog();
        self.length.set(i64::try_from(backlog.length).unwrap_or(i64::MAX));
        self.age.set(backlog.age.as_secs_f64());
    }
}

/// What the page says of the share.
#[derive(Debug)]
struct GpuMetrics {
    share: GpuShare,
    /// Held while the values are replaced and read, so that no reader sees a counter that was just set to zero.
    refreshing: Mutex<()>,
    floor: Gauge,
    grant: Gauge,
    ceiling: Gauge,
    used: Counter,
    throttled: Counter,
    memory: Gauge,
    memory_limit: Gauge,
    agent_up: Gauge,
}

impl GpuMetrics {
    fn new(share: GpuShare, registry: &Registry) -> Result<Self, MetricsError> {
        let gauge = |name: &str, help: &str| -> Result<Gauge, MetricsError> {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> Result<Counter, MetricsError> {
            let counter = Counter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        Ok(Self {
            share,
            refreshing: Mutex::new(()),
            floor: gauge("gpufn_function_quota_floor_ratio", "Part of the GPU's time that is guaranteed.")?,
            grant: gauge(
                "gpufn_function_quota_grant_ratio",
                "Part of the GPU's time that it has now, 0 while parked.",
            )?,
            ceiling: gauge(
                "gpufn_function_quota_ceiling_ratio",
                "Part of the GPU's time that it can get at most.",
            )?,
            used: counter("gpufn_function_gpu_used_seconds_total", "GPU time used.")?,
            throttled: counter(
                "gpufn_function_gpu_throttled_seconds_total",
                "Time waited for the right to run.",
            )?,
            memory: gauge("gpufn_function_gpu_memory_bytes", "GPU memory held.")?,
            memory_limit: gauge("gpufn_function_gpu_memory_limit_bytes", "GPU memory that may be held.")?,
            agent_up: gauge(
                "gpufn_function_node_agent_up",
                "1 if the node agent showed life within 2 s, else 0.",
            )?,
        })
    }

    /// Takes the page's values over, then calls `read`.
    fn refreshed<T>(&self, read: impl FnOnce() -> T) -> T {
        let _refreshing = self.refreshing.lock();
        if let Some(page) = self.share.snapshot() {
            self.floor.set(page.limits.floor.fraction());
            self.grant.set(page.limits.grant.fraction());
            self.ceiling.set(page.limits.ceiling.fraction());
            replace(&self.used, page.counters.used.secs_f64());
            replace(&self.throttled, page.counters.throttled.secs_f64());
            self.memory.set(bytes(page.counters.memory.0));
            self.memory_limit.set(bytes(page.limits.memory.0));
            self.agent_up.set(if gpu::is_agent_up(&page, gpu::monotonic_now()) { 1.0 } else { 0.0 });
        } else {
            self.agent_up.set(0.0);
        }
        read()
    }
}

/// The agent counts; here its count is shown.
fn replace(counter: &Counter, value: f64) {
    counter.reset();
    counter.inc_by(value);
}

#[allow(clippy::cast_precision_loss)] // Exact to 8 PiB.
fn bytes(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_appear_after_the_first_request_with_the_buckets_of_of_watchdog() {
        let metrics = Metrics::new(None).unwrap();
        assert!(!metrics.text().unwrap().contains("http_requests_total{"));
        metrics.begin();
        assert!(metrics.text().unwrap().contains("http_requests_in_flight 1\n"));
        metrics.end(&Method::from_bytes(b"WEIRD").unwrap(), Some(StatusCode::OK), Duration::from_millis(7));
        metrics.begin();
        metrics.end(&Method::GET, None, Duration::from_secs(20));
        let text = metrics.text().unwrap();
        for line in [
            "http_requests_total{code=\"200\",method=\"unknown\"} 1\n",
            "http_requests_total{code=\"499\",method=\"get\"} 1\n",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"unknown\",le=\"0.005\"} 0\n",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"unknown\",le=\"0.01\"} 1\n",
            "http_request_duration_seconds_bucket{code=\"499\",method=\"get\",le=\"10\"} 0\n",
            "http_requests_in_flight 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
