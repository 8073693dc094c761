//! `/system/info`, `/healthz`, `/readyz`, `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use openfaas::answers::plain;
use serde_json::{Value, json};

use super::App;
use crate::provider::Role;

/// What a gateway is told of its provider, or what a gateway's clients are told; the two have other shapes. Every nested object
/// is there: faas-cli ends in a panic without one.
pub(super) async fn info(State(app): State<App>) -> Json<Value> {
    let version = json!({
        "release": env!("CARGO_PKG_VERSION"),
        "sha": option_env!("GPUFN_SHA").unwrap_or("unknown"),
        "commit_message": "",
    });
    let provider = json!({"provider": "gpufn", "version": version, "orchestration": "kubernetes"});
    Json(match app.cluster.settings.role {
        Role::Provider => provider,
        Role::Gateway => json!({"provider": provider, "version": version, "arch": std::env::consts::ARCH}),
    })
}

pub(super) async fn healthz() -> &'static str {
    "OK"
}

/// Whether requests find their functions.
pub(super) async fn readyz(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "about to end\n")
    } else if app.cluster.functions.is_listed() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not shown all functions yet\n")
    }
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    match app.metrics.text(&app.cluster.functions) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to collect metrics: {error}"))
        }
    }
}
