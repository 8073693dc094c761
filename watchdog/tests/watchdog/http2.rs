//! HTTP/2 without TLS, from the client and to the function, and trailers in both versions.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::fixture::{DEADLINE, Watchdog, in_front_of};
use crate::function::{Function, answer, header_values};

type Client = SendRequest<Full<Bytes>>;

async fn connect(watchdog: &Watchdog) -> Client {
    let stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(client: &mut Client, path: &str, body: &'static str) -> Response<Incoming> {
    let request = Request::post(format!("http://fn.example{path}")).body(Full::from(body)).unwrap();
    timeout(DEADLINE, client.send_request(request)).await.unwrap().unwrap()
}

/// A function that speaks HTTP/2 only: its URL, and how many connections it has taken.
async fn h2c_function() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(|request| async {
                assert_eq!(request.version(), Version::HTTP_2);
                Ok::<_, Infallible>(answer(request, Arc::default()).await)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, connections)
}

#[tokio::test]
async fn a_client_with_prior_knowledge_is_answered_in_http_2() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let mut client = connect(&watchdog).await;
    let answers: Vec<_> = (0..20).map(|_| client.clone()).collect();
    for mut client in answers {
        let answer = send(&mut client, "/a%20b?x", "hello").await;
        assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, StatusCode::OK));
        assert!(answer.headers().contains_key("x-duration-seconds"));
        let seen: Value =
            serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((&seen["target"], &seen["body"]), (&Value::from("/a%20b?x"), &Value::from("hello")));
        assert_eq!(header_values(&seen, "host"), ["fn.example"]);
    }
    assert_eq!(send(&mut client, "/_/health", "").await.status(), StatusCode::METHOD_NOT_ALLOWED);
    // Requests of one connection do not wait for each other.
    let mut slow = client.clone();
    let slow = tokio::spawn(async move { send(&mut slow, "/sleep/60000", "").await });
    function.until_busy(1).await;
    assert_eq!(send(&mut client, "/x", "").await.status(), StatusCode::OK);
    slow.abort();
    function.until_busy(0).await;
}

#[tokio::test]
async fn an_http_2_connection_is_drained_like_any_other() {
    let function = Function::start().await;
    let mut watchdog = in_front_of(&function.url).env("healthcheck_interval", "50ms").start().await;
    let mut client = connect(&watchdog).await;
    let in_flight = tokio::spawn(async move { send(&mut client, "/sleep/1500", "").await.status() });
    function.until_busy(1).await;
    watchdog.signal("TERM");
    assert_eq!(in_flight.await.unwrap(), StatusCode::OK);
    assert_eq!(watchdog.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_function_can_speak_http_2_and_one_connection_is_enough() {
    let (url, connections) = h2c_function().await;
    let watchdog = in_front_of(&url).env("upstream_h2c", true).start().await;
    let before = connections.load(Ordering::SeqCst);
    for _ in 0..50 {
        let seen: Value =
            watchdog.request("POST", "/x").body("hello").send().await.unwrap().json().await.unwrap();
        assert_eq!(seen["body"], "hello");
    }
    let opened = connections.load(Ordering::SeqCst) - before;
    assert!((1..=8).contains(&opened), "{opened} connections");
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let got =
        watchdog.request("POST", "/back").body(sent.clone()).send().await.unwrap().bytes().await.unwrap();
    assert!(got == sent);
    assert_eq!(watchdog.get("/status/404").await.status(), 404);
}

/// A function that answers with frames without a byte, and one with one.
async fn function_of_empty_frames() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|_: Request<Incoming>| async move {
                let frame = |bytes| Ok::<_, Infallible>(Frame::data(Bytes::from_static(bytes)));
                let frames = (0..30).map(move |_| frame(b"")).chain([frame(b".")]);
                let body = StreamBody::new(futures_util::stream::iter(frames));
                Ok::<_, Infallible>(Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    url
}

#[tokio::test]
async fn a_function_that_sends_empty_frames_keeps_its_connection() {
    let url = function_of_empty_frames().await;
    let watchdog = in_front_of(&url).env("upstream_h2c", true).start().await;
    for _ in 0..20 {
        let answer = watchdog.get("/").await;
        assert_eq!((answer.status(), answer.text().await.unwrap()), (StatusCode::OK, ".".to_string()));
    }
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let request = "GET /trailers HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let answer = watchdog.raw(request).await;
    assert!(answer.to_ascii_lowercase().ends_with("0\r\nx-sum: 42\r\n\r\n"), "{answer}");

    let (url, _) = h2c_function().await;
    let watchdog = in_front_of(&url).env("upstream_h2c", true).start().await;
    let mut client = connect(&watchdog).await;
    let answer = send(&mut client, "/trailers", "").await.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "42");

    // A request's trailers come back with its body.
    let stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let sum = (HeaderName::from_static("x-sum"), HeaderValue::from_static("7"));
    let frames = [
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hello"))),
        Ok(Frame::trailers(HeaderMap::from_iter([sum]))),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("http://fn.example/back").body(body).unwrap();
    let answer = timeout(Duration::from_secs(10), sender.send_request(request)).await.unwrap().unwrap();
    let answer = answer.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "7");
    assert_eq!(answer.to_bytes(), "hello");
}
