//! A client that sends a body and reads the answer at the same time, and keeps only the hash of what comes.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use ::tests::wire::{self, Head, LAST_CHUNK, read_body, write_piece};
use anyhow::{Context as _, Result, anyhow};
use ring::digest::{Context, Digest, SHA256};

use crate::body::{Body, Numbers};

/// Longest time in which nothing comes or goes.
const DEADLINE: Duration = Duration::from_mins(1);

/// Most bytes that are sent at once before the answer is looked at.
const SMALL: u64 = 16 << 10;

/// A request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    /// Further lines of the head, each with its end.
    pub(crate) headers: &'a str,
    pub(crate) body: Option<Sent<'a>>,
}

/// A body and how it is sent.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) body: &'a Body,
    /// In chunks whose sizes follow from this; else with its length.
    pub(crate) chunks: Option<Numbers>,
    /// The last byte waits until the answer has begun.
    pub(crate) holds_last: bool,
}

impl<'a> Request<'a> {
    /// A request without a body.
    pub(crate) fn new(method: &'a str, target: &'a str) -> Self {
        Self { method, target, headers: "", body: None }
    }

    fn head(&self) -> Vec<u8> {
        let Self { method, target, headers, .. } = self;
        let framing = match &self.body {
            None => String::new(),
            Some(Sent { chunks: Some(_), .. }) => "Transfer-Encoding: chunked\r\n".to_string(),
            Some(Sent { body, .. }) => format!("Content-Length: {}\r\n", body.length()),
        };
        format!("{method} {target} HTTP/1.1\r\nHost: fn.example\r\n{headers}{framing}\r\n").into_bytes()
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) length: u64,
    pub(crate) digest: Digest,
    /// Whether it began while the request's last byte was held back for it.
    pub(crate) is_early: bool,
    /// Whether the connection can take another request.
    pub(crate) is_reusable: bool,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection(wire::Connection);

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        wire::Connection::open(address, DEADLINE).map(Self)
    }

    /// The bytes themselves, for what is not HTTP any more.
    pub(crate) fn stream(&mut self) -> (&mut TcpStream, &mut BufReader<TcpStream>) {
        (&mut self.0.writer, &mut self.0.reader)
    }

    /// Sends `request` and does not read its answer.
    pub(crate) fn send(&mut self, request: &Request<'_>) -> Result<()> {
        Ok(self.0.writer.write_all(&request.head())?)
    }

    /// Sends `request` and reads its answer.
    pub(crate) fn exchange(&mut self, request: &Request<'_>) -> Result<Answer> {
        let wire::Connection { writer, reader } = &mut self.0;
        let head = request.head();
        let Some(sent) = &request.body else {
            writer.write_all(&head)?;
            return answer(reader, request.method, || {});
        };
        if sent.body.length() <= SMALL && !sent.holds_last {
            let mut bytes = head;
            send(&mut bytes, sent, None)?;
            writer.write_all(&bytes)?;
            return answer(reader, request.method, || {});
        }
        let is_early = sent.holds_last;
        let (begun, has_begun) = mpsc::channel();
        let (answer, sent) = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                writer.write_all(&head)?;
                send(writer, sent, Some(has_begun))
            });
            let answer = answer(reader, request.method, move || {
                // One that has sent all does not wait for it.
                let _ = begun.send(());
            });
            if answer.is_err() {
                // Who still sends must not wait for a server that does not read.
                let _ = reader.get_ref().shutdown(Shutdown::Both);
            }
            (answer, sending.join())
        });
        let mut answer = answer?;
        sent.map_err(|_| anyhow!("the sender failed"))?.context("the body can't be sent")?;
        answer.is_early = is_early;
        Ok(answer)
    }
}

/// Sends a body; the last byte after `begun` if it is to wait.
fn send(writer: &mut impl Write, sent: &Sent<'_>, begun: Option<Receiver<()>>) -> Result<()> {
    let mut body = sent.body.read();
    let begun = begun.filter(|_| sent.holds_last);
    let held = u64::from(begun.is_some() && body.left() > 0);
    let mut sizes = sent.chunks.clone();
    let mut block = vec![0; 100_000];
    while body.left() > held {
        let piece = sizes.as_mut().map_or(block.len() as u64, |sizes| 1 + sizes.below(block.len() as u64));
        let piece = usize::try_from(piece.min(body.left() - held))?;
        let count = body.read(&mut block[..piece])?;
        write_piece(writer, &block[..count], sent.chunks.is_some())?;
    }
    if let Some(begun) = begun
        && held > 0
    {
        begun.recv_timeout(DEADLINE).context("no answer before the request has ended")?;
        let count = body.read(&mut block)?;
        write_piece(writer, &block[..count], sent.chunks.is_some())?;
    }
    if sent.chunks.is_some() {
        writer.write_all(LAST_CHUNK)?;
    }
    Ok(())
}

/// Reads one answer; `begun` is told when its head is there.
fn answer(reader: &mut BufReader<TcpStream>, method: &str, begun: impl FnOnce()) -> Result<Answer> {
    let head = Head::read_final(reader)?;
    let (framing, is_reusable) = (head.framing(method)?, head.is_reusable(method));
    begun();
    let mut context = Context::new(&SHA256);
    let length = read_body(reader, framing, |piece| context.update(piece))?;
    Ok(Answer { status: head.status, length, digest: context.finish(), is_early: false, is_reusable })
}

#[cfg(test)]
mod tests {
    use ::tests::wire::Framing;

    use super::*;

    #[test]
    fn what_is_sent_in_chunks_comes_back_as_it_was() {
        let body = Body::bytes(3, 300_000);
        let mut bytes = Vec::new();
        let sent = Sent { body: &body, chunks: Some(Numbers::new(1)), holds_last: false };
        send(&mut bytes, &sent, None).unwrap();
        let mut context = Context::new(&SHA256);
        let length = read_body(&mut &bytes[..], Framing::Chunks, |piece| context.update(piece)).unwrap();
        assert_eq!(length, 300_000);
        assert_eq!(context.finish().as_ref(), body.read().digest().as_ref());
    }
}
