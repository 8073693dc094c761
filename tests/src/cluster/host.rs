//! The cluster from outside: starts it, finds it again, runs programs on its node, and ends it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::components::{Component, Programs, kubeconfig, socket};
use super::mounts::COVERED;
use super::{ROOT, control, node, remains};
use crate::process::{self, Process};
use crate::programs;

/// Longest time until all processes of a killed cluster are gone.
const DEATH: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// Time between two looks at what is not ready yet.
const GLANCE: Duration = Duration::from_millis(50);
/// The folder of a cluster's log files, in its folder.
const LOGS: &str = "logs";

/// What is written down of a cluster, so that it is found again, and no other process is taken for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Process 1 of the cluster, by its number outside.
    pub init: u32,
    /// When that started, in clock ticks since the machine did.
    pub started: u64,
    /// The cluster's control group.
    pub cgroup: String,
}

impl Record {
    /// The cluster of a folder, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// The cluster of a folder, which must run.
    pub fn running(folder: &Path) -> Result<Self> {
        let record = Self::read(folder)?.filter(Self::lives);
        record.with_context(|| format!("folder {}: no cluster runs there", folder.display()))
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("cluster.json")
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        fs::write(&path, serde_json::to_vec(self)?).with_context(|| path.display().to_string())
    }

    /// Removes the record of a cluster that has ended.
    pub fn forget(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Whether it runs.
    pub fn lives(&self) -> bool {
        process::started(self.init) == Some(self.started)
    }

    /// Asks the node's supervisor.
    pub async fn ask(&self, request: control::Request) -> Result<BTreeMap<Component, u32>> {
        // The node's folder is in a mount namespace of its own.
        control::ask(Path::new(&format!("/proc/{}/root{ROOT}/{}", self.init, control::SOCKET)), request).await
    }

    /// A command that runs `program` on the node: in its namespaces, from this folder, with the API server's kubeconfig.
    pub fn command(&self, programs: &Programs, program: &OsStr) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]);
        // In the other mount namespace the folder must be looked up again.
        let here = std::env::current_dir().context("the current folder")?;
        command.args([OsStr::new("env"), OsStr::new("--chdir"), here.as_os_str(), program]);
        command.env("KUBECONFIG", kubeconfig("admin"));
        command.env("CONTAINERD_ADDRESS", socket()).env("CONTAINERD_NAMESPACE", "k8s.io");
        command.env("PATH", with_folder(programs.runtime_folder())?);
        Ok(command)
    }

    /// Ends the cluster, whatever state it is in, and waits until nothing of it is left but its log files.
    pub fn end(&self) -> Result<()> {
        if let Some(init) = self.open()? {
            pidfd_send_signal(&init, Signal::KILL).context("killing process 1 of the cluster")?;
            // The kernel ends all of the namespace before its process 1.
            let gone = poll(&mut [PollFd::new(&init, PollFlags::IN)], Some(&DEATH))?;
            ensure!(gone == 1, "process {} does not end", self.init);
        }
        remains::remove_group(&self.cgroup)
    }

    /// Process 1, held so that its number can't become another's; none if it has ended.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.init).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("init {}: no process number", self.init))?;
        Ok(pidfd_open(pid, PidfdFlags::empty()).ok().filter(|_| self.lives()))
    }
}

/// `PATH` with another folder behind the others.
fn with_folder(folder: &Path) -> Result<OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&inherited).chain([folder.to_path_buf()]);
    std::env::join_paths(folders).context("PATH")
}

/// A cluster that this process started. It ends with this value, and with this process, unless it is told to stay.
#[derive(Debug)]
pub struct Cluster {
    record: Record,
    programs: Programs,
    process: Process,
}

impl Cluster {
    /// Boots a cluster. Its record and its log files are in `folder`, which is made. Programs are built first where they
    /// are not there yet.
    ///
    /// # Errors
    /// If this process may not, if the programs can't be built, or if a component does not become ready.
    pub async fn boot(folder: &Path) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "a cluster needs root: it has namespaces, mounts and control groups of its own"
        );
        for tool in ["unshare", "nsenter"] {
            Command::new(tool).arg("--version").output().with_context(|| format!("{tool}, of util-linux"))?;
        }
        let folder = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
        if let Some(covered) = COVERED.iter().find(|covered| folder.starts_with(covered)) {
            bail!(
                "folder {}: allowed is one outside {covered}, of which the node has its own",
                folder.display()
            );
        }
        let programs = Programs::build()?;
        make_room(&folder)?;

        let logs = folder.join(LOGS);
        let cgroup = format!("{}{:08x}", remains::PREFIX, rand::random::<u32>());
        let mut process = Process::spawn(&mut unshare(&programs, &logs, &cgroup), &logs.join("node.log"));
        let init = until(&mut process, |process| child(process.pid())).await?;
        let started = process::started(init).context("process 1 of the cluster ended at once")?;
        let mut cluster = Self { record: Record { init, started, cgroup }, programs, process };
        cluster.record.write(&folder)?;
        until(&mut cluster.process, |process| process.output().contains(node::READY).then_some(())).await?;
        Ok(cluster)
    }

    /// What is written down of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// A command that runs `program` on the node.
    pub fn command(&self, program: &OsStr) -> Result<Command> {
        self.record.command(&self.programs, program)
    }

    /// What the node said while it booted.
    pub fn said(&self) -> String {
        self.process.output()
    }

    /// Ends it, and says whether that went well, which dropping it can't.
    pub fn end(self) -> Result<()> {
        self.record.end()
    }

    /// Leaves it running when this process ends.
    pub fn stay(mut self) {
        self.process.tell(node::STAY);
        mem::forget(self);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.record.end() {
            eprintln!("ending the cluster: {error:#}");
        }
    }
}

/// Ends what a cluster in the folder or elsewhere left, and makes fresh folders.
fn make_room(folder: &Path) -> Result<()> {
    if let Some(record) = Record::read(folder)? {
        ensure!(!record.lives(), "folder {}: a cluster runs there already", folder.display());
    }
    remains::remove_unused_groups()?;
    let logs = folder.join(LOGS);
    if logs.exists() {
        fs::remove_dir_all(&logs).with_context(|| logs.display().to_string())?;
    }
    fs::create_dir_all(logs.join("pods")).with_context(|| logs.display().to_string())
}

/// The command that makes the namespaces, and in them starts `init` and that the node.
fn unshare(programs: &Programs, logs: &Path, cgroup: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(programs::built("cluster")).args(["init", "--cgroup", cgroup, "--logs"]).arg(logs);
    command.args(programs.arguments());
    // What interrupts this process from a terminal must not kill a part of the cluster before it can be ended.
    command.process_group(0);
    command
}

/// The child of a process that has one.
fn child(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

async fn until<T>(process: &mut Process, look: impl Fn(&Process) -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look(process) {
            return Ok(found);
        }
        if let Some(status) = process.ended() {
            bail!("the node ended with {status}; it printed:\n{}", process.tail());
        }
        // The node gives up by itself before.
        ensure!(start.elapsed() < node::BOOT * 2, "the node is not ready; it printed:\n{}", process.tail());
        tokio::time::sleep(GLANCE).await;
    }
}
