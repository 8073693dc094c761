//! Why the function did not answer, and what its client is told instead.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::link::LinkError;
use super::outgoing::BodyError;
use super::reply::{Broken, root};
use super::set_duration;
use crate::answer::{Answer, INTERNAL, empty};
use crate::config::duration::GoStyle;
use crate::exchange::Exchange;
use crate::health::Started;
use crate::logs::log;

/// How long a request may take, and which variable says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// Time from the request's head.
    pub(crate) span: Duration,
    /// The variable.
    pub(crate) field: &'static str,
}

/// Why there is no answer of the function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It did not answer in time.
    #[error("killed due to {}: {}", .0.field, GoStyle(.0.span))]
    Late(Limit),
    /// It can't be reached.
    #[error("request error: {0}")]
    Unreachable(io::Error),
    /// It ended the connection, or did not speak HTTP.
    #[error("request error: {0}")]
    Broken(Broken),
    /// It is still starting, and too many requests wait for it.
    #[error("request error: too many requests wait for the function to start")]
    Crowded,
    /// It has ended.
    #[error("request error: the function has terminated")]
    Gone,
    /// Its answer is too large to be split.
    #[error("request error: the answer to a batch has more than {0} bytes")]
    AnswerTooLarge(usize),
    /// The batch that the request was part of failed.
    #[error("{0}")]
    Batch(Arc<Failure>),
    /// The request's target can't be put behind the base path.
    #[error("request error: the target can't be put behind upstream_url")]
    Target,
    /// The client went away, or sent what is not HTTP.
    #[error("request error: {}", root(.0))]
    Client(hyper::Error),
    /// The request's body did not arrive.
    #[error("request error: {0}")]
    Body(#[from] BodyError),
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        match error.source().and_then(|source| source.downcast_ref::<BodyError>()) {
            Some(BodyError::TooSlow) => Self::Body(BodyError::TooSlow),
            Some(_) => Self::Client(error),
            None => Self::Broken(Broken::Hyper(error)),
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Body(error) => Self::Body(error),
            error => Self::Broken(Broken::Link(error)),
        }
    }
}

impl Started {
    /// Nothing if the function is up.
    pub(crate) fn or_failure(self) -> Result<(), Failure> {
        match self {
            Self::Up => Ok(()),
            Self::Gone => Err(Failure::Gone),
            Self::Crowded => Err(Failure::Crowded),
        }
    }
}

impl Failure {
    /// The function took longer than `exec_timeout`, which is `span`.
    pub(crate) fn late(span: Duration) -> Self {
        Self::Late(Limit { span, field: "exec_timeout" })
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Body(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::Client(_)) | Self::Client(_) | Self::Target => StatusCode::BAD_REQUEST,
            Self::Batch(failure) => failure.status(),
            // 500 and not 502, since that is what of-watchdog's clients know.
            Self::Unreachable(_) | Self::Broken(_) | Self::Gone | Self::AnswerTooLarge(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// As of-watchdog answers for events: the client is told nothing; ends the exchange.
    pub(crate) fn hidden(&self, exchange: Exchange) -> Response<Answer> {
        log!("Upstream HTTP {self}");
        exchange.finish(StatusCode::OK);
        empty(StatusCode::OK)
    }

    /// What the client is told; ends the exchange.
    pub(crate) fn answer(&self, exchange: Exchange) -> Response<Answer> {
        let status = self.status();
        log!("Upstream HTTP {self}");
        let mut answer = empty(status);
        let headers = answer.headers_mut();
        headers.insert(INTERNAL, HeaderValue::from_static("of-watchdog"));
        set_duration(headers, exchange.elapsed());
        if matches!(self, Self::Body(_) | Self::Client(_)) {
            // The rest of the body may still come, and is no request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, Self::Crowded) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        exchange.finish(status);
        answer
    }
}
