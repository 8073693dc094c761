//! The function behind a watchdog in mode `http`: it gives bodies back while they come, and whatever else is asked of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// Time that `/slow` takes.
const SLOW: Duration = Duration::from_millis(200);

/// What is answered.
enum Text {
    Whole(Option<Bytes>),
    Back(Incoming),
    Events(u32),
}

impl Body for Text {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Back(body) => Pin::new(body).poll_frame(cx),
            Self::Events(0) => Poll::Ready(None),
            Self::Events(left) => {
                *left -= 1;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data: event\n\n")))))
            }
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Back(_) | Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Starts it for as long as this process lives; where it listens.
pub(crate) fn start(is_http2: bool) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("function".into())
        .spawn(move || runtime.block_on(serve(listener, is_http2)))?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener, is_http2: bool) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await.context("the function can't take a connection")?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, is_http2));
    }
}

/// Its error is the watchdog's to see.
async fn connection(stream: TcpStream, is_http2: bool) {
    let (io, service) = (TokioIo::new(stream), service_fn(answer));
    let _ = if is_http2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        http1::Builder::new().serve_connection(io, service).with_upgrades().await
    };
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Text>, Infallible> {
    let path = request.uri().path();
    let mut words = path.trim_start_matches('/').split('/');
    let (what, number) = (words.next().unwrap_or_default(), words.next().and_then(|word| word.parse().ok()));
    Ok(match what {
        "back" => Response::new(Text::Back(request.into_body())),
        "events" => Response::new(Text::Events(number.unwrap_or(0))),
        "status" => {
            whole(number.and_then(|code| u16::try_from(code).ok()?.try_into().ok()).unwrap_or_default())
        }
        "slow" => {
            tokio::time::sleep(SLOW).await;
            whole(StatusCode::OK)
        }
        "socket" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(socket) = upgraded.await {
                    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(socket));
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                }
            });
            let mut answer = whole(StatusCode::SWITCHING_PROTOCOLS);
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            answer
        }
        _ => whole(StatusCode::OK),
    })
}

/// What the function says where nothing else is asked of it.
pub(crate) const WORDS: &str = "hello\n";

fn whole(status: StatusCode) -> Response<Text> {
    let has_body = status != StatusCode::SWITCHING_PROTOCOLS;
    let mut answer = Response::new(Text::Whole(has_body.then(|| WORDS.into())));
    *answer.status_mut() = status;
    answer
}
