//! What a client has to be told and has not taken yet. A client that does not read never holds up the GPU.

use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};

use crate::wire::Reply;

/// A client that leaves this much unread is broken, and cut off.
const LIMIT: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Outbox {
    stream: UnixStream,
    backlog: Vec<u8>,
    dead: bool,
}

impl Outbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, backlog: Vec::new(), dead: false }
    }

    pub(super) fn send(&mut self, reply: &Reply) {
        if self.dead {
            return;
        }
        reply.encode(&mut self.backlog);
        self.flush();
        if self.backlog.len() > LIMIT {
            self.cut_off();
        }
    }

    /// Whether the client has not taken all yet.
    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends what it can without waiting. Says whether nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        let mut sent = 0;
        while sent < self.backlog.len() {
            match send(&self.stream, &self.backlog[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => {
                    self.cut_off();
                    return true;
                }
            }
        }
        self.backlog.drain(..sent);
        self.backlog.is_empty()
    }

    /// The thread that reads from the client sees the end, and tidies up.
    fn cut_off(&mut self) {
        self.dead = true;
        self.backlog = Vec::new();
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
