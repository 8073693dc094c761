//! A process for one request: starts it, gives it the request's body as it comes, logs what it says, and hands out its
//! output. It is ended, with all that it started, when nobody waits for it any more.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::child::processes::{Group, Processes};
use crate::config::LogConfig;
use crate::logs::Lines;

/// Room for what is read from a process at once, in bytes: small outputs get the least of it, those that fill it get
/// more, up to what a pipe holds.
const LEAST_ROOM: usize = 4 << 10;
const PIPE: usize = 64 << 10;

/// Longest time to wait for the last lines of a process that has ended: what it left behind may hold its stderr.
const LAST_LINES: Duration = Duration::from_millis(50);

/// What all processes of a function have in common.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The program.
    pub(crate) program: OsString,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Variables on top of the watchdog's.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// How its lines are logged.
    pub(crate) logs: LogConfig,
    /// Whether what it writes to stderr is output.
    pub(crate) combine: bool,
    /// The processes that run.
    pub(crate) processes: Arc<Processes>,
}

/// What a process reads.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request's body, which must be complete by then.
    Body(Incoming, Option<Instant>),
    /// Bytes that are known.
    Bytes(Bytes),
}

/// How a process ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// By itself, or killed.
    Exited(ExitStatus),
    /// It still runs, and will never get the whole request.
    NoBody(NoBody),
    /// Nobody knows.
    Lost(io::Error),
}

/// Why a process did not get the whole request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoBody {
    /// It took longer than `read_timeout`.
    #[error("the request body was not complete within read_timeout")]
    TooSlow,
    /// The client went away, or sent what is not HTTP.
    #[error("the request body could not be read: {0}")]
    Client(hyper::Error),
}

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Process {
    stdout: pipe::Receiver,
    space: BytesMut,
    room: usize,
    ending: oneshot::Receiver<Ending>,
    exited: Option<io::Result<ExitStatus>>,
    is_at_end: bool,
    group: Group,
}

/// What comes next from a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// Output.
    Bytes(Bytes),
    /// All of its output has come, and it has ended.
    Ended(io::Result<ExitStatus>),
    /// It will never get the whole request.
    NoBody(NoBody),
}

impl Recipe {
    /// Starts a process, with `variables` and arguments of its own.
    pub(crate) fn start(
        &self,
        input: Input,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
        argument: Option<&OsStr>,
    ) -> io::Result<Process> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).args(argument);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).envs(variables);
        let (stdout, writer) = io::pipe()?;
        command.stderr(if self.combine { writer.try_clone()?.into() } else { Stdio::piped() });
        command.stdout(writer).process_group(0);
        let has_input = !matches!(&input, Input::Body(body, _) if body.is_end_stream());
        command.stdin(if has_input { Stdio::piped() } else { Stdio::null() });
        let (mut child, group) = self.processes.start(|| {
            let child = command.spawn()?;
            let leader = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
            // It has just been started, and nobody has waited for it.
            let leader = leader.ok_or_else(|| io::Error::other("the process has no id"))?;
            Ok::<_, io::Error>((child, leader))
        })?;
        // The command holds the ends of the pipes that are the process's now.
        drop(command);
        let stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?;
        let (sender, ending) = oneshot::channel();
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        tokio::spawn(attend(child, stdin.map(|stdin| (stdin, input)), stderr, self.logs, sender));
        let (space, room) = (BytesMut::new(), LEAST_ROOM);
        Ok(Process { stdout, space, room, ending, exited: None, is_at_end: false, group })
    }
}

impl Process {
    /// The next event.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.exited.is_none()
            && let Poll::Ready(ending) = Pin::new(&mut self.ending).poll(cx)
        {
            match ending {
                Ok(Ending::Exited(status)) => self.exited = Some(Ok(status)),
                Ok(Ending::Lost(error)) => self.exited = Some(Err(error)),
                Ok(Ending::NoBody(reason)) => return Poll::Ready(Event::NoBody(reason)),
                Err(_) => self.exited = Some(Err(io::Error::other("nobody waits for the process"))),
            }
        }
        if !self.is_at_end {
            self.space.reserve(self.room);
            // A pipe that can't be read has ended.
            let count = ready!(pin!(self.stdout.read_buf(&mut self.space)).poll(cx)).unwrap_or_default();
            if count > 0 {
                self.room = if count < self.room { self.room } else { (2 * self.room).min(PIPE) };
                return Poll::Ready(Event::Bytes(self.space.split().freeze()));
            }
            self.is_at_end = true;
        }
        match self.exited.take() {
            Some(status) => Poll::Ready(Event::Ended(status)),
            None => Poll::Pending,
        }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Ends the process alone: what it has started goes on, as it does under of-watchdog.
    pub(crate) fn kill_alone(&self) {
        let _ = kill_process(self.group.leader(), Signal::KILL);
    }

    /// The process has ended well; what it has left behind may go on.
    pub(crate) fn release(self) {
        self.group.release();
    }
}

/// Feeds a process, logs what it says, and says how it ended.
async fn attend(
    mut child: Child,
    input: Option<(ChildStdin, Input)>,
    stderr: Option<ChildStderr>,
    logs: LogConfig,
    ending: oneshot::Sender<Ending>,
) {
    let mut lines = stderr.map(|pipe| tokio::spawn(log_lines(pipe, logs)));
    let (mut feeding, mut is_fed) = (pin!(feed(input)), false);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            outcome = &mut feeding, if !is_fed => match outcome {
                Ok(()) => is_fed = true,
                Err((reason, stdin)) => {
                    let _ = ending.send(Ending::NoBody(reason));
                    let _ = child.wait().await;
                    // Not before: a function must not take a part of a request for the whole.
                    drop(stdin);
                    return;
                }
            },
        }
    };
    if let Some(lines) = &mut lines {
        let _ = timeout(LAST_LINES, lines).await;
    }
    let _ = ending.send(status.map_or_else(Ending::Lost, Ending::Exited));
    if !is_fed {
        // What the process did not want is read all the same: a client that is still sending would else lose its answer
        // when the connection ends.
        let _ = feeding.await;
    }
}

/// Writes the input to the process until it has all of it or wants no more of it. An error comes with the pipe, which
/// its caller keeps open.
async fn feed(input: Option<(ChildStdin, Input)>) -> Result<(), (NoBody, ChildStdin)> {
    let Some((mut stdin, input)) = input else { return Ok(()) };
    match input {
        Input::Bytes(bytes) => {
            // A process need not read.
            let _ = stdin.write_all(&bytes).await;
            Ok(())
        }
        Input::Body(mut body, deadline) => match pour(&mut body, &mut stdin, deadline).await {
            Ok(()) => Ok(()),
            Err(reason) => Err((reason, stdin)),
        },
    }
}

/// The body, frame by frame, to a process. Once that wants no more, the rest is read and dropped.
async fn pour(body: &mut Incoming, stdin: &mut ChildStdin, deadline: Option<Instant>) -> Result<(), NoBody> {
    let mut is_wanted = true;
    loop {
        let frame = match deadline {
            Some(deadline) => timeout_at(deadline, body.frame()).await.map_err(|_| NoBody::TooSlow),
            None => Ok(body.frame().await),
        };
        let bytes = match frame.and_then(|frame| frame.transpose().map_err(NoBody::Client)) {
            Ok(Some(frame)) => frame.into_data().unwrap_or_default(),
            Ok(None) => return Ok(()),
            Err(reason) => return if is_wanted { Err(reason) } else { Ok(()) },
        };
        is_wanted = is_wanted && stdin.write_all(&bytes).await.is_ok();
    }
}

async fn log_lines(mut pipe: ChildStderr, logs: LogConfig) {
    let mut lines = Lines::new("stderr", logs);
    let mut bytes = [0; 4096];
    while let Ok(count) = pipe.read(&mut bytes).await
        && count > 0
    {
        lines.push(&bytes[..count], &mut io::stderr());
        if lines.has_given_up() {
            return;
        }
    }
    lines.end(&mut io::stderr());
}
