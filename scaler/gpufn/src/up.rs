//! `gpufn up`: OpenFaaS' provider and gateway API on this machine, functions as processes behind `fwatchdog`.
//!
//! Owns the command line and the order in which things start and end.
//!
//! ```text
//! client ──HTTP──► api ──► gateway ──► fwatchdog ──► function ──► hook ──► driver (real or simulated)
//!                              │                                    │
//!                 counters     ▼                                    ▼
//!                   ┌──── control loop ──── control API ───► node agent (gpufn-node)
//!                   ▼          ▲
//!                 policy (crate scaler)
//! ```

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names;
use gpu_share::protocol::NodeStatus;
use scaler::profile::sheet::Sheet;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::api::Api;
use self::children::Supervision;
use self::folder::{Folder, Pids, write_whole};
use self::node::Node;
use self::platform::{Parts, Platform};
use self::queue::Queue;
use self::runtime::process::Processes;
use self::store::Store;

mod accounting;
mod api;
mod children;
mod clock;
mod control;
mod decisions;
#[cfg(test)]
mod fakes;
mod folder;
mod function;
mod gateway;
mod gpus;
mod image;
pub(crate) mod libraries;
mod lifecycle;
mod logbook;
mod metrics;
mod node;
mod platform;
mod queue;
mod replica;
mod routing;
mod runtime;
mod spec;
mod store;
mod traffic;
mod usage;
mod view;

/// Longest time that replicas and clients are given to finish when `up` ends.
const FINISH: Duration = Duration::from_secs(20);
/// Longest path of a unix socket (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Whether GPUs are simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Simulate {
    /// If NVML finds no GPU.
    Auto,
    /// Even if there are real ones.
    Always,
    /// Fail rather than simulate.
    Never,
}

/// How processes share a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SharingMode {
    /// Beside each other if NVIDIA's multi-process service runs; simulated GPUs always.
    Auto,
    /// Beside each other, each on its SM share.
    Mps,
    /// One at a time.
    Exclusive,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Arguments of `gpufn up`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS", env = "GPUFN_LISTEN")]
    listen: SocketAddr,
    /// Folder of everything that is kept; one `gpufn up` at a time has it
    #[arg(long, default_value = ".gpufn", value_name = "DIR")]
    state: PathBuf,
    /// Ask for a password (user admin) on all routes but those of functions
    #[arg(long)]
    auth: bool,
    /// Who decides: gpufn (share each GPU, resize) or kserve (a whole GPU per replica)
    #[arg(long, default_value = "gpufn", value_name = "NAME")]
    policy: String,
    /// Profile as `gpufn profile` writes it, of a model that functions may name; can be given several times
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,
    /// Simulate GPUs
    #[arg(long, value_enum, default_value_t = Simulate::Auto)]
    simulate: Simulate,
    /// Number of simulated GPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16), value_name = "N")]
    gpus: u32,
    /// How processes share a GPU
    #[arg(long, value_enum, default_value_t = SharingMode::Auto)]
    sharing: SharingMode,
    /// Period over which quotas are kept, 1ms to 1s
    #[arg(long, default_value = "10ms", value_name = "DURATION")]
    window: String,
    /// Folder of gpufn-node, fwatchdog, simgpu and the two libraries [default: this program's own]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Form of the log, on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Least level of the log: error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

/// Runs until SIGINT or SIGTERM; a second one ends everything at once.
#[allow(clippy::needless_pass_by_value)] // The same form for every command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    start_log(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(up(&args));
    runtime.shutdown_background();
    ended
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let level: tracing::Level = args
        .log_level
        .parse()
        .map_err(|_| Invalid::new("--log-level", &args.log_level, "error, warn, info, debug or trace"))?;
    // Levels below warnings are for gpufn itself; the libraries beneath it would drown it.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,gpufn={level},scaler={level}"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Whoever has set up a log already keeps it.
    let _ = match args.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(())
}

/// What runs beside the functions.
struct Running {
    platform: Arc<Platform>,
    /// In the order in which they were started.
    children: Vec<Supervision>,
    pids: Arc<Pids>,
    folder: Folder,
}

async fn up(args: &Args) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let profiles = profiles(&args.profile)?;
    let policy = scaler::policy::by_name(&args.policy, profiles.clone())?;
    let window = openfaas::checks::duration(&args.window).filter(|w| (1..=1000).contains(&w.as_millis()));
    let window = window.ok_or_else(|| Invalid::new("--window", &args.window, "1ms to 1s"))?;
    let folder = Folder::create(&args.state)?;
    let _lock = folder.lock()?;
    check_socket_paths(&folder)?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("failed to listen on {}", args.listen))?;
    let password = args.auth.then(|| password(&folder)).transpose()?;
    let pids = Arc::new(Pids::take_over(folder.pids()));
    let _ = std::fs::remove_dir_all(folder.replicas());
    let started = tokio::select! {
        started = gpus::start(args, &folder, &pids) => started?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let watchdog = started.programs.watchdog.clone();
    let parts = Parts {
        node: started.node.clone(),
        runtime: Arc::new(Processes::new(watchdog, folder.clone(), pids.clone(), tasks.clone())),
        store: Store { folder: folder.clone() },
        profiles,
        window: window.into(),
        hold: gateway::HOLD,
        tasks,
        shutdown,
    };
    let platform = Arc::new(Platform::new(parts, policy)?);
    platform.note_status(Arc::new(started.status));
    let running = Running { platform, children: started.children, pids, folder };
    running.go(args, listener, password, &mut signals).await
}

impl Running {
    async fn go(
        self,
        args: &Args,
        listener: TcpListener,
        password: Option<String>,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let platform = &self.platform;
        release_all(&platform.node, platform.status().as_deref()).await;
        platform.restore();
        platform.tasks.spawn(control::run(platform.clone()));
        platform.tasks.spawn(control::follow_events(platform.clone()));
        for child in &self.children {
            platform.tasks.spawn(on_restarts(platform.clone(), child.name, child.course.clone()));
        }
        let address = listener.local_addr()?;
        let queue = Queue::start(platform.clone());
        let asks = password.is_some();
        let api = Api {
            platform: platform.clone(),
            queue,
            login: password.map(|password| Arc::new(api::login(password))),
        };
        let listener = listener.tap_io(|stream| {
            // Small answers must not wait for the acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
        });
        let service = api::router(api).into_make_service_with_connect_info::<SocketAddr>();
        let ending = platform.shutdown.clone();
        let server = axum::serve(listener, service).with_graceful_shutdown(ending.cancelled_owned());
        let server = tokio::spawn(server.into_future());
        self.say_ready(args, address, asks)?;
        signals.next().await;
        tracing::info!("Ending: replicas finish what they have. Once more ends them at once.");
        let ended = tokio::select! {
            () = self.finish(server) => true,
            () = signals.next() => false,
        };
        if !ended {
            self.pids.kill_all();
        }
        let _ = std::fs::remove_file(self.folder.url());
        Ok(ExitCode::SUCCESS)
    }

    /// No new connections; replicas drain; then the node agent and the simulated GPU end.
    async fn finish(&self, server: tokio::task::JoinHandle<std::io::Result<()>>) {
        self.platform.shutdown.cancel();
        self.platform.tasks.close();
        let done = async {
            let _ = server.await;
            self.platform.tasks.wait().await;
        };
        if tokio::time::timeout(FINISH, done).await.is_err() {
            tracing::warn!("Not everything finished in time.");
        }
        for child in self.children.iter().rev() {
            child.end().await;
        }
        // What did not listen to any of this.
        self.pids.kill_all();
    }

    fn say_ready(&self, args: &Args, address: SocketAddr, asks: bool) -> anyhow::Result<()> {
        let url = format!("http://{address}");
        write_whole(&self.folder.url(), url.as_bytes()).context("failed to write the URL")?;
        if !address.ip().is_loopback() && !asks {
            tracing::warn!(%address, "Anyone who reaches this address may run programs here; --auth asks for a password.");
        }
        let status = self.platform.status();
        let mut lines = vec![format!("gpufn is ready on {url}")];
        for gpu in status.iter().flat_map(|status| &status.gpus).map(|gpu| &gpu.gpu) {
            lines.push(format!("  GPU {}: {}, {} ({})", gpu.index, gpu.name, gpu.memory, gpu.id));
        }
        lines.push("\nGo on with".into());
        if asks {
            let (user, path) = (api::USER, self.folder.password());
            let login = format!("  faas-cli login --gateway {url} --username {user} --password-stdin");
            lines.push(format!("{login} < {}", path.display()));
        }
        lines.push(format!("  faas-cli deploy --gateway {url} --name hello --image file:///path/of/program"));
        let login = if asks {
            format!(" --password-file {}", self.folder.password().display())
        } else {
            String::new()
        };
        lines.push(format!("  gpufn top --gateway {url}{login}\n"));
        lines.push(format!("Ctrl-C ends it; {} keeps what was deployed.\n", args.state.display()));
        let mut stdout = std::io::stdout().lock();
        // Nobody has to listen.
        let _ = stdout.write_all(lines.join("\n").as_bytes()).and_then(|()| stdout.flush());
        Ok(())
    }
}

/// The profiles that are shipped, and those of `files` over them.
fn profiles(files: &[PathBuf]) -> anyhow::Result<Profiles> {
    files.iter().try_fold(Profiles::shipped(), |known, file| {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
        let sheet = Sheet::read(&text).map_err(|error| error.within(&file.display().to_string()))?;
        Ok(known.with(sheet.profiles()?))
    })
}

/// A new password for each run, for this user's eyes only.
fn password(folder: &Folder) -> anyhow::Result<String> {
    let password = format!("{:032x}", rand::random::<u128>());
    let path = folder.password();
    write_whole(&path, password.as_bytes()).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(password)
}

fn check_socket_paths(folder: &Folder) -> anyhow::Result<()> {
    let longest = folder.node().join(names::state::CONTROL_SOCKET);
    let length = longest.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let allowed = format!("a folder whose sockets have paths of at most {SOCKET_PATH_MAX} bytes");
        return Err(Invalid::new("--state", longest.display(), allowed).into());
    }
    Ok(())
}

/// Bindings of a former run: its replicas are gone.
async fn release_all(node: &Node, status: Option<&NodeStatus>) {
    let gpus = status.into_iter().flat_map(|status| &status.gpus);
    for binding in gpus.flat_map(|gpu| &gpu.bindings) {
        if let Err(error) = node.release(&binding.binding.id).await {
            tracing::warn!(binding = %binding.binding.id, %error, "A former run's binding could not be released yet.");
        }
    }
}

/// Counts restarts; a simulated GPU that was started again has forgotten its clients.
async fn on_restarts(
    platform: Arc<Platform>,
    name: &'static str,
    mut course: tokio::sync::watch::Receiver<children::Course>,
) {
    let mut deaths = course.borrow_and_update().deaths;
    loop {
        tokio::select! {
            changed = course.changed() => if changed.is_err() { return },
            () = platform.shutdown.cancelled() => return,
        }
        let now = course.borrow_and_update().deaths;
        if now > deaths {
            deaths = now;
            platform.metrics.restarted(name);
            if name == gpus::SIMGPU {
                control::replace_gpu_replicas(&platform);
            }
        }
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
