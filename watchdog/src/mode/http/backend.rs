//! The function as a server: where it listens, which protocol it speaks, and the connections to it.

use std::sync::Arc;

use http::{Method, Request, Response};

use super::Upstream;
use super::failure::Failure;
use super::h2c::Multiplexed;
use super::link::{Link, Pool};
use super::outgoing::Outgoing;
use super::reply::Reply;
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

impl Backend {
    /// The function at `upstream`. Inside a runtime only.
    pub(super) fn new(upstream: Upstream, is_h2c: bool, health: Arc<Health>) -> Arc<Self> {
        let multiplexed = is_h2c.then(Multiplexed::default);
        Arc::new(Self { upstream, health, pool: Pool::new(), multiplexed })
    }

    /// Sends `request` once the function is up, and waits for the head of its answer.
    pub(super) async fn send(&self, request: Request<Outgoing>) -> Result<Response<Reply>, Failure> {
        self.health.started().await.or_failure()?;
        if let Some(connection) = &self.multiplexed {
            let answer = Box::pin(connection.send(self.upstream.authority(), request)).await?;
            return Ok(answer.map(Reply::Multiplexed));
        }
        self.send_alone(request).await
    }

    async fn send_alone(&self, mut request: Request<Outgoing>) -> Result<Response<Reply>, Failure> {
        while let Some(mut link) = self.pool.take() {
            let may_be_repeated = may_be_repeated(&request);
            match link.send(&mut request).await {
                Ok(answer) => return Ok(answer.map(|()| Reply::new(link, &self.pool))),
                // The function may end an idle connection just when the request is sent. What it has not seen, and
                // what changes nothing when it is seen twice, goes out again.
                Err(failed) if failed.is_unseen || (may_be_repeated && failed.is_of_connection()) => {}
                Err(failed) => return Err(failed.error.into()),
            }
        }
        let mut link = Link::open(self.upstream.authority()).await.map_err(Failure::Unreachable)?;
        match link.send(&mut request).await {
            Ok(answer) => Ok(answer.map(|()| Reply::new(link, &self.pool))),
            Err(failed) => Err(failed.error.into()),
        }
    }
}

/// Whether a request may be sent twice (RFC 9110, 9.2.1: safe methods), and has no body.
fn may_be_repeated(request: &Request<Outgoing>) -> bool {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    is_safe && matches!(request.body(), Outgoing::Empty)
}
