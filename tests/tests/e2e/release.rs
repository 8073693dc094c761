//! The chart `gpufn-node`, installed by Helm: the agent as a pod, with the rights and no more that the chart gives it.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use serde_json::json;
use tests::cluster::NODE;
use tests::cluster::components::kubeconfig;
use tests::cluster::gpu_node::GpuPod;
use tests::cluster::release::{NAME, Release};
use tests::wait::until;

use crate::container;

const PATIENCE: Duration = Duration::from_mins(1);

/// The agent's pod.
async fn agent(release: &Release) -> Pod {
    let pods = Api::<Pod>::namespaced(release.tenant.client(), release.tenant.namespace());
    let of_release = ListParams::default().labels(&format!("app.kubernetes.io/instance={NAME}"));
    let all = pods.list(&of_release).await.unwrap().items.into_iter();
    let mut agents = all.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    agents.next().unwrap_or_else(|| panic!("the release has no agent"))
}

async fn annotated(release: &Release, pod: &str, name: &str, value: &str) {
    let what = format!("{name} {value} beside {pod}");
    release
        .tenant
        .until(pod, &what, |pod| {
            pod.metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(name))
                .is_some_and(|found| found == value)
        })
        .await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn an_installed_chart_hands_out_gpus_and_an_upgrade_and_its_end_leave_functions_alone() {
    let mut release = Release::install(&json!({})).await;
    release.until_allocatable(20).await;
    let said = release.test().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains("Succeeded"), "{said}");
    release.until_allocatable(20).await;

    let pod = GpuPod::audit("function").units(6).annotation("quota", "20");
    release.tenant.create(&pod.annotation("quota-limit", "60").pod()).await;
    let running = container(&release.tenant.ready("function").await);
    annotated(&release, "function", "gpufn.dev/grant", "20").await;
    let maps = format!("/proc/{}/maps", release.function_of("function").await);
    until("the hook in the function", PATIENCE, async || {
        std::fs::read_to_string(&maps).unwrap_or_default().contains("lib/libcuda.so").then_some(())
    })
    .await;
    let label = release.tenant.node().await.metadata.labels.unwrap_or_default();
    assert_eq!(label.get("gpufn.dev/max-free-units").map(String::as_str), Some("14"));

    let before = agent(&release).await.metadata.uid;
    release.upgrade(&json!({"smallest": 2}));
    assert_ne!(agent(&release).await.metadata.uid, before, "another agent runs");
    let pods = Api::<Pod>::namespaced(release.tenant.client(), release.tenant.namespace());
    let quota = Patch::Merge(json!({"metadata": {"annotations": {"gpufn.dev/quota": "40"}}}));
    pods.patch("function", &PatchParams::default(), &quota).await.unwrap();
    annotated(&release, "function", "gpufn.dev/grant", "40").await;
    assert_eq!(container(&release.tenant.pod("function").await), running, "the function runs on");

    release.uninstall().unwrap_or_else(|error| panic!("{error:#}"));
    release.until_allocatable(0).await;
    assert_eq!(container(&release.tenant.pod("function").await), running, "the function runs on");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn claims_come_with_the_class_that_the_chart_brings() {
    let release = Release::install(&json!({"frontEnd": "dra"})).await;
    let said = release.test().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains("Succeeded"), "{said}");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn an_agents_token_changes_its_own_node_and_no_other() {
    let release = Release::install(&json!({})).await;
    release.until_allocatable(20).await;
    let client = release.tenant.client();
    let nodes = Api::<Node>::all(client.clone());
    let other: Node = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    nodes.create(&PostParams::default(), &other).await.unwrap();

    let taken = stolen(&release, agent(&release).await.metadata.name.as_deref()).await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"gpufn.dev/max-free-units": "20"}}}));
    let nodes_of_it = Api::<Node>::all(taken.clone());
    nodes_of_it.patch(NODE, &PatchParams::default(), &label).await.unwrap();
    let refused = nodes_of_it.patch("other", &PatchParams::default(), &label).await;
    let unschedulable = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    let cordoned = nodes_of_it.patch(NODE, &PatchParams::default(), &unschedulable).await;
    nodes.delete("other", &DeleteParams::default()).await.unwrap();

    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains(&format!("gpufn-node on {NODE} may change its own node")), "{refused}");
    let cordoned = cordoned.unwrap_err().to_string();
    assert!(cordoned.contains("gpufn-node may change labels and annotations only"), "{cordoned}");

    // A token that says no node is of no use either.
    let unbound = stolen(&release, None).await;
    let refused = Api::<Node>::all(unbound).patch(NODE, &PatchParams::default(), &label).await;
    assert!(refused.unwrap_err().to_string().contains("may change its own node"));
}

/// A client with a token of the agent's account, bound to a pod as the kubelet binds it.
async fn stolen(release: &Release, pod: Option<&str>) -> Client {
    let client = release.tenant.client();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), release.tenant.namespace());
    let bound = pod.map(|name| json!({"kind": "Pod", "apiVersion": "v1", "name": name}));
    let asked: TokenRequest =
        serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": [], "boundObjectRef": bound}}))
            .unwrap();
    let answer = accounts.create_token_request(NAME, &PostParams::default(), &asked).await.unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let file = kube::config::Kubeconfig::read_from(kubeconfig("admin")).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
    let token = answer.status.unwrap().token;
    config.auth_info =
        kube::config::AuthInfo { token: Some(token.into()), ..kube::config::AuthInfo::default() };
    Client::try_from(config).unwrap()
}
