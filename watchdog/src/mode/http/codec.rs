//! HTTP/1.1 as the function is spoken to (RFC 9112): the head of a request is written, head and body of an answer are
//! read. Pure. What two readers could take for different messages is refused, since connections are used again.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri, Version};
use httparse::{EMPTY_HEADER, ParserConfig, Status};
use hyper::ext::ReasonPhrase;
use memchr::memchr;

/// Largest head of an answer, in bytes.
pub(crate) const MAX_HEAD: usize = 512 << 10;

/// The most headers of an answer.
const MOST_HEADERS: usize = 256;

/// Longest line with a chunk's size, in bytes: it may have extensions.
const MAX_SIZE_LINE: usize = 4096;

/// Largest trailers of an answer, in bytes.
const MAX_TRAILERS: usize = 16 << 10;

/// Why an answer can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// Its head or its trailers are not HTTP.
    #[error("the answer's head is not HTTP/1: {0}")]
    Syntax(httparse::Error),
    /// Its head is too large.
    #[error("the answer's head has more than {MAX_HEAD} bytes")]
    TooLarge,
    /// It says more than one length, or none.
    #[error("the answer's Content-Length is not one number")]
    Length,
    /// Its body is coded in a way that nobody asked for.
    #[error("the answer's Transfer-Encoding is not chunked alone, in HTTP/1.1")]
    Coding,
    /// It changes the protocol, for which nobody asked.
    #[error("the answer is 101, for which nobody asked")]
    Switch,
    /// A chunk's size or end is wrong.
    #[error("the answer has a chunk without a size, or without an end")]
    Chunk,
    /// The connection ended within it.
    #[error("connection closed before message completed")]
    Cut,
}

/// How the end of a request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    Bodiless,
    /// After so many bytes.
    Length(u64),
    /// By a chunk without bytes.
    Chunked,
}

impl Framing {
    /// What the headers of a request with a body say of its end.
    pub(crate) fn said(headers: &HeaderMap) -> Self {
        let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
        match length(headers) {
            Ok(Some(length)) if !is_chunked => Self::Length(length),
            _ => Self::Chunked,
        }
    }
}

/// Writes a request's head. The headers that tell its end are those of `framing`, whatever `headers` has.
pub(crate) fn write_head(
    out: &mut Vec<u8>,
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    framing: Framing,
) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            write_header(out, name, value);
        }
    }
    out.extend_from_slice(match framing {
        Framing::Bodiless => b"\r\n",
        Framing::Chunked => b"Transfer-Encoding: chunked\r\n\r\n",
        Framing::Length(_) => b"Content-Length: ",
    });
    if let Framing::Length(length) = framing {
        // A vector takes everything.
        let _ = write!(out, "{length}\r\n\r\n");
    }
}

/// Writes a header, its name with capitals: some functions still look for them.
pub(crate) fn write_header(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let mut is_first = true;
    out.extend(name.as_str().bytes().map(|byte| {
        let shown = if is_first { byte.to_ascii_uppercase() } else { byte };
        is_first = byte == b'-';
        shown
    }));
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status and headers.
    pub response: Response<()>,
    /// What reads its body.
    pub body: Decoder,
    /// Whether the connection ends with it.
    pub is_last: bool,
}

/// Takes the head of the final answer to a `method` out of `received`; `None` if it has not come yet. `scanned` bytes
/// are known not to hold its end.
pub fn read_head(
    received: &mut BytesMut,
    scanned: &mut usize,
    method: &Method,
) -> Result<Option<Head>, BadAnswer> {
    loop {
        let Some(end) = end_of_head(received, *scanned) else {
            // The end may begin with the last bytes.
            *scanned = received.len().saturating_sub(3);
            return if received.len() >= MAX_HEAD { Err(BadAnswer::TooLarge) } else { Ok(None) };
        };
        *scanned = 0;
        if end > MAX_HEAD {
            return Err(BadAnswer::TooLarge);
        }
        let (response, is_last) = parse(&received.split_to(end).freeze())?;
        match response.status().as_u16() {
            101 => return Err(BadAnswer::Switch),
            // Interim answers are for the watchdog, which asked for none.
            100..=199 => {}
            _ => return framed(response, is_last, method).map(Some),
        }
    }
}

/// Where the first empty line ends; none ends before `from`.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr(b'\n', bytes.get(at..)?)? + 1;
        match bytes.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
}

/// The answer's head, and whether the connection ends with it as far as it says so.
fn parse(head: &Bytes) -> Result<(Response<()>, bool), BadAnswer> {
    if !head.starts_with(b"HTTP/") {
        // The parser would skip empty lines, which could be another answer's.
        return Err(BadAnswer::Syntax(httparse::Error::Version));
    }
    let mut space = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut space) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(BadAnswer::Syntax(httparse::Error::NewLine)),
        Err(error) => return Err(BadAnswer::Syntax(error)),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = Response::new(());
    *response.status_mut() = status.ok_or(BadAnswer::Syntax(httparse::Error::Status))?;
    *response.version_mut() = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    if parsed.reason != response.status().canonical_reason()
        && let Some(reason) = parsed.reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok())
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = headers(head, parsed.headers)?;
    let is_last = match response.version() {
        Version::HTTP_11 => says(response.headers(), "close"),
        _ => says(response.headers(), "close") || !says(response.headers(), "keep-alive"),
    };
    Ok((response, is_last))
}

/// What was parsed in `head`, whose bytes the values share.
fn headers(head: &Bytes, parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, BadAnswer> {
    let mut headers = HeaderMap::with_capacity(parsed.len() + 1);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| BadAnswer::Syntax(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        headers.append(name, value.map_err(|_| BadAnswer::Syntax(httparse::Error::HeaderValue))?);
    }
    Ok(headers)
}

/// Whether `Connection` has `option`.
fn says(headers: &HeaderMap, option: &str) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(option))
}

/// RFC 9112, 6.3: where the answer's body ends.
fn framed(mut response: Response<()>, mut is_last: bool, method: &Method) -> Result<Head, BadAnswer> {
    let has_none = *method == Method::HEAD
        || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_old = response.version() == Version::HTTP_10;
    let headers = response.headers_mut();
    let body = if has_none {
        State::Ended
    } else if headers.contains_key(header::TRANSFER_ENCODING) {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let is_chunked =
            codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if is_old || !is_chunked || codings.next().is_some() {
            return Err(BadAnswer::Coding);
        }
        // 6.1: one that has both may be an attempt to smuggle, and the connection must end with it.
        is_last |= headers.remove(header::CONTENT_LENGTH).is_some();
        State::Size
    } else {
        match length(headers)? {
            Some(0) => State::Ended,
            Some(length) => State::Length(length),
            None => State::UntilEnd,
        }
    };
    is_last |= matches!(body, State::UntilEnd);
    Ok(Head { response, body: Decoder(body), is_last })
}

/// The number that all values of `Content-Length` agree on, if there are any.
fn length(headers: &HeaderMap) -> Result<Option<u64>, BadAnswer> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for number in value.to_str().map_err(|_| BadAnswer::Length)?.split(',') {
            let number = decimal(number.trim().as_bytes()).ok_or(BadAnswer::Length)?;
            if length.is_some_and(|known| known != number) {
                return Err(BadAnswer::Length);
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// Digits alone: `parse` would take a sign too.
fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// Reads the body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoder(State);

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// So many bytes, more than none, are still to come.
    Length(u64),
    /// All that comes until the connection ends.
    UntilEnd,
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk, more than none.
    Chunk(u64),
    /// The end of a chunk.
    ChunkEnd,
    /// Trailers, or the empty line in their place.
    Trailers,
    /// Nothing.
    Ended,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Some of its bytes.
    Bytes(Bytes),
    /// Its trailers; nothing comes after them.
    Trailers(HeaderMap),
    /// Nothing any more.
    End,
    /// It is still to be received.
    Wanting,
}

impl Decoder {
    /// What has nothing to read.
    pub(crate) const ENDED: Self = Self(State::Ended);

    /// Whether the body has been read to its end.
    pub fn is_ended(&self) -> bool {
        self.0 == State::Ended
    }

    /// How many bytes are still to come, if that was said.
    pub(crate) fn rest(&self) -> Option<u64> {
        match self.0 {
            State::Length(rest) => Some(rest),
            State::Ended => Some(0),
            _ => None,
        }
    }

    /// Takes what comes next out of `received`.
    pub fn decode(&mut self, received: &mut BytesMut) -> Result<Decoded, BadAnswer> {
        loop {
            let next = match self.0 {
                State::Ended => return Ok(Decoded::End),
                _ if received.is_empty() => return Ok(Decoded::Wanting),
                State::UntilEnd => return Ok(Decoded::Bytes(received.split().freeze())),
                State::Length(rest) => {
                    let bytes = take(received, rest);
                    let rest = rest - bytes.len() as u64;
                    self.0 = if rest == 0 { State::Ended } else { State::Length(rest) };
                    return Ok(Decoded::Bytes(bytes));
                }
                State::Chunk(rest) => {
                    let bytes = take(received, rest);
                    let rest = rest - bytes.len() as u64;
                    self.0 = if rest == 0 { State::ChunkEnd } else { State::Chunk(rest) };
                    return Ok(Decoded::Bytes(bytes));
                }
                State::Size => size(received)?,
                State::ChunkEnd => chunk_end(received)?,
                State::Trailers => match trailers(received)? {
                    Some(trailers) if trailers.is_empty() => Some(State::Ended),
                    Some(trailers) => {
                        self.0 = State::Ended;
                        return Ok(Decoded::Trailers(trailers));
                    }
                    None => None,
                },
            };
            match next {
                Some(next) => self.0 = next,
                None => return Ok(Decoded::Wanting),
            }
        }
    }

    /// The connection has ended: so has a body whose end is told in no other way.
    pub fn end(&mut self) -> Result<(), BadAnswer> {
        match self.0 {
            State::UntilEnd | State::Ended => {
                self.0 = State::Ended;
                Ok(())
            }
            _ => Err(BadAnswer::Cut),
        }
    }
}

/// Up to `most` bytes of `received`.
fn take(received: &mut BytesMut, most: u64) -> Bytes {
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(received.len());
    received.split_to(count).freeze()
}

/// What follows the line with a chunk's size (RFC 9112, 7.1), if it has come.
fn size(received: &mut BytesMut) -> Result<Option<State>, BadAnswer> {
    let line = &received[..received.len().min(MAX_SIZE_LINE)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() == MAX_SIZE_LINE { Err(BadAnswer::Chunk) } else { Ok(None) };
    };
    let line = line[..end].strip_suffix(b"\r").ok_or(BadAnswer::Chunk)?;
    // In an extension a carriage return alone could be the line's end to another reader.
    let (digits, extension) = line.split_at(line.iter().position(|byte| *byte == b';').unwrap_or(line.len()));
    let size = hexadecimal(digits.trim_ascii_end()).filter(|_| !extension.contains(&b'\r'));
    let size = size.ok_or(BadAnswer::Chunk)?;
    received.advance(end + 1);
    Ok(Some(if size == 0 { State::Trailers } else { State::Chunk(size) }))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| is_number)?, 16).ok()
}

fn chunk_end(received: &mut BytesMut) -> Result<Option<State>, BadAnswer> {
    match received[..] {
        [b'\r', b'\n', ..] => {
            received.advance(2);
            Ok(Some(State::Size))
        }
        [b'\r'] => Ok(None),
        _ => Err(BadAnswer::Chunk),
    }
}

/// The trailers, if all of them have come.
fn trailers(received: &mut BytesMut) -> Result<Option<HeaderMap>, BadAnswer> {
    if received.starts_with(b"\r\n") {
        received.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let Some(end) = end_of_head(received, 0) else {
        return if received.len() > MAX_TRAILERS { Err(BadAnswer::TooLarge) } else { Ok(None) };
    };
    let block = received.split_to(end).freeze();
    let mut space = [EMPTY_HEADER; MOST_HEADERS];
    match httparse::parse_headers(&block, &mut space) {
        Ok(Status::Complete((length, parsed))) if length == block.len() => headers(&block, parsed).map(Some),
        Ok(_) => Err(BadAnswer::Syntax(httparse::Error::NewLine)),
        Err(error) => Err(BadAnswer::Syntax(error)),
    }
}

#[cfg(test)]
mod tests;
