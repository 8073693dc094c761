//! Supervised processes: the node agent and the simulated GPU. One that dies is started again at once, with growing
//! waits if it keeps dying; functions go on meanwhile.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::folder::Pids;

/// First wait before a start, where the one before died young; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// One that lived longer than this did not die young.
const YOUNG: Duration = Duration::from_secs(10);
/// Time to the line that says it listens.
const START: Duration = Duration::from_secs(30);
/// Deaths before the first such line after which there is no point in going on.
const EARLY_DEATHS: u32 = 3;
/// Time from SIGTERM to SIGKILL.
const STOP: Duration = Duration::from_secs(4);

/// A process to supervise. It says `listening on …` on standard output once it serves.
#[derive(Clone, Debug)]
pub(crate) struct Supervised {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Gets what it writes to standard error.
    pub(crate) log: PathBuf,
}

/// How it has gone so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Course {
    /// Times that it said it listens.
    pub(crate) ready: u32,
    /// Times that it ended by itself.
    pub(crate) deaths: u32,
}

/// A supervised process, and the task that looks after it.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) name: &'static str,
    log: PathBuf,
    pub(crate) course: watch::Receiver<Course>,
    stop: CancellationToken,
    task: TaskTracker,
}

impl Supervised {
    /// Starts it and keeps it running.
    pub(crate) fn start(self, pids: Arc<Pids>) -> Supervision {
        let (send, course) = watch::channel(Course::default());
        let stop = CancellationToken::new();
        let (name, log) = (self.name, self.log.clone());
        let task = TaskTracker::new();
        task.spawn(keep(self, pids, send, stop.clone()));
        task.close();
        Supervision { name, log, course, stop, task }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        if let Some(folder) = self.log.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("failed to create {}", folder.display()))?;
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("failed to open {}", self.log.display()))?;
        Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {}", self.program.display()))
    }
}

impl Supervision {
    /// Waits until it serves.
    pub(crate) async fn until_ready(&self) -> anyhow::Result<()> {
        let mut course = self.course.clone();
        let settled = course.wait_for(|course| course.ready > 0 || course.deaths >= EARLY_DEATHS);
        let ready = tokio::time::timeout(START, settled).await;
        if matches!(&ready, Ok(Ok(course)) if course.ready > 0) {
            return Ok(());
        }
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        anyhow::bail!("{} does not start: {last} (more in {})", self.name, self.log.display())
    }

    /// Ends it in good order.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP * 2, self.task.wait()).await.is_err() {
            tracing::error!(child = self.name, "It did not end.");
        }
    }
}

async fn keep(child: Supervised, pids: Arc<Pids>, course: watch::Sender<Course>, stop: CancellationToken) {
    let mut wait = Duration::ZERO;
    loop {
        let started = Instant::now();
        match child.spawn() {
            Ok(process) => {
                let reason = live(process, &pids, &course, &stop).await;
                if stop.is_cancelled() {
                    return;
                }
                tracing::error!(child = child.name, reason, log = %child.log.display(), "It ended and is started again.");
            }
            Err(error) => {
                tracing::error!(child = child.name, error = format!("{error:#}"), "It cannot be started.");
            }
        }
        course.send_modify(|course| course.deaths += 1);
        wait = next_wait(wait, started.elapsed());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// At once after a long life; else 50 ms, doubling up to 2 s.
fn next_wait(before: Duration, lived: Duration) -> Duration {
    if lived > YOUNG { Duration::ZERO } else { (before * 2).clamp(FIRST_WAIT, LONGEST_WAIT) }
}

/// From its start to its end; says why it ended.
async fn live(
    mut process: Child,
    pids: &Pids,
    course: &watch::Sender<Course>,
    stop: &CancellationToken,
) -> String {
    let pid = process.id();
    if let Some(pid) = pid {
        pids.add(pid);
    }
    let lines = process.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    let reading = async {
        let Some(mut lines) = lines else { return };
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("listening on ") {
                course.send_modify(|course| course.ready += 1);
            }
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        status = process.wait() => status,
        () = reading => process.wait().await,
        () = stop.cancelled() => end(&mut process, pid).await,
    };
    if let Some(pid) = pid {
        pids.remove(pid);
    }
    end.map_or_else(|error| error.to_string(), |status| status.to_string())
}

async fn end(process: &mut Child, pid: Option<u32>) -> std::io::Result<std::process::ExitStatus> {
    if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if let Ok(status) = tokio::time::timeout(STOP, process.wait()).await {
        return status;
    }
    process.start_kill()?;
    process.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &std::path::Path, script: &str) -> Supervision {
        let pids = Arc::new(Pids::take_over(folder.join("pids.json")));
        let child = Supervised {
            name: "child",
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            env: vec![],
            log: folder.join("child.log"),
        };
        child.start(pids)
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let child = shell(folder.path(), "echo listening on x; exec sleep 1000");
        child.until_ready().await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("pids.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let pid: i32 = record["started"].as_object().unwrap().keys().next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let mut course = child.course.clone();
        let again = course.wait_for(|course| *course == Course { ready: 2, deaths: 1 });
        tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap();
        child.end().await;
    }

    #[tokio::test]
    async fn a_child_that_cannot_start_is_told_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let child = shell(folder.path(), "echo no GPU here >&2; exit 1");
        let error = child.until_ready().await.unwrap_err().to_string();
        assert!(error.starts_with("child does not start: no GPU here (more in "), "{error}");
        child.end().await;
    }

    #[test]
    fn waits_double_until_it_lives_long() {
        let young = Duration::from_secs(1);
        let mut wait = Duration::ZERO;
        let mut waits = vec![];
        for _ in 0..8 {
            wait = next_wait(wait, young);
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(next_wait(wait, YOUNG * 2), Duration::ZERO);
    }
}
