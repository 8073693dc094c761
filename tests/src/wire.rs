//! HTTP/1.1 as it is on the wire, piece by piece: nothing is hidden by a library, held back or sent twice. Of what is
//! read, only heads are kept.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest line of a head, in bytes.
const LONGEST_LINE: u64 = 64 << 10;

/// Room for what is read at once, in bytes.
const ROOM: usize = 64 << 10;

/// An open connection of a client.
#[derive(Debug)]
pub struct Connection {
    /// Where requests are written.
    pub writer: TcpStream,
    /// Where answers are read.
    pub reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to `address`. Nothing takes longer than `deadline` to come or to go.
    pub fn open(address: SocketAddr, deadline: Duration) -> Result<Self> {
        let writer = TcpStream::connect_timeout(&address, deadline).context("can't connect")?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(deadline))?;
        writer.set_write_timeout(Some(deadline))?;
        let reader = BufReader::with_capacity(ROOM, writer.try_clone()?);
        Ok(Self { writer, reader })
    }
}

/// The head of an answer.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Such as `HTTP/1.1`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// Names as they came, and values.
    pub headers: Vec<(String, String)>,
}

/// How the end of an answer's body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Bodiless,
    /// After so many bytes.
    Length(u64),
    /// By a chunk without bytes.
    Chunks,
    /// By the connection's end.
    Connection,
}

/// The connection ended before the body did, after so many bytes of it.
#[derive(Clone, Copy, Debug)]
pub struct Cut(pub u64);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection ended before the body, after {} bytes", self.0)
    }
}

impl std::error::Error for Cut {}

impl Head {
    /// Reads the next one, whatever its status.
    pub fn read(reader: &mut impl BufRead) -> Result<Self> {
        let first = line(reader)?.context("empty reply: the connection ended without an answer")?;
        let mut words = first.splitn(3, ' ');
        let (version, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let status = status.parse().with_context(|| format!("no answer: {first:?}"))?;
        let mut head = Self { version: version.to_string(), status, headers: Vec::new() };
        loop {
            let line = line(reader)?.context("the connection ended within a head")?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
            head.headers.push((name.to_string(), value.trim().to_string()));
        }
    }

    /// Reads the next one that is not interim, as `100 Continue` is.
    pub fn read_final(reader: &mut impl BufRead) -> Result<Self> {
        loop {
            let head = Self::read(reader)?;
            if head.status == 101 || head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// How the body of this answer to a `method` ends.
    pub fn framing(&self, method: &str) -> Result<Framing> {
        if method == "HEAD" || matches!(self.status, 101 | 204 | 304) {
            return Ok(Framing::Bodiless);
        }
        match (self.header("transfer-encoding"), self.header("content-length")) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunks),
            (Some(coding), _) => bail!("transfer-encoding is {coding:?}"),
            (None, Some(length)) => Ok(Framing::Length(length.parse().context("content-length")?)),
            (None, None) => Ok(Framing::Connection),
        }
    }

    /// Whether the connection can take another request after this answer to a `method`.
    pub fn is_reusable(&self, method: &str) -> bool {
        let is_closed = self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        !is_closed && self.framing(method).is_ok_and(|framing| framing != Framing::Connection)
    }
}

/// Reads a body to its end and hands on each piece; how many bytes there were. The error is [`Cut`] if the connection
/// ended before.
pub fn read_body(reader: &mut impl BufRead, framing: Framing, mut piece: impl FnMut(&[u8])) -> Result<u64> {
    match framing {
        Framing::Bodiless => Ok(0),
        Framing::Length(length) => take(reader, length, &mut piece),
        Framing::Chunks => chunks(reader, &mut piece),
        Framing::Connection => rest(reader, &mut piece),
    }
}

/// A line without its end; `None` if the connection ends before the line does.
fn line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line).or_else(at_reset).context("no answer in time")?;
    ensure!((line.len() as u64) < LONGEST_LINE, "a line has more than {LONGEST_LINE} bytes");
    let is_whole = line.ends_with(b"\n");
    Ok(is_whole.then(|| String::from_utf8_lossy(line.trim_ascii_end()).into_owned()))
}

/// A reset ends a connection like any other end.
fn at_reset(error: io::Error) -> io::Result<usize> {
    if error.kind() == io::ErrorKind::ConnectionReset { Ok(0) } else { Err(error) }
}

/// What has come; nothing at the connection's end.
fn come(reader: &mut impl BufRead) -> Result<&[u8]> {
    match reader.fill_buf() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(&[]),
        bytes => bytes.context("the answer is not complete in time"),
    }
}

fn take(reader: &mut impl BufRead, length: u64, piece: &mut impl FnMut(&[u8])) -> Result<u64> {
    let mut left = length;
    while left > 0 {
        let bytes = come(reader)?;
        if bytes.is_empty() {
            bail!(Cut(length - left));
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        piece(&bytes[..count]);
        reader.consume(count);
        left -= count as u64;
    }
    Ok(length)
}

fn chunks(reader: &mut impl BufRead, piece: &mut impl FnMut(&[u8])) -> Result<u64> {
    let mut length = 0;
    loop {
        let size = line(reader)?.ok_or(Cut(length))?;
        let size = u64::from_str_radix(size.split(';').next().unwrap_or_default(), 16)
            .with_context(|| format!("no chunk: {size:?}"))?;
        if size == 0 {
            // Trailers, up to an empty line.
            while !line(reader)?.ok_or(Cut(length))?.is_empty() {}
            return Ok(length);
        }
        length += take(reader, size, piece)?;
        ensure!(line(reader)?.ok_or(Cut(length))?.is_empty(), "a chunk is longer than it says");
    }
}

fn rest(reader: &mut impl BufRead, piece: &mut impl FnMut(&[u8])) -> Result<u64> {
    let mut length = 0;
    loop {
        let bytes = come(reader)?;
        if bytes.is_empty() {
            return Ok(length);
        }
        piece(bytes);
        let count = bytes.len();
        reader.consume(count);
        length += count as u64;
    }
}

/// Writes a piece of a body: as a chunk, or as it is.
pub fn write_piece(writer: &mut impl Write, piece: &[u8], is_chunk: bool) -> io::Result<()> {
    if !is_chunk {
        return writer.write_all(piece);
    }
    writer.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    writer.write_all(piece)?;
    writer.write_all(b"\r\n")
}

/// What ends a body in chunks.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: &str, framing: Framing) -> Result<Vec<u8>> {
        let mut got = Vec::new();
        read_body(&mut bytes.as_bytes(), framing, |piece| got.extend_from_slice(piece))?;
        Ok(got)
    }

    #[test]
    fn a_body_ends_as_its_head_says() {
        assert_eq!(body("abcd", Framing::Length(3)).unwrap(), b"abc");
        assert_eq!(body("abcd", Framing::Connection).unwrap(), b"abcd");
        assert_eq!(body("abcd", Framing::Bodiless).unwrap(), b"");
        assert_eq!(body("1;x\r\na\r\n2\r\nbc\r\n0\r\nx: y\r\n\r\n", Framing::Chunks).unwrap(), b"abc");
    }

    #[test]
    fn a_body_that_is_cut_is_an_error() {
        for (bytes, framing) in [
            ("abc", Framing::Length(4)),
            ("", Framing::Chunks),
            ("3\r\nabc\r\n", Framing::Chunks),
            ("3\r\nab", Framing::Chunks),
            ("3\r\nabc\r\n0\r\n", Framing::Chunks),
        ] {
            assert!(body(bytes, framing).unwrap_err().is::<Cut>(), "{bytes:?}");
        }
        assert!(body("4\r\nabcde\r\n0\r\n\r\n", Framing::Chunks).is_err());
    }
}
