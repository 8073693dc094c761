//! The request as the function gets it: which headers are passed on, and the body, streamed or held back.
//! It connects to nothing.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1). `TE` and `Trailer` are passed on, as
/// of-watchdog does, unless `Connection` lists them. That one is the first.
const OF_THE_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the headers that belong to the connection they came on.
pub fn strip_connection(headers: &mut HeaderMap) {
    // Most messages have none or one, and to look all of them up takes longer than to look at all headers.
    let found = OF_THE_CONNECTION.map(|name| headers.keys().any(|key| *key == name));
    if found[0] {
        for name in listed(headers) {
            headers.remove(name);
        }
    }
    for name in OF_THE_CONNECTION.into_iter().zip(found).filter_map(|(name, found)| found.then_some(name)) {
        headers.remove(name);
    }
}

/// The headers that `Connection` lists.
fn listed(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(str::trim);
    // What nearly all list, which is removed anyway and no header.
    let names = names.filter(|name| !matches!(*name, "keep-alive" | "close"));
    // Framing headers are ours to decide; a client can't have them dropped.
    let is_ours = |name: &HeaderName| *name == header::CONTENT_LENGTH || *name == header::HOST;
    names.filter_map(|name| name.parse().ok()).filter(|name| !is_ours(name)).collect()
}

/// Why a request's body did not reach the function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It took longer than `read_timeout`.
    #[error("the request body was not complete within read_timeout")]
    TooSlow,
    /// The client went away, or sent what is not HTTP.
    #[error("the request body could not be read: {0}")]
    Client(hyper::Error),
    /// It is larger than what may be held back.
    #[error("the request body has more than {0} bytes, allowed is http_buffer_req_limit")]
    TooLarge(u64),
}

/// The body of a request on its way to the function.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// None.
    Empty,
    /// It was held back, and goes out with its length.
    Whole(Option<Bytes>),
    /// It goes out as it comes in; when the function does not read, the client has to wait.
    Stream(Stream),
}

/// A body as it comes in, up to a deadline.
#[derive(Debug)]
pub(crate) struct Stream {
    body: Incoming,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// `body`, which must be complete by `deadline`.
    pub(crate) fn new(body: Incoming, deadline: Option<Instant>) -> Self {
        Self { body, deadline, timer: None }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)));
        }
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().poll(cx).map(|()| Some(Err(BodyError::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => Pin::new(stream).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(_)) => false,
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// Makes `request` into what the function gets. With a `buffer`, the body goes out with its length, and is held back
/// if the client did not say it; else it goes out chunked, as of-watchdog sends it.
pub(crate) async fn prepare(
    mut request: Request<Stream>,
    buffer: Option<u64>,
) -> Result<Request<Outgoing>, BodyError> {
    let is_empty = request.body().is_end_stream();
    let headers = request.headers_mut();
    strip_connection(headers);
    // Answered here: the client gets its 100 when the body is first read.
    headers.remove(header::EXPECT);
    if is_empty {
        headers.remove(header::CONTENT_LENGTH);
        let (mut parts, _) = request.into_parts();
        if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        return Ok(Request::from_parts(parts, Outgoing::Empty));
    }
    match buffer {
        None => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Ok(request.map(Outgoing::Stream))
        }
        Some(_) if headers.contains_key(header::CONTENT_LENGTH) => Ok(request.map(Outgoing::Stream)),
        Some(limit) => hold_back(request, limit).await,
    }
}

/// Makes `request` into one whose body is whole, up to `limit` bytes.
pub(crate) async fn hold_back(request: Request<Stream>, limit: u64) -> Result<Request<Outgoing>, BodyError> {
    let (mut parts, body) = request.into_parts();
    let body = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX)).collect().await;
    let bytes = body.map_err(|error| too_large_or(error, limit))?.to_bytes();
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    Ok(Request::from_parts(parts, Outgoing::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))))
}

fn too_large_or(error: Box<dyn std::error::Error + Send + Sync>, limit: u64) -> BodyError {
    match error.downcast::<BodyError>() {
        Ok(error) => *error,
        Err(error) => {
            debug_assert!(error.is::<LengthLimitError>());
            BodyError::TooLarge(limit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_of_the_connection_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine, content-length"),
            ("x-mine", "1"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("te", "trailers"),
            ("content-length", "5"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_connection(&mut headers);
        let mut names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "te", "x-a", "x-a"]);
    }
}
