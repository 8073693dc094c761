//! The main job in small: functions share one simulated GPU under `gpufn up`, keep to their shares, and are resized,
//! parked, woken and scaled while they run.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use reqwest::StatusCode;
use tests::function::Function;
use tests::gateway::Gateway;
use tests::load::{Load, Stream};
use tests::local::Local;
use tests::node::Stats;
use tests::overview::{Decision, Replica};
use tests::process;
use tests::wait::until;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest wait for a decision of the scaler or a start.
const PATIENCE: Duration = Duration::from_secs(30);

async fn replica(gateway: &Gateway, name: &str) -> Option<Replica> {
    gateway.overview().await.function(name)?.serving().next().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_functions_on_one_gpu_answer_right_and_keep_to_their_shares() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let fixed = |name: &str, model: &str, sm, quota| {
        Function::inference(name, model)
            .sm(sm)
            .quota(quota, quota)
            .memory("1500Mi")
            .policy("off")
            .replicas(1, 1)
    };
    let functions = [
        fixed("resnet50", "resnet50", 15, 20),
        fixed("convnext", "convnext_base", 25, 25),
        fixed("vgg16", "vgg16", 25, 30),
        fixed("bert", "bert", 30, 40).memory("2900Mi"),
    ];
    for function in &functions {
        gateway.deploy_ready(function).await;
    }
    for function in &functions {
        gateway.infer(function.name()).await;
    }
    let overview = gateway.overview().await;
    assert_eq!(overview.gpus.len(), 1);
    assert!(overview.gpus[0].name.contains("simulated"), "{:?}", overview.gpus);
    assert!(overview.gpus[0].reserved_ratio <= 1.0, "{:?}", overview.gpus);

    // An inference takes 20 to 30 ms, of vgg16 about 10 ms, so this is more than each can do within its quota: what it gets is then its
    // quota, as the GPU itself counts it.
    let rps = |function: &Function| if function.name() == "vgg16" { 40.0 } else { 20.0 };
    let streams = functions.iter().map(|function| Stream::new(function.name(), rps(function)));
    let load = Load::start(gateway, streams, Duration::from_mins(1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Stats::read(&local.gpu_socket()).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let end = Stats::read(&local.gpu_socket()).unwrap();
    let mut wrong = Vec::new();
    for function in &functions {
        let replica = replica(gateway, function.name()).await.unwrap();
        let part = 100.0 * end.part_since(&start, replica.pid.unwrap());
        println!("{}: quota {} %, used {part:.1} % of the time", function.name(), replica.ceiling_percent);
        // Between two inferences a function has nothing to run, and time that it leaves is not saved up for it.
        if part > replica.ceiling_percent + 3.0 || part < 0.7 * replica.ceiling_percent {
            wrong.push(format!("{} used {part:.1} % under {} %", function.name(), replica.ceiling_percent));
        }
        if replica.memory_used_bytes == 0 || replica.memory_used_bytes > replica.memory_limit_bytes {
            wrong.push(format!("{} holds {} bytes", function.name(), replica.memory_used_bytes));
        }
    }
    drop(load);
    local.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busier_function_gets_a_larger_grant_in_the_same_process_and_an_idle_one_is_parked_and_woken() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let function = Function::inference("resnet50", "resnet50").sm(15).quota(10, 90).memory("1500Mi");
    gateway.deploy_ready(&function.policy("vertical").slo("p95<100ms").replicas(1, 1)).await;
    let pid = gateway.infer("resnet50").await.pid;

    until("the grant to be small again", PATIENCE, async || {
        replica(gateway, "resnet50")
            .await
            .filter(|replica| replica.grant_percent < 1.2 * replica.floor_percent)
    })
    .await;
    // An inference takes 21 ms on 15 % of the SMs, so this needs five times the floor.
    let load = Load::start(gateway, [Stream::new("resnet50", 25.0)], Duration::from_secs(20));
    let start = Instant::now();
    let grown = until("a larger grant", PATIENCE, async || {
        replica(gateway, "resnet50")
            .await
            .filter(|replica| replica.grant_percent > 1.5 * replica.floor_percent)
    })
    .await;
    println!("grant {} % → {} % after {:?}", grown.floor_percent, grown.grant_percent, start.elapsed());
    assert_eq!(grown.pid, Some(pid), "the process was replaced");
    assert!(gateway.overview().await.function("resnet50").unwrap().vertical_changes >= 1);
    let shots = load.stop().await;
    let failed = shots.iter().filter(|shot| !shot.is_ok()).count();
    assert_eq!(failed, 0, "{failed} of {} requests failed", shots.len());

    let start = Instant::now();
    until("the idle function to be parked", Duration::from_secs(90), async || {
        let overview = gateway.overview().await;
        let function = overview.function("resnet50")?;
        (function.parks >= 1 && function.replicas.iter().any(|replica| replica.state == "parked"))
            .then_some(())
    })
    .await;
    println!("parked after {:?} without requests", start.elapsed());
    assert!(process::lives(pid), "a parked function keeps its process");

    let start = Instant::now();
    let answer = gateway.infer("resnet50").await;
    println!("the first request to the parked function took {:?}", start.elapsed());
    assert_eq!(answer.pid, pid, "a parked function is woken, not started again");
    assert!(start.elapsed() < Duration::from_secs(2), "waking took {:?}", start.elapsed());
    until("the wake to be counted", PATIENCE, async || {
        let overview = gateway.overview().await;
        (overview.function("resnet50")?.wakes >= 1).then_some(())
    })
    .await;
    check_decisions(&gateway.decisions().await);
    local.stop().await;
}

/// All that was done to the function is on record, in order and with reasons.
fn check_decisions(decisions: &[Decision]) {
    for action in ["grant", "park", "wake"] {
        let done =
            decisions.iter().any(|decision| decision.action == action && decision.function == "resnet50");
        assert!(done, "no decision {action:?} in {decisions:?}");
    }
    let raised = |decision: &Decision| decision.action == "grant" && decision.to > decision.from;
    assert!(decisions.iter().any(raised), "no grant was raised in {decisions:?}");
    assert!(decisions.is_sorted_by_key(|decision| decision.seq), "{decisions:?}");
    assert!(decisions.iter().all(|decision| !decision.reason.is_empty()), "{decisions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_scaled_to_two_to_none_and_from_none_by_a_held_request() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let function = Function::inference("resnet50", "resnet50").sm(20).quota(20, 50).memory("1Gi");
    gateway.deploy_ready(&function.policy("off").replicas(0, 3)).await;

    gateway.scale("resnet50", 2).await;
    assert_eq!(gateway.replicas("resnet50").await.0, 2, "the wanted number shows at once");
    until("two replicas", PATIENCE, async || (gateway.replicas("resnet50").await == (2, 2)).then_some(()))
        .await;
    assert_eq!(local.node().bindings().await.unwrap().len(), 2);

    gateway.scale("resnet50", 0).await;
    until("no replica", PATIENCE, async || (gateway.replicas("resnet50").await == (0, 0)).then_some(()))
        .await;
    until("all that it held to be given back", PATIENCE, async || {
        local.node().bindings().await.unwrap().is_empty().then_some(())
    })
    .await;

    let start = Instant::now();
    let (first, second) = tokio::join!(gateway.infer("resnet50"), gateway.infer("resnet50"));
    println!("two requests from zero took {:?}", start.elapsed());
    assert_eq!(first.pid, second.pid, "one replica answers both");
    let overview = gateway.overview().await;
    assert!(overview.function("resnet50").unwrap().cold_starts >= 1);
    local.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_secrets_and_asynchronous_calls_reach_their_ends() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    gateway.secret("api-key", "openfaas-fn", "the-secret").await;
    gateway.deploy(&Function::echo("echo").secret("api-key").env("greeting", "hello")).await;

    assert_eq!(gateway.invoke("echo/env/greeting", "").await, (StatusCode::OK, "hello".into()));
    assert_eq!(gateway.invoke("echo/secret/api-key", "").await, (StatusCode::OK, "the-secret".into()));
    assert_eq!(gateway.invoke("echo.openfaas-fn/a/b?c=d", "xy").await.1, "POST /a/b?c=d 2 bytes: xy");
    assert_eq!(gateway.invoke("echo/status/418", "").await.0, StatusCode::IM_A_TEAPOT);

    let line = until("a line of the function in its logs", PATIENCE, async || {
        let (_, text) =
            gateway.call(reqwest::Method::GET, "/system/logs?name=echo&tail=-1", &().into()).await;
        text.lines().find(|line| line.contains("/a/b?c=d")).map(str::to_string)
    })
    .await;
    let message: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (message["name"].as_str(), message["namespace"].as_str()),
        (Some("echo"), Some("openfaas-fn"))
    );

    let (headers, body) = asynchronous_call(gateway, "echo/later", "payload").await;
    assert_eq!(body, "POST /later? 7 bytes: payload");
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_string());
    let name = header("x-function-name").unwrap_or_default();
    assert!(["echo", "echo.openfaas-fn"].contains(&name.as_str()), "{headers:?}");
    assert_eq!(header("x-function-status").as_deref(), Some("200"));
    assert!(header("x-call-id").is_some_and(|id| !id.is_empty()), "{headers:?}");
    assert!(header("x-duration-seconds").is_some_and(|s| s.parse::<f64>().is_ok()), "{headers:?}");
    local.stop().await;
}

/// Calls `path` asynchronously with a callback to this test, and returns what the callback got.
async fn asynchronous_call(gateway: &Gateway, path: &str, body: &'static str) -> (HeaderMap, String) {
    let (send, mut receive) = mpsc::channel(1);
    let callback = Router::new().route(
        "/callback",
        post(async move |headers: HeaderMap, body: Bytes| {
            // The test waits for exactly one.
            let _ = send.send((headers, String::from_utf8_lossy(&body).into_owned())).await;
        }),
    );
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/callback", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, callback).await });
    let request = gateway.client().post(format!("{}/async-function/{path}", gateway.url()));
    let answer = request.header("X-Callback-Url", url).body(body).timeout(PATIENCE).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert!(answer.headers().contains_key("x-call-id"), "{:?}", answer.headers());
    let received = timeout(PATIENCE, receive.recv()).await.unwrap().unwrap();
    server.abort();
    received
}
