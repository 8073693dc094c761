//! Metrics of the provider, all of them here, in a registry of their own. API requests and, where it stands in for a gateway,
//! requests to functions have the names that OpenFaaS gives them; behind a gateway that counts them, they are not counted twice.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder};

use super::Role;
use super::functions::Functions;
use crate::serve::metrics::{counter, gauge, registered};

/// Label of all metrics about one function.
const FUNCTION: &str = "function_name";

/// The metrics and their registry.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    invocations: Option<Invocations>,
    replicas: IntGaugeVec,
    held: IntGaugeVec,
    wakes: IntCounterVec,
    api_server: IntGaugeVec,
}

/// Requests to functions, as a gateway counts them.
#[derive(Debug)]
struct Invocations {
    started: IntCounterVec,
    total: IntCounterVec,
    seconds: HistogramVec,
}

impl Metrics {
    /// All metrics of a role, registered.
    pub(super) fn new(role: Role) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = &registry;
        let invocations = match role {
            Role::Provider => None,
            Role::Gateway => Some(Invocations {
                started: counter(
                    r,
                    "gateway_function_invocation_started",
                    "Requests that came",
                    &[FUNCTION],
                )?,
                total: counter(
                    r,
                    "gateway_function_invocation_total",
                    "Requests that ended",
                    &[FUNCTION, "code"],
                )?,
                seconds: histogram(
                    r,
                    "gateway_functions_seconds",
                    "Time from arrival to the last byte",
                    &[FUNCTION, "code"],
                )?,
            }),
        };
        let api = ["code", "method", "path"];
        Ok(Self {
            requests: counter(r, "provider_http_requests_total", "API requests", &api)?,
            request_seconds: histogram(
                r,
                "provider_http_request_duration_seconds",
                "Time to answer API requests",
                &api,
            )?,
            invocations,
            replicas: gauge(r, "gpufn_scaler_provider_replicas", "Replicas that are wanted", &[FUNCTION])?,
            held: gauge(
                r,
                "gpufn_scaler_provider_held_requests",
                "Requests that wait for a replica",
                &[FUNCTION],
            )?,
            wakes: counter(
                r,
                "gpufn_scaler_provider_wakes_total",
                "Times that a first replica was asked for",
                &[FUNCTION],
            )?,
            api_server: gauge(
                r,
                "gpufn_scaler_provider_api_server_up",
                "1 while the API server shows objects of a kind",
                &["kind"],
            )?,
            registry,
        })
    }

    /// An API request was answered.
    pub(super) fn answered(&self, code: &str, method: &str, path: &str, took: Duration) {
        self.requests.with_label_values(&[code, method, path]).inc();
        self.request_seconds.with_label_values(&[code, method, path]).observe(took.as_secs_f64());
    }

    /// A request to a function came.
    pub(super) fn started(&self, function: &str) {
        if let Some(invocations) = &self.invocations {
            invocations.started.with_label_values(&[function]).inc();
        }
    }

    /// A request to a function ended.
    pub(super) fn finished(&self, function: &str, code: &str, took: Duration) {
        if let Some(invocations) = &self.invocations {
            invocations.total.with_label_values(&[function, code]).inc();
            invocations.seconds.with_label_values(&[function, code]).observe(took.as_secs_f64());
        }
    }

    /// A first replica was asked for.
    pub(super) fn woken(&self, function: &str) {
        self.wakes.with_label_values(&[function]).inc();
    }

    /// Whether the API server shows objects of a kind.
    pub(super) fn api_server_shows(&self, kind: &str, is_up: bool) {
        self.api_server.with_label_values(&[kind]).set(is_up.into());
    }

    /// All of them in the text format.
    pub(super) fn text(&self, functions: &Functions) -> prometheus::Result<String> {
        // Functions that are no more leave nothing behind.
        self.replicas.reset();
        self.held.reset();
        for function in functions.all() {
            let replicas = function.facts().map_or(0, |facts| facts.replicas);
            self.replicas.with_label_values(&[&function.label]).set(replicas.into());
            let held = *function.held.borrow();
            self.held.with_label_values(&[&function.label]).set(held.into());
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn histogram(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    registered(r, HistogramVec::new(HistogramOpts::new(name, help), labels)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::provider::settings;

    #[test]
    fn the_readme_lists_exactly_the_metrics_that_are_exported() {
        let metrics = Metrics::new(Role::Gateway).unwrap();
        metrics.answered("200", "GET", "/system/functions", Duration::ZERO);
        metrics.started("f.n");
        metrics.finished("f.n", "200", Duration::ZERO);
        metrics.woken("f.n");
        metrics.api_server_shows("pods", true);
        let functions = Functions::new(Arc::new(settings()));
        let deployment = serde_json::json!({
            "metadata": {"namespace": "openfaas-fn", "name": "f"},
            "spec": {"selector": {}, "template": {
                "metadata": {"labels": {"faas_function": "f"}}, "spec": {"containers": [{"name": "f", "image": "i"}]},
            }},
        });
        functions.put(&serde_json::from_value(deployment).unwrap());
        let text = metrics.text(&functions).unwrap();
        let exported: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| line.replace(' ', " | "))
            .collect();
        let (_, readme) = include_str!("../../README.md").split_once("## The OpenFaaS provider").unwrap();
        let (_, table) = readme.split_once("| metric | type | what |").unwrap();
        let listed: BTreeSet<_> = table
            .lines()
            .skip(2)
            .map_while(|line| line.strip_prefix("| `"))
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                format!("{} | {}", cells[0].trim_end_matches('`'), cells[1])
            })
            .collect();
        assert_eq!(listed, exported);
    }

    #[test]
    fn behind_a_gateway_requests_to_functions_are_not_counted_again() {
        let metrics = Metrics::new(Role::Provider).unwrap();
        metrics.started("f.n");
        metrics.finished("f.n", "200", Duration::ZERO);
        let text = metrics.text(&Functions::new(Arc::new(settings()))).unwrap();
        assert!(!text.contains("gateway_"), "{text}");
    }
}
