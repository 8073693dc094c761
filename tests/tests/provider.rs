//! `gpufn-scaler provider` as a gateway and faas-cli meet it, in front of an API server and a node that are pretended.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::routing::put;
use axum::{Json, Router};
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::function::Function;
use tests::function_cluster::FunctionCluster;
use tests::programs;
use tests::provider::Provider;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "openfaas-fn";

/// A provider in front of a cluster.
struct Stage {
    cluster: FunctionCluster,
    provider: Provider,
}

impl Stage {
    async fn start() -> Self {
        let cluster = FunctionCluster::start().await;
        let provider = Provider::builder(&cluster).start().await;
        Self { cluster, provider }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, text) = self.provider.gateway().call(method, path, &body).await;
        (status.as_u16(), text)
    }

    async fn get(&self, path: &str) -> Value {
        self.provider.gateway().get(path).await
    }

    async fn deploy(&self, function: &Function) {
        self.provider.gateway().deploy(function).await;
    }

    fn deployment(&self, name: &str) -> Value {
        self.cluster.object("deployments", NAMESPACE, name).unwrap()
    }
}

fn function(name: &str) -> Function {
    Function::echo(name).set("image", json!("registry.local/echo:1"))
}

async fn until_available(stage: &Stage, name: &str, replicas: u64) {
    until(&format!("{replicas} replicas of {name}"), PATIENCE, async || {
        (stage.provider.gateway().replicas(name).await == (replicas, replicas)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_function_is_a_deployment_and_a_service_that_goes_with_it() {
    let stage = Stage::start().await;
    let shared = function("resnet").sm(50).quota(40, 100).memory("3Gi").label("com.openfaas.scale.min", "2");
    stage.deploy(&shared).await;
    let deployment = stage.deployment("resnet");
    assert_eq!(deployment["spec"]["replicas"], 2, "as many as it starts with, at once");
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["gpufn.dev/enabled"], "true");
    // ⌈20 · max(50 % · 40 %, 3 of 80 GiB)⌉
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["gpufn.dev/gpu"], "4");
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    let service = stage.cluster.object("services", NAMESPACE, "resnet").unwrap();
    assert_eq!(service["metadata"]["ownerReferences"][0]["uid"], deployment["metadata"]["uid"]);
    assert_eq!(service["spec"]["selector"], json!({"faas_function": "resnet"}));

    let deleted = stage.call(Method::DELETE, "/system/functions", json!({"functionName": "resnet"})).await;
    assert_eq!(deleted, (202, String::new()));
    assert_eq!(stage.cluster.object("deployments", NAMESPACE, "resnet"), None);
    assert_eq!(stage.cluster.object("services", NAMESPACE, "resnet"), None);
    assert_eq!(stage.get("/system/functions").await, json!([]));
}

#[tokio::test]
async fn another_deployment_changes_what_it_says_and_leaves_replicas_and_what_others_wrote() {
    let stage = Stage::start().await;
    let put = |function: &Function| stage.call(Method::PUT, "/system/functions", function.json());
    assert_eq!(put(&function("f")).await.0, 404, "faas-cli then posts");
    stage.deploy(&function("f").env("A", "1").env("B", "2")).await;
    stage.provider.gateway().scale("f", 3).await;
    let mut other = stage.deployment("f");
    other["metadata"]["annotations"]["example.org/theirs"] = json!("x");
    stage.cluster.put("deployments", &other);

    assert_eq!(put(&function("f").env("B", "3")).await.0, 202);
    let after = stage.deployment("f");
    assert_eq!(
        after["spec"]["template"]["spec"]["containers"][0]["env"],
        json!([{"name": "B", "value": "3"}])
    );
    assert_eq!(after["spec"]["replicas"], 3);
    assert_eq!(after["metadata"]["annotations"]["example.org/theirs"], "x");
    let (code, text) = stage.call(Method::POST, "/system/functions", function("f").json()).await;
    assert_eq!((code, text.as_str()), (409, "function f.openfaas-fn already exists\n"));

    assert_eq!(put(&function("f").label("com.openfaas.scale.max", "2")).await.0, 202);
    assert_eq!(stage.deployment("f")["spec"]["replicas"], 2, "within the new bounds");
}

#[tokio::test]
async fn a_deployment_of_somebody_else_is_neither_shown_nor_touched() {
    let stage = Stage::start().await;
    let theirs = json!({
        "metadata": {"name": "db", "namespace": NAMESPACE, "labels": {"app": "db"}},
        "spec": {"replicas": 1, "selector": {}, "template": {
            "metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "db", "image": "db"}]},
        }},
    });
    stage.cluster.put("deployments", &theirs);
    let (code, text) = stage.call(Method::POST, "/system/functions", function("db").json()).await;
    assert_eq!(
        (code, text.as_str()),
        (409, "a Deployment that is no function db.openfaas-fn already exists\n")
    );
    assert_eq!(stage.call(Method::PUT, "/system/functions", function("db").json()).await.0, 404);
    assert_eq!(stage.call(Method::DELETE, "/system/functions", json!({"functionName": "db"})).await.0, 404);
    let scaled = stage.call(Method::POST, "/system/scale-function/db", json!({"replicas": 0})).await;
    assert_eq!(scaled.0, 404);
    assert_eq!(stage.call(Method::GET, "/system/function/db", Value::Null).await, (404, String::new()));
    assert_eq!(stage.deployment("db")["spec"]["replicas"], 1);
}

#[tokio::test]
async fn replicas_are_shown_at_once_and_zero_is_a_number_too() {
    let stage = Stage::start().await;
    stage.deploy(&function("f")).await;
    for replicas in [4, 0, 1] {
        let body = json!({"serviceName": "f", "replicas": replicas});
        assert_eq!(stage.call(Method::POST, "/system/scale-function/f", body).await, (202, String::new()));
        assert_eq!(stage.provider.gateway().replicas("f").await.0, replicas);
        until_available(&stage, "f", replicas).await;
    }
    let (code, text) = stage.call(Method::POST, "/system/scale-function/f", json!({"replicas": 1001})).await;
    assert_eq!((code, text.as_str()), (400, "replicas is \"1001\", allowed is 0 to 1000\n"));
    assert_eq!(stage.call(Method::POST, "/system/scale-function/g", json!({"replicas": 1})).await.0, 404);
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_one_line_and_leaves_nothing() {
    let stage = Stage::start().await;
    let refused = [
        (json!({"service": "a_b", "image": "i"}), "service is \"a_b\""),
        (json!({"service": "f"}), "image is \"\""),
        (
            json!({"service": "f", "image": "i", "namespace": "kube-system"}),
            "namespace is \"kube-system\", allowed is one of openfaas-fn, staging-fn",
        ),
        (
            json!({"service": "f", "image": "i", "secrets": ["none"]}),
            "secrets is \"none\", allowed is secrets that exist in openfaas-fn",
        ),
        (
            json!({"service": "f", "image": "i", "annotations": {"gpufn.dev/sm": "0"}}),
            "gpufn.dev/sm is \"0\"",
        ),
        (json!({"service": "f", "image": "i", "labels": {"a": "x y"}}), "label a is \"x y\""),
    ];
    for (body, start) in refused {
        let (code, text) = stage.call(Method::POST, "/system/functions", body.clone()).await;
        assert!(code == 400 && text.starts_with(start), "{body}: {code} {text}");
        assert_eq!(text.lines().count(), 1);
    }
    let client = stage.provider.gateway().client();
    let url = format!("{}/system/functions", stage.provider.gateway().url());
    let broken = client.post(&url).body("{").send().await.unwrap();
    assert_eq!(broken.status(), 400);
    assert_eq!(broken.headers()["x-content-type-options"], "nosniff");
    let none = stage.call(Method::DELETE, "/system/functions", json!({"functionName": ""})).await;
    assert_eq!(none.0, 400);
    assert_eq!(stage.call(Method::PATCH, "/system/functions", json!({})).await, (405, String::new()));
    assert_eq!(
        stage.call(Method::GET, "/system/nothing", Value::Null).await,
        (404, "404 page not found\n".into())
    );
    let page =
        client.post(&url).header("Origin", "http://example.org").json(&function("f").json()).send().await;
    assert_eq!(page.unwrap().status(), 403);
    assert_eq!(stage.get("/system/functions").await, json!([]));
}

#[tokio::test]
async fn a_secret_is_written_and_never_read_and_one_of_somebody_else_is_not_there() {
    let stage = Stage::start().await;
    stage.cluster.put(
        "secrets",
        &json!({"metadata": {"name": "theirs", "namespace": NAMESPACE}, "data": {"k": "dg=="}}),
    );
    let body = |name: &str, value: &str| json!({"name": name, "value": value});
    assert_eq!(stage.call(Method::POST, "/system/secrets", body("key", "one")).await.0, 201);
    assert_eq!(stage.call(Method::POST, "/system/secrets", body("key", "two")).await.0, 409);
    assert_eq!(stage.call(Method::PUT, "/system/secrets", body("key", "two")).await.0, 202);
    let kept = stage.cluster.object("secrets", NAMESPACE, "key").unwrap();
    assert_eq!(kept["data"], json!({"key": "dHdv"}));
    assert_eq!(stage.get("/system/secrets").await, json!([{"name": "key", "namespace": NAMESPACE}]));

    for (method, expected) in [(Method::PUT, 404), (Method::DELETE, 404), (Method::POST, 409)] {
        assert_eq!(stage.call(method, "/system/secrets", body("theirs", "x")).await.0, expected);
    }
    let theirs = stage.cluster.object("secrets", NAMESPACE, "theirs").unwrap();
    assert_eq!(theirs["data"], json!({"k": "dg=="}));

    stage.deploy(&function("f").set("secrets", json!(["key"]))).await;
    let pod = &stage.deployment("f")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["projected"]["sources"], json!([{"secret": {"name": "key"}}]));
    assert_eq!(stage.call(Method::DELETE, "/system/secrets", body("key", "")).await.0, 202);
    assert!(!stage.provider.log().contains("two"), "values are in no log");
}

#[tokio::test]
async fn a_secret_for_pulling_images_is_not_mounted() {
    let stage = Stage::start().await;
    let registry = json!({"metadata": {"name": "registry", "namespace": NAMESPACE}, "type": "kubernetes.io/dockerconfigjson"});
    stage.cluster.put("secrets", &registry);
    stage.deploy(&function("f").set("secrets", json!(["registry"]))).await;
    let pod = &stage.deployment("f")["spec"]["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(pod["volumes"], Value::Null);
    assert_eq!(stage.get("/system/function/f").await["secrets"], json!(["registry"]));
}

#[tokio::test]
async fn only_namespaces_that_are_marked_have_functions() {
    let stage = Stage::start().await;
    assert_eq!(stage.get("/system/namespaces").await, json!([NAMESPACE, "staging-fn"]));
    assert_eq!(stage.call(Method::GET, "/system/namespace/kube-system", Value::Null).await.0, 404);
    assert_eq!(stage.call(Method::DELETE, "/system/namespace/kube-system", json!({})).await.0, 404);
    assert_eq!(stage.call(Method::POST, "/system/namespace/", json!({"name": "kube-system"})).await.0, 409);
    let secrets = stage.call(Method::GET, "/system/secrets?namespace=kube-system", Value::Null).await;
    assert_eq!(secrets.0, 400);

    assert_eq!(
        stage
            .call(Method::POST, "/system/namespace/", json!({"name": "dev", "labels": {"team": "a"}}))
            .await
            .0,
        201
    );
    let made = stage.get("/system/namespace/dev").await;
    assert_eq!(made, json!({"name": "dev", "labels": {"openfaas": "1", "team": "a"}}));
    let in_dev = function("f").set("namespace", json!("dev"));
    assert_eq!(stage.call(Method::POST, "/system/functions", in_dev.json()).await.0, 202);
    assert_eq!(stage.provider.gateway().invoke("f.dev", "x").await.0, 200);
    assert_eq!(stage.call(Method::DELETE, "/system/namespace/dev", json!({})).await.0, 202);
    assert_eq!(stage.provider.gateway().invoke("f.dev", "x").await.0, 503);
    assert_eq!(stage.call(Method::DELETE, &format!("/system/namespace/{NAMESPACE}"), json!({})).await.0, 400);
}

#[tokio::test]
async fn with_a_single_namespace_others_are_not_even_looked_at() {
    let cluster = FunctionCluster::start().await;
    let provider = Provider::builder(&cluster).flag("--single-namespace").start().await;
    let namespaces: Value = provider.gateway().get("/system/namespaces").await;
    assert_eq!(namespaces, json!([NAMESPACE]));
    provider.gateway().deploy(&function("f")).await;
    assert_eq!(provider.gateway().invoke("f", "x").await.0, 200);
    let made = provider.gateway().call(Method::POST, "/system/namespace/", &json!({"name": "dev"})).await;
    assert_eq!(made.0, StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn a_request_goes_to_a_replica_and_back_as_it_is() {
    let stage = Stage::start().await;
    let redirects =
        function("f").env("ECHO_STATUS", "302").env("ECHO_HEADERS", "Location: http://127.0.0.1:1/x");
    stage.deploy(&redirects).await;
    until_available(&stage, "f", 1).await;
    let client = stage.provider.gateway().client();
    let url = format!("{}/function/f/a/b?x=1&y", stage.provider.gateway().url());
    let answer = client.put(&url).header("X-Call-Id", "mine").body("body").send().await.unwrap();
    assert_eq!(answer.status(), 302, "redirects are the client's");
    assert_eq!(answer.headers()["location"], "http://127.0.0.1:1/x");
    assert_eq!(answer.headers()["x-call-id"], "mine");
    assert_eq!(answer.text().await.unwrap(), "PUT /a/b?x=1&y 4 bytes: body");
    let seen = client.get(url.replace("/a/b", "/header/x-forwarded-host")).send().await.unwrap();
    let host = stage.provider.address.to_string();
    assert_eq!(seen.text().await.unwrap(), host);

    let unknown = client.post(url.replace("/f/", "/nope/")).send().await.unwrap();
    assert_eq!(unknown.status(), 503);
    assert_eq!(unknown.headers()["x-openfaas-internal"], "proxy");
    assert_eq!(unknown.text().await.unwrap(), "No endpoints available for: nope.openfaas-fn.\n");
    let nameless = client.post(format!("{}/function/", stage.provider.gateway().url())).send().await.unwrap();
    assert_eq!(nameless.status(), 400);
    let info = stage.get("/system/info").await;
    assert_eq!(info["provider"], "gpufn", "a gateway reads a text here");
    let status = stage.get("/system/function/f").await;
    assert_eq!(status["invocationCount"], 2);
}

/// A scaler that notes what it is told of requests that wait.
async fn scaler() -> (String, Arc<Mutex<Vec<(String, u64)>>>) {
    type Told = Arc<Mutex<Vec<(String, u64)>>>;
    let told = Told::default();
    let note = async |State(told): State<Told>,
                      Path((namespace, name)): Path<(String, String)>,
                      Json(body): Json<Value>| {
        told.lock().unwrap().push((format!("{namespace}/{name}"), body["held"].as_u64().unwrap()));
        StatusCode::NO_CONTENT
    };
    let router =
        Router::new().route("/v1/functions/{namespace}/{name}/held", put(note)).with_state(Arc::clone(&told));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, told)
}

#[tokio::test]
async fn requests_to_a_function_without_a_replica_wait_for_one_that_is_asked_for_once() {
    let cluster = FunctionCluster::start().await;
    let (url, told) = scaler().await;
    let provider = Provider::builder(&cluster).with("--scaler", &url).start().await;
    let gateway = provider.gateway();
    gateway.deploy(&function("f").quota(20, 100)).await;
    gateway.scale("f", 0).await;
    cluster.let_start(false);
    let before = cluster.scale_writes();
    let calls = (0..20).map(|number| async move { gateway.invoke("f", &number.to_string()).await });
    let start = async {
        until("the scaler to be told of all", PATIENCE, async || {
            told.lock()
                .unwrap()
                .iter()
                .any(|(name, held)| name == "openfaas-fn/f" && *held == 20)
                .then_some(())
        })
        .await;
        let (status, metrics) = gateway.call(Method::GET, "/metrics", &Value::Null).await;
        assert_eq!(status, 200);
        let held = "gpufn_scaler_provider_held_requests{function_name=\"f.openfaas-fn\"} 20\n";
        assert!(metrics.contains(held), "{metrics}");
        cluster.let_start(true);
    };
    let (answers, ()) = tokio::join!(join_all(calls), start);
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK), "{answers:?}");
    assert_eq!(cluster.scale_writes() - before, 1);
    assert_eq!(gateway.replicas("f").await.0, 1);
    until("the scaler to be told that none waits", PATIENCE, async || {
        (told.lock().unwrap().last()?.1 == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_is_gone_unnoticed_costs_no_request() {
    let stage = Stage::start().await;
    stage.deploy(&function("f")).await;
    until_available(&stage, "f", 1).await;
    // Ready, as far as the API server knows; nobody listens there.
    let gone = json!({
        "metadata": {"name": "f-gone", "namespace": NAMESPACE, "labels": {"faas_function": "f"}},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    stage.cluster.put("pods", &gone);
    until("it to be tried", PATIENCE, async || {
        let (status, text) = stage.provider.gateway().invoke("f", "body").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "POST /? 4 bytes: body"));
        stage.provider.log().contains("a replica can't be reached").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_does_not_wait_for_ever_nor_for_a_function_that_is_removed() {
    let cluster = FunctionCluster::start().await;
    let provider = Provider::builder(&cluster).with("--hold", "500ms").start().await;
    let gateway = provider.gateway();
    cluster.let_start(false);
    gateway.deploy(&function("f")).await;
    let begun = Instant::now();
    let (status, text) = gateway.invoke("f", "x").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.starts_with("No endpoints available for: f.openfaas-fn."), "{text}");
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());

    let provider = Provider::builder(&cluster).start().await;
    let gateway = provider.gateway();
    let removed = async {
        let held = "gpufn_scaler_provider_held_requests{function_name=\"f.openfaas-fn\"} 1\n";
        until("the request to wait", PATIENCE, async || {
            gateway.call(Method::GET, "/metrics", &Value::Null).await.1.contains(held).then_some(())
        })
        .await;
        gateway.call(Method::DELETE, "/system/functions", &json!({"functionName": "f"})).await
    };
    let (answer, _) = tokio::join!(gateway.invoke("f", "x"), removed);
    assert_eq!(answer.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn logs_are_those_of_all_pods_in_order_and_go_on_while_they_are_followed() {
    let stage = Stage::start().await;
    stage.deploy(&function("f")).await;
    stage.provider.gateway().scale("f", 2).await;
    until_available(&stage, "f", 2).await;
    for number in 0..6 {
        stage.provider.gateway().invoke(&format!("f/{number}"), "").await;
    }
    let read = async |query: &str| -> Vec<Value> {
        let (code, text) =
            stage.call(Method::GET, &format!("/system/logs?name=f&{query}"), Value::Null).await;
        assert_eq!(code, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = read("tail=-1").await;
    assert_eq!(all.len(), 8, "a line of each start and one of each request");
    let times: Vec<_> = all.iter().map(|line| line["timestamp"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(read("tail=3").await, all[5..]);
    let pod = &stage.cluster.pods(NAMESPACE, "f")[0];
    let one = read(&format!("instance={pod}")).await;
    assert!(!one.is_empty() && one.iter().all(|line| line["instance"] == **pod));
    assert_eq!(
        read("since=2026-01-02T03:04:02Z").await.len(),
        all.iter().filter(|line| line["timestamp"].as_str() > Some("2026-01-02T03:04:02")).count()
    );

    let url = format!("{}/system/logs?name=f&follow=true&tail=1", stage.provider.gateway().url());
    let mut followed = stage.provider.gateway().client().get(url).send().await.unwrap();
    assert_eq!(followed.headers()["content-type"], "application/x-ndjson");
    stage.provider.gateway().invoke("f/later", "").await;
    let mut text = String::new();
    let read = async {
        while !text.contains("POST /later") {
            text.push_str(std::str::from_utf8(&followed.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();

    assert_eq!(stage.call(Method::GET, "/system/logs?name=none", Value::Null).await.0, 404);
    let wrong = stage.call(Method::GET, "/system/logs?name=f&tail=x", Value::Null).await;
    assert_eq!(wrong, (422, "could not parse the log request\n".into()));
}

#[tokio::test]
async fn with_a_login_only_functions_and_health_are_open() {
    let cluster = FunctionCluster::start().await;
    let provider = Provider::builder(&cluster).auth(true).start().await;
    provider.gateway().deploy(&function("f")).await;
    let client = provider.gateway().client();
    let status = async |path: &str| {
        client.get(format!("{}{path}", provider.gateway().url())).send().await.unwrap().status().as_u16()
    };
    for path in [
        "/system/functions",
        "/system/function/f",
        "/system/info",
        "/system/logs?name=f",
        "/system/secrets",
        "/system/namespaces",
        "/system/namespace/openfaas-fn",
    ] {
        assert_eq!(status(path).await, 401, "{path}");
    }
    for path in ["/function/f", "/healthz", "/metrics"] {
        assert_eq!(status(path).await, 200, "{path}");
    }
}

#[tokio::test]
async fn it_ends_by_itself_when_it_is_told_to() {
    let stage = Stage::start().await;
    let (status, by_itself) = stage.provider.stop();
    assert!(by_itself && status.success(), "{status:?}");
}

#[test]
fn wrong_options_are_refused_with_code_64() {
    let cases: [&[&str]; 5] = [
        &["--role", "boss"],
        &["--function-namespace", "A_B"],
        &["--hold", "1h"],
        &["--scaler", "nowhere"],
        &["--units", "0"],
    ];
    for options in cases {
        let output =
            Command::new(programs::built("gpufn-scaler")).arg("provider").args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{options:?}");
    }
    let nowhere = Command::new(programs::built("gpufn-scaler"))
        .args(["provider", "--basic-auth", "--secret-mount-path", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    let said = String::from_utf8_lossy(&nowhere.stderr);
    assert!(said.contains("failed to read /nonexistent/basic-auth-user"), "{said}");
}
