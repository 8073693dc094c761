//! Functions that KEDA itself and the autoscaler itself scale by what `gpufn-scaler serve` says: from none to many and back,
//! while requests come through the watchdogs, and while parts fail.

use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher::Config;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::cluster::components::Component;
use tests::cluster::front_end::FrontEnd;
use tests::cluster::gpu_node::{GpuNode, GpuPod};
use tests::cluster::image::Image;
use tests::cluster::keda::Keda;
use tests::cluster::tenant::{self, Outage, is_ready};
use tests::cluster::{account, objects};
use tests::go::{self, Program};
use tests::load::{Load, Shot, Stream};
use tests::plugin::Plugin;
use tests::scaler::{Builder, Scaler};
use tests::wait::until;
use tests::{port, process};
use tokio::time::{Instant, sleep, sleep_until};

use crate::container;
use crate::webhook::Webhook;

/// Longest time until a Deployment has as many replicas as it should. A scaler forgets requests after a minute, and KEDA waits
/// for ten seconds more.
const PATIENCE: Duration = Duration::from_mins(3);
/// Longest time until a request is answered.
const DEADLINE: Duration = Duration::from_mins(1);
/// The objective of all functions here.
const BOUND: Duration = Duration::from_secs(1);
/// Requests that came while there were too few replicas are worked off in this time.
const BACKLOG: Duration = Duration::from_secs(3);

/// What the scaler's README says that it needs.
fn rights() -> Vec<Value> {
    let may = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    vec![
        may("apps", "deployments", &["list", "watch"]),
        may("apps", "deployments/scale", &["patch"]),
        may("", "pods", &["list", "watch", "patch"]),
        may("keda.sh", "scaledobjects", &["list", "watch"]),
        may("autoscaling", "horizontalpodautoscalers", &["list", "watch"]),
        may("autoscaling.k8s.io", "verticalpodautoscalers", &["list", "watch"]),
        may("gpufn.dev", "gpufunctionprofiles", &["list", "watch"]),
        may("gpufn.dev", "gpufunctionprofiles/status", &["patch"]),
        may("events.k8s.io", "events", &["create", "patch"]),
        may("coordination.k8s.io", "leases", &["create", "get", "update"]),
    ]
}

/// KEDA, a scaler with an account of its own, two GPUs, and a front end.
struct Scene {
    // In the order in which they end.
    _keda: Keda,
    scaler: Option<Scaler>,
    node: GpuNode,
    front_end: FrontEnd,
    tracks: Vec<Track>,
    folder: TempDir,
    /// Where each scaler listens for KEDA and for HTTP.
    addresses: [String; 2],
}

impl Scene {
    async fn start() -> Self {
        let node = GpuNode::start(Plugin::builder().gpus(2), &[]).await;
        node.until_allocatable(40).await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        account::create(&node.tenant, "gpufn-scaler", &rights(), &kubeconfig).await;
        let keda = Keda::start(&node.tenant).await;
        let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", port::free().unwrap()));
        let front_end = FrontEnd::start(&node.tenant, &format!("http://{}", addresses[1])).await;
        let (scaler, tracks) = (None, Vec::new());
        let mut scene = Self { _keda: keda, scaler, node, front_end, tracks, folder, addresses };
        scene.start_scaler().await;
        scene
    }

    fn builder(&self) -> Builder {
        let [grpc, http] = &self.addresses;
        Scaler::of_cluster(&self.folder.path().join("kubeconfig"))
            .with("--listen", grpc)
            .with("--http", http)
            .with("--gpu-memory", "16Gi")
    }

    async fn start_scaler(&mut self) {
        self.scaler = Some(self.builder().start().await);
    }

    fn kill_scaler(&mut self) {
        let scaler = self.scaler.take().unwrap();
        process::kill(scaler.pid());
    }

    /// Creates a function without a replica, and what KEDA scales it by.
    async fn deploy(&mut self, deployment: Deployment, bounds: Value) {
        let name = deployment.metadata.name.clone().unwrap();
        let deployments =
            Api::<Deployment>::namespaced(self.node.tenant.client(), self.node.tenant.namespace());
        deployments.create(&PostParams::default(), &deployment).await.unwrap();
        self.tracks.push(Track::start(deployments, &name).await);
        let mut scaled = json!({
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": name, "namespace": self.node.tenant.namespace()},
            "spec": {
                "scaleTargetRef": {"name": name},
                "pollingInterval": 5,
                "cooldownPeriod": 10,
                "triggers": [{
                    "type": "external-push",
                    "metadata": {"scalerAddress": self.addresses[0], "function": name},
                }],
            },
        });
        scaled["spec"].as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        objects::apply(&self.node.tenant.client(), &scaled).await;
        until(&format!("KEDA to follow {name}"), PATIENCE, async || {
            let status = objects::get(&self.node.tenant.client(), &scaled).await?.data["status"].clone();
            (status["externalMetricNames"] == json!(["s0-gpufn-demand"])).then_some(())
        })
        .await;
    }

    fn load(&self, function: &str, rps: f64) -> Load {
        Load::start(&self.front_end, [Stream::new(function, rps)], DEADLINE)
    }

    fn track(&self, function: &str) -> &Track {
        self.tracks.iter().find(|track| track.function == function).unwrap()
    }

    /// Waits until so many replicas are wanted and ready.
    async fn until(&self, function: &str, replicas: i32) {
        self.until_any(function, replicas..=replicas).await;
    }

    /// Waits until as many as one of these are wanted, and as many ready.
    async fn until_any(&self, function: &str, replicas: RangeInclusive<i32>) {
        let start = Instant::now();
        let track = self.track(function);
        let is_there = |(wanted, ready)| wanted == ready && replicas.contains(&wanted);
        while !is_there(track.last()) {
            assert!(
                start.elapsed() < PATIENCE,
                "{function} has {:?} replicas wanted and ready, not {replicas:?}; the scaler says {}",
                track.last(),
                self.explain(function).await,
            );
            sleep(Duration::from_millis(50)).await;
        }
        println!("{function}: {replicas:?} replicas after {:.1} s", start.elapsed().as_secs_f64());
    }

    async fn explain(&self, function: &str) -> String {
        let path = format!("/v1/functions/{}/{function}", self.node.tenant.namespace());
        match &self.scaler {
            Some(scaler) => scaler.get(&path).await.1,
            None => "nothing: there is none".into(),
        }
    }

    /// The pods that are ready, with the container that each has and how often that was started.
    async fn pods(&self) -> Vec<(String, (Option<String>, i32))> {
        let pods = Api::<Pod>::namespaced(self.node.tenant.client(), self.node.tenant.namespace());
        let mut pods = pods.list(&ListParams::default()).await.unwrap().items;
        pods.retain(is_ready);
        pods.iter().map(|pod| (pod.metadata.name.clone().unwrap(), container(pod))).collect()
    }
}

/// How many replicas a function was to have and had, since it was deployed.
struct Track {
    function: String,
    steps: Arc<Mutex<Vec<Step>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    at: Instant,
    wanted: i32,
    ready: i32,
}

impl Step {
    fn of(deployment: &Deployment) -> Self {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        Self { at: Instant::now(), wanted, ready }
    }

    fn is_short(&self) -> bool {
        self.ready < self.wanted.max(1)
    }
}

impl Track {
    async fn start(deployments: Api<Deployment>, function: &str) -> Self {
        let steps = Arc::new(Mutex::new(vec![Step::of(&deployments.get(function).await.unwrap())]));
        let followed = Arc::clone(&steps);
        let only = Config::default().fields(&format!("metadata.name={function}"));
        tokio::spawn(async move {
            let mut events = pin!(watcher(deployments, only).default_backoff().applied_objects());
            while let Some(event) = events.next().await {
                let Ok(deployment) = event else { continue };
                let (step, mut steps) = (Step::of(&deployment), followed.lock().unwrap());
                if steps.last().is_none_or(|last| (last.wanted, last.ready) != (step.wanted, step.ready)) {
                    steps.push(step);
                }
            }
        });
        Self { function: function.into(), steps }
    }

    fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// Replicas wanted and ready now.
    fn last(&self) -> (i32, i32) {
        let steps = self.steps.lock().unwrap();
        steps.last().map_or((0, 0), |step| (step.wanted, step.ready))
    }

    /// Replicas that were wanted from then on, each number once in a row.
    fn wanted_since(&self, start: Instant) -> Vec<i32> {
        let steps = self.steps();
        let before = steps.iter().rposition(|step| step.at <= start).unwrap_or(0);
        let mut wanted: Vec<_> = steps[before..].iter().map(|step| step.wanted).collect();
        wanted.dedup();
        wanted
    }

    /// Whether there were too few replicas at some time between, or shortly before.
    fn was_short(&self, start: Instant, end: Instant) -> bool {
        let steps = self.steps();
        let ends = steps.iter().skip(1).map(|step| Some(step.at)).chain([None]);
        steps.iter().zip(ends).any(|(step, until)| {
            step.is_short() && step.at <= end && until.is_none_or(|until| start <= until + BACKLOG)
        })
    }

    /// Of the requests that met no cold start: how many there were, and how many were late. All must have been answered.
    fn late(&self, shots: &[Shot]) -> (usize, usize) {
        let failed: Vec<_> = shots.iter().filter(|shot| !shot.is_ok()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), shots.len(), failed[0]);
        let warm = shots.iter().filter(|shot| !self.was_short(shot.at, shot.at + shot.latency));
        let warm: Vec<_> = warm.collect();
        (warm.len(), warm.iter().filter(|shot| shot.latency > BOUND).count())
    }
}

/// A function that gets a fifth of the time of half of a GPU: about ten requests a second.
fn function(name: &str) -> GpuPod {
    let pod = GpuPod::inference(name).annotation("sm", "50").annotation("memory", "1Gi");
    let pod = pod.annotation("quota", "20").annotation("quota-limit", "20");
    pod.annotation("slo", "p99<1s").variable("healthcheck_interval", "1s")
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_function_goes_from_none_to_three_and_back_as_in_kedas_own_test_of_external_push() {
    let mut scene = Scene::start().await;
    // KEDA's tests/scalers/external_push_scaler: the same bounds and times. What the metric is there, load is here.
    let bounds = json!({"idleReplicaCount": 0, "minReplicaCount": 1, "maxReplicaCount": 3});
    scene.deploy(function("resnet").units(2).deployment(0), bounds).await;
    let begun = Instant::now();
    let mut loads = vec![scene.load("resnet", 3.0)];
    scene.until("resnet", 1).await;
    loads.push(scene.load("resnet", 9.0));
    scene.until("resnet", 2).await;
    loads.push(scene.load("resnet", 24.0));
    scene.until("resnet", 3).await;
    println!("the scaler says {}", scene.explain("resnet").await);
    let mut shots = Vec::new();
    for load in loads {
        shots.extend(load.stop().await);
    }
    scene.until("resnet", 0).await;
    assert_eq!(scene.track("resnet").wanted_since(begun), [0, 1, 2, 3, 0]);
    scene.track("resnet").late(&shots);
}

/// As OpenFaaS' provider for Kubernetes deploys a function: named and selected by `faas_function`, labels and annotations of
/// `stack.yaml` on Deployment and pods alike, and no way to ask for a part of a GPU but annotations.
fn as_faas_netes_has_it(function: &GpuPod) -> Deployment {
    let mut deployment = serde_json::to_value(function.deployment(0)).unwrap();
    let name = deployment["metadata"]["name"].clone();
    let mut labels = deployment["spec"]["template"]["metadata"]["labels"].clone();
    labels.as_object_mut().unwrap().remove("app");
    labels["faas_function"] = name.clone();
    let mut annotations = deployment["spec"]["template"]["metadata"]["annotations"].clone();
    annotations["prometheus.io.scrape"] = json!("false");
    for metadata in ["/metadata", "/spec/template/metadata"] {
        let metadata = deployment.pointer_mut(metadata).unwrap();
        metadata["labels"] = labels.clone();
        metadata["annotations"] = annotations.clone();
    }
    deployment["spec"]["selector"]["matchLabels"] = json!({"faas_function": name});
    deployment["spec"]["strategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod.as_object_mut().unwrap().remove("terminationGracePeriodSeconds");
    let probe = json!({
        "httpGet": {"path": "/_/health", "port": 8080},
        "initialDelaySeconds": 2, "periodSeconds": 2, "timeoutSeconds": 1,
    });
    let container = &mut pod["containers"][0];
    container["name"] = name;
    container["ports"] = json!([{"name": "http", "containerPort": 8080, "protocol": "TCP"}]);
    container["livenessProbe"] = probe.clone();
    container["readinessProbe"] = probe;
    serde_json::from_value(deployment).unwrap()
}

/// As Knative deploys a revision of a service: its queue-proxy takes the requests and hands them on, and the pod ends when that
/// has none any more.
fn as_knative_has_it(function: &GpuPod) -> Deployment {
    let mut deployment = serde_json::to_value(function.deployment(0)).unwrap();
    let name = deployment["metadata"]["name"].as_str().unwrap().to_string();
    let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object_mut().unwrap();
    for kind in ["service", "configuration", "revision"] {
        labels.insert(format!("serving.knative.dev/{kind}"), json!(name));
    }
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = json!(300);
    let container = &mut pod["containers"][0];
    container["name"] = json!("user-container");
    container["ports"] = json!([{"name": "user-port", "containerPort": 8080}]);
    container["lifecycle"] = json!({"preStop": {"httpGet": {"path": "/wait-for-drain", "port": 8022}}});
    container.as_object_mut().unwrap().remove("readinessProbe");
    let variables = container["env"].as_array_mut().unwrap();
    variables.extend(
        ["K_SERVICE", "K_CONFIGURATION", "K_REVISION"].map(|key| json!({"name": key, "value": name})),
    );
    pod["containers"].as_array_mut().unwrap().push(queue_proxy(&name));
    serde_json::from_value(deployment).unwrap()
}

/// The container that Knative puts beside a function's.
fn queue_proxy(name: &str) -> Value {
    let image =
        Image::new("localhost/queue-proxy:1").file(&go::built(Program::QueueProxy).unwrap(), "/queue");
    let image = image.entrypoint(&["/queue"]);
    tenant::load(&image);
    let probe = json!({"httpGet": {"path": "/_/ready", "port": 8080, "host": "127.0.0.1", "scheme": "HTTP"}, "successThreshold": 1});
    let variables = [
        ("SERVING_NAMESPACE", "fn"),
        ("SERVING_SERVICE", name),
        ("SERVING_CONFIGURATION", name),
        ("SERVING_REVISION", name),
        ("SERVING_POD", name),
        ("SERVING_POD_IP", "127.0.0.1"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", ""),
        ("OBSERVABILITY_CONFIG", "{}"),
        ("SYSTEM_NAMESPACE", "knative-serving"),
        ("QUEUE_SERVING_PORT", "8012"),
        ("QUEUE_SERVING_TLS_PORT", "8112"),
        ("USER_PORT", "8080"),
        ("CONTAINER_CONCURRENCY", "0"),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_READINESS_PROBE", &probe.to_string()),
    ];
    let network_probe = json!([{"name": "K-Network-Probe", "value": "queue"}]);
    json!({
        "name": "queue-proxy",
        "image": image.name(),
        "imagePullPolicy": "Never",
        "env": variables.map(|(name, value)| json!({"name": name, "value": value})),
        "ports": [{"name": "queue-port", "containerPort": 8012}],
        "readinessProbe": {
            "httpGet": {"path": "/", "port": 8012, "httpHeaders": network_probe},
            "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 30,
        },
    })
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn functions_of_three_platforms_follow_a_ramp_stay_at_constant_load_bear_a_burst_and_end_when_idle() {
    const FUNCTIONS: [&str; 3] = ["plain", "faas", "knative"];
    let (step, steady, burst) = (Duration::from_secs(8), Duration::from_secs(45), Duration::from_secs(15));
    let mut scene = Scene::start().await;
    let webhook = Webhook::start(&scene.node.tenant).await;
    let bounds = json!({"minReplicaCount": 0, "maxReplicaCount": 6});
    scene.deploy(function("plain").deployment(0), bounds.clone()).await;
    scene.deploy(as_faas_netes_has_it(&function("faas")), bounds.clone()).await;
    scene.deploy(as_knative_has_it(&function("knative")), bounds).await;
    let all = |scene: &Scene, rps: f64| FUNCTIONS.map(|function| scene.load(function, rps));

    let mut loads = Vec::new();
    for rps in [2.0, 3.0, 4.0, 5.0] {
        loads.extend(all(&scene, rps));
        sleep(step).await;
    }
    let constant = Instant::now();
    sleep(steady).await;
    for function in FUNCTIONS {
        let wanted = scene.track(function).wanted_since(constant);
        println!(
            "{function}: at constant load, for {steady:?}: {wanted:?}; {}",
            scene.explain(function).await
        );
        assert!((2..6).contains(&wanted[0]) && wanted.len() <= 3, "{wanted:?}");
    }
    let high = Instant::now();
    let more = all(&scene, 10.0);
    sleep(burst).await;
    for load in more {
        loads.push(load);
    }
    let mut shots = Vec::new();
    for load in loads {
        shots.extend(load.stop().await);
    }
    for function in FUNCTIONS {
        let track = scene.track(function);
        let wanted = track.wanted_since(high);
        let own: Vec<_> = shots.iter().filter(|shot| shot.function == function).cloned().collect();
        let ((warm, late), all_late) =
            (track.late(&own), own.iter().filter(|shot| shot.latency > BOUND).count());
        println!(
            "{function}: in the burst {wanted:?}; {late} of {warm} late, with cold starts {all_late} of {}",
            own.len()
        );
        assert!(wanted.len() > 1 && wanted.is_sorted(), "it has grown in the burst: {wanted:?}");
        assert!(late * 100 <= warm, "{late} of {warm} late");
    }
    for function in FUNCTIONS {
        scene.until(function, 0).await;
    }
    until("everything to be given back", PATIENCE, async || {
        scene.node.bindings().await.is_empty().then_some(())
    })
    .await;
    scene.node.until_allocatable(40).await;
    webhook.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn no_replica_goes_while_scaler_agent_and_api_server_fail_and_come_back() {
    let mut scene = Scene::start().await;
    let bounds = json!({"minReplicaCount": 0, "maxReplicaCount": 6});
    scene.deploy(function("resnet").units(2).deployment(0), bounds).await;
    let mut loads = vec![scene.load("resnet", 3.0)];
    scene.until("resnet", 1).await;
    loads.push(scene.load("resnet", 9.0));
    // On a busy machine those that wait for the second are a need of a third for a while.
    scene.until_any("resnet", 2..=6).await;
    let (begun, before) = (Instant::now(), scene.pods().await);

    scene.kill_scaler();
    sleep(Duration::from_secs(8)).await;
    scene.start_scaler().await;
    scene.node.plugin.crash();
    sleep(Duration::from_secs(5)).await;
    scene.node.plugin.restart().await;
    let outage = Outage::begin(Component::ApiServer).await;
    sleep(Duration::from_secs(10)).await;
    outage.end().await;
    // A scaler removes nothing in its first minute: only after that it shows what it makes of all this.
    sleep_until(begun + Duration::from_secs(80)).await;
    let wanted = scene.track("resnet").wanted_since(begun);
    println!("replicas: {wanted:?}; the scaler says {}", scene.explain("resnet").await);
    assert!(wanted.iter().all(|&wanted| wanted >= 2), "{wanted:?}");
    let after = scene.pods().await;
    assert!(before.iter().all(|pod| after.contains(pod)), "{before:?}, then {after:?}");
    let mut shots = Vec::new();
    for load in loads {
        shots.extend(load.stop().await);
    }
    let (warm, late) = scene.track("resnet").late(&shots);
    println!("{late} of {warm} late");
}
