//! The node agent alone with a simulated GPU, and programs under its bindings: for tests of what is enforced.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use gpu_share::binding::Owner;
use gpu_share::names::state;
use gpu_share::protocol::{Bind, Bound};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};
use serde::Deserialize;
use tempfile::TempDir;

use crate::control::Control;
use crate::process::Process;
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
}

impl Stats {
    /// Asks the simulated GPU behind `socket`.
    pub fn read(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).context("the simulated GPU")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"{\"request\":\"stats\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| line)
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
        let used = self.busy_ns(pid) - earlier.busy_ns(pid);
        used as f64 / (self.now_ns - earlier.now_ns) as f64
    }
}

/// A node agent and its simulated GPU.
#[derive(Debug)]
pub struct Node {
    // In the order in which they end.
    agent: Process,
    gpu: Process,
    folder: TempDir,
    _turn: Turn,
}

impl Node {
    /// Takes the machine's turn, and starts both in `mode` (`mps` or `exclusive`).
    pub async fn start(mode: &str) -> Self {
        let turn = Turn::take();
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir().expect("a temp folder can be made");
        let at = |name: &str| folder.path().join(name);
        let (hook, sim) = (at("hook"), at("sim"));
        library_folder(&hook, &programs::built("libcuda_hook.so"));
        library_folder(&sim, &programs::built("libsimcuda.so"));
        let socket = at("simgpu.sock");

        let mut command = Command::new(programs::built("simgpu"));
        command.arg("--socket").arg(&socket).args(["--mode", mode]);
        let mut gpu = Process::spawn(&mut command, &at("simgpu.log"));
        says_ready(&mut gpu, "listening on").await;

        let mut command = Command::new(programs::built("gpufn-node"));
        command.arg("standalone").arg("--state").arg(at("node"));
        command.arg("--nvml").arg(sim.join("libnvidia-ml.so.1"));
        command.arg("--driver").arg(sim.join("libcuda.so.1"));
        command.arg("--hook").arg(&hook).args(["--sharing", mode, "--metrics", "127.0.0.1:0"]);
        command.arg("--env").arg(format!("SIMCUDA_SOCKET={}", socket.display()));
        command.env("SIMCUDA_SOCKET", &socket);
        let mut agent = Process::spawn(&mut command, &at("node.log"));
        says_ready(&mut agent, "listening on").await;
        Self { agent, gpu, folder, _turn: turn }
    }

    /// The agent's control API.
    pub fn control(&self) -> Control {
        Control(self.folder.path().join("node").join(state::CONTROL_SOCKET))
    }

    /// What the simulated GPU saw so far.
    pub fn stats(&self) -> Stats {
        let read = Stats::read(&self.folder.path().join("simgpu.sock"));
        read.unwrap_or_else(|error| panic!("{error:#}; the agent printed:\n{}", self.agent.tail()))
    }

    /// Processor time up to now, with agent, simulated GPU and `clients` as the test's own.
    pub fn processors<'a>(&'a self, clients: impl Iterator<Item = &'a Process>) -> Sample {
        Sample::take([&self.agent, &self.gpu].into_iter().chain(clients).map(Process::pid))
    }

    /// Binds a share, quotas in percent.
    pub async fn bind(&self, name: &str, sm: u8, floor: u8, ceiling: u8, memory: Bytes) -> Bound {
        let owner = Owner { namespace: "tests".into(), function: name.into(), instance: name.into() };
        let percent = |percent| Quota::from_percent(percent).expect("a quota is at most 100 %");
        let sm = SmShare::from_percent(sm).expect("an SM share is at most 100 %");
        let share = Share::new(sm, percent(floor), percent(ceiling), memory).expect("a share that can be");
        self.control().bind(&Bind { owner, share }).await.unwrap_or_else(|error| panic!("{name}: {error:#}"))
    }

    /// Starts the tests' `spin-client` under a binding, as a watchdog would, and waits until it says that it is ready.
    pub async fn client(&self, bound: &Bound, arguments: &[&str]) -> Process {
        let log = self.folder.path().join(format!("{}.log", bound.binding.owner.instance));
        let mut command = Command::new(programs::built("spin-client"));
        command.args(arguments).envs(bound.env.iter().cloned());
        command.env("LD_LIBRARY_PATH", self.folder.path().join("hook"));
        let mut process = Process::spawn(&mut command, &log);
        says_ready(&mut process, "ready").await;
        process
    }
}

/// A folder with `library` under the names by which programs ask for the driver and its management library.
fn library_folder(folder: &PathBuf, library: &Path) {
    fs::create_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for name in ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"] {
        let copied = fs::copy(library, folder.join(name));
        copied.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
}

async fn says_ready(process: &mut Process, line: &str) {
    until("a program to say that it is ready", START, async || {
        if let Some(status) = process.ended() {
            panic!("it ended at once with {status} and printed:\n{}", process.tail());
        }
        process.output().contains(line).then_some(())
    })
    .await;
}
