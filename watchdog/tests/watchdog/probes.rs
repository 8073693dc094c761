//! Health and readiness, as a kubelet asks for them.

use reqwest::StatusCode;

use crate::fixture::{in_front_of, with_process};
use crate::function::Function;

#[tokio::test]
async fn health_and_ready_answer_get_and_nothing_else() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let health = watchdog.get("/_/health").await;
    assert_eq!((health.status(), health.text().await.unwrap().as_str()), (StatusCode::OK, "OK"));
    let ready = watchdog.get("/_/ready").await;
    assert_eq!((ready.status(), ready.text().await.unwrap().as_str()), (StatusCode::OK, ""));
    for (method, path) in
        [("POST", "/_/health"), ("HEAD", "/_/health"), ("POST", "/_/ready"), ("HEAD", "/_/ready")]
    {
        let answer = watchdog.request(method, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }
}

#[tokio::test]
async fn paths_that_only_look_like_probes_go_to_the_function() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    for path in ["/_/healthz", "/_/health/", "/_/x"] {
        let seen: serde_json::Value = watchdog.get(path).await.json().await.unwrap();
        assert_eq!(seen["target"], path);
    }
}

#[tokio::test]
async fn a_removed_lock_file_ends_health_and_ready_but_not_the_function() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    std::fs::remove_file(watchdog.lock_file()).unwrap();
    assert_eq!(watchdog.status("/_/health").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(watchdog.status("/x").await, StatusCode::OK);
}

#[tokio::test]
async fn without_a_lock_file_health_still_tells_the_truth() {
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).env("suppress_lock", true).start().await;
    assert!(!watchdog.lock_file().exists());
    assert_eq!(watchdog.status("/_/health").await, StatusCode::OK);
}

#[tokio::test]
async fn ready_path_says_what_the_function_says_and_is_not_counted() {
    let function = Function::start().await;
    for buffering in ["false", "true"] {
        let builder = in_front_of(&function.url)
            .env("ready_path", "/status/418")
            .env("http_buffer_req_body", buffering);
        let watchdog = builder.no_wait().start().await;
        watchdog.until_status("/_/ready", StatusCode::IM_A_TEAPOT).await;
        assert!(!watchdog.metrics().await.contains("code=\"418\""));
        std::fs::remove_file(watchdog.lock_file()).unwrap();
        assert_eq!(watchdog.status("/_/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn ready_waits_for_the_function_and_requests_are_held_until_then() {
    let watchdog = with_process().env("TEST_FUNCTION_STARTS_AFTER", 1_500).no_wait().start().await;
    watchdog.until_status("/_/health", StatusCode::OK).await;
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    let (held, other) =
        tokio::join!(watchdog.get("/held"), watchdog.request("POST", "/held").body("x").send());
    assert_eq!((held.status(), other.unwrap().status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::OK);
}

#[tokio::test]
async fn a_request_is_not_held_for_longer_than_exec_timeout() {
    let watchdog = with_process()
        .env("TEST_FUNCTION_STARTS_AFTER", 60_000)
        .env("exec_timeout", "300ms")
        .no_wait()
        .start()
        .await;
    assert_eq!(watchdog.status("/held").await, StatusCode::GATEWAY_TIMEOUT);
}
