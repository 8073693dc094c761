//! `fwatchdog`, the process in front of every function: reads the flags and the environment, starts everything in
//! order, and turns errors into one line and an exit code. What is started is in the other modules.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::child::processes::Processes;
use crate::child::{Function, State};
use crate::config::duration::GoStyle;
use crate::config::{Config, ConfigError};
use crate::connection::Protocols;
use crate::drain::{Running, Signals};
use crate::gpu::{GpuShare, NoShare, Policy};
use crate::health::{Health, Phase};
use crate::jwt::{Authenticator, JwtError};
use crate::logs::log;
use crate::metrics::{Metrics, MetricsError};
use crate::mode::action::{ActionMode, line};
use crate::mode::files::FilesMode;
use crate::mode::fork::ForkMode;
use crate::mode::fork::process::Recipe;
use crate::mode::http::HttpMode;
use crate::mode::{Invoker, Mode};
use crate::server::App;
use crate::workers::Workers;

mod alarm;
mod answer;
pub mod batch;
mod child;
mod client;
mod clock;
mod config;
mod connection;
mod drain;
mod exchange;
mod gpu;
mod health;
mod jwt;
mod limiter;
mod logs;
mod metrics;
mod mode;
mod pieces;
mod queue;
mod server;
mod workers;

const USAGE: &str = "\
Usage: fwatchdog [-version | -run-healthcheck]

Runs the command in $fprocess and passes HTTP requests on to it. Configured by environment variables; see README.md.

  -version          print the version and exit
  -run-healthcheck  exit 0 if a watchdog with this environment has its lock file, else 1";

/// Why the watchdog can't start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("can't start: {0}")]
    System(#[from] io::Error),
    #[error("can't start: {0}")]
    Metrics(#[from] MetricsError),
    #[error("can't start: {0}")]
    NoShare(#[from] NoShare),
    #[error("can't start: {0}")]
    Jwt(#[from] JwtError),
    #[error("{field} is \"{port}\", and {address} can't be listened on: {source}")]
    Listen { field: &'static str, port: u16, address: IpAddr, source: io::Error },
    #[error("TMPDIR is {folder:?}, and the lock file can't be written there: {source}")]
    Lock { folder: PathBuf, source: io::Error },
}

/// Parsers of what comes from outside, so that they can be fed from outside.
pub mod parsers {
    pub use crate::mode::action::code::archive::{BadArchive, Entry as ArchiveEntry, Limits, unpack};
    pub use crate::mode::action::message::{Init, Refusal, Run, result};
    pub use crate::mode::action::web::{Asked, Entry, response};
    pub use crate::mode::fork::cgi::{BadPath, variables};
    pub use crate::mode::http::codec::{BadAnswer, Decoded, Decoder, Head, read_head};
    pub use crate::mode::http::outgoing::strip_connection;
}

/// The whole program: what its arguments and its environment ask for, until it ends.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|argument| argument.to_str()) {
        None if std::env::args_os().len() <= 1 => watch(),
        Some(child::BECOME) => {
            eprintln!("{}", child::become_function(arguments));
            // What a shell says when it can't start a program.
            ExitCode::from(127)
        }
        Some(line::BECOME) => {
            eprintln!("{}", line::become_action(arguments));
            ExitCode::from(127)
        }
        Some("-version" | "--version") => {
            log!("{}", version());
            ExitCode::SUCCESS
        }
        Some("-run-healthcheck" | "--run-healthcheck") => run_healthcheck(),
        Some("-h" | "-help" | "--help") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        argument => {
            eprintln!(
                "argument is {:?}, allowed is -version or -run-healthcheck",
                argument.unwrap_or_default()
            );
            ExitCode::from(2)
        }
    }
}

fn version() -> String {
    let commit = option_env!("GPUFN_COMMIT").unwrap_or("unknown");
    format!("Version: {}\tSHA: {commit}", env!("CARGO_PKG_VERSION"))
}

/// The configuration in this process's environment.
fn configure() -> Result<Config, ExitCode> {
    Config::read(|name| std::env::var(name).ok()).map_err(|error| {
        eprintln!("Error loading config: {error}");
        let is_compat = std::env::var("compat").is_ok_and(|value| value == "of-watchdog");
        // There it is a panic.
        if is_compat && matches!(error, ConfigError::Mode(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

fn run_healthcheck() -> ExitCode {
    match configure() {
        Ok(config) if config.lock_file().exists() => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("unable to find lock file.");
            ExitCode::FAILURE
        }
        Err(code) => code,
    }
}

fn watch() -> ExitCode {
    let config = match configure() {
        Ok(config) => config,
        Err(code) => return code,
    };
    log!("{}", version());
    config.warnings.iter().for_each(|warning| log!("{warning}"));
    // The main thread drives what follows until the end: the kernel ends the function when this thread ends.
    let outcome = workers::runtime().map_err(StartError::from).and_then(|runtime| {
        let code = runtime.block_on(run(&config));
        // Connections that did not end in time end with the process.
        runtime.shutdown_background();
        code
    });
    logs::write_waiting();
    outcome.unwrap_or_else(|error| {
        log!("{error}");
        let is_hidden = matches!(error, StartError::Listen { .. } | StartError::Lock { .. });
        if config.compat && is_hidden { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

async fn run(config: &Config) -> Result<ExitCode, StartError> {
    let mut signals = Signals::install()?;
    let share = tokio::select! {
        share = join_share(config) => share?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let authenticator = match &config.jwt {
        Some(jwt) => Some(Authenticator::start(jwt.clone()).await?),
        None => None,
    };
    // Before the function, which would otherwise run for nothing when a port is taken.
    let listener = listen("port", config.address, config.port).await?;
    let metrics_listener = match config.metrics_port {
        Some(port) => Some(listen("metrics_port", config.address, port).await?),
        None => None,
    };
    let health = Arc::new(health(config));
    let metrics = Arc::new(Metrics::new(share.clone())?);
    let (invoker, function) = start_function(config, share.as_ref(), &health)?;
    let app = Arc::new(App::new(config, invoker, health, metrics, authenticator)?);
    let listening = CancellationToken::new();
    if let Err(error) = open(config, &app, (listener, metrics_listener), function.states(), &listening) {
        function.kill().await;
        return Err(error);
    }
    let (interval, patience) = (config.healthcheck_interval, config.write_timeout);
    Ok(Running { app, function, signals, listening, interval, patience }.until_end().await)
}

/// Nothing is accepted yet.
fn health(config: &Config) -> Health {
    match (config.suppress_lock, config.compat) {
        (false, _) => Health::new(Some(config.lock_file())),
        (true, false) => Health::new(None),
        (true, true) => Health::new(Some(config.lock_file())).without_writing(),
    }
}

/// The share of a GPU, where one is asked for and there is one.
async fn join_share(config: &Config) -> Result<Option<GpuShare>, NoShare> {
    let Some(gpu) = &config.gpu else { return Ok(None) };
    match gpu.join().await {
        Ok(share) => {
            let binding = share.binding();
            log!("Share of GPU {}: binding {}, quota {}", binding.gpu, binding.id, binding.grant);
            Ok(Some(share))
        }
        Err(error) if gpu.policy() == Policy::Open => {
            log!("warning: {error}; the function starts without a share");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn listen(field: &'static str, address: IpAddr, port: u16) -> Result<TcpListener, StartError> {
    let listener = server::listen(address, port).await;
    listener.map_err(|source| StartError::Listen { field, port, address, source })
}

/// Who answers requests, and the function's process if it is started now.
fn start_function(
    config: &Config,
    share: Option<&GpuShare>,
    health: &Arc<Health>,
) -> io::Result<(Invoker, Function)> {
    let processes = Processes::new();
    tokio::spawn(Arc::clone(&processes).adopt());
    let environment =
        share.map(|share| share.loader_variables(|name| std::env::var_os(name))).unwrap_or_default();
    let (program, args) = config.command();
    let recipe = Recipe {
        program: program.into(),
        args: args.iter().map(Into::into).collect(),
        environment: environment.clone(),
        logs: config.logs,
        combine: config.combine_output,
        processes: Arc::clone(&processes),
    };
    let invoker = match (config.mode, &config.upstream) {
        (Mode::Http, Some(upstream)) => {
            log!("Forking: {program}, arguments: {args:?}");
            let invoker = Invoker::Http(HttpMode::new(config, upstream.clone(), Arc::clone(health)));
            return Ok((invoker, Function::start(config, environment, processes)?));
        }
        (Mode::Static, _) => {
            log!("Serving files at: {}", config.static_path.display());
            Invoker::Files(FilesMode::new(config.static_path.clone()))
        }
        (Mode::OpenWhisk | Mode::ActionLoop, _) => {
            let get = |name: &str| std::env::var(name).ok();
            Invoker::Action(ActionMode::new(config, recipe, Arc::clone(health), get))
        }
        // `Config` has an upstream for every mode `http`.
        (Mode::Streaming | Mode::Serializing | Mode::Http, _) => Invoker::Fork(ForkMode::new(config, recipe)),
    };
    Ok((invoker, Function::per_request(processes)))
}

/// Keeps `health` told of how far the function has come, until it has ended for good.
async fn follow(app: Arc<App>, states: Option<tokio::sync::watch::Receiver<State>>) {
    let (Invoker::Http(function), Some(mut states)) = (&app.function, states) else {
        // A function without a process of its own can always be started.
        return app.health.set_phase(Phase::Up);
    };
    loop {
        let state = states.borrow_and_update().clone();
        let phase = match state {
            State::Running(_) => Phase::Starting,
            State::Restarting => Phase::Restarting,
            State::Ended(_) | State::Drained(_) => return,
        };
        app.health.set_phase(phase);
        let changed = tokio::select! {
            changed = states.changed() => changed,
            () = started(&app, function), if phase == Phase::Starting => states.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Waits until the function accepts connections. of-watchdog takes that for granted.
async fn started(app: &App, function: &HttpMode) {
    if app.compat {
        app.health.set_phase(Phase::Up);
    } else {
        function.watch_start().await;
    }
}

/// From here on requests are accepted.
fn open(
    config: &Config,
    app: &Arc<App>,
    (listener, metrics_listener): (TcpListener, Option<TcpListener>),
    states: Option<tokio::sync::watch::Receiver<State>>,
    listening: &CancellationToken,
) -> Result<(), StartError> {
    let port = |listener: &TcpListener| listener.local_addr().as_ref().map_or(0, SocketAddr::port);
    let shown = |span: Option<std::time::Duration>| GoStyle(span.unwrap_or_default());
    log!("Watchdog mode: {}\tfprocess: {:?}", config.mode.name(), config.fprocess);
    log!(
        "Timeouts: read: {} write: {} hard: {} health: {}",
        shown(config.read_timeout),
        shown(config.write_timeout),
        shown(config.exec_timeout),
        GoStyle(config.healthcheck_interval)
    );
    tokio::spawn(follow(Arc::clone(app), states));
    log!("Listening on port: {}", port(&listener));
    let workers = Workers::start(Arc::clone(app), Protocols::new(config.read_timeout))?;
    tokio::spawn(server::serve(listener, workers, listening.clone()));
    if let Some(listener) = metrics_listener {
        log!("Metrics listening on port: {}", port(&listener));
        tokio::spawn(server::serve_metrics(listener, Arc::clone(&app.metrics)));
    }
    if let Some(path) = app.health.lock_file() {
        log!("Writing lock-file to: {}", path.display());
    }
    app.health.accept().map_err(|source| StartError::Lock { folder: config.lock_folder.clone(), source })
}
