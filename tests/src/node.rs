//! The node agent alone with a simulated GPU, and programs under its bindings: for tests of what is enforced.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use gpu_share::binding::Owner;
use gpu_share::names::state;
use gpu_share::protocol::{Bind, Bound};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::control::Control;
use crate::delivery::Stand;
use crate::process::{self, Process};
use crate::processors::Sample;
use crate::programs::{self, Turn};
use crate::wait::until;

/// Longest time until a program is ready.
const START: Duration = Duration::from_secs(20);

/// What the simulated GPU itself saw.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    /// Its clock.
    pub now_ns: u64,
    /// Its GPUs.
    pub gpus: Vec<GpuStats>,
}

/// One GPU.
#[derive(Clone, Debug, Deserialize)]
pub struct GpuStats {
    /// Memory in use, bytes.
    pub memory_used: u64,
    /// Time during which at least one kernel ran.
    pub busy_ns: u64,
    /// Processes on it.
    pub clients: Vec<ClientStats>,
}

/// One process on a GPU.
#[derive(Clone, Debug, Deserialize)]
pub struct ClientStats {
    /// Its number.
    pub pid: u32,
    /// GPU time of its kernels.
    pub busy_ns: u64,
    /// Memory it holds, bytes.
    pub memory: u64,
    /// Kernels of it that ran to their end.
    pub kernels: u64,
    /// Kernels of it that run now.
    pub running: usize,
    /// Whether it is still connected.
    pub alive: bool,
}

impl Stats {
    /// Asks the simulated GPU behind `socket`.
    pub fn read(socket: &Path) -> Result<Self> {
        ask(socket, &serde_json::json!({"request": "stats"}))
    }

    /// GPU time that the process has used, all GPUs together.
    pub fn busy_ns(&self, pid: u32) -> u64 {
        self.gpus
            .iter()
            .flat_map(|gpu| &gpu.clients)
            .filter(|client| client.pid == pid)
            .map(|c| c.busy_ns)
            .sum()
    }

    /// Part of the time between `earlier` and this in which kernels of `pid` ran.
    #[allow(clippy::cast_precision_loss)] // Differences of seconds, in nanoseconds.
    pub fn part_since(&self, earlier: &Self, pid: u32) -> f64 {
        // What ended long ago is forgotten.
        let used = self.busy_ns(pid).saturating_sub(earlier.busy_ns(pid));
        used as f64 / (self.now_ns - earlier.now_ns) as f64
    }
}

/// How a node is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    sharing: String,
    gpu: Vec<String>,
    variables: Vec<(String, OsString)>,
}

impl Builder {
    /// Further arguments of the simulated GPU; of an option that is given twice, the last counts.
    #[must_use]
    pub fn gpu(mut self, arguments: &[&str]) -> Self {
        self.gpu.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Further variables for the agent and the simulated GPU.
    #[must_use]
    pub fn variables(mut self, variables: &[(&str, &OsStr)]) -> Self {
        let owned = variables.iter().map(|&(name, value)| (name.into(), value.into()));
        self.variables.extend(owned);
        self
    }

    /// Takes the machine's turn, and starts both.
    pub async fn start(self) -> Node {
        let turn = Turn::take();
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir().expect("a temp folder can be made");
        let at = |name: &str| folder.path().join(name);
        library_folder(&at("hook"), "libcuda_hook.so", "libgpufn_nvml.so");
        library_folder(&at("sim"), "libsimcuda.so", "libsimcuda.so");

        let mut command = Command::new(programs::built("simgpu"));
        command.arg("--socket").arg(at("simgpu.sock")).args(&self.gpu);
        command.envs(self.variables.iter().cloned());
        let mut gpu = Process::spawn(&mut command, &at("simgpu.log"));
        says_ready(&mut gpu, "listening on").await;
        let agent = start_agent(folder.path(), &self).await;
        Node { agent, gpu, options: self, logs: AtomicUsize::new(0), folder, _turn: turn }
    }
}

/// A node agent and its simulated GPU.
#[derive(Debug)]
pub struct Node {
    // In the order in which they end.
    agent: Process,
    gpu: Process,
    options: Builder,
    logs: AtomicUsize,
    folder: TempDir,
    _turn: Turn,
}

impl Node {
    /// A node whose agent and GPU are in `mode` (`mps` or `exclusive`).
    pub fn builder(mode: &str) -> Builder {
        let gpu = vec!["--mode".into(), mode.into()];
        Builder { sharing: mode.into(), gpu, variables: Vec::new() }
    }

    /// Takes the machine's turn, and starts both in `mode` (`mps` or `exclusive`).
    pub async fn start(mode: &str) -> Self {
        Self::builder(mode).start().await
    }

    /// The agent.
    pub fn agent(&self) -> &Process {
        &self.agent
    }

    /// Kills the agent, as a crash would.
    pub fn crash_agent(&mut self) {
        process::kill(self.agent.pid());
        self.agent.wait(START);
    }

    /// Starts an agent in the folder of the one that crashed.
    pub async fn restart_agent(&mut self) {
        self.agent = start_agent(self.folder.path(), &self.options).await;
    }

    /// A path in the node's folder, for what a test needs beside agent and GPU.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent's socket for containers.
    pub fn socket(&self) -> PathBuf {
        self.path("node").join(state::SOCKET)
    }

    /// The agent's control API.
    pub fn control(&self) -> Control {
        Control(self.path("node").join(state::CONTROL_SOCKET))
    }

    /// What the simulated GPU saw so far.
    pub fn stats(&self) -> Stats {
        Stand::stats(self)
    }

    /// Has the simulated GPUs do what `order` says (`simcuda`'s faults).
    pub fn order(&self, order: &serde_json::Value) {
        self::order(&self.path("simgpu.sock"), order);
    }

    /// Binds a share, quotas in percent.
    pub async fn bind(&self, name: &str, sm: u8, floor: u8, ceiling: u8, memory: Bytes) -> Bound {
        let owner = Owner {
            namespace: "tests".into(),
            function: name.into(),
            instance: name.into(),
            ..Owner::default()
        };
        let percent = |percent| Quota::from_percent(percent).expect("a quota is at most 100 %");
        let sm = SmShare::from_percent(sm).expect("an SM share is at most 100 %");
        let share = Share::new(sm, percent(floor), percent(ceiling), memory).expect("a share that can be");
        self.control().bind(&Bind { owner, share }).await.unwrap_or_else(|error| panic!("{name}: {error:#}"))
    }

    /// Starts the tests' `spin-client` under a binding, as a watchdog would, and waits until it says that it is ready.
    pub async fn client(&self, bound: &Bound, arguments: &[&str]) -> Process {
        let mut process = self.launch(bound, arguments, &[]);
        ready(&mut process).await;
        process
    }

    /// The same without the wait; `variables` come beside those of the binding, and replace them.
    pub fn launch(&self, bound: &Bound, arguments: &[&str], variables: &[(&str, &OsStr)]) -> Process {
        let mut command = Command::new(programs::built("spin-client"));
        command.args(arguments).env("LD_LIBRARY_PATH", self.path("hook"));
        command.envs(bound.env.iter().cloned()).envs(variables.iter().copied());
        self.spawn(bound, &mut command)
    }

    /// Starts any program under a binding. Where it looks for the driver is the command's own matter.
    pub fn run(&self, bound: &Bound, mut command: Command) -> Process {
        self.spawn(bound, command.envs(bound.env.iter().cloned()))
    }

    fn spawn(&self, bound: &Bound, command: &mut Command) -> Process {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        Process::spawn(command, &self.path(&format!("{}-{number}.log", bound.binding.owner.instance)))
    }
}

impl Stand for Node {
    fn stats(&self) -> Stats {
        let read = Stats::read(&self.path("simgpu.sock"));
        read.unwrap_or_else(|error| panic!("{error:#}; the agent printed:\n{}", self.agent.tail()))
    }

    fn processors(&self, clients: &[u32]) -> Sample {
        Sample::take([&self.agent, &self.gpu].map(Process::pid).into_iter().chain(clients.iter().copied()))
    }
}

/// Has the simulated GPUs behind `socket` do what `order` says.
pub(crate) fn order(socket: &Path, order: &serde_json::Value) {
    let answer = ask::<serde_json::Value>(socket, order);
    let answer = answer.unwrap_or_else(|error| panic!("{order}: {error:#}"));
    assert_eq!(answer, serde_json::json!({"done": true}), "{order}");
}

/// Asks the simulated GPUs behind `socket`.
fn ask<T: DeserializeOwned>(socket: &Path, question: &serde_json::Value) -> Result<T> {
    let mut stream = UnixStream::connect(socket).context("the simulated GPU")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| line)
}

/// Waits until a `spin-client` says that it is ready.
pub async fn ready(client: &mut Process) {
    says_ready(client, "ready").await;
}

async fn start_agent(folder: &Path, options: &Builder) -> Process {
    let (at, sim) = (|name: &str| folder.join(name), folder.join("sim"));
    let socket = at("simgpu.sock");
    let mut command = Command::new(programs::built("gpufn-node"));
    command.arg("standalone").arg("--state").arg(at("node"));
    command.arg("--nvml").arg(sim.join("libnvidia-ml.so.1"));
    command.arg("--driver").arg(sim.join("libcuda.so.1"));
    command.arg("--hook").arg(at("hook")).args(["--sharing", &options.sharing, "--metrics", "127.0.0.1:0"]);
    command.arg("--env").arg(format!("SIMCUDA_SOCKET={}", socket.display()));
    command.env("SIMCUDA_SOCKET", &socket).envs(options.variables.iter().cloned());
    let mut agent = Process::spawn(&mut command, &at("node.log"));
    says_ready(&mut agent, "listening on").await;
    agent
}

/// A folder with `library` under the names by which programs ask for the driver and its management library.
pub(crate) fn library_folder(folder: &Path, cuda: &str, nvml: &str) {
    fs::create_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = [
        ("libcuda.so.1", cuda),
        ("libcuda.so", cuda),
        ("libnvidia-ml.so.1", nvml),
        ("libnvidia-ml.so", nvml),
    ];
    for (name, library) in names {
        let copied = fs::copy(programs::built(library), folder.join(name));
        copied.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
}

pub(crate) async fn says_ready(process: &mut Process, line: &str) {
    until("a program to say that it is ready", START, async || {
        if let Some(status) = process.ended() {
            panic!("it ended at once with {status} and printed:\n{}", process.tail());
        }
        process.output().contains(line).then_some(())
    })
    .await;
}
