//! The function behind the watchdog: a small HTTP server inside the test's process, or as a process of its own.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::fixture::DEADLINE;

/// A function inside the test's process.
pub(crate) struct Function {
    /// Its URL.
    pub(crate) url: String,
    /// Requests that are being answered now.
    pub(crate) busy: Arc<AtomicUsize>,
    /// Bytes of bodies that it has read after its answer.
    pub(crate) read_later: Arc<AtomicUsize>,
    /// Connections that it has taken so far.
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Function {
    /// Starts on a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let counts = Counts::default();
        let task = tokio::spawn(serve(listener, counts.clone()));
        let Counts { busy, read_later, connections } = counts;
        Self { url, busy, read_later, connections, task }
    }

    /// Stops listening.
    pub(crate) async fn stop(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Waits until `count` requests are being answered.
    pub(crate) async fn until_busy(&self, count: usize) {
        let wait = async {
            while self.busy.load(Ordering::SeqCst) != count {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{count} requests should be under way"));
    }
}

/// The function as a process: a test that does nothing unless the environment tells it where to listen.
#[tokio::test]
#[ignore = "only started by other tests, behind a watchdog"]
async fn process() {
    let Ok(address) = std::env::var("TEST_FUNCTION_LISTENS") else { return };
    let delay = std::env::var("TEST_FUNCTION_STARTS_AFTER").ok().and_then(|millis| millis.parse().ok());
    sleep(Duration::from_millis(delay.unwrap_or(0))).await;
    let pid = std::process::id();
    let library_path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    for name in ["LD_PRELOAD", "LD_AUDIT"] {
        if let Ok(value) = std::env::var(name) {
            eprintln!("function has {name} {value:?}");
        }
    }
    eprintln!("function {pid} listens, library path {library_path:?}");
    serve(TcpListener::bind(address).await.unwrap(), Counts::default()).await;
}

/// What a function counts.
#[derive(Clone, Default)]
struct Counts {
    busy: Arc<AtomicUsize>,
    read_later: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

async fn serve(listener: TcpListener, counts: Counts) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        counts.connections.fetch_add(1, Ordering::SeqCst);
        let counts = counts.clone();
        let service = service_fn(move |request| {
            let busy = Busy::new(Arc::clone(&counts.busy));
            let read_later = Arc::clone(&counts.read_later);
            async move {
                let answer = answer(request, read_later).await;
                drop(busy);
                Ok::<_, Infallible>(answer)
            }
        });
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
        connections.spawn(connection);
    }
}

/// Counts a request while it is being answered.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whole text, or frames as they are sent.
pub(crate) enum Text {
    Whole(Full<Bytes>),
    Frames(mpsc::Receiver<io::Result<Bytes>>),
    Back(Incoming),
    Trailers(Option<Bytes>),
    End,
}

impl Body for Text {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(text) => Pin::new(text).poll_frame(cx).map_err(Into::into),
            Self::Frames(frames) => frames.poll_recv(cx).map_ok(Frame::data).map_err(Into::into),
            Self::Back(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Trailers(body) => {
                let frame = body.take().map_or_else(
                    || {
                        let sum = (HeaderName::from_static("x-sum"), HeaderValue::from_static("42"));
                        Frame::trailers(HeaderMap::from_iter([sum]))
                    },
                    Frame::data,
                );
                if frame.is_trailers() {
                    *self = Self::End;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Self::End => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(text) => text.size_hint(),
            Self::Frames(_) | Self::Back(_) | Self::Trailers(_) | Self::End => {
                hyper::body::SizeHint::default()
            }
        }
    }
}

fn whole(text: impl Into<Bytes>) -> Response<Text> {
    Response::new(Text::Whole(Full::new(text.into())))
}

/// What the function answers to `request`.
pub(crate) async fn answer(request: Request<Incoming>, read_later: Arc<AtomicUsize>) -> Response<Text> {
    let path = request.uri().path().to_string();
    let mut words = path.trim_start_matches('/').split('/');
    let (what, number) = (words.next().unwrap_or_default(), words.next().and_then(|n| n.parse::<u64>().ok()));
    let number = number.unwrap_or(0);
    match what {
        "status" => {
            let mut answer = whole("body");
            *answer.status_mut() = StatusCode::from_u16(u16::try_from(number).unwrap()).unwrap();
            answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/else?where=1"));
            answer
        }
        "sleep" => {
            sleep(Duration::from_millis(number)).await;
            whole("slept")
        }
        "cookies" => {
            let mut answer = whole("");
            for cookie in ["a=1", "b=2"] {
                answer.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
            }
            answer
        }
        "gzip" => {
            let mut answer = whole(&b"\x1f\x8b not really"[..]);
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer
        }
        "closing" => {
            let mut answer = whole("bye");
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            answer
        }
        "events" => frames(3, Duration::from_millis(number), None),
        "cut" => frames(2, Duration::from_millis(10), Some(io::ErrorKind::BrokenPipe)),
        "back" => Response::new(Text::Back(request.into_body())),
        "early" => {
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    read_later.fetch_add(bytes, Ordering::SeqCst);
                }
            });
            whole("early")
        }
        "trailers" => {
            let mut answer = Response::new(Text::Trailers(Some("body".into())));
            answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
            answer
        }
        "ws" => upgrade(request),
        #[allow(clippy::exit)] // A function that ends is what is wanted.
        "exit" => std::process::exit(i32::try_from(number).unwrap()),
        "print" => {
            let line = "x".repeat(usize::try_from(number).unwrap());
            eprintln!("{line}\nafter");
            whole("printed")
        }
        _ => echo(request).await,
    }
}

/// `count` frames, `pause` apart, and then `error` if there is one.
fn frames(count: u32, pause: Duration, error: Option<io::ErrorKind>) -> Response<Text> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for n in 0..count {
            if sender.send(Ok(Bytes::from(format!("data: {n}\n\n")))).await.is_err() {
                return;
            }
            sleep(pause).await;
        }
        if let Some(error) = error {
            let _ = sender.send(Err(error.into())).await;
        }
    });
    Response::new(Text::Frames(receiver))
}

fn upgrade(mut request: Request<Incoming>) -> Response<Text> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut socket = TokioIo::new(upgraded.await.unwrap());
        let (mut reader, mut writer) = tokio::io::split(&mut socket);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut answer = whole("");
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer
}

/// The request as the function saw it, as JSON.
async fn echo(request: Request<Incoming>) -> Response<Text> {
    let (parts, body) = request.into_parts();
    let headers: Vec<Value> =
        parts.headers.iter().map(|(name, value)| json!([name.as_str(), value.to_str().unwrap()])).collect();
    let body = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    let seen = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "headers": headers,
        "body": body.ok(),
    });
    whole(seen.to_string())
}

/// The values of a header in what [`echo`] saw.
pub(crate) fn header_values<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = seen["headers"].as_array().unwrap().iter();
    headers.filter(|header| header[0] == name).filter_map(|header| header[1].as_str()).collect()
}
