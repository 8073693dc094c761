//! The connection to the node agent: joining the binding, sending, and waiting for the answer to a reservation.
//!
//! It decides nothing: what an answer or a lost connection means is the session's matter.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpu_share::page::{PageReader, handover};
use gpu_share::protocol::{FromContainer, MAX_LINE, ToContainer};
use gpu_share::units::Bytes;

use crate::config::Place;

/// An agent that has not answered after so long counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the reader of a connection on which nothing comes looks up.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// The descriptor of the present connection, -1 for none: a forked child closes it without taking a lock.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// Closes the connection in a forked child, so that it ends with the process that made it.
pub(crate) fn close_in_child() {
    let descriptor = DESCRIPTOR.swap(-1, Ordering::SeqCst);
    if descriptor >= 0 {
        // SAFETY: it is the child's copy, and nothing of the child uses it: the session is forgotten with it.
        unsafe { libc::close(descriptor) };
    }
}

/// Reads lines from a connection.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
    /// The page, as it came with the answer to attach.
    page: Option<OwnedFd>,
}

impl Lines {
    /// The next message; an error once the connection has ended or says what can't be read, and one of kind
    /// [`io::ErrorKind::WouldBlock`] if nothing came for a while.
    pub(crate) fn next(&mut self) -> io::Result<ToContainer> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=end).collect::<Vec<_>>();
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::Error::other(format!("line is longer than {MAX_LINE} bytes")));
            }
            let mut chunk = [0; 512];
            let (count, page) = match handover::receive(&self.stream, &mut chunk) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.page = page.or_else(|| self.page.take());
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

/// What the agent says of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) granted: bool,
    pub(crate) used: Bytes,
    pub(crate) limit: Bytes,
}

/// A process's connection to the node agent, while there is one.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    stream: Mutex<Option<Arc<UnixStream>>>,
    answer: Mutex<Option<Reserved>>,
    answered: Condvar,
}

/// What joining a binding brings.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) lines: Lines,
    pub(crate) page: PageReader,
    /// This process's slot in the page.
    pub(crate) slot: usize,
    /// The number by which the management library lists this process: the node's, where the agent says it.
    pub(crate) listed: u32,
}

/// Joins the binding with `memory` held already.
pub(crate) fn attach(place: &Place, memory: Bytes) -> io::Result<Joined> {
    let stream = UnixStream::connect(&place.socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let binding = place.binding.clone();
    write(&stream, &FromContainer::Attach { binding, pid: std::process::id(), memory })?;
    let mut lines = Lines { stream: Arc::new(stream), buffer: Vec::new(), page: None };
    match lines.next()? {
        ToContainer::Attached { slot, pid } => {
            lines.stream.set_read_timeout(Some(LOOK))?;
            let page =
                lines.page.take().ok_or_else(|| io::Error::other("answer to attach brings no page"))?;
            let listed = pid.unwrap_or_else(std::process::id);
            Ok(Joined { lines, page: PageReader::map(page)?, slot, listed })
        }
        ToContainer::Refused { error } => Err(io::Error::other(format!("refused: {error}"))),
        other => {
            Err(io::Error::other(format!("answer to attach is {other:?}, allowed is attached or refused")))
        }
    }
}

impl Agent {
    /// From now on messages go over the connection that `lines` reads.
    pub(crate) fn connect(&self, lines: &Lines) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        DESCRIPTOR.store(lines.stream.as_raw_fd(), Ordering::SeqCst);
        *stream = Some(lines.stream.clone());
    }

    /// The connection has ended: messages are dropped from now on, and nobody waits for an answer.
    pub(crate) fn disconnect(&self) {
        DESCRIPTOR.store(-1, Ordering::SeqCst);
        if let Some(stream) = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An agent that hangs and goes on one day must find it ended.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let answer = self.answer.lock();
        self.answered.notify_all();
        drop(answer);
    }

    /// Whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Sends `message`, or drops it if the agent is away.
    pub(crate) fn send(&self, message: &FromContainer) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &*stream
            && write(stream, message).is_err()
        {
            // The reader finds the end of the connection and does what is to be done.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Asks for `bytes` and waits for the answer; `None` if the agent is away. One caller at a time.
    pub(crate) fn reserve(&self, bytes: Bytes) -> Option<Reserved> {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.send(&FromContainer::Reserve { bytes });
        let deadline = Instant::now() + PATIENCE;
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if answer.is_some() || !self.is_connected() {
                return answer.take();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            answer = self.answered.wait_timeout(answer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(answer);
        // An answer that came now would be taken for the next one's: start anew.
        if let Some(stream) = &*self.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        None
    }

    /// The agent answered a reservation.
    pub(crate) fn deliver(&self, reserved: Reserved) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(reserved);
        self.answered.notify_all();
    }
}

/// Writes one line without raising a signal: the function's own handlers are its own.
fn write(stream: &UnixStream, message: &FromContainer) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut rest = &line[..];
    while !rest.is_empty() {
        // SAFETY: the descriptor is open and the bytes are readable for their length.
        let sent =
            unsafe { libc::send(stream.as_raw_fd(), rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
        if let Ok(sent) = usize::try_from(sent) {
            rest = &rest[sent..];
            continue;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
