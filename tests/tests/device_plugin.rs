//! The node agent as a device plugin: what it says to a kubelet and an API server, and what becomes of the bindings.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use gpu_share::protocol::BindingStatus;
use gpu_share::units::{Bytes, Quota};
use serde_json::{Value, json};
use tests::apiserver::ApiServer;
use tests::kubelet::{Allocation, Kubelet};
use tests::peer::Peer;
use tests::plugin::{Builder, Place, Plugin};
use tests::port;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time until a GPU that is sound again takes containers: its pause, three probes, and a busy machine.
const RECOVERY: Duration = Duration::from_secs(40);

/// A plugin that is registered with a kubelet.
async fn registered(builder: Builder) -> (Kubelet, Plugin) {
    let place = Place::default();
    let kubelet = Kubelet::builder(&place.path("")).start();
    let plugin = builder.start(place).await;
    kubelet.registered(1).await;
    (kubelet, plugin)
}

/// The same with an API server.
async fn in_cluster(builder: Builder) -> (Kubelet, ApiServer, Plugin) {
    let place = Place::default();
    let (kubelet, cluster) = (Kubelet::builder(&place.path("")).start(), ApiServer::start().await);
    let kubeconfig = place.path("kubeconfig");
    cluster.write_kubeconfig(&kubeconfig);
    let plugin = builder.cluster(&kubeconfig).start(place).await;
    kubelet.registered(1).await;
    (kubelet, cluster, plugin)
}

async fn bindings(plugin: &Plugin) -> Vec<BindingStatus> {
    plugin.control().bindings().await.unwrap()
}

async fn only_binding(plugin: &Plugin) -> BindingStatus {
    let [one] = <[_; 1]>::try_from(bindings(plugin).await).unwrap();
    one
}

/// Waits until the only binding is as `is` wants it.
async fn until_binding(plugin: &Plugin, what: &str, is: impl Fn(&BindingStatus) -> bool) -> BindingStatus {
    until(what, PATIENCE, async || bindings(plugin).await.into_iter().next().filter(|binding| is(binding)))
        .await
}

/// The environment that the container's runtime finds behind the CDI device of an answer.
fn cdi(plugin: &Plugin, allocation: &Allocation) -> Value {
    let name = allocation.answer.cdi_devices[0].name.strip_prefix("gpufn.dev/gpu=").unwrap().to_string();
    let path = plugin.path("cdi").join(format!("gpufn.dev-gpu_{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let spec: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(spec["devices"][0]["name"], name);
    spec["devices"][0]["containerEdits"].clone()
}

fn variables(edits: &Value) -> BTreeMap<String, String> {
    let pairs = edits["env"].as_array().unwrap().iter().map(|pair| pair.as_str().unwrap());
    pairs.map(|pair| pair.split_once('=').unwrap()).map(|(name, value)| (name.into(), value.into())).collect()
}

fn gpus_of(devices: &BTreeSet<String>) -> BTreeSet<String> {
    devices.iter().map(|device| device.split('-').next().unwrap().to_string()).collect()
}

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

#[tokio::test]
async fn it_serves_before_it_registers_and_lists_every_unit_of_every_gpu() {
    let (kubelet, mut plugin) = registered(Plugin::builder().gpus(2)).await;
    let registered = kubelet.registered(1).await;
    let options = registered.options.unwrap();
    assert!(options.pre_start_required && options.get_preferred_allocation_available);
    assert_eq!(registered.request.resource_name, "gpufn.dev/gpu");
    assert_eq!(registered.devices.len(), 40);
    assert!(registered.devices.iter().all(|(id, healthy)| *healthy && id.len() <= 63), "{registered:?}");

    let socket = kubelet.plugins().join(&registered.request.endpoint);
    let (status, by_itself) = plugin.agent().stop(PATIENCE);
    assert!(status.success() && by_itself, "{status}");
    assert!(!socket.exists(), "its own socket is removed");
    assert!(kubelet.plugins().join("kubelet.sock").exists(), "nobody else's is");
}

#[tokio::test]
async fn a_kubelet_that_restarts_is_registered_with_again_under_the_same_names() {
    let (mut kubelet, _plugin) = registered(Plugin::builder()).await;
    let names: Vec<_> = kubelet.devices().into_keys().collect();
    for count in 2..=4 {
        kubelet.restart().await;
        let again = kubelet.registered(count).await;
        assert_eq!(again.devices.keys().cloned().collect::<Vec<_>>(), names);
    }
}

#[tokio::test]
async fn a_socket_that_somebody_removes_comes_back() {
    let (kubelet, _plugin) = registered(Plugin::builder()).await;
    let first = kubelet.registered(1).await;
    fs::remove_file(kubelet.plugins().join(&first.request.endpoint)).unwrap();
    let second = kubelet.registered(2).await;
    assert_ne!(first.request.endpoint, second.request.endpoint);
}

#[tokio::test]
async fn without_a_kubelet_it_waits_for_one() {
    let place = Place::default();
    let mut kubelet = Kubelet::builder(&place.path("")).stopped();
    let mut plugin = Plugin::builder().start(place).await;
    until("it to say what it misses", PATIENCE, async || {
        plugin.agent().output().contains("there is no kubelet at").then_some(())
    })
    .await;
    kubelet.start();
    kubelet.registered(1).await;
    assert_eq!(plugin.agent().output().matches("there is no kubelet at").count(), 1, "it is said once");
}

#[tokio::test]
async fn a_container_gets_its_units_on_one_gpu_and_one_binding() {
    let (kubelet, plugin) = registered(Plugin::builder().gpus(2)).await;
    let first = kubelet.admit("a", "main", 6).await.unwrap();
    let second = kubelet.admit("b", "main", 16).await.unwrap();
    assert_eq!(gpus_of(&first.devices).len(), 1);
    assert_eq!(gpus_of(&second.devices).len(), 1);
    assert_ne!(gpus_of(&first.devices), gpus_of(&second.devices), "16 do not fit beside 6");
    let third = kubelet.admit("c", "main", 4).await.unwrap();
    assert_eq!(gpus_of(&third.devices), gpus_of(&second.devices), "the fullest that has room");

    kubelet.start_container(&first).await.unwrap();
    let edits = cdi(&plugin, &first);
    let variables = variables(&edits);
    let gpu = &variables["NVIDIA_VISIBLE_DEVICES"];
    assert!(gpu.starts_with("GPU-") && !gpu.contains(','), "{gpu}");
    assert_eq!(variables["CUDA_VISIBLE_DEVICES"], *gpu);
    let hook = PathBuf::from(&variables["GPUFN_HOOK"]);
    assert_eq!(hook, plugin.path("opt").join(env!("CARGO_PKG_VERSION")).join("lib"));
    assert!(hook.join("libcuda.so.1").is_file());
    let mounts: Vec<_> =
        edits["mounts"].as_array().unwrap().iter().map(|one| one["hostPath"].clone()).collect();
    assert_eq!(mounts.len(), 3, "{mounts:?}");

    let bound =
        bindings(&plugin).await.into_iter().find(|one| one.binding.owner.instance == "a").unwrap().binding;
    assert_eq!(bound.gpu.0, *gpu);
    assert_eq!((bound.share.floor, bound.share.memory), (percent(30), Bytes(Bytes::gib(16).0 * 6 / 20)));
}

#[tokio::test]
async fn a_device_says_near_which_numa_node_its_gpu_is_if_linux_does() {
    let place = Place::default();
    // The second GPU is near none.
    for (address, node) in [("0000:51:00.0", "1\n"), ("0000:52:00.0", "-1\n")] {
        fs::create_dir_all(place.path("pci").join(address)).unwrap();
        fs::write(place.path("pci").join(address).join("numa_node"), node).unwrap();
    }
    let kubelet = Kubelet::builder(&place.path("")).start();
    let pci = place.path("pci").display().to_string();
    let _plugin = Plugin::builder().gpus(2).with(&["--pci-devices", &pci]).start(place).await;
    let registered = kubelet.registered(1).await;
    assert_eq!((registered.devices.len(), registered.nodes.len()), (40, 20));
    assert!(registered.nodes.values().all(|nodes| *nodes == [1]), "{registered:?}");
    assert_eq!(gpus_of(&registered.nodes.into_keys().collect()).len(), 1);
}

#[tokio::test]
async fn what_the_kubelet_asked_and_was_told_is_in_the_metrics() {
    let port = port::free().unwrap();
    let (kubelet, _plugin) = registered(Plugin::builder().metrics(port)).await;
    let first = kubelet.admit("a", "main", 4).await.unwrap();
    kubelet.start_container(&first).await.unwrap();
    kubelet.allocate("b", "main", BTreeSet::from(["x".to_string()]), false).await.unwrap_err();
    let wanted = [
        "gpufn_node_kubelet_registered 1\n",
        "gpufn_node_kubelet_registrations_total 1\n",
        "gpufn_node_kubelet_call_seconds_count{call=\"get_preferred_allocation\"} 1\n",
        "gpufn_node_kubelet_call_seconds_count{call=\"allocate\"} 2\n",
        "gpufn_node_kubelet_call_seconds_count{call=\"pre_start_container\"} 1\n",
        "gpufn_node_kubelet_refusals_total{call=\"allocate\",reason=\"unknown_device\"} 1\n",
        "state=\"allocated\"} 4\n",
        "state=\"free\"} 16\n",
    ];
    // What is told of units follows within a second.
    until("the metrics to say so", PATIENCE, async || {
        let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.ok()?.text().await.ok()?;
        wanted.iter().all(|line| text.contains(line)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_repeated_finds_the_same_binding_and_unknown_devices_are_refused() {
    let (kubelet, plugin) = registered(Plugin::builder()).await;
    let first = kubelet.admit("a", "main", 4).await.unwrap();
    let again = kubelet.allocate("a", "main", first.devices.clone(), false).await.unwrap();
    assert_eq!(first.answer, again.answer);
    assert_eq!(bindings(&plugin).await.len(), 1);

    let error = kubelet.allocate("b", "main", BTreeSet::from(["x".to_string()]), false).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert_eq!(error.message(), "device x is not of this node, allowed are those that the plugin lists");
    assert_eq!(bindings(&plugin).await.len(), 1);
}

#[tokio::test]
async fn devices_of_two_gpus_come_to_one_gpu_and_what_that_takes_is_withdrawn() {
    let place = Place::default();
    let kubelet = Kubelet::builder(&place.path("")).ignores_preference().start();
    let plugin = Plugin::builder().gpus(2).start(place).await;
    kubelet.registered(1).await;
    kubelet.admit("a", "main", 17).await.unwrap();
    let split = kubelet.admit("b", "main", 6).await.unwrap();
    assert_eq!(gpus_of(&split.devices).len(), 2, "the kubelet did what it liked");
    kubelet.start_container(&split).await.unwrap();
    let bindings = bindings(&plugin).await;
    assert_eq!(bindings.len(), 2);
    let of_b = bindings.iter().find(|one| one.binding.owner.instance == "b").unwrap();
    assert_eq!(of_b.binding.share.floor, percent(30), "all that it paid for, on one GPU");
    assert_ne!(bindings[0].binding.gpu, bindings[1].binding.gpu);
    // 40 units less 17 and 6; the 3 of the other GPU that b has are lost until it goes, and 3 of b's GPU are withdrawn.
    kubelet.until_available(14).await;
    let rest = kubelet.available();
    assert_eq!(gpus_of(&rest).len(), 1, "{rest:?}");
    kubelet.remove("b");
}

#[tokio::test]
async fn a_lost_gpu_takes_no_new_containers_until_it_is_back_and_keeps_those_that_it_has() {
    let (kubelet, plugin) = registered(Plugin::builder().gpus(2)).await;
    let first = kubelet.admit("a", "main", 5).await.unwrap();
    kubelet.start_container(&first).await.unwrap();
    let before = only_binding(&plugin).await.binding;
    let status = plugin.control().status().await.unwrap();
    let lost = status.gpus.iter().position(|gpu| gpu.gpu.id == before.gpu).unwrap();

    plugin.order(&json!({"request": "lose", "gpu": lost}));
    kubelet.until_available(20).await;
    assert_eq!(only_binding(&plugin).await.binding, before);
    let second = kubelet.admit("b", "main", 5).await.unwrap();
    assert!(gpus_of(&second.devices).is_disjoint(&gpus_of(&first.devices)));

    plugin.order(&json!({"request": "return", "gpu": lost}));
    until("all units to come back", RECOVERY, async || (kubelet.available().len() == 30).then_some(())).await;
}

#[tokio::test]
async fn an_init_container_and_the_one_after_it_share_a_binding() {
    let (kubelet, plugin) = registered(Plugin::builder()).await;
    let init = kubelet.admit_init("a", "fetch", 2).await.unwrap();
    let main = kubelet.admit_after(&init, "main", 5).await.unwrap();
    assert_eq!(init.answer, main.answer);
    kubelet.start_container(&init).await.unwrap();
    kubelet.start_container(&main).await.unwrap();
    let binding = only_binding(&plugin).await.binding;
    assert_eq!((binding.owner.container.as_str(), binding.share.floor), ("main", percent(25)));
}

#[tokio::test]
async fn two_containers_of_a_pod_have_a_binding_each() {
    let (kubelet, plugin) = registered(Plugin::builder()).await;
    for container in ["one", "other"] {
        let allocation = kubelet.admit("a", container, 3).await.unwrap();
        kubelet.start_container(&allocation).await.unwrap();
    }
    let owners: BTreeSet<_> =
        bindings(&plugin).await.into_iter().map(|one| one.binding.owner.container).collect();
    assert_eq!(owners, BTreeSet::from(["one".to_string(), "other".to_string()]));
}

#[tokio::test]
async fn a_busy_kubelet_is_asked_again_for_whose_the_devices_are() {
    let (kubelet, plugin) = registered(Plugin::builder()).await;
    let allocation = kubelet.admit("a", "main", 3).await.unwrap();
    kubelet.refuse_lists(3);
    kubelet.start_container(&allocation).await.unwrap();
    assert_eq!(only_binding(&plugin).await.binding.owner.instance, "a");
}

#[tokio::test]
async fn what_a_pod_had_is_free_when_the_kubelet_does_not_list_it_any_more() {
    let (kubelet, plugin) = registered(Plugin::builder().with(&["--grace", "300ms"])).await;
    let gone = kubelet.admit("a", "main", 8).await.unwrap();
    kubelet.start_container(&gone).await.unwrap();
    let stays = kubelet.admit("b", "main", 4).await.unwrap();
    kubelet.start_container(&stays).await.unwrap();
    kubelet.remove("a");
    until("the binding to be released", PATIENCE, async || {
        (bindings(&plugin).await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(only_binding(&plugin).await.binding.owner.instance, "b");
    let files = fs::read_dir(plugin.path("cdi")).unwrap().count();
    assert_eq!(files, 1, "its CDI file is gone too");
}

#[tokio::test]
async fn devices_that_the_kubelet_gives_to_the_next_pod_at_once_are_bound_anew() {
    let (kubelet, plugin) = registered(Plugin::builder()).await;
    let first = kubelet.admit("a", "main", 20).await.unwrap();
    kubelet.start_container(&first).await.unwrap();
    kubelet.remove("a");
    let second = kubelet.admit("b", "main", 20).await.unwrap();
    assert_ne!(first.answer, second.answer, "nobody gets the binding of another pod");
    kubelet.start_container(&second).await.unwrap();
    assert_eq!(only_binding(&plugin).await.binding.owner.instance, "b");
}

#[tokio::test]
async fn a_plugin_that_is_killed_goes_on_with_what_it_had() {
    let (kubelet, mut plugin) = registered(Plugin::builder()).await;
    let started = kubelet.admit("a", "main", 5).await.unwrap();
    kubelet.start_container(&started).await.unwrap();
    let admitted = kubelet.admit("b", "main", 3).await.unwrap();
    let before = bindings(&plugin).await;
    plugin.crash();
    plugin.restart().await;
    kubelet.registered(2).await;
    let after = bindings(&plugin).await;
    let names = |of: &[BindingStatus]| of.iter().map(|one| one.binding.clone()).collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after));
    assert_eq!(kubelet.available().len(), 12);
    kubelet.start_container(&admitted).await.unwrap();
    let again = kubelet.allocate("b", "main", admitted.devices.clone(), false).await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn an_upgrade_takes_over_when_the_older_agent_leaves() {
    let (kubelet, mut plugin) = registered(Plugin::builder()).await;
    let allocation = kubelet.admit("a", "main", 5).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    let before = only_binding(&plugin).await.binding;
    let mut older = plugin.upgrade();
    until("the newer one to wait", PATIENCE, async || {
        plugin.agent().output().contains("waiting until it leaves").then_some(())
    })
    .await;
    assert_eq!(kubelet.registrations().len(), 1);
    assert!(older.stop(PATIENCE).0.success());
    kubelet.registered(2).await;
    assert_eq!(only_binding(&plugin).await.binding, before);
    // A container of the older agent's time finds the newer one behind the same path.
    let variables = variables(&cdi(&plugin, &allocation));
    let socket = PathBuf::from(&variables["GPUFN_SOCKET"]);
    assert!(Peer::attach(&socket, &before.id, Bytes::ZERO).is_ok());
}

#[tokio::test]
async fn annotations_give_the_form_and_the_grant_is_written_back() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder()).await;
    cluster.put("a", &[("sm", "50"), ("quota", "40"), ("memory", "3Gi")]);
    let allocation = kubelet.admit("a", "main", 4).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    let share = only_binding(&plugin).await.binding.share;
    assert_eq!((share.sm.percent(), share.floor, share.memory), (50, percent(40), Bytes::gib(3)));
    assert_eq!(variables(&cdi(&plugin, &allocation))["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "50");
    cluster.until_annotation("a", "gpufn.dev/grant", "40").await;
    let gpu = only_binding(&plugin).await.binding.gpu;
    cluster.until_annotation("a", "gpufn.dev/gpu", &gpu.0).await;
    cluster.until_annotation("a", "gpufn.dev/row", "0").await;
    // 16 units are free, but beside a row of half the SMs, which is busy for 40 % of the time, one container could have 60 %.
    until("the node's label", PATIENCE, async || {
        (cluster.label("gpufn.dev/max-free-units").as_deref() == Some("12")).then_some(())
    })
    .await;
    assert_eq!(kubelet.available().len(), 16);
}

#[tokio::test]
async fn a_quota_that_changes_reaches_the_page_and_is_mirrored_until_a_floor_needs_it() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder()).await;
    cluster.put("a", &[("quota", "20")]);
    let allocation = kubelet.admit("a", "main", 4).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    assert_eq!(kubelet.available().len(), 16);

    cluster.put("a", &[("quota", "60")]);
    let grown = until_binding(&plugin, "a grant of 60 %", |one| one.binding.grant == percent(60)).await;
    assert_eq!(grown.binding.share.floor, percent(20), "units back the floor only");
    cluster.until_annotation("a", "gpufn.dev/grant", "60").await;
    kubelet.until_available(8).await;

    // The kubelet gives devices that were withdrawn a moment ago: the pod gets its floor, and the grant shrinks.
    let all = kubelet.devices().into_keys().filter(|id| !allocation.devices.contains(id)).collect();
    let late = kubelet.allocate("b", "main", all, false).await.unwrap();
    kubelet.start_container(&late).await.unwrap();
    let bindings = bindings(&plugin).await;
    let of =
        |pod: &str| bindings.iter().find(|one| one.binding.owner.instance == pod).unwrap().binding.clone();
    assert_eq!((of("b").grant, of("a").grant), (percent(80), percent(20)));

    cluster.put("a", &[("quota", "10")]);
    until("a smaller floor", PATIENCE, async || {
        let bindings = plugin.control().bindings().await.unwrap();
        bindings.iter().any(|one| one.binding.share.floor == percent(10)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_grant_that_floors_took_comes_back_when_they_go() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder().with(&["--grace", "300ms"])).await;
    cluster.put("a", &[("quota", "60")]);
    let allocation = kubelet.admit("a", "main", 4).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    assert_eq!(only_binding(&plugin).await.binding.grant, percent(60));
    let all = kubelet.devices().into_keys().filter(|id| !allocation.devices.contains(id)).collect();
    let late = kubelet.allocate("b", "main", all, false).await.unwrap();
    kubelet.start_container(&late).await.unwrap();
    kubelet.remove("b");
    until("the grant to come back", PATIENCE, async || {
        let bindings = plugin.control().bindings().await.unwrap();
        bindings.iter().any(|one| one.binding.grant == percent(60)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn wrong_annotations_are_told_beside_the_pod_and_the_units_count() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder()).await;
    cluster.put("a", &[("sm", "120"), ("quota", "10")]);
    let allocation = kubelet.admit("a", "main", 5).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    let share = only_binding(&plugin).await.binding.share;
    assert_eq!((share.sm.percent(), share.floor), (100, percent(25)));
    let note = cluster.until_event("GpuAnnotationInvalid").await;
    assert_eq!(
        note,
        "main: gpufn.dev/sm is \"120\", allowed is a whole number from 1 to 100 (percent); \
         the container has what its units stand for"
    );
}

#[tokio::test]
async fn annotations_that_ask_for_more_than_the_units_are_told_and_capped() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder()).await;
    cluster.put("a", &[("quota", "20"), ("memory", "8Gi")]);
    let allocation = kubelet.admit("a", "main", 4).await.unwrap();
    let error = kubelet.start_container(&allocation).await;
    assert!(error.is_ok(), "{error:?}");
    assert_eq!(only_binding(&plugin).await.binding.share.memory, Bytes(Bytes::gib(16).0 / 5));
    let note = cluster.until_event("GpuUnitsMismatch").await;
    assert!(
        note.starts_with("main: its annotations come to 10 units, allowed are the 4 that it has"),
        "{note}"
    );
}

#[tokio::test]
async fn a_wrong_annotation_on_a_running_pod_changes_nothing() {
    let (kubelet, cluster, plugin) = in_cluster(Plugin::builder()).await;
    cluster.put("a", &[("quota", "15")]);
    let allocation = kubelet.admit("a", "main", 4).await.unwrap();
    kubelet.start_container(&allocation).await.unwrap();
    let before = only_binding(&plugin).await.binding;
    cluster.put("a", &[("quota", "much")]);
    let note = cluster.until_event("GpuAnnotationInvalid").await;
    assert!(note.ends_with("main keeps what it has"), "{note}");
    assert_eq!(only_binding(&plugin).await.binding, before);
}

#[tokio::test]
async fn without_cdi_variables_and_mounts_are_in_the_answer() {
    let (kubelet, _plugin) = registered(Plugin::builder().with(&["--inject", "classic"])).await;
    let answer = kubelet.admit("a", "main", 4).await.unwrap().answer;
    assert!(answer.cdi_devices.is_empty());
    assert!(answer.envs["NVIDIA_VISIBLE_DEVICES"].starts_with("GPU-"));
    assert!(!answer.envs.contains_key("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), "nobody knows it yet");
    let mounted =
        |path: &str| answer.mounts.iter().any(|one| one.read_only && path.starts_with(&one.container_path));
    for name in ["GPUFN_HOOK", "GPUFN_PAGE", "GPUFN_SOCKET"] {
        assert!(mounted(&answer.envs[name]), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_made_is_one_clear_line() {
    let place = Place::default();
    fs::create_dir(place.path("hook")).unwrap();
    fs::write(place.path("hook").join("libcuda.so.1"), "").unwrap();
    let state = place.path("hook").join("libcuda.so.1").join("node");
    let output = std::process::Command::new(tests::programs::built("gpufn-node"))
        .args(["serve", "--metrics", "127.0.0.1:0", "--hook"])
        .arg(place.path("hook"))
        .arg("--install")
        .arg(place.path("opt"))
        .arg("--state")
        .arg(&state)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with(&format!("gpufn-node: {} can't be made: ", state.display())), "{said}");
}

#[tokio::test]
async fn a_resource_that_kubernetes_refuses_is_bad_usage() {
    let place = Place::default();
    let output = std::process::Command::new(tests::programs::built("gpufn-node"))
        .args(["serve", "--resource", "gpu", "--state"])
        .arg(place.path("node"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--resource is \"gpu\", allowed is a domain other than Kubernetes' own"), "{said}");
}

#[tokio::test]
async fn a_damaged_checkpoint_is_set_aside_and_running_containers_keep_their_bindings() {
    let (kubelet, mut plugin) = registered(Plugin::builder()).await;
    let running = kubelet.admit("a", "main", 5).await.unwrap();
    kubelet.start_container(&running).await.unwrap();
    let before = only_binding(&plugin).await.binding;
    plugin.crash();
    let damaged = "{\"version\": 1, \"bind";
    fs::write(plugin.path("node").join("ledger.json"), damaged).unwrap();
    plugin.restart().await;
    kubelet.registered(2).await;
    assert_eq!(fs::read_to_string(plugin.path("node").join("ledger.json.bad")).unwrap(), damaged);
    assert_eq!(only_binding(&plugin).await.binding, before);
    let socket = plugin.path("node").join("sockets").join("node.sock");
    assert!(Peer::attach(&socket, &before.id, Bytes::ZERO).is_ok());
    assert!(kubelet.admit("b", "main", 5).await.is_ok());
}
