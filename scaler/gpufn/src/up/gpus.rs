//! Brings up what functions need of GPUs: real ones or the simulated one, the libraries, and the node agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use gpu_share::names;
use gpu_share::protocol::NodeStatus;

use super::children::{Supervised, Supervision};
use super::folder::{Folder, Pids};
use super::node::Node;
use super::{Args, SharingMode, Simulate, libraries};

/// Name of the simulated GPU's process.
pub(crate) const SIMGPU: &str = "simgpu";
const NODE: &str = "gpufn-node";
/// Where the simulated driver finds the simulated GPU.
const SIMCUDA_SOCKET: &str = "SIMCUDA_SOCKET";

/// The programs that `up` starts.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
    pub(crate) watchdog: PathBuf,
}

impl Programs {
    /// The programs in `folder`, or beside this one.
    fn find(folder: Option<&Path>) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => {
                folder.canonicalize().with_context(|| format!("failed to find {}", folder.display()))?
            }
            None => std::env::current_exe()?.parent().context("this program has no folder")?.to_path_buf(),
        };
        let programs = Self { watchdog: folder.join("fwatchdog"), folder };
        programs.file(NODE)?;
        programs.file("fwatchdog")?;
        programs.file("libcuda_hook.so")?;
        Ok(programs)
    }

    fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        anyhow::ensure!(path.is_file(), "{} is missing; --bin-dir names the folder it is in", path.display());
        Ok(path)
    }
}

/// What was brought up.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) node: Node,
    pub(crate) status: NodeStatus,
    pub(crate) children: Vec<Supervision>,
    pub(crate) programs: Programs,
}

/// The driver that functions use.
struct Driver {
    cuda: PathBuf,
    nvml: PathBuf,
    env: Vec<(String, String)>,
    simulated: bool,
}

/// Starts it all and waits until the node agent answers.
pub(crate) async fn start(args: &Args, folder: &Folder, pids: &Arc<Pids>) -> anyhow::Result<Started> {
    let programs = Programs::find(args.bin_dir.as_deref())?;
    let hook = libraries::install(libraries::HOOK, |file| programs.file(file), &folder.libraries("hook"))?;
    let driver = driver(args, folder, &programs)?;
    let mut children = Vec::new();
    if driver.simulated {
        let simgpu = simgpu(args, folder, &programs)?.start(pids.clone());
        simgpu.until_ready().await?;
        children.push(simgpu);
    }
    let agent = agent(args, folder, &programs, &driver, &hook)?.start(pids.clone());
    agent.until_ready().await?;
    children.push(agent);
    let node = Node::new(folder.node().join(names::state::CONTROL_SOCKET));
    let status = node.status().await.context("failed to ask the node agent")?;
    anyhow::ensure!(!status.gpus.is_empty(), "the node agent found no GPU");
    Ok(Started { node, status, children, programs })
}

fn driver(args: &Args, folder: &Folder, programs: &Programs) -> anyhow::Result<Driver> {
    let real = (args.simulate != Simulate::Always).then(real_driver).flatten();
    if let Some((cuda, nvml)) = real {
        return Ok(Driver { cuda, nvml, env: Vec::new(), simulated: false });
    }
    anyhow::ensure!(args.simulate != Simulate::Never, "NVML finds no GPU, and --simulate never was given");
    let place =
        libraries::install(libraries::SIMULATED, |file| programs.file(file), &folder.libraries("sim"))?;
    let socket = folder.simgpu_socket().to_string_lossy().into_owned();
    Ok(Driver {
        cuda: place.join("libcuda.so.1"),
        nvml: place.join("libnvidia-ml.so.1"),
        env: vec![(SIMCUDA_SOCKET.into(), socket)],
        simulated: true,
    })
}

/// NVIDIA's libraries, if they are here and find a GPU.
fn real_driver() -> Option<(PathBuf, PathBuf)> {
    let (driver, nvml) = libraries::real_driver()?;
    let found =
        nvml_wrapper::Nvml::builder().lib_path(nvml.as_os_str()).init().and_then(|nvml| nvml.device_count());
    match found {
        Ok(count) if count > 0 => Some((driver, nvml)),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(library = %nvml.display(), %error, "NVML is here but does not work; GPUs are simulated.");
            None
        }
    }
}

fn simgpu(args: &Args, folder: &Folder, programs: &Programs) -> anyhow::Result<Supervised> {
    let mode = if args.sharing == SharingMode::Exclusive { "exclusive" } else { "mps" };
    let socket = folder.simgpu_socket();
    // One that was killed left it.
    let _ = std::fs::remove_file(&socket);
    let (socket, gpus) = (socket.to_string_lossy().into_owned(), args.gpus.to_string());
    Ok(Supervised {
        name: SIMGPU,
        program: programs.file(SIMGPU)?,
        arguments: ["--socket", &socket, "--gpus", &gpus, "--mode", mode].map(str::to_string).into(),
        env: Vec::new(),
        log: folder.child_log(SIMGPU),
    })
}

fn agent(
    args: &Args,
    folder: &Folder,
    programs: &Programs,
    driver: &Driver,
    hook: &Path,
) -> anyhow::Result<Supervised> {
    let sharing = match args.sharing {
        SharingMode::Auto if driver.simulated => "mps",
        SharingMode::Auto => "auto",
        SharingMode::Mps => "mps",
        SharingMode::Exclusive => "exclusive",
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut arguments = vec!["standalone".to_string()];
    let options = [
        ("--state", text(&folder.node())),
        ("--nvml", text(&driver.nvml)),
        ("--driver", text(&driver.cuda)),
        ("--hook", text(hook)),
        ("--sharing", sharing.into()),
        ("--window", args.window.clone()),
        // A port of its own for each state folder, so that two may run.
        ("--metrics", "127.0.0.1:0".into()),
    ];
    arguments.extend(options.into_iter().flat_map(|(name, value)| [name.to_string(), value]));
    for (name, value) in &driver.env {
        arguments.extend(["--env".to_string(), format!("{name}={value}")]);
    }
    Ok(Supervised {
        name: NODE,
        program: programs.file(NODE)?,
        arguments,
        env: driver.env.clone(),
        log: folder.child_log(NODE),
    })
}
