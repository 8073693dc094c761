//! The run against a small gateway that answers as `gpufn up` does.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{any, get, put};
use axum::{Json, body};

use super::*;
use crate::demo::forecast;
use crate::demo::report::Report;
use crate::demo::scenario::Scenario;
use crate::figures::Machine;
use crate::load::trace::Traces;
use crate::view::{FunctionSummary, ReplicaSummary};

/// What the gateway was asked, and what it says of itself.
#[derive(Default)]
struct Seen {
    calls: Vec<String>,
    invoked: u64,
}

type Shared = Arc<Mutex<Seen>>;

fn note(seen: &Shared, call: String) {
    seen.lock().unwrap().calls.push(call);
}

async fn update(State(seen): State<Shared>, body: body::Bytes) -> StatusCode {
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    note(&seen, format!("PUT {}", body["service"].as_str().unwrap()));
    StatusCode::NOT_FOUND
}

async fn create(State(seen): State<Shared>, body: body::Bytes) -> StatusCode {
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    note(&seen, format!("POST {}", body["service"].as_str().unwrap()));
    StatusCode::ACCEPTED
}

async fn delete(State(seen): State<Shared>, body: body::Bytes) -> StatusCode {
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    note(&seen, format!("DELETE {}", body["functionName"].as_str().unwrap()));
    StatusCode::ACCEPTED
}

async fn describe(State(seen): State<Shared>, Path(name): Path<String>) -> Json<serde_json::Value> {
    // Not ready when it is asked for the first time.
    let call = format!("GET {name}");
    let again = seen.lock().unwrap().calls.contains(&call);
    note(&seen, call);
    Json(serde_json::json!({ "name": name, "availableReplicas": u32::from(again) }))
}

async fn invoke(State(seen): State<Shared>) {
    seen.lock().unwrap().invoked += 1;
}

async fn overview(State(seen): State<Shared>) -> Json<Overview> {
    let invoked = seen.lock().unwrap().invoked;
    let replica = ReplicaSummary {
        instance: "resnet50-1".into(),
        state: "ready".into(),
        pid: Some(7),
        ..Default::default()
    };
    let function = FunctionSummary {
        name: "resnet50".into(),
        reserved_gpu_seconds: crate::figures::number(invoked),
        replicas: vec![replica],
        ..Default::default()
    };
    Json(Overview { uptime_s: 1.0, functions: vec![function], ..Default::default() })
}

async fn decisions(Query(query): Query<BTreeMap<String, u64>>) -> Json<Vec<DecisionRecord>> {
    let decision = |seq| DecisionRecord {
        seq,
        function: "resnet50".into(),
        instance: Some("resnet50-1".into()),
        action: "grant".into(),
        from: Some(20.0),
        to: Some(45.0),
        ..Default::default()
    };
    // Number 1 is older than the load; number 2 comes during it.
    let now = if query["after"] == 0 { 1 } else { 2 };
    Json((query["after"] + 1..=now).map(decision).collect())
}

async fn gateway() -> (String, Shared) {
    let seen = Shared::default();
    let app = Router::new()
        .route("/system/functions", put(update).post(create).delete(delete))
        .route("/system/function/{name}", get(describe))
        .route("/function/{name}", any(invoke))
        .route("/v1/overview", get(overview))
        .route("/v1/decisions", get(decisions))
        .with_state(Arc::clone(&seen));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, seen)
}

fn scenario() -> Scenario {
    let text = "trace,shape,step,start_s,duration_s,rps\nmine,hold,0,0,2,20\n";
    let traces = Traces::parse(text).unwrap();
    let mut scenario = Scenario::new("/b", &Traces::shipped().unwrap().with(traces), true, 1).unwrap();
    // The burst of the shipped trace is long; its first seconds do.
    scenario.requests.retain(|request| request.at < Duration::from_secs(1));
    scenario
}

fn setup(label: &'static str) -> Setup {
    let path = PathBuf::from("/nonexistent");
    Setup { label, policy: "gpufn".into(), gpus: 1, bin: path.clone(), state: path.clone(), log: path }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_deploys_waits_loads_watches_and_cleans_up() {
    let (url, seen) = gateway().await;
    let scenario = scenario();
    let observed = drive(&scenario, &setup("gpufn"), &url, &Interrupt::default()).await.unwrap();

    assert_eq!(observed.outcomes.len(), scenario.requests.len());
    assert!(observed.outcomes.iter().all(Outcome::is_ok));
    let seqs: Vec<_> = observed.decisions.iter().map(|decision| decision.seq).collect();
    assert_eq!(seqs, [2], "only what was decided during the load, and once");
    let seen = seen.lock().unwrap();
    let calls = |start: &str| seen.calls.iter().filter(|call| call.starts_with(start)).count();
    assert_eq!((calls("PUT"), calls("POST"), calls("DELETE")), (4, 4, 4));
    assert_eq!(seen.invoked, u64::try_from(scenario.requests.len()).unwrap() + 4);

    let simulated = forecast::simulate(&scenario, "gpufn", 1).unwrap();
    let report = Report::new(&scenario, [&observed, &observed], &simulated, 2.5, Machine::here("none"));
    assert!(report.shared.total.reserved_gpu_seconds > 0.0);
    assert_eq!(report.shared.vertical_with_same_pid, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_run_says_so() {
    let (url, _) = gateway().await;
    let interrupt = Interrupt::default();
    interrupt.stop.cancel();
    let error = drive(&scenario(), &setup("gpufn"), &url, &interrupt).await.unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}

#[tokio::test]
async fn a_refused_deployment_names_the_function_and_the_reason() {
    let app = Router::new().route(
        "/system/functions",
        put(|| async { (StatusCode::BAD_REQUEST, "gpufn.dev/sm is \"0\", allowed is 1 to 100\n") }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let error = drive(&scenario(), &setup("gpufn"), &url, &Interrupt::default()).await.unwrap_err();
    let expected =
        "function resnet50 is not deployed: 400 Bad Request gpufn.dev/sm is \"0\", allowed is 1 to 100";
    assert_eq!(error.to_string(), expected);
}
