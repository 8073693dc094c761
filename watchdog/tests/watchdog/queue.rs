//! The queue in front of `max_inflight`.

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::fixture::{DEADLINE, Watchdog, in_front_of};
use crate::function::Function;

/// A request for `path` that is on its way, with the time that its client has.
fn send(
    watchdog: &Watchdog,
    path: &str,
    patience: Option<&str>,
) -> tokio::task::JoinHandle<(StatusCode, Instant)> {
    let request = watchdog.request("GET", path);
    let request = patience.into_iter().fold(request, |request, time| request.header("X-Timeout", time));
    tokio::spawn(async move {
        let status = request.send().await.unwrap().status();
        (status, Instant::now())
    })
}

#[tokio::test]
async fn requests_wait_for_their_turn_and_the_one_in_most_hurry_goes_first() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("max_inflight", 1).env("max_queue", 2).start().await;
    let first = send(&watchdog, "/sleep/1000", None);
    function.until_busy(1).await;
    let patient = send(&watchdog, "/sleep/100", Some("20s"));
    watchdog.until_metric("gpufn_function_queue_length 1").await;
    let hurried = send(&watchdog, "/sleep/100", Some("10s"));
    watchdog.until_metric("gpufn_function_queue_length 2").await;
    // The queue is full, and the function busy.
    assert_eq!(watchdog.status("/x").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::TOO_MANY_REQUESTS);
    let (first, patient, hurried) = (first.await.unwrap(), patient.await.unwrap(), hurried.await.unwrap());
    for (status, _) in [first, patient, hurried] {
        assert_eq!(status, StatusCode::OK);
    }
    assert!(first.1 < hurried.1 && hurried.1 < patient.1);
    watchdog.until_metric("gpufn_function_queue_length 0").await;
    watchdog.until_metric("gpufn_function_queue_age_seconds 0").await;
}

#[tokio::test]
async fn a_request_does_not_wait_longer_than_it_may() {
    let function = Function::start().await;
    let builder = in_front_of(&function.url).env("max_inflight", 1).env("max_queue", 9);
    let watchdog = builder.env("queue_timeout", "2s").start().await;
    let busy = send(&watchdog, "/sleep/60000", None);
    function.until_busy(1).await;
    for (patience, shortest) in [(Some("300ms"), 300), (None, 2000)] {
        let start = Instant::now();
        let (status, end) = send(&watchdog, "/x", patience).await.unwrap();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        assert!(end - start >= Duration::from_millis(shortest) && end - start < DEADLINE);
    }
    busy.abort();
}

#[tokio::test]
async fn a_client_that_goes_away_gives_up_its_place() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("max_inflight", 1).env("max_queue", 1).start().await;
    let busy = send(&watchdog, "/sleep/60000", None);
    function.until_busy(1).await;
    let waiting = send(&watchdog, "/x", None);
    watchdog.until_metric("gpufn_function_queue_length 1").await;
    waiting.abort();
    watchdog.until_metric("gpufn_function_queue_length 0").await;
    busy.abort();
    watchdog.until_metric("http_requests_in_flight 0").await;
    assert_eq!(watchdog.status("/x").await, StatusCode::OK);
}
