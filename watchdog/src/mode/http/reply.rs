//! The body of the function's answer, with the connection that it comes over. It knows neither clients nor time limits.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::failure::Failure;
use super::link::{Link, LinkError, Pool};

/// The body of the function's answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// It came together with its head. May be empty.
    Whole(Bytes),
    /// It comes over a connection for one request at a time, which goes back when it has been read.
    Link(Box<Link>, Arc<Pool>),
    /// It comes over a connection that is driven by itself.
    Multiplexed(Incoming),
}

/// Why an answer did not come, or not to its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// A connection for one request at a time.
    Link(LinkError),
    /// Another one.
    Hyper(hyper::Error),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => write!(f, "{error}"),
            Self::Hyper(error) => write!(f, "{}", root(error)),
        }
    }
}

impl Error for Broken {}

/// The error below the others: hyper's own words leave the cause out.
pub(super) fn root(error: &hyper::Error) -> &dyn Error {
    let mut root: &dyn Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}

impl Reply {
    /// What comes over `link`, behind a head. If it has come, the link goes back to `pool` now.
    pub(super) fn new(mut link: Box<Link>, pool: &Arc<Pool>) -> Self {
        match link.take_whole() {
            Some(bytes) => {
                pool.give_back(link);
                Self::Whole(bytes)
            }
            None => Self::Link(link, Arc::clone(pool)),
        }
    }

    /// It has been read to its end.
    pub(super) fn complete(self) {
        if let Self::Link(link, pool) = self {
            pool.give_back(link);
        }
    }

    /// All of it, up to `limit` bytes.
    pub(super) async fn collect(mut self, limit: usize) -> Result<Bytes, Failure> {
        let collected = Limited::new(&mut self, limit).collect().await;
        let bytes = collected.map_err(|error| match error.downcast::<Broken>() {
            Ok(error) => Failure::Broken(*error),
            Err(_) => Failure::AnswerTooLarge(limit),
        })?;
        self.complete();
        Ok(bytes.to_bytes())
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Link(link, _) => {
                link.poll_answer(cx).map(|frame| frame.map(|frame| frame.map_err(Broken::Link)))
            }
            Self::Multiplexed(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Broken::Hyper)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Link(link, _) => link.rest() == Some(0),
            Self::Multiplexed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Link(link, _) => link.rest().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Multiplexed(body) => body.size_hint(),
        }
    }
}
