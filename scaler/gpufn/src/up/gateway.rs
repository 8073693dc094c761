//! The front door: routes a request to a replica, holds it while none is ready, and counts it. Every request ends with
//! a status.
//!
//! Bodies stream both ways. Nothing here waits on a lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use axum::body::Body;
use gpu_share::units::Nanos;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, header};
use openfaas::calls::{self, Call, Guard, HttpClient, refuse};

use super::function::Function;
use super::platform::Platform;
use super::replica::{Phase, Replica, Seat};

/// Longest time that a request is held until a replica is ready, unless a platform says otherwise.
pub(crate) const HOLD: Duration = Duration::from_mins(1);
/// Most requests that are held for one function.
pub(crate) const HELD_MAX: u32 = 1_024;
/// What the gateway waits beyond the function's own limit, which the watchdog keeps.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the watchdog at `address` says that its function is ready.
pub(crate) async fn is_ready(client: &HttpClient, address: SocketAddr) -> bool {
    let request = Request::get(format!("http://{address}/_/ready")).body(Body::empty());
    let Ok(request) = request else { return false };
    let asked = tokio::time::timeout(Duration::from_secs(1), client.request(request)).await;
    asked.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == StatusCode::OK))
}

/// Sends a request to a replica of `function` as `path`, and answers it, whatever happens.
pub(crate) async fn invoke(
    platform: &Arc<Platform>,
    function: &Arc<Function>,
    mut request: Request<Body>,
    path: PathAndQuery,
    call: &Call,
) -> Response<Body> {
    let mut visit = Visit::begin(platform, function);
    let mut response = match take_seat(platform, function).await {
        Ok(seat) => {
            call.mark(request.headers_mut());
            forward(platform, &mut visit, seat, request, path).await
        }
        Err(refusal) => refusal,
    };
    visit.status = Some(response.status());
    call.mark(response.headers_mut());
    calls::guarded(response, visit)
}

/// A place at a replica, now or as soon as there is one.
async fn take_seat(platform: &Arc<Platform>, function: &Arc<Function>) -> Result<Seat, Response<Body>> {
    let seat = match function.seat() {
        Some(seat) => seat,
        None => hold(platform, function).await?,
    };
    if seat.replica.phase() == Phase::Parked {
        wake(platform, function, &seat.replica);
    }
    Ok(seat)
}

async fn hold(platform: &Arc<Platform>, function: &Arc<Function>) -> Result<Seat, Response<Body>> {
    let _held = Held::begin(function).ok_or_else(|| {
        refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("{HELD_MAX} requests wait for {} already", function.label),
        )
    })?;
    let mut changes = function.changes();
    if let Some(replicas) = function.want_some() {
        let reason = "a request came while there was no replica";
        platform.record(function, None, "scale", (Some(0.0), Some(replicas.into())), reason);
    }
    let deadline = tokio::time::sleep(platform.hold);
    tokio::pin!(deadline);
    loop {
        if let Some(seat) = function.seat() {
            return Ok(seat);
        }
        if function.removed.is_cancelled() {
            return Err(refuse(StatusCode::NOT_FOUND, &format!("function {} was removed", function.label)));
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = &mut deadline => return Err(no_replica(platform, function)),
            () = platform.shutdown.cancelled() => return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "gpufn up is ending")),
        }
    }
}

fn no_replica(platform: &Platform, function: &Function) -> Response<Body> {
    let problem = function.health().problem.clone();
    let why =
        problem.unwrap_or_else(|| format!("none was ready within {:.1} s", platform.hold.as_secs_f64()));
    refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("no replica of {}: {why}", function.label))
}

/// Gives a parked replica its floor. The node does so too when the function's first kernel wants to run; asking now
/// saves that way.
pub(crate) fn wake(platform: &Arc<Platform>, function: &Arc<Function>, replica: &Arc<Replica>) {
    if replica.waking.swap(true, SeqCst) {
        return;
    }
    let (platform, function, replica) = (platform.clone(), function.clone(), replica.clone());
    platform.tasks.clone().spawn(async move {
        let wanted =
            replica.lease().as_ref().map(|lease| (lease.binding.id.clone(), lease.binding.share.floor));
        if let Some((binding, floor)) = wanted {
            match platform.node.grant(&binding, floor).await {
                Ok(grant) => woken(&platform, &function, &replica, grant),
                Err(error) => {
                    tracing::warn!(%binding, %error, "A parked replica could not be woken from here.");
                }
            }
        }
        replica.waking.store(false, SeqCst);
    });
}

/// Takes note that a parked replica has time again.
pub(crate) fn woken(
    platform: &Platform,
    function: &Function,
    replica: &Replica,
    grant: gpu_share::units::Quota,
) {
    replica.note_grant(grant, platform.clock.now());
    if replica.step(Phase::Parked, Phase::Ready) {
        function.counters.wakes.fetch_add(1, Relaxed);
        let change = (Some(0.0), Some(grant.percent()));
        platform.record(
            function,
            Some(&replica.instance),
            "wake",
            change,
            "a request came while it was parked",
        );
    }
}

async fn forward(
    platform: &Platform,
    visit: &mut Visit,
    seat: Seat,
    mut request: Request<Body>,
    path: PathAndQuery,
) -> Response<Body> {
    let replica = seat.replica.clone();
    visit.sit(seat);
    let label = visit.function.label.clone();
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let address = replica.address.get();
    if address.and_then(|address| calls::readdress(&mut request, *address, path)).is_none() {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("Failed to resolve service: {label}."));
    }
    let answered = tokio::select! {
        answered = platform.client.request(request) => answered,
        () = patience(visit.function.spec().exec_timeout) => {
            return refuse(StatusCode::GATEWAY_TIMEOUT, &format!("no answer of {label} within its exec_timeout"));
        }
        () = replica.gone.cancelled() => {
            return refuse(StatusCode::BAD_GATEWAY, &format!("Can't reach service for: {label}."));
        }
    };
    match answered {
        Ok(response) => calls::pass_on(response, kind),
        Err(error) => {
            tracing::debug!(function = label, instance = %replica.instance, %error, "A replica cannot be reached.");
            refuse(StatusCode::BAD_GATEWAY, &format!("Can't reach service for: {label}."))
        }
    }
}

/// Ends when the function's limit and a little more are over; never if there is no limit.
async fn patience(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit + GRACE).await,
        None => std::future::pending().await,
    }
}

/// A request that waits for a replica.
struct Held<'a>(&'a Function);

impl<'a> Held<'a> {
    fn begin(function: &'a Function) -> Option<Self> {
        let held = Self(function);
        (function.counters.held.fetch_add(1, SeqCst) < HELD_MAX).then_some(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.counters.held.fetch_sub(1, SeqCst);
    }
}

/// One request from its arrival to the last byte of its answer; counted when dropped.
#[derive(Debug)]
struct Visit {
    platform: Arc<Platform>,
    function: Arc<Function>,
    arrived: Nanos,
    status: Option<StatusCode>,
    /// The answer broke off.
    broken: bool,
    seat: Option<Seat>,
}

impl Visit {
    fn begin(platform: &Arc<Platform>, function: &Arc<Function>) -> Self {
        let arrived = platform.clock.now();
        function.counters.requests.fetch_add(1, Relaxed);
        function.traffic().arrive(arrived);
        platform.metrics.started(&function.label);
        Self {
            platform: platform.clone(),
            function: function.clone(),
            arrived,
            status: None,
            broken: false,
            seat: None,
        }
    }

    fn sit(&mut self, seat: Seat) {
        self.function.counters.in_flight.fetch_add(1, SeqCst);
        self.seat = Some(seat);
    }
}

impl Guard for Visit {
    fn broke_off(&mut self) {
        self.broken = true;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.seat.is_some() {
            self.function.counters.in_flight.fetch_sub(1, SeqCst);
        }
        let now = self.platform.clock.now();
        let latency = now.since(self.arrived);
        // 499 as nginx has it: the client was gone before there was an answer.
        let code = self.status.as_ref().map_or("499", StatusCode::as_str);
        let failed = self.broken || self.status.is_none_or(|status| status.is_server_error());
        let late = failed || self.function.spec().slo_bound().is_some_and(|bound| latency > bound);
        let counters = &self.function.counters;
        counters.failed.fetch_add(failed.into(), Relaxed);
        counters.late.fetch_add(late.into(), Relaxed);
        self.function.traffic().finish(now, latency);
        if !self.function.removed.is_cancelled() {
            self.platform.metrics.finished(&self.function.label, code, latency);
        }
    }
}
