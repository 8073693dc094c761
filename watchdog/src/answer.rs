//! The body of every answer, and the answers that the watchdog gives itself.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::mode::http::{Broken, Cut, Relay};

/// Says that the watchdog gave the answer, not the function.
pub(crate) const INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// None.
    Empty,
    /// Known text.
    Text(Option<Bytes>),
    /// The function's.
    Relay(Box<Relay>),
    /// The function's, which would not change the protocol.
    Refusal(Incoming),
    /// What comes from a process or a file.
    Other(Pin<Box<dyn Other>>),
}

/// A body that comes from a process or a file.
pub(crate) trait Other: Body<Data = Bytes, Error = Cut> + Send + std::fmt::Debug {}

impl<B: Body<Data = Bytes, Error = Cut> + Send + std::fmt::Debug> Other for B {}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Relay(relay) => Pin::new(&mut **relay).poll_frame(cx),
            Self::Refusal(body) => {
                let broken = |error| Cut::Broken(Broken::Hyper(error));
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(broken)))
            }
            Self::Other(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Text(None) => true,
            Self::Text(Some(_)) => false,
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Refusal(body) => body.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Text(None) => SizeHint::with_exact(0),
            Self::Text(Some(text)) => SizeHint::with_exact(text.len() as u64),
            Self::Relay(relay) => relay.size_hint(),
            Self::Refusal(body) => body.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Answer> {
    let mut answer = Response::new(Answer::Empty);
    *answer.status_mut() = status;
    answer
}

/// An answer with a text.
pub(crate) fn text(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Answer> {
    let mut answer = Response::new(Answer::Text(Some(text.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
