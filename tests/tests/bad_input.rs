//! Wrong input to `gpufn up`: each is refused with one line that says what is wrong, and nothing that runs is touched.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use reqwest::Method;
use serde_json::{Value, json};
use tests::function::Function;
use tests::gateway::Gateway;
use tests::http::{self, Read};
use tests::local::Local;

fn good(name: &str) -> Function {
    Function::inference(name, "resnet50").sm(20).quota(20, 50).memory("1Gi")
}

/// What must not change: each function's process, and that it answers right.
async fn running(gateway: &Gateway) -> Vec<(String, u32)> {
    let mut pids = Vec::new();
    for name in ["first", "second"] {
        pids.push((name.to_string(), gateway.infer(name).await.pid));
    }
    pids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_input_is_refused_in_one_line_and_touches_nothing_that_runs() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    for name in ["first", "second"] {
        gateway.deploy_ready(&good(name)).await;
    }
    let before = running(gateway).await;
    let mut complaints = Vec::new();
    refuses_wrong_annotations(gateway, &mut complaints).await;
    refuses_wrong_deployments(gateway, &mut complaints).await;
    refuses_what_is_no_deployment(&local, &mut complaints).await;
    assert_eq!(running(gateway).await, before, "a running function was replaced");
    let functions: Vec<Value> = gateway.get("/system/functions").await;
    assert_eq!(functions.len(), 2, "a refused function was kept: {functions:?}");
    local.stop().await;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Checks that `answer` is a 400 of one line that has all of `parts`.
fn expect_line(what: &str, answer: &(StatusCode, String), parts: &[&str], complaints: &mut Vec<String>) {
    let (status, text) = answer;
    let line = text.trim_end();
    println!("{what}: {} {line}", status.as_u16());
    let good = *status == StatusCode::BAD_REQUEST
        && !line.is_empty()
        && !line.contains('\n')
        && parts.iter().all(|part| line.contains(part));
    if !good {
        complaints.push(format!("{what}: {status} {text:?}, expected 400 and one line with {parts:?}"));
    }
}

async fn refuses_wrong_annotations(gateway: &Gateway, complaints: &mut Vec<String>) {
    let cases = [
        ("sm", "0", "1 to 100"),
        ("sm", "101", "1 to 100"),
        ("sm", "x", "1 to 100"),
        ("quota", "0", "1 to 100"),
        ("quota-limit", "10", "20"),
        ("memory", "17Gi", "16"),
        ("memory", "lots", "512Mi"),
        ("policy", "fastest", "hybrid"),
        ("slo", "p95", "p95<100ms"),
        ("slo", "p95<0ms", "p95<100ms"),
        ("slo", "p95<1ms", "cannot be met: fastest is "),
        ("model", "gpt-9", "resnet50"),
        ("replicas", "3..1", "MIN..MAX"),
        ("batch", "0", "1024"),
    ];
    for (key, value, allowed) in cases {
        let field = format!("gpufn.dev/{key}");
        let quoted = format!("{value:?}");
        // A new function, and a wrong update of a running one.
        for name in ["third", "first"] {
            let answer = gateway.try_deploy(&good(name).annotation(&field, value)).await;
            expect_line(&format!("{name} with {field}"), &answer, &[&field, &quoted, allowed], complaints);
        }
    }
}

async fn refuses_wrong_deployments(gateway: &Gateway, complaints: &mut Vec<String>) {
    // A new temp file may not be executed.
    let file = tempfile::NamedTempFile::new().unwrap();
    let not_executable = format!("file://{}", file.path().display());
    let cases = [
        ("service", json!("Has_Capitals"), "Has_Capitals"),
        ("service", json!("../../etc"), "../../etc"),
        ("service", json!("a".repeat(64)), "aaa"),
        ("service", json!(""), "service"),
        ("image", json!(""), "image"),
        ("image", json!("docker.io/library/nginx:latest"), "file://"),
        ("image", json!("file:///does/not/exist"), "/does/not/exist"),
        ("image", json!(not_executable), not_executable.as_str()),
        ("image", json!("file://relative/path"), "relative"),
        ("namespace", json!("no-such-namespace"), "no-such-namespace"),
        ("secrets", json!(["no-such-secret"]), "no-such-secret"),
        ("envVars", json!({ "A=B": "x" }), "A=B"),
    ];
    for (key, value, part) in cases {
        let function = good("third").set(key, value.clone());
        let answer = gateway.call(Method::POST, "/system/functions", &function.json()).await;
        expect_line(&format!("{key} {value}"), &answer, &[part], complaints);
    }
}

async fn refuses_what_is_no_deployment(local: &Local, complaints: &mut Vec<String>) {
    let bodies = [
        ("half an object", b"{\"service\":\"third\",".to_vec(), vec![400]),
        ("nothing", Vec::new(), vec![400]),
        ("a list", b"[]".to_vec(), vec![400]),
        ("a number for a name", b"{\"service\":7,\"image\":\"i\"}".to_vec(), vec![400]),
        ("no UTF-8", b"{\"service\":\"\xff\"}".to_vec(), vec![400]),
        ("deep nesting", b"[".repeat(100_000), vec![400, 413]),
        ("32 MiB", format!("{{\"service\":\"{}\"}}", "a".repeat(32 << 20)).into_bytes(), vec![400, 413]),
    ];
    for (what, body, allowed) in bodies {
        for method in ["POST", "PUT"] {
            let request = Request::builder().method(method).uri("/system/functions").header("Host", "local");
            let request = request.body(Full::new(Bytes::from(body.clone()))).unwrap();
            let answer = http::over_tcp(local.address(), request, Read::Whole, Duration::from_secs(10)).await;
            // A server may close on a body that is too long before it is sent whole.
            let closed = answer.is_err() && what == "32 MiB";
            let status = answer.as_ref().map(|answer| answer.status.as_u16()).unwrap_or_default();
            let text = answer.map_or_else(|error| error.to_string(), |answer| answer.text());
            println!("{method} of {what}: {status} {}", text.trim_end());
            if !closed && !allowed.contains(&status) {
                complaints.push(format!("{method} of {what}: {status}, expected {allowed:?}"));
            }
        }
    }
}
