//! `/system/namespaces`, `/system/namespace/{name}`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use openfaas::answers::{Refusal, from_json};
use openfaas::shapes::FunctionNamespace;

use super::App;

pub(super) async fn list(State(app): State<App>) -> Json<Vec<String>> {
    Json(app.cluster.functions.namespaces())
}

pub(super) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<FunctionNamespace>, Refusal> {
    Ok(Json(app.cluster.get_namespace(&name).await?))
}

/// The name is in the body only: clients leave it out of the path.
pub(super) async fn create(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    app.cluster.create_namespace(from_json(&body)?).await?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn update(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    app.cluster.update_namespace(FunctionNamespace { name, ..from_json(&body)? }).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    app.cluster.delete_namespace(&name).await?;
    Ok(StatusCode::ACCEPTED)
}
