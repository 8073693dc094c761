//! gpufn on a real Kubernetes. The tests run on the node of one cluster that they share, each in a namespace of its own:
//! `make e2e`, or `target/debug/cluster exec cargo test -p tests --test e2e -- --ignored` where one is up.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "e2e/claims.rs"]
mod claims;
#[path = "e2e/gpu_faults.rs"]
mod gpu_faults;
#[path = "e2e/gpus.rs"]
mod gpus;
#[path = "e2e/keda.rs"]
mod keda;
#[path = "e2e/node.rs"]
mod node;
#[path = "e2e/provider.rs"]
mod provider;
#[path = "e2e/release.rs"]
mod release;
#[path = "e2e/scaler_release.rs"]
mod scaler_release;
#[path = "e2e/vertical.rs"]
mod vertical;
#[path = "e2e/webhook.rs"]
mod webhook;

use k8s_openapi::api::core::v1::Pod;

/// Which container of a pod runs, and how often it was started again.
fn container(pod: &Pod) -> (Option<String>, i32) {
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    (status.container_id.clone(), status.restart_count)
}
