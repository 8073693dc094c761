//! Mode `http`: the function is started once and serves HTTP itself; requests are passed on to it. Owns the time
//! limits of a request. It never answers for the function while the function can still answer.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use gpu_share::invalid::Invalid;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::{Body, Incoming};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::alarm::Alarm;
use crate::answer::Answer;
use crate::config::{Config, duration};
use crate::exchange::Exchange;
use crate::health::{Health, Phase};

mod backend;
mod batching;
pub(crate) mod codec;
mod failure;
mod h2c;
mod link;
pub(crate) mod outgoing;
mod relay;
mod reply;
mod sending;
mod upgrade;

use backend::Backend;
use batching::Batcher;
use failure::{Failure, Limit};
use outgoing::{Stream, prepare};
use reply::Reply;

pub(crate) use batching::BatchConfig;
pub(crate) use relay::{Cut, Relay};
pub(crate) use reply::Broken;

const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");
const TIMEOUT: HeaderName = HeaderName::from_static("x-timeout");

/// Where the function listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    authority: String,
    /// Put before each path, as it is.
    base: String,
}

impl Upstream {
    /// Reads the URL in the variable `field`.
    pub(crate) fn read(field: &str, url: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new(field, url, "a URL such as http://127.0.0.1:3000");
        let uri = url.trim().parse::<Uri>().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if uri.scheme_str() != Some("http") || uri.query().is_some() || has_user {
            return Err(invalid());
        }
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        // A URL that ends with the authority and a slash has no base path.
        let base = if uri.path() == "/" { String::new() } else { uri.path().to_string() };
        Ok(Self { authority, base })
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The request's target at the function: percent-encoding and query stay as they came.
    fn target(&self, uri: &Uri) -> Result<Uri, Failure> {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        if self.base.is_empty() {
            return Ok(Uri::from(path));
        }
        format!("{}{}", self.base, path.as_str()).parse::<Uri>().map_err(|_| Failure::Target)
    }
}

/// Passes requests on to the function.
#[derive(Debug)]
pub(crate) struct HttpMode {
    backend: Arc<Backend>,
    batcher: Option<Arc<Batcher>>,
    exec_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    read_timeout: Option<Duration>,
    buffer_body: Option<u64>,
    compat: bool,
}

/// Where a request came from, as far as the function is told.
pub(crate) type Peer = std::net::IpAddr;

impl HttpMode {
    /// As configured. Inside a runtime only.
    pub(crate) fn new(config: &Config, upstream: Upstream, health: Arc<Health>) -> Self {
        let backend = Backend::new(upstream, config.upstream_h2c, health);
        Self {
            batcher: config.batch.map(|batch| Batcher::new(batch, Arc::clone(&backend))),
            backend,
            exec_timeout: config.exec_timeout,
            write_timeout: config.write_timeout,
            read_timeout: config.read_timeout,
            buffer_body: config.buffer_body,
            compat: config.compat,
        }
    }

    /// Waits until the function accepts a connection, and notes that it is up.
    pub(crate) async fn watch_start(&self) {
        let mut pause = Duration::from_millis(1);
        loop {
            let attempt =
                timeout(Duration::from_secs(1), TcpStream::connect(self.backend.upstream.authority())).await;
            if let Ok(Ok(_)) = attempt {
                return self.backend.health.set_phase(Phase::Up);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Has the function answer `request`.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        exchange: Exchange,
    ) -> Response<Answer> {
        if upgrade::is_wanted(&request) {
            // Boxed: every request would otherwise be moved with the room for this.
            return Box::pin(upgrade::answer(self, request, peer, exchange)).await;
        }
        let is_stream = is_stream(request.headers());
        let started = Instant::from_std(exchange.started());
        let limit = self.limit(request.headers(), is_stream);
        let mut deadline = limit.map(|limit| Alarm::at(started + limit.span));
        if let Some(batcher) = self.batcher.as_ref().filter(|_| batching::is_wanted(&request)) {
            let work = Box::pin(async { batcher.answer(self.stream(request, started)?).await });
            return match within(&mut deadline, limit, work).await {
                Ok(answer) => finish(answer, exchange),
                Err(failure) => failure.answer(exchange),
            };
        }
        let work = self.pass_on(request, started, is_stream.then_some(peer));
        match within(&mut deadline, limit, work).await {
            Ok(answer) => relay(answer, deadline, exchange, is_stream),
            Err(failure) if self.compat && is_stream => failure.hidden(exchange),
            Err(failure) => failure.answer(exchange),
        }
    }

    /// The request with the function's target, and a body that must come in time.
    fn stream(&self, request: Request<Incoming>, started: Instant) -> Result<Request<Stream>, Failure> {
        let read_by = self.read_timeout.map(|span| started + span);
        let mut request = request.map(|body| Stream::new(body, read_by));
        if self.compat && is_stream(request.headers()) {
            *request.uri_mut() = request.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
        } else {
            *request.uri_mut() = self.backend.upstream.target(request.uri())?;
        }
        *request.version_mut() = Version::HTTP_11;
        Ok(request)
    }

    async fn pass_on(
        &self,
        request: Request<Incoming>,
        started: Instant,
        forwarded_for: Option<Peer>,
    ) -> Result<Response<Reply>, Failure> {
        let mut request = self.stream(request, started)?;
        if let Some(peer) = forwarded_for {
            append_forwarded_for(request.headers_mut(), peer);
        }
        self.backend.send(prepare(request, self.buffer_body).await?).await
    }

    /// How long a request may take. A stream is not bound by `exec_timeout`, but by what its client asks for.
    fn limit(&self, headers: &HeaderMap, is_stream: bool) -> Option<Limit> {
        let exec = exec_limit(self.exec_timeout, asked_limit(headers), is_stream);
        let exec = exec.filter(|_| !self.compat || !asks_for_none(headers));
        let exec = exec.map(|span| Limit { span, field: "exec_timeout" });
        // There it only ends the connection.
        let write = self.write_timeout.filter(|_| !self.compat);
        let write = write.map(|span| Limit { span, field: "write_timeout" });
        exec.into_iter().chain(write).min_by_key(|limit| limit.span)
    }
}

/// The function's answer as it comes.
fn relay(
    answer: Response<Reply>,
    deadline: Option<Alarm>,
    mut exchange: Exchange,
    is_stream: bool,
) -> Response<Answer> {
    let (mut parts, reply) = answer.into_parts();
    outgoing::strip_connection(&mut parts.headers);
    if !is_stream {
        set_duration(&mut parts.headers, exchange.elapsed());
    }
    parts.version = Version::HTTP_11;
    let body = match reply {
        Reply::Whole(bytes) => {
            exchange.add_bytes(bytes.len());
            exchange.finish(parts.status);
            if bytes.is_empty() { Answer::Empty } else { Answer::Text(Some(bytes)) }
        }
        reply if reply.is_end_stream() => {
            reply.complete();
            exchange.finish(parts.status);
            Answer::Empty
        }
        reply => Answer::Relay(Relay::new(reply, parts.status, deadline, exchange)),
    };
    Response::from_parts(parts, body)
}

/// An answer that is there as a whole.
fn finish(mut answer: Response<Answer>, mut exchange: Exchange) -> Response<Answer> {
    set_duration(answer.headers_mut(), exchange.elapsed());
    *answer.version_mut() = Version::HTTP_11;
    let bytes = answer.body().size_hint().exact().unwrap_or_default();
    exchange.add_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
    exchange.finish(answer.status());
    answer
}

/// Runs `work` up to `deadline`.
async fn within<T>(
    deadline: &mut Option<Alarm>,
    limit: Option<Limit>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match (deadline, limit) {
        (Some(deadline), Some(limit)) => tokio::select! {
            biased;
            done = work => done,
            () = deadline => Err(Failure::Late(limit)),
        },
        _ => work.await,
    }
}

/// What the client asks for in `X-Timeout`, if that is a duration above zero.
pub(crate) fn asked_limit(headers: &HeaderMap) -> Option<Duration> {
    duration::parse(headers.get(TIMEOUT)?.to_str().ok()?)?.above_zero()
}

/// Whether the client asks for a limit of zero or less, which is none to of-watchdog.
fn asks_for_none(headers: &HeaderMap) -> bool {
    let asked = headers.get(TIMEOUT).and_then(|value| duration::parse(value.to_str().ok()?));
    asked.is_some_and(|asked| asked.above_zero().is_none())
}

/// A client can only lower the limit, and can't set one where there is none.
fn exec_limit(configured: Option<Duration>, asked: Option<Duration>, is_stream: bool) -> Option<Duration> {
    let configured = configured?;
    match asked.filter(|asked| *asked <= configured) {
        Some(asked) => Some(asked),
        None => (!is_stream).then_some(configured),
    }
}

/// Whether the client wants events as they come, for as long as they come.
fn is_stream(headers: &HeaderMap) -> bool {
    let contains =
        |value: &str| value.contains("text/event-stream") || value.contains("application/x-ndjson");
    headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(contains))
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: Peer) {
    let name = HeaderName::from_static("x-forwarded-for");
    let before = headers.get_all(&name).iter().filter_map(|value| value.to_str().ok());
    let hops = before.map(ToString::to_string).chain([peer.to_string()]).collect::<Vec<_>>().join(", ");
    if let Ok(value) = HeaderValue::from_str(&hops) {
        headers.insert(name, value);
    }
}

fn set_duration(headers: &mut HeaderMap, took: Duration) {
    // Room for the longest time: all that is allocated is the header's own copy.
    let mut shown = [0; 32];
    let mut room = shown.as_mut_slice();
    let written = write!(room, "{}.{:06}", took.as_secs(), took.subsec_micros());
    let length = 32 - room.len();
    if written.is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&shown[..length])
    {
        headers.insert(DURATION, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, uri: &str) -> String {
        let upstream = Upstream::read("upstream_url", url).unwrap();
        upstream.target(&uri.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_target_is_passed_on_as_it_came_behind_the_base_path() {
        assert_eq!(target("http://127.0.0.1:3000", "/a%20b/c?x=1&y=%2F"), "/a%20b/c?x=1&y=%2F");
        assert_eq!(target("http://127.0.0.1:3000/", "/x"), "/x");
        assert_eq!(target("http://127.0.0.1:3000/base/", "/x"), "/base//x");
        assert_eq!(target("http://localhost", "http://fn.example/x?y"), "/x?y");
        assert_eq!(Upstream::read("upstream_url", "http://[::1]:3000").unwrap().authority(), "[::1]:3000");
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for url in [
            "",
            "127.0.0.1:3000",
            "/x",
            "https://127.0.0.1:3000",
            "http://",
            "http://user@host/",
            "http://h/?q",
        ] {
            assert!(Upstream::read("upstream_url", url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn a_peer_is_added_behind_all_earlier_hops() {
        let name = HeaderName::from_static("x-forwarded-for");
        let mut headers = HeaderMap::new();
        headers.append(&name, HeaderValue::from_static("10.0.0.1"));
        headers.append(&name, HeaderValue::from_static("10.0.0.2, 10.0.0.3"));
        append_forwarded_for(&mut headers, Peer::from([10, 0, 0, 4]));
        let values: Vec<_> = headers.get_all(&name).iter().collect();
        assert_eq!(values, ["10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4"]);
    }

    #[test]
    fn a_client_can_only_lower_the_limit() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(exec_limit(seconds(2), None, false), seconds(2));
        assert_eq!(exec_limit(seconds(2), seconds(1), false), seconds(1));
        assert_eq!(exec_limit(seconds(2), seconds(10), false), seconds(2));
        assert_eq!(exec_limit(None, seconds(1), false), None);
        assert_eq!(exec_limit(seconds(2), None, true), None);
        assert_eq!(exec_limit(seconds(2), seconds(1), true), seconds(1));
    }

    #[test]
    fn a_limit_of_zero_or_less_or_without_a_unit_is_not_one() {
        for (value, wanted) in
            [("500ms", Some(500)), ("-1s", None), ("0s", None), ("bogus", None), ("10", None), ("", None)]
        {
            let headers = HeaderMap::from_iter([("x-timeout".parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(asked_limit(&headers), wanted.map(Duration::from_millis), "{value:?}");
        }
    }
}
