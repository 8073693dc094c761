//! Clients that mean harm: whatever they do, memory stays bounded and health is answered.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{DEADLINE, Watchdog, in_front_of, is_full};
use crate::function::Function;

/// Memory in use now, in KiB.
fn memory(watchdog: &Watchdog) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", watchdog.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn connect(watchdog: &Watchdog, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(TcpStream::connect(watchdog.authority()).await.unwrap());
    }
    streams
}

/// Whether a request is answered: over a connection of its own, since an idle one may be at its end just now.
async fn assert_answered(watchdog: &Watchdog) {
    let answer = watchdog.raw("GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn idle_connections_cost_little_and_end_at_read_timeout() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("read_timeout", "3s").start().await;
    let before = memory(&watchdog);
    let count = if is_full() { 10_000 } else { 800 };
    let mut streams = connect(&watchdog, count).await;
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
    let each = (memory(&watchdog) - before) / count as u64;
    assert!(each < 16, "{each} KiB for each of {count} connections");
    for stream in &mut streams {
        assert_eq!(tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    }
    assert_answered(&watchdog).await;
}

#[tokio::test]
async fn heads_that_never_end_do_not_keep_others_waiting() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("read_timeout", "2s").start().await;
    let mut streams = connect(&watchdog, 200).await;
    let start = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " {
        for stream in &mut streams {
            // Ended ones have had their time.
            let _ = stream.write_all(&[*byte]).await;
        }
        assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for stream in &mut streams {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap();
    }
    assert!(start.elapsed() < DEADLINE);
    function.until_busy(0).await;
    assert_answered(&watchdog).await;
}

#[tokio::test]
async fn bombs_of_headers_are_refused_in_bounded_memory() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let many = (0..5_000).map(|n| format!("X-{n}: {n}")).collect::<Vec<_>>().join("\r\n") + "\r\n";
    let long = format!("X: {}\r\n", "y".repeat(4_000_000));
    for _ in 0..20 {
        for bomb in [&many, &long] {
            let answer = watchdog.raw(format!("GET / HTTP/1.1\r\nHost: x\r\n{bomb}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
    }
    let kib = memory(&watchdog);
    assert!(kib < 40 * 1024, "{kib} KiB");
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
}

#[tokio::test]
async fn a_huge_chunked_body_passes_in_bounded_memory() {
    let function = Function::start().await;
    let watchdog =
        in_front_of(&function.url).env("read_timeout", "5m").env("write_timeout", "5m").start().await;
    let size = if is_full() { 1 << 30 } else { 128 << 20 };
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    let head = "POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut chunk = format!("{:x}\r\n", 1 << 20).into_bytes();
    chunk.resize(chunk.len() + (1 << 20), b'z');
    chunk.extend_from_slice(b"\r\n");
    for _ in 0..size >> 20 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let start = Instant::now();
    while function.read_later.load(Ordering::SeqCst) < size {
        assert!(start.elapsed() < DEADLINE, "{} bytes", function.read_later.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kib = memory(&watchdog);
    assert!(kib < 40 * 1024, "{kib} KiB");
}
