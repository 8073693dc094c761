//! What the cases send, and what they look at in answers: bytes, times, and whether the body came to its end. Both
//! directions run at once, as with a browser or curl.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::wire::{self, Cut, Head, LAST_CHUNK, read_body, write_piece};

/// No wait is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub(crate) is_complete: bool,
    /// Time to its end.
    pub(crate) took: Duration,
    /// Times at which parts of the body came.
    pub(crate) parts: Vec<Duration>,
}

impl Answer {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {:?}", self.text()))
    }

    /// Fails unless the status is `wanted`.
    pub(crate) fn expect(self, wanted: u16) -> Result<Self> {
        ensure!(self.status == wanted, "status is {}, wanted {wanted}; {self:?}", self.status);
        Ok(self)
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    inner: wire::Connection,
    start: Instant,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self { inner: wire::Connection::open(address, DEADLINE)?, start: Instant::now() })
    }

    /// Sends bytes, on a thread of their own.
    pub(crate) fn send(&self, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let (mut stream, bytes) = (self.inner.writer.try_clone()?, bytes.into());
        if bytes.len() < 10_000 {
            return Ok(stream.write_all(&bytes)?);
        }
        // The server may answer, and end the connection, before it has read all.
        thread::spawn(move || drop(stream.write_all(&bytes)));
        Ok(())
    }

    /// All bytes until the connection ends.
    pub(crate) fn rest(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        match self.inner.reader.read_to_end(&mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                Err(error).context("no answer in time")
            }
            _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Bytes until they end with `end`.
    pub(crate) fn until(&mut self, end: &[u8]) -> Result<String> {
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while !bytes.ends_with(end) {
            let shown = || format!("the connection ended: {:?}", String::from_utf8_lossy(&bytes));
            self.inner.reader.read_exact(&mut byte).with_context(shown)?;
            bytes.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The next answer, to a request with this method.
    pub(crate) fn answer(&mut self, method: &str) -> Result<Answer> {
        let reader = &mut self.inner.reader;
        let head = Head::read_final(reader)?;
        let framing = head.framing(method)?;
        let Head { status, headers, .. } = head;
        let (mut body, mut parts) = (Vec::new(), Vec::new());
        let outcome = read_body(reader, framing, |piece| {
            body.extend_from_slice(piece);
            parts.push(self.start.elapsed());
        });
        let is_complete = match outcome {
            Ok(_) => true,
            Err(error) if error.is::<Cut>() => false,
            Err(error) => return Err(error),
        };
        let took = self.start.elapsed();
        Ok(Answer { status, headers, body, is_complete, took, parts })
    }
}

/// A request that is put together.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    is_chunked: bool,
}

impl Request {
    /// A request without a body.
    pub(crate) fn new(method: &str, target: &str) -> Self {
        let (method, target) = (method.to_string(), target.to_string());
        Self { method, target, headers: Vec::new(), body: None, is_chunked: false }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    /// Sets a body, sent with its length.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends the body in chunks of `size`.
    pub(crate) fn chunked(mut self) -> Self {
        self.is_chunked = true;
        self
    }

    /// The request as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes.push_str("Host: fn.example\r\n");
        }
        bytes.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        let body = self.body.as_deref().unwrap_or_default();
        match (self.is_chunked, &self.body) {
            (true, _) => bytes.push_str("Transfer-Encoding: chunked\r\n"),
            (false, Some(body)) => bytes.extend([format!("Content-Length: {}\r\n", body.len())]),
            (false, None) => {}
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        for piece in body.chunks(30_000) {
            // A vector takes everything.
            let _ = write_piece(&mut bytes, piece, self.is_chunked);
        }
        if self.is_chunked {
            bytes.extend_from_slice(LAST_CHUNK);
        }
        bytes
    }

    /// Sends it over a connection of its own.
    pub(crate) fn send(&self, address: SocketAddr) -> Result<Answer> {
        let mut connection = Connection::open(address)?;
        connection.send(self.bytes())?;
        connection.answer(&self.method)
    }
}
