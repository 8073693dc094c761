//! Dynamic resource allocation: claims that the tests allocate as a scheduler would, and slices that drivers apply.

use std::sync::Arc;

use axum::body::Bytes;

use super::{
    ApiServer, BTreeMap, IntoResponse, Json, Named, PATIENCE, Query, Response, Router, Shared, Shares, State,
    StatusCode, Value, content, get, is_watch, json, missing, patch, until,
};

const CLAIM: &str = "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}";
const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices";
const SLICE: &str = "/apis/resource.k8s.io/v1/resourceslices/{name}";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(CLAIM, get(read_claim))
        .route(SLICES, get(list_slices))
        .route(SLICE, patch(apply_slice).delete(delete_slice))
}

impl ApiServer {
    /// Adds a claim, or replaces it.
    pub fn put_claim(&self, claim: &Value) {
        let name = |field: &str| claim["metadata"][field].as_str().expect("a claim has a name").to_string();
        self.content().claims.insert((name("namespace"), name("name")), claim.clone());
    }

    /// Deletes a claim.
    pub fn delete_claim(&self, name: &str) {
        self.content().claims.remove(&("fn".into(), name.into())).expect("the claim is there");
    }

    /// Waits until claims were asked for so many times more.
    pub async fn until_asked_for_claims(&self, times: usize) {
        let before = self.content().claim_reads;
        until("claims to be asked for", PATIENCE, async || {
            (self.content().claim_reads >= before + times).then_some(())
        })
        .await;
    }

    /// Answers requests for claims by an error, or does so no longer.
    pub fn set_down(&self, is_down: bool) {
        self.content().is_down = is_down;
    }

    /// Waits until there is one slice, and it is as `is` wants it.
    pub async fn until_slice(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(what, PATIENCE, async || {
            let content = self.content();
            let slice = content.slices.values().next().filter(|_| content.slices.len() == 1);
            slice.filter(|slice| is(slice)).cloned()
        })
        .await
    }

    /// How often slices were written.
    pub fn slice_writes(&self) -> usize {
        self.content().slice_writes
    }

    /// How often slices were listed.
    pub fn slice_lists(&self) -> usize {
        self.content().slice_lists
    }

    /// Adds a slice that somebody else wrote, or an agent of another version.
    pub fn put_slice(&self, slice: &Value) {
        change_slice(&self.shared, slice.clone());
    }

    /// Deletes all slices, as a kubelet does that starts.
    pub fn wipe_slices(&self) {
        let names: Vec<_> = self.content().slices.keys().cloned().collect();
        for name in &names {
            drop(remove_slice(&self.shared, name));
        }
    }
}

async fn read_claim(State(shared): Shares, Named(key): Named<(String, String)>) -> Response {
    let mut content = content(&shared);
    content.claim_reads += 1;
    if content.is_down {
        return (StatusCode::SERVICE_UNAVAILABLE, "down").into_response();
    }
    content.claims.get(&key).map_or_else(missing, |claim| Json(claim.clone()).into_response())
}

async fn list_slices(State(shared): Shares, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let wanted = "spec.nodeName=node-1,spec.driver=gpu.gpufn.dev";
    if query.get("fieldSelector").map(String::as_str) != Some(wanted) {
        return (StatusCode::BAD_REQUEST, format!("{query:?}")).into_response();
    }
    if is_watch(&query) {
        return shared.slice_changes.watch(&query);
    }
    let mut content = content(&shared);
    content.slice_lists += 1;
    let items: Vec<_> = content.slices.values().cloned().collect();
    let list = json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSliceList",
        "metadata": {"resourceVersion": content.version.to_string()},
        "items": items,
    });
    Json(list).into_response()
}

/// Server-side apply by the only one who applies: what is sent is what there is.
async fn apply_slice(
    State(shared): Shares,
    Named(name): Named<String>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    // An apply is said to be YAML, as which every JSON passes.
    let slice: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !query.contains_key("fieldManager") || slice["metadata"]["name"] != name {
        return (StatusCode::BAD_REQUEST, format!("{query:?} {slice}")).into_response();
    }
    content(&shared).slice_writes += 1;
    Json(change_slice(&shared, slice)).into_response()
}

async fn delete_slice(State(shared): Shares, Named(name): Named<String>) -> Response {
    remove_slice(&shared, &name).map_or_else(missing, |slice| Json(slice).into_response())
}

fn change_slice(shared: &Shared, mut slice: Value) -> Value {
    let mut content = content(shared);
    content.version += 1;
    slice["metadata"]["resourceVersion"] = json!(content.version.to_string());
    let name = slice["metadata"]["name"].as_str().expect("a slice has a name").to_string();
    let kind = if content.slices.contains_key(&name) { "MODIFIED" } else { "ADDED" };
    content.slices.insert(name, slice.clone());
    shared.slice_changes.add(kind, &slice);
    slice
}

fn remove_slice(shared: &Shared, name: &str) -> Option<Value> {
    let mut content = content(shared);
    content.version += 1;
    let mut removed = content.slices.remove(name)?;
    removed["metadata"]["resourceVersion"] = json!(content.version.to_string());
    shared.slice_changes.add("DELETED", &removed);
    Some(removed)
}
