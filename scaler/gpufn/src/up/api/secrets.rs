//! `/system/secrets`, `/system/namespaces`, `/system/namespace/{name}`. A value once written is never given out here.

use axum::Json;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use gpu_share::invalid::Invalid;
use http::StatusCode;

use super::functions::Which;
use openfaas::answers::{Refusal, from_json};

use super::Api;
use crate::up::platform::or_default_namespace;
use openfaas::names::DEFAULT_NAMESPACE;
use openfaas::shapes::{FunctionNamespace, Secret};

pub(super) async fn list(
    State(api): State<Api>,
    Query(which): Query<Which>,
) -> Result<Json<Vec<Secret>>, Refusal> {
    let namespace = or_default_namespace(&which.namespace).to_string();
    api.platform.store.require_namespace(&namespace)?;
    let names = api.platform.store.secrets(&namespace).into_iter();
    let secret = |name| Secret { name, namespace: namespace.clone(), ..Secret::default() };
    Ok(Json(names.map(secret).collect()))
}

pub(super) async fn create(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    api.platform.store.write_secret(or_default_namespace(&secret.namespace), &secret, false)?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn update(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    api.platform.store.write_secret(or_default_namespace(&secret.namespace), &secret, true)?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn delete(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let secret: Secret = from_json(&body)?;
    api.platform.store.remove_secret(or_default_namespace(&secret.namespace), &secret.name)?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn namespaces(State(api): State<Api>) -> Json<Vec<String>> {
    Json(api.platform.store.namespaces())
}

pub(super) async fn namespace(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<FunctionNamespace>, Refusal> {
    Ok(Json(api.platform.store.namespace(&name)?))
}

/// The name is in the body only: clients leave it out of the path.
pub(super) async fn create_namespace(State(api): State<Api>, body: Bytes) -> Result<StatusCode, Refusal> {
    let namespace: FunctionNamespace = from_json(&body)?;
    api.platform.store.create_namespace(&namespace)?;
    Ok(StatusCode::CREATED)
}

pub(super) async fn update_namespace(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let namespace = FunctionNamespace { name, ..from_json(&body)? };
    api.platform.store.update_namespace(&namespace)?;
    Ok(StatusCode::ACCEPTED)
}

/// Functions and secrets of a namespace go with it.
pub(super) async fn delete_namespace(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    if name == DEFAULT_NAMESPACE {
        return Err(Invalid::new("name", name, "another namespace than the default one").into());
    }
    api.platform.store.require_namespace(&name)?;
    for function in api.platform.functions().iter().filter(|function| function.id.namespace == name) {
        api.platform.delete(&name, &function.id.name)?;
    }
    api.platform.store.remove_namespace(&name)?;
    Ok(StatusCode::ACCEPTED)
}
