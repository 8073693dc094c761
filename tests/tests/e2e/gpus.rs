//! Pods that ask for parts of a GPU: the hook by CDI, quotas beside neighbours, and what does not fit.

use std::collections::BTreeSet;
use std::time::Duration;

use gpu_share::units::{Bytes, Quota, Units};
use serde_json::json;
use tests::cluster::gpu_node::{GpuNode, GpuPod};
use tests::cluster::tenant::phase;
use tests::delivery::{Claim, Stretch, get_their_time};
use tests::plugin::Plugin;
use tests::wait::until;

const PATIENCE: Duration = Duration::from_mins(1);
const SPAN: Duration = Duration::from_secs(8);
/// How far from its quota a pod's part of the time may be, percentage points.
const TOLERANCE: f64 = 1.5;
/// What a context takes of the simulated card.
const CONTEXT: Bytes = Bytes::mib(300);
/// Length of the audit client's kernels.
const KERNEL: Duration = Duration::from_millis(1);

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_pod_that_asks_for_30_percent_of_a_gpu_gets_the_hook_by_cdi_and_its_quota() {
    let node = GpuNode::start(Plugin::builder(), &[]).await;
    node.until_allocatable(20).await;
    let function = node.run(&GpuPod::audit("some").units(6).annotation("quota-limit", "30")).await;
    let binding = &function.binding.binding;
    let thirty = Quota::from_percent(30).unwrap();
    assert_eq!((binding.share.floor, binding.share.ceiling, binding.grant), (thirty, thirty, thirty));
    assert_eq!((&*binding.owner.instance, &*binding.owner.container), ("some", "main"));

    assert_eq!(function.hook(), node.plugin.path("opt").join(env!("CARGO_PKG_VERSION")).join("lib"));
    let log = node.tenant.logs("some").await;
    assert!(!log.contains("gpufn hook:"), "the hook complains: {log}");

    let claim = Claim { pids: vec![function.pid], at_least: 30.0 - TOLERANCE, at_most: 30.0 + TOLERANCE };
    get_their_time("30 % in a pod", &node, SPAN, &[claim]).await;
    let stretch = Stretch::watch(&node, &[function.pid], SPAN).await;
    let (counted, told) = (stretch.percent(&[function.pid]), said(&node.tenant.logs("some").await));
    println!("the GPU counts {counted:.2} %, the audit client in the pod {told:.2} %");
    assert!((told - counted).abs() <= 1.0, "the GPU counts {counted:.2} %, the client {told:.2} %");
}

/// Part of the time that an audit client got in the last [`SPAN`] by its own count, percent: lines `done NANOSECONDS
/// LAUNCHES`.
#[allow(clippy::cast_precision_loss)] // Differences of seconds, in nanoseconds.
fn said(log: &str) -> f64 {
    let done = log.lines().filter_map(|line| line.strip_prefix("done ")?.split_once(' '));
    let done: Vec<(u64, u64)> =
        done.filter_map(|(time, launches)| Some((time.parse().ok()?, launches.parse().ok()?))).collect();
    let &(end, last) = done.last().unwrap_or_else(|| panic!("it says nothing: {log}"));
    let begin = end - u64::try_from(SPAN.as_nanos()).unwrap();
    let &(start, first) = done.iter().find(|(time, _)| *time >= begin).unwrap();
    100.0 * (last - first) as f64 * KERNEL.as_nanos() as f64 / (end - start) as f64
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn eight_pods_share_one_gpu_each_with_its_quota() {
    let node = GpuNode::start(Plugin::builder(), &[]).await;
    node.until_allocatable(20).await;
    let names: Vec<_> = (0..8).map(|number| format!("pod-{number}")).collect();
    for name in &names {
        node.tenant.create(&GpuPod::audit(name).units(2).annotation("quota-limit", "10").pod()).await;
    }
    let mut functions = Vec::new();
    for name in &names {
        functions.push(node.running(name).await);
    }
    let claims = functions.iter().map(|function| Claim {
        pids: vec![function.pid],
        at_least: 10.0 - TOLERANCE,
        at_most: 10.0 + TOLERANCE,
    });
    get_their_time("eight pods of 10 %", &node, SPAN, &claims.collect::<Vec<_>>()).await;

    let [gpu] = <[_; 1]>::try_from(node.plugin.control().status().await.unwrap().gpus).unwrap();
    assert_eq!((gpu.bindings.len(), gpu.free_units), (8, Units(4)));
    // Each counts its own context, though all were made at once and no process knows its number on the node.
    let held: Vec<_> = gpu.bindings.iter().map(|one| one.memory_used).collect();
    assert!(held.iter().all(|held| *held == CONTEXT), "{held:?}");
    let devices = gpu.bindings.iter().flat_map(|one| one.binding.owner.devices.iter());
    assert_eq!(devices.collect::<BTreeSet<_>>().len(), 16, "nobody has another's");
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn each_container_of_a_pod_has_its_own_share_and_all_go_with_the_pod() {
    let node = GpuNode::start(Plugin::builder().with(&["--grace", "1s"]), &[]).await;
    node.until_allocatable(20).await;
    let pod = GpuPod::audit("pair").units(4).annotation("quota-limit", "20").beside("other", 4);
    node.tenant.create(&pod.pod()).await;
    node.tenant.ready("pair").await;
    let bindings = node.plugin.control().bindings().await.unwrap();
    let mut claims = Vec::new();
    for one in &bindings {
        let pids = vec![node.function_of(one).await];
        claims.push(Claim { pids, at_least: 20.0 - TOLERANCE, at_most: 20.0 + TOLERANCE });
    }
    let owners: BTreeSet<_> =
        bindings.iter().map(|one| (&*one.binding.owner.instance, &*one.binding.owner.container)).collect();
    assert_eq!(owners, BTreeSet::from([("pair", "main"), ("pair", "other")]));
    let devices = bindings.iter().flat_map(|one| one.binding.owner.devices.iter());
    assert_eq!(devices.collect::<BTreeSet<_>>().len(), 8, "neither has the other's");
    get_their_time("two containers of a pod", &node, SPAN, &claims).await;
    let held: Vec<_> = node.plugin.control().bindings().await.unwrap();
    assert!(held.iter().all(|one| one.memory_used == CONTEXT), "{held:?}");

    node.tenant.delete("pair").await;
    until("both to be released", PATIENCE, async || {
        node.plugin.control().bindings().await.unwrap().is_empty().then_some(())
    })
    .await;
    node.until_allocatable(20).await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn pods_with_half_of_the_multiprocessors_run_beside_each_other() {
    let node = GpuNode::start(Plugin::builder(), &[]).await;
    node.until_allocatable(20).await;
    let mut halves = Vec::new();
    for name in ["one", "other"] {
        let pod = GpuPod::audit(name).units(9).annotation("sm", "50");
        halves.push(node.run(&pod.annotation("quota", "90").annotation("quota-limit", "90")).await);
    }
    let ninety = Quota::from_percent(90).unwrap();
    for half in &halves {
        let share = &half.binding.binding.share;
        assert_eq!((share.sm.percent(), share.floor, share.ceiling), (50, ninety, ninety));
        let environment = std::fs::read_to_string(format!("/proc/{}/environ", half.pid)).unwrap();
        let mut variables = environment.split('\0');
        assert!(variables.any(|one| one == "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50"), "{environment:?}");
    }
    // 180 % of the time: not in turns.
    let claims = halves.iter().map(|half| Claim {
        pids: vec![half.pid],
        at_least: 90.0 - TOLERANCE,
        at_most: 90.0 + TOLERANCE,
    });
    get_their_time("two halves of the SMs", &node, SPAN, &claims.collect::<Vec<_>>()).await;
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn what_does_not_fit_stays_pending_says_why_and_starts_when_there_is_room() {
    let node = GpuNode::start(Plugin::builder().gpus(2).with(&["--grace", "1s"]), &[]).await;
    node.until_allocatable(40).await;
    for name in ["one", "other"] {
        node.run(&GpuPod::inference(name).units(12)).await;
    }
    let label = "gpufn.dev/max-free-units";
    until("the node's label", PATIENCE, async || {
        (node.tenant.node().await.metadata.labels?.get(label)? == "8").then_some(())
    })
    .await;

    // 16 units are free, but 8 on each GPU: whoever says how much it needs on one GPU is not sent here.
    let room = json!({"key": label, "operator": "Gt", "values": ["11"]});
    let needs = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [room]}]}});
    let split = GpuPod::inference("split").units(12).spec("affinity", json!({"nodeAffinity": needs}));
    let large = GpuPod::inference("large").units(17);
    for (pod, reason) in
        [(&split, "didn't match Pod's node affinity"), (&large, "Insufficient gpufn.dev/gpu")]
    {
        let pod = pod.pod();
        node.tenant.create(&pod).await;
        let name = pod.metadata.name.as_deref().unwrap();
        let event = until("the scheduler's word", PATIENCE, async || {
            let events = node.tenant.events(name).await;
            events.into_iter().find(|event| event.starts_with("FailedScheduling"))
        })
        .await;
        assert!(event.contains(reason), "{event}");
        assert_eq!(phase(&node.tenant.pod(name).await), "Pending");
    }
    for name in ["large", "one"] {
        node.tenant.delete(name).await;
    }
    let started = node.running("split").await;
    assert_eq!(started.binding.binding.share.floor, Quota::from_percent(60).unwrap());
}

#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_pod_that_finds_the_units_but_no_gpu_with_its_memory_waits_with_an_event_until_there_is_room() {
    let node = GpuNode::start(Plugin::builder().gpus(2).with(&["--grace", "1s"]), &[]).await;
    node.until_allocatable(40).await;
    for name in ["one", "other"] {
        node.run(&GpuPod::inference(name).units(12)).await;
    }
    // Nobody said that the units must be on one GPU, so the scheduler takes the 8 of each for 16.
    node.tenant.create(&GpuPod::inference("waits").units(12).annotation("memory", "9Gi").pod()).await;
    let event = until("the agent's word", PATIENCE, async || {
        let events = node.tenant.events("waits").await;
        events.into_iter().find(|event| event.starts_with("GpuShareUnavailable"))
    })
    .await;
    assert!(event.contains("main does not start yet: ") && event.contains("GiB"), "{event}");
    assert_eq!(phase(&node.tenant.pod("waits").await), "Pending");
    let bindings = node.bindings().await;
    let gpu = |pod: &str| bindings[pod].binding.gpu.clone();
    let neighbour = ["one", "other"].into_iter().find(|name| gpu(name) == gpu("waits")).unwrap();
    node.tenant.delete(neighbour).await;
    let started = node.running("waits").await;
    assert_eq!(started.binding.binding.share.floor, Quota::from_percent(60).unwrap());
}
