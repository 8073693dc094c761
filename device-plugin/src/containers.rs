//! The containers' socket: JSON lines, one thread for each connection.
//!
//! Owns reading, bounding and answering lines. What a line means is the owner's business; nothing that a container
//! sends or leaves unread makes the owner wait.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gpu_share::page::handover;
use gpu_share::protocol::{FromContainer, MAX_LINE, ToContainer};
use rustix::net::sockopt::socket_peercred;

use crate::arbiter::ProcessId;
use crate::owner::{Message, Peer};
use crate::precedence;
use gate::{Gate, Pass};

mod gate;

/// Pause after a connection that could not be accepted.
const EXHAUSTED: Duration = Duration::from_millis(10);
/// Who has not attached so long after connecting, or after its last word, is cut off.
const FIRST_LINE: Duration = Duration::from_secs(5);

/// The containers' socket, served.
#[derive(Debug)]
pub(crate) struct Containers {
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Containers {
    /// Listens at `path`; every user may connect, as containers have users of their own.
    pub(crate) fn listen(path: &Path, owner: mpsc::SyncSender<Message>) -> io::Result<Self> {
        let listener = Arc::new(UnixListener::bind(path)?);
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        let shared = Arc::clone(&listener);
        let accepting =
            thread::Builder::new().name("containers".into()).spawn(move || accept_all(&shared, &owner))?;
        Ok(Self { listener, accepting: Some(accepting) })
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // Makes `accept` return with an error, which ends the thread.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept_all(listener: &UnixListener, owner: &mpsc::SyncSender<Message>) {
    let gate = Gate::default();
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Out of files: the next connection may find one.
            Err(error) if error.raw_os_error().is_some_and(is_exhaustion) => {
                tracing::warn!(%error, "connection not accepted");
                thread::park_timeout(EXHAUSTED);
                continue;
            }
            Err(_) => return,
        };
        // Seen from the agent's PID namespace, so the agent runs in the node's.
        let peer = socket_peercred(&stream).ok();
        let pid = peer.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        match gate.enter(pid) {
            Ok(pass) => begin(stream, ProcessId(number), pid, pass, owner.clone()),
            Err(error) => {
                let _ = send(&stream, &ToContainer::Refused { error }, None);
            }
        }
    }
}

/// Serves a connection in a thread of its own.
fn begin(
    stream: UnixStream,
    process: ProcessId,
    pid: Option<u32>,
    mut pass: Pass,
    owner: mpsc::SyncSender<Message>,
) {
    let spawned = thread::Builder::new().name(format!("container-{}", process.0)).spawn(move || {
        if let Err(error) = serve(&stream, process, pid, &mut pass, &owner) {
            tracing::debug!(process = process.0, %error, "connection ended");
        }
        // An owner that is gone has forgotten the process anyway.
        let _ = owner.send(Message::Gone(process));
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "connection not served");
    }
}

fn is_exhaustion(code: i32) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNABORTED, Errno::INTR]
        .iter()
        .any(|errno| errno.raw_os_error() == code)
}

/// Reads lines until the connection ends or one is refused.
fn serve(
    stream: &UnixStream,
    process: ProcessId,
    pid: Option<u32>,
    pass: &mut Pass,
    owner: &mpsc::SyncSender<Message>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(FIRST_LINE))?;
    let (answers, answered) = mpsc::channel();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let peer = Peer { stream: stream.try_clone()?, answers, pid };
    owner.send(Message::Connected(process, peer)).map_err(gone)?;
    let (mut reader, mut attached) = (BufReader::new(stream), false);
    loop {
        let line = match read_line(&mut reader)? {
            Line::End => return Ok(()),
            Line::Read(line) => parse(&line, attached),
            Line::TooLong => Err(format!("line is longer than {MAX_LINE} bytes")),
        };
        let line = match line {
            Ok(line) => line,
            Err(error) => return send(stream, &ToContainer::Refused { error }, None),
        };
        let is_answered = matches!(
            line,
            FromContainer::Hello { .. } | FromContainer::Attach { .. } | FromContainer::Reserve { .. }
        );
        owner.send(Message::Line(process, line, Instant::now())).map_err(gone)?;
        if is_answered {
            let answer = answered.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            send(stream, &answer.line, answer.page)?;
            match answer.line {
                ToContainer::Refused { .. } => return Ok(()),
                ToContainer::Attached { .. } => {
                    attached = true;
                    pass.attach();
                    // Its turns wait for this thread from now on; a stranger's lines can wait themselves.
                    precedence::take();
                    // From here on it may be silent for as long as it lives; a slot of its binding is what it takes.
                    stream.set_read_timeout(None)?;
                }
                _ => {}
            }
        }
    }
}

fn parse(line: &[u8], attached: bool) -> Result<FromContainer, String> {
    let line: FromContainer =
        serde_json::from_slice(line).map_err(|error| format!("line is not of a known form: {error}"))?;
    if attached || matches!(line, FromContainer::Hello { .. } | FromContainer::Attach { .. }) {
        Ok(line)
    } else {
        Err("op comes before attach, allowed are hello and attach".into())
    }
}

/// What comes next on a connection.
enum Line {
    Read(Vec<u8>),
    TooLong,
    End,
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Line> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(Line::Read(line)),
        Some(_) if line.len() >= MAX_LINE => Ok(Line::TooLong),
        _ => Ok(Line::End),
    }
}

fn send(mut stream: &UnixStream, answer: &ToContainer, page: Option<OwnedFd>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    match page {
        Some(page) => handover::send_with(stream, &line, page.as_fd()),
        None => stream.write_all(&line),
    }
}
