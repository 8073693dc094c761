//! What the function sees of a request, and the client of an answer.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Body, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fixture::{DEADLINE, in_front_of};
use crate::function::{Function, header_values};

#[tokio::test]
async fn target_host_and_repeated_headers_arrive_as_they_were_sent() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let request = watchdog.request("GET", "/a%20b/c?x=1&y=%2F").header("Host", "fn.example");
    let seen: Value =
        request.header("X-A", "1").header("X-A", "2").send().await.unwrap().json().await.unwrap();
    assert_eq!(seen["target"], "/a%20b/c?x=1&y=%2F");
    assert_eq!(header_values(&seen, "host"), ["fn.example"]);
    assert_eq!(header_values(&seen, "x-a"), ["1", "2"]);
    assert!(header_values(&seen, "x-forwarded-for").is_empty());
    assert!(header_values(&seen, "accept-encoding").is_empty());
}

#[tokio::test]
async fn a_body_arrives_chunked_and_an_empty_one_with_its_length() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for (method, body, te, length) in [
        ("POST", Some("hello"), vec!["chunked"], vec![]),
        ("POST", Some(""), vec![], vec!["0"]),
        ("POST", None, vec![], vec!["0"]),
        ("GET", None, vec![], vec![]),
        ("DELETE", None, vec![], vec![]),
        ("DELETE", Some("hello"), vec!["chunked"], vec![]),
    ] {
        let request = watchdog.request(method, "/");
        let request = body.into_iter().fold(request, RequestBuilderExt::with);
        let seen: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(seen["body"], body.unwrap_or_default());
        assert_eq!(header_values(&seen, "transfer-encoding"), te, "{method} {body:?}");
        assert_eq!(header_values(&seen, "content-length"), length, "{method} {body:?}");
    }
}

/// Sets a body inside a fold.
trait RequestBuilderExt {
    fn with(self, body: &'static str) -> Self;
}

impl RequestBuilderExt for reqwest::RequestBuilder {
    fn with(self, body: &'static str) -> Self {
        self.body(body)
    }
}

#[tokio::test]
async fn a_chunked_body_arrives_chunked() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let request = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\n\r\n";
    let answer = watchdog.raw(request).await;
    assert!(
        answer.contains(r#"["transfer-encoding","chunked"]"#) && answer.contains(r#""body":"hello""#),
        "{answer}"
    );
}

#[tokio::test]
async fn a_buffered_body_arrives_with_its_length_and_not_larger_than_allowed() {
    let function = Function::start().await;
    let builder =
        in_front_of(&function.url).env("http_buffer_req_body", true).env("http_buffer_req_limit", 1000);
    let watchdog = builder.start().await;
    let chunked = |size: usize| {
        let chunk = format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        )
    };
    let answer = watchdog.raw(chunked(5)).await;
    assert!(
        answer.contains(r#"["content-length","5"]"#) && !answer.contains("transfer-encoding"),
        "{answer}"
    );
    let answer = watchdog.raw(chunked(1001)).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let long = "y".repeat(5000);
    let seen: Value =
        watchdog.request("POST", "/").body(long.clone()).send().await.unwrap().json().await.unwrap();
    assert_eq!((header_values(&seen, "content-length"), &seen["body"]), (vec!["5000"], &Value::from(long)));
}

#[tokio::test]
async fn statuses_redirects_and_repeated_headers_pass_through() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for status in [404, 503, 302] {
        let answer = watchdog.get(&format!("/status/{status}")).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["location"], "/else?where=1");
        assert_eq!(answer.text().await.unwrap(), "body");
    }
    let answer = watchdog.get("/cookies").await;
    let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[tokio::test]
async fn an_answer_says_how_long_the_function_took() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let answer = watchdog.get("/sleep/50").await;
    let seconds = answer.headers()["x-duration-seconds"].to_str().unwrap();
    assert_eq!(seconds.split_once('.').map(|(_, digits)| digits.len()), Some(6), "{seconds}");
    assert!((0.05..5.0).contains(&seconds.parse::<f64>().unwrap()), "{seconds}");
}

#[tokio::test]
async fn head_has_headers_and_no_body() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let answer = watchdog.raw("HEAD /status/200 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("Content-Length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_encoded_answer_is_not_decoded() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for request in
        [watchdog.request("GET", "/gzip"), watchdog.request("GET", "/gzip").header("Accept-Encoding", "gzip")]
    {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        assert_eq!(&answer.bytes().await.unwrap()[..], b"\x1f\x8b not really");
    }
}

#[tokio::test]
async fn a_client_that_expects_a_100_gets_it() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let request = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi";
    let answer = watchdog.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn every_form_of_http_1_is_answered() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let pipelined =
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = watchdog.raw(pipelined).await;
    assert!(answer.find("/a").unwrap() < answer.find("/b").unwrap(), "{answer}");
    let answer = watchdog.raw("GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    let answer =
        watchdog.raw("GET http://fn.example/x?y HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains(r#""target":"/x?y""#) && answer.contains(r#"["host","fn.example"]"#), "{answer}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_string(), "400"),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1_150_000)), "431"),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_string(), "405"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_string(), "200"),
    ] {
        let answer = watchdog.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[tokio::test]
async fn a_function_that_closes_its_connections_is_asked_again() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for _ in 0..50 {
        let answer = watchdog.get("/closing").await;
        assert!(answer.headers().get("connection").is_none());
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_function_that_stopped_listening_is_a_500_of_the_watchdog() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    function.stop().await;
    let answer = watchdog.get("/").await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.headers()["x-openfaas-internal"], "of-watchdog");
    assert_eq!(answer.text().await.unwrap(), "");
}

#[tokio::test]
async fn large_bodies_pass_both_ways_at_once_without_loss() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let sent: Vec<u8> = (0..18_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let length = sent.len();
    for body in [Body::from(sent.clone()), Body::from(sent.clone())] {
        let got = watchdog.request("POST", "/back").body(body).send().await.unwrap().bytes().await.unwrap();
        assert!(got == sent, "{} of {length} bytes came back", got.len());
    }
}

#[tokio::test]
async fn a_function_that_answers_early_still_gets_the_whole_body() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let size = 4_000_000;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let head = format!("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    stream.write_all(&vec![b'x'; size]).await.unwrap();
    let read = async {
        while function.read_later.load(Ordering::SeqCst) < size {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let read = timeout(DEADLINE, read).await;
    assert!(read.is_ok(), "{} of {size} bytes arrived", function.read_later.load(Ordering::SeqCst));
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for n in 0..100 {
        let request =
            if n % 2 == 0 { watchdog.request("GET", "/x") } else { watchdog.request("POST", "/x").body("y") };
        request.send().await.unwrap().text().await.unwrap();
    }
    // One to see that the function is up, one for the requests, and a few where the machine was slow.
    let connections = function.connections.load(Ordering::SeqCst);
    assert!(connections <= 20, "{connections}");
}

#[tokio::test]
async fn events_come_one_by_one_and_are_not_bound_by_exec_timeout() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("exec_timeout", "300ms").start().await;
    let start = Instant::now();
    let mut answer =
        watchdog.request("GET", "/events/400").header("Accept", "text/event-stream").send().await.unwrap();
    assert!(answer.headers().get("x-duration-seconds").is_none());
    assert_eq!(answer.headers()["transfer-encoding"], "chunked");
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 0\n\n");
    let first = start.elapsed();
    let rest = answer.text().await.unwrap();
    assert_eq!(rest, "data: 1\n\ndata: 2\n\n");
    assert!(first * 2 < start.elapsed(), "{first:?} of {:?}", start.elapsed());
    let seen = watchdog.request("GET", "/x").header("Accept", "application/x-ndjson").send().await.unwrap();
    let seen: Value = seen.json().await.unwrap();
    assert_eq!(header_values(&seen, "x-forwarded-for").len(), 1);
}

#[tokio::test]
async fn an_answer_that_the_function_cuts_does_not_look_complete() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let answer = watchdog.get("/cut").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.text().await.is_err());
    watchdog.until_metric("http_requests_total{code=\"502\",method=\"get\"} 1").await;
}

#[tokio::test]
async fn a_websocket_passes_bytes_both_ways() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let converse = async {
        while !seen.ends_with("ping") {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if seen.ends_with("\r\n\r\n") {
                stream.write_all(b"ping").await.unwrap();
            }
        }
    };
    timeout(DEADLINE, converse).await.unwrap();
    assert!(seen.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{seen}");
    let refused = watchdog.request("GET", "/status/404").header("Upgrade", "websocket").send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.text().await.unwrap().as_str()), (404, "body"));
}

#[tokio::test]
async fn a_base_path_is_kept_for_streams_too() {
    let function = Function::start().await;
    let watchdog = in_front_of(&format!("{}/base/", function.url)).start().await;
    for accept in ["*/*", "text/event-stream"] {
        let answer = watchdog.request("GET", "/x").header("Accept", accept).send().await.unwrap();
        let seen: Value = answer.json().await.unwrap();
        assert_eq!(seen["target"], "/base//x");
    }
}

#[tokio::test]
async fn idle_connections_to_the_function_end_soon() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    watchdog.get("/x").await;
    let sockets = || std::fs::read_dir(format!("/proc/{}/fd", watchdog.pid())).unwrap().count();
    let (before, start) = (sockets(), Instant::now());
    while sockets() >= before {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
