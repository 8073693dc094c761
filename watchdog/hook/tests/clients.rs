//! Real client programs behind the hook, on a simulated GPU, with a node agent that the test plays.
//!
//! A client is this test program once more: the test starts it with a role, and it prints what it sees.

#![allow(clippy::unwrap_used, clippy::panic)] // A test ends where something is wrong with it.

#[path = "clients/agent.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod agent;
#[path = "clients/node.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod node;
#[path = "clients/program.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod program;
#[path = "clients/roles.rs"]
mod roles;

use std::time::Duration;

use gpu_share::protocol::FromContainer;
use gpu_share::units::{Bytes, Nanos, Quota};

use agent::NodeAgent;
use node::Node;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn launches_wait_until_the_right_is_given_and_stop_when_it_is_revoked() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).unwilling().start();
    let mut client = node.client("launch-for-ever").bound(&agent).start();
    client.expect("ready");
    agent.wait_for(|log| log.contains(&FromContainer::Want));
    assert_eq!(node.busy(), Nanos::ZERO);

    agent.grant();
    node.wait_for(|node| node.busy() > Nanos::from_millis(50));
    agent.revoke();
    agent.wait_for_yield();
    let (busy, used) = (node.busy(), agent.used());
    assert!(!client.says_within("launched-more-than-queued", Duration::from_millis(300)));
    assert_eq!(node.busy(), busy);
    assert!(used.secs_f64() > 0.97 * busy.secs_f64(), "charged {used:?}, used {busy:?}");

    agent.grant();
    node.wait_for(|node| node.busy() > busy + Nanos::from_millis(50));
}

#[test]
fn the_right_goes_back_when_idle_and_the_time_used_is_what_the_kernels_took() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    for (role, kernels) in [
        ("burst 20 2000", 20),
        ("burst 400 100", 400),
        ("burst 4000 40", 4_000),
        ("burst-on-two-streams 20 2000", 40),
    ] {
        let charged = || {
            let (busy, used, launches) = (node.busy(), agent.used(), agent.launches());
            let mut client = node.client(role).bound(&agent).start();
            client.expect("done");
            agent.wait_for_yield();
            assert_eq!(agent.launches() - launches, kernels, "{role}");
            client.finish();
            agent.used().since(used).secs_f64() / node.busy().since(busy).secs_f64()
        };
        assert_charged(role, 1.25, charged);
    }
}

#[test]
fn a_client_that_is_slow_to_launch_is_not_charged_for_its_pauses() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let charged = || {
        let (busy, used) = (node.busy(), agent.used());
        let mut client = node.client("trickle 60 100").bound(&agent).start();
        client.expect("done");
        agent.wait_for_yield();
        client.finish();
        agent.used().since(used).secs_f64() / node.busy().since(busy).secs_f64()
    };
    assert_charged("trickle", 1.25, charged);
}

#[test]
fn kernels_shorter_than_their_launches_are_charged_what_they_take() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let charged = || {
        let (busy, used) = (node.busy(), agent.used());
        let mut client = node.client("burst 8000 2").bound(&agent).start();
        client.expect("done");
        agent.wait_for_yield();
        client.finish();
        agent.used().since(used).secs_f64() / node.busy().since(busy).secs_f64()
    };
    assert_charged("short", 2.0, charged);
}

#[test]
fn a_captured_graph_runs_as_one_launch_and_capturing_waits_for_nothing() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).unwilling().start();
    let mut client = node.client("graph 5 1000").bound(&agent).start();
    client.expect("captured");
    assert_eq!(node.busy(), Nanos::ZERO);
    agent.grant();
    client.expect("done");
    agent.wait_for_yield();
    assert_eq!(agent.launches(), 1);
    assert!(agent.used() > Nanos::from_micros(4_800), "{:?}", agent.used());
    client.finish();
}

#[test]
fn beyond_its_limit_a_client_is_out_of_memory_and_goes_on() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).start();
    let mut client = node.client("memory").bound(&agent).start();
    client.expect("total 1073741824");
    client.expect("first ok");
    client.expect("second CUDA_ERROR_OUT_OF_MEMORY");
    client.expect("free 536870912 of 1073741824");
    client.expect("nvml 536870912 of 1073741824");
    client.expect("third ok");
    client.expect("after all are freed 1073741824");
    client.expect("virtual ok");
    client.expect("while mapped 939524096");
    client.expect("after unmapping 1073741824");
    client.finish();
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
}

#[test]
fn every_address_that_the_driver_offers_for_a_watched_name_is_a_wrapper() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("addresses").bound(&agent).start();
    client.expect("watched hook");
    client.expect("others driver");
    client.expect("version one ok");
    client.expect("version two ok");
    client.expect("synchronize ok");
    client.finish();
}

#[test]
fn without_a_binding_the_hook_is_a_plain_proxy() {
    let node = Node::start();
    let mut client = node.client("addresses").start();
    client.expect("watched driver");
    client.expect("others driver");
    client.finish();
    let mut client = node.client("burst 10 1000").start();
    client.expect("done");
    assert_eq!(node.busy(), Nanos::from_millis(10));
    client.finish();
}

#[test]
fn without_its_agent_a_client_is_refused_unless_the_policy_is_open() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    agent.stop();
    let mut client = node.client("init").bound(&agent).start();
    client.expect("init CUDA_ERROR_NOT_PERMITTED");
    client.finish();
    let mut client = node.client("init").bound(&agent).env("GPUFN_POLICY", "open").start();
    client.expect("init ok");
    client.finish();
}

#[test]
fn when_the_agent_dies_a_client_goes_on_at_its_floor_and_joins_the_next_one() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).floor(Quota::from_percent(25).unwrap()).start();
    let mut client = node.client("launch-for-ever").bound(&agent).start();
    client.expect("ready");
    node.wait_for(|node| node.busy() > Nanos::from_millis(100));
    agent.stop();

    let before = (node.now(), node.busy());
    node.wait_for(|node| node.now().since(before.0) > Nanos::from_secs(2));
    let share = node.busy().since(before.1).secs_f64() / node.now().since(before.0).secs_f64();
    assert!((0.05..0.32).contains(&share), "{share}");

    agent.restart();
    agent.wait_for(|log| {
        let held = |message: &FromContainer| match message {
            FromContainer::Attach { memory, .. } => *memory,
            _ => Bytes::ZERO,
        };
        log.iter().any(|message| held(message) == Bytes::mib(64))
    });
    let busy = node.busy();
    node.wait_for(|node| node.busy() > busy + Nanos::from_millis(100));
    agent.revoke();
    agent.wait_for_yield();
    assert!(agent.used() > Nanos::from_millis(90), "{:?}", agent.used());
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("launch-for-ever").bound(&agent).start();
    client.expect("ready");
    node.wait_for(|node| node.busy() > Nanos::from_millis(20));
    client.kill();
    agent.wait_for(|_| agent.connections() == 0);
    node.wait_for(|node| node.memory() == Bytes::ZERO);
}

#[test]
fn a_forked_child_has_no_part_in_its_parents_session() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("fork").bound(&agent).start();
    client.expect("child 3");
    client.expect("parent ok");
    client.expect("parent gone");
    agent.wait_for(|_| agent.connections() == 0);
    client.finish();
}

/// Never less is charged than was used. It may be more, since the simulated GPU's own threads are late when others keep
/// the machine busy: the quietest of several attempts counts.
fn assert_charged(what: &str, most: f64, charged: impl Fn() -> f64) {
    let mut seen = Vec::new();
    for _ in 0..8 {
        let ratio = charged();
        assert!(ratio > 0.97, "{what}: {ratio}");
        eprintln!("{what} {ratio}");
        if ratio < most {
            return;
        }
        seen.push(ratio);
    }
    panic!("{what}: {seen:?}");
}
