//! The state folder: where everything lies, that one instance has it, and what a former run left behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

/// How long what a former run left may take to end in good order.
const GOOD_ORDER: Duration = Duration::from_secs(3);

/// Paths below the state folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the folder, for this user only.
    pub(crate) fn create(root: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("failed to create {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("failed to find {}", root.display()))?;
        Ok(Self { root })
    }

    /// Takes the folder for this process, until the file is dropped.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        let path = self.root.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(_) => {
                anyhow::bail!("{} is in use by another gpufn up; --state names another", self.root.display())
            }
        }
    }

    pub(crate) fn url(&self) -> PathBuf {
        self.root.join("url")
    }

    pub(crate) fn password(&self) -> PathBuf {
        self.root.join("basic-auth-password")
    }

    pub(crate) fn pids(&self) -> PathBuf {
        self.root.join("pids.json")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    pub(crate) fn simgpu_socket(&self) -> PathBuf {
        self.root.join("simgpu.sock")
    }

    pub(crate) fn libraries(&self, kind: &str) -> PathBuf {
        self.root.join("lib").join(kind)
    }

    pub(crate) fn deployments(&self) -> PathBuf {
        self.root.join("functions")
    }

    pub(crate) fn namespaces(&self) -> PathBuf {
        self.root.join("namespaces")
    }

    pub(crate) fn secrets(&self, namespace: &str) -> PathBuf {
        self.root.join("secrets").join(namespace)
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str) -> PathBuf {
        self.secrets(namespace).join(name)
    }

    pub(crate) fn log(&self, namespace: &str, name: &str) -> PathBuf {
        self.root.join("logs").join(namespace).join(format!("{name}.log"))
    }

    pub(crate) fn child_log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn replicas(&self) -> PathBuf {
        self.root.join("replicas")
    }

    pub(crate) fn replica(&self, instance: &str) -> PathBuf {
        self.replicas().join(instance)
    }
}

/// Writes a file as a whole or not at all, readable for this user only.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let fresh =
        path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

/// Processes that this run started, on disk, so that the next run can end them if this one is killed.
///
/// A process is known by its id and its start time within this boot of the machine: an id alone comes again.
#[derive(Debug)]
pub(crate) struct Pids {
    path: PathBuf,
    recorded: Mutex<Record>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    boot: String,
    /// Start time in clock ticks since the boot, by process id.
    started: BTreeMap<u32, u64>,
}

impl Pids {
    /// Ends what the former run left, and starts a record of our own.
    pub(crate) fn take_over(path: PathBuf) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let left: Record =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        if left.boot == boot {
            end_all(&left.started);
        }
        let pids = Self { path, recorded: Mutex::new(Record { boot, started: BTreeMap::new() }) };
        pids.change(|_| {});
        pids
    }

    /// A process that was just started.
    pub(crate) fn add(&self, pid: u32) {
        if let Some(start) = start_time(pid) {
            self.change(|started| {
                started.insert(pid, start);
            });
        }
    }

    /// A process that has ended.
    pub(crate) fn remove(&self, pid: u32) {
        self.change(|started| {
            started.remove(&pid);
        });
    }

    /// Ends everything that is recorded, now.
    pub(crate) fn kill_all(&self) {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in alive(&recorded.started) {
            kill(pid);
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, u64>)) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut recorded.started);
        let written = serde_json::to_vec(&*recorded).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|text| std::fs::write(&self.path, text)) {
            tracing::warn!(path = %self.path.display(), %error, "The record of processes cannot be written.");
        }
    }
}

/// Ends processes of a former run: in good order first, so that watchdogs end their functions, then by force.
fn end_all(started: &BTreeMap<u32, u64>) {
    let left = alive(started);
    for &pid in &left {
        tracing::warn!(
            pid = pid.as_raw_nonzero().get(),
            "A process of a former run is still there and is ended."
        );
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + GOOD_ORDER;
    let (_never, wait) = std::sync::mpsc::channel::<()>();
    while !alive(started).is_empty() && Instant::now() < deadline {
        // Not our children, so there is nothing to wait on but the process table.
        let _ = wait.recv_timeout(Duration::from_millis(20));
    }
    alive(started).into_iter().for_each(kill);
}

fn kill(pid: Pid) {
    // Each was started as the leader of a group of its own.
    let _ = kill_process_group(pid, Signal::KILL).or_else(|_| kill_process(pid, Signal::KILL));
}

fn alive(started: &BTreeMap<u32, u64>) -> Vec<Pid> {
    let same = started.iter().filter(|&(&pid, &start)| start_time(pid) == Some(start));
    same.filter_map(|(&pid, _)| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)), if the process is there and no zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may hold anything; fields are counted behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then_some(())?;
    fields.nth(22 - 4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(&root.path().join("state")).unwrap();
        let held = folder.lock().unwrap();
        assert!(folder.lock().unwrap_err().to_string().contains("is in use by another gpufn up"));
        drop(held);
        assert!(folder.lock().is_ok());
    }

    #[test]
    fn what_a_former_run_left_is_ended_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pids.json");
        let start = || {
            let mut command = std::process::Command::new("sleep");
            std::os::unix::process::CommandExt::process_group(command.arg("1000"), 0).spawn().unwrap()
        };
        let (mut left, mut stranger) = (start(), start());
        let former = Pids::take_over(path.clone());
        former.add(left.id());
        former.add(stranger.id());
        // As if the id had come again for another process.
        former.change(|started| *started.get_mut(&stranger.id()).unwrap() += 1);
        // The zombie of our own child counts as ended.
        Pids::take_over(path);
        assert!(left.try_wait().unwrap().is_some());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
