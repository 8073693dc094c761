//! `/system/info`, `/healthz`, `/metrics`, and gpufn's own `/v1/…` views.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use openfaas::answers::plain;

use super::Api;
use crate::up::{metrics, view};
use crate::view::{DecisionRecord, Overview};

/// Every nested object is there: faas-cli ends in a panic without one.
pub(super) async fn info() -> Json<Value> {
    let version = json!({
        "release": env!("CARGO_PKG_VERSION"),
        "sha": option_env!("GPUFN_SHA").unwrap_or("unknown"),
        "commit_message": "",
    });
    Json(json!({
        "provider": {"provider": "gpufn", "version": version, "orchestration": "process"},
        "version": version,
        "arch": std::env::consts::ARCH,
    }))
}

pub(super) async fn healthz() -> &'static str {
    "OK"
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    match metrics::render(&api.platform) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to collect metrics: {error}"))
        }
    }
}

pub(super) async fn overview(State(api): State<Api>) -> Json<Overview> {
    Json(view::overview(&api.platform))
}

/// Query of `/v1/decisions`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    /// Only those with a higher number.
    after: u64,
    /// Only the newest so many.
    last: Option<usize>,
}

pub(super) async fn decisions(
    State(api): State<Api>,
    Query(which): Query<Which>,
) -> Json<Vec<DecisionRecord>> {
    Json(api.platform.decisions.after(which.after, which.last.unwrap_or(usize::MAX)))
}
