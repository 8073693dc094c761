//! The stand that probes run on: a GPU (real, or simulated where there is none), the node agent in this process, and the
//! hook's folder. One stand shares its GPU in one mode.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use device_plugin::inventory::{Inventory, InventoryError, NvmlInventory};
use device_plugin::mps::Mps;
use device_plugin::standalone::{Agent, Config};
use gpu_share::binding::{GpuId, Owner};
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::names::env;
use gpu_share::protocol::{Bind, Bound};
use gpu_share::quota::WINDOW;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare, Units};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt as _;
use tokio::process::{Child, Command};

use super::cell::{Container, Mode};
use crate::up::libraries;

/// Time to the line that says that the simulated GPU listens.
const START: Duration = Duration::from_secs(20);
/// Starts and ends NVIDIA's multi-process service.
const MPS_CONTROL: &str = "nvidia-cuda-mps-control";
/// Where the simulated driver finds the simulated GPU.
const SIMCUDA_SOCKET: &str = "SIMCUDA_SOCKET";
/// Memory of each container: enough for the contexts of its processes.
const MEMORY: Bytes = Bytes::gib(3);

/// The files that a stand is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs in `folder`, or beside this one.
    pub fn find(folder: Option<&Path>) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => {
                folder.canonicalize().with_context(|| format!("failed to find {}", folder.display()))?
            }
            None => std::env::current_exe()?.parent().context("this program has no folder")?.to_path_buf(),
        };
        let programs = Self { folder };
        programs.file("libcuda_hook.so")?;
        Ok(programs)
    }

    /// The file named `name`.
    pub fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        ensure!(path.is_file(), "{} is missing; --bin-dir names the folder it is in", path.display());
        Ok(path)
    }
}

/// Which GPU is used.
#[derive(Clone, Debug)]
pub enum Card {
    /// That of this machine, by the paths of driver and management library.
    Real(PathBuf, PathBuf),
    /// A simulated one.
    Simulated,
}

impl Card {
    /// The card of this machine, if NVML finds one.
    pub fn detect() -> Self {
        let found = libraries::real_driver().filter(|(_, nvml)| {
            let nvml = nvml_wrapper::Nvml::builder().lib_path(nvml.as_os_str()).init();
            nvml.and_then(|nvml| nvml.device_count()).is_ok_and(|count| count > 0)
        });
        found.map_or(Self::Simulated, |(driver, nvml)| Self::Real(driver, nvml))
    }
}

/// Whether this machine has NVIDIA's multi-process service.
pub(super) fn has_mps() -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(MPS_CONTROL).is_file())
}

/// What the simulated GPU itself saw.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    /// Its clock.
    pub now_ns: u64,
    gpus: Vec<GpuStats>,
}

#[derive(Clone, Debug, Deserialize)]
struct GpuStats {
    index: u32,
    name: String,
    uuid: String,
    memory: u64,
    clients: Vec<ClientStats>,
}

#[derive(Clone, Debug, Deserialize)]
struct ClientStats {
    pid: u32,
    busy_ns: u64,
}

impl Stats {
    fn read(socket: &Path) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(socket).context("the simulated GPU")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"{\"request\":\"stats\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the simulated GPU answers {line:?}"))
    }

    /// GPU time that the processes have used.
    pub fn busy_ns(&self, pids: &[u32]) -> u64 {
        let clients = self.gpus.iter().flat_map(|gpu| &gpu.clients);
        clients.filter(|client| pids.contains(&client.pid)).map(|client| client.busy_ns).sum()
    }
}

/// The GPUs of a simulated driver, as its daemon tells.
struct SimulatedGpus(Stats);

impl Inventory for SimulatedGpus {
    fn gpus(&self, sharing: Sharing, _: Duration) -> Result<Vec<Gpu>, InventoryError> {
        let gpus = self.0.gpus.iter().map(|gpu| Gpu {
            id: GpuId(gpu.uuid.clone()),
            index: gpu.index,
            name: gpu.name.clone(),
            memory: Bytes(gpu.memory),
            sharing,
        });
        Ok(gpus.collect())
    }
}

/// A running stand.
#[derive(Debug)]
pub struct Stand {
    // In the order in which they end.
    agent: Agent,
    simgpu: Option<Child>,
    /// The folder of the multi-process service, if one was started.
    pipes: Option<PathBuf>,
    folder: TempDir,
    /// The GPU, in words.
    pub gpu: String,
    hook: PathBuf,
    driver: PathBuf,
}

impl Stand {
    /// Starts one.
    pub async fn start(programs: &Programs, card: &Card, mode: Mode) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gpufn-audit-").tempdir()?;
        let hook =
            libraries::install(libraries::HOOK, |file| programs.file(file), &folder.path().join("hook"))?;
        let (mut simgpu, mut mps, mut extra) = (None, Mps::Off, Vec::new());
        let (driver, nvml) = match card {
            Card::Real(driver, nvml) => {
                if mode == Mode::Mps {
                    mps = Mps::Start(MPS_CONTROL.into());
                }
                (driver.clone(), nvml.clone())
            }
            Card::Simulated => {
                let place = libraries::install(
                    libraries::SIMULATED,
                    |file| programs.file(file),
                    &folder.path().join("sim"),
                )?;
                simgpu = Some(start_simgpu(programs, folder.path(), mode).await?);
                extra.push((SIMCUDA_SOCKET.to_string(), text(&socket(folder.path()))));
                (place.join("libcuda.so.1"), place.join("libnvidia-ml.so.1"))
            }
        };
        let config = Config {
            state: folder.path().join("node"),
            nvml: nvml.clone(),
            driver: Some(driver.clone()),
            hook: Some(hook.clone()),
            sharing: if mode == Mode::Mps { Sharing::Mps } else { Sharing::Exclusive },
            mps,
            window: WINDOW,
            units: Units::PER_GPU,
            metrics: None,
            env: extra,
            health: device_plugin::health::Options::default(),
        };
        let agent = match simgpu {
            Some(_) => Agent::start(&config, &SimulatedGpus(Stats::read(&socket(folder.path()))?))?,
            None => Agent::start(&config, &NvmlInventory::new(nvml))?,
        };
        let pipes = config.mps.pipes(&config.state);
        let status = agent.handle().status().await?;
        let gpu = status.gpus.first().context("no GPU is found")?.gpu.name.clone();
        Ok(Self { agent, simgpu, pipes, folder, gpu, hook, driver })
    }

    /// Binds the share of `container`.
    pub async fn bind(&self, name: &str, container: &Container) -> anyhow::Result<Bound> {
        let quota = Quota::from_percent;
        let sm = SmShare::from_percent(container.sm)?;
        let share = Share::new(sm, quota(container.quota)?, quota(container.ceiling)?, MEMORY)?;
        let owner = Owner {
            namespace: "audit".into(),
            function: name.into(),
            instance: name.into(),
            ..Owner::default()
        };
        Ok(self.agent.handle().bind(Bind { owner, share }).await?)
    }

    /// The node agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// A command that runs `program` under `bound`, as a watchdog would.
    pub fn command(&self, program: &Path, bound: &Bound) -> Command {
        let mut command = bare(program);
        command.envs(bound.env.iter().cloned()).env("LD_LIBRARY_PATH", &self.hook);
        command
    }

    /// A command that runs `program` on the driver itself, without hook and share.
    pub fn unhooked(&self, program: &Path) -> Command {
        let mut command = bare(program);
        if let Some(folder) = self.driver.parent() {
            command.env("LD_LIBRARY_PATH", folder);
        }
        if self.simgpu.is_some() {
            command.env(SIMCUDA_SOCKET, socket(self.folder.path()));
        }
        if let Some(pipes) = &self.pipes {
            command.env("CUDA_MPS_PIPE_DIRECTORY", pipes);
        }
        command
    }

    /// Whether the GPU is simulated.
    pub fn is_simulated(&self) -> bool {
        self.simgpu.is_some()
    }

    /// What the simulated GPU saw.
    pub fn stats(&self) -> anyhow::Result<Stats> {
        Stats::read(&socket(self.folder.path()))
    }

    /// Ends it in good order.
    pub async fn stop(self) {
        self.agent.stop();
        if let Some(mut simgpu) = self.simgpu {
            // It is killed in any case when it is dropped.
            let _ = simgpu.kill().await;
        }
    }
}

fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove(env::PAGE).env_remove(env::BINDING).env_remove(env::SOCKET).env_remove("LD_PRELOAD");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    command
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("simgpu.sock")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn start_simgpu(programs: &Programs, folder: &Path, mode: Mode) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join("simgpu.log"))?;
    let mut child = Command::new(programs.file("simgpu")?)
        .arg("--socket")
        .arg(socket(folder))
        .args(["--mode", &mode.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().context("simgpu has no output")?;
    let mut lines = tokio::io::BufReader::new(out).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("listening on ") {
                return Ok(());
            }
        }
        anyhow::bail!("simgpu ended: {}", std::fs::read_to_string(folder.join("simgpu.log"))?.trim())
    };
    tokio::time::timeout(START, ready).await.context("simgpu does not listen")??;
    Ok(child)
}
