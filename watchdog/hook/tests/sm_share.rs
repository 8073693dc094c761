//! The SM share by green contexts: what programs get for the contexts that they make, on a simulated GPU.

#![allow(clippy::unwrap_used, clippy::panic)] // A test ends where something is wrong with it.

#[path = "clients/agent.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod agent;
#[path = "regressions/fake.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod fake;
#[path = "clients/node.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod node;
#[path = "clients/program.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod program;
#[path = "sm_share/roles.rs"]
mod roles;

use std::time::Duration;

use gpu_share::latency::Profiles;
use gpu_share::units::{Bytes, Nanos, SmShare};

use agent::NodeAgent;
use fake::Fake;
use node::{Node, Starter};

const PATIENCE: Duration = Duration::from_secs(30);

/// A client whose SM share is kept by green contexts.
fn green(node: &Node, role: &str, agent: &NodeAgent) -> Starter {
    node.client(role).bound(agent).env("GPUFN_SM_BY", "green")
}

#[test]
fn a_context_has_its_share_of_the_multiprocessors_rounded_down() {
    let node = Node::start();
    for (percent, multiprocessors) in [(1, 2), (30, 24), (33, 26), (99, 78), (100, 80)] {
        let agent = NodeAgent::builder(&node).sm(percent).start();
        let mut client = green(&node, "one-context", &agent).start();
        client.expect(&format!("multiprocessors {multiprocessors}"));
        client.expect("launched 0");
        client.expect("destroyed 0, again 201, current none");
        client.finish();
        agent.wait_for(|_| agent.memory() == Bytes::ZERO);
        assert_eq!((agent.launches(), agent.unknown()), (1, 0));
    }
    node.wait_for(|node| node.memory() == Bytes::ZERO);
}

#[test]
fn kernels_take_as_long_as_on_a_gpu_of_that_size_and_are_charged_so() {
    // One process at a time, as without MPS.
    let node = Node::start();
    let agent = NodeAgent::builder(&node).sm(25).start();
    let mut client = green(&node, "layers", &agent).start();
    client.expect("done");
    agent.wait_for_yield();
    let quarter = SmShare::from_percent(25).unwrap();
    let expected = Profiles::shipped().get("vgg16").unwrap().gpu_time(quarter, 1);
    let (busy, used) = (node.busy(), agent.used());
    assert!((busy.secs_f64() / expected.secs_f64() - 1.0).abs() < 0.01, "{busy:?}, expected {expected:?}");
    assert!(used.secs_f64() > 0.95 * busy.secs_f64(), "charged {used:?}, used {busy:?}");
    client.finish();
}

#[test]
fn two_processes_run_side_by_side_if_their_parts_fit() {
    for (percent, least, most) in [(50, 1.6, 2.1), (60, 0.9, 1.1)] {
        let node = Node::with(&["--mode", "mps", "--context-ms", "0", "--context-memory", "0"]);
        let agents = [(); 2].map(|()| NodeAgent::builder(&node).sm(percent).start());
        let mut clients = [0, 1].map(|which| green(&node, "launch-for-ever", &agents[which]).start());
        for client in &mut clients {
            client.expect("ready");
        }
        let (busy, all) = (node.busy(), node.busy_of_all());
        node.wait_for(|node| node.busy().since(busy) > Nanos::from_millis(500));
        let ratio = node.busy_of_all().since(all).secs_f64() / node.busy().since(busy).secs_f64();
        assert!((least..most).contains(&ratio), "{percent} % each: {ratio}");
        clients.into_iter().for_each(node::Client::kill);
    }
}

#[test]
fn a_context_that_ends_leaves_nothing_in_the_primary_one_that_others_hold() {
    let node = Node::with(&["--context-ms", "0", "--context-memory", "300Mi"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).sm(50).start();
    let mut client = green(&node, "many-contexts", &agent).start();
    // What contexts take is taken once: they are parts of one.
    client.expect("first: free 724");
    // Thirty times 192 MiB of three kinds.
    client.expect("after the others: free 724");
    agent.wait_for(|_| agent.memory() == Bytes::mib(300));
    assert_eq!(node.memory(), Bytes::mib(300));
    client.say("go on");
    client.expect("ended 0");
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
    node.wait_for(|node| node.memory() == Bytes::ZERO);
    client.finish();
}

#[test]
fn a_reset_of_the_primary_context_ends_what_stands_in_it() {
    let node = Node::with(&["--context-ms", "0", "--context-memory", "300Mi"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).sm(50).start();
    let mut client = green(&node, "reset", &agent).start();
    client.expect("reset 0, destroyed 201");
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
    assert_eq!(node.memory(), Bytes::ZERO);
    client.say("go on");
    client.expect("multiprocessors 40");
    client.finish();
}

#[test]
fn a_program_s_own_green_contexts_leave_their_memory_to_the_primary_one() {
    let node = Node::with(&["--context-ms", "0", "--context-memory", "300Mi"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).start();
    let mut client = node.client("own-green").bound(&agent).start();
    client.expect("green one ended 0: free 660");
    client.expect("primary one ended 0");
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
    node.wait_for(|node| node.memory() == Bytes::ZERO);
    client.finish();
}

#[test]
fn a_share_without_room_for_a_context_has_none() {
    let node = Node::with(&["--context-ms", "0", "--context-memory", "300Mi"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(200)).sm(50).start();
    let mut client = green(&node, "no-room", &agent).start();
    client.expect("created 2, current none");
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
    assert_eq!(node.memory(), Bytes::ZERO);
    client.finish();
}

#[test]
fn where_no_green_context_can_stand_it_is_counted_once() {
    let node = Node::start();
    for (role, multiprocessors) in [("primary", 80), ("own-limits", 80), ("own-green-alone", 40)] {
        let agent = NodeAgent::builder(&node).sm(30).start();
        let mut client = green(&node, role, &agent).start();
        client.expect(&format!("multiprocessors {multiprocessors}"));
        agent.wait_for(|_| agent.unknown() > 0);
        client.finish();
        agent.wait_for(|_| agent.connections() == 0);
        assert_eq!(agent.unknown(), 1, "{role}");
    }
}

#[test]
fn a_percentage_of_mps_comes_first() {
    let node = Node::with(&["--mode", "mps", "--context-ms", "0", "--context-memory", "0"]);
    let agent = NodeAgent::builder(&node).sm(30).start();
    let mut client =
        green(&node, "one-context", &agent).env("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "50").start();
    client.expect("multiprocessors 40");
    client.expect("launched 0");
    client.expect("destroyed 0, again 201, current none");
    client.finish();
    assert_eq!(agent.unknown(), 0);
}

#[test]
fn a_driver_without_green_contexts_gives_whole_ones_and_that_is_counted() {
    let driver = Fake::build();
    let agent = NodeAgent::of_gpu("GPU-fake".to_owned()).sm(30).start();
    let mut client = driver.client("bare").bound(&agent).env("GPUFN_SM_BY", "green").start();
    client.expect("created 0, launched 0, destroyed 0");
    client.finish();
    agent.wait_for(|_| agent.connections() == 0);
    assert_eq!((agent.unknown(), agent.memory()), (1, Bytes::ZERO));
}

#[test]
fn without_being_asked_for_no_green_context_is_made() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).sm(30).start();
    let mut client = node.client("one-context").bound(&agent).start();
    client.expect("multiprocessors 80");
    client.expect("launched 0");
    client.expect("destroyed 0, again 201, current none");
    client.finish();
    assert_eq!(agent.unknown(), 0);
}
