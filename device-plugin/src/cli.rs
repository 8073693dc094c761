//! The command line: what it accepts, and its exit codes (0 done, 1 failed, 64 bad usage).
//!
//! Owns words only; the agent does the work.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use gpu_share::names::{RESOURCE, state};
use gpu_share::protocol::NodeStatus;
use gpu_share::units::{Nanos, Units};
use rustix::process::{Resource as Limited, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::health;
use crate::inventory::{NvmlInventory, SharingChoice};
use crate::kubelet::Form;
use crate::kubelet::resource::Resource;
use crate::kubelet::serve::{self, FrontEnd};
use crate::mps::{Mps, MpsChoice};
use crate::pci;
use crate::standalone::{Agent, Config};
use crate::table;

/// Shares the GPUs of this node between containers.
#[derive(Debug, Parser)]
#[command(name = "gpufn-node", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the node agent for the kubelet: as a device plugin, or as a driver of dynamic resource allocation.
    Serve(Box<Serve>),
    /// Runs the node agent without Kubernetes.
    Standalone(Box<Standalone>),
    /// Shows GPUs and bindings of a running agent.
    Status(Status),
}

#[derive(Debug, Args)]
struct Standalone {
    /// State folder: sockets, pages, checkpoint.
    #[arg(long, env = "GPUFN_STATE", default_value = state::FOLDER)]
    state: PathBuf,
    /// NVML library, real or simulated.
    #[arg(long, env = "GPUFN_NVML", default_value = "libnvidia-ml.so.1")]
    nvml: PathBuf,
    /// CUDA driver library, real or simulated, for containers.
    #[arg(long, env = "GPUFN_DRIVER")]
    driver: Option<PathBuf>,
    /// Folder of the hook library, for containers.
    #[arg(long, env = "GPUFN_HOOK")]
    hook: Option<PathBuf>,
    /// Whether processes use a GPU beside each other.
    #[arg(long, env = "GPUFN_SHARING", value_enum, default_value = "auto")]
    sharing: SharingChoice,
    /// Whether the agent runs the control daemon of NVIDIA's multi-process service.
    #[arg(long, env = "GPUFN_MPS", value_enum)]
    mps: Option<MpsChoice>,
    /// Control program of NVIDIA's multi-process service.
    #[arg(long, env = "GPUFN_MPS_CONTROL", value_name = "PATH", default_value = "nvidia-cuda-mps-control")]
    mps_control: PathBuf,
    /// Window over which quotas are kept, 1ms to 1s.
    #[arg(long, env = "GPUFN_WINDOW", default_value = "10ms", value_parser = window)]
    window: Nanos,
    /// Units that a GPU is divided into.
    #[arg(long, env = "GPUFN_UNITS", default_value_t = Units::PER_GPU.0, value_parser = clap::value_parser!(u32).range(1..=1000))]
    units: u32,
    /// Address of /metrics.
    #[arg(long, env = "GPUFN_METRICS", default_value = "127.0.0.1:9101")]
    metrics: SocketAddr,
    /// A further variable for containers; can be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Xids that are counted and otherwise ignored, such as 31,79. Those of applications always are.
    #[arg(long, env = "GPUFN_IGNORE_XIDS", value_name = "XIDS", value_delimiter = ',')]
    ignore_xids: Vec<u64>,
    /// The kernel's log, which names the process of an Xid.
    #[arg(long, env = "GPUFN_KERNEL_LOG", value_name = "PATH", default_value = "/dev/kmsg")]
    kernel_log: PathBuf,
    /// Form of the log on stderr.
    #[arg(long, env = "GPUFN_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    node: Standalone,
    /// How the kubelet comes to hand out GPUs.
    #[arg(long, env = "GPUFN_FRONT_END", value_enum, default_value = "plugin")]
    front_end: FrontEnd,
    /// The kubelet's folder of sockets by which it finds drivers.
    #[arg(
        long,
        env = "GPUFN_REGISTRY",
        value_name = "DIR",
        default_value = "/var/lib/kubelet/plugins_registry"
    )]
    registry: PathBuf,
    /// Name of the extended resource.
    #[arg(long, env = "GPUFN_RESOURCE", value_name = "NAME", default_value = RESOURCE)]
    resource: Resource,
    /// The kubelet's folder of plugins.
    #[arg(
        long,
        env = "GPUFN_PLUGINS",
        value_name = "DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    plugins: PathBuf,
    /// The kubelet's pod-resources socket.
    #[arg(
        long,
        env = "GPUFN_POD_RESOURCES",
        value_name = "PATH",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pod_resources: PathBuf,
    /// How a container gets at its binding.
    #[arg(long, env = "GPUFN_INJECT", value_enum, default_value = "cdi")]
    inject: Form,
    /// Folder of CDI files.
    #[arg(long, env = "GPUFN_CDI", value_name = "DIR", default_value = "/var/run/cdi")]
    cdi: PathBuf,
    /// Kind of the CDI devices that stand for the GPUs themselves, such as nvidia.com/gpu.
    #[arg(long, env = "GPUFN_GPU_KIND", value_name = "KIND")]
    gpu_kind: Option<String>,
    /// Folder on the node below which the hook library is installed, for containers.
    #[arg(long, env = "GPUFN_INSTALL", value_name = "DIR", default_value = "/opt/gpufn")]
    install: PathBuf,
    /// PCI devices as Linux shows them, which say near which NUMA node a GPU is.
    #[arg(long, env = "GPUFN_PCI_DEVICES", value_name = "DIR", default_value = pci::DEVICES)]
    pci_devices: PathBuf,
    /// The node's name at the API server.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The fewest units that a container asks for; where fewer are left, they are withdrawn.
    #[arg(long, env = "GPUFN_SMALLEST", value_name = "UNITS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    smallest: u32,
    /// How long the kubelet's list has to miss a container until its binding is released, 1ms to 1h.
    #[arg(long, env = "GPUFN_GRACE", default_value = "10s", value_parser = grace)]
    grace: Nanos,
}

/// Units per GPU that go into a million parts without a rest, so that the parts of a GPU sum to the GPU.
const DIVISIONS: [u32; 4] = [10, 20, 50, 100];

#[derive(Debug, Args)]
struct Status {
    /// State folder of the agent.
    #[arg(long, env = "GPUFN_STATE", default_value = state::FOLDER)]
    state: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Cli {
    /// What does not go together, though each is allowed.
    fn conflict(&self) -> Option<clap::Error> {
        let conflict = |text: &str| Some(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, text));
        let (node, division) = match &self.command {
            Command::Standalone(node) => (&**node, None),
            Command::Serve(serve) if serve.front_end == FrontEnd::Dra => {
                if serve.inject != Form::Cdi {
                    return conflict("--inject is classic, allowed is cdi with --front-end dra\n");
                }
                if serve.node_name.is_none() {
                    return conflict(
                        "--node-name is not given, allowed is the node's name at the API server with --front-end dra\n",
                    );
                }
                (&serve.node, None)
            }
            Command::Serve(serve) => (&serve.node, Some(serve.node.units)),
            Command::Status(_) => return None,
        };
        if node.mps == Some(MpsChoice::Start) && node.sharing == SharingChoice::Exclusive {
            return conflict(
                "--mps is start and --sharing is exclusive, allowed is --sharing mps or auto with it\n",
            );
        }
        match division {
            Some(units) if !DIVISIONS.contains(&units) => {
                conflict(&format!("--units is {units}, allowed is 10, 20, 50 or 100 for the kubelet\n"))
            }
            _ => None,
        }
    }
}

/// Does what the arguments of this process say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => match cli.conflict() {
            None => cli,
            Some(error) => {
                let _ = error.print();
                return ExitCode::from(64);
            }
        },
        Err(error) => {
            // Help and version are no errors; where to print and whether that works is clap's and the pipe's business.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Serve(options) => serve(*options),
        Command::Standalone(options) => standalone(*options),
        Command::Status(options) => status(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes are; a closed stderr is no reason for another exit code.
            let _ = writeln!(std::io::stderr(), "gpufn-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As many open files as the system allows: each connection takes two, and a container must not use them up.
fn raise_file_limit() {
    let limit = getrlimit(Limited::Nofile);
    if let Err(error) = setrlimit(Limited::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "limit of open files stays");
    }
}

/// What an agent is started with.
fn config(options: Standalone) -> (Config, NvmlInventory) {
    let mps = Mps::resolve(options.mps, options.mps_control);
    let inventory = NvmlInventory::new(&options.nvml);
    let config = Config {
        state: options.state,
        nvml: options.nvml,
        driver: options.driver,
        hook: options.hook,
        sharing: options.sharing.resolve(&mps),
        mps,
        window: options.window,
        units: Units(options.units),
        metrics: Some(options.metrics),
        env: options.env,
        health: health::Options {
            ignored: options.ignore_xids,
            kernel_log: Some(options.kernel_log),
            ..health::Options::default()
        },
    };
    (config, inventory)
}

/// Where people and their scripts look for it.
fn say_ready(agent: &Agent) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", agent.socket().display())?;
    stdout.flush()
}

/// Signals that end an agent; before it runs, so that one right after the line on stdout is not missed.
fn signals(runtime: &Runtime) -> std::io::Result<(Signal, Signal)> {
    runtime.block_on(async { Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)) })
}

fn serve(options: Serve) -> anyhow::Result<()> {
    log_to_stderr(options.node.log_format);
    raise_file_limit();
    let (config, inventory) = config(options.node);
    let inventory = inventory.pci_devices(options.pci_devices);
    let options = serve::Options {
        front_end: options.front_end,
        registry: options.registry,
        resource: options.resource,
        plugins: options.plugins,
        pod_resources: options.pod_resources,
        form: options.inject,
        cdi: options.cdi,
        gpu_kind: options.gpu_kind,
        install: options.install,
        node: options.node_name,
        smallest: Units(options.smallest),
        grace: options.grace,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = signals(&runtime)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    runtime.block_on(serve::run(config, options, &inventory, say_ready, stop))
}

fn standalone(options: Standalone) -> anyhow::Result<()> {
    log_to_stderr(options.log_format);
    raise_file_limit();
    let (config, inventory) = config(options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = signals(&runtime)?;
    let agent = Agent::start(&config, &inventory)?;
    say_ready(&agent)?;
    let ended = runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = ended(&agent) => true,
        }
    });
    agent.stop();
    anyhow::ensure!(!ended, "the arbiter's thread ended; the log says why");
    Ok(())
}

/// Returns when the agent does not run any more.
async fn ended(agent: &Agent) {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    while agent.is_running() {
        interval.tick().await;
    }
}

fn status(options: &Status) -> anyhow::Result<()> {
    let socket = options.state.join(state::CONTROL_SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime
        .block_on(fetch_status(&socket))
        .with_context(|| format!("no node agent answers on {}", socket.display()))?;
    let text =
        if options.json { serde_json::to_string_pretty(&status)? + "\n" } else { table::render(&status) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn fetch_status(socket: &std::path::Path) -> anyhow::Result<NodeStatus> {
    let client = reqwest::Client::builder().unix_socket(socket).timeout(Duration::from_secs(5)).build()?;
    let response = client.get("http://localhost/v1/status").send().await?.error_for_status()?;
    Ok(response.json().await?)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("GPUFN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if a log is there already, which is as good.
    let _ = match format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

fn window(text: &str) -> Result<Nanos, String> {
    span(text, Nanos::from_secs(1)).ok_or_else(|| "allowed is 1ms to 1s, such as 10ms".into())
}

fn grace(text: &str) -> Result<Nanos, String> {
    span(text, Nanos::from_secs(3600)).ok_or_else(|| "allowed is 1ms to 1h, such as 10s".into())
}

/// A span of 1 ms to `most`.
fn span(text: &str, most: Nanos) -> Option<Nanos> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1_000_000),
        None => (text.strip_suffix('s')?, 1_000_000_000),
    };
    let span = Nanos(number.parse::<u64>().ok()?.saturating_mul(unit));
    (Nanos::from_millis(1)..=most).contains(&span).then_some(span)
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.into(), value.into())),
        _ => Err("allowed is KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn windows_and_variables_are_read_or_refused() {
        assert_eq!(window("10ms"), Ok(Nanos::from_millis(10)));
        assert_eq!(window("1s"), Ok(Nanos::from_secs(1)));
        for bad in ["0ms", "2s", "10", "ms", "-1ms", "99999999999999999999s"] {
            assert!(window(bad).is_err(), "{bad}");
        }
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }

    #[test]
    fn a_daemon_for_gpus_that_nobody_shares_is_refused() {
        let conflict = |arguments: &[&str]| {
            let words = ["gpufn-node", "standalone"].iter().chain(arguments);
            Cli::try_parse_from(words).unwrap().conflict().map(|error| error.to_string())
        };
        assert!(conflict(&["--mps", "start", "--sharing", "exclusive"]).unwrap().contains("--mps is start"));
        assert_eq!(conflict(&["--mps", "start", "--sharing", "mps"]), None);
        assert_eq!(conflict(&["--mps", "off", "--sharing", "exclusive"]), None);
    }

    #[test]
    fn what_claims_need_is_asked_for_at_once() {
        let conflict = |arguments: &[&str]| {
            let words = ["gpufn-node", "serve", "--front-end", "dra"].iter().chain(arguments);
            Cli::try_parse_from(words).unwrap().conflict().map(|error| error.to_string())
        };
        assert!(conflict(&[]).unwrap().contains("--node-name is not given"));
        let classic = conflict(&["--node-name", "node-1", "--inject", "classic"]).unwrap();
        assert!(classic.contains("--inject is classic, allowed is cdi"));
        assert_eq!(
            conflict(&["--node-name", "node-1", "--units", "7"]),
            None,
            "units don't matter to claims"
        );
    }

    #[test]
    fn the_readme_lists_every_option() {
        let readme = include_str!("../README.md");
        let command = Cli::command();
        for subcommand in command.get_subcommands() {
            for option in subcommand.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(readme.contains(&format!("| `--{option}")), "{} --{option}", subcommand.get_name());
            }
        }
    }
}
