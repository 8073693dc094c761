//! Pods with claims for parts of a GPU: the scheduler counts compute and memory, the node agent is a driver.

use std::time::Duration;

use gpu_share::units::{Bytes, Quota, Units};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tests::cluster::components::Component;
use tests::cluster::gpu_node::{GpuNode, GpuPod};
use tests::cluster::tenant::{Outage, phase};
use tests::delivery::{Claim, get_their_time};
use tests::plugin::Plugin;
use tests::wait::until;

use crate::container;

const PATIENCE: Duration = Duration::from_mins(1);
const SPAN: Duration = Duration::from_secs(8);
/// How far from its quota a pod's part of the time may be, percentage points.
const TOLERANCE: f64 = 1.5;
const DRIVER: &str = "gpu.gpufn.dev";
/// A class of these tests: the one of the driver's name is the chart's.
const CLASS: &str = "claims-tests";

/// What the driver's README says that it needs beyond what every agent needs.
fn rights() -> [Value; 3] {
    let of = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    [
        of("resource.k8s.io", "resourceclaims", &["get"]),
        of("resource.k8s.io", "resourceslices", &["list", "watch", "create", "patch", "delete"]),
        of("", "nodes", &["get"]),
    ]
}

/// A node whose agent is a driver, and templates of claims.
struct Scene(GpuNode);

impl Scene {
    async fn start() -> Self {
        let mut scene = Self(GpuNode::start(Plugin::builder().driver(), &rights()).await);
        // The slice may be there from before: the kubelet deletes it half a minute after its driver went.
        scene.until_registered(1).await;
        scene.until_slice().await;
        let selector = json!({"cel": {"expression": format!("device.driver == \"{DRIVER}\"")}});
        let class = json!({"metadata": {"name": CLASS}, "spec": {"selectors": [selector]}});
        // Tests share the cluster, and its classes.
        let classes = Api::<DeviceClass>::all(scene.0.tenant.client());
        if classes.get_opt(CLASS).await.unwrap().is_none() {
            create(&classes, class).await;
        }
        scene
    }

    /// Adds a template of claims.
    async fn template(&self, name: &str, compute: u32, memory: &str, configuration: Value) {
        let capacity = json!({"requests": {"compute": compute, "memory": memory}});
        let request = json!({"name": "gpu", "exactly": {"deviceClassName": CLASS, "capacity": capacity}});
        let mut parameters = json!({"apiVersion": "gpufn.dev/v1alpha1", "kind": "Share"});
        parameters.as_object_mut().unwrap().extend(configuration.as_object().unwrap().clone());
        let config = json!([{"opaque": {"driver": DRIVER, "parameters": parameters}}]);
        let devices = json!({"requests": [request], "config": config});
        let template = json!({"metadata": {"name": name}, "spec": {"spec": {"devices": devices}}});
        let (client, namespace) = (self.0.tenant.client(), self.0.tenant.namespace());
        create(&Api::<ResourceClaimTemplate>::namespaced(client, namespace), template).await;
    }

    /// Waits until the scheduler sees the node's GPUs.
    async fn until_slice(&self) -> ResourceSlice {
        until("the node's resource slice", PATIENCE, async || self.slices().await.pop()).await
    }

    /// Waits until kubelets have registered the agent that runs so many times.
    async fn until_registered(&mut self, times: usize) {
        until("the driver to be registered", PATIENCE, async || {
            let said = self.0.plugin.agent().output();
            (said.matches("registered with the kubelet").count() == times).then_some(())
        })
        .await;
    }

    async fn slices(&self) -> Vec<ResourceSlice> {
        let own = ListParams::default().fields(&format!("spec.driver={DRIVER}"));
        Api::all(self.0.tenant.client()).list(&own).await.unwrap().items
    }

    async fn claims(&self) -> Vec<ResourceClaim> {
        let (client, namespace) = (self.0.tenant.client(), self.0.tenant.namespace());
        Api::namespaced(client, namespace).list(&ListParams::default()).await.unwrap().items
    }

    async fn until_event(&self, pod: &str, reason: &str) -> String {
        until(&format!("an event {reason} of {pod}"), PATIENCE, async || {
            self.0.tenant.events(pod).await.into_iter().find(|event| event.starts_with(reason))
        })
        .await
    }
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// A pod with a claim from `template`.
fn with_claim(pod: GpuPod, template: &str) -> GpuPod {
    let claims = json!([{"name": "gpu", "resourceClaimTemplateName": template}]);
    pod.resources(json!({"claims": [{"name": "gpu"}]})).spec("resourceClaims", claims)
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn two_claims_for_a_quarter_share_a_gpu_a_larger_one_waits_and_all_is_given_back() {
    let scene = Scene::start().await;
    let node = &scene.0;
    scene.template("quarter", 25, "4Gi", json!({"quotaLimit": 25})).await;
    scene.template("most", 60, "4Gi", json!({})).await;
    let mut pods = Vec::new();
    for name in ["one", "other"] {
        pods.push(node.run(&with_claim(GpuPod::audit(name), "quarter")).await);
    }
    let quarter = Quota::from_percent(25).unwrap();
    for pod in &pods {
        let share = &pod.binding.binding.share;
        assert_eq!((share.floor, share.ceiling, share.memory), (quarter, quarter, Bytes::gib(4)));
    }
    let gpu = |index: usize| &pods[index].binding.binding.gpu;
    assert_eq!(gpu(0), gpu(1));
    let claims = pods.iter().map(|pod| Claim {
        pids: vec![pod.pid],
        at_least: 25.0 - TOLERANCE,
        at_most: 25.0 + TOLERANCE,
    });
    get_their_time("two claims of 25 %", node, SPAN, &claims.collect::<Vec<_>>()).await;

    node.tenant.create(&with_claim(GpuPod::audit("large"), "most").pod()).await;
    let event = scene.until_event("large", "FailedScheduling").await;
    assert!(event.contains("cannot allocate all claims"), "{event}");
    assert_eq!(phase(&node.tenant.pod("large").await), "Pending");
    node.tenant.delete("one").await;
    let large = node.running("large").await;
    assert_eq!(large.binding.binding.share.floor, Quota::from_percent(60).unwrap());

    for name in ["other", "large"] {
        node.tenant.delete(name).await;
    }
    until("everything to be given back", PATIENCE, async || {
        let [gpu] = <[_; 1]>::try_from(node.plugin.control().status().await.unwrap().gpus).unwrap();
        (gpu.bindings.is_empty() && gpu.free_units == Units(20)).then_some(())
    })
    .await;
    until("the claims to go", PATIENCE, async || scene.claims().await.is_empty().then_some(())).await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn what_is_wrong_with_a_claim_is_told_beside_its_pod() {
    let scene = Scene::start().await;
    scene.template("greedy", 25, "4Gi", json!({"quota": 40})).await;
    scene.0.tenant.create(&with_claim(GpuPod::audit("some"), "greedy").pod()).await;
    let event = scene.until_event("some", "FailedPrepareDynamicResources").await;
    assert!(event.contains("configuration, quota is \"40 %\", allowed is at most 25 %"), "{event}");
    assert_eq!(scene.0.bindings().await.len(), 0);
    scene.0.tenant.delete("some").await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn pods_run_on_while_kubelet_and_driver_fail_and_the_slice_comes_back() {
    let mut scene = Scene::start().await;
    scene.template("quarter", 25, "4Gi", json!({"sm": 50})).await;
    let before = scene.0.run(&with_claim(GpuPod::inference("some"), "quarter")).await.binding.binding;
    assert_eq!((before.share.sm.percent(), before.share.floor), (50, Quota::from_percent(50).unwrap()));
    let started = container(&scene.0.tenant.pod("some").await);

    let outage = Outage::begin(Component::Kubelet).await;
    outage.end().await;
    scene.until_registered(2).await;
    scene.0.tenant.create(&with_claim(GpuPod::inference("after-kubelet"), "quarter").pod()).await;
    scene.0.running("after-kubelet").await;
    scene.until_slice().await;

    let generation = async |scene: &Scene| scene.until_slice().await.spec.pool.generation;
    let last = generation(&scene).await;
    scene.0.plugin.crash();
    scene.0.plugin.restart().await;
    scene.until_registered(1).await;
    scene.0.tenant.delete("after-kubelet").await;
    scene.0.tenant.create(&with_claim(GpuPod::inference("after-driver"), "quarter").pod()).await;
    scene.0.running("after-driver").await;
    assert_eq!(generation(&scene).await, last, "nothing had to be written");

    assert_eq!(scene.0.binding("some").await.binding, before);
    assert_eq!(container(&scene.0.tenant.pod("some").await), started);
    let slices = Api::<ResourceSlice>::all(scene.0.tenant.client());
    let name = scene.slices().await[0].metadata.name.clone().unwrap();
    slices.delete(&name, &DeleteParams::default()).await.unwrap();
    assert!(generation(&scene).await > last);
}
