//! A client that sends bytes and reads what an HTTP/1 server makes of them, so that nothing is hidden by a library. Both
//! directions run at once, as with a browser or curl.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// No wait is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub(crate) is_complete: bool,
    /// Time to its head, and to its end.
    pub(crate) head_after: Duration,
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
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    start: Instant,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).context("can't connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), start: Instant::now() })
    }

    /// Sends bytes, on a thread of their own.
    pub(crate) fn send(&self, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let (mut stream, bytes) = (self.stream.try_clone()?, bytes.into());
        if bytes.len() < 10_000 {
            return Ok(stream.write_all(&bytes)?);
        }
        // The server may answer, and end the connection, before it has read all.
        thread::spawn(move || drop(stream.write_all(&bytes)));
        Ok(())
    }

    /// Reads what comes next into the buffer; whether there was anything.
    fn fill(&mut self) -> Result<bool> {
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error).context("no answer in time"),
        }
    }

    /// All bytes until the connection ends.
    pub(crate) fn rest(&mut self) -> Result<String> {
        while self.fill()? {}
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned())
    }

    /// Bytes until they end with `end`.
    pub(crate) fn until(&mut self, end: &[u8]) -> Result<String> {
        while !self.buffer.ends_with(end) {
            ensure!(self.fill()?, "the connection ended: {:?}", String::from_utf8_lossy(&self.buffer));
        }
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned())
    }

    /// Takes bytes from the buffer up to and with `end`; `None` if the connection ends first.
    fn line(&mut self, end: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut from = 0;
        loop {
            let found = self.buffer[from..].windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                return Ok(Some(self.buffer.drain(..from + at + end.len()).collect()));
            }
            from = self.buffer.len().saturating_sub(end.len() - 1);
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The next answer, to a request with this method.
    pub(crate) fn answer(&mut self, method: &str) -> Result<Answer> {
        let mut answer = Answer::default();
        loop {
            let Some(head) = self.line(b"\r\n\r\n")? else {
                bail!("empty reply: the connection ended without an answer")
            };
            answer.head(&head)?;
            if answer.status != 100 {
                break;
            }
        }
        answer.head_after = self.start.elapsed();
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let is_chunked =
            answer.header("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked"));
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            answer.is_complete = true;
        } else if is_chunked {
            self.chunks(&mut answer)?;
        } else {
            self.plain(&mut answer, length)?;
        }
        answer.took = self.start.elapsed();
        Ok(answer)
    }

    fn chunks(&mut self, answer: &mut Answer) -> Result<()> {
        loop {
            let Some(line) = self.line(b"\r\n")? else { return Ok(()) };
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim().split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("no chunk: {size:?}"))?;
            while self.buffer.len() < size + 2 {
                if !self.fill()? {
                    return Ok(());
                }
            }
            answer.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                answer.is_complete = true;
                return Ok(());
            }
            answer.parts.push(self.start.elapsed());
        }
    }

    fn plain(&mut self, answer: &mut Answer, length: Option<usize>) -> Result<()> {
        loop {
            let wanted = length.unwrap_or(usize::MAX) - answer.body.len();
            let count = wanted.min(self.buffer.len());
            answer.body.extend(self.buffer.drain(..count));
            if Some(answer.body.len()) == length {
                answer.is_complete = true;
                return Ok(());
            }
            if !self.fill()? {
                answer.is_complete = length.is_none();
                return Ok(());
            }
        }
    }
}

impl Answer {
    fn head(&mut self, head: &[u8]) -> Result<()> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.splitn(3, ' ');
        self.version = words.next().unwrap_or_default().to_string();
        let status = words.next().unwrap_or_default();
        self.status = status.parse().with_context(|| format!("no answer: {first:?}"))?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        self.headers = headers.map(|(name, value)| (name.to_string(), value.trim().to_string())).collect();
        Ok(())
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
        if !self.is_chunked {
            bytes.extend_from_slice(body);
            return bytes;
        }
        for chunk in body.chunks(30_000) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }

    /// Sends it over a connection of its own.
    pub(crate) fn send(&self, address: SocketAddr) -> Result<Answer> {
        let mut connection = Connection::open(address)?;
        connection.send(self.bytes())?;
        connection.answer(&self.method)
    }
}
