//! The API server's paths.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{Key, Kind, Shared};

type Shares = State<Arc<Shared>>;
type Asked = Query<BTreeMap<String, String>>;

/// Time until a log that is followed is looked at again.
const GLANCE: std::time::Duration = std::time::Duration::from_millis(20);

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for group in ["/api/v1", "/apis/apps/v1"] {
        router = router
            .route(&format!("{group}/{{kind}}"), get(list_all))
            .route(&format!("{group}/namespaces/{{namespace}}/{{kind}}"), get(list).post(create))
            .route(
                &format!("{group}/namespaces/{{namespace}}/{{kind}}/{{name}}"),
                get(read).patch(write).delete(delete),
            );
    }
    router
        .route(
            "/api/v1/namespaces/{name}",
            get(read_namespace).patch(write_namespace).delete(delete_namespace),
        )
        .route("/api/v1/namespaces/{namespace}/pods/{name}/log", get(log))
        .route(
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            get(read_scale).patch(write_scale),
        )
        .with_state(shared)
}

async fn list_all(
    State(shared): Shares,
    Path(kind): Path<String>,
    Query(asked): Asked,
    headers: HeaderMap,
) -> Response {
    listed(&shared, &kind, None, &asked, &headers)
}

async fn list(
    State(shared): Shares,
    Path((namespace, kind)): Path<(String, String)>,
    Query(asked): Asked,
    headers: HeaderMap,
) -> Response {
    listed(&shared, &kind, Some(&namespace), &asked, &headers)
}

fn listed(
    shared: &Shared,
    kind: &str,
    namespace: Option<&str>,
    asked: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> Response {
    let Some(kind) = Kind::of(kind) else { return missing() };
    let selector = asked.get("labelSelector").map_or("", String::as_str);
    if asked.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        return shared.changes[kind as usize].watch(asked);
    }
    let items = shared.list(kind, namespace, selector);
    let items: Vec<_> = items.into_iter().map(|object| shown(object, headers)).collect();
    let version = shared.content().version.to_string();
    let (group, name) = if is_partial(headers) {
        ("meta.k8s.io/v1", "PartialObjectMetadataList".to_string())
    } else {
        (kind.group(), format!("{}List", kind.name()))
    };
    Json(json!({"apiVersion": group, "kind": name, "metadata": {"resourceVersion": version}, "items": items}))
        .into_response()
}

async fn read(
    State(shared): Shares,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(kind) = Kind::of(&kind) else { return missing() };
    shared
        .get(&(kind, namespace, name))
        .map_or_else(missing, |object| Json(shown(object, &headers)).into_response())
}

async fn create(
    State(shared): Shares,
    Path((namespace, kind)): Path<(String, String)>,
    Json(object): Json<Value>,
) -> Response {
    let Some(kind) = Kind::of(&kind) else { return missing() };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let key = (kind, namespace, name);
    if shared.get(&key).is_some() {
        return failure(StatusCode::CONFLICT, "AlreadyExists", &format!("{} already exists", key.2));
    }
    (StatusCode::CREATED, Json(shared.put(&key, object))).into_response()
}

async fn write(
    State(shared): Shares,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(kind) = Kind::of(&kind) else { return missing() };
    let key = (kind, namespace, name);
    let answer = written(&shared, &key, &headers, &body);
    if kind == Kind::Deployments {
        shared.run(&key);
    }
    answer
}

fn written(shared: &Shared, key: &Key, headers: &HeaderMap, body: &[u8]) -> Response {
    let Ok(patch) = serde_json::from_slice::<Value>(body) else {
        return failure(StatusCode::BAD_REQUEST, "BadRequest", "no JSON");
    };
    let before = shared.get(key);
    let object = match content_type(headers) {
        "application/apply-patch+yaml" => {
            let mut object = before.unwrap_or_else(|| json!({}));
            let last = shared.content().applied.insert(key.clone(), patch.clone());
            if let Some(last) = last {
                take_away(&mut object, &last, &patch);
            }
            merge(&mut object, &patch);
            object
        }
        "application/merge-patch+json" => {
            let Some(mut object) = before else { return missing() };
            merge(&mut object, &patch);
            object
        }
        other => return failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", other),
    };
    Json(shared.put(key, object)).into_response()
}

async fn delete(
    State(shared): Shares,
    Path((namespace, kind, name)): Path<(String, String, String)>,
) -> Response {
    let Some(kind) = Kind::of(&kind) else { return missing() };
    let Some(object) = shared.remove(&(kind, namespace.clone(), name.clone())) else { return missing() };
    if kind == Kind::Deployments {
        shared.end_all(&namespace, &name);
        shared.remove(&(Kind::Services, namespace, name));
    }
    Json(object).into_response()
}

async fn read_namespace(State(shared): Shares, Path(name): Path<String>) -> Response {
    let key = (Kind::Namespaces, String::new(), name);
    shared.get(&key).map_or_else(missing, |object| Json(object).into_response())
}

async fn write_namespace(
    State(shared): Shares,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    written(&shared, &(Kind::Namespaces, String::new(), name), &headers, &body)
}

async fn delete_namespace(State(shared): Shares, Path(name): Path<String>) -> Response {
    let removed = shared.remove(&(Kind::Namespaces, String::new(), name));
    removed.map_or_else(missing, |object| Json(object).into_response())
}

async fn read_scale(State(shared): Shares, Path((namespace, name)): Path<(String, String)>) -> Response {
    let found = shared.get(&(Kind::Deployments, namespace, name));
    found.map_or_else(missing, |deployment| Json(scale(&deployment)).into_response())
}

async fn write_scale(
    State(shared): Shares,
    Path((namespace, name)): Path<(String, String)>,
    Json(patch): Json<Value>,
) -> Response {
    let key = (Kind::Deployments, namespace, name);
    let Some(mut deployment) = shared.get(&key) else { return missing() };
    let version = &patch["metadata"]["resourceVersion"];
    if !version.is_null() && *version != deployment["metadata"]["resourceVersion"] {
        return failure(StatusCode::CONFLICT, "Conflict", "it was changed since");
    }
    deployment["spec"]["replicas"] = patch["spec"]["replicas"].clone();
    shared.scale_writes.fetch_add(1, Ordering::SeqCst);
    let deployment = shared.put(&key, deployment);
    shared.run(&key);
    Json(scale(&deployment)).into_response()
}

fn scale(deployment: &Value) -> Value {
    let metadata = json!({
        "name": deployment["metadata"]["name"], "namespace": deployment["metadata"]["namespace"],
        "resourceVersion": deployment["metadata"]["resourceVersion"],
    });
    // As Go writes it: zero is left out.
    let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec})
}

async fn log(State(shared): Shares, Path((_, pod)): Path<(String, String)>, Query(asked): Asked) -> Response {
    if asked.get("timestamps").map(String::as_str) != Some("true") {
        return failure(StatusCode::BAD_REQUEST, "BadRequest", "lines have their times here");
    }
    let Some(mut lines) = shared.node.log(&pod) else {
        return failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "container is waiting to start: ContainerCreating",
        );
    };
    let seen = lines.len();
    if let Some(since) = asked.get("sinceTime") {
        lines.retain(|line| line.get(..19) >= since.get(..19));
    }
    if let Some(tail) = asked.get("tailLines").and_then(|tail| tail.parse().ok()) {
        lines.drain(..lines.len().saturating_sub(tail));
    }
    let mut whole = lines.join("\n");
    if !whole.is_empty() {
        whole.push('\n');
    }
    if asked.get("follow").is_none_or(|follow| follow != "true") {
        return whole.into_response();
    }
    let later = futures_util::stream::unfold((shared, pod, seen), async |(shared, pod, seen)| {
        loop {
            let lines = shared.node.log(&pod)?;
            if lines.len() > seen {
                let new = lines[seen..].join("\n") + "\n";
                return Some((new, (shared, pod, lines.len())));
            }
            tokio::time::sleep(GLANCE).await;
        }
    });
    let all = futures_util::stream::once(async { whole }).chain(later);
    Body::from_stream(all.map(Ok::<_, std::convert::Infallible>)).into_response()
}

/// What a client is shown that asked for metadata only, or for all.
fn shown(object: Value, headers: &HeaderMap) -> Value {
    if !is_partial(headers) {
        return object;
    }
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

fn is_partial(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("PartialObjectMetadata"))
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// JSON merge patch (RFC 7396); a null takes away.
fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in patch {
        match (value, object.as_object_mut()) {
            (Value::Null, Some(object)) => drop(object.remove(name)),
            _ => merge(&mut object[name], value),
        }
    }
}

/// Fields that were applied and are no more, which nobody else has.
fn take_away(object: &mut Value, last: &Value, now: &Value) {
    let (Some(object), Some(last)) = (object.as_object_mut(), last.as_object()) else { return };
    for (name, value) in last {
        match now.get(name) {
            None => drop(object.remove(name)),
            Some(now) => take_away(&mut object[name], value, now),
        }
    }
}

fn missing() -> Response {
    failure(StatusCode::NOT_FOUND, "NotFound", "not found")
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}
