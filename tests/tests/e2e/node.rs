//! The node itself: what all other tests take for granted.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tests::cluster::components::Component;
use tests::cluster::image::Image;
use tests::cluster::tenant::{Outage, Tenant, address, load, phase, pod};
use tests::go::{self, Program};
use tests::process::Process;
use tests::programs;
use tests::wait::until;

use crate::container;

const RESOURCE: &str = "example.com/device";
const PATIENCE: Duration = Duration::from_mins(1);

/// A shell of this machine.
fn shell() -> Image {
    let image = Image::new("localhost/shell:1").program(Path::new("/bin/bash"), "/bin/bash");
    image.entrypoint(&["/bin/bash", "-c"])
}

/// A function behind the watchdog.
fn function() -> Image {
    let image = Image::new("localhost/echo:1").program(&programs::built("fwatchdog"), "/usr/bin/fwatchdog");
    image
        .program(&programs::built("echo-function"), "/usr/bin/echo-function")
        .program(Path::new("/usr/bin/env"), "/usr/bin/env")
        .entrypoint(&["/usr/bin/fwatchdog"])
}

fn function_pod(name: &str, image: &Image) -> Pod {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value});
    let container = json!({
        "env": [
            variable("mode", "http"),
            // `PORT` in the container's environment would be the watchdog's.
            variable("fprocess", "/usr/bin/env PORT=3000 /usr/bin/echo-function"),
            variable("http_upstream_url", "http://127.0.0.1:3000"),
        ],
        "readinessProbe": {"httpGet": {"path": "/_/ready", "port": 8080}, "periodSeconds": 1},
        "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
    });
    pod(name, image, &container)
}

async fn call(pod: &Pod, body: &str) -> String {
    let url = format!("http://{}:8080/", address(pod).unwrap());
    let answer = reqwest::Client::new().post(url).body(body.to_string()).send().await.unwrap();
    answer.text().await.unwrap()
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_pod_runs_to_its_end_and_its_logs_come_back() {
    let tenant = Tenant::new().await;
    let image = shell();
    load(&image);
    tenant.create(&pod("hello", &image, &json!({"args": ["echo said by $HOSTNAME"]}))).await;
    assert_eq!(tenant.succeeded("hello").await, "said by hello\n");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_function_answers_on_its_pods_address() {
    let tenant = Tenant::new().await;
    let image = function();
    load(&image);
    tenant.create(&function_pod("echo", &image)).await;
    let pod = tenant.ready("echo").await;
    assert_eq!(call(&pod, "hello").await, "POST /? 5 bytes: hello");
    assert!(tenant.logs("echo").await.contains("echo-function listens on port 3000"));
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_pod_reaches_the_api_server_by_its_service() {
    let tenant = Tenant::new().await;
    let image = shell();
    load(&image);
    let script = "exec 3<>/dev/tcp/$KUBERNETES_SERVICE_HOST/$KUBERNETES_SERVICE_PORT && echo connected";
    tenant.create(&pod("client", &image, &json!({"args": [script]}))).await;
    assert_eq!(tenant.succeeded("client").await, "connected\n");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn containers_run_on_while_their_kubelet_is_killed_and_started_again() {
    let tenant = Tenant::new().await;
    let image = function();
    load(&image);
    tenant.create(&function_pod("echo", &image)).await;
    let before = tenant.ready("echo").await;

    let outage = Outage::begin(Component::Kubelet).await;
    assert_eq!(call(&before, "alone").await, "POST /? 5 bytes: alone");
    outage.end().await;
    // A pod that the new kubelet starts shows that it is there.
    tenant.create(&function_pod("later", &image)).await;
    tenant.ready("later").await;
    let after = tenant.ready("echo").await;
    assert_eq!(container(&after), container(&before));
    assert_eq!(call(&after, "again").await, "POST /? 5 bytes: again");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_device_plugin_gives_devices_to_pods_and_what_does_not_fit_stays_pending() {
    let tenant = Tenant::new().await;
    let image = shell();
    load(&image);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(go::built(Program::ExamplePlugin).unwrap());
    command.args(["--resource", RESOURCE, "--devices", "d0,d1,d2,d3"]);
    let _plugin = Process::spawn(&mut command, &folder.path().join("plugin.log"));
    until("four devices on the node", PATIENCE, async || {
        let status = tenant.node().await.status?;
        (status.allocatable?.get(RESOURCE)?.0 == "4").then_some(())
    })
    .await;

    let asking = |name: &str, devices: &str, script: &str| {
        pod(name, &image, &json!({"args": [script], "resources": {"limits": {RESOURCE: devices}}}))
    };
    tenant.create(&asking("three", "3", "echo $EXAMPLE_DEVICES; exec /bin/bash -c 'read <> <(:)'")).await;
    tenant.until("three", "running", |pod| phase(pod) == "Running").await;
    let mut devices = until("its devices", PATIENCE, async || {
        Some(tenant.logs("three").await.trim().to_string()).filter(|devices| !devices.is_empty())
    })
    .await
    .split(',')
    .map(ToString::to_string)
    .collect::<Vec<_>>();
    devices.sort();
    assert_eq!(devices, ["d1", "d2", "d3"], "the example prefers the last");

    tenant.create(&asking("two", "2", "echo $EXAMPLE_DEVICES")).await;
    let event = until("the scheduler's word", PATIENCE, async || {
        tenant.events("two").await.into_iter().find(|event| event.starts_with("FailedScheduling"))
    })
    .await;
    assert!(event.contains("Insufficient example.com/device"), "{event}");
    tenant.delete("three").await;
    assert_eq!(tenant.succeeded("two").await.trim().split(',').count(), 2);
}
