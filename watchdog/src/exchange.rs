//! One request and its answer, from head to last byte: it holds the request's slot, and when it ends, however it ends,
//! gives the slot back, counts and logs. It decides nothing about the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};

use crate::limiter::Slot;
use crate::logs::{self, Access};
use crate::metrics::Metrics;

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// A request being answered. Dropped before it is finished, it counts as aborted by its client.
#[derive(Debug)]
pub(crate) struct Exchange {
    metrics: Option<Arc<Metrics>>,
    method: Method,
    /// Path and query, which is all that is logged of it.
    target: Option<PathAndQuery>,
    started: Instant,
    status: Option<StatusCode>,
    /// Instead of `status`, in the log.
    logged: Option<StatusCode>,
    bytes: u64,
    log: Log,
    slot: Option<Slot>,
}

/// Whether and how an exchange is logged.
#[derive(Debug)]
enum Log {
    Off,
    Plain,
    CallId(String),
}

impl Exchange {
    /// Begins now, counted in `metrics` if there are any.
    pub(crate) fn begin(method: &Method, target: &Uri, metrics: Option<Arc<Metrics>>) -> Self {
        if let Some(metrics) = &metrics {
            metrics.begin();
        }
        Self {
            metrics,
            method: method.clone(),
            target: target.path_and_query().cloned(),
            started: Instant::now(),
            status: None,
            logged: None,
            bytes: 0,
            log: Log::Off,
            slot: None,
        }
    }

    /// The same, holding `slot` until it ends.
    pub(crate) fn holding(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The same, logged when it ends, unless it is the kubelet's probe: those would fill the log.
    pub(crate) fn logged(mut self, headers: &HeaderMap, with_call_id: bool) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let is_probe = text(header::USER_AGENT).is_some_and(|agent| agent.starts_with("kube-probe"));
        self.log = match (is_probe, with_call_id) {
            (true, _) => Log::Off,
            (false, false) => Log::Plain,
            (false, true) => {
                Log::CallId(text(CALL_ID).filter(|id| !id.is_empty()).unwrap_or("none").to_string())
            }
        };
        self
    }

    /// The same, not logged after all.
    pub(crate) fn unlogged(mut self) -> Self {
        self.log = Log::Off;
        self
    }

    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Time since it began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// `bytes` more of the answer's body have been handed on.
    pub(crate) fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The answer is complete, or was cut by the watchdog, which `status` then says.
    pub(crate) fn finish(mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The same, where the log tells more than the answer could.
    pub(crate) fn finish_logged(mut self, counted: StatusCode, logged: StatusCode) {
        self.logged = Some(logged);
        self.finish(counted);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        // Before the client can see the end: its next request must find the slot free.
        drop(self.slot.take());
        if let Some(metrics) = &self.metrics {
            metrics.end(&self.method, self.status, took);
        }
        let call_id = match &self.log {
            Log::Off => return,
            Log::Plain => None,
            Log::CallId(id) => Some(id.as_str()),
        };
        let (method, bytes) = (&self.method, self.bytes);
        let target = self.target.as_ref().map_or("/", PathAndQuery::as_str);
        match self.logged.or(self.status) {
            Some(status) => {
                logs::line_soon(format_args!("{}", Access { method, target, status, bytes, took, call_id }));
            }
            None => {
                logs::line_soon(format_args!(
                    "{method} {target} - client went away ({:.4}s)",
                    took.as_secs_f64()
                ));
            }
        }
    }
}
