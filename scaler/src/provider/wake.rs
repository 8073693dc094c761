//! Requests to a function without a replica: they wait, and the first of them has one started, however many there are.
//!
//! The scaler is told of them, so that it counts them as load, and KEDA goes on from there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use openfaas::calls::refuse;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::functions::{Function, Seat};
use super::metrics::Metrics;

/// Most requests that wait for one function.
const HELD_MAX: u32 = 1_024;
/// A request that waits looks so often whether a replica can be reached again.
const GLANCE: Duration = Duration::from_millis(250);
/// Time between two tries to have a replica started.
const AGAIN: Duration = Duration::from_secs(1);
/// Time after which the scaler is told again of requests that still wait; it believes what it is told for 10 s.
const TELL: Duration = Duration::from_secs(4);
/// Time between two words to the scaler where the number changes all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest time that telling it may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Starts first replicas.
#[derive(Clone)]
pub(super) struct Waker {
    pub(super) cluster: Cluster,
    pub(super) metrics: Arc<Metrics>,
    /// Where the scaler is told of requests that wait.
    pub(super) scaler: Option<Scaler>,
    pub(super) stop: CancellationToken,
}

/// A scaler over HTTP.
#[derive(Clone, Debug)]
pub(super) struct Scaler {
    pub(super) client: reqwest::Client,
    pub(super) url: reqwest::Url,
}

impl Waker {
    /// A place at a replica, now or as soon as there is one.
    ///
    /// # Errors
    /// The answer to a request that has waited for too long, or must not wait.
    pub(super) async fn seat(&self, function: &Arc<Function>) -> Result<Seat, Response> {
        match function.seat() {
            Some(seat) => Ok(seat),
            None => self.hold(function).await,
        }
    }

    async fn hold(&self, function: &Arc<Function>) -> Result<Seat, Response> {
        let label = &function.label;
        let unavailable = |why: String| refuse(StatusCode::SERVICE_UNAVAILABLE, &why);
        let _held = Held::begin(self, function)
            .ok_or_else(|| unavailable(format!("{HELD_MAX} requests wait for {label} already")))?;
        let mut changes = function.changes();
        let until = Instant::now() + self.cluster.settings.hold;
        loop {
            if let Some(seat) = function.seat() {
                return Ok(seat);
            }
            let Some(facts) = function.facts() else {
                return Err(unavailable(format!("No endpoints available for: {label}.")));
            };
            if facts.replicas == 0 {
                self.wake(function, facts.first);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(GLANCE) => {}
                () = tokio::time::sleep_until(until) => {
                    let seconds = self.cluster.settings.hold.as_secs_f64();
                    return Err(unavailable(format!("No endpoints available for: {label}. None was ready within {seconds} s.")));
                }
                () = self.stop.cancelled() => return Err(unavailable("the provider is about to end".into())),
            }
        }
    }

    /// Has the first replicas started, unless that is being done. It is done whether the request that asked stays or not.
    fn wake(&self, function: &Arc<Function>, first: u32) {
        if function.is_waking.swap(true, Ordering::SeqCst) {
            return;
        }
        let (waker, function) = (self.clone(), Arc::clone(function));
        tokio::spawn(async move {
            match waker.cluster.wake(&function.id, first).await {
                Ok(()) => waker.metrics.woken(&function.label),
                Err(error) => {
                    tracing::warn!(function = function.label, %error, "no replica could be started; trying again");
                    sleep(AGAIN).await;
                }
            }
            function.is_waking.store(false, Ordering::SeqCst);
            function.notify();
        });
    }

    /// Tells the scaler how many requests wait, until none does.
    async fn tell(scaler: Scaler, function: Arc<Function>) {
        let mut changes = function.held.subscribe();
        loop {
            let held = *changes.borrow_and_update();
            if let Err(error) = scaler.hold(&function, held).await {
                tracing::debug!(function = function.label, %error, "the scaler was not told of requests that wait");
            }
            if held == 0 {
                return;
            }
            sleep(PAUSE).await;
            // Told again also where nothing changes.
            let _ = timeout(TELL, changes.changed()).await;
        }
    }
}

impl Scaler {
    async fn hold(&self, function: &Function, held: u32) -> reqwest::Result<()> {
        let mut url = self.url.clone();
        let path = ["v1", "functions", &function.id.namespace, &function.id.name, "held"];
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let told = self.client.put(url).timeout(PATIENCE).json(&serde_json::json!({"held": held})).send();
        told.await?.error_for_status().map(drop)
    }
}

/// A request that waits for a replica.
struct Held(Arc<Function>);

impl Held {
    /// One more, unless there are too many. The first one's coming starts telling the scaler.
    fn begin(waker: &Waker, function: &Arc<Function>) -> Option<Self> {
        let mut before = 0;
        function.held.send_modify(|held| before = std::mem::replace(held, *held + 1));
        let held = Self(Arc::clone(function));
        let is_known = function.facts().is_some_and(|facts| facts.has_share);
        if let Some(scaler) = waker.scaler.clone().filter(|_| before == 0 && is_known) {
            tokio::spawn(Waker::tell(scaler, Arc::clone(function)));
        }
        (before < HELD_MAX).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held -= 1);
    }
}
