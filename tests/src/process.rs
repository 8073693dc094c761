//! A process that a test started: its output in a file, its end observed, its death certain. Also what other processes
//! it left behind. It never signals a process that the tests did not start.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Lines of output that are shown when a test fails.
const TAIL: usize = 40;

/// A running or ended child.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    /// Open for as long as this is here: the tests' own programs end when it closes, also if the test is killed.
    stdin: Option<ChildStdin>,
    end: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it prints goes to the file `log`. Its standard input stays open until it is dropped.
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = File::create(log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out.try_clone().expect("a file handle can be cloned");
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (pid, stdin) = (child.id(), child.stdin.take());
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for once");
            // Nobody listens any more when the harness itself is going down.
            let _ = ended.send(status);
        });
        Self { name, pid, log: log.into(), stdin, end, status: None }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{} does not listen: {error}", self.name));
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.status = self.status.or_else(|| self.end.try_recv().ok());
        self.status
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines that it printed.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Waits until it ended by itself.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        match self.end_within(patience) {
            Some(status) => status,
            None => panic!("{} did not end within {patience:?}; it printed:\n{}", self.name, self.tail()),
        }
    }

    /// Asks it to end, and kills it after `patience`. Returns how it ended, and whether it did so by itself.
    pub fn stop(&mut self, patience: Duration) -> (ExitStatus, bool) {
        if let Some(status) = self.ended() {
            return (status, true);
        }
        signal(self.pid, Signal::TERM);
        if let Some(status) = self.end_within(patience) {
            return (status, true);
        }
        signal(self.pid, Signal::KILL);
        let status = self.end_within(Duration::from_secs(10)).expect("a killed process ends");
        (status, false)
    }

    fn end_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.ended().is_none() {
            match self.end.recv_timeout(patience) {
                Ok(status) => self.status = Some(status),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("{} was lost sight of", self.name),
            }
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the last lines of {} (process {}):\n{}\n---", self.name, self.pid, self.tail());
        }
        self.stop(Duration::from_secs(10));
    }
}

/// The last lines of a file.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Another process, as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its process number.
    pub pid: u32,
    /// Its command line, words separated by spaces.
    pub command: String,
}

/// Living processes whose command line or environment names `folder`, this one left out.
pub fn naming(folder: &Path) -> Vec<Found> {
    let needle = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").expect("/proc can be read");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let names = |path: String| {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\0', " ");
        (text.contains(&*needle), text)
    };
    pids.filter(|&pid| pid != std::process::id())
        .filter_map(|pid| {
            let (in_command, command) = names(format!("/proc/{pid}/cmdline"));
            let found = in_command || names(format!("/proc/{pid}/environ")).0;
            // What has ended and is not reaped yet has no command line.
            (found && !command.is_empty()).then(|| Found { pid, command: command.trim().into() })
        })
        .collect()
}

/// One that is gone already is no failure.
fn signal(pid: u32, signal: Signal) {
    // A failure means that the process is gone.
    let _ = kill_process(number(pid), signal);
}

/// Kills a process that a test started, directly or not, as a crash would.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Halts a process that a test started, until [`resume`].
pub fn halt(pid: u32) {
    signal(pid, Signal::STOP);
}

/// Lets a halted process go on.
pub fn resume(pid: u32) {
    signal(pid, Signal::CONT);
}

/// Whether a process lives.
pub fn lives(pid: u32) -> bool {
    test_kill_process(number(pid)).is_ok()
}

/// When a living process started, in clock ticks since the machine did: field 22 of `/proc/<pid>/stat` (proc(5)). With its
/// number it tells it from any other.
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    fields(&stat)?.nth(19)?.parse().ok()
}

/// Seconds of processor time that a process has used, all threads together, to a nanosecond.
pub fn processor_time(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let nanos: f64 = text.split_whitespace().next().context("schedstat is empty")?.parse()?;
        total += nanos / 1e9;
    }
    Ok(total)
}

/// Memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Fields of a `/proc/<pid>/stat` from the third on: counted behind the name, which may hold anything.
pub(crate) fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

fn number(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap_or_else(|| panic!("{pid} is no process number"))
}
