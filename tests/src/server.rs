//! A server under test as a process with a port and a folder of its own: when it is up, what it uses, and its end. It
//! knows no protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::port;
use crate::wait::pause;

/// Longest time for a server to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clock ticks in a second, which Linux shows in `/proc` on all its platforms.
const TICKS: f64 = 100.0;

/// A running server. Killed with its children when dropped, at once: one that is asked to end may drain for half a minute.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

/// What a server's process uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory in KiB.
    pub memory: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Processes that it has started or adopted, zombies too.
    pub children: u64,
}

impl Server {
    /// Starts `command`, which has been told to listen at `port` and that `folder` is its own.
    pub fn start(command: &mut Command, port: u16, folder: TempDir) -> Result<Self> {
        let program = command.get_program().to_os_string();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| program.display().to_string())?;
        Ok(Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), folder })
    }

    /// Waits until it `is_up`, looking again after each `period`.
    pub fn until_up(mut self, period: Duration, is_up: impl Fn(&Self) -> bool) -> Result<Self> {
        let start = Instant::now();
        while !is_up(&self) {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended before it was up: {status}");
            }
            ensure!(start.elapsed() < PATIENCE, "it is not up within {PATIENCE:?}");
            pause(period);
        }
        Ok(self)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process, to be waited for or to have its pipes taken.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// What it uses now.
    pub fn usage(&self) -> Result<Usage> {
        let descriptors = std::fs::read_dir(self.about("fd"))?.count() as u64;
        let children = self.children().len() as u64;
        Ok(Usage { memory: self.status("VmRSS")?, threads: self.status("Threads")?, descriptors, children })
    }

    /// The number in a line of its `/proc/PID/status`: of memory, in KiB.
    pub fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(self.about("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("no number {name} in /proc/PID/status"))
    }

    /// Processor time that it and its children have used, in seconds.
    pub fn processor_time(&self) -> f64 {
        let used = |pid: Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            // After the name, which may have spaces, fields 14 and 15 of proc(5) are numbers 11 and 12.
            let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
            Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
        };
        let own = Pid::from_child(&self.child);
        self.children().into_iter().chain([own]).filter_map(used).sum::<f64>() / TICKS
    }

    /// All processes whose parent it is.
    fn children(&self) -> Vec<Pid> {
        let threads = std::fs::read_dir(self.about("task")).into_iter().flatten().flatten();
        let lines = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let numbers = lines.flat_map(|line| {
            line.split_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<i32>>()
        });
        numbers.filter_map(Pid::from_raw).collect()
    }

    fn about(&self, what: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(what)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let children = self.children();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children {
            // Most have ended with it.
            let _ = kill_process(child, Signal::KILL);
        }
    }
}

/// What a watchdog is started with on free ports: its own and, unless it is of-watchdog, which has a fixed one, that of
/// its metrics.
#[derive(Debug)]
pub struct WatchdogSetup {
    program: PathBuf,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl WatchdogSetup {
    /// `program` without a function.
    pub fn new(program: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = std::env::var("PATH").context("PATH")?;
        let temporary = folder.path().display().to_string();
        let setup = Self { program: program.to_path_buf(), environment: Vec::new(), folder };
        let setup = setup.env("PATH", path).env("TMPDIR", temporary).env("port", port::free()?);
        Ok(setup.env("metrics_port", port::free()?))
    }

    /// Sets a variable.
    #[must_use]
    #[allow(clippy::needless_pass_by_value)] // Callers write values on the spot.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self = self.without(name);
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Unsets a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(own, _)| own != name);
        self
    }

    /// The value of a variable.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The watchdog's own folder, where its lock file will be.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What starts it, with these variables alone and nothing to say.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.environment.clone());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts what `command` has become.
    pub fn start(self, command: &mut Command) -> Result<Server> {
        let port = self.value("port").or_else(|| self.value("PORT")).unwrap_or("8080");
        let port = port.parse().with_context(|| format!("port is {port:?}"))?;
        Server::start(command, port, self.folder)
    }
}
