//! `/system/functions`, `/system/function/{name}`, `/system/scale-function/{name}`.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use gpu_share::invalid::Invalid;
use http::StatusCode;
use serde::Deserialize;

use openfaas::answers::{Refusal, from_json};

use super::Api;
use crate::up::platform::or_default_namespace;
use crate::up::{usage, view};
use openfaas::shapes::{DeleteRequest, FunctionDeployment, FunctionStatus, ScaleRequest};

/// Query of the routes that take one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    pub(super) namespace: String,
    usage: String,
}

pub(super) async fn list(State(api): State<Api>, Query(which): Query<Which>) -> Json<Vec<FunctionStatus>> {
    let namespace = or_default_namespace(&which.namespace);
    let functions = api.platform.functions();
    let here = functions.iter().filter(|function| function.id.namespace == namespace);
    Json(here.map(|function| view::status(function)).collect())
}

pub(super) async fn create(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let deployment: FunctionDeployment = from_json(&body)?;
    api.platform.create(deployment)?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn update(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let deployment: FunctionDeployment = from_json(&body)?;
    api.platform.update(deployment)?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(
    State(api): State<Api>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let request: DeleteRequest = from_json(&body)?;
    if request.function_name.is_empty() {
        return Err(Invalid::new("functionName", "", "the name of a function").into());
    }
    let namespace = if request.namespace.is_empty() { &which.namespace } else { &request.namespace };
    api.platform.delete(or_default_namespace(namespace), &request.function_name)?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn describe(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Response {
    let Some(function) = api.platform.function(or_default_namespace(&which.namespace), &name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut status = view::status(&function);
    if matches!(which.usage.as_str(), "1" | "true") {
        status.usage = Some(usage::of(&function, api.platform.clock.now()));
    }
    Json(status).into_response()
}

pub(super) async fn scale(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let request: ScaleRequest = from_json(&body)?;
    let namespace = if request.namespace.is_empty() { &which.namespace } else { &request.namespace };
    api.platform.scale(or_default_namespace(namespace), &name, request.replicas)?;
    Ok(StatusCode::ACCEPTED)
}
