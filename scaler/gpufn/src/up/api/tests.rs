use std::time::Duration;

use gpu_share::units::{Nanos, Quota};
use scaler::policy::Action;
use serde_json::{Value, json};

use crate::up::fakes::{InProcess, World};
use crate::up::replica::Phase;
use crate::view::Overview;

const SHARED: &str =
    r#""gpufn.dev/sm":"20","gpufn.dev/quota":"20","gpufn.dev/quota-limit":"80","gpufn.dev/memory":"2Gi""#;

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

async fn overview(world: &World) -> Overview {
    serde_json::from_value(world.json("/v1/overview").await).unwrap()
}

async fn actions(world: &World) -> Vec<String> {
    let records = world.json("/v1/decisions").await;
    records.as_array().unwrap().iter().map(|record| record["action"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn a_deployment_is_put_then_posted_then_put_again() {
    let world = World::start().await;
    let body = r#"{"service":"f","image":"/bin/cat","labels":{},"annotations":{}}"#;
    let missing = world.ask("PUT", "/system/functions", body).await;
    assert_eq!(missing, (404, "unable to find function f.openfaas-fn\n".into()));
    assert_eq!(world.ask("POST", "/system/functions", body).await, (202, String::new()));
    assert_eq!(world.ask("POST", "/system/functions", body).await.0, 409);
    let listed = world.json("/system/functions").await;
    assert_eq!(listed[0]["name"], "f");
    assert_eq!(listed[0]["replicas"], 1, "the number shows at once");
    assert_eq!(world.ask("PUT", "/system/functions", body).await, (202, String::new()));
    world
        .until("a replica of the new deployment", || {
            let function = world.function("f");
            let replicas = function.replicas();
            replicas.len() == 1
                && replicas[0].phase() == Phase::Ready
                && replicas[0].generation == function.spec().generation
        })
        .await;
}

#[tokio::test]
async fn a_status_has_objects_where_clients_look_and_nothing_empty_elsewhere() {
    let world = World::start().await;
    assert_eq!(world.json("/system/functions").await, json!([]));
    world.deploy("f", "").await;
    let status = world.json("/system/function/f").await;
    assert_eq!(status["labels"], json!({"faas_function": "f"}));
    assert_eq!(status["annotations"], json!({}));
    for absent in ["envVars", "limits", "requests", "secrets", "envProcess", "usage"] {
        assert!(status.get(absent).is_none(), "{absent}");
    }
    assert_eq!(status["availableReplicas"], 1);
    assert!(status["createdAt"].as_str().unwrap().contains('T'));
    let with_usage = world.json("/system/function/f?usage=1&namespace=openfaas-fn").await;
    assert!(with_usage["usage"]["totalMemoryBytes"].is_number());
    assert_eq!(world.ask("GET", "/system/function/none?usage=1", "").await, (404, String::new()));
}

#[tokio::test]
async fn a_refused_deployment_changes_nothing() {
    let world = World::start().await;
    let cases = [
        (r#"{"service":"F","image":"/bin/cat"}"#, "service is \"F\", allowed is "),
        (
            r#"{"service":"f","image":"i:1"}"#,
            "image is \"i:1\", allowed is file://PATH of an executable or folder\n",
        ),
        (r#"{"image":"/bin/cat"}"#, "service is \"\""),
        ("{", "body is not the JSON expected here: "),
        (
            r#"{"service":"f","image":"/bin/cat","annotations":{"gpufn.dev/memory":"64Gi"}}"#,
            "gpufn.dev/memory is",
        ),
        (r#"{"service":"f","image":"/bin/cat","secrets":["s"]}"#, "secrets is \"s\""),
        (r#"{"service":"f","image":"/bin/cat","namespace":"x"}"#, "namespace is \"x\""),
    ];
    for (body, start) in cases {
        let response = world.send("POST", "/system/functions", body).await;
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        let text = response.text().await.unwrap();
        assert!(text.starts_with(start) && text.lines().count() == 1, "{body}: {text}");
    }
    assert_eq!(world.json("/system/functions").await, json!([]));
    world.deploy("f", "").await;
    let before = world.json("/system/function/f").await;
    let bad = r#"{"service":"f","image":"/bin/cat","annotations":{"gpufn.dev/sm":"0"}}"#;
    assert_eq!(world.ask("PUT", "/system/functions", bad).await.0, 400);
    assert_eq!(world.json("/system/function/f").await, before);
}

#[tokio::test]
async fn a_function_is_deleted_by_name_and_namespace() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let delete = |body: &'static str| world.ask("DELETE", "/system/functions", body);
    assert_eq!(delete(r#"{"functionName":""}"#).await.0, 400);
    assert_eq!(delete(r#"{"functionName":"g"}"#).await.0, 404);
    assert_eq!(delete(r#"{"functionName":"f","namespace":"openfaas-fn"}"#).await, (202, String::new()));
    assert_eq!(delete(r#"{"functionName":"f"}"#).await.0, 404);
    assert_eq!(world.ask("POST", "/function/f", "").await.0, 404);
}

#[tokio::test]
async fn a_function_at_zero_is_started_by_a_request_that_waits() {
    let world = World::with(InProcess::slow(Duration::from_millis(100)), None).await;
    world.deploy("f", "").await;
    let scale = |name: &'static str, body: &'static str| world.ask("POST", name, body);
    assert_eq!(scale("/system/scale-function/f", r#"{"serviceName":"other","replicas":0}"#).await.0, 202);
    assert_eq!(world.json("/system/function/f").await["replicas"], 0, "the number shows at once");
    world.until("no replica", || world.function("f").replicas().is_empty()).await;
    let (status, text) = world.ask("POST", "/function/f.openfaas-fn", "hello").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("hello"));
    let seen = overview(&world).await;
    assert_eq!((seen.functions[0].cold_starts, seen.functions[0].horizontal_changes), (1, 2));
    assert_eq!(scale("/system/scale-function/none", r#"{"replicas":1}"#).await.0, 404);
    assert_eq!(scale("/system/scale-function/f", "x").await.0, 400);
    assert_eq!(scale("/system/scale-function/f", r#"{"replicas":3}"#).await.0, 202);
    world.until("three replicas", || world.function("f").available() == 3).await;
}

#[tokio::test]
async fn a_request_reaches_the_function_as_it_was_sent() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let request = world.client.put(format!("{}/function/f/a%20b//c?x=1&y=%2F", world.url));
    let request =
        request.header("x-own", "1").header("connection", "x-gone").header("x-gone", "1").body("body");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let id = response.headers()["x-call-id"].to_str().unwrap().to_string();
    assert!(
        response.headers()["x-start-time"].to_str().unwrap().parse::<u64>().unwrap()
            > 1_600_000_000_000_000_000
    );
    let text = response.text().await.unwrap();
    assert!(text.starts_with("PUT /a%20b//c?x=1&y=%2F\n"), "{text}");
    let host = world.url.trim_start_matches("http://");
    let own = format!("x-call-id: {id}\n");
    let forwarded = format!("x-forwarded-host: {host}\n");
    for line in
        ["x-own: 1\n", own.as_str(), forwarded.as_str(), "x-forwarded-for: 127.0.0.1:", "x-start-time: "]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("x-gone") && text.ends_with("body"), "{text}");
    let given = world
        .client
        .get(format!("{}/function/f", world.url))
        .header("x-call-id", "mine")
        .send()
        .await
        .unwrap();
    assert_eq!(given.headers()["x-call-id"], "mine");
    let redirect = world.send("GET", "/function/f/redirect", "").await;
    assert_eq!(
        (redirect.status().as_u16(), &redirect.headers()["location"]),
        (302, &"/elsewhere".parse().unwrap())
    );
}

#[tokio::test]
async fn a_large_body_streams_both_ways() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let body = "x".repeat(20 << 20);
    let (status, text) = world.ask("POST", "/function/f", &body).await;
    assert_eq!(status, 200);
    assert!(text.len() > body.len());
}

#[tokio::test]
async fn paths_that_name_nothing_are_answered_as_clients_expect() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let unknown = world.send("POST", "/function/none.openfaas-fn", "").await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.headers().contains_key("x-call-id"));
    assert!(unknown.text().await.unwrap().starts_with("error finding function none.openfaas-fn: "));
    assert_eq!(world.ask("GET", "/function/", "").await.0, 400);
    assert_eq!(world.ask("TRACE", "/function/f", "").await, (405, String::new()));
    assert_eq!(world.ask("PATCH", "/system/functions", "").await, (405, String::new()));
    assert_eq!(world.ask("GET", "/nowhere", "").await, (404, "404 page not found\n".into()));
    assert_eq!(world.ask("GET", "/healthz", "").await, (200, "OK".into()));
}

#[tokio::test]
async fn the_gateway_tells_all_of_itself() {
    let world = World::start().await;
    let info = world.json("/system/info").await;
    for pointer in [
        "/provider/provider",
        "/provider/version/release",
        "/provider/version/sha",
        "/provider/orchestration",
    ] {
        assert!(info.pointer(pointer).is_some_and(Value::is_string), "{pointer}");
    }
    assert!(info["version"]["sha"].is_string() && info["arch"].is_string());
}

#[tokio::test]
async fn a_password_guards_everything_but_functions_and_health() {
    let world = World::with(InProcess::default(), Some("s3cret")).await;
    let guarded = [
        "/system/functions",
        "/system/namespaces",
        "/system/namespace/openfaas-fn",
        "/system/info",
        "/v1/overview",
    ];
    for path in guarded {
        let response = world.send("GET", path, "").await;
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(response.headers()["www-authenticate"], "Basic realm=\"Restricted\"");
        assert_eq!(response.text().await.unwrap(), "invalid credentials");
        let wrong =
            world.client.get(format!("{}{path}", world.url)).basic_auth("admin", Some("s3cre")).send().await;
        assert_eq!(wrong.unwrap().status(), 401);
        let right =
            world.client.get(format!("{}{path}", world.url)).basic_auth("admin", Some("s3cret")).send().await;
        assert_eq!(right.unwrap().status(), 200, "{path}");
    }
    for path in ["/healthz", "/metrics"] {
        assert_eq!(world.ask("GET", path, "").await.0, 200, "{path}");
    }
    assert_eq!(world.ask("GET", "/function/f", "").await.0, 404);
}

#[tokio::test]
async fn a_web_page_changes_nothing() {
    let world = World::start().await;
    let request =
        world.client.post(format!("{}/system/functions", world.url)).header("origin", "http://evil.example");
    let refused = request.body(r#"{"service":"f","image":"/bin/cat"}"#).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert_eq!(world.json("/system/functions").await, json!([]));
}

#[tokio::test]
async fn no_request_is_lost_while_replicas_are_replaced() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let body = r#"{"service":"f","image":"/bin/cat"}"#;
    let replacing = async {
        for round in 0..4 {
            assert_eq!(world.ask("PUT", "/system/functions", body).await.0, 202);
            world
                .until("a fresh replica", || {
                    let function = world.function("f");
                    let replicas = function.replicas();
                    replicas.len() == 1
                        && replicas[0].generation == function.spec().generation
                        && function.available() == 1
                })
                .await;
            let scale = format!(r#"{{"replicas":{}}}"#, 1 + round % 2);
            assert_eq!(world.ask("POST", "/system/scale-function/f", &scale).await.0, 202);
            world.until("that many", || world.function("f").available() == 1 + round % 2).await;
            assert_eq!(world.ask("POST", "/system/scale-function/f", r#"{"replicas":1}"#).await.0, 202);
        }
    };
    let done = tokio_util::sync::CancellationToken::new();
    let asking = async {
        while !done.is_cancelled() {
            assert_eq!(world.ask("POST", "/function/f", "x").await.0, 200);
        }
    };
    tokio::join!(asking, async {
        replacing.await;
        done.cancel();
    });
    assert_eq!(overview(&world).await.functions[0].failed_total, 0);
}

#[tokio::test]
async fn without_a_password_any_authorization_is_ignored() {
    let world = World::start().await;
    let request =
        world.client.get(format!("{}/system/functions", world.url)).header("authorization", "Bearer");
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn secrets_are_written_replaced_listed_without_value_and_removed() {
    let world = World::start().await;
    let path = "/system/secrets";
    assert_eq!(world.json(path).await, json!([]));
    let secret = r#"{"name":"api-key","value":"v1"}"#;
    assert_eq!(world.ask("PUT", path, secret).await, (404, "secret not found\n".into()));
    assert_eq!(world.ask("POST", path, secret).await, (201, String::new()));
    assert_eq!(world.ask("POST", path, secret).await, (409, "secret already exists\n".into()));
    assert_eq!(world.ask("PUT", path, r#"{"name":"api-key","value":"v2"}"#).await, (202, String::new()));
    assert_eq!(world.json(path).await, json!([{"name": "api-key", "namespace": "openfaas-fn"}]));
    assert_eq!(world.ask("POST", path, r#"{"name":"../x","value":"v"}"#).await.0, 400);
    assert_eq!(world.ask("POST", path, r#"{"name":"x","rawValue":"%"}"#).await.0, 400);
    let deploy = r#"{"service":"f","image":"/bin/cat","secrets":["api-key"]}"#;
    assert_eq!(world.ask("POST", "/system/functions", deploy).await.0, 202);
    assert_eq!(world.ask("DELETE", path, r#"{"name":"api-key"}"#).await, (202, String::new()));
    assert_eq!(world.ask("DELETE", path, r#"{"name":"api-key"}"#).await.0, 404);
}

#[tokio::test]
async fn namespaces_are_made_changed_and_removed_with_what_is_in_them() {
    let world = World::start().await;
    let dev = r#"{"name":"dev-fn","annotations":{"note":"hi","openfaas":"1"},"labels":{"openfaas":"1"}}"#;
    assert_eq!(world.ask("POST", "/system/namespace/", dev).await, (201, String::new()));
    assert_eq!(world.ask("POST", "/system/namespace/", dev).await.0, 409);
    assert_eq!(world.json("/system/namespaces").await, json!(["dev-fn", "openfaas-fn"]));
    assert_eq!(world.json("/system/namespace/dev-fn").await["annotations"]["note"], "hi");
    let other = r#"{"name":"dev-fn","labels":{"team":"b"}}"#;
    assert_eq!(world.ask("PUT", "/system/namespace/dev-fn", other).await.0, 202);
    assert_eq!(world.json("/system/namespace/dev-fn").await["labels"]["team"], "b");
    let deploy = r#"{"service":"f","image":"/bin/cat","namespace":"dev-fn"}"#;
    assert_eq!(world.ask("POST", "/system/functions", deploy).await.0, 202);
    assert_eq!(world.json("/system/functions").await, json!([]));
    assert_eq!(world.json("/system/functions?namespace=dev-fn").await[0]["namespace"], "dev-fn");
    assert_eq!(world.ask("POST", "/function/f.dev-fn", "x").await.0, 200);
    assert_eq!(world.ask("DELETE", "/system/namespace/dev-fn", r#"{"name":"dev-fn"}"#).await.0, 202);
    assert_eq!(world.ask("GET", "/system/namespace/dev-fn", "").await, (404, "namespace not found\n".into()));
    assert_eq!(world.ask("POST", "/function/f.dev-fn", "x").await.0, 404);
    assert_eq!(world.ask("DELETE", "/system/namespace/openfaas-fn", "{}").await.0, 400);
}

#[tokio::test]
async fn logs_are_lines_of_json_with_all_members() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let response =
        world.send("GET", "/system/logs?name=f&tail=-1&follow=false&namespace=openfaas-fn", "").await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((line["name"].as_str(), line["namespace"].as_str()), (Some("f"), Some("openfaas-fn")));
    assert_eq!(line["text"], "started for f.openfaas-fn");
    assert!(line["instance"].as_str().unwrap().starts_with("f-") && line["timestamp"].is_string());
    assert_eq!(world.ask("GET", "/system/logs?name=none", "").await, (404, "function not found\n".into()));
    let bad = world.ask("GET", "/system/logs?name=f&tail=many", "").await;
    assert_eq!(bad, (422, "could not parse the log request\n".into()));
}

#[tokio::test]
async fn a_followed_log_goes_on_until_the_function_is_removed() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let mut response = world.send("GET", "/system/logs?name=f&follow=true", "").await;
    response.chunk().await.unwrap().unwrap();
    world.function("f").log.write(&"i".into(), "later".into());
    let chunk = response.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&chunk).contains("later"));
    world.ask("DELETE", "/system/functions", r#"{"functionName":"f"}"#).await;
    let end = tokio::time::timeout(Duration::from_secs(10), async {
        while response.chunk().await.unwrap().is_some() {}
    });
    end.await.unwrap();
}

#[tokio::test]
async fn a_replica_that_dies_ends_its_requests_with_502_and_is_replaced() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let never = world.ask("GET", "/function/f/never", "");
    let crash = async {
        world.until("the request is there", || world.function("f").replicas()[0].in_flight() == 1).await;
        world.runtime.crash();
    };
    let ((status, text), ()) = tokio::join!(never, crash);
    assert_eq!((status, text.as_str()), (502, "Can't reach service for: f.openfaas-fn.\n"));
    assert_eq!(
        world.ask("POST", "/function/f", "again").await.0,
        200,
        "the next one waits for the replacement"
    );
    assert!(actions(&world).await.contains(&"died".to_string()));
    let seen = overview(&world).await;
    assert_eq!((seen.functions[0].failed_total, seen.functions[0].cold_starts), (1, 1));
}

#[tokio::test]
async fn replicas_that_cannot_start_are_tried_again_ever_more_slowly_and_say_why() {
    let world = World::with(InProcess::broken("no such program"), None).await;
    let body = r#"{"service":"f","image":"/bin/cat"}"#;
    assert_eq!(world.ask("POST", "/system/functions", body).await.0, 202);
    world.until("three deaths", || world.function("f").health().failures >= 3).await;
    let problem = overview(&world).await.functions[0].problem.clone().unwrap();
    assert!(problem.starts_with("a replica died young 3 times in a row: no such program"), "{problem}");
    assert_eq!(world.json("/system/function/f").await["annotations"]["gpufn.dev/problem"], problem);
}

#[tokio::test]
async fn a_request_is_held_for_so_long_and_then_told_why_there_is_no_replica() {
    let world = World::with(InProcess::broken("no such program"), None).await;
    let body = r#"{"service":"f","image":"/bin/cat"}"#;
    assert_eq!(world.ask("POST", "/system/functions", body).await.0, 202);
    let (status, text) = world.ask("POST", "/function/f", "").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("no replica of f.openfaas-fn: a replica died young"), "{text}");
    assert_eq!(text.lines().count(), 1);
    let held = &world.function("f").counters.held;
    held.fetch_add(crate::up::gateway::HELD_MAX, std::sync::atomic::Ordering::SeqCst);
    let (status, text) = world.ask("POST", "/function/f", "").await;
    assert_eq!((status, text.as_str()), (503, "1024 requests wait for f.openfaas-fn already\n"));
}

#[tokio::test]
async fn the_queue_of_asynchronous_calls_refuses_what_is_too_much() {
    let world = World::start().await;
    world.deploy("f", "").await;
    let body = "x".repeat(8 << 20);
    for _ in 0..8 {
        assert_eq!(world.ask("POST", "/async-function/f/never", &body).await.0, 202);
    }
    let full = world.send("POST", "/async-function/f/never", &body).await;
    assert_eq!((full.status().as_u16(), &full.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(world.ask("POST", "/async-function/f", &format!("{body}x")).await.0, 413);
}

#[tokio::test]
async fn a_share_that_fits_nowhere_leaves_the_function_without_replica_and_says_why() {
    let world = World::start().await;
    world.deploy("big", r#""gpufn.dev/sm":"100","gpufn.dev/quota":"100","gpufn.dev/memory":"12Gi""#).await;
    let body = format!(r#"{{"service":"f","image":"/bin/cat","annotations":{{{SHARED}}}}}"#);
    assert_eq!(world.ask("POST", "/system/functions", &body).await.0, 202);
    world.until("it is refused", || world.function("f").health().problem.is_some()).await;
    let problem = world.function("f").health().problem.clone().unwrap();
    assert!(problem.starts_with("no GPU has room for SM share 20 %, quota 20 % and 2.0 GiB"), "{problem}");
    world.ask("DELETE", "/system/functions", r#"{"functionName":"big"}"#).await;
    world.until("there is room now", || world.function("f").available() == 1).await;
}

#[tokio::test]
async fn decisions_change_grants_park_and_scale_and_a_request_wakes() {
    let world = World::start().await;
    world.deploy("f", SHARED).await;
    let instance = world.function("f").replicas()[0].instance.to_string();
    let tell = |action| world.told.0.lock().unwrap().push_back(action);
    let grant = |percent_wanted| {
        let replica = world.function("f").replicas()[0].clone();
        move || replica.lease().as_ref().is_some_and(|lease| lease.binding.grant == percent(percent_wanted))
    };
    tell(Action::Grant { replica: instance.clone(), quota: percent(50) });
    world.until("the grant is 50 %", grant(50)).await;
    tell(Action::Park { replica: instance.clone() });
    world.until("it is parked", || world.function("f").replicas()[0].phase() == Phase::Parked).await;
    world.until("its grant is gone", grant(0)).await;
    assert_eq!(world.ask("POST", "/function/f", "wake").await.0, 200);
    world.until("it is ready at its floor", grant(20)).await;
    assert_eq!(world.function("f").replicas()[0].phase(), Phase::Ready);
    tell(Action::Scale { function: "f.openfaas-fn".into(), replicas: 2 });
    world.until("a second replica", || world.function("f").available() == 2).await;
    let seen = overview(&world).await;
    let f = &seen.functions[0];
    assert_eq!((f.vertical_changes, f.parks, f.wakes, f.horizontal_changes, f.cold_starts), (1, 1, 1, 1, 1));
    let seen = actions(&world).await;
    assert_eq!(seen, ["start", "grant", "park", "wake", "scale", "start"]);
    assert_eq!(f.replicas[0].sm_percent, 20);
}

#[tokio::test]
async fn reserved_gpu_seconds_grow_by_the_dominant_share_and_by_use_beyond_it() {
    let world = World::start().await;
    world.deploy("f", SHARED).await;
    world.until("a round has passed", || world.function("f").totals().reserved > 0.0).await;
    let before = world.function("f").totals();
    *world.node.used.lock().unwrap() = Nanos::from_secs(100);
    world.until("use is seen", || world.function("f").totals().used > before.used).await;
    let after = world.function("f").totals();
    assert!((after.used - 20.0).abs() < 1e-6, "{after:?}");
    assert!(after.reserved >= 20.0 && after.reserved < 22.0, "{after:?}");
}

#[tokio::test]
async fn a_binding_that_the_node_lost_is_replaced_with_its_replica() {
    let world = World::start().await;
    world.deploy("f", SHARED).await;
    let id = world.function("f").replicas()[0].lease().as_ref().unwrap().binding.id.clone();
    world.node.ledger.lock().unwrap().release(&id).unwrap();
    world
        .until("another replica", || {
            let replicas = world.function("f").replicas();
            world.runtime.started() == 2 && replicas.iter().any(|replica| replica.phase() == Phase::Ready)
        })
        .await;
}

#[tokio::test]
async fn an_asynchronous_call_is_answered_at_once_and_its_result_sent_on() {
    let world = World::start().await;
    world.deploy("f", "").await;
    world.deploy("sink", "").await;
    let callback = format!("{}/function/sink/result", world.url);
    let request = world.client.post(format!("{}/async-function/f.openfaas-fn/x?y=1", world.url));
    let response = request.header("x-callback-url", callback).body("later").send().await.unwrap();
    assert_eq!(response.status(), 202);
    let id = response.headers()["x-call-id"].clone();
    assert!(!id.is_empty() && response.text().await.unwrap().is_empty());
    world
        .until("the result arrived", || {
            world.function("sink").counters.requests.load(std::sync::atomic::Ordering::SeqCst) == 1
        })
        .await;
    assert_eq!(world.ask("POST", "/async-function/none", "").await.0, 404);
    let bad =
        world.client.post(format!("{}/async-function/f", world.url)).header("x-callback-url", "https://a/");
    assert_eq!(bad.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn what_was_deployed_comes_back() {
    let world = World::start().await;
    world.deploy("f", SHARED).await;
    let kept = world.platform.store.deployments();
    assert_eq!((kept.len(), kept[0].replicas), (1, 1));
    let deployed = world.function("f").spec().deployment.clone();
    assert_eq!(kept[0].deployment, deployed);
}

#[tokio::test]
async fn metrics_have_the_names_of_the_gateway() {
    let world = World::start().await;
    world.deploy("f", SHARED).await;
    world.ask("POST", "/function/f", "x").await;
    world.ask("GET", "/system/functions", "").await;
    let (_, text) = world.ask("GET", "/metrics", "").await;
    let lines = [
        "gateway_function_invocation_total{code=\"200\",function_name=\"f.openfaas-fn\"} 1",
        "gateway_function_invocation_started{function_name=\"f.openfaas-fn\"} 1",
        "gateway_service_count{function_name=\"f.openfaas-fn\"} 1",
        "provider_http_requests_total{code=\"200\",method=\"GET\",path=\"/system/functions\"} 1",
    ];
    for line in lines {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_route_is_a_path_without_the_name() {
    let cases = [
        ("/system/function/f", "/system/function"),
        ("/system/namespace/", "/system/namespace"),
        ("/healthz", "/healthz"),
    ];
    for (path, route) in cases {
        assert_eq!(super::route(path), route);
    }
}
