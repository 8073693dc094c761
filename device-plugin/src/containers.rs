//! The containers' socket: JSON lines. Who has attached is the owner's; who has not is served here, in a thread of its own.
//!
//! Owns reading, bounding and sending lines. What a line means is the owner's business; nothing that a container sends
//! or leaves unread makes the owner wait.

use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gpu_share::page::handover;
use gpu_share::protocol::{FromContainer, ToContainer};
use rustix::net::sockopt::socket_peercred;

use crate::owner::Message;
use crate::reactor::Sender;
use gate::{Gate, Pass};
use lines::Lines;

mod gate;
mod lines;

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
    pub(crate) fn listen(path: &Path, owner: Sender<Message>) -> io::Result<Self> {
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

fn accept_all(listener: &UnixListener, owner: &Sender<Message>) {
    let gate = Gate::default();
    loop {
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
            Ok(pass) => begin(Connection { stream, pid, lines: Lines::default(), pass }, owner.clone()),
            Err(error) => {
                let _ = send(&stream, &ToContainer::Refused { error }, None);
            }
        }
    }
}

/// Serves a connection in a thread of its own until it has attached.
fn begin(connection: Connection, owner: Sender<Message>) {
    let spawned = thread::Builder::new().name("stranger".into()).spawn(move || {
        if let Err(error) = serve(connection, &owner) {
            tracing::debug!(%error, "connection ended");
        }
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

/// A connection of a process.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// The process as the kernel knows it, if it can be seen from here.
    pub(crate) pid: Option<u32>,
    lines: Lines,
    pass: Pass,
}

impl Connection {
    /// It has attached: from here on it may be silent for as long as it lives, and nobody waits for it.
    pub(crate) fn attach(&mut self) -> io::Result<()> {
        self.pass.attach();
        self.stream.set_nonblocking(true)
    }

    /// Reads what is there; whether the connection goes on.
    pub(crate) fn read(&mut self) -> bool {
        match self.lines.fill(&self.stream) {
            Ok(count) => count > 0,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// The next line of what was read, or why it is none.
    pub(crate) fn line(&mut self) -> Option<Result<FromContainer, String>> {
        self.lines.next()
    }

    /// Sends an answer; who does not read its answers gets no more.
    pub(crate) fn answer(&self, answer: &ToContainer, page: Option<OwnedFd>) {
        if send(&self.stream, answer, page).is_err() {
            self.end();
        }
    }

    /// Ends it; what was sent is read still.
    pub(crate) fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads lines until the process attaches, its connection ends or one is refused.
fn serve(mut connection: Connection, owner: &Sender<Message>) -> io::Result<()> {
    connection.stream.set_read_timeout(Some(FIRST_LINE))?;
    connection.stream.set_write_timeout(Some(FIRST_LINE))?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        let Some(line) = connection.line() else {
            if connection.lines.fill(&connection.stream)? == 0 {
                return Ok(());
            }
            continue;
        };
        let answer = match line {
            Ok(FromContainer::Attach { binding, pid, memory }) => {
                let connection = Box::new(connection);
                let attach = Message::Attach { connection, binding, pid, memory };
                return owner.send(attach).map_err(|_| gone());
            }
            Ok(FromContainer::Hello { binding }) => {
                let (reply, answer) = mpsc::channel();
                owner.send(Message::Hello(binding, reply)).map_err(|_| gone())?;
                answer.recv().map_err(|_| gone())?
            }
            Ok(_) => {
                ToContainer::Refused { error: "op comes before attach, allowed are hello and attach".into() }
            }
            Err(error) => ToContainer::Refused { error },
        };
        send(&connection.stream, &answer, None)?;
        if matches!(answer, ToContainer::Refused { .. }) {
            return Ok(());
        }
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
