//! Metrics, as Prometheus reads them.

use reqwest::StatusCode;

use crate::fixture::in_front_of;
use crate::function::Function;

#[tokio::test]
async fn requests_are_counted_by_status_and_method() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    assert_eq!(watchdog.metrics_status("/").await, StatusCode::NOT_FOUND);
    assert!(!watchdog.metrics().await.contains("http_requests_total{"));
    watchdog.request("WEIRD", "/x").send().await.unwrap();
    watchdog.request("POST", "/status/503").body("x").send().await.unwrap();
    watchdog.until_metric("http_requests_total{code=\"200\",method=\"unknown\"} 1").await;
    watchdog.until_metric("http_requests_total{code=\"503\",method=\"post\"} 1").await;
    watchdog.until_metric("http_request_duration_seconds_count{code=\"503\",method=\"post\"} 1").await;
    let text = watchdog.metrics().await;
    let buckets: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("http_request_duration_seconds_bucket{code=\"503\""))
        .filter_map(|line| line.split("le=\"").nth(1)?.split('"').next())
        .collect();
    assert_eq!(
        buckets,
        ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"]
    );
    for kind in [
        "http_requests_total counter",
        "http_request_duration_seconds histogram",
        "http_requests_in_flight gauge",
    ] {
        assert!(text.contains(&format!("# TYPE {kind}\n")), "{kind} in\n{text}");
    }
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_answer_is_complete() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let request = tokio::spawn(watchdog.request("GET", "/sleep/60000").send());
    watchdog.until_metric("http_requests_in_flight 1").await;
    request.abort();
    watchdog.until_metric("http_requests_in_flight 0").await;
}

#[tokio::test]
async fn metrics_can_be_off() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("metrics_port", 0).start().await;
    assert_eq!(watchdog.status("/x").await, StatusCode::OK);
    assert!(!watchdog.lines().iter().any(|line| line.contains("Metrics listening")));
}
