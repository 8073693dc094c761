//! Who else scales Deployments, as the scaler follows them, profiles of functions, and the Lease by which one of several scalers
//! leads.

use std::sync::Arc;

use axum::routing::{get, patch, post};

use super::workloads;
use super::{
    ApiServer, BTreeMap, Content, IntoResponse, Json, Named, Query, Response, Router, Shared, Shares, State,
    StatusCode, Value, content, json, missing,
};

/// Plural, group and version, and kind.
const KINDS: [(&str, &str, &str); 4] = [
    ("scaledobjects", "keda.sh/v1alpha1", "ScaledObject"),
    ("horizontalpodautoscalers", "autoscaling/v2", "HorizontalPodAutoscaler"),
    ("verticalpodautoscalers", "autoscaling.k8s.io/v1", "VerticalPodAutoscaler"),
    (PROFILES, "gpufn.dev/v1alpha1", "GPUFunctionProfile"),
];
const PROFILES: &str = "gpufunctionprofiles";
const STATUS: &str = "/apis/gpufn.dev/v1alpha1/namespaces/{namespace}/gpufunctionprofiles/{name}/status";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}";

pub(super) fn router() -> Router<Arc<Shared>> {
    let router = Router::new()
        .route(LEASES, post(create_lease))
        .route(LEASE, get(read_lease).put(replace_lease))
        .route(STATUS, patch(write_status));
    KINDS.into_iter().fold(router, |router, (plural, version, kind)| {
        let list = move |State(shared): Shares, Query(query)| async move {
            list(&shared, &query, plural, version, kind)
        };
        router.route(&format!("/apis/{version}/{plural}"), get(list))
    })
}

impl ApiServer {
    /// Adds an object of the kind with this plural, which scales the Deployment of its own name, or replaces it. Of a kind
    /// without objects the API server knows nothing.
    pub fn put_owner(&self, plural: &str, deployment: &str, annotations: &[(&str, &str)]) {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment});
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let object = json!({
            "metadata": {"namespace": "fn", "name": deployment, "annotations": annotations},
            "spec": {"scaleTargetRef": target, "targetRef": target},
        });
        self.shared.put_object(&mut self.content(), plural, object);
    }

    /// Adds a profile of functions, or its next version.
    pub fn put_profile(&self, name: &str, generation: u32, spec: &Value) {
        let metadata = json!({"namespace": "fn", "name": name, "generation": generation});
        let profile = json!({
            "apiVersion": "gpufn.dev/v1alpha1", "kind": "GPUFunctionProfile", "metadata": metadata, "spec": spec,
        });
        self.shared.put_object(&mut self.content(), PROFILES, profile);
    }

    /// The status of a profile that somebody wrote.
    pub fn profile_status(&self, name: &str) -> Option<Value> {
        let content = self.content();
        content.owners.get(PROFILES)?.get(&("fn".into(), name.into()))?.get("status").cloned()
    }

    /// Who holds a Lease.
    pub fn holder(&self, lease: &str) -> Option<String> {
        let content = self.content();
        let lease = content.leases.iter().find(|((_, name), _)| name == lease)?.1;
        lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty()).map(Into::into)
    }
}

impl Shared {
    fn put_object(&self, content: &mut Content, plural: &str, object: Value) {
        let changes = self.owner_changes(plural);
        workloads::put(content, changes, |content| content.owners.entry(plural.into()).or_default(), object);
    }

    fn owner_changes(&self, plural: &str) -> &super::Changes {
        let place = KINDS.iter().position(|kind| kind.0 == plural).expect("it is one of the kinds");
        &self.owner_changes[place]
    }
}

fn list(
    shared: &Shared,
    query: &BTreeMap<String, String>,
    plural: &str,
    version: &str,
    kind: &str,
) -> Response {
    if !content(shared).owners.contains_key(plural) {
        return missing();
    }
    let list = format!("{kind}List");
    workloads::answer(shared, query, (version, &list), shared.owner_changes(plural), |content| {
        &content.owners[plural]
    })
}

async fn write_status(
    State(shared): Shares,
    Named(key): Named<(String, String)>,
    Json(patch): Json<Value>,
) -> Response {
    let mut content = content(&shared);
    let profile = content.owners.get(PROFILES).and_then(|profiles| profiles.get(&key)).cloned();
    let Some(mut profile) = profile else { return missing() };
    profile["status"] = patch["status"].clone();
    shared.put_object(&mut content, PROFILES, profile.clone());
    Json(profile).into_response()
}

async fn create_lease(
    State(shared): Shares,
    Named(namespace): Named<String>,
    Json(lease): Json<Value>,
) -> Response {
    let name = lease["metadata"]["name"].as_str().unwrap_or_default().to_string();
    write_lease(&shared, (namespace, name), lease, true)
}

async fn replace_lease(
    State(shared): Shares,
    Named(key): Named<(String, String)>,
    Json(lease): Json<Value>,
) -> Response {
    write_lease(&shared, key, lease, false)
}

/// As a real one: a first one where there is none, and another only in place of the version that its writer has seen.
fn write_lease(shared: &Shared, key: (String, String), mut lease: Value, is_first: bool) -> Response {
    let mut content = content(shared);
    let present = content.leases.get(&key).map(|lease| lease["metadata"]["resourceVersion"].clone());
    let is_current = match &present {
        None => is_first,
        Some(version) => !is_first && lease["metadata"]["resourceVersion"] == *version,
    };
    if !is_current {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "the object has been modified", "reason": "Conflict", "code": 409});
        return (StatusCode::CONFLICT, Json(status)).into_response();
    }
    content.version += 1;
    lease["metadata"]["resourceVersion"] = json!(content.version.to_string());
    lease["metadata"]["namespace"] = json!(key.0);
    content.leases.insert(key, lease.clone());
    Json(lease).into_response()
}

async fn read_lease(State(shared): Shares, Named(key): Named<(String, String)>) -> Response {
    content(&shared).leases.get(&key).map_or_else(missing, |lease| Json(lease.clone()).into_response())
}
