//! A process for each request: what it reads, what comes back, and when it ends.

use std::time::{Duration, Instant};

use reqwest::{Body, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::fixture::{DEADLINE, Watchdog, bare, until_gone, with_script};

/// The number in a file of the watchdog's folder, once it is there.
async fn number_in(watchdog: &Watchdog, name: &str) -> u32 {
    let wait = async {
        loop {
            let text = std::fs::read_to_string(watchdog.path(name)).unwrap_or_default();
            if let Some(Ok(number)) = text.strip_suffix('\n').map(str::parse) {
                return number;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("no number in {name}"))
}

/// Bytes that look random, different for each seed.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn no_byte_is_lost_in_either_mode() {
    for mode in ["streaming", "serializing"] {
        let watchdog = bare().env("fprocess", "cat").env("mode", mode).start().await;
        for seed in 0..40_u32 {
            let length =
                [0, 1, 65_535, 65_536, 65_537, 400_000, 3_000_000][seed as usize % 7] + seed as usize;
            let sent = bytes(seed, length);
            let body = if seed % 2 == 0 {
                Body::from(sent.clone())
            } else {
                let chunks: Vec<_> =
                    sent.chunks(50_000).map(|chunk| Ok::<_, String>(chunk.to_vec())).collect();
                Body::wrap_stream(futures_util::stream::iter(chunks))
            };
            let answer = watchdog.request("POST", "/").body(body).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let got = answer.bytes().await.unwrap();
            assert!(got == sent, "{mode}: {} of {length} bytes came back", got.len());
        }
    }
}

#[tokio::test]
async fn an_answer_comes_while_the_request_is_still_sent() {
    let watchdog = bare().env("fprocess", "cat").start().await;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8\r\n\r\nping";
    stream.write_all(head).await.unwrap();
    let mut seen = Vec::new();
    let first = async {
        while !seen.ends_with(b"ping\r\n") {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
    };
    timeout(DEADLINE, first).await.unwrap();
    stream.write_all(b"pong").await.unwrap();
    timeout(DEADLINE, stream.read_to_end(&mut seen)).await.unwrap().unwrap();
    assert!(seen.ends_with(b"4\r\npong\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn a_process_that_does_not_read_still_answers() {
    let watchdog = bare().env("fprocess", "echo early").start().await;
    let answer = watchdog.request("POST", "/").body(bytes(1, 5_000_000)).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "early\n");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_process_with_it() {
    let script = "echo $$ > \"${0%/*}/pid\"\nsleep 1000 & echo $! > \"${0%/*}/child\"\nwait";
    for mode in ["streaming", "serializing"] {
        let watchdog = with_script(mode, script).start().await;
        let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let pids = [number_in(&watchdog, "pid").await, number_in(&watchdog, "child").await];
        drop(stream);
        for pid in pids {
            until_gone(pid).await;
        }
        watchdog.until_metric("http_requests_total{code=\"499\",method=\"get\"} 1").await;
    }
}

#[tokio::test]
async fn a_process_whose_time_is_over_ends_with_all_that_it_started() {
    let script = "sleep 1000 & echo $! > \"${0%/*}/child\"\nwait";
    let watchdog = with_script("streaming", script).env("exec_timeout", "400ms").start().await;
    let start = Instant::now();
    assert_eq!(watchdog.status("/").await, StatusCode::GATEWAY_TIMEOUT);
    assert!(start.elapsed() >= Duration::from_millis(400));
    until_gone(number_in(&watchdog, "child").await).await;
    let script = "echo begun; sleep 1000";
    let watchdog = with_script("streaming", script).env("exec_timeout", "400ms").start().await;
    let answer = watchdog.get("/").await;
    // The client can tell that the answer is not complete.
    assert!(answer.status() == StatusCode::OK && answer.text().await.is_err());
}

#[tokio::test]
async fn a_part_of_a_body_is_never_taken_for_the_whole() {
    let script = "cat > /dev/null; echo 1 > \"${0%/*}/whole\"";
    let watchdog = with_script("streaming", script).env("read_timeout", "300ms").start().await;
    let answer = watchdog.raw("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhi").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("Connection: close\r\n"), "{answer}");
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhi").await.unwrap();
    watchdog.until_metric("http_requests_in_flight 1").await;
    drop(stream);
    watchdog.until_metric("http_requests_in_flight 0").await;
    assert!(!watchdog.path("whole").exists());
    watchdog.request("POST", "/").body("whole").send().await.unwrap();
    assert!(watchdog.path("whole").exists());
}

#[tokio::test]
async fn what_a_process_leaves_behind_goes_on_and_is_no_zombie() {
    let script = "sleep 0.3 > /dev/null 2>&1 &\necho $! > \"${0%/*}/child\"; echo done";
    let watchdog = with_script("streaming", script).start().await;
    assert_eq!(watchdog.get("/").await.text().await.unwrap(), "done\n");
    let child = number_in(&watchdog, "child").await;
    assert!(std::path::Path::new(&format!("/proc/{child}")).exists());
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{child}")).exists() {
        assert!(start.elapsed() < DEADLINE, "process {child} stays");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn stderr_is_logged_or_part_of_the_answer() {
    let script = "echo out; echo problem >&2";
    let watchdog = with_script("streaming", script).start().await;
    assert_eq!(watchdog.get("/").await.text().await.unwrap(), "out\n");
    assert!(watchdog.line(" stderr: problem").await.ends_with(" stderr: problem"));
    let watchdog = with_script("serializing", script).env("combine_output", true).start().await;
    assert_eq!(watchdog.get("/").await.text().await.unwrap(), "out\nproblem\n");
}

#[tokio::test]
async fn an_answer_that_is_held_back_has_a_limit() {
    let script = "echo $$ > \"${0%/*}/pid\"\nread -r bytes\nhead -c \"$bytes\" /dev/zero\n[ \"$bytes\" -le 100000 ] || sleep 1000";
    let watchdog = with_script("serializing", script).env("output_limit", 100_000).start().await;
    let answer = watchdog.request("POST", "/").body("100000\n").send().await.unwrap();
    assert_eq!((answer.status(), answer.bytes().await.unwrap().len()), (StatusCode::OK, 100_000));
    let answer = watchdog.request("POST", "/").body("100001\n").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let words = "the output has more than 100000 bytes, allowed is output_limit";
    assert_eq!(answer.text().await.unwrap(), words);
    // It would go on otherwise, and nobody reads what it writes.
    until_gone(number_in(&watchdog, "pid").await).await;
}

#[tokio::test]
async fn a_path_that_is_no_variable_is_a_400() {
    let watchdog = bare().env("fprocess", "env").start().await;
    for path in ["/%00", "/%zz"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = watchdog.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let text = watchdog.get("/a%20b").await.text().await.unwrap();
    assert!(text.lines().any(|line| line == "Http_Path=/a b"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("Http_Host=127.")), "{text}");
}

#[tokio::test]
async fn a_slot_is_free_again_when_its_process_has_ended() {
    let watchdog = bare().env("fprocess", "cat").env("max_inflight", 1).start().await;
    for _ in 0..50 {
        assert_eq!(watchdog.status("/").await, StatusCode::OK);
    }
}
