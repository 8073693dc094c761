//! The routes. Handlers read requests and write answers; what is allowed and what happens is decided elsewhere.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{any, get, post};
use openfaas::answers::{not_found, route};
use openfaas::calls::{HttpClient, nameless};
use openfaas::login::{self, Login};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::invoke::invoke;
use super::metrics::Metrics;
use super::wake::Waker;

mod functions;
mod info;
mod logs;
mod namespaces;
mod secrets;

/// Longest body of a request to `/system/…`, in bytes: a Secret and annotations are 1 MiB at most.
const LONGEST: usize = 4 << 20;

/// What handlers work on.
#[derive(Clone)]
pub(super) struct App {
    pub(super) cluster: Cluster,
    pub(super) waker: Waker,
    /// To the watchdogs.
    pub(super) client: HttpClient,
    pub(super) metrics: Arc<Metrics>,
    /// Without one, every client is let in.
    pub(super) login: Option<Arc<Login>>,
    pub(super) stop: CancellationToken,
}

/// All routes.
pub(super) fn router(app: App) -> Router {
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
        .route("/system/namespaces", get(namespaces::list))
        .route("/system/namespace/", post(namespaces::create))
        .route(
            "/system/namespace/{name}",
            get(namespaces::get).post(namespaces::create).put(namespaces::update).delete(namespaces::delete),
        )
        .layer(DefaultBodyLimit::max(LONGEST))
        .route_layer(middleware::from_fn_with_state(app.clone(), guard))
        .route_layer(middleware::from_fn_with_state(app.clone(), measure));
    system
        .route("/healthz", get(info::healthz))
        .route("/readyz", get(info::readyz))
        .route("/metrics", any(info::metrics))
        .route("/function/", any(nameless))
        .route("/function/{*rest}", any(invoke))
        .fallback(not_found)
        .with_state(app)
}

async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    match login::refusal(request.method(), request.headers(), app.login.as_deref()) {
        Some(refusal) => *refusal,
        None => next.run(request).await,
    }
}

/// Counts API requests by route.
async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let (method, route) = (request.method().clone(), route(request.uri().path()).to_string());
    let response = next.run(request).await;
    app.metrics.answered(response.status().as_str(), method.as_str(), &route, arrived.elapsed());
    response
}
