//! `/system/secrets`. A value once written is never given out here.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use openfaas::answers::{Refusal, from_json};
use openfaas::shapes::Secret;

use super::App;
use super::functions::Which;

pub(super) async fn list(
    State(app): State<App>,
    Query(which): Query<Which>,
) -> Result<Json<Vec<Secret>>, Refusal> {
    let namespace = app.cluster.namespace(&which.namespace)?;
    let names = app.cluster.secrets(&namespace).await?.into_iter();
    let secret = |name| Secret { name, namespace: namespace.clone(), ..Secret::default() };
    Ok(Json(names.map(secret).collect()))
}

pub(super) async fn create(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    let namespace = app.cluster.namespace(&secret.namespace)?;
    app.cluster.create_secret(&namespace, &secret).await?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn update(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    let namespace = app.cluster.namespace(&secret.namespace)?;
    app.cluster.update_secret(&namespace, &secret).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(State(app): State<App>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    let namespace = app.cluster.namespace(&secret.namespace)?;
    app.cluster.delete_secret(&namespace, &secret.name).await?;
    Ok(StatusCode::ACCEPTED)
}
