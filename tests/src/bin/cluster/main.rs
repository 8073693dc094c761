//! `cluster`: a real Kubernetes of one node for tests and for people, from its boot to its end.
//!
//! Reads the command line and says what comes of it; `tests::cluster` does the work.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tests::cluster::components::{Component, Programs};
use tests::cluster::control::Request;
use tests::cluster::host::{Cluster, Record};
use tests::cluster::remains::{self, Look};
use tests::cluster::{init, node};
use tests::helm::Helm;
use tests::{command, go, process};

/// A real Kubernetes of one node, in namespaces of its own. Needs root, and Go to build it once.
#[derive(Debug, Parser)]
#[command(name = "cluster", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build what a cluster and the device manager are made of, and install Helm, where they are not there yet.
    Build {
        /// Also what only some tests run on a cluster: KEDA, and Knative's proxy.
        #[arg(long)]
        all: bool,
    },
    /// Boot a cluster that stays until `down`.
    Up(Folder),
    /// End it.
    Down(Folder),
    /// Say which components run.
    Status(Folder),
    /// Print the log of a component, or the last lines of all.
    Logs {
        /// Whose.
        component: Option<Component>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Run a program on the node of a cluster that is up: `exec kubectl get nodes`.
    Exec {
        #[command(flatten)]
        folder: Folder,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Boot a cluster, run a program on its node, end the cluster, and check that nothing of it is left.
    With {
        #[command(flatten)]
        folder: Folder,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Process 1 of a cluster.
    #[command(hide = true)]
    Init(Inside),
    /// The node's supervisor.
    #[command(hide = true)]
    Node(Inside),
}

#[derive(Debug, Args)]
struct Folder {
    /// Folder of the cluster's record and log files.
    #[arg(long, value_name = "FOLDER", default_value = "target/cluster")]
    folder: PathBuf,
}

/// What the processes inside are told.
#[derive(Debug, Args)]
struct Inside {
    #[arg(long)]
    cgroup: String,
    #[arg(long)]
    logs: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

fn main() -> ExitCode {
    command::exit_with(run)
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.action {
        Action::Build { all } => build(*all),
        Action::Up(Folder { folder }) => block_on(up(folder)),
        Action::Down(Folder { folder }) => down(folder),
        Action::Status(Folder { folder }) => block_on(status(folder)),
        Action::Logs { component, folder } => logs(&folder.folder, *component),
        Action::Exec { folder, command } => {
            let record = Record::running(&folder.folder)?;
            on_node(record.command(&Programs::build()?, &command[0])?, &command[1..])
        }
        Action::With { folder, command } => with(&folder.folder, command),
        Action::Init(inside) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["node", "--cgroup", &inside.cgroup, "--logs"]).arg(&inside.logs);
            init::run(command.args(inside.programs.arguments()), &inside.cgroup)
        }
        Action::Node(inside) => {
            block_on(node::run(inside.programs.clone(), &inside.logs, &inside.cgroup))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One thread: what is waited for happens in other processes.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn build(all: bool) -> Result<ExitCode> {
    let further = if all { &go::Program::FURTHER[..] } else { &[] };
    for &program in go::Program::BASIC.iter().chain(further) {
        println!("{}", go::built(program)?.display());
    }
    if all {
        println!("{}", go::keda_files()?.display());
    }
    Helm::installed();
    Ok(ExitCode::SUCCESS)
}

async fn up(folder: &Path) -> Result<ExitCode> {
    let cluster = Cluster::boot(folder).await?;
    print!("{}", cluster.said());
    let own = std::env::current_exe()?;
    println!("on its node: {} exec COMMAND, where KUBECONFIG is set", own.display());
    cluster.stay();
    Ok(ExitCode::SUCCESS)
}

fn down(folder: &Path) -> Result<ExitCode> {
    if let Some(record) = Record::read(folder)? {
        record.end()?;
        record.forget(folder)?;
    }
    for group in remains::remove_unused_groups()? {
        println!("removed what a killed cluster left: control group {group}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(folder: &Path) -> Result<ExitCode> {
    let record = Record::running(folder)?;
    let running = record.ask(Request::Status).await?;
    println!("{:<20} process {} of this machine", "node", record.init);
    for component in Component::ALL {
        let state = running
            .get(&component)
            .map_or_else(|| "stopped".into(), |pid| format!("process {pid} of the node"));
        println!("{:<20} {state}", component.name());
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(folder: &Path, component: Option<Component>) -> Result<ExitCode> {
    let log = |name: &str| folder.join("logs").join(name).with_extension("log");
    if let Some(component) = component {
        let path = log(component.name());
        print!("{}", fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        return Ok(ExitCode::SUCCESS);
    }
    for name in ["node"].into_iter().chain(Component::ALL.map(Component::name)) {
        println!("==> {name}\n{}\n", process::tail(&log(name)));
    }
    Ok(ExitCode::SUCCESS)
}

fn with(folder: &Path, command: &[OsString]) -> Result<ExitCode> {
    let before = Look::take()?;
    let cluster = block_on(Cluster::boot(folder))?;
    print!("{}", cluster.said());
    let code = on_node(cluster.command(&command[0])?, &command[1..])?;
    cluster.end()?;
    let left = Look::take()?.since(&before);
    for what in &left {
        eprintln!("cluster: left behind: {what}");
    }
    Ok(if left.is_empty() { code } else { ExitCode::FAILURE })
}

/// Runs the command to its end; its exit code is the result, as a shell gives it.
fn on_node(mut command: Command, arguments: &[OsString]) -> Result<ExitCode> {
    let status = command.args(arguments).status().context("nsenter")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
