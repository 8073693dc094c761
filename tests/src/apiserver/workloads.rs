//! Deployments and their pods, as the scaler follows them: those that have opted in, of all nodes. And what it writes to them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::{get, patch};

use super::{
    ApiServer, BTreeMap, Changes, Content, IntoResponse, Json, Named, Query, Response, Router, Shared,
    Shares, StatusCode, Value, content, is_watch, json, until,
};

const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
const SCALE: &str = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale";
/// What ends the names of all `ReplicaSet`s.
const HASH: &str = "6b8c9";
/// Namespace of all functions, where nothing else is said.
const NAMESPACE: &str = "fn";

/// Objects of a kind by namespace and name.
pub(super) type Objects = BTreeMap<(String, String), Value>;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new().route(DEPLOYMENTS, get(list_deployments)).route(SCALE, patch(scale))
}

impl ApiServer {
    /// Adds a Deployment whose pods have opted in, or changes its replicas.
    pub fn put_deployment(&self, name: &str, replicas: u32, annotations: &[(&str, &str)]) {
        self.put_deployment_in(NAMESPACE, name, replicas, annotations);
    }

    /// The same in a namespace.
    pub fn put_deployment_in(
        &self,
        namespace: &str,
        name: &str,
        replicas: u32,
        annotations: &[(&str, &str)],
    ) {
        let annotations: BTreeMap<_, _> =
            annotations.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), *value)).collect();
        let labels = json!({"gpufn.dev/enabled": "true"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": namespace, "name": name, "uid": "uid-1"},
            "spec": {"replicas": replicas, "selector": {}, "template": {
                "metadata": {"labels": labels, "annotations": annotations},
            }},
            "status": {"replicas": replicas},
        });
        let mut content = self.content();
        put(&mut content, &self.shared.deployment_changes, |content| &mut content.deployments, deployment);
    }

    /// From now on Deployments and their pods are not shown, and nobody watches them any more.
    pub fn hide_workloads(&self) {
        self.content().are_workloads_hidden = true;
        self.shared.deployment_changes.cut();
        self.shared.replica_changes.cut();
    }

    /// Deletes a Deployment.
    pub fn delete_deployment(&self, name: &str) {
        let mut content = self.content();
        delete(&mut content, &self.shared.deployment_changes, |content| &mut content.deployments, name);
    }

    /// Adds a replica of a function at an address, or changes whether it is ready.
    pub fn put_replica(&self, function: &str, pod: &str, address: IpAddr, is_ready: bool) {
        self.put_pod(function, pod, address, is_ready, &json!({}));
    }

    /// The same with what a node agent wrote: GPU and quota in percent.
    pub fn put_placed_replica(&self, function: &str, pod: &str, address: IpAddr, gpu: &str, grant: &str) {
        let annotations = json!({"gpufn.dev/gpu": gpu, "gpufn.dev/grant": grant});
        self.put_pod(function, pod, address, true, &annotations);
    }

    fn put_pod(&self, function: &str, pod: &str, address: IpAddr, is_ready: bool, annotations: &Value) {
        let status = if is_ready { "True" } else { "False" };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": NAMESPACE, "name": pod, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"gpufn.dev/enabled": "true", "pod-template-hash": HASH},
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{function}-{HASH}"), "uid": "1",
                    "controller": true,
                }],
            },
            "spec": {"nodeName": "node-1", "containers": []},
            "status": {"podIP": address, "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:02Z"},
            ]},
        });
        let mut content = self.content();
        put(&mut content, &self.shared.replica_changes, |content| &mut content.replicas, pod);
    }

    /// Changes a replica's metadata: a node's agent writes there what it has, for one.
    pub fn change_replica(&self, pod: &str, change: impl FnOnce(&mut Value)) {
        let replica = change_replica(&self.shared, NAMESPACE, pod, change);
        replica.expect("the replica is there");
    }

    /// Adds a replica that is bound to a GPU, with this quota as it was asked for and granted.
    pub fn put_bound_replica(&self, function: &str, pod: &str, address: IpAddr, quota: u8) {
        self.put_replica(function, pod, address, true);
        self.change_replica(pod, |metadata| {
            let quota = quota.to_string();
            metadata["annotations"] = json!({
                "gpufn.dev/quota": quota, "gpufn.dev/grant": quota, "gpufn.dev/gpu": format!("GPU-{pod}"),
                "gpufn.dev/row": "0",
            });
        });
    }

    /// What was written to pods' quotas and Deployments' replicas so far, oldest first.
    pub fn written(&self) -> Vec<Written> {
        self.content().written.clone()
    }

    /// Waits until something was written to an object, after the first `seen` writes; when it was, and what.
    pub async fn until_written(&self, name: &str, seen: usize, patience: Duration) -> Written {
        until(&format!("{name} to be written"), patience, async || {
            self.content().written.iter().skip(seen).find(|written| written.name == name).cloned()
        })
        .await
    }

    /// Deletes a replica.
    pub fn delete_replica(&self, pod: &str) {
        let mut content = self.content();
        delete(&mut content, &self.shared.replica_changes, |content| &mut content.replicas, pod);
    }
}

/// A write of the scaler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// When.
    pub at: Instant,
    /// Name of the pod, or of the Deployment.
    pub name: String,
    /// The quota in percent, or the number of replicas.
    pub value: String,
    /// Who says that it wrote.
    pub manager: String,
}

impl Written {
    fn new(name: &str, value: &str, query: &BTreeMap<String, String>) -> Self {
        let manager = query.get("fieldManager").cloned().unwrap_or_default();
        Self { at: Instant::now(), name: name.into(), value: value.into(), manager }
    }
}

/// Changes a replica's metadata, if it is there: the pod as it is then.
fn change_replica(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    change: impl FnOnce(&mut Value),
) -> Option<Value> {
    let mut content = content(shared);
    let mut replica = content.replicas.get(&(namespace.into(), pod.into()))?.clone();
    change(&mut replica["metadata"]);
    put(&mut content, &shared.replica_changes, |content| &mut content.replicas, replica.clone());
    Some(replica)
}

/// Answers a patch of a replica's annotations, if there is such a replica.
pub(super) fn annotate(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    query: &BTreeMap<String, String>,
    patch: &Value,
) -> Option<Response> {
    let changed = change_replica(shared, namespace, pod, |metadata| {
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            metadata["annotations"][key] = value.clone();
        }
    })?;
    if let Some(quota) = patch["metadata"]["annotations"]["gpufn.dev/quota"].as_str() {
        content(shared).written.push(Written::new(pod, quota, query));
    }
    Some(Json(changed).into_response())
}

/// Changes how many replicas a Deployment is told to have; nobody makes them.
async fn scale(
    State(shared): Shares,
    Named((namespace, name)): Named<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(patch): Json<Value>,
) -> Response {
    let mut content = content(&shared);
    let Some(mut deployment) = content.deployments.get(&(namespace.clone(), name.clone())).cloned() else {
        return super::missing();
    };
    let replicas = patch["spec"]["replicas"].clone();
    deployment["spec"]["replicas"] = replicas.clone();
    content.written.push(Written::new(&name, &replicas.to_string(), &query));
    put(&mut content, &shared.deployment_changes, |content| &mut content.deployments, deployment);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"namespace": namespace, "name": name}, "spec": {"replicas": replicas}});
    Json(scale).into_response()
}

pub(super) fn put(
    content: &mut Content,
    changes: &Changes,
    of: impl Fn(&mut Content) -> &mut Objects,
    mut object: Value,
) {
    content.version += 1;
    object["metadata"]["resourceVersion"] = json!(content.version.to_string());
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_string();
    let key = (text("namespace"), text("name"));
    let kind = if of(content).contains_key(&key) { "MODIFIED" } else { "ADDED" };
    changes.add(kind, &object);
    of(content).insert(key, object);
}

fn delete(content: &mut Content, changes: &Changes, of: fn(&mut Content) -> &mut Objects, name: &str) {
    content.version += 1;
    let version = json!(content.version.to_string());
    let mut object = of(content).remove(&(NAMESPACE.into(), name.into())).expect("it is there");
    object["metadata"]["resourceVersion"] = version;
    changes.add("DELETED", &object);
}

async fn list_deployments(state: Shares, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let shared = &state.0;
    answer(shared, &query, ("apps/v1", "DeploymentList"), &shared.deployment_changes, |content| {
        &content.deployments
    })
}

/// Answers a list or a watch of the pods that have opted in, on whatever node.
pub(super) fn replicas(shared: &Shared, query: &BTreeMap<String, String>) -> Response {
    answer(shared, query, ("v1", "PodList"), &shared.replica_changes, |content| &content.replicas)
}

pub(super) fn answer(
    shared: &Shared,
    query: &BTreeMap<String, String>,
    (version, kind): (&str, &str),
    changes: &Changes,
    of: impl Fn(&Content) -> &Objects,
) -> Response {
    let content = content(shared);
    if content.are_workloads_hidden {
        // Clients themselves try again what is unavailable.
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if is_watch(query) {
        return changes.watch(query);
    }
    let items: Vec<_> = of(&content).values().cloned().collect();
    let metadata = json!({"resourceVersion": content.version.to_string()});
    Json(json!({"apiVersion": version, "kind": kind, "metadata": metadata, "items": items})).into_response()
}
