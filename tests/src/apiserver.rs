//! An API server as the node agent meets it: pods with annotations that are listed, watched and patched, a node with
//! labels, events, resource claims, and the node's resource slices. And as the scaler does: Deployments and their pods, who else
//! scales them, Leases. It knows nothing else, and refuses what it does not know.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path as Named, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use changes::Changes;
use serde_json::{Value, json};

use crate::wait::until;

pub use workloads::Written;

pub(crate) mod changes;
mod owners;
mod resources;
mod workloads;

const PATIENCE: Duration = Duration::from_secs(10);
/// UID of every node.
const NODE_UID: &str = "node-uid-1";

/// An API server on loopback; its end is the end of this.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    content: Mutex<Content>,
    changes: Changes,
    slice_changes: Changes,
    deployment_changes: Changes,
    replica_changes: Changes,
    /// Of each kind of those who scale Deployments too, and of profiles.
    owner_changes: [Changes; 4],
}

#[derive(Debug, Default)]
struct Content {
    version: u64,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Value>,
    labels: BTreeMap<String, String>,
    events: Vec<Value>,
    /// Resource claims, by namespace and name.
    claims: BTreeMap<(String, String), Value>,
    /// Resource slices, by name.
    slices: BTreeMap<String, Value>,
    /// Deployments, and their pods.
    deployments: workloads::Objects,
    replicas: workloads::Objects,
    are_workloads_hidden: bool,
    /// Who else scales Deployments, and profiles, by the plural of the kind.
    owners: BTreeMap<String, workloads::Objects>,
    leases: workloads::Objects,
    /// What the scaler wrote.
    written: Vec<Written>,
    /// Nothing is answered.
    is_gone: bool,
    /// How often slices were written, and listed.
    slice_writes: usize,
    slice_lists: usize,
    /// How often a claim was asked for.
    claim_reads: usize,
    /// Requests for claims are answered by an error.
    is_down: bool,
}

impl ApiServer {
    /// Starts one with no pods.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/api/v1/pods", get(list))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(read).patch(annotate))
            .route("/api/v1/nodes/{name}", patch(label).get(node))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}", patch(event_again))
            .merge(owners::router())
            .merge(resources::router())
            .merge(workloads::router())
            .layer(middleware::from_fn_with_state(Arc::clone(&shared), answers))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, shared, server }
    }

    /// Answers nothing from now on, and ends all watches; or is there again.
    pub fn set_gone(&self, is_gone: bool) {
        self.content().is_gone = is_gone;
        if is_gone {
            self.shared.deployment_changes.cut();
            self.shared.replica_changes.cut();
            self.shared.owner_changes.iter().for_each(Changes::cut);
        }
    }

    /// Writes a kubeconfig that names it.
    pub fn write_kubeconfig(&self, path: &Path) {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "agent", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "agent"}}],
            "current-context": "fake",
        });
        std::fs::write(path, config.to_string()).expect("a kubeconfig can be written");
    }

    /// Adds a pod of the node that has opted in, or changes its annotations.
    pub fn put(&self, pod: &str, annotations: &[(&str, &str)]) {
        let annotations: BTreeMap<_, _> =
            annotations.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), *value)).collect();
        self.change("fn", pod, |metadata| metadata["annotations"] = json!(annotations));
    }

    /// Deletes a pod.
    pub fn delete(&self, pod: &str) {
        let mut content = self.content();
        content.version += 1;
        let removed = content.pods.remove(&("fn".into(), pod.into()));
        let mut removed = removed.expect("the pod is there");
        removed["metadata"]["resourceVersion"] = json!(content.version.to_string());
        self.shared.changes.add("DELETED", &removed);
    }

    /// An annotation that somebody wrote.
    pub fn annotation(&self, pod: &str, name: &str) -> Option<String> {
        let content = self.content();
        let pod = content.pods.get(&("fn".to_string(), pod.to_string()))?;
        Some(pod["metadata"]["annotations"][name].as_str()?.into())
    }

    /// Waits until an annotation has a value.
    pub async fn until_annotation(&self, pod: &str, name: &str, value: &str) {
        until(&format!("{name} of {pod} to be {value}"), PATIENCE, async || {
            (self.annotation(pod, name).as_deref() == Some(value)).then_some(())
        })
        .await;
    }

    /// A label of the node.
    pub fn label(&self, name: &str) -> Option<String> {
        self.content().labels.get(name).cloned()
    }

    /// Waits for an event of this reason, and returns its note.
    pub async fn until_event(&self, reason: &str) -> String {
        until(&format!("an event {reason}"), PATIENCE, async || {
            let content = self.content();
            let event = content.events.iter().find(|event| event["reason"] == reason)?;
            assert_eq!(event["regarding"]["uid"], "uid-1", "it is of the pod: {event}");
            Some(event["note"].as_str().unwrap_or_default().to_string())
        })
        .await
    }

    /// Reasons of all events.
    pub fn events(&self) -> Vec<String> {
        let content = self.content();
        content.events.iter().map(|event| event["reason"].as_str().unwrap_or_default().into()).collect()
    }

    fn change(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        change_pod(&self.shared, namespace, name, change);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        content(&self.shared)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn content(shared: &Shared) -> MutexGuard<'_, Content> {
    shared.content.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change_pod(shared: &Shared, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut content = content(shared);
    content.version += 1;
    let version = content.version.to_string();
    let key = (namespace.to_string(), name.to_string());
    let kind = if content.pods.contains_key(&key) { "MODIFIED" } else { "ADDED" };
    let pod = content.pods.entry(key).or_insert_with(|| {
        json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": {
                "name": name, "namespace": namespace, "uid": "uid-1", "annotations": {},
                "labels": {"gpufn.dev/enabled": "true"},
            },
        })
    });
    change(&mut pod["metadata"]);
    pod["metadata"]["resourceVersion"] = json!(version);
    shared.changes.add(kind, pod);
    pod.clone()
}

type Shares = State<Arc<Shared>>;

async fn list(State(shared): Shares, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let wanted =
        (query.get("fieldSelector").map(String::as_str), query.get("labelSelector").map(String::as_str));
    if wanted == (None, Some("gpufn.dev/enabled=true")) {
        return workloads::replicas(&shared, &query);
    }
    if wanted != (Some("spec.nodeName=node-1"), Some("gpufn.dev/enabled=true")) {
        return (StatusCode::BAD_REQUEST, format!("{query:?}")).into_response();
    }
    if is_watch(&query) {
        return shared.changes.watch(&query);
    }
    let content = content(&shared);
    let items: Vec<_> = content.pods.values().cloned().collect();
    let list = json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": content.version.to_string()},
        "items": items,
    });
    Json(list).into_response()
}

/// Whether a query asks for what changes from now on.
fn is_watch(query: &BTreeMap<String, String>) -> bool {
    query.get("watch").is_some_and(|watch| watch == "true" || watch == "1")
}

fn missing() -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "not found", "reason": "NotFound", "code": 404});
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}

async fn read(State(shared): Shares, Named(key): Named<(String, String)>) -> Response {
    content(&shared).pods.get(&key).map_or_else(missing, |pod| Json(pod.clone()).into_response())
}

/// Whether it answers at all.
async fn answers(State(shared): Shares, request: Request, next: Next) -> Response {
    if content(&shared).is_gone {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

async fn annotate(
    State(shared): Shares,
    Named((namespace, name)): Named<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(patch): Json<Value>,
) -> Response {
    if let Some(answer) = workloads::annotate(&shared, &namespace, &name, &query, &patch) {
        return answer;
    }
    if !content(&shared).pods.contains_key(&(namespace.clone(), name.clone())) {
        return missing();
    }
    let pod = change_pod(&shared, &namespace, &name, |metadata| {
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            metadata["annotations"][key] = value.clone();
        }
    });
    Json(pod).into_response()
}

async fn label(State(shared): Shares, Named(name): Named<String>, Json(patch): Json<Value>) -> Json<Value> {
    let mut content = content(&shared);
    for (key, value) in patch["metadata"]["labels"].as_object().into_iter().flatten() {
        content.labels.insert(key.clone(), value.as_str().unwrap_or_default().into());
    }
    Json(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name}}))
}

async fn node(Named(name): Named<String>) -> Json<Value> {
    let metadata = json!({"name": name, "uid": NODE_UID});
    Json(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}))
}

/// An event that came once more.
async fn event_again(Json(event): Json<Value>) -> Json<Value> {
    Json(event)
}

async fn event(State(shared): Shares, Json(event): Json<Value>) -> Json<Value> {
    content(&shared).events.push(event.clone());
    Json(event)
}
