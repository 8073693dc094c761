//! A request to a function on its way there: which function a path names, which headers go along, and the client that sends it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::body::{Frame, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::answers::plain;
use crate::names;

/// Methods that a function may be called with.
const METHODS: [Method; 7] =
    [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::GET, Method::OPTIONS, Method::HEAD];

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
pub type HttpClient = Client<HttpConnector, Body>;

/// A client to the watchdogs.
pub fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(20))
        .pool_max_idle_per_host(128)
        .build(connector)
}

/// What a path below a prefix such as `/function/` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The function.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What is left of the path, with the query, for the function itself.
    pub path: PathAndQuery,
}

impl Target {
    /// Reads it from a request, of a method that functions take. A name without a namespace is of `namespace`.
    ///
    /// # Errors
    /// The answer to a request that goes to no function.
    pub fn of(request: &Request<Body>, prefix: &str, namespace: &str) -> Result<Self, Box<Response>> {
        if !METHODS.contains(request.method()) {
            return Err(Box::new(StatusCode::METHOD_NOT_ALLOWED.into_response()));
        }
        let uri = request.uri();
        let rest = uri.path().strip_prefix(prefix).unwrap_or_default();
        let (full, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = match uri.query() {
            Some(query) => format!("/{path}?{query}"),
            None => format!("/{path}"),
        };
        let path = PathAndQuery::try_from(path)
            .map_err(|_| Box::new(plain(StatusCode::BAD_REQUEST, "the path cannot be passed on")))?;
        let (name, namespace) = names::split(full, namespace);
        Ok(Self { name: name.into(), namespace: namespace.into(), path })
    }
}

/// The answer to a call that names no function.
#[allow(clippy::unused_async)] // Handlers are.
pub async fn nameless() -> Response {
    plain(StatusCode::BAD_REQUEST, "Provide function name in the request path")
}

/// A call: its id and when it started, as headers carry them.
#[derive(Clone, Debug)]
pub struct Call {
    /// By which it is found in logs.
    pub id: HeaderValue,
    started: HeaderValue,
}

impl Call {
    /// The call that a request makes: its own id, or a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let id = headers.get(&CALL_ID).cloned().unwrap_or_else(new_call_id);
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let started = HeaderValue::from(u64::try_from(since_1970).unwrap_or(u64::MAX));
        Self { id, started }
    }

    /// Writes them into headers.
    pub fn mark(&self, headers: &mut HeaderMap) {
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

/// Adds where a request came from, if nobody did before.
pub fn note_origin(headers: &mut HeaderMap, peer: Option<SocketAddr>) {
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::from_str(&peer.to_string()).ok()) {
        headers.entry(FORWARDED_FOR).or_insert(peer);
    }
}

/// Makes a request one to `address`, with the headers that go along; `None` if there is no such URL.
pub fn readdress(request: &mut Request<Body>, address: SocketAddr, path: PathAndQuery) -> Option<()> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(address.to_string()).ok()?);
    parts.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = http::Version::HTTP_11;
    drop_hop_by_hop(request.headers_mut());
    Some(())
}

/// Makes a function's answer one of ours: `kind` is the request's content type, which counts where the answer has none.
pub fn pass_on<B>(mut response: http::Response<B>, kind: Option<HeaderValue>) -> Response
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    drop_hop_by_hop(response.headers_mut());
    let plain = || HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().entry(header::CONTENT_TYPE).or_insert_with(|| kind.unwrap_or_else(plain));
    response.map(Body::new)
}

/// A request's body that is lent to one try: as long as nobody has read of it, another can be made with it.
#[derive(Clone, Debug)]
pub struct Lent(Arc<Mutex<(bool, Body)>>);

impl Lent {
    /// Lends a body.
    pub fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new((false, body))))
    }

    /// Whether nobody has read of it.
    pub fn is_whole(&self) -> bool {
        !self.lock().0
    }

    fn lock(&self) -> MutexGuard<'_, (bool, Body)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut lent = self.lock();
        lent.0 = true;
        Pin::new(&mut lent.1).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().1.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().1.size_hint()
    }
}

/// What lasts until an answer has ended, and is dropped then.
pub trait Guard: Send + Unpin + 'static {
    /// The answer broke off.
    fn broke_off(&mut self) {}
}

/// The answer, with `guard` kept until its end.
pub fn guarded(response: Response, guard: impl Guard) -> Response {
    response.map(|inner| Body::new(Guarded { inner, guard }))
}

struct Guarded<G> {
    inner: Body,
    guard: G,
}

impl<G: Guard> HttpBody for Guarded<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Err(_))) = polled {
            self.guard.broke_off();
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

/// An answer that is not the function's.
pub fn refuse(status: StatusCode, why: &str) -> Response {
    let mut response = plain(status, why);
    response.headers_mut().insert(INTERNAL, HeaderValue::from_static("proxy"));
    response
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

    #[test]
    fn a_path_names_a_function_and_what_it_is_asked() {
        let target = |method: Method, uri: &str| {
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            Target::of(&request, "/function/", "openfaas-fn").map_err(|answer| answer.status().as_u16())
        };
        let read = target(Method::GET, "/function/f.staging/a/b?x=1").unwrap();
        assert_eq!(
            (read.name.as_str(), read.namespace.as_str(), read.path.as_str()),
            ("f", "staging", "/a/b?x=1")
        );
        let short = target(Method::POST, "/function/f").unwrap();
        assert_eq!((short.namespace.as_str(), short.path.as_str()), ("openfaas-fn", "/"));
        assert_eq!(target(Method::TRACE, "/function/f"), Err(405));
    }
}
