//! A watchdog as a process: started on a free port, looked at through `/proc`, and killed with its function when dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tests::port;

use crate::client::{Connection, Request};

/// Longest time for a watchdog to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a process uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory in KiB.
    pub(crate) memory: u64,
    /// Open file descriptors.
    pub(crate) descriptors: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Processes that it has started or adopted, zombies too.
    pub(crate) children: u64,
}

/// A running watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Watchdog {
    /// Starts `program` with `variables` and a folder that is its own, and waits until it is healthy.
    pub(crate) fn start(program: &Path, variables: &[(String, String)], folder: TempDir) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()?));
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TMPDIR", folder.path()).env("port", address.port().to_string());
        // of-watchdog has a fixed port for its metrics, or this one.
        command.env("metrics_port", port::free()?.to_string());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| program.display().to_string())?;
        let mut watchdog = Self { child, address, _folder: folder };
        let start = Instant::now();
        while !watchdog.is_healthy() {
            if let Some(status) = watchdog.child.try_wait()? {
                bail!("{} ended: {status}", program.display());
            }
            if start.elapsed() > PATIENCE {
                bail!("{} does not become healthy within {PATIENCE:?}", program.display());
            }
            pause(Duration::from_millis(2));
        }
        Ok(watchdog)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_healthy(&self) -> bool {
        let ask = || Connection::open(self.address)?.exchange(&Request::new("GET", "/_/health"));
        ask().is_ok_and(|answer| answer.status == 200)
    }

    /// What it uses now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let own = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{own}/status"))?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no such line")
        };
        let descriptors = std::fs::read_dir(format!("{own}/fd"))?.count() as u64;
        let children = self.children().len() as u64;
        Ok(Usage { memory: value("VmRSS")?, threads: value("Threads")?, descriptors, children })
    }

    /// All processes whose parent it is.
    fn children(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let threads = threads.into_iter().flatten().flatten();
        let lines = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        lines.flat_map(|line| line.split_whitespace().map(ToString::to_string).collect::<Vec<_>>()).collect()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // At once: a watchdog that is asked to end drains for half a minute first.
        let children = self.children();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children {
            let _ = Command::new("kill").args(["-s", "KILL", &child]).stderr(Stdio::null()).status();
        }
    }
}

/// A moment between two looks that have a deadline or an end.
#[allow(clippy::disallowed_methods)] // There is nothing to wait for that could be told.
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}
