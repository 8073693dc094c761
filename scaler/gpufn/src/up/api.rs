//! The HTTP API: OpenFaaS' provider and gateway routes, and gpufn's own views. Handlers read requests and write
//! answers; what is allowed and what happens is decided elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine as _;
use gpu_share::invalid::Invalid;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::gateway::{self, Call};
use super::identity;
use super::platform::{Platform, PlatformError};
use super::queue::{self, Queue, Waiting};
use super::store::StoreError;

mod functions;
mod info;
mod logs;
mod secrets;

/// What handlers work on.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) platform: Arc<Platform>,
    pub(crate) queue: Queue,
    /// Password of `admin`; without one, every client is let in.
    pub(crate) password: Option<Arc<str>>,
}

/// User of the basic login.
pub(crate) const USER: &str = "admin";

/// All routes.
pub(crate) fn router(api: Api) -> Router {
    let system = Router::new()
        .route(
            "/system/functions",
            get(functions::list).post(functions::create).put(functions::update).delete(functions::delete),
        )
        .route("/system/function/{name}", get(functions::describe))
        .route("/system/scale-function/{name}", post(functions::scale))
        .route("/system/info", get(info::info))
        .route("/system/logs", get(logs::logs))
        .route(
            "/system/secrets",
            get(secrets::list).post(secrets::create).put(secrets::update).delete(secrets::delete),
        )
        .route("/system/namespaces", get(secrets::namespaces))
        .route("/system/namespace/", post(secrets::create_namespace))
        .route(
            "/system/namespace/{name}",
            get(secrets::namespace)
                .post(secrets::create_namespace)
                .put(secrets::update_namespace)
                .delete(secrets::delete_namespace),
        )
        .route("/v1/overview", get(info::overview))
        .route("/v1/decisions", get(info::decisions))
        .merge(scaler::page::router())
        .route_layer(middleware::from_fn_with_state(api.clone(), guard))
        .route_layer(middleware::from_fn_with_state(api.clone(), measure));
    system
        .route("/healthz", get(info::healthz))
        .route("/metrics", any(info::metrics))
        .route("/function/", any(nameless))
        .route("/function/{*rest}", any(invoke))
        .route("/async-function/", any(nameless))
        .route("/async-function/{*rest}", any(enqueue))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "404 page not found") })
        .with_state(api)
}

/// Lets in who knows the password, or everyone if there is none: an `Authorization` header is ignored then.
///
/// A web page that the user visits may not change anything here, though its browser can reach loopback: what it sends
/// carries `Origin` (Fetch Standard, 3.1), which no client of this API does.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) && !request.method().is_safe() {
        return plain(
            StatusCode::FORBIDDEN,
            "web pages may not change anything here (the request has an Origin)",
        );
    }
    let Some(password) = &api.password else { return next.run(request).await };
    if is_allowed(request.headers(), password) {
        return next.run(request).await;
    }
    let mut response = Response::new(Body::from("invalid credentials"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Restricted\""));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn is_allowed(headers: &HeaderMap, password: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(given) = given.and_then(|text| text.strip_prefix("Basic ")) else { return false };
    let Ok(given) = base64::engine::general_purpose::STANDARD.decode(given.trim()) else { return false };
    let wanted = format!("{USER}:{password}");
    // All bytes are looked at whatever they are, so that the time tells nothing about the password.
    let differ = given.iter().zip(wanted.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    given.len() == wanted.len() && differ == 0
}

/// Counts API requests by route.
async fn measure(State(api): State<Api>, request: Request, next: Next) -> Response {
    let started = api.platform.clock.now();
    let (method, route) = (request.method().clone(), route(request.uri().path()).to_string());
    let response = next.run(request).await;
    let took = api.platform.clock.now().since(started);
    api.platform.metrics.answered(response.status().as_str(), method.as_str(), &route, took);
    response
}

/// A path without the name that it may end in: two segments.
fn route(path: &str) -> &str {
    let ends = path.char_indices().skip(1).filter(|(_, character)| *character == '/').map(|(index, _)| index);
    path.get(..ends.into_iter().nth(1).unwrap_or(path.len())).unwrap_or(path)
}

/// One line of text, as the reference framework answers.
pub(crate) fn plain(status: StatusCode, line: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{line}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An error as an answer.
#[derive(Debug)]
pub(crate) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        plain(self.0, &self.1)
    }
}

impl From<Invalid> for Refusal {
    fn from(error: Invalid) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<PlatformError> for Refusal {
    fn from(error: PlatformError) -> Self {
        let status = match &error {
            PlatformError::Missing(_) => StatusCode::NOT_FOUND,
            PlatformError::Exists(_) => StatusCode::CONFLICT,
            PlatformError::Invalid(_) => StatusCode::BAD_REQUEST,
            PlatformError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Missing(_) => StatusCode::NOT_FOUND,
            StoreError::Exists(_) => StatusCode::CONFLICT,
            StoreError::Invalid(_) => StatusCode::BAD_REQUEST,
            StoreError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

/// Reads a JSON body whatever its content type says, as the reference does.
fn from_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal(StatusCode::BAD_REQUEST, format!("body is not the JSON expected here: {error}"))
    })
}

async fn nameless() -> Response {
    plain(StatusCode::BAD_REQUEST, "Provide function name in the request path")
}

/// Methods that a function may be called with.
const METHODS: [Method; 7] =
    [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::GET, Method::OPTIONS, Method::HEAD];

async fn invoke(State(api): State<Api>, mut request: Request) -> Response {
    let call = Call::of(request.headers());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    gateway::note_origin(request.headers_mut(), peer);
    match resolve(&api, "/function/", &request) {
        Ok((function, path)) => gateway::invoke(&api.platform, &function, request, path, &call).await,
        Err(mut refusal) => {
            call.mark(refusal.headers_mut());
            *refusal
        }
    }
}

async fn enqueue(State(api): State<Api>, mut request: Request) -> Response {
    let call = Call::of(request.headers());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    gateway::note_origin(request.headers_mut(), peer);
    let mut response = match resolve(&api, "/async-function/", &request) {
        Ok((function, path)) => {
            let callback = match queue::callback(request.headers()) {
                Ok(callback) => callback,
                Err(error) => return plain(StatusCode::BAD_REQUEST, &error),
            };
            let (head, body) = request.into_parts();
            if let Ok(body) = axum::body::to_bytes(body, queue::BODY_MAX).await {
                let (method, headers) = (head.method, head.headers);
                let waiting = Waiting { function, method, path, headers, body, call: call.clone(), callback };
                add_to_queue(&api.queue, waiting)
            } else {
                let most = format!("body is too large, allowed are {} bytes", queue::BODY_MAX);
                plain(StatusCode::PAYLOAD_TOO_LARGE, &most)
            }
        }
        Err(refusal) => *refusal,
    };
    call.mark(response.headers_mut());
    response
}

fn add_to_queue(queue: &Queue, waiting: Waiting) -> Response {
    if queue.add(waiting) {
        return StatusCode::ACCEPTED.into_response();
    }
    let mut response = plain(StatusCode::TOO_MANY_REQUESTS, "the queue of asynchronous calls is full");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The function that a path names, and what is left of the path for the function itself.
fn resolve(
    api: &Api,
    prefix: &str,
    request: &Request,
) -> Result<(Arc<super::function::Function>, http::uri::PathAndQuery), Box<Response>> {
    if !METHODS.contains(request.method()) {
        return Err(Box::new(StatusCode::METHOD_NOT_ALLOWED.into_response()));
    }
    let uri = request.uri();
    let rest = uri.path().strip_prefix(prefix).unwrap_or_default();
    let (full, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, namespace) = identity::split(full);
    let function = api.platform.function(namespace, name).ok_or_else(|| {
        let line = format!("error finding function {name}.{namespace}: it does not exist");
        Box::new(plain(StatusCode::NOT_FOUND, &line))
    })?;
    let target = match uri.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    };
    let target = http::uri::PathAndQuery::try_from(target)
        .map_err(|_| Box::new(plain(StatusCode::BAD_REQUEST, "the path cannot be passed on")))?;
    Ok((function, target))
}

#[cfg(test)]
mod tests;
