//! What a client has to be told and has not taken yet. A client that does not read never holds up the GPU.

use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};

use crate::wire::Reply;

/// A client that leaves this much unread is broken, and cut off.
const LIMIT: usize = 16 << 20;

/// So much is sent though nothing came that the client waits for.
const ENOUGH: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Outbox {
    stream: UnixStream,
    backlog: Vec<u8>,
    /// The backlog holds what the client waits for.
    due: bool,
    dead: bool,
}

impl Outbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, backlog: Vec::new(), due: false, dead: false }
    }

    pub(super) fn send(&mut self, reply: &Reply) {
        if self.dead {
            return;
        }
        reply.encode(&mut self.backlog);
        self.due = true;
        self.flush();
        if self.backlog.len() > LIMIT {
            self.cut_off();
        }
    }

    /// Sends `reply` with the next one: the client is not woken for it.
    pub(super) fn add(&mut self, reply: &Reply) {
        if self.dead {
            return;
        }
        reply.encode(&mut self.backlog);
        if self.backlog.len() > ENOUGH {
            self.due = true;
            self.flush();
        }
        if self.backlog.len() > LIMIT {
            self.cut_off();
        }
    }

    /// Whether the client has not taken yet what it waits for.
    pub(super) fn is_behind(&self) -> bool {
        self.due
    }

    /// Sends what is due, as far as that goes without waiting. Says whether nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        if !self.due {
            return true;
        }
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
        self.due = !self.backlog.is_empty();
        !self.due
    }

    /// The thread that reads from the client sees the end, and tidies up.
    fn cut_off(&mut self) {
        self.dead = true;
        self.due = false;
        self.backlog = Vec::new();
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
