//! What happens to functions with GPUs while kubelet, agent or GPU fail: they run on, and nothing is lost or counted twice.

use std::collections::BTreeMap;
use std::time::Duration;

use gpu_share::binding::Binding;
use serde_json::{Value, json};
use tests::cluster::components::Component;
use tests::cluster::gpu_node::{GpuNode, GpuPod, Running};
use tests::cluster::tenant::{Outage, address, phase};
use tests::plugin::Plugin;
use tests::wait::until;

use crate::container;

const PATIENCE: Duration = Duration::from_mins(1);

/// Two functions on a node's only GPU, and how they are before anything fails.
struct Scene {
    node: GpuNode,
    functions: Vec<Running>,
    bindings: BTreeMap<String, Binding>,
    containers: Vec<(Option<String>, i32)>,
}

impl Scene {
    async fn new() -> Self {
        let node = GpuNode::start(Plugin::builder(), &[]).await;
        node.until_allocatable(20).await;
        let mut functions = Vec::new();
        for (name, units) in [("one", 5), ("other", 8)] {
            functions.push(node.run(&GpuPod::inference(name).units(units)).await);
        }
        let mut scene = Self { node, functions, bindings: BTreeMap::new(), containers: Vec::new() };
        (scene.bindings, scene.containers) = (scene.bindings().await, scene.containers().await);
        scene.all_answer().await;
        scene
    }

    async fn bindings(&self) -> BTreeMap<String, Binding> {
        let bindings = self.node.bindings().await.into_iter();
        bindings.map(|(pod, one)| (pod, one.binding)).collect()
    }

    async fn containers(&self) -> Vec<(Option<String>, i32)> {
        let mut containers = Vec::new();
        for function in &self.functions {
            containers.push(container(&self.node.tenant.pod(&function.name).await));
        }
        containers
    }

    /// Each function answers, and its kernels computed what they should.
    async fn all_answer(&self) {
        for function in &self.functions {
            let pod = self.node.tenant.pod(&function.name).await;
            let url = format!("http://{}:8080/", address(&pod).unwrap());
            let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
            let answer = client.get(url).send().await.unwrap();
            let status = answer.status();
            let answer: Value = answer.json().await.unwrap();
            assert!(status.is_success() && answer["inference_ms"].as_f64().is_some(), "{status} {answer}");
        }
    }

    /// The functions are the same processes with the same bindings as before, all of them attached, and a further pod fits
    /// into what is left and not into more.
    async fn is_as_before(&self) {
        until("the functions to be attached", PATIENCE, async || {
            let bindings = self.node.bindings().await;
            bindings.values().all(|one| !one.processes.is_empty()).then_some(())
        })
        .await;
        self.all_answer().await;
        assert_eq!(self.bindings().await, self.bindings);
        assert_eq!(self.containers().await, self.containers);
        self.node.until_allocatable(20).await;
        self.node.tenant.create(&GpuPod::inference("too-large").units(8).pod()).await;
        self.node.run(&GpuPod::inference("last").units(7)).await;
        assert_eq!(phase(&self.node.tenant.pod("too-large").await), "Pending");
        assert_eq!(self.node.bindings().await.len(), 3);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn functions_run_on_while_their_kubelet_is_killed_and_started_again() {
    let scene = Scene::new().await;
    let outage = Outage::begin(Component::Kubelet).await;
    scene.all_answer().await;
    assert_eq!(scene.bindings().await, scene.bindings);
    outage.end().await;
    scene.is_as_before().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn functions_run_on_while_the_agent_is_killed_and_started_again() {
    let mut scene = Scene::new().await;
    scene.node.plugin.crash();
    scene.node.until_allocatable(0).await;
    scene.all_answer().await;
    scene.node.plugin.restart().await;
    scene.is_as_before().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn an_upgrade_leaves_running_functions_their_hook_and_gives_new_ones_its_own() {
    let mut scene = Scene::new().await;
    let before = scene.functions[0].hook();
    scene.node.plugin.renew_hook();
    let mut older = scene.node.plugin.upgrade();
    assert!(older.stop(PATIENCE).0.success());
    scene.node.plugin.ready().await;
    scene.is_as_before().await;
    assert_eq!(scene.functions[0].hook(), before);
    let new = scene.node.running("last").await.hook();
    assert!(new.starts_with(scene.node.plugin.path("opt")) && new != before, "{}", new.display());
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_gpu_that_fails_takes_no_new_pods_until_it_is_back_and_keeps_those_that_it_has() {
    let scene = Scene::new().await;
    let node = &scene.node;
    node.plugin.order(&json!({"request": "lose", "gpu": 0}));
    let event = until("the event beside a pod", PATIENCE, async || {
        node.tenant.events("one").await.into_iter().find(|event| event.starts_with("GpuUnhealthy"))
    })
    .await;
    assert!(event.ends_with("what runs on it goes on"), "{event}");
    node.until_allocatable(0).await;
    node.tenant.create(&GpuPod::inference("waits").units(2).pod()).await;
    until("the scheduler's word", PATIENCE, async || {
        let events = node.tenant.events("waits").await;
        events.into_iter().find(|event| event.contains("Insufficient gpufn.dev/gpu"))
    })
    .await;
    scene.all_answer().await;
    assert_eq!(scene.bindings().await, scene.bindings);

    node.plugin.order(&json!({"request": "return", "gpu": 0}));
    node.running("waits").await;
    node.tenant.delete("waits").await;
    until("what it had to be free", PATIENCE, async || (scene.bindings().await.len() == 2).then_some(()))
        .await;
    scene.is_as_before().await;
}
