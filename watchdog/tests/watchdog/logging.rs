//! Log lines, the watchdog's own and the function's.

use crate::fixture::{in_front_of, with_process};
use crate::function::Function;

/// `line` with every digit as 0.
fn shape(line: &str) -> String {
    line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

#[tokio::test]
async fn the_start_is_told_in_of_watchdogs_words() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("read_timeout", "bogus").start().await;
    watchdog.line("Version: ").await;
    watchdog.line("Forking: sleep, arguments: [\"1000\"]").await;
    watchdog.line("Watchdog mode: http").await;
    watchdog.line("Timeouts: read: 30s write: 30s hard: 30s health: 30s").await;
    watchdog.line("read_timeout is \"bogus\", allowed is ").await;
    watchdog.line("Writing lock-file to: ").await;
    watchdog.line("Metrics listening on port: ").await;
}

#[tokio::test]
async fn a_request_is_one_line_and_a_probe_is_none() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    watchdog.request("GET", "/probe").header("User-Agent", "kube-probe/1.33").send().await.unwrap();
    watchdog.get("/status/404?x=y").await;
    let line = watchdog.line("GET /status").await;
    assert_eq!(
        shape(&line),
        shape("2026/01/01 00:00:00 GET /status/404?x=y - 404 Not Found - ContentLength: 4B (0.0001s)")
    );
    assert!(!watchdog.lines().iter().any(|line| line.contains("/probe")));
}

#[tokio::test]
async fn a_call_is_named_where_that_is_asked_for() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("log_callid", true).start().await;
    watchdog.request("GET", "/named").header("X-Call-Id", "abc").send().await.unwrap();
    watchdog.get("/unnamed").await;
    assert!(watchdog.line("/named").await.ends_with("s) [abc]"));
    assert!(watchdog.line("/unnamed").await.ends_with("s) [none]"));
}

#[tokio::test]
async fn the_functions_lines_have_a_prefix_unless_they_should_not() {
    let watchdog = with_process().start().await;
    let line = watchdog.line(" listens, ").await;
    assert!(shape(&line).starts_with("0000/00/00 00:00:00 stderr: function "), "{line}");
    let watchdog = with_process().env("prefix_logs", false).start().await;
    let line = watchdog.line(" listens, ").await;
    assert!(line.starts_with("function "), "{line}");
}

#[tokio::test]
async fn a_line_that_is_too_long_does_not_silence_the_function() {
    for (limit, lines) in [("65536", 2), ("-1", 1)] {
        let watchdog = with_process().env("log_buffer_size", limit).start().await;
        watchdog.get("/print/70000").await;
        watchdog.line("stderr: after").await;
        let found = watchdog.lines().iter().filter(|line| line.contains("xxxx")).count();
        assert_eq!(found, lines, "log_buffer_size={limit}");
    }
}
