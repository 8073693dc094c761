//! The way of a decision of `gpufn-scaler serve` to a pod's annotation: an API server and watchdogs around the real program.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::apiserver::ApiServer;
use tests::process::kill;
use tests::scaler::{Builder, Scaler};
use tests::wait::until;
use tests::watchdogs::Watchdogs;

const PATIENCE: Duration = Duration::from_secs(30);
/// What functions ask for.
const ASKED: [(&str, &str); 4] = [("sm", "50"), ("quota", "20"), ("quota-limit", "80"), ("slo", "p95<1s")];
/// Time between two decisions.
const PERIOD: Duration = Duration::from_millis(250);
/// What reading, deciding and writing take besides, on a machine that has other things to do too.
const MARGIN: Duration = Duration::from_millis(250);

/// Functions with a replica each, which is bound to a GPU of its own.
struct Stage {
    cluster: ApiServer,
    watchdogs: Watchdogs,
}

impl Stage {
    /// The functions of these names, with what they ask for besides.
    async fn with(functions: &[(&str, &[(&str, &str)])]) -> Self {
        let count = u8::try_from(functions.len()).unwrap();
        let (cluster, watchdogs) = (ApiServer::start().await, Watchdogs::start(count).await);
        for (place, (name, asked)) in functions.iter().enumerate() {
            let asked: Vec<_> = ASKED.iter().chain(*asked).copied().collect();
            cluster.put_deployment(name, 1, &asked);
            let address = watchdogs.address(u8::try_from(place).unwrap());
            cluster.put_bound_replica(name, &pod(name), address, 20);
        }
        watchdogs.show_all(|shown| {
            // 2 requests a second of 20 ms are well borne by 20 % of the time.
            (shown.rate, shown.share, shown.latency) = (2.0, Some((0.02, 0.2)), 0.1);
        });
        Self { cluster, watchdogs }
    }

    fn builder(&self) -> Builder {
        Scaler::builder(&self.cluster)
            .with("--watchdog-port", &self.watchdogs.port)
            .with("--lease-duration", "3s")
    }

    /// Starts a scaler, and waits until it has watched the functions for long enough to change something.
    async fn leader(&self, name: &str) -> Scaler {
        let scaler = self.builder().start().await;
        until_watched(&scaler, name).await;
        scaler
    }

    /// So many requests are at each function now that they are late at 20 %.
    fn jump(&self) {
        self.watchdogs.show_all(|shown| shown.in_flight = 30);
    }
}

fn pod(function: &str) -> String {
    format!("{function}-0")
}

/// Whether a scaler says that it leads.
async fn leads(scaler: &Scaler) -> bool {
    scaler.metric("gpufn_scaler_leader").await > 0.5
}

/// What `gpufn explain` prints.
async fn explain(scaler: &Scaler, function: &str) -> String {
    let mut command = tokio::process::Command::new(tests::programs::built("gpufn"));
    let server = format!("http://{}", scaler.http);
    let ended = command.args(["explain", function, "--server", &server]).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn until_watched(scaler: &Scaler, name: &str) {
    until(&format!("{name} to be watched"), PATIENCE, async || {
        let why = scaler.why(name).await;
        let is_known = !why["known"]["request"].is_null();
        (is_known && why["watched_seconds"].as_f64()? > 4.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_jump_of_the_load_is_in_the_annotation_within_a_control_period() {
    let names = ["a", "b", "c", "d", "e"];
    let functions: Vec<_> = names.iter().map(|name| (*name, &[][..])).collect();
    let stage = Stage::with(&functions).await;
    let scaler = stage.leader("e").await;
    assert_eq!(stage.cluster.written(), [], "what is enough is left alone");
    let mut spans = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let seen = stage.cluster.written().len();
        let jumped = Instant::now();
        stage.watchdogs.show(place, |shown| shown.in_flight = 30);
        let written = stage.cluster.until_written(&pod(name), seen, PATIENCE).await;
        assert_eq!((written.value.as_str(), written.manager.as_str()), ("80", "gpufn-scaler"));
        spans.push(written.at - jumped);
    }
    println!("from the load to the annotation: {spans:?}");
    // What others on this machine do delays some; what is slow by itself delays all.
    assert!(*spans.iter().min().unwrap() <= PERIOD + MARGIN, "{spans:?}");
    // The node's agent has granted it, and nothing is written again.
    let seen = stage.cluster.written().len();
    stage.watchdogs.show_all(|shown| shown.share = Some((0.02, 0.8)));
    scaler.until_decided(8.0).await;
    assert_eq!(stage.cluster.written().len(), seen);
    let note = stage.cluster.until_event("GpuQuotaRaised").await;
    assert!(note.contains("quota 20 % to 80 %"), "{note}");
    assert!(scaler.metric("gpufn_scaler_decisions_total{action=\"raise\",outcome=\"done\"}").await >= 5.0);
}

#[tokio::test]
async fn what_is_paused_off_or_somebody_else_s_is_never_written() {
    let stage = Stage::with(&[
        ("plain", &[]),
        ("off", &[("policy", "off")]),
        ("horizontal", &[("policy", "horizontal")]),
        ("paused", &[]),
        ("still", &[]),
        ("vpa", &[]),
        ("pinned", &[]),
        ("wrong", &[("quota-limit", "10")]),
    ])
    .await;
    stage.cluster.put_owner("scaledobjects", "paused", &[("autoscaling.keda.sh/paused", "true")]);
    stage.cluster.put_owner("scaledobjects", "still", &[("autoscaling.keda.sh/paused-replicas", "1")]);
    stage.cluster.put_owner("verticalpodautoscalers", "vpa", &[]);
    stage.cluster.change_replica("pinned-0", |metadata| {
        metadata["managedFields"] = json!([{
            "manager": "kubectl-annotate", "operation": "Update", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:annotations": {"f:gpufn.dev/quota": {}}}},
        }]);
    });
    let scaler = stage.leader("plain").await;
    stage.jump();
    stage.cluster.until_written("plain-0", 0, PATIENCE).await;
    scaler.until_decided(8.0).await;
    let written = stage.cluster.written();
    assert!(written.iter().all(|written| written.name == "plain-0"), "{written:?}");
    let said = |why: &Value| why["left_alone"].to_string();
    assert!(said(&scaler.why("paused").await).contains("the ScaledObject paused is paused"));
    assert!(said(&scaler.why("vpa").await).contains("the VerticalPodAutoscaler vpa resizes its pods"));
    assert!(said(&scaler.why("off").await).contains("gpufn.dev/policy is off"));
    assert!(said(&scaler.why("wrong").await).contains("gpufn.dev/quota-limit is \\\"10\\\""));
    assert_eq!(scaler.why("pinned").await["replicas"][0]["written_by"], "kubectl-annotate");
    // No longer paused, it is written.
    stage.cluster.put_owner("scaledobjects", "paused", &[]);
    stage.cluster.until_written("paused-0", 0, PATIENCE).await;
}

#[tokio::test]
async fn when_the_leader_dies_another_takes_over_within_the_lease_and_nothing_jumps() {
    let stage = Stage::with(&[("a", &[])]).await;
    let first = stage.leader("a").await;
    let second = stage.builder().start().await;
    assert!(leads(&first).await && !leads(&second).await);
    stage.jump();
    stage.cluster.until_written("a-0", 0, PATIENCE).await;
    stage.watchdogs.show_all(|shown| shown.share = Some((0.02, 0.8)));
    first.until_decided(4.0).await;
    let (seen, holder) = (stage.cluster.written().len(), stage.cluster.holder("gpufn-scaler").unwrap());
    assert_eq!(second.why("a").await["decided_by"], holder.as_str());
    // Much less comes from now on, so that whoever looks only at now would take it back.
    stage.watchdogs.show_all(|shown| shown.in_flight = 1);
    kill(first.pid());
    let died = Instant::now();
    until("the other to lead", PATIENCE, async || leads(&second).await.then_some(())).await;
    // The Lease's duration, two tries of a fifteenth each, and what this machine has to do besides.
    assert!(died.elapsed() <= Duration::from_secs(3 + 2), "{:?}", died.elapsed());
    assert_ne!(stage.cluster.holder("gpufn-scaler").unwrap(), holder);
    until("it to have watched for five seconds", PATIENCE, async || {
        (second.why("a").await["watched_seconds"].as_f64()? > 5.0).then_some(())
    })
    .await;
    assert_eq!(stage.cluster.written().len(), seen, "{:?}", stage.cluster.written());
    // What it knows by then it acts on: less is enough.
    let lowered = stage.cluster.until_written("a-0", seen, PATIENCE).await;
    assert!(lowered.value.parse::<u8>().unwrap() < 80, "{lowered:?}");
}

#[tokio::test]
async fn a_leader_that_is_told_to_end_gives_the_lease_back() {
    let stage = Stage::with(&[("a", &[])]).await;
    let first = stage.builder().with("--lease-duration", "1m").start().await;
    until("a leader", PATIENCE, async || stage.cluster.holder("gpufn-scaler")).await;
    let ended = tokio::task::spawn_blocking(move || first.stop()).await.unwrap();
    assert!(ended.0.success() && ended.1);
    assert_eq!(stage.cluster.holder("gpufn-scaler"), None);
    let second = stage.builder().start().await;
    until("the other to lead", PATIENCE, async || leads(&second).await.then_some(())).await;
}

#[tokio::test]
async fn a_dry_run_tells_what_it_would_do_and_writes_nothing() {
    let stage = Stage::with(&[("a", &[("replicas", "1..4")])]).await;
    let scaler = stage.builder().flag("--dry-run").start().await;
    until_watched(&scaler, "a").await;
    stage.jump();
    let told = until("a decision to be told", PATIENCE, async || {
        let why = scaler.why("a").await;
        why["past"].as_array()?.iter().find(|past| past["subject"] == "a-0").cloned()
    })
    .await;
    assert_eq!((told["what"].as_str(), told["outcome"].as_str()), (Some("quota 20 % to 80 %"), Some("told")));
    scaler.until_decided(8.0).await;
    assert_eq!(stage.cluster.written(), []);
    assert_eq!(stage.cluster.events(), Vec::<String>::new());
    let told = scaler.metric("gpufn_scaler_decisions_total{action=\"raise\",outcome=\"told\"}").await;
    assert!((1.0..2.0).contains(&told), "it is told {told} times");
}

#[tokio::test]
async fn an_api_server_that_was_away_is_written_to_again_by_one_that_leads() {
    let stage = Stage::with(&[("a", &[])]).await;
    let scaler = stage.leader("a").await;
    stage.cluster.set_gone(true);
    // It can't renew, so that it stops by itself.
    until("it to lead no more", PATIENCE, async || (!leads(&scaler).await).then_some(())).await;
    stage.jump();
    stage.cluster.set_gone(false);
    let written = stage.cluster.until_written("a-0", 0, PATIENCE).await;
    assert_eq!(written.value, "80");
}

#[tokio::test]
async fn replicas_that_nobody_owns_are_as_many_as_are_needed() {
    let stage = Stage::with(&[("free", &[("replicas", "1..4")]), ("keda", &[("replicas", "1..4")])]).await;
    stage.cluster.put_owner("scaledobjects", "keda", &[]);
    let scaler = stage.leader("free").await;
    stage.watchdogs.show_all(|shown| (shown.in_flight, shown.waiting, shown.oldest) = (60, 60, 2.0));
    let written = until("more replicas", PATIENCE, async || {
        stage.cluster.written().into_iter().find(|written| written.name == "free" && written.value == "4")
    })
    .await;
    assert_eq!(written.manager, "gpufn-scaler");
    scaler.until_decided(8.0).await;
    assert!(stage.cluster.written().iter().all(|written| written.name != "keda"));
    let why = scaler.why("keda").await["left_alone"].to_string();
    assert!(why.contains("replicas are the ScaledObject keda's"), "{why}");
}

#[tokio::test]
async fn a_decision_is_explained_with_what_was_weighed() {
    let stage = Stage::with(&[("a", &[])]).await;
    let scaler = stage.leader("a").await;
    stage.jump();
    stage.cluster.until_written("a-0", 0, PATIENCE).await;
    let why = until("the change to be noted", PATIENCE, async || {
        let why = scaler.why("a").await;
        (!why["past"].as_array()?.is_empty()).then_some(why)
    })
    .await;
    assert_eq!((why["is_deciding"].as_bool(), why["slo"].as_str()), (Some(true), Some("p95<1000ms")));
    let past = &why["past"][0];
    assert!(past["reason"].as_str().unwrap().contains("30 in flight take"), "{past}");
    let known = &why["known"];
    assert!((known["request"]["gpu_ms"].as_f64().unwrap() - 20.0).abs() < 3.0, "{known}");
    let candidates = known["candidates"].as_array().unwrap();
    assert!(candidates.iter().any(|one| one["replicas"] == 2 && one["refused"].is_null()), "{known}");
    let said = explain(&scaler, "fn/a").await;
    for line in
        ["fn/a", "  objective   p95<1000ms", "  a-0  ready, 20 % (up to 80 % in its row), 30 in flight"]
    {
        assert!(said.lines().any(|one| one == line), "{line:?} is not in\n{said}");
    }
    assert!(said.contains("a-0: quota 20 % to 80 %"), "{said}");
    assert_eq!(scaler.get("/v1/functions/fn/nobody/explanation").await.0, reqwest::StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_profile_of_the_cluster_is_used_and_its_status_tells_what_functions_have() {
    let stage = Stage::with(&[("a", &[("model", "own")])]).await;
    let scaler = stage.builder().start().await;
    let unknown = until("the model to be missed", PATIENCE, async || {
        let left = scaler.why("a").await["left_alone"].to_string();
        left.contains("gpufn.dev/model is \\\"own\\\"").then_some(left)
    });
    unknown.await;
    // No request is needed to know what one takes.
    stage.watchdogs.show_all(|shown| shown.rate = 0.0);
    stage.cluster.put_profile("own", 1, &json!({"points": [{"batch": 1, "sm": 50, "milliseconds": 37.0}]}));
    let known = async |ms: f64| {
        until(&format!("a request of {ms} ms"), PATIENCE, async || {
            let why = scaler.why("a").await;
            ((why["known"]["request"]["gpu_ms"].as_f64()? - ms).abs() < 1.0).then_some(())
        })
        .await;
    };
    known(37.0).await;
    stage.cluster.put_profile("own", 2, &json!({"points": [{"batch": 1, "sm": 50, "milliseconds": 80.0}]}));
    known(80.0).await;
    let status = until("the status", PATIENCE, async || {
        stage.cluster.profile_status("own").filter(|status| status["observedGeneration"] == 2)
    })
    .await;
    assert_eq!((status["ready"].as_str(), status["quota"].as_str()), (Some("1/1"), Some("20 %")), "{status}");
    assert_eq!(status["slo"], "p95<1000ms");
    assert_eq!(status["functions"][0]["grants"][0]["pod"], "a-0");
    assert_eq!(
        (&status["conditions"][0]["type"], &status["conditions"][0]["status"]),
        (&json!("Accepted"), &json!("True"))
    );
}
