//! Functions of OpenFaaS on a real Kubernetes, with parts of a GPU: through the provider, by hand and by the real faas-cli.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::cluster::account;
use tests::cluster::gpu_node::GpuNode;
use tests::faas_cli::FaasCli;
use tests::function::Function;
use tests::plugin::Plugin;
use tests::provider::Provider;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_mins(2);
/// Image of all functions of the node; it is there once a node of GPUs is.
const IMAGE: &str = "localhost/gpu-functions:1";

/// A provider on a node of GPUs, with the rights that its README names and no others.
struct Stage {
    node: GpuNode,
    provider: Provider,
    _folder: TempDir,
}

impl Stage {
    async fn start() -> Self {
        let node = GpuNode::start(Plugin::builder(), &[]).await;
        node.until_allocatable(20).await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        account::create(&node.tenant, "provider", &rights(), &kubeconfig).await;
        let provider = Provider::of(&kubeconfig)
            .with("--role", "gateway")
            .with("--function-namespace", node.tenant.namespace())
            .with("--image-pull-policy", "never")
            .with("--gpu-memory", "16Gi")
            .start()
            .await;
        Self { node, provider, _folder: folder }
    }

    /// Names of the function's pods that are not about to end.
    async fn pods(&self, function: &str) -> Vec<String> {
        let pods = Api::<Pod>::namespaced(self.node.tenant.client(), self.node.tenant.namespace());
        let mine = ListParams::default().labels(&format!("faas_function={function}"));
        let listed = pods.list(&mine).await.unwrap();
        let alive = listed.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        alive.filter_map(|pod| pod.metadata.name).collect()
    }

    async fn until_available(&self, function: &str, replicas: u64) {
        until(&format!("{replicas} replicas of {function}"), PATIENCE, async || {
            (self.provider.gateway().replicas(function).await == (replicas, replicas)).then_some(())
        })
        .await;
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, text) = self.provider.gateway().call(method, path, &body).await;
        (status.as_u16(), text)
    }
}

/// As the README says.
fn rights() -> Vec<Value> {
    let rule = |group: &str, resources: &[&str], verbs: &str| {
        let verbs: Vec<_> = verbs.split(' ').collect();
        json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
    };
    vec![
        rule("apps", &["deployments"], "get list watch create patch delete"),
        rule("apps", &["deployments/scale"], "get patch"),
        rule("", &["services"], "get create patch delete"),
        rule("", &["secrets"], "get list create patch delete"),
        rule("", &["pods"], "list watch"),
        rule("", &["pods/log"], "get"),
        rule("", &["namespaces"], "get list watch create patch delete"),
        rule("metrics.k8s.io", &["pods"], "list"),
    ]
}

/// `ResNet-50` behind the watchdog, on a fifth of a GPU.
fn inference(name: &str) -> Function {
    Function::echo(name)
        .set("image", json!(IMAGE))
        .set("envProcess", json!("/usr/bin/inference-function"))
        .env("mode", "http")
        .env("upstream_url", "http://127.0.0.1:8000")
        .env("prefix_logs", "false")
        .env("model", "resnet50")
        .env("layers", "8")
        .env("weights_mib", "64")
        .quota(20, 100)
        .memory("2Gi")
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_function_on_a_fifth_of_a_gpu_is_deployed_called_scaled_woken_and_removed() {
    let stage = Stage::start().await;
    let gateway = stage.provider.gateway();
    gateway.deploy(&inference("resnet")).await;
    stage.until_available("resnet", 1).await;
    gateway.infer("resnet").await;
    let [pod] = <[_; 1]>::try_from(stage.pods("resnet").await).unwrap();
    let share = stage.node.binding(&pod).await.binding.share;
    assert_eq!((share.floor.percent(), share.ceiling.percent()), (20.0, 100.0));
    let status: Value = gateway.get("/system/function/resnet").await;
    assert_eq!(status["annotations"]["gpufn.dev/quota"], "20");
    let listed: Value = gateway.get("/system/functions").await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &json!("resnet")));

    gateway.scale("resnet", 3).await;
    stage.until_available("resnet", 3).await;
    assert_eq!(stage.node.bindings().await.len(), 3, "each replica has a share of its own");
    for _ in 0..6 {
        gateway.infer("resnet").await;
    }
    // Another environment while all have their shares: one after the other is replaced, and requests go on.
    let old = stage.pods("resnet").await;
    let changed = inference("resnet").env("layers", "4");
    let (code, text) = stage.call(Method::PUT, "/system/functions", changed.json()).await;
    assert_eq!(code, 202, "{text}");
    let replaced = until("all pods to be new", PATIENCE, async || {
        let now = stage.pods("resnet").await;
        (now.len() == 3 && !now.iter().any(|pod| old.contains(pod))).then_some(())
    });
    let mut answered = 0;
    tokio::select! {
        () = replaced => {}
        () = async { loop { gateway.infer("resnet").await; answered += 1; } } => {}
    }
    println!("{answered} requests were answered right while all pods were replaced");
    stage.until_available("resnet", 3).await;

    gateway.scale("resnet", 0).await;
    until("the end of all pods", PATIENCE, async || stage.pods("resnet").await.is_empty().then_some(()))
        .await;
    let begun = Instant::now();
    gateway.infer("resnet").await;
    println!("from zero, a request was answered after {:?}", begun.elapsed());
    assert_eq!(gateway.replicas("resnet").await.0, 1);

    let removed = stage.call(Method::DELETE, "/system/functions", json!({"functionName": "resnet"})).await;
    assert_eq!(removed.0, 202);
    until("all shares to be given back", PATIENCE, async || {
        stage.node.bindings().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn secrets_and_logs_are_those_of_the_cluster_and_other_namespaces_are_out_of_reach() {
    let stage = Stage::start().await;
    let gateway = stage.provider.gateway();
    gateway.secret("key", "", "of a test").await;
    assert_eq!(
        stage.call(Method::PUT, "/system/secrets", json!({"name": "key", "value": "new"})).await.0,
        202
    );
    let namespace = stage.node.tenant.namespace();
    let listed: Value = gateway.get("/system/secrets").await;
    assert_eq!(listed, json!([{"name": "key", "namespace": namespace}]));
    gateway
        .deploy(&inference("reads").set("secrets", json!(["key"])).set("readOnlyRootFilesystem", json!(true)))
        .await;
    stage.until_available("reads", 1).await;
    gateway.infer("reads").await;

    let (code, text) = stage.call(Method::GET, "/system/logs?name=reads&tail=5", Value::Null).await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == 200 && (1..=5).contains(&lines.len()), "{code}: {text}");
    let [pod] = <[_; 1]>::try_from(stage.pods("reads").await).unwrap();
    assert!(lines.iter().all(|line| line["instance"] == *pod && line["namespace"] == *namespace), "{text}");

    for path in ["/system/functions", "/system/secrets", "/system/function/kube-dns"] {
        assert_eq!(
            stage.call(Method::GET, &format!("{path}?namespace=kube-system"), Value::Null).await.0,
            400
        );
    }
    assert_eq!(gateway.invoke("kube-dns.kube-system", "").await.0, 404);
    assert_eq!(stage.call(Method::DELETE, "/system/secrets", json!({"name": "key"})).await.0, 202);

    let marked = json!({"name": format!("{namespace}-more"), "labels": {"openfaas": "1"}});
    assert_eq!(stage.call(Method::POST, "/system/namespace/", marked.clone()).await.0, 201);
    assert_eq!(stage.call(Method::POST, "/system/namespace/", marked).await.0, 409);
    let path = format!("/system/namespace/{namespace}-more");
    assert_eq!(gateway.get::<Value>(&path).await["labels"], json!({"openfaas": "1"}));
    assert_eq!(stage.call(Method::DELETE, &path, json!({})).await.0, 202);
    assert_eq!(stage.call(Method::GET, &path, Value::Null).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: make e2e"]
async fn the_real_faas_cli_deploys_lists_describes_invokes_reads_logs_and_removes() {
    let stage = Stage::start().await;
    let Some(cli) = FaasCli::named(stage.provider.gateway()) else { return };
    let namespace = stage.node.tenant.namespace();
    assert!(cli.run("version --warn-update=false").contains("gpufn"));
    cli.run("secret create key --from-literal value");
    assert!(cli.run("secret list").contains("key"));
    let options = "--image localhost/gpu-functions:1 --fprocess /usr/bin/inference-function --secret key \
        --env mode=http --env upstream_url=http://127.0.0.1:8000 --env prefix_logs=false --env model=resnet50 \
        --env layers=8 --env weights_mib=64 --annotation gpufn.dev/quota=20 --annotation gpufn.dev/memory=2Gi";
    assert!(cli.run(&format!("deploy --name resnet {options}")).contains("202 Accepted"));
    cli.run("ready resnet --attempts 120");
    assert!(cli.run("list").contains("resnet"));
    assert!(cli.run("describe resnet").contains("gpufn.dev/quota"));
    assert!(cli.run(&format!("invoke resnet --namespace {namespace}")).contains("checksum"));
    assert!(!cli.run("logs resnet --tail=false").is_empty());
    stage.provider.gateway().scale("resnet", 2).await;
    stage.until_available("resnet", 2).await;
    assert!(cli.run(&format!("deploy --name resnet {options}")).contains("202 Accepted"), "as an update");
    assert!(cli.run("namespace list").contains(namespace));
    cli.run("remove resnet");
    assert!(!cli.run("list").contains("resnet"));
    cli.run("secret remove key");
}
