//! A client of HTTP/1.1 that sends a body and reads the answer at the same time, and keeps only the hash of what comes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ring::digest::{Context, Digest, SHA256};

use crate::body::{Body, Numbers};

/// Longest time in which nothing comes or goes.
const DEADLINE: Duration = Duration::from_mins(1);

/// Most bytes that are sent at once before the answer is looked at.
const SMALL: u64 = 16 << 10;

/// Longest line of a head.
const LONGEST_LINE: u64 = 64 << 10;

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

/// How the end of an answer's body is known.
enum Framing {
    Length(u64),
    Chunks,
    Connection,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let writer = TcpStream::connect_timeout(&address, DEADLINE).context("can't connect")?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(DEADLINE))?;
        writer.set_write_timeout(Some(DEADLINE))?;
        let reader = BufReader::with_capacity(64 << 10, writer.try_clone()?);
        Ok(Self { writer, reader })
    }

    /// The bytes themselves, for what is not HTTP any more.
    pub(crate) fn stream(&mut self) -> (&mut TcpStream, &mut BufReader<TcpStream>) {
        (&mut self.writer, &mut self.reader)
    }

    /// Sends `request` and does not read its answer.
    pub(crate) fn send(&mut self, request: &Request<'_>) -> Result<()> {
        Ok(self.writer.write_all(&request.head())?)
    }

    /// Sends `request` and reads its answer.
    pub(crate) fn exchange(&mut self, request: &Request<'_>) -> Result<Answer> {
        let Self { writer, reader } = self;
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
        writer.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

fn write_piece(writer: &mut impl Write, piece: &[u8], is_chunk: bool) -> Result<()> {
    if is_chunk {
        writer.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    }
    writer.write_all(piece)?;
    if is_chunk {
        writer.write_all(b"\r\n")?;
    }
    Ok(())
}

/// Reads one answer; `begun` is told when its head is there.
fn answer(reader: &mut BufReader<TcpStream>, method: &str, begun: impl FnOnce()) -> Result<Answer> {
    let (status, framing, mut is_reusable) = loop {
        let head = head(reader)?;
        if head.0 == 101 || head.0 >= 200 {
            break head;
        }
    };
    begun();
    let mut context = Context::new(&SHA256);
    let has_body = method != "HEAD" && !matches!(status, 101 | 204 | 304);
    let length = match framing {
        _ if !has_body => 0,
        Framing::Length(length) => take(reader, length, &mut context)?,
        Framing::Chunks => chunks(reader, &mut context)?,
        Framing::Connection => {
            is_reusable = false;
            rest(reader, &mut context)?
        }
    };
    Ok(Answer { status, length, digest: context.finish(), is_early: false, is_reusable })
}

/// A line without its end.
fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line).context("no answer in time")?;
    ensure!(
        line.ends_with(b"\n"),
        "the connection ended within a line: {:?}",
        String::from_utf8_lossy(&line)
    );
    Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
}

/// Status, framing, and whether the connection goes on.
fn head(reader: &mut impl BufRead) -> Result<(u16, Framing, bool)> {
    let first = line(reader)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no answer: {first:?}"))?;
    let (mut framing, mut is_reusable) = (Framing::Connection, true);
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Ok((status, framing, is_reusable));
        }
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => framing = Framing::Length(value.parse().context("content-length")?),
            ("transfer-encoding", "chunked") => framing = Framing::Chunks,
            ("transfer-encoding", value) => bail!("transfer-encoding is {value:?}"),
            ("connection", value) if value.eq_ignore_ascii_case("close") => is_reusable = false,
            _ => {}
        }
    }
}

fn take(reader: &mut impl BufRead, length: u64, context: &mut Context) -> Result<u64> {
    let mut left = length;
    while left > 0 {
        let bytes = reader.fill_buf().context("the answer is not complete in time")?;
        ensure!(!bytes.is_empty(), "the connection ended {left} bytes before the answer's end");
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        context.update(&bytes[..count]);
        reader.consume(count);
        left -= count as u64;
    }
    Ok(length)
}

fn chunks(reader: &mut impl BufRead, context: &mut Context) -> Result<u64> {
    let mut length = 0;
    loop {
        let size = line(reader)?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or_default(), 16)
            .with_context(|| format!("no chunk: {size:?}"))?;
        if size == 0 {
            // Trailers, up to an empty line.
            while !line(reader)?.is_empty() {}
            return Ok(length);
        }
        length += take(reader, size, context)?;
        ensure!(line(reader)?.is_empty(), "a chunk is longer than it says");
    }
}

fn rest(reader: &mut impl BufRead, context: &mut Context) -> Result<u64> {
    let mut length = 0;
    loop {
        let bytes = reader.fill_buf().context("the answer is not complete in time")?;
        if bytes.is_empty() {
            return Ok(length);
        }
        context.update(bytes);
        let count = bytes.len();
        reader.consume(count);
        length += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_chunks_comes_back_as_it_was() {
        let body = Body::bytes(3, 300_000);
        let mut bytes = Vec::new();
        let sent = Sent { body: &body, chunks: Some(Numbers::new(1)), holds_last: false };
        send(&mut bytes, &sent, None).unwrap();
        let mut context = Context::new(&SHA256);
        assert_eq!(chunks(&mut &bytes[..], &mut context).unwrap(), 300_000);
        assert_eq!(context.finish().as_ref(), body.read().digest().as_ref());
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        let context = || Context::new(&SHA256);
        assert!(take(&mut &b"abc"[..], 4, &mut context()).is_err());
        for cut in [&b"3\r\nabc\r\n"[..], b"3\r\nab", b"3\r\nabc\r\n0\r\n", b"4\r\nabcde\r\n0\r\n\r\n"] {
            assert!(chunks(&mut &cut[..], &mut context()).is_err(), "{}", String::from_utf8_lossy(cut));
        }
    }
}
