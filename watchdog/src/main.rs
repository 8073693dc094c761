//! `fwatchdog`, the process in front of every function: reads the flags and the environment, starts everything in
//! order, and turns errors into one line and an exit code. What is started is in the other modules.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::child::Function;
use crate::config::Config;
use crate::config::duration::GoStyle;
use crate::drain::{Running, Signals};
use crate::gpu::{GpuShare, NoShare, Policy};
use crate::health::Health;
use crate::logs::log;
use crate::metrics::{Metrics, MetricsError};
use crate::server::App;

mod answer;
mod child;
mod client;
mod config;
mod drain;
mod exchange;
mod gpu;
mod health;
mod limiter;
mod logs;
mod metrics;
mod mode;
mod server;

/// The most threads that pass requests on: more would only cost memory beside a function.
const MOST_THREADS: usize = 4;

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
    #[error("{field} is \"{port}\", and {address} can't be listened on: {source}")]
    Listen { field: &'static str, port: u16, address: IpAddr, source: io::Error },
    #[error("TMPDIR is {folder:?}, and the lock file can't be written there: {source}")]
    Lock { folder: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|argument| argument.to_str()) {
        None if std::env::args_os().len() <= 1 => watch(),
        Some(child::BECOME) => {
            eprintln!("{}", child::become_function(arguments));
            // What a shell says when it can't start a program.
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
        ExitCode::FAILURE
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
    let outcome = runtime().map_err(StartError::from).and_then(|runtime| {
        let code = runtime.block_on(run(&config));
        // Connections that did not end in time end with the process.
        runtime.shutdown_background();
        code
    });
    outcome.unwrap_or_else(|error| {
        log!("{error}");
        ExitCode::FAILURE
    })
}

fn runtime() -> io::Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
}

async fn run(config: &Config) -> Result<ExitCode, StartError> {
    let mut signals = Signals::install()?;
    let share = tokio::select! {
        share = join_share(config) => share?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    // Before the function, which would otherwise run for nothing when a port is taken.
    let listener = listen("port", config.address, config.port).await?;
    let metrics_listener = match config.metrics_port {
        Some(port) => Some(listen("metrics_port", config.address, port).await?),
        None => None,
    };
    let health = Arc::new(Health::new((!config.suppress_lock).then(|| config.lock_file())));
    let metrics = Arc::new(Metrics::new(share.clone())?);
    let app = Arc::new(App::new(config, health, metrics));
    let function = start_function(config, share.as_ref())?;
    let listening = CancellationToken::new();
    if let Err(error) = open(config, &app, (listener, metrics_listener), &listening) {
        function.kill().await;
        return Err(error);
    }
    let (interval, patience) = (config.healthcheck_interval, config.write_timeout);
    Ok(Running { app, function, signals, listening, interval, patience }.until_end().await)
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

fn start_function(config: &Config, share: Option<&GpuShare>) -> io::Result<Function> {
    let (program, args) = config.command();
    log!("Forking: {program}, arguments: {args:?}");
    let environment: Vec<(&str, OsString)> = share
        .map(|share| ("LD_LIBRARY_PATH", share.library_path(std::env::var_os("LD_LIBRARY_PATH"))))
        .into_iter()
        .collect();
    Function::start(program, &args, &environment, config.logs)
}

/// From here on requests are accepted.
fn open(
    config: &Config,
    app: &Arc<App>,
    (listener, metrics_listener): (TcpListener, Option<TcpListener>),
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
    let starting = Arc::clone(app);
    tokio::spawn(async move { starting.function.watch_start().await });
    log!("Listening on port: {}", port(&listener));
    tokio::spawn(server::serve(listener, Arc::clone(app), listening.clone()));
    if let Some(listener) = metrics_listener {
        log!("Metrics listening on port: {}", port(&listener));
        tokio::spawn(server::serve_metrics(listener, Arc::clone(&app.metrics)));
    }
    if let Some(path) = app.health.lock_file() {
        log!("Writing lock-file to: {}", path.display());
    }
    app.health.accept().map_err(|source| StartError::Lock { folder: config.lock_folder.clone(), source })
}
