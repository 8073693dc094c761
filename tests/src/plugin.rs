//! `gpufn-node serve` with simulated GPUs, beside a kubelet and an API server of the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gpu_share::names::state;
use tempfile::TempDir;

use crate::control::Control;
use crate::node::{self, library_folder, says_ready};
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
    /// Folder of plugins and pod-resources socket, if they are not in the plugin's place.
    kubelet: Option<(PathBuf, PathBuf)>,
}

impl Builder {
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

    /// With an API server, which `kubeconfig` names.
    #[must_use]
    pub fn cluster(mut self, kubeconfig: &Path) -> Self {
        self.kubeconfig = Some(kubeconfig.into());
        self
    }

    /// Takes the machine's turn, and starts GPUs and agent in `place`, whose kubelet need not run.
    pub async fn start(self, place: Place) -> Plugin {
        let turn = Turn::take();
        let at = |name: &str| place.path(name);
        library_folder(&at("hook"), "libcuda_hook.so", "libgpufn_nvml.so");
        library_folder(&at("sim"), "libsimcuda.so", "libsimcuda.so");
        let mut command = Command::new(programs::built("simgpu"));
        command.arg("--socket").arg(at("simgpu.sock")).args(["--mode", &self.mode]);
        command.args(["--gpus", &self.gpus.to_string()]);
        let mut gpu = Process::spawn(&mut command, &at("simgpu.log"));
        says_ready(&mut gpu, "listening on").await;
        let mut agent = spawn(&place, &self, 0);
        says_ready(&mut agent, "listening on").await;
        Plugin { agent, gpu, options: self, started: 1, place, _turn: turn }
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
    started: usize,
    place: Place,
    _turn: Turn,
}

impl Plugin {
    /// A plugin with one GPU that containers use beside each other.
    pub fn builder() -> Builder {
        Builder { gpus: 1, mode: "mps".into(), arguments: Vec::new(), kubeconfig: None, kubelet: None }
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
        says_ready(&mut self.agent, "listening on").await;
    }

    /// Starts an agent beside the one that runs, as an upgrade does; returns the older one.
    pub fn upgrade(&mut self) -> Process {
        let newer = self.spawn_another();
        std::mem::replace(&mut self.agent, newer)
    }

    fn spawn_another(&mut self) -> Process {
        self.started += 1;
        spawn(&self.place, &self.options, self.started)
    }
}

fn spawn(place: &Place, options: &Builder, number: usize) -> Process {
    let at = |name: &str| place.path(name);
    let (sim, socket) = (at("sim"), at("simgpu.sock"));
    let mut command = Command::new(programs::built("gpufn-node"));
    command.arg("serve").arg("--state").arg(at("node"));
    command.arg("--nvml").arg(sim.join("libnvidia-ml.so.1"));
    command.arg("--driver").arg(sim.join("libcuda.so.1"));
    command.arg("--hook").arg(at("hook")).args(["--sharing", &options.mode, "--metrics", "127.0.0.1:0"]);
    command.arg("--env").arg(format!("SIMCUDA_SOCKET={}", socket.display()));
    let (plugins, pod_resources) = options
        .kubelet
        .clone()
        .unwrap_or_else(|| (at("device-plugins"), at("pod-resources").join("kubelet.sock")));
    command.arg("--plugins").arg(plugins).arg("--pod-resources").arg(pod_resources);
    command.arg("--cdi").arg(at("cdi")).arg("--install").arg(at("opt"));
    command.env("SIMCUDA_SOCKET", &socket).env_remove("KUBECONFIG").env_remove("NODE_NAME");
    if let Some(kubeconfig) = &options.kubeconfig {
        command.env("KUBECONFIG", kubeconfig).args(["--node-name", "node-1"]);
    }
    command.args(&options.arguments);
    Process::spawn(&mut command, &at(&format!("node-{number}.log")))
}
