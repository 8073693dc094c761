//! An action that is started once: it reads a line for each activation, and writes the result as a line to file
//! descriptor 3 (apache/openwhisk, docs/actions-actionloop.md). Its other output goes where the watchdog's goes.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::message::{Refusal, long, result};
use crate::child::own_program;
use crate::child::processes::{Group, Processes};

/// First argument of a watchdog that is about to become an action.
pub(crate) const BECOME: &str = "__become-action";

/// Where an action writes its results.
const RESULTS: i32 = 3;

/// Time in which an action that can't start at all is noticed, where it does not say that it has started.
const FIRST_MOMENT: Duration = Duration::from_millis(5);

/// An action that runs.
#[derive(Debug)]
pub(crate) struct Loop {
    child: Child,
    stdin: ChildStdin,
    results: BufReader<pipe::Receiver>,
    /// Killed with the action.
    _group: Group,
}

/// What an action is started with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// Its program.
    pub(crate) program: &'a OsStr,
    /// The program's arguments.
    pub(crate) args: &'a [OsString],
    /// Variables on top of the watchdog's.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Whether it says when it has started.
    pub(crate) says_so: bool,
    /// Longest line that is a result.
    pub(crate) most: usize,
}

impl Loop {
    /// Starts an action, and waits until it has started as far as that can be known.
    pub(crate) async fn start(start: Start<'_>, processes: &Arc<Processes>) -> Result<Self, Refusal> {
        let (program, most) = (start.program.to_os_string(), start.most);
        let says_so = start.says_so;
        let mut action = Self::spawn(start, processes)
            .map_err(|error| cannot_start(&format!("{}: {error}", program.display())))?;
        if says_so {
            let line = action
                .line(most)
                .await?
                .ok_or_else(|| cannot_start("Command exited abruptly during initialization."))?;
            let is_ready = result(&line, most).is_ok_and(|answer| answer["ok"] == Value::Bool(true));
            if !is_ready {
                return Err(cannot_start("The action did not initialize properly."));
            }
        } else if timeout(FIRST_MOMENT, action.child.wait()).await.is_ok() {
            return Err(cannot_start("command exited"));
        }
        Ok(action)
    }

    fn spawn(start: Start<'_>, processes: &Arc<Processes>) -> io::Result<Self> {
        let (results, writer) = io::pipe()?;
        // The action's own process opens it as descriptor 3; until then it is inherited under its number.
        fcntl_setfd(&writer, FdFlags::empty())?;
        let mut command = Command::new(own_program());
        command.args([BECOME, &writer.as_raw_fd().to_string()]).arg(start.program).args(start.args);
        command.envs(start.environment).stdin(Stdio::piped()).process_group(0);
        let ((mut child, stdin), group) = processes.start(|| {
            let mut child = command.spawn()?;
            let leader = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
            let (Some(leader), Some(stdin)) = (leader, child.stdin.take()) else {
                return Err(io::Error::other("the process has no id"));
            };
            Ok(((child, stdin), leader))
        })?;
        drop(writer);
        // Nobody else waits for it, and a watchdog that goes on without it must not leave it behind.
        child.stdin = None;
        let results = BufReader::new(pipe::Receiver::from_owned_fd(OwnedFd::from(results))?);
        Ok(Self { child, stdin, results, _group: group })
    }

    /// Hands it one activation; an error says that it can't be used any more, unless it is only its result that is bad.
    pub(crate) async fn run(
        &mut self,
        message: &[u8],
        most: usize,
    ) -> Result<Result<Value, Refusal>, Exited> {
        let line = [message, b"\n"].concat();
        // The action may answer before it has read all, and it may write more than a pipe holds.
        let (written, line) = tokio::join!(self.stdin.write_all(&line), Self::read(&mut self.results, most));
        match (written, line) {
            (Ok(()), Ok(Some(line))) => Ok(result(&line, most)),
            (_, Err(refusal)) => Ok(Err(refusal)),
            _ => Err(Exited),
        }
    }

    async fn line(&mut self, most: usize) -> Result<Option<Vec<u8>>, Refusal> {
        Self::read(&mut self.results, most).await
    }

    /// The next line; `None` when there is none any more. A line that is too long is read and dropped.
    async fn read(results: &mut BufReader<pipe::Receiver>, most: usize) -> Result<Option<Vec<u8>>, Refusal> {
        let (mut line, mut length) = (Vec::new(), 0);
        loop {
            let bytes = match results.fill_buf().await {
                Ok(bytes) if !bytes.is_empty() => bytes,
                _ => return Ok(None),
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            length += part.len();
            if length <= most {
                line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            results.consume(used);
            if end.is_some() {
                return if length <= most { Ok(Some(line)) } else { Err(long(length, most)) };
            }
        }
    }
}

/// The action has ended, and has no result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exited;

fn cannot_start(words: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, format!("cannot start action: {words}"))
}

/// Turns this process into an action; returns only if that fails, with the reason. `arguments` are those after
/// [`BECOME`]: the descriptor of the pipe for results, the program and its arguments.
pub(crate) fn become_action(mut arguments: impl Iterator<Item = OsString>) -> String {
    let descriptor = arguments.next().and_then(|text| text.to_str()?.parse::<i32>().ok());
    let (Some(descriptor), Some(program)) = (descriptor, arguments.next()) else {
        return format!("{BECOME} is for the watchdog itself, allowed are the arguments of of-watchdog");
    };
    // Kept open until the program is loaded; without the flag, it stays open then.
    let mut results = None;
    if descriptor != RESULTS {
        let path = Path::new("/proc/self/fd").join(descriptor.to_string());
        // The lowest descriptor that is free is the one that a program's fourth file gets.
        let opened = OpenOptions::new().write(true).open(path);
        let opened =
            opened.and_then(|file| fcntl_setfd(&file, FdFlags::empty()).map(|()| file).map_err(Into::into));
        match opened {
            Ok(file) if file.as_raw_fd() == RESULTS => results = Some(file),
            Ok(file) => {
                return format!("file descriptor 3 is taken: results would go to {}", file.as_raw_fd());
            }
            Err(error) => return format!("the pipe for results can't be opened: {error}"),
        }
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    drop(results);
    format!("the action is {:?}, and it can't be started: {error}", program.to_string_lossy())
}
