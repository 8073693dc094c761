//! The front door: routes a request to a replica, holds it while none is ready, and counts it. Every request ends with
//! a status.
//!
//! Bodies stream both ways. Nothing here waits on a lock.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use gpu_share::units::Nanos;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::{Frame, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::function::Function;
use super::platform::Platform;
use super::replica::{Phase, Replica, Seat};

/// Longest time that a request is held until a replica is ready, unless a platform says otherwise.
pub(crate) const HOLD: Duration = Duration::from_mins(1);
/// Most requests that are held for one function.
pub(crate) const HELD_MAX: u32 = 1_024;
/// What the gateway waits beyond the function's own limit, which the watchdog keeps.
const GRACE: Duration = Duration::from_secs(5);

/// Headers of one connection, not of the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
const START_TIME: HeaderName = HeaderName::from_static("x-start-time");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");

/// Client to the watchdogs, with connections kept alive.
pub(crate) type HttpClient = Client<HttpConnector, Body>;

/// A client to the watchdogs.
pub(crate) fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(20))
        .pool_max_idle_per_host(128)
        .build(connector)
}

/// Whether the watchdog at `address` says that its function is ready.
pub(crate) async fn is_ready(client: &HttpClient, address: SocketAddr) -> bool {
    let request = Request::get(format!("http://{address}/_/ready")).body(Body::empty());
    let Ok(request) = request else { return false };
    let asked = tokio::time::timeout(Duration::from_secs(1), client.request(request)).await;
    asked.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == StatusCode::OK))
}

/// A call: its id and when it started, as headers carry them.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: HeaderValue,
    started: HeaderValue,
}

impl Call {
    /// The call that a request makes: its own id, or a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let id = headers.get(&CALL_ID).cloned().unwrap_or_else(new_call_id);
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let started = HeaderValue::from(u64::try_from(since_1970).unwrap_or(u64::MAX));
        Self { id, started }
    }

    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(CALL_ID, self.id.clone());
        headers.insert(START_TIME, self.started.clone());
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_call_id() -> HeaderValue {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
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
    response.map(|inner| Body::new(Watched { inner, visit }))
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
    let Some(uri) = replica.address.get().and_then(|address| target(*address, path)) else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("Failed to resolve service: {label}."));
    };
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_11;
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    drop_hop_by_hop(request.headers_mut());
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
        Ok(mut response) => {
            drop_hop_by_hop(response.headers_mut());
            let plain = || HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().entry(header::CONTENT_TYPE).or_insert_with(|| kind.unwrap_or_else(plain));
            response.map(Body::new)
        }
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

fn target(address: SocketAddr, path: PathAndQuery) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(address.to_string()).ok()?);
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}

/// Takes off the headers that concern one connection only, and those that `Connection` names.
fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = values.flat_map(|value| value.split(','));
    let named: Vec<_> = named.filter_map(|name| name.trim().parse::<HeaderName>().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
}

/// Adds where a request came from, if nobody did before.
pub(crate) fn note_origin(headers: &mut HeaderMap, peer: Option<SocketAddr>) {
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::from_str(&peer.to_string()).ok()) {
        headers.entry(FORWARDED_FOR).or_insert(peer);
    }
}

/// An answer of the gateway's own.
pub(crate) fn refuse(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = super::api::plain(status, why);
    response.headers_mut().insert(INTERNAL, HeaderValue::from_static("proxy"));
    response
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

/// The answer's body, which ends the visit when it ends.
struct Watched {
    inner: Body,
    visit: Visit,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Err(_))) = polled {
            self.visit.broken = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, x-own"), ("x-own", "1"), ("te", "trailers"), ("x-other", "2")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        drop_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("x-other"));
    }

    #[test]
    fn a_new_call_id_is_a_random_uuid() {
        let id = new_call_id().to_str().unwrap().to_string();
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'));
        assert!(b"89ab".contains(&id.as_bytes()[19]));
        assert_ne!(new_call_id(), new_call_id());
    }

    #[test]
    fn who_forwarded_first_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("h"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("first"));
        note_origin(&mut headers, Some(([127, 0, 0, 1], 9).into()));
        assert_eq!(headers["x-forwarded-host"], "h");
        assert_eq!(headers["x-forwarded-for"], "first");
    }
}
