//! The function as a server: where it listens, which protocol it speaks, and the connections to it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};

use super::Upstream;
use super::failure::Failure;
use super::h2c::Multiplexed;
use super::link::{Link, Pool};
use super::outgoing::Outgoing;
use crate::health::Health;

/// The running function.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(super) upstream: Upstream,
    pub(super) health: Arc<Health>,
    pool: Arc<Pool>,
    /// Where the function speaks HTTP/2.
    multiplexed: Option<Multiplexed>,
}

/// What an answer's body comes over; kept until the body is read.
#[derive(Debug)]
pub(crate) enum Via {
    /// A connection for one request at a time, and where it goes when the answer is read.
    Link(Box<Link>, Arc<Pool>),
    /// A connection that is driven by itself.
    Multiplexed,
}

impl Via {
    /// Reads and writes what can be read and written now.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Self::Link(link, _) = self {
            link.drive(cx);
        }
    }

    /// The answer has been read.
    pub(super) fn complete(self) {
        if let Self::Link(link, pool) = self {
            pool.give_back(*link);
        }
    }
}

impl Backend {
    /// The function at `upstream`. Inside a runtime only.
    pub(super) fn new(upstream: Upstream, is_h2c: bool, health: Arc<Health>) -> Arc<Self> {
        let multiplexed = is_h2c.then(Multiplexed::default);
        Arc::new(Self { upstream, health, pool: Pool::new(), multiplexed })
    }

    /// Sends `request` once the function is up, and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Via), Failure> {
        self.health.started().await.or_failure()?;
        if let Some(connection) = &self.multiplexed {
            let answer = Box::pin(connection.send(self.upstream.authority(), request)).await?;
            return Ok((answer, Via::Multiplexed));
        }
        let (answer, link) = self.send_alone(request).await?;
        Ok((answer, Via::Link(Box::new(link), Arc::clone(&self.pool))))
    }

    async fn send_alone(
        &self,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Link), Failure> {
        *request.version_mut() = Version::HTTP_11;
        while let Some(mut link) = self.pool.take() {
            let spare = spare(&request);
            match link.send(request).await {
                Ok(answer) => return Ok((answer, link)),
                // The function may end an idle connection just when the request is sent. What it has not seen, and
                // what changes nothing when it is seen twice, goes out again.
                Err(mut error) => match error.take_message().or(spare) {
                    Some(again) => request = again,
                    None => return Err(Failure::from(error.into_error())),
                },
            }
        }
        let mut link = Link::open(self.upstream.authority()).await.map_err(Failure::Unreachable)?;
        match link.send(request).await {
            Ok(answer) => Ok((answer, link)),
            Err(error) => Err(Failure::from(error.into_error())),
        }
    }
}

/// All of an answer's body, up to `limit` bytes.
pub(super) async fn collect(body: Incoming, via: Via, limit: usize) -> Result<Bytes, Failure> {
    let mut driven = Driven { body, via };
    let collected = Limited::new(&mut driven, limit).collect().await;
    let bytes = collected.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => Failure::Broken(*error),
        Err(_) => Failure::AnswerTooLarge(limit),
    })?;
    driven.via.complete();
    Ok(bytes.to_bytes())
}

/// A body that drives the connection which it comes over.
struct Driven {
    body: Incoming,
    via: Via,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.via.drive(cx);
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// A copy of a request that may be sent twice (RFC 9110, 9.2.1: safe methods), if it has no body.
fn spare(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    if !is_safe || !matches!(request.body(), Outgoing::Empty) {
        return None;
    }
    let mut copy = Request::new(Outgoing::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
