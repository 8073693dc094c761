//! The kubelet's device manager as the tests of device plugins use it, proved with a plugin that does the least.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tests::device_manager::{Containers, DeviceManager, Pod};
use tests::go::{self, Program};
use tests::process::Process;
use tests::wait::until;

const RESOURCE: &str = "example.com/device";
const PATIENCE: Duration = Duration::from_secs(20);

fn plugin(manager: &DeviceManager) -> Process {
    let program: PathBuf = go::built(Program::ExamplePlugin).unwrap();
    let mut command = Command::new(program);
    command.arg("--plugin-dir").arg(manager.plugins());
    command.args(["--resource", RESOURCE, "--devices", "d0,d1,d2,d3"]);
    Process::spawn(&mut command, &manager.folder().join("plugin.log"))
}

async fn allocatable(manager: &DeviceManager, expected: &str) {
    until(&format!("{expected} allocatable devices"), PATIENCE, async || {
        let capacity = manager.capacity().await;
        (capacity.allocatable.get(RESOURCE).map(String::as_str) == Some(expected)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_pod_gets_the_devices_that_the_plugin_prefers() {
    let mut manager = DeviceManager::builder().start().await;
    let plugin = plugin(&manager);
    allocatable(&manager, "4").await;

    let pod = Pod::new("two").container("main", &[(RESOURCE, 2)]);
    let admission = manager.admit(&pod).await;
    assert!(admission.admitted, "{admission:?}");
    let devices = manager.devices(&pod, "main").await;
    assert_eq!(devices[RESOURCE], ["d2", "d3"], "the example prefers the last");

    let options = manager.run(&pod, "main").await.unwrap();
    let mut told: Vec<_> = options.variables["EXAMPLE_DEVICES"].split(',').collect();
    told.sort_unstable();
    assert_eq!(told, ["d2", "d3"]);
    until("PreStartContainer", PATIENCE, async || plugin.output().contains("starts d").then_some(())).await;
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_pod_that_asks_for_more_than_is_free_is_refused_until_another_ends() {
    let mut manager = DeviceManager::builder().start().await;
    let _plugin = plugin(&manager);
    allocatable(&manager, "4").await;
    let two = Pod::new("two").container("main", &[(RESOURCE, 2)]);
    assert!(manager.admit(&two).await.admitted);

    let three = || Pod::new("three").container("main", &[(RESOURCE, 3)]);
    let refused = manager.admit(&three()).await;
    assert!(!refused.admitted);
    assert_eq!(refused.reason, "UnexpectedAdmissionError");
    assert!(refused.message.contains("Requested: 3, Available: 2"), "{}", refused.message);

    manager.remove(&two).await;
    assert!(manager.admit(&three()).await.admitted);
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_sick_device_leaves_the_allocatable_ones_and_shows_in_the_pods_status() {
    let mut manager = DeviceManager::builder().start().await;
    let mut plugin = plugin(&manager);
    allocatable(&manager, "4").await;
    let pod = Pod::new("one").container("main", &[(RESOURCE, 1)]);
    assert!(manager.admit(&pod).await.admitted);

    plugin.tell("unhealthy d3");
    assert_eq!(manager.changed().await, [pod.uid()]);
    allocatable(&manager, "3").await;
    assert_eq!(manager.capacity().await.capacity[RESOURCE], "4");
    let status = manager.status(&pod).await;
    let resource = &status["containerStatuses"][0]["allocatedResourcesStatus"][0]["resources"][0];
    assert_eq!((&resource["resourceID"], &resource["health"]), (&"d3".into(), &"Unhealthy".into()));

    plugin.tell("healthy d3");
    allocatable(&manager, "4").await;
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_kubelet_that_was_killed_knows_its_pods_and_the_plugin_finds_it_again() {
    let mut manager = DeviceManager::builder().start().await;
    let plugin = plugin(&manager);
    allocatable(&manager, "4").await;
    let pod = Pod::new("two").container("main", &[(RESOURCE, 2)]);
    assert!(manager.admit(&pod).await.admitted);

    manager.crash().await;
    let verdicts = manager.restart(Containers::Running).await;
    assert!(verdicts[pod.uid()].admitted, "{verdicts:?}");
    assert_eq!(manager.devices(&pod, "main").await[RESOURCE], ["d2", "d3"]);
    allocatable(&manager, "4").await;
    assert_eq!(plugin.output().matches("registered").count(), 2);
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_node_that_was_restarted_refuses_pods_until_the_plugin_is_back() {
    let mut manager = DeviceManager::builder().start().await;
    let mut plugin = plugin(&manager);
    allocatable(&manager, "4").await;
    let pod = Pod::new("two").container("main", &[(RESOURCE, 2)]);
    assert!(manager.admit(&pod).await.admitted);

    plugin.stop(PATIENCE);
    manager.crash().await;
    let verdicts = manager.restart(Containers::Gone).await;
    let verdict = &verdicts[pod.uid()];
    assert!(!verdict.admitted && verdict.message.contains("no healthy devices"), "{verdict:?}");
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn an_unknown_pod_is_an_error_and_not_a_crash() {
    let manager = DeviceManager::builder().start().await;
    let stranger = Pod::new("stranger").container("main", &[]);
    let error = manager.run(&stranger, "main").await.unwrap_err();
    assert_eq!(error, format!("uid {:?}: no such pod on this node", stranger.uid()));
}
