//! The HTTP API: OpenFaaS' provider and gateway routes, and gpufn's own views. Handlers read requests and write
//! answers; what is allowed and what happens is decided elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::{HeaderValue, StatusCode, header};
use openfaas::answers::{Refusal, not_found, plain, route};
use openfaas::calls::{self, Call, Target, nameless};
use openfaas::login::{self, Login};
use openfaas::names;

use super::gateway;
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
    /// Without one, every client is let in.
    pub(crate) login: Option<Arc<Login>>,
}

/// User of the basic login.
pub(crate) const USER: &str = "admin";

/// The login with this password.
pub(crate) fn login(password: String) -> Login {
    Login { user: USER.into(), password }
}

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
        .fallback(not_found)
        .with_state(api)
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    match login::refusal(request.method(), request.headers(), api.login.as_deref()) {
        Some(refusal) => *refusal,
        None => next.run(request).await,
    }
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

impl From<PlatformError> for Refusal {
    fn from(error: PlatformError) -> Self {
        let status = match &error {
            PlatformError::Missing(_) => StatusCode::NOT_FOUND,
            PlatformError::Exists(_) => StatusCode::CONFLICT,
            PlatformError::Invalid(_) => StatusCode::BAD_REQUEST,
            PlatformError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
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
        Self::new(status, error.to_string())
    }
}

async fn invoke(State(api): State<Api>, mut request: Request) -> Response {
    let call = Call::of(request.headers());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    calls::note_origin(request.headers_mut(), peer);
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
    calls::note_origin(request.headers_mut(), peer);
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
    let Target { name, namespace, path } = Target::of(request, prefix, names::DEFAULT_NAMESPACE)?;
    let function = api.platform.function(&namespace, &name).ok_or_else(|| {
        let line = format!("error finding function {name}.{namespace}: it does not exist");
        Box::new(plain(StatusCode::NOT_FOUND, &line))
    })?;
    Ok((function, path))
}

#[cfg(test)]
mod tests;
