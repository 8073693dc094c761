//! Why the function did not answer, and what its client is told instead.

use std::error::Error;
use std::io;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::outgoing::BodyError;
use super::set_duration;
use crate::answer::{Answer, INTERNAL, empty};
use crate::config::duration::GoStyle;
use crate::exchange::Exchange;
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
    #[error("request error: {}", root(.0))]
    Broken(hyper::Error),
    /// It has ended.
    #[error("request error: the function has terminated")]
    Gone,
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

/// The error below the others: hyper's own words leave the cause out.
fn root(error: &hyper::Error) -> &dyn Error {
    let mut root: &dyn Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        match error.source().and_then(|source| source.downcast_ref::<BodyError>()) {
            Some(BodyError::TooSlow) => Self::Body(BodyError::TooSlow),
            Some(_) => Self::Client(error),
            None => Self::Broken(error),
        }
    }
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Body(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::Client(_)) | Self::Client(_) | Self::Target => StatusCode::BAD_REQUEST,
            // 500 and not 502, since that is what of-watchdog's clients know.
            Self::Unreachable(_) | Self::Broken(_) | Self::Gone => StatusCode::INTERNAL_SERVER_ERROR,
        }
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
        exchange.finish(status);
        answer
    }
}
