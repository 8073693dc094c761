//! The listeners: takes connections, reads requests and says who answers them. What an answer is made of is elsewhere.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, INTERNAL, empty, text};
use crate::client::{ClientSocket, WriteLimit};
use crate::config::Config;
use crate::drain::Connections;
use crate::exchange::Exchange;
use crate::health::Health;
use crate::limiter::Limiter;
use crate::logs::log;
use crate::metrics::Metrics;
use crate::mode::http::HttpMode;

/// Largest head of a request, and the most that is held of a body, in bytes: a larger head is answered 431.
const MAX_HEAD: usize = 512 << 10;

/// What a write to the client may take beyond `write_timeout`: the answer that says so must still get through.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Pause after a connection could not be taken, most often because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Longest time to read the head of a scrape, and to wait for the next one.
const SCRAPE_TIMEOUT: Duration = Duration::from_mins(1);

/// Everything that answering a request needs.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) health: Arc<Health>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) function: HttpMode,
    pub(crate) connections: Arc<Connections>,
    ready_path: Option<PathAndQuery>,
    write_timeout: Option<Duration>,
    read_timeout: Option<Duration>,
    log_call_id: bool,
}

impl App {
    /// As configured. Inside a runtime only.
    pub(crate) fn new(config: &Config, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        Self {
            limiter: Limiter::new(config.max_inflight),
            function: HttpMode::new(config, Arc::clone(&health)),
            health,
            metrics,
            connections: Connections::new(),
            ready_path: config.ready_path.clone(),
            write_timeout: config.write_timeout,
            read_timeout: config.read_timeout,
            log_call_id: config.logs.call_id,
        }
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
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.max_buf_size(MAX_HEAD).max_header_size(MAX_HEAD).title_case_headers(true);
    server.timer(TokioTimer::new()).header_read_timeout(app.read_timeout);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(converse(server.clone(), stream, peer.ip().to_canonical(), Arc::clone(&app)));
            }
            Err(error) => {
                log!("can't take a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection until it ends or is asked to.
async fn converse(server: http1::Builder, stream: TcpStream, peer: IpAddr, app: Arc<App>) {
    // Without it, small answers wait for the client's acknowledgements.
    let _ = stream.set_nodelay(true);
    let (_member, mut closing) = app.connections.enter();
    let (socket, limit) = ClientSocket::new(stream);
    let service = service_fn(|request| {
        let (app, limit) = (Arc::clone(&app), Arc::clone(&limit));
        async move { Ok::<_, Infallible>(respond(&app, &limit, peer, request).await) }
    });
    let mut connection = pin!(server.serve_connection(TokioIo::new(socket), service).with_upgrades());
    tokio::select! {
        biased;
        // What goes wrong here is the client's doing, and it is who learns of it.
        _ = connection.as_mut() => return,
        _ = &mut closing => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn respond(
    app: &App,
    limit: &WriteLimit,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Answer> {
    limit.set(app.write_timeout.map(|span| span + LAST_WORDS));
    if let Some(answer) = refuse(&mut request) {
        return answer;
    }
    match request.uri().path() {
        "/_/health" => health(app, request.method()),
        "/_/ready" => ready(app, request, peer).await,
        _ => call(app, request, peer).await,
    }
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

/// Has the function answer, if there is a slot for one more request.
async fn call(app: &App, request: Request<Incoming>, peer: IpAddr) -> Response<Answer> {
    let exchange = Exchange::begin(request.method(), request.uri(), Some(Arc::clone(&app.metrics)));
    let Some(slot) = app.limiter.take() else {
        exchange.finish(StatusCode::TOO_MANY_REQUESTS);
        let limit = app.limiter.limit();
        let words = format!("Concurrent request limit exceeded. Max concurrent requests: {limit}\n");
        let mut answer = text(StatusCode::TOO_MANY_REQUESTS, "text/plain", words);
        answer.headers_mut().insert(INTERNAL, HeaderValue::from_static("faas-middleware"));
        return answer;
    };
    let exchange = exchange.holding(slot).logged(request.headers(), app.log_call_id);
    app.function.answer(request, peer, exchange).await
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
