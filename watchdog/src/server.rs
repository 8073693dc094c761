//! The listeners: takes connections, reads requests and says who answers them. What an answer is made of is elsewhere.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, INTERNAL, empty, text};
use crate::client::WriteLimit;
use crate::config::Config;
use crate::drain::Connections;
use crate::exchange::Exchange;
use crate::health::Health;
use crate::jwt::Authenticator;
use crate::limiter::Limiter;
use crate::logs::log;
use crate::metrics::{Metrics, MetricsError};
use crate::mode::Invoker;
use crate::mode::http::asked_limit;
use crate::workers::Workers;

/// What a write to the client may take beyond `write_timeout`: the answer that says so must still get through.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after a connection could not be taken, most often because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Longer than any request waits.
const LONG: Duration = Duration::from_hours(24);

/// Longest time to read the head of a scrape, and to wait for the next one.
const SCRAPE_TIMEOUT: Duration = Duration::from_mins(1);

/// Everything that answering a request needs.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) health: Arc<Health>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) function: Invoker,
    pub(crate) connections: Arc<Connections>,
    authenticator: Option<Arc<Authenticator>>,
    queue_timeout: Option<Duration>,
    ready_path: Option<PathAndQuery>,
    write_timeout: Option<Duration>,
    pub(crate) compat: bool,
    log_call_id: bool,
}

impl App {
    /// As configured. Inside a runtime only.
    pub(crate) fn new(
        config: &Config,
        function: Invoker,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        authenticator: Option<Arc<Authenticator>>,
    ) -> Result<Self, MetricsError> {
        let limiter = Limiter::new(config.max_inflight, config.max_queue);
        metrics.watch_queue(&limiter)?;
        Ok(Self {
            limiter,
            authenticator,
            queue_timeout: config.queue_timeout,
            function,
            health,
            metrics,
            connections: Connections::new(),
            ready_path: config.ready_path.clone(),
            write_timeout: config.write_timeout,
            compat: config.compat,
            log_call_id: config.logs.call_id,
        })
    }
}

/// Listens at `address`. All interfaces means IPv4 too, and only that where the kernel has no IPv6.
pub(crate) async fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((address, port)).await {
        Err(error) if address == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        outcome => outcome,
    }
}

/// Takes connections until `stop`, and then closes the listener.
pub(crate) async fn serve(listener: TcpListener, workers: Workers, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Err(error) = workers.serve(stream, peer.ip().to_canonical()) {
                    log!("can't hand a connection on: {error}");
                }
            }
            Err(error) => {
                log!("can't take a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one request.
pub(crate) async fn respond(
    app: &App,
    limit: &WriteLimit,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Answer> {
    if app.compat {
        limit.set_strict(app.write_timeout);
    } else {
        limit.set(app.write_timeout.map(|span| span + LAST_WORDS));
    }
    let is_http1 = request.version() < Version::HTTP_2;
    let mut answer = match refuse(&mut request) {
        Some(answer) => answer,
        None => match request.uri().path() {
            "/_/health" => health(app, request.method()),
            "/_/ready" => Box::pin(ready(app, request, peer)).await,
            _ => call(app, request, peer).await,
        },
    };
    if is_http1 && app.health.is_draining() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// What is no request for a function is answered here; the rest gets its `Host` where the target has one.
fn refuse(request: &mut Request<Incoming>) -> Option<Response<Answer>> {
    if request.method() == Method::CONNECT {
        return Some(empty(StatusCode::METHOD_NOT_ALLOWED));
    }
    if request.method() == Method::OPTIONS && request.uri().path() == "*" {
        return Some(empty(StatusCode::OK));
    }
    // RFC 9112, 3.2.2: the authority of an absolute target replaces `Host`.
    if let Some(host) = request.uri().authority().map(Authority::as_str).map(HeaderValue::from_str) {
        let Ok(host) = host else { return Some(empty(StatusCode::BAD_REQUEST)) };
        request.headers_mut().insert(header::HOST, host);
    }
    let needs_host = request.version() == Version::HTTP_11;
    (needs_host && !request.headers().contains_key(header::HOST)).then(|| {
        text(
            StatusCode::BAD_REQUEST,
            "text/plain; charset=utf-8",
            "400 Bad Request: missing required Host header",
        )
    })
}

fn health(app: &App, method: &Method) -> Response<Answer> {
    if method != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    if app.health.is_accepting() {
        return text(StatusCode::OK, "text/plain; charset=utf-8", "OK");
    }
    empty(StatusCode::SERVICE_UNAVAILABLE)
}

async fn ready(app: &App, mut request: Request<Incoming>, peer: IpAddr) -> Response<Answer> {
    if request.method() != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !app.health.is_accepting() || !app.health.is_up() {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    }
    if app.limiter.is_full() {
        return empty(StatusCode::TOO_MANY_REQUESTS);
    }
    let Some(path) = &app.ready_path else { return empty(StatusCode::OK) };
    *request.uri_mut() = Uri::from(path.clone());
    let exchange = Exchange::begin(request.method(), request.uri(), None);
    let exchange = exchange.logged(request.headers(), app.log_call_id);
    app.function.answer(request, peer, exchange).await
}

/// Has the function answer, if there is a slot for one more request and its caller may call.
async fn call(app: &App, mut request: Request<Incoming>, peer: IpAddr) -> Response<Answer> {
    let exchange = Exchange::begin(request.method(), request.uri(), Some(Arc::clone(&app.metrics)));
    let Some(slot) = app.limiter.take(patience(app, &exchange, request.headers())).await else {
        exchange.finish(StatusCode::TOO_MANY_REQUESTS);
        let limit = app.limiter.limit();
        let words = format!("Concurrent request limit exceeded. Max concurrent requests: {limit}\n");
        let mut answer = text(StatusCode::TOO_MANY_REQUESTS, "text/plain", words);
        answer.headers_mut().insert(INTERNAL, HeaderValue::from_static("faas-middleware"));
        return answer;
    };
    let exchange = exchange.holding(slot).logged(request.headers(), app.log_call_id);
    if let Some(authenticator) = &app.authenticator
        && let Err(denied) = Box::pin(authenticator.check(request.headers_mut())).await
    {
        let answer = denied.answer();
        exchange.finish(answer.status());
        return answer;
    }
    app.function.answer(request, peer, exchange).await
}

/// Until when a request waits for a slot.
fn patience(app: &App, exchange: &Exchange, headers: &HeaderMap) -> Instant {
    let asked = app.limiter.has_queue().then(|| asked_limit(headers)).flatten();
    let spans = app.queue_timeout.into_iter().chain(asked);
    exchange.started() + spans.min().unwrap_or(LONG).min(LONG)
}

/// Serves the metrics for as long as the watchdog lives.
pub(crate) async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(SCRAPE_TIMEOUT).title_case_headers(true);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        let service = service_fn(move |request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(scrape(&metrics, request.uri().path())))
        });
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

fn scrape(metrics: &Metrics, path: &str) -> Response<Answer> {
    if path != "/metrics" {
        return text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
    }
    match metrics.text() {
        Ok(body) => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string()),
    }
}
