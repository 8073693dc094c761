//! `gpufn-node serve` with simulated GPUs, beside a kubelet and an API server of the tests: as a device plugin, or as a driver.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gpu_share::names::state;
use tempfile::TempDir;

use crate::control::Control;
use crate::node::{self, Stats, library_folder, says_ready};
use crate::process::{self, Process};
use crate::programs::{self, Turn};

/// Longest time until a program has ended.
const END: Duration = Duration::from_secs(20);

/// How a plugin is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    gpus: u32,
    mode: String,
    arguments: Vec<String>,
    kubeconfig: Option<PathBuf>,
    node: String,
    /// Folder of plugins and pod-resources socket, if they are not in the plugin's place.
    kubelet: Option<(PathBuf, PathBuf)>,
    /// Folder of CDI files, if it is not in the plugin's place.
    cdi: Option<PathBuf>,
    /// Where containers find the driver, if something else than the agent brings it.
    toolkit: Option<PathBuf>,
    /// The agent, if it is not the one beside the tests.
    program: Option<PathBuf>,
    /// Port of the agent's metrics, 0 for any.
    metrics: u16,
}

impl Builder {
    /// Another build of the agent.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.into());
        self
    }

    /// So many GPUs, at most 16.
    #[must_use]
    pub fn gpus(mut self, count: u32) -> Self {
        self.gpus = count;
        self
    }

    /// Containers use a GPU in turns.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.mode = "exclusive".into();
        self
    }

    /// As a driver of dynamic resource allocation.
    #[must_use]
    pub fn driver(self) -> Self {
        self.with(&["--front-end", "dra"])
    }

    /// Further arguments of the agent.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Beside a kubelet with this folder of plugins and this pod-resources socket.
    #[must_use]
    pub fn kubelet(mut self, plugins: PathBuf, pod_resources: PathBuf) -> Self {
        self.kubelet = Some((plugins, pod_resources));
        self
    }

    /// With its metrics at a port of the loopback address.
    #[must_use]
    pub fn metrics(mut self, port: u16) -> Self {
        self.metrics = port;
        self
    }

    /// With an API server, which `kubeconfig` names.
    #[must_use]
    pub fn cluster(mut self, kubeconfig: &Path) -> Self {
        self.kubeconfig = Some(kubeconfig.into());
        self
    }

    /// By this name the node is known to the API server; without it, it is `node-1`.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = name.into();
        self
    }

    /// With the folder of CDI files that a container runtime reads.
    #[must_use]
    pub fn cdi(mut self, folder: PathBuf) -> Self {
        self.cdi = Some(folder);
        self
    }

    /// As in production: the agent finds the management library by its name, and containers get the driver in `folder`, from
    /// whoever makes CDI devices of `kind` for the GPUs themselves.
    #[must_use]
    pub fn toolkit(mut self, kind: &str, folder: &Path) -> Self {
        self.toolkit = Some(folder.into());
        self.with(&["--gpu-kind", kind])
    }

    /// Takes the machine's turn, and starts GPUs and agent in `place`, whose kubelet need not run.
    pub async fn start(self, place: Place) -> Plugin {
        let turn = Turn::take();
        let at = |name: &str| place.path(name);
        let hook = at("hook");
        library_folder(&hook, "libcuda_hook.so", "libgpufn_nvml.so");
        library_folder(&at("sim"), "libsimcuda.so", "libsimcuda.so");
        let mut command = Command::new(programs::built("simgpu"));
        command.arg("--socket").arg(at("simgpu.sock")).args(["--mode", &self.mode]);
        command.args(["--gpus", &self.gpus.to_string()]);
        let mut gpu = Process::spawn(&mut command, &at("simgpu.log"));
        says_ready(&mut gpu, "listening on").await;
        let mut agent = spawn(&place, &self, &hook, 0);
        says_ready(&mut agent, "listening on").await;
        Plugin { agent, gpu, options: self, hook, started: 1, place, _turn: turn }
    }
}

/// A folder for a plugin and its kubelet.
#[derive(Debug)]
pub struct Place(TempDir);

impl Default for Place {
    fn default() -> Self {
        Self(tempfile::Builder::new().prefix("gpufn-").tempdir().expect("a temp folder can be made"))
    }
}

impl Place {
    /// A folder in memory, as the state folder of a cluster node is.
    pub fn in_memory() -> Self {
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir_in("/dev/shm");
        Self(folder.expect("/dev/shm is a folder in memory"))
    }

    /// A folder that containers of a cluster's node can be given: it is the node's alone, and ends with it.
    pub fn on_node() -> Self {
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir_in("/run");
        Self(folder.expect("a node's /run can be written to"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A running plugin and its GPUs.
#[derive(Debug)]
pub struct Plugin {
    // In the order in which they end.
    agent: Process,
    gpu: Process,
    options: Builder,
    /// Folder of the hook library that the next agent brings.
    hook: PathBuf,
    started: usize,
    place: Place,
    _turn: Turn,
}

impl Plugin {
    /// A plugin with one GPU that containers use beside each other.
    pub fn builder() -> Builder {
        Builder {
            gpus: 1,
            mode: "mps".into(),
            arguments: Vec::new(),
            kubeconfig: None,
            node: "node-1".into(),
            kubelet: None,
            cdi: None,
            toolkit: None,
            program: None,
            metrics: 0,
        }
    }

    /// The agent.
    pub fn agent(&mut self) -> &mut Process {
        &mut self.agent
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> u32 {
        self.agent.pid()
    }

    /// The simulated GPUs.
    pub fn gpu(&self) -> &Process {
        &self.gpu
    }

    /// Has the simulated GPUs do what `order` says (`simcuda`'s faults).
    pub fn order(&self, order: &serde_json::Value) {
        node::order(&self.path("simgpu.sock"), order);
    }

    /// What the simulated GPUs saw so far.
    pub fn stats(&self) -> Stats {
        let read = Stats::read(&self.path("simgpu.sock"));
        read.unwrap_or_else(|error| panic!("{error:#}; the agent printed:\n{}", self.agent.tail()))
    }

    /// A path in the plugin's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The agent's control API.
    pub fn control(&self) -> Control {
        Control(self.path("node").join(state::CONTROL_SOCKET))
    }

    /// Kills the agent, as a crash would.
    pub fn crash(&mut self) {
        process::kill(self.agent.pid());
        self.agent.wait(END);
    }

    /// Starts an agent where there is none.
    pub async fn restart(&mut self) {
        self.agent = self.spawn_another();
        self.ready().await;
    }

    /// Waits until the agent serves containers.
    pub async fn ready(&mut self) {
        says_ready(&mut self.agent, "listening on").await;
    }

    /// Starts agents with these further arguments from now on, instead of those that they had.
    pub fn replace_arguments(&mut self, arguments: &[&str]) {
        self.options.arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// Starts an agent beside the one that runs, as an upgrade does; returns the older one.
    pub fn upgrade(&mut self) -> Process {
        let newer = self.spawn_another();
        std::mem::replace(&mut self.agent, newer)
    }

    /// The next agent brings another build of the hook library.
    pub fn renew_hook(&mut self) {
        self.hook = self.place.path(&format!("hook-{}", self.started));
        library_folder(&self.hook, "libcuda_hook.so", "libgpufn_nvml.so");
        let library = OpenOptions::new().append(true).open(self.hook.join("libcuda.so.1"));
        // What comes after an ELF file's sections is not looked at.
        let written = library.and_then(|mut library| library.write_all(b"another build"));
        written.unwrap_or_else(|error| panic!("{}: {error}", self.hook.display()));
    }

    fn spawn_another(&mut self) -> Process {
        self.started += 1;
        spawn(&self.place, &self.options, &self.hook, self.started)
    }
}

fn spawn(place: &Place, options: &Builder, hook: &Path, number: usize) -> Process {
    let at = |name: &str| place.path(name);
    let (sim, socket) = (at("sim"), at("simgpu.sock"));
    let program = options.program.clone().unwrap_or_else(|| programs::built("gpufn-node"));
    let mut command = Command::new(program);
    command.arg("serve").arg("--state").arg(at("node"));
    if let Some(folder) = &options.toolkit {
        command.arg("--driver").arg(folder.join("libcuda.so.1")).env("LD_LIBRARY_PATH", &sim);
    } else {
        command.arg("--driver").arg(sim.join("libcuda.so.1"));
        command.arg("--nvml").arg(sim.join("libnvidia-ml.so.1"));
    }
    command.arg("--hook").arg(hook).args(["--sharing", &options.mode]);
    command.arg("--metrics").arg(format!("127.0.0.1:{}", options.metrics));
    command.arg("--env").arg(format!("SIMCUDA_SOCKET={}", socket.display()));
    let (plugins, pod_resources) = options
        .kubelet
        .clone()
        .unwrap_or_else(|| (at("device-plugins"), at("pod-resources").join("kubelet.sock")));
    command.arg("--registry").arg(plugins.with_file_name("plugins_registry"));
    command.arg("--plugins").arg(plugins).arg("--pod-resources").arg(pod_resources);
    command.arg("--cdi").arg(options.cdi.clone().unwrap_or_else(|| at("cdi")));
    command.arg("--install").arg(at("opt"));
    command.env("SIMCUDA_SOCKET", &socket).env_remove("KUBECONFIG").env_remove("NODE_NAME");
    if let Some(kubeconfig) = &options.kubeconfig {
        command.env("KUBECONFIG", kubeconfig).args(["--node-name", &options.node]);
    }
    command.args(&options.arguments);
    Process::spawn(&mut command, &at(&format!("node-{number}.log")))
}
