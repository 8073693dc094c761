//! `/system/functions`, `/system/function/{name}`, `/system/scale-function/{name}`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use gpu_share::invalid::Invalid;
use openfaas::answers::{Refusal, from_json};
use openfaas::names::FunctionId;
use openfaas::shapes::{DeleteRequest, FunctionDeployment, FunctionStatus, ScaleRequest};
use serde::Deserialize;

use super::App;
use crate::provider::status;

/// Query of the routes that take one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    pub(super) namespace: String,
    usage: String,
}

pub(super) async fn list(
    State(app): State<App>,
    Query(which): Query<Which>,
) -> Result<Json<Vec<FunctionStatus>>, Refusal> {
    let namespace = app.cluster.namespace(&which.namespace)?;
    let deployments = app.cluster.list(&namespace).await?;
    let told = deployments.iter().filter_map(|deployment| {
        let requests = app.cluster.functions.requests(&status::id(deployment)?);
        status::status(deployment, &app.cluster.settings, requests)
    });
    Ok(Json(told.collect()))
}

pub(super) async fn create(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    let wanted: FunctionDeployment = from_json(&body)?;
    app.cluster.create(wanted).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn update(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    let wanted: FunctionDeployment = from_json(&body)?;
    app.cluster.update(wanted).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(
    State(app): State<App>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let request: DeleteRequest = from_json(&body)?;
    if request.function_name.is_empty() {
        return Err(Invalid::new("functionName", "", "the name of a function").into());
    }
    let id = named(&app, request.function_name, &request.namespace, &which)?;
    app.cluster.delete(&id).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn describe(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Refusal> {
    let id = named(&app, name, "", &which)?;
    let found = match app.cluster.get(&id).await {
        // Without a body, as the reference answers.
        Err(refusal) if refusal.status == StatusCode::NOT_FOUND => {
            return Ok(StatusCode::NOT_FOUND.into_response());
        }
        found => found?,
    };
    let requests = app.cluster.functions.requests(&id);
    let mut told = status::status(&found, &app.cluster.settings, requests);
    if let Some(told) = told.as_mut().filter(|_| matches!(which.usage.as_str(), "1" | "true")) {
        told.usage = app.cluster.usage(&id).await;
    }
    Ok(Json(told).into_response())
}

pub(super) async fn scale(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let request: ScaleRequest = from_json(&body)?;
    let id = named(&app, name, &request.namespace, &which)?;
    app.cluster.scale(&id, request.replicas).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The function that a request names: its namespace is in the body in today's clients and in the query in older ones.
fn named(app: &App, name: String, in_body: &str, which: &Which) -> Result<FunctionId, Refusal> {
    let namespace = if in_body.is_empty() { &which.namespace } else { in_body };
    Ok(FunctionId { namespace: app.cluster.namespace(namespace)?, name })
}
