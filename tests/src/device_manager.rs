//! The kubelet's own device manager and podresources API without a cluster, for fast tests of device plugins: a test says
//! which pods come and go, and sees what a kubelet would make of the plugin's answers.
//!
//! `cluster/kubernetes/cmd/device-manager` is the other end, and says what each request means.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::go::{self, Program};
use crate::process;

/// Longest time until an answer: a kubelet gives `PreStartContainer` 30 s.
const PATIENCE: Duration = Duration::from_mins(1);

/// A pod for a kubelet, in Kubernetes' own form.
#[derive(Clone, Debug)]
pub struct Pod(Value);

impl Pod {
    /// A pod without containers in the namespace `default`.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        // A UID is never used twice, also where a name is.
        let uid = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Self(json!({
            "metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": {"initContainers": [], "containers": []},
        }))
    }

    /// With a container that asks for so many of these resources.
    #[must_use]
    pub fn container(self, name: &str, resources: &[(&str, u64)]) -> Self {
        self.with("containers", name, resources)
    }

    /// With a container that ends before the others start.
    #[must_use]
    pub fn init_container(self, name: &str, resources: &[(&str, u64)]) -> Self {
        self.with("initContainers", name, resources)
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.0["metadata"]["annotations"][name] = value.into();
        self
    }

    fn with(mut self, kind: &str, name: &str, resources: &[(&str, u64)]) -> Self {
        let amounts: BTreeMap<_, _> =
            resources.iter().map(|&(name, amount)| (name, amount.to_string())).collect();
        // The API server sets the requests of extended resources to their limits.
        let container = json!({"name": name, "resources": {"limits": amounts, "requests": amounts}});
        let containers = self.0["spec"][kind].as_array_mut().expect("a list from the start");
        containers.push(container);
        self
    }

    /// What the API server would call it.
    pub fn uid(&self) -> &str {
        self.0["metadata"]["uid"].as_str().expect("a pod has a UID")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().expect("a pod has a name")
    }

    /// As the API server would show it.
    pub fn as_json(&self) -> &Value {
        &self.0
    }
}

/// A kubelet's verdict on a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Admission {
    /// Whether it may run.
    pub admitted: bool,
    /// If not, why: a word, such as `UnexpectedAdmissionError`.
    #[serde(default)]
    pub reason: String,
    /// The same for people.
    #[serde(default)]
    pub message: String,
}

/// What a node's status says of devices: how many there are of each resource.
#[derive(Clone, Debug, Deserialize)]
pub struct Capacity {
    /// All.
    pub capacity: BTreeMap<String, String>,
    /// The healthy ones.
    pub allocatable: BTreeMap<String, String>,
}

/// What the runtime is told when a container starts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunOptions {
    /// Variables.
    #[serde(rename = "Envs", deserialize_with = "pairs")]
    pub variables: BTreeMap<String, String>,
    /// Annotations for the runtime.
    #[serde(deserialize_with = "pairs")]
    pub annotations: BTreeMap<String, String>,
    /// Files and folders of the node.
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// Device nodes.
    #[serde(deserialize_with = "nullable")]
    pub devices: Vec<DeviceNode>,
    /// Names of CDI devices.
    #[serde(rename = "CDIDevices", deserialize_with = "names")]
    pub cdi_devices: Vec<String>,
}

/// A file or folder of the node in a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mount {
    /// Its path in the container.
    pub container_path: PathBuf,
    /// Its path on the node.
    pub host_path: PathBuf,
    /// Whether the container can't write to it.
    pub read_only: bool,
}

/// A device node in a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeviceNode {
    /// Its path on the node.
    pub path_on_host: PathBuf,
    /// Its path in the container.
    pub path_in_container: PathBuf,
    /// What the container may do: some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Go writes an empty list as `null`.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: String,
    #[serde(default)]
    value: String,
}

fn pairs<'de, D: serde::Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(nullable::<D, Named>(input)?.into_iter().map(|named| (named.name, named.value)).collect())
}

fn names<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    Ok(nullable::<D, Named>(input)?.into_iter().map(|named| named.name).collect())
}

/// Whether containers still run when their kubelet comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containers {
    /// Only the kubelet was away.
    Running,
    /// The whole node was.
    Gone,
}

/// How a device manager is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    policy: String,
    numa_nodes: u32,
}

impl Builder {
    /// The kubelet's `topologyManagerPolicy`, on a machine with so many NUMA nodes.
    #[must_use]
    pub fn topology(mut self, policy: &str, numa_nodes: u32) -> Self {
        (self.policy, self.numa_nodes) = (policy.into(), numa_nodes);
        self
    }

    /// Starts it in a fresh folder, on a node without pods. It is built first where it is not there yet.
    pub async fn start(self) -> DeviceManager {
        let program = tokio::task::spawn_blocking(|| go::built(Program::DeviceManager)).await;
        let program = program.expect("a build ends").unwrap_or_else(|error| panic!("{error:#}"));
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir().expect("a temp folder can be made");
        let running = Running::spawn(&program, folder.path(), &self);
        let manager = DeviceManager { program, options: self, pods: BTreeMap::new(), running, folder };
        manager.begin(&[]).await;
        manager.ready().await;
        manager
    }
}

/// A device manager that runs. It ends with this.
#[derive(Debug)]
pub struct DeviceManager {
    program: PathBuf,
    options: Builder,
    /// Those that are on the node, by UID.
    pods: BTreeMap<String, Pod>,
    // Ends before its folder does.
    running: Running,
    folder: TempDir,
}

impl DeviceManager {
    /// A device manager without a topology policy.
    pub fn builder() -> Builder {
        Builder { policy: "none".into(), numa_nodes: 1 }
    }

    /// The folder that stands for `/var/lib/kubelet`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of plugins' sockets, with the one where they register, `kubelet.sock`.
    pub fn plugins(&self) -> PathBuf {
        self.folder().join("device-plugins")
    }

    /// The socket of the podresources API.
    pub fn pod_resources(&self) -> PathBuf {
        self.folder().join("pod-resources/kubelet.sock")
    }

    /// A pod comes to the node.
    pub async fn admit(&mut self, pod: &Pod) -> Admission {
        let admission: Admission = self.must("admit", json!({"pod": pod.as_json()})).await;
        if admission.admitted {
            self.pods.insert(pod.uid().into(), pod.clone());
        }
        admission
    }

    /// A container of an admitted pod starts. What the plugin's `PreStartContainer` refuses is the error.
    pub async fn run(&self, pod: &Pod, container: &str) -> Result<RunOptions, String> {
        self.ask("run", json!({"uid": pod.uid(), "container": container})).await
    }

    /// IDs of a container's devices, by resource.
    pub async fn devices(&self, pod: &Pod, container: &str) -> BTreeMap<String, Vec<String>> {
        self.must("devices", json!({"uid": pod.uid(), "container": container})).await
    }

    /// The pod's status as far as its devices' health goes.
    pub async fn status(&self, pod: &Pod) -> Value {
        self.must("status", json!({"uid": pod.uid()})).await
    }

    /// A pod has ended. As on a real node, its devices are free when somebody next looks for free ones.
    pub async fn remove(&mut self, pod: &Pod) {
        let Empty {} = self.must("remove", json!({"uid": pod.uid()})).await;
        self.pods.remove(pod.uid());
    }

    /// What the node's status says.
    pub async fn capacity(&self) -> Capacity {
        self.must("capacity", json!({})).await
    }

    /// UIDs of the pods with a device whose health changed since the last call. Waits for one, but not longer than a minute.
    pub async fn changed(&mut self) -> Vec<String> {
        let change = tokio::time::timeout(PATIENCE, self.running.changes.recv()).await;
        let change = change.unwrap_or_else(|_| panic!("no device's health changed within {PATIENCE:?}"));
        change.unwrap_or_else(|| panic!("it ended, and printed:\n{}", process::tail(&self.running.log)))
    }

    /// Kills it, as a crash would.
    pub async fn crash(&mut self) {
        self.running.child.kill().await.expect("a child can be killed");
    }

    /// Starts it again in the folder of the one that crashed. Like a kubelet, it admits the pods of the node once more; the
    /// verdicts are given by UID.
    pub async fn restart(&mut self, containers: Containers) -> BTreeMap<String, Admission> {
        self.running = Running::spawn(&self.program, self.folder.path(), &self.options);
        let pods: Vec<_> = self.pods.values().cloned().collect();
        self.begin(if containers == Containers::Running { &pods } else { &[] }).await;
        let mut verdicts = BTreeMap::new();
        for pod in pods {
            let admission = self.admit(&pod).await;
            if !admission.admitted {
                self.pods.remove(pod.uid());
            }
            verdicts.insert(pod.uid().to_string(), admission);
        }
        self.ready().await;
        verdicts
    }

    async fn begin(&self, running: &[Pod]) {
        let running: Vec<_> = running.iter().map(Pod::as_json).collect();
        let Empty {} = self.must("start", json!({"pods": running})).await;
    }

    /// All pods that were on the node before have been admitted again.
    async fn ready(&self) {
        let Empty {} = self.must("ready", json!({})).await;
    }

    async fn must<T: DeserializeOwned>(&self, call: &str, request: Value) -> T {
        self.ask(call, request).await.unwrap_or_else(|error| panic!("{call}: {error}"))
    }

    async fn ask<T: DeserializeOwned>(&self, call: &str, request: Value) -> Result<T, String> {
        let result = self.running.ask(call, request).await?;
        Ok(serde_json::from_value(result).unwrap_or_else(|error| panic!("the answer to {call}: {error}")))
    }
}

/// A result that says nothing.
#[derive(Deserialize)]
struct Empty {}

type Answer = Result<Value, String>;
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A line of its standard output.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Changed {
        changed: Vec<String>,
    },
    Answer {
        id: u64,
        #[serde(default)]
        result: Value,
        error: Option<String>,
    },
}

/// The process, and the requests that it has not answered yet.
#[derive(Debug)]
struct Running {
    child: Child,
    stdin: AsyncMutex<ChildStdin>,
    waiting: Waiting,
    changes: mpsc::UnboundedReceiver<Vec<String>>,
    count: AtomicU64,
    log: PathBuf,
}

impl Running {
    fn spawn(program: &Path, folder: &Path, options: &Builder) -> Self {
        let log = folder.join("device-manager.log");
        let file = File::options().append(true).create(true).open(&log);
        let mut command = Command::new(program);
        command.arg("--root-dir").arg(folder).args(["--topology-manager-policy", &options.policy]);
        command.args(["--numa-nodes", &options.numa_nodes.to_string(), "-v=4"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(file.unwrap_or_else(|error| panic!("{}: {error}", log.display())));
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (sender, changes) = mpsc::unbounded_channel();
        let waiting = Waiting::default();
        tokio::spawn(read(stdout.expect("piped"), Arc::clone(&waiting), sender));
        let stdin = AsyncMutex::new(stdin.expect("piped"));
        Self { child, stdin, waiting, changes, count: AtomicU64::new(1), log }
    }

    async fn ask(&self, call: &str, mut request: Value) -> Answer {
        let id = self.count.fetch_add(1, Ordering::Relaxed);
        (request["id"], request["call"]) = (id.into(), call.into());
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().expect("nobody panics with it").insert(id, sender);
        let written = self.stdin.lock().await.write_all(format!("{request}\n").as_bytes()).await;
        if let Err(error) = written {
            panic!("{call}: {error}; it printed:\n{}", process::tail(&self.log));
        }
        let said = || process::tail(&self.log);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let answer = answer
            .unwrap_or_else(|_| panic!("{call}: no answer within {PATIENCE:?}; it printed:\n{}", said()));
        answer.unwrap_or_else(|_| panic!("{call}: it ended, and printed:\n{}", said()))
    }
}

/// Hands out what the process says, until it ends; then nobody waits any more.
async fn read(stdout: ChildStdout, waiting: Waiting, changes: mpsc::UnboundedSender<Vec<String>>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            // Who is gone doesn't want to know.
            Ok(Line::Changed { changed }) => drop(changes.send(changed)),
            Ok(Line::Answer { id, result, error }) => {
                let asker = waiting.lock().expect("nobody panics with it").remove(&id);
                if let Some(asker) = asker {
                    let _ = asker.send(error.map_or(Ok(result), Err));
                }
            }
            Err(error) => panic!("the device manager said {line:?}: {error}"),
        }
    }
    waiting.lock().expect("nobody panics with it").clear();
}
