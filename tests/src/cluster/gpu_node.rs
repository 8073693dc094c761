//! Simulated GPUs and gpufn's node agent on the node of a cluster, and pods that use them.
//!
//! ```text
//! test ─ Tenant: pods, events ───────────► API server ◄── annotations, grants, events ── gpufn-node serve (a process)
//!  │                                        │ kubelet ◄────── device plugin ────────────┘  │ CDI file of a binding:
//!  │                                        └► containerd ◄────────────────────────────────┘ hook, page, socket
//!  └─ Stats: who got what ─ simgpu (a process) ◄─ simulated driver in the pod ◄─ CDI file of a GPU (this module)
//! ```
//!
//! The agent is a process of the node and no pod, so that a test can kill it, or start another one beside it, at the moment
//! that it chooses, and not when the kubelet's pause is over. Like a pod it has a service account with the rights that its
//! README names and no others, finds kubelet and container runtime at their usual paths, and asks the management library by
//! its name.
//!
//! The place of NVIDIA's container toolkit is taken by a CDI file of this module: a device for each GPU, with the driver's
//! files. The agent is told of it by `--gpu-kind`, as in production.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use gpu_share::names::{RESOURCE, label};
use gpu_share::protocol::BindingStatus;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::image::Image;
use super::tenant::{self, Tenant};
use super::{NODE, account};
use crate::control::Control;
use crate::delivery::Stand;
use crate::node::Stats;
use crate::plugin::{self, Place, Plugin};
use crate::process;
use crate::processors::Sample;
use crate::programs;
use crate::wait::until;

/// Longest time until something that was asked for is so.
const PATIENCE: Duration = Duration::from_mins(1);
/// Kind of the CDI devices that stand for the GPUs themselves.
pub(super) const GPU_KIND: &str = "simulated.gpufn.dev/gpu";
/// Where the node's containerd looks for CDI files that come and go.
pub(super) const CDI: &str = "/run/cdi";
/// The kubelet's folder.
pub(super) const KUBELET: &str = "/var/lib/kubelet";

/// A node of a cluster whose GPUs pods can share.
#[derive(Debug)]
pub struct GpuNode {
    /// The namespace of the pods.
    pub tenant: Tenant,
    /// Node agent and simulated GPUs.
    pub plugin: Plugin,
}

impl GpuNode {
    /// Starts GPUs and agent in a fresh state folder, once no pod of another test uses any. Beside the rights that every agent
    /// has, its account has those of `rules`.
    pub async fn start(builder: plugin::Builder, rules: &[Value]) -> Self {
        let tenant = Tenant::new().await;
        until_free(&tenant).await;
        image();
        let place = Place::on_node();
        let kubeconfig = place.path("kubeconfig");
        account::create(&tenant, "gpufn-node", &[&rights()[..], rules].concat(), &kubeconfig).await;
        let kubelet = Path::new(KUBELET);
        let builder = builder
            .cluster(&kubeconfig)
            .node(NODE)
            .kubelet(kubelet.join("device-plugins"), kubelet.join("pod-resources/kubelet.sock"))
            .cdi(CDI.into())
            .toolkit(GPU_KIND, &driver_folder());
        let node = Self { plugin: builder.start(place).await, tenant };
        write_gpus(&node.plugin.control(), &node.plugin.path("simgpu.sock"), &node.plugin.path("sim")).await;
        node
    }

    /// Waits until the scheduler sees so many units.
    pub async fn until_allocatable(&self, units: usize) {
        until_allocatable(&self.tenant, units).await;
    }

    /// Creates a pod, and waits until it is ready and its function runs.
    pub async fn run(&self, pod: &GpuPod) -> Running {
        self.tenant.create(&pod.pod()).await;
        self.running(&pod.name).await
    }

    /// A pod that was created, once it is ready and its function runs.
    pub async fn running(&self, name: &str) -> Running {
        self.tenant.ready(name).await;
        let binding = self.binding(name).await;
        let pid = self.function_of(&binding).await;
        Running { name: name.into(), binding, pid }
    }

    /// The process of the function that has a binding, by its number on the node.
    pub async fn function_of(&self, binding: &BindingStatus) -> u32 {
        function_of(&self.plugin.path("node"), binding).await
    }

    /// The binding of a pod of one container.
    pub async fn binding(&self, pod: &str) -> BindingStatus {
        let found = self.bindings().await.remove(pod);
        found.unwrap_or_else(|| panic!("pod {pod} has no binding"))
    }

    /// The node's bindings, by their pods.
    pub async fn bindings(&self) -> BTreeMap<String, BindingStatus> {
        let bindings = self.plugin.control().bindings().await.unwrap_or_else(|error| panic!("{error:#}"));
        bindings.into_iter().map(|one| (one.binding.owner.instance.clone(), one)).collect()
    }
}

/// Waits until no pod of another test uses a GPU, and no agent offers any.
pub(super) async fn until_free(tenant: &Tenant) {
    until("the end of other tests' pods and agent", PATIENCE, async || {
        let pods_are_gone = !tenant.pods_of_all().await.iter().any(asks_for_gpus);
        (pods_are_gone && allocatable(tenant).await == 0).then_some(())
    })
    .await;
    clear(Path::new(CDI));
}

/// Waits until the scheduler sees so many units.
pub(super) async fn until_allocatable(tenant: &Tenant, units: usize) {
    until(&format!("{units} units on the node"), PATIENCE, async || {
        (allocatable(tenant).await == units).then_some(())
    })
    .await;
}

/// The process of the function that has a binding of the agent with this state folder.
pub(super) async fn function_of(state: &Path, binding: &BindingStatus) -> u32 {
    let page = state.join("bindings").join(binding.binding.id.to_string()).join("page");
    until("the function's process", PATIENCE, async || {
        let processes = process::naming(&page).into_iter();
        processes.filter(|found| !found.command.starts_with(WATCHDOG)).map(|found| found.pid).next()
    })
    .await
}

/// What NVIDIA's container toolkit does: a CDI device for each GPU of the agent, with the driver's files, which are in `sim`.
pub(super) async fn write_gpus(control: &Control, socket: &Path, sim: &Path) {
    let status = control.status().await.unwrap_or_else(|error| panic!("{error:#}"));
    let mount =
        |from: &Path, to: &Path| json!({"hostPath": from, "containerPath": to, "options": ["rbind", "ro"]});
    let file = |name: &str| mount(&sim.join(name), &driver_folder().join(name));
    let edits = json!({
        "env": [format!("SIMCUDA_SOCKET={}", socket.display())],
        "mounts": [file("libcuda.so.1"), file("libnvidia-ml.so.1"), mount(socket, socket)],
    });
    let devices = status.gpus.iter().map(|gpu| json!({"name": gpu.gpu.id, "containerEdits": edits}));
    let spec = json!({"cdiVersion": "0.6.0", "kind": GPU_KIND, "devices": devices.collect::<Vec<_>>()});
    let path = Path::new(CDI).join("simulated.gpufn.dev-gpu.json");
    let written = fs::write(&path, spec.to_string());
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Units that the scheduler sees on the node.
async fn allocatable(tenant: &Tenant) -> usize {
    let allocatable = tenant.node().await.status.and_then(|status| status.allocatable);
    let units = allocatable.and_then(|all| all.get(RESOURCE)?.0.parse().ok());
    units.unwrap_or_default()
}

/// Removes what agents of other tests left: an agent takes CDI files that it does not know for containers that run.
fn clear(folder: &Path) {
    let done = fs::create_dir_all(folder)
        .and_then(|()| fs::read_dir(folder)?.try_for_each(|entry| fs::remove_file(entry?.path())));
    done.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}

impl Stand for GpuNode {
    fn stats(&self) -> Stats {
        self.plugin.stats()
    }

    /// All processes of the node belong to it: the cluster's own, and its pods'.
    fn processors(&self, _: &[u32]) -> Sample {
        let entries = fs::read_dir("/proc").expect("/proc can be read").flatten();
        Sample::take(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
    }
}

/// A pod whose function runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// The pod's name.
    pub name: String,
    /// Its binding, as it was when it was ready.
    pub binding: BindingStatus,
    /// The function's process, by its number on the node.
    pub pid: u32,
}

impl Running {
    /// The folder from which the function has the hook.
    pub fn hook(&self) -> PathBuf {
        let path = format!("/proc/{}/maps", self.pid);
        let maps = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
        let folders = files.filter(|file| file.ends_with("lib/libcuda.so")).filter_map(Path::parent);
        let mut folders = folders.filter(|folder| *folder != driver_folder());
        folders.next().unwrap_or_else(|| panic!("{} has no hook:\n{maps}", self.name)).into()
    }
}

/// A pod that is put together: a container with a function behind `fwatchdog`, and perhaps others.
#[derive(Clone, Debug)]
pub struct GpuPod {
    name: String,
    /// Path of the watchdog at which it says that the pod is ready.
    ready: &'static str,
    variables: Vec<(String, String)>,
    annotations: BTreeMap<String, String>,
    resources: Value,
    spec: Value,
    /// Containers beside it, and their units.
    others: Vec<(String, u32)>,
}

/// The function's own process is another.
const WATCHDOG: &str = "/usr/bin/fwatchdog";

impl GpuPod {
    /// The audit client: it launches kernels of a millisecond as fast as it may, and tells how many are done. It serves nobody,
    /// so the watchdog is ready when it runs.
    pub fn audit(name: &str) -> Self {
        Self { ready: "/_/health", ..Self::of(name, "/usr/bin/gpufn audit-probe --kernels 1000", &[]) }
    }

    /// An inference function, whose answers are checked: `ResNet-50` in eight kernels.
    pub fn inference(name: &str) -> Self {
        let variables = [("model", "resnet50"), ("layers", "8"), ("weights_mib", "64")];
        Self::of(name, "/usr/bin/inference-function", &variables)
    }

    fn of(name: &str, command: &str, variables: &[(&str, &str)]) -> Self {
        let all = [
            ("mode", "http"),
            ("fprocess", command),
            ("upstream_url", "http://127.0.0.1:8000"),
            ("prefix_logs", "false"),
        ];
        let owned = |&(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let variables = all.iter().chain(variables).map(owned).collect();
        let (annotations, none) = (BTreeMap::new(), json!({}));
        let ready = "/_/ready";
        let (resources, others) = (none.clone(), Vec::new());
        Self { name: name.into(), ready, variables, annotations, resources, spec: none, others }
    }

    /// With so many units of a GPU.
    #[must_use]
    pub fn units(self, units: u32) -> Self {
        self.resources(json!({"limits": {RESOURCE: units.to_string()}}))
    }

    /// With another variable of its watchdog and its function.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// With these resources of its container.
    #[must_use]
    pub fn resources(mut self, resources: Value) -> Self {
        self.resources = resources;
        self
    }

    /// With an annotation, such as `quota`.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(format!("gpufn.dev/{name}"), value.into());
        self
    }

    /// With another container of the same function, by this name and with so many units.
    #[must_use]
    pub fn beside(mut self, name: &str, units: u32) -> Self {
        self.others.push((name.into(), units));
        self
    }

    /// With further fields of its specification, such as `affinity`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    /// A container of the function, whose watchdog listens on `port`.
    fn container(&self, port: i32, resources: &Value) -> Value {
        let variable = |(name, value): (&str, &str)| json!({"name": name, "value": value});
        let own = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let (serves, counts) = (port.to_string(), (port + 1).to_string());
        let ports = [("port", serves.as_str()), ("metrics_port", counts.as_str())];
        json!({
            "env": own.chain(ports).map(variable).collect::<Vec<_>>(),
            "resources": resources,
            "readinessProbe": {"httpGet": {"path": self.ready, "port": port}, "periodSeconds": 1},
        })
    }

    /// A Deployment of such pods, by the same name.
    pub fn deployment(&self, replicas: u32) -> Deployment {
        let mut template = serde_json::to_value(self.pod()).expect("a pod is JSON");
        let selected = json!({"app": self.name});
        template["metadata"]["labels"]["app"] = selected["app"].clone();
        template["spec"]["restartPolicy"] = json!("Always");
        // Requests that it has are answered before it ends.
        template["spec"]["terminationGracePeriodSeconds"] = json!(DRAIN);
        let deployment = json!({
            "metadata": {"name": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": selected}, "template": template},
        });
        serde_json::from_value(deployment).unwrap_or_else(|error| panic!("deployment {}: {error}", self.name))
    }

    /// As the API server gets it.
    pub fn pod(&self) -> Pod {
        let pod = tenant::pod(&self.name, image(), &self.container(PORT, &self.resources));
        let mut pod = serde_json::to_value(pod).expect("a pod is JSON");
        let mut containers = vec![pod["spec"]["containers"][0].clone()];
        for ((name, units), number) in self.others.iter().zip(1..) {
            let limits = json!({"limits": {RESOURCE: units.to_string()}});
            let other = self.container(PORT + PORTS * number, &limits);
            let mut container = containers[0].clone();
            container["name"] = json!(name);
            for (field, value) in other.as_object().into_iter().flatten() {
                container[field] = value.clone();
            }
            containers.push(container);
        }
        pod["spec"]["containers"] = json!(containers);
        pod["metadata"]["labels"] = json!({label::ENABLED: "true"});
        pod["metadata"]["annotations"] = json!(self.annotations);
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        serde_json::from_value(pod).unwrap_or_else(|error| panic!("pod {}: {error}", self.name))
    }
}

/// Port of a pod's first watchdog.
pub(super) const PORT: i32 = 8080;
/// Seconds that a pod of a Deployment has to end.
const DRAIN: u32 = 20;
/// Ports that a watchdog has, the one after its own for metrics: containers of a pod have the same address.
const PORTS: i32 = 2;

/// The audit client and an inference function behind the watchdog, and nothing of the hook or of a driver. The node gets it
/// once.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let programs = ["fwatchdog", "gpufn", "inference-function"];
        let add = |image: Image, name| image.program(&programs::built(name), format!("/usr/bin/{name}"));
        let image = programs.into_iter().fold(Image::new("localhost/gpu-functions:1"), add);
        let image = image.entrypoint(&[WATCHDOG]);
        tenant::load(&image);
        image
    })
}

/// Where a toolkit puts the driver: a folder that programs look in by themselves.
pub(super) fn driver_folder() -> PathBuf {
    format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH).into()
}

/// What the agent's README says that it needs of the API server.
fn rights() -> [Value; 3] {
    [
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]}),
        json!({"apiGroups": [""], "resources": ["nodes"], "resourceNames": [NODE], "verbs": ["patch"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}),
    ]
}

fn asks_for_gpus(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut limits = spec.containers.iter().filter_map(|one| one.resources.as_ref()?.limits.as_ref());
    limits.any(|limits| limits.contains_key(RESOURCE)) || spec.resource_claims.is_some()
}
