//! The processes that the watchdog has started and that still run, so that none outlives it and none that was adopted
//! stays a zombie. It starts nothing by itself.

use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, set_child_subreaper, waitpid};

/// Pause between two looks for orphans: a zombie costs an entry in the process table, nothing else.
const ROUND: Duration = Duration::from_secs(2);

/// The processes that run, each the leader of its group.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    live: Mutex<HashSet<Pid>>,
    /// Read while a process is started and not yet in `live`.
    starting: RwLock<()>,
}

/// A process that runs, with all that it has started, until it is dropped; then they are killed unless they were let go.
#[derive(Debug)]
pub(crate) struct Group {
    leader: Pid,
    processes: Arc<Processes>,
    is_released: bool,
}

impl Processes {
    /// None. From now on the watchdog adopts what its functions leave behind, as the first process of a container does.
    pub(crate) fn new() -> Arc<Self> {
        // Without it, orphans go to the first process, which looks after them itself.
        let _ = set_child_subreaper(Some(rustix::process::getpid()));
        Arc::new(Self::default())
    }

    /// Starts a process with `start`, which says what its leader is.
    pub(crate) fn start<T, E>(
        self: &Arc<Self>,
        start: impl FnOnce() -> Result<(T, Pid), E>,
    ) -> Result<(T, Group), E> {
        let _starting = self.starting.read().unwrap_or_else(PoisonError::into_inner);
        let (process, leader) = start()?;
        self.lock().insert(leader);
        Ok((process, Group { leader, processes: Arc::clone(self), is_released: false }))
    }

    /// Kills all that run, each with what it has started.
    pub(crate) fn kill(&self) {
        for leader in self.lock().iter() {
            let _ = kill_process_group(*leader, Signal::KILL);
        }
    }

    /// Takes the exit status of processes whose parents have ended, for as long as the watchdog lives.
    pub(crate) async fn adopt(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ROUND).await;
            self.reap();
        }
    }

    fn reap(&self) {
        let _none_starts = self.starting.write().unwrap_or_else(PoisonError::into_inner);
        let live = self.lock().clone();
        for child in children().into_iter().filter(|child| !live.contains(child)) {
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Pid>> {
        // Every change is a single insert or removal.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// The first process of the group.
    pub(crate) fn leader(&self) -> Pid {
        self.leader
    }

    /// Kills all processes of the group.
    pub(crate) fn kill(&self) {
        // A group without processes is one that has ended.
        let _ = kill_process_group(self.leader, Signal::KILL);
    }

    /// What the process has left behind may go on.
    pub(crate) fn release(mut self) {
        self.is_released = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_released {
            self.kill();
        }
        self.processes.lock().remove(&self.leader);
    }
}

/// All children of this process, adopted ones included.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<i32>>())
        .filter_map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// A shell in a group of its own, and what it prints.
    fn shell(script: &str, processes: &Arc<Processes>) -> (std::process::Child, Group) {
        let started = processes.start(|| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).process_group(0);
            command.spawn().map(|child| {
                let leader = Pid::from_child(&child);
                (child, leader)
            })
        });
        started.unwrap()
    }

    #[test]
    fn a_dropped_group_takes_its_grandchildren_with_it() {
        let processes = Processes::new();
        let (child, group) = shell("sleep 1000 & wait", &processes);
        let start = Instant::now();
        drop(group);
        // The pipe ends when the grandchild has ended too.
        assert!(child.wait_with_output().unwrap().status.code().is_none());
        assert!(start.elapsed() < Duration::from_secs(20) && processes.lock().is_empty());
    }
}
