//! Over HTTP: health, metrics, explanations, the web page, and what front ends tell.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::board::{Board, Explanation};
use super::clock::Clock;
use super::control::Shared;
use super::decisions::Decision;
use super::fleet::FunctionName;
use super::lead::Leadership;
use super::metrics::Metrics;
use super::overview::Overview;

/// Most requests that are believed to wait in front of one function.
const MOST_HELD: u32 = 1_000_000;

/// What is served from.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: CancellationToken,
    pub(super) clock: Clock,
    pub(super) leadership: Arc<Leadership>,
    pub(super) shared: Arc<Shared>,
}

/// All paths.
pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(crate::page::router())
        .route("/v1/overview", get(overview))
        .route("/v1/decisions", get(decisions))
        .route("/v1/functions", get(functions))
        .route("/v1/functions/{namespace}/{name}", get(function))
        .route("/v1/functions/{namespace}/{name}/explanation", get(explanation))
        .route("/v1/functions/{namespace}/{name}/held", put(hold))
        .with_state(app)
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "about to end\n")
    } else if app.board.is_listed() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not shown Deployments and pods yet\n")
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let (all, known) = app.board.count();
    match app.metrics.text(all, known) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn overview(State(app): State<App>) -> Json<Overview> {
    Json(app.board.overview())
}

/// Which decisions are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Which {
    /// Only those with a higher number.
    after: u64,
    /// Only the newest so many.
    last: Option<usize>,
}

async fn decisions(State(app): State<App>, Query(which): Query<Which>) -> Json<Vec<Decision>> {
    Json(app.board.decisions.after(which.after, which.last.unwrap_or(usize::MAX)))
}

async fn functions(State(app): State<App>) -> Json<Vec<Explanation>> {
    Json(app.board.explain_all())
}

async fn function(State(app): State<App>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let name = FunctionName { namespace, name };
    app.board.explain(&name).map_or_else(|| missing(&name), |explanation| Json(explanation).into_response())
}

/// Why it has what it has. A scaler that does not lead says who does, and what it knows itself.
async fn explanation(State(app): State<App>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let name = FunctionName { namespace, name };
    let Some(mut explanation) = app.board.why(&name) else { return missing(&name) };
    explanation.decided_by = app.leadership.holder();
    explanation.is_deciding = app.leadership.is_ours();
    // A period may be deciding: nobody else is to wait for it.
    tokio::task::block_in_place(|| app.shared.explain(app.clock.now(), &mut explanation));
    Json(explanation).into_response()
}

/// What a front end says of requests that wait for a first replica.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    held: u32,
}

async fn hold(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    held: Result<Json<Held>, JsonRejection>,
) -> Response {
    let name = FunctionName { namespace, name };
    match held {
        Ok(Json(Held { held })) if held <= MOST_HELD => {
            if app.board.hold(&name, held) {
                StatusCode::NO_CONTENT.into_response()
            } else {
                missing(&name)
            }
        }
        Ok(Json(Held { held })) => {
            let message = format!("held is {held}, allowed is a whole number from 0 to {MOST_HELD}\n");
            (StatusCode::BAD_REQUEST, message).into_response()
        }
        Err(error) => (error.status(), format!("{}\n", error.body_text())).into_response(),
    }
}

fn missing(name: &FunctionName) -> Response {
    let message = format!(
        "function is {:?}, allowed is a Deployment whose pods have the label gpufn.dev/enabled: \"true\"\n",
        name.to_string()
    );
    (StatusCode::NOT_FOUND, message).into_response()
}
