//! One client's connection, from its first byte to its end: HTTP/1.1, or HTTP/2 where the client begins with that
//! (RFC 9113, 3.3: prior knowledge). It answers no request.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::alarm::Alarms;
use crate::client::ClientSocket;
use crate::server::{App, respond};

/// Largest head of a request, and the most that is held of a body, in bytes: a larger head is answered 431.
const MAX_HEAD: u32 = 512 << 10;

/// The most requests at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// What an HTTP/2 connection begins with, up to where no request of HTTP/1 can.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// How connections are served.
#[derive(Clone, Debug)]
pub(crate) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    read_timeout: Option<Duration>,
}

impl Protocols {
    /// With `read_timeout` to receive a head, and to wait for the next one.
    pub(crate) fn new(read_timeout: Option<Duration>) -> Self {
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(MAX_HEAD as usize).max_header_size(MAX_HEAD as usize).title_case_headers(true);
        http1.timer(Alarms).header_read_timeout(read_timeout);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(Alarms).max_header_list_size(MAX_HEAD).max_concurrent_streams(MAX_STREAMS);
        // A client that is gone without a word does not answer.
        http2.keep_alive_interval(read_timeout);
        Self { http1, http2, read_timeout }
    }

    /// Answers the requests of one connection until it ends or is asked to.
    pub(crate) async fn serve(&self, stream: TcpStream, peer: IpAddr, app: &Arc<App>) {
        // Without it, small answers wait for the client's acknowledgements.
        let _ = stream.set_nodelay(true);
        let (_member, mut closing) = app.connections.enter();
        let begun = tokio::select! {
            biased;
            begun = within(self.read_timeout, begins_with_preface(&stream)) => begun,
            _ = &mut closing => return,
        };
        let Ok(is_http2) = begun else { return };
        let (socket, limit) = ClientSocket::new(stream);
        let service = service_fn(|request: Request<Incoming>| {
            let (app, limit) = (Arc::clone(app), Arc::clone(&limit));
            async move { Ok::<_, Infallible>(respond(&app, &limit, peer, request).await) }
        });
        let io = TokioIo::new(socket);
        // What goes wrong from here on is the client's doing, and it is who learns of it.
        if is_http2 {
            let connection = pin!(self.http2.serve_connection(io, service));
            until_closed(connection, closing, http2::Connection::graceful_shutdown).await;
        } else {
            let connection = pin!(self.http1.serve_connection(io, service).with_upgrades());
            until_closed(connection, closing, http1::UpgradeableConnection::graceful_shutdown).await;
        }
    }
}

/// Drives `connection` to its end, which `closing` asks it to come to.
async fn until_closed<C: Future>(
    mut connection: Pin<&mut C>,
    closing: oneshot::Receiver<()>,
    shut_down: fn(Pin<&mut C>),
) {
    let mut closing = Some(closing);
    // Polled at one place only: all that answers a request is compiled into it.
    std::future::poll_fn(|cx| {
        if closing.as_mut().is_some_and(|closing| Pin::new(closing).poll(cx).is_ready()) {
            closing = None;
            shut_down(connection.as_mut());
        }
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match limit {
        Some(limit) => timeout(limit, work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into())),
        None => work.await,
    }
}

/// Whether the client speaks HTTP/2. What it has sent is still to be read.
async fn begins_with_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let count = stream.peek(&mut start).await?;
        let seen = &start[..count];
        if seen == PREFACE || !PREFACE.starts_with(seen) || seen.is_empty() {
            return Ok(seen == PREFACE);
        }
        // The rest of the preface is on its way; peeking does not wait for it. Who never sends it costs little.
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_millis(256));
    }
}
