//! The connection to a function that speaks HTTP/2 without TLS: one for all requests of a worker, opened when it is
//! needed and opened again when it has ended.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use self::frames::WithoutEmpty;
use super::failure::Failure;
use super::outgoing::{Outgoing, strip_connection};
use crate::workers::{self, MOST_WORKERS};

mod frames;

/// How many bytes of an answer the function may send before its client has taken them. For the whole connection that is
/// no bound, only for each request: the HTTP/2 library bounds the number of small frames that wait by the connection's
/// window, and a connection that exceeds it ends with all of its requests. A stream's window of one-byte frames costs
/// 16 MiB of that bound, which is half of the connection's window.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// The connections of all workers.
#[derive(Debug, Default)]
pub(super) struct Multiplexed {
    open: [Mutex<Option<SendRequest<Outgoing>>>; MOST_WORKERS],
}

impl Multiplexed {
    /// Sends `request` to `authority` and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        authority: &str,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failure> {
        address(&mut request, authority)?;
        let known = self.own().clone();
        if let Some(mut sender) = known
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(mut error) => match error.take_message() {
                    Some(again) => request = again,
                    None => return Err(Failure::from(error.into_error())),
                },
            }
        }
        let mut sender = self.connect(authority).await?;
        sender.send_request(request).await.map_err(Failure::from)
    }

    async fn connect(&self, authority: &str) -> Result<SendRequest<Outgoing>, Failure> {
        let stream = TcpStream::connect(authority).await.map_err(Failure::Unreachable)?;
        stream.set_nodelay(true).map_err(Failure::Unreachable)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        // What the function still sends to requests whose clients are gone is refused one by one; a bound on that would
        // end the others.
        builder.max_local_error_reset_streams(None);
        let handshake = builder.handshake(TokioIo::new(WithoutEmpty::new(stream))).await;
        let (sender, connection) = handshake.map_err(Failure::from)?;
        tokio::spawn(connection);
        *self.own() = Some(sender.clone());
        Ok(sender)
    }

    /// The connection of this thread.
    fn own(&self) -> MutexGuard<'_, Option<SendRequest<Outgoing>>> {
        // It is replaced as a whole.
        self.open[workers::current()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 9113, 8.3.1: the host is part of the target.
fn address(request: &mut Request<Outgoing>, authority: &str) -> Result<(), Failure> {
    let host = request.headers_mut().remove(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let host = host.map_or_else(|| authority.parse().map_err(|_| Failure::Target), Ok)?;
    strip_connection(request.headers_mut());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(host);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Failure::Target)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}
