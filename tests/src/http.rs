//! One HTTP request exactly as given, over TCP or a Unix socket, each with a deadline. No pool, no redirects, no headers
//! of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as far as it was read.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// How much of a body is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// All of it.
    Whole,
    /// The first piece: the stream has no end.
    FirstPiece,
}

/// Sends `request` to `address`.
pub async fn over_tcp(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    read: Read,
    deadline: Duration,
) -> Result<Answer> {
    let exchange = async { exchange(TcpStream::connect(address).await?, request, read).await };
    timeout(deadline, exchange).await.with_context(|| format!("no answer within {deadline:?}"))?
}

/// Sends `request` to the Unix socket `path`.
pub async fn over_unix(path: &Path, request: Request<Full<Bytes>>, deadline: Duration) -> Result<Answer> {
    let exchange = async { exchange(UnixStream::connect(path).await?, request, Read::Whole).await };
    timeout(deadline, exchange).await.with_context(|| format!("no answer within {deadline:?}"))?
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, read: Read) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = {
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.title_case_headers(true);
        builder
    };
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = collect(sender.send_request(request).await?, read).await;
    connection.abort();
    answer
}

async fn collect(response: Response<Incoming>, read: Read) -> Result<Answer> {
    let (head, mut body) = response.into_parts();
    let body = match read {
        Read::Whole => body.collect().await?.to_bytes(),
        Read::FirstPiece => match body.frame().await {
            Some(frame) => frame?.into_data().unwrap_or_default(),
            None => Bytes::new(),
        },
    };
    Ok(Answer { status: head.status, headers: head.headers, body })
}
