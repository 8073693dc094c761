//! The control program `nvidia-cuda-mps-control`: it starts the daemon, and hands it commands that it reads line by line.
//!
//! Every call ends: a program that does not is killed. It decides nothing.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::lifecycle::Seen;
use super::{LOGS, PIPES};

/// Longest time for the program to answer a command, or to put the daemon into the background.
const ANSWER: Duration = Duration::from_secs(5);

/// What the program says where no daemon listens.
const NO_DAEMON: &str = "Cannot find MPS control daemon";

/// A daemon's folders, and the program that speaks to it.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    program: PathBuf,
    pipes: PathBuf,
    logs: PathBuf,
}

impl Control {
    /// Makes the folders in `state`. Clients of any user connect to sockets in the one.
    pub(crate) fn new(program: PathBuf, state: &Path) -> io::Result<Self> {
        let folder = state.join("mps");
        let (pipes, logs) = (folder.join("pipe"), folder.join("log"));
        for (path, mode) in [(&folder, 0o711), (&pipes, 0o755), (&logs, 0o700)] {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(Self { program, pipes, logs })
    }

    /// Starts the daemon; it goes into the background by itself, and outlives the agent.
    pub(super) fn start(&self) -> io::Result<()> {
        // A pipe would stay open as long as the daemon lives.
        let log = File::create(self.logs.join("start.log"))?;
        let mut command = self.command();
        command.arg("-d").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let output = run(command, "")?;
        if output.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} -d: {}", self.program.display(), output.status)))
        }
    }

    /// How the daemon and its servers are.
    pub(super) fn look(&self) -> Seen {
        let servers = match self.ask("get_server_list") {
            Ok(answer) => answer,
            Err(why) => return Seen::Silent(why),
        };
        for server in servers.lines().filter_map(|line| line.trim().parse::<u32>().ok()) {
            match self.ask(&format!("get_server_status {server}")) {
                Ok(status) if status.contains("FAULT") => return Seen::Fault(server),
                // Older programs do not know the command, and a server may just have ended.
                Ok(_) | Err(_) => {}
            }
        }
        Seen::Sound
    }

    /// Ends the daemon and its servers.
    pub(super) fn quit(&self) -> Result<(), String> {
        self.ask("quit").map(drop)
    }

    fn ask(&self, line: &str) -> Result<String, String> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = run(command, line).map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && !said.contains(NO_DAEMON) && !complaint.contains(NO_DAEMON) {
            return Ok(said);
        }
        let words = complaint.lines().chain(said.lines()).map(str::trim).find(|line| !line.is_empty());
        Err(format!("the control daemon does not answer {line}: {}", words.unwrap_or("no reason given")))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env(PIPES, &self.pipes).env(LOGS, &self.logs);
        command
    }
}

/// Runs `command` with `line` as its input, to its end or for [`ANSWER`].
fn run(mut command: Command, line: &str) -> io::Result<Output> {
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not read says so by its status.
        let _ = writeln!(input, "{line}");
    }
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = sender.send(child.wait_with_output());
    });
    ended.recv_timeout(ANSWER).unwrap_or_else(|_| {
        // One that ended just now needs no signal.
        let _ = pidfd_send_signal(&process, Signal::KILL);
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER:?}")))
    })
}
