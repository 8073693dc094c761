//! The node agent beside the kubelet's own device manager: what the kubelet of the tests (`device_plugin`) assumes, the real
//! code does.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use gpu_share::protocol::BindingStatus;
use gpu_share::units::Quota;
use tests::device_manager::{Containers, DeviceManager, Pod};
use tests::plugin::{Builder, Place, Plugin};
use tests::wait::until;

const RESOURCE: &str = "gpufn.dev/gpu";
const PATIENCE: Duration = Duration::from_secs(20);

async fn beside(builder: Builder) -> (DeviceManager, Plugin) {
    let manager = DeviceManager::builder().start().await;
    let plugin = builder.kubelet(manager.plugins(), manager.pod_resources()).start(Place::default()).await;
    (manager, plugin)
}

async fn until_allocatable(manager: &DeviceManager, expected: u32) {
    until(&format!("{expected} allocatable units"), PATIENCE, async || {
        let capacity = manager.capacity().await;
        (capacity.allocatable.get(RESOURCE) == Some(&expected.to_string())).then_some(())
    })
    .await;
}

async fn bindings(plugin: &Plugin) -> Vec<BindingStatus> {
    plugin.control().bindings().await.unwrap()
}

/// Short names of the GPUs that a container's devices are of.
async fn gpus_of(manager: &DeviceManager, pod: &Pod, container: &str) -> BTreeSet<String> {
    let devices = manager.devices(pod, container).await;
    devices[RESOURCE].iter().map(|device| device.split('-').next().unwrap().to_string()).collect()
}

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn containers_get_their_units_on_one_gpu_and_are_known_when_they_start() {
    let (mut manager, plugin) = beside(Plugin::builder().gpus(2)).await;
    until_allocatable(&manager, 40).await;
    for (name, units) in [("a", 6), ("b", 16), ("c", 4), ("d", 14)] {
        let pod = Pod::new(name).container("main", &[(RESOURCE, units)]);
        let admission = manager.admit(&pod).await;
        assert!(admission.admitted, "{name}: {admission:?}");
        assert_eq!(gpus_of(&manager, &pod, "main").await.len(), 1, "{name}");
        let options = manager.run(&pod, "main").await.unwrap();
        let owner = |one: &BindingStatus| one.binding.owner.instance == name;
        let binding = bindings(&plugin).await.into_iter().find(owner).unwrap().binding;
        assert_eq!(options.cdi_devices, [format!("gpufn.dev/gpu={}", binding.id)]);
        assert_eq!(binding.share.floor, percent(u8::try_from(units * 5).unwrap()));
        assert_eq!((binding.owner.namespace.as_str(), binding.owner.container.as_str()), ("default", "main"));
    }
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_kubelet_that_is_killed_finds_the_plugin_and_its_pods_again() {
    let (mut manager, plugin) = beside(Plugin::builder()).await;
    until_allocatable(&manager, 20).await;
    let pod = Pod::new("a").container("main", &[(RESOURCE, 5)]);
    assert!(manager.admit(&pod).await.admitted);
    manager.run(&pod, "main").await.unwrap();
    let before = bindings(&plugin).await.remove(0).binding;
    for _ in 0..2 {
        manager.crash().await;
        let verdicts = manager.restart(Containers::Running).await;
        assert!(verdicts[pod.uid()].admitted, "{verdicts:?}");
        until_allocatable(&manager, 20).await;
    }
    assert_eq!(bindings(&plugin).await.remove(0).binding, before);
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_plugin_that_is_killed_is_back_with_the_same_units() {
    let (mut manager, mut plugin) = beside(Plugin::builder()).await;
    until_allocatable(&manager, 20).await;
    let pod = Pod::new("a").container("main", &[(RESOURCE, 5)]);
    assert!(manager.admit(&pod).await.admitted);
    manager.run(&pod, "main").await.unwrap();
    let before = bindings(&plugin).await.remove(0).binding;
    plugin.crash();
    until_allocatable(&manager, 0).await;
    plugin.restart().await;
    until_allocatable(&manager, 20).await;
    assert_eq!(bindings(&plugin).await.remove(0).binding, before);
    let again = manager.run(&pod, "main").await.unwrap();
    assert_eq!(again.cdi_devices, [format!("gpufn.dev/gpu={}", before.id)], "a container that starts again");
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_newer_plugin_takes_over_without_a_unit_lost() {
    let (mut manager, mut plugin) = beside(Plugin::builder()).await;
    until_allocatable(&manager, 20).await;
    let pod = Pod::new("a").container("main", &[(RESOURCE, 5)]);
    assert!(manager.admit(&pod).await.admitted);
    let mut older = plugin.upgrade();
    older.stop(PATIENCE);
    until_allocatable(&manager, 20).await;
    manager.run(&pod, "main").await.unwrap();
    assert_eq!(bindings(&plugin).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn init_containers_share_the_binding_and_other_containers_have_their_own() {
    let (mut manager, plugin) = beside(Plugin::builder()).await;
    until_allocatable(&manager, 20).await;
    let pod = Pod::new("a")
        .init_container("fetch", &[(RESOURCE, 3)])
        .container("one", &[(RESOURCE, 5)])
        .container("other", &[(RESOURCE, 4)]);
    let admission = manager.admit(&pod).await;
    assert!(admission.admitted, "{admission:?}");
    let mut names = Vec::new();
    for container in ["fetch", "one", "other"] {
        names.push(manager.run(&pod, container).await.unwrap().cdi_devices);
    }
    assert_eq!(names[0], names[1]);
    assert_ne!(names[1], names[2]);
    let floors: BTreeSet<_> = bindings(&plugin).await.iter().map(|one| one.binding.share.floor).collect();
    assert_eq!(floors, BTreeSet::from([percent(20), percent(25)]));
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn a_grant_above_the_floor_takes_units_from_the_node_and_a_floor_takes_it_back() {
    let (mut manager, plugin) = beside(Plugin::builder()).await;
    until_allocatable(&manager, 20).await;
    let pod = Pod::new("a").container("main", &[(RESOURCE, 4)]);
    assert!(manager.admit(&pod).await.admitted);
    manager.run(&pod, "main").await.unwrap();
    let id = bindings(&plugin).await.remove(0).binding.id;
    plugin.control().grant(&id, percent(60)).await.unwrap();
    until_allocatable(&manager, 12).await;
    plugin.control().grant(&id, percent(20)).await.unwrap();
    until_allocatable(&manager, 20).await;
}

#[tokio::test]
#[ignore = "needs Go, which builds the device manager once: make test-kubelet"]
async fn units_of_a_pod_that_ended_go_to_the_next_one() {
    let (mut manager, plugin) = beside(Plugin::builder().with(&["--grace", "300ms"])).await;
    until_allocatable(&manager, 20).await;
    let old = Pod::new("old").container("main", &[(RESOURCE, 20)]);
    assert!(manager.admit(&old).await.admitted);
    manager.run(&old, "main").await.unwrap();
    manager.remove(&old).await;
    let new = Pod::new("new").container("main", &[(RESOURCE, 20)]);
    let admission = manager.admit(&new).await;
    assert!(admission.admitted, "{admission:?}");
    manager.run(&new, "main").await.unwrap();
    let bound = bindings(&plugin).await;
    assert_eq!((bound.len(), bound[0].binding.owner.instance.as_str()), (1, "new"));
    manager.remove(&new).await;
    until("the binding to be released", PATIENCE, async || bindings(&plugin).await.is_empty().then_some(()))
        .await;
}
