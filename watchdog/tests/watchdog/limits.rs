//! Time limits, the bound on concurrent requests, and clients that go away.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fixture::{DEADLINE, Watchdog, in_front_of};
use crate::function::Function;

/// Status and duration of a request that the function answers after `sleep` ms.
async fn timed(watchdog: &Watchdog, sleep: u64, asked: Option<&str>) -> (u16, Duration) {
    let start = Instant::now();
    let mut request = watchdog.request("GET", &format!("/sleep/{sleep}"));
    if let Some(asked) = asked {
        request = request.header("X-Timeout", asked);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    if status == 504 {
        assert_eq!(answer.headers()["x-openfaas-internal"], "of-watchdog");
        assert!(answer.headers().contains_key("x-duration-seconds"));
        assert_eq!(answer.text().await.unwrap(), "");
    }
    (status, start.elapsed())
}

#[tokio::test]
async fn a_function_that_takes_too_long_is_a_504_and_a_client_can_only_ask_for_less() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("exec_timeout", 1).start().await;
    let limit = Duration::from_secs(1);
    for asked in [None, Some("10s"), Some("bogus"), Some("-1s"), Some("0s")] {
        let (status, took) = timed(&watchdog, 10_000, asked).await;
        assert!(status == 504 && took >= limit && took < limit * 5, "{asked:?}: {status} after {took:?}");
    }
    let (status, took) = timed(&watchdog, 10_000, Some("200ms")).await;
    assert!(status == 504 && took >= limit / 5 && took < limit, "{status} after {took:?}");
    function.until_busy(0).await;
}

#[tokio::test]
async fn without_exec_timeout_a_client_can_not_set_one() {
    let function = Function::start().await;
    for none in ["0", "-5s"] {
        let watchdog = in_front_of(&function.url).env("exec_timeout", none).start().await;
        assert_eq!(timed(&watchdog, 400, Some("100ms")).await.0, 200);
    }
}

#[tokio::test]
async fn write_timeout_is_a_504_too() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("write_timeout", "300ms").start().await;
    assert_eq!(timed(&watchdog, 10_000, None).await.0, 504);
}

#[tokio::test]
async fn an_answer_that_is_late_after_its_head_is_cut() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("exec_timeout", "500ms").start().await;
    let answer = watchdog.get("/events/10000").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.text().await.is_err());
    watchdog.until_metric("http_requests_total{code=\"504\",method=\"get\"} 1").await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_ends_the_request_and_the_connection() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("read_timeout", "400ms").start().await;
    let start = Instant::now();
    let answer = watchdog.raw("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhi").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("Connection: close\r\n"), "{answer}");
    assert!(start.elapsed() >= Duration::from_millis(400));
    // Neither does a head that is never complete hold a connection open.
    watchdog.raw("GET / HTTP/1.1\r\nHo").await;
    function.until_busy(0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("max_inflight", 1).start().await;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    stream.write_all(b"GET /sleep/60000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    function.until_busy(1).await;
    let start = Instant::now();
    drop(stream);
    function.until_busy(0).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    watchdog.until_metric("http_requests_total{code=\"499\",method=\"get\"} 1").await;
    assert_eq!(watchdog.status("/x").await, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_make_the_watchdog_grow() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let size = 200_000_000_u64;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let head = format!("POST /back HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let block = vec![b'x'; 1 << 20];
    // Writes until all buffers between here and here are full.
    let stalled =
        async { while timeout(Duration::from_millis(500), stream.write_all(&block)).await.is_ok() {} };
    timeout(DEADLINE, stalled).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", watchdog.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 48 * 1024, "{kib} KiB");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn one_request_too_many_is_told_so_and_counted() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("max_inflight", 1).start().await;
    let first = tokio::spawn(watchdog.request("GET", "/sleep/60000").send());
    function.until_busy(1).await;
    let second = watchdog.get("/x").await;
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()["content-type"], "text/plain");
    assert_eq!(second.headers()["x-openfaas-internal"], "faas-middleware");
    let words = "Concurrent request limit exceeded. Max concurrent requests: 1\n";
    assert_eq!(second.text().await.unwrap(), words);
    let ready = watchdog.get("/_/ready").await;
    assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (429, ""));
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
    watchdog.until_metric("http_requests_total{code=\"429\",method=\"get\"} 1").await;
    first.abort();
    watchdog.until_status("/_/ready", StatusCode::OK).await;
    // The slot is free before the client sees the end of its answer.
    for _ in 0..200 {
        assert_eq!(watchdog.status("/x").await, StatusCode::OK);
    }
}
