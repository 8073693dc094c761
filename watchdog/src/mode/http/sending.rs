//! A request on its way to the function: head and body as bytes, written as the connection takes them. It reads nothing,
//! and never says that a body is complete when it is not.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Request;
use http::header::{self, HeaderMap, HeaderName};
use hyper::body::{Body, Frame};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::codec::{Framing, write_head, write_header};
use super::link::LinkError;
use super::outgoing::Outgoing;
use crate::pieces::poll_write_pieces;

/// What ends a chunk.
const CHUNK_END: Bytes = Bytes::from_static(b"\r\n");

/// What ends a chunk that is the last one, and the body.
const LAST_CHUNK_END: Bytes = Bytes::from_static(b"\r\n0\r\n\r\n");

/// What ends a body whose last chunk has ended.
const BODY_END: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// Fields that would change how the message before them is read (RFC 9110, 6.5.1).
const NO_TRAILERS: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// A request that is being sent, or the last one that was.
#[derive(Debug)]
pub(super) struct Sending {
    /// The head, or a chunk's size. What is sent first.
    head: Vec<u8>,
    /// How much of that has been written.
    written: usize,
    /// Bytes of the body.
    chunk: Bytes,
    /// What comes after them.
    tail: Bytes,
    /// The rest of the body; `None` when all of it has been taken.
    body: Option<Outgoing>,
    framing: Framing,
    /// The trailers that were announced.
    trailers: Vec<HeaderName>,
    has_begun: bool,
}

impl Sending {
    /// Nothing to send.
    pub(super) fn nothing() -> Self {
        Self {
            head: Vec::new(),
            written: 0,
            chunk: Bytes::new(),
            tail: Bytes::new(),
            body: None,
            framing: Framing::Bodiless,
            trailers: Vec::new(),
            has_begun: false,
        }
    }

    /// Begins with `request`, and takes its body out.
    pub(super) fn begin(&mut self, request: &mut Request<Outgoing>) {
        let body = mem::replace(request.body_mut(), Outgoing::Empty);
        let headers = request.headers();
        self.framing = match &body {
            Outgoing::Empty | Outgoing::Whole(None) if headers.contains_key(header::CONTENT_LENGTH) => {
                Framing::Length(0)
            }
            Outgoing::Empty | Outgoing::Whole(None) => Framing::Bodiless,
            Outgoing::Whole(Some(bytes)) => Framing::Length(bytes.len() as u64),
            Outgoing::Stream(_) => Framing::said(headers),
        };
        self.trailers = announced(headers);
        self.clear();
        write_head(&mut self.head, request.method(), request.uri(), headers, self.framing);
        self.body = (!body.is_end_stream()).then_some(body);
        self.has_begun = false;
    }

    /// Whether something of the request has been written.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The body of a request of which nothing has been written, to be sent elsewhere, if nothing was taken out of it.
    pub(super) fn take_back(&mut self) -> Option<Outgoing> {
        let is_untouched = !self.has_begun && self.chunk.is_empty() && self.tail.is_empty();
        is_untouched.then(|| self.body.take().unwrap_or(Outgoing::Empty))
    }

    /// Whether all of the request has been written.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.is_flushed()
    }

    /// Forgets what has not been written: the function wants no more of it.
    pub(super) fn give_up(&mut self) {
        self.body = None;
        self.clear();
    }

    fn clear(&mut self) {
        self.head.clear();
        self.written = 0;
        self.chunk = Bytes::new();
        self.tail = Bytes::new();
    }

    fn is_flushed(&self) -> bool {
        self.written == self.head.len() && self.chunk.is_empty() && self.tail.is_empty()
    }

    /// Writes what can be written now; ready when that is all of the request.
    pub(super) fn poll(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkError>> {
        loop {
            if self.body.is_some() && self.chunk.is_empty() && self.tail.is_empty() {
                // Bytes of the body that are there go out together with the head.
                if let Poll::Ready(taken) = self.poll_body(cx) {
                    taken?;
                }
            }
            if self.is_flushed() {
                return if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let count = ready!(self.poll_write(stream, cx)).map_err(LinkError::Io)?;
            self.advance(count);
        }
    }

    /// Takes the next bytes of the body, or its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(())) };
            let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) else {
                return Poll::Ready(self.end(None));
            };
            let frame = frame.map_err(LinkError::Body)?;
            let is_last = body.is_end_stream();
            match frame.into_data() {
                Ok(bytes) if bytes.is_empty() && !is_last => {}
                Ok(bytes) => return Poll::Ready(self.add(bytes, is_last)),
                Err(frame) => return Poll::Ready(self.end(Frame::into_trailers(frame).ok())),
            }
        }
    }

    /// `bytes` come next.
    fn add(&mut self, bytes: Bytes, is_last: bool) -> Result<(), LinkError> {
        if bytes.is_empty() {
            return self.end(None);
        }
        match &mut self.framing {
            Framing::Chunked => {
                self.reuse_head();
                self.head.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
                self.tail = if is_last { LAST_CHUNK_END } else { CHUNK_END };
                self.chunk = bytes;
            }
            Framing::Length(rest) => {
                *rest = rest.checked_sub(bytes.len() as u64).ok_or(LinkError::Length)?;
                self.chunk = bytes;
                if is_last {
                    return self.end(None);
                }
            }
            Framing::Bodiless => return Err(LinkError::Length),
        }
        if is_last {
            self.body = None;
        }
        Ok(())
    }

    /// Nothing comes any more, but for `trailers`.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), LinkError> {
        self.body = None;
        match self.framing {
            Framing::Chunked => {
                self.tail = match trailers {
                    Some(trailers) => self.with_trailers(&trailers),
                    None => BODY_END,
                };
            }
            Framing::Length(rest) if rest > 0 => return Err(LinkError::Length),
            Framing::Length(_) | Framing::Bodiless => {}
        }
        Ok(())
    }

    fn with_trailers(&self, trailers: &HeaderMap) -> Bytes {
        let mut tail = b"0\r\n".to_vec();
        for (name, value) in trailers {
            if self.trailers.contains(name) && !NO_TRAILERS.contains(name) {
                write_header(&mut tail, name, value);
            }
        }
        tail.extend_from_slice(b"\r\n");
        tail.into()
    }

    /// Makes room behind what has not been written.
    fn reuse_head(&mut self) {
        if self.written == self.head.len() {
            self.head.clear();
            self.written = 0;
        }
    }

    fn poll_write(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let head = &self.head[self.written..];
        let count = if self.chunk.is_empty() && self.tail.is_empty() {
            ready!(Pin::new(stream).poll_write(cx, head))?
        } else {
            let slices = [IoSlice::new(head), IoSlice::new(&self.chunk), IoSlice::new(&self.tail)];
            ready!(poll_write_pieces(stream, cx, &slices))?
        };
        self.has_begun = true;
        if count == 0 { Poll::Ready(Err(io::ErrorKind::WriteZero.into())) } else { Poll::Ready(Ok(count)) }
    }

    /// `count` bytes have been written.
    fn advance(&mut self, mut count: usize) {
        let of_head = count.min(self.head.len() - self.written);
        self.written += of_head;
        count -= of_head;
        for bytes in [&mut self.chunk, &mut self.tail] {
            let part = count.min(bytes.len());
            bytes.advance(part);
            count -= part;
        }
    }
}

/// The names in `Trailer`.
fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::TRAILER).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}
