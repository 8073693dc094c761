//! GPUs that fail and come back, and a management library that hangs: what the node agent makes of it, with NVML as it is
//! called in earnest and the driver's lines as the kernel's log has them.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use gpu_share::binding::GpuId;
use gpu_share::protocol::{Bound, GpuStatus, Health, NodeStatus};
use gpu_share::units::Bytes;
use serde_json::json;
use tests::node::Node;
use tests::wait::until;

/// Longest time until a fault is known.
const NOTICE: Duration = Duration::from_secs(10);
/// Longest time until a GPU that is sound again takes bindings: its pause, three probes, and a busy machine.
const RECOVERY: Duration = Duration::from_secs(40);
/// Longest time for a bind, whatever NVML does.
const BIND: Duration = Duration::from_secs(2);

async fn status(node: &Node) -> NodeStatus {
    node.control().status().await.expect("the agent answers")
}

fn gpu<'a>(status: &'a NodeStatus, id: &GpuId) -> &'a GpuStatus {
    status.gpus.iter().find(|gpu| gpu.gpu.id == *id).expect("the GPU is listed")
}

async fn reach(node: &Node, what: &str, patience: Duration, wanted: impl Fn(&NodeStatus) -> bool) {
    until(what, patience, async || wanted(&status(node).await).then_some(())).await;
}

async fn faults(node: &Node, bound: &Bound) -> u64 {
    let bindings = node.control().bindings().await.expect("the agent answers");
    bindings.iter().find(|status| status.binding.id == bound.binding.id).map_or(0, |status| status.faults)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_s_fault_is_its_own_and_a_lost_gpu_takes_nothing_new_until_it_is_back() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let arguments = ["--gpus", "2", "--kernel-log", log.path().to_str().unwrap()];
    let variables = [("GPUFN_KERNEL_LOG", log.path().as_os_str())];
    let node = Node::builder("exclusive").gpu(&arguments).variables(&variables).start().await;
    let (one, other) = (
        node.bind("one", 100, 30, 100, Bytes::gib(2)).await,
        node.bind("other", 100, 30, 100, Bytes::gib(2)).await,
    );
    let (first, second) = (one.binding.gpu.clone(), other.binding.gpu.clone());
    assert_eq!(first, second, "the second fits best beside the first");
    let index = status(&node).await.gpus.iter().position(|gpu| gpu.gpu.id == first).unwrap();
    let clients = [node.client(&one, &["spin", "2000"]).await, node.client(&other, &["spin", "2000"]).await];

    node.order(&json!({"request": "xid", "gpu": index, "xid": 31, "pid": clients[1].pid()}));
    until("the fault to be put down to who made it", NOTICE, async || {
        (faults(&node, &other).await == 1).then_some(())
    })
    .await;
    assert_eq!(faults(&node, &one).await, 0);
    assert_eq!(gpu(&status(&node).await, &first).health, Health::Healthy);

    node.order(&json!({"request": "lose", "gpu": index}));
    reach(&node, "a lost GPU to be unhealthy", NOTICE, |status| !gpu(status, &first).health.takes_bindings())
        .await;
    let now = status(&node).await;
    assert_eq!(now.gpus.iter().filter(|gpu| gpu.health == Health::Healthy).count(), 1, "{now:?}");
    let elsewhere = node.bind("third", 100, 30, 100, Bytes::gib(2)).await;
    assert_ne!(elsewhere.binding.gpu, first);
    // What runs there goes on, as far as the GPU does.
    let before = node.stats();
    for client in &clients {
        until("a function to go on", NOTICE, async || {
            (node.stats().busy_ns(client.pid()) > before.busy_ns(client.pid())).then_some(())
        })
        .await;
    }

    node.order(&json!({"request": "return", "gpu": index}));
    reach(&node, "a GPU that is back to be healthy", RECOVERY, |status| {
        gpu(status, &first).health == Health::Healthy
    })
    .await;
    let back = node.bind("fourth", 100, 30, 100, Bytes::gib(2)).await;
    assert_eq!(back.binding.gpu, first);

    // No Xid, but the driver says that something is to be done.
    node.order(&json!({"request": "recovery", "gpu": index, "action": 1}));
    reach(&node, "the driver's word to be heard", NOTICE * 2, |status| {
        gpu(status, &first).health.why().is_some_and(|why| why.contains("needs a reset"))
            && !gpu(status, &first).health.takes_bindings()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nvml_hangs_binds_are_answered_and_a_new_agent_knows_what_was_bound() {
    let mut node = Node::builder("exclusive").gpu(&["--gpus", "2"]).start().await;
    let bound = node.bind("first", 100, 20, 100, Bytes::gib(1)).await;
    let client = node.client(&bound, &["spin", "2000"]).await;
    node.order(&json!({"request": "hang"}));
    reach(&node, "NVML to be known to hang", NOTICE * 3, |status| status.blind.is_some()).await;
    let now = status(&node).await;
    assert!(now.blind.as_ref().unwrap().contains("has not returned"), "{now:?}");
    assert!(now.gpus.iter().all(|gpu| gpu.health == Health::Healthy), "each keeps what it had: {now:?}");
    let began = Instant::now();
    node.bind("second", 100, 20, 100, Bytes::gib(1)).await;
    assert!(began.elapsed() < BIND, "{:?}", began.elapsed());

    node.crash_agent();
    node.restart_agent().await;
    let now = status(&node).await;
    assert_eq!(node.control().bindings().await.unwrap().len(), 2);
    assert!(now.gpus.iter().all(|gpu| !gpu.health.takes_bindings()), "nobody has seen them: {now:?}");
    let before = node.stats();
    until("the function to go on under the new agent", RECOVERY, async || {
        let attached =
            node.control().bindings().await.ok()?.iter().any(|status| !status.processes.is_empty());
        (attached && node.stats().busy_ns(client.pid()) > before.busy_ns(client.pid())).then_some(())
    })
    .await;

    node.order(&json!({"request": "resume"}));
    reach(&node, "the GPUs to be seen again", RECOVERY, |status| {
        status.blind.is_none() && status.gpus.iter().all(|gpu| gpu.health == Health::Healthy)
    })
    .await;
    node.bind("third", 100, 20, 100, Bytes::gib(1)).await;
}
