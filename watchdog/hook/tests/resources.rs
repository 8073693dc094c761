//! Memory by every way to take it, contexts, and what streams can be made to do, on a simulated GPU.

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
#[path = "resources/roles.rs"]
mod roles;

use std::time::Duration;

use gpu_share::units::{Bytes, Nanos};

use agent::NodeAgent;
use node::Node;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn by_every_way_memory_beyond_the_limit_is_out_of_memory_and_what_is_taken_comes_back() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(256)).start();
    let mut client = node.client("ways").bound(&agent).start();
    for way in [
        "linear",
        "pitched",
        "managed",
        "flat array",
        "array",
        "mipmapped array",
        "physical",
        "async",
        "pool",
    ] {
        client.expect(&format!("{way}: 200 MiB 0, 100 MiB more 2, NVML agrees, 200 MiB again 0"));
    }
    client.finish();
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
}

#[test]
fn the_newest_form_of_a_name_does_what_the_older_one_does_where_the_driver_lacks_it() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("newest-names").bound(&agent).start();
    client.expect("device 0: 0, waited 0");
    client.expect("profiler 0, 0");
    client.finish();
}

#[test]
fn memory_that_is_freed_behind_work_or_kept_by_a_pool_can_be_taken_again_at_once() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(256)).start();
    let mut client = node.client("freed-behind-work").bound(&agent).start();
    client.expect("freed 0, again from the pool 0");
    client.expect("freed 0, again by itself 0");
    client.expect("kept by the pool, again by itself 0");
    client.finish();
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
}

#[test]
fn memory_nodes_of_graphs_are_charged_while_the_device_keeps_their_memory() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(256)).start();
    let mut client = node.client("graph-memory").bound(&agent).start();
    client.expect("captured free 256");
    client.expect("launched 0");
    client.expect("kept free 56");
    client.expect("again 0");
    // What the device keeps for graphs serves the next one.
    client.expect("another graph 0");
    client.expect("kept free 6");
    client.expect("too large a graph 2");
    client.expect("after the trim 256");
    client.finish();
}

#[test]
fn a_context_that_ends_gives_back_all_that_was_taken_in_it() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).start();
    for role in ["end-context", "reset-context"] {
        let mut client = node.client(role).bound(&agent).start();
        client.expect("taken");
        agent.wait_for(|_| agent.memory() >= Bytes::mib(192));
        client.say("go on");
        client.expect("ended 0");
        agent.wait_for(|_| agent.memory() == Bytes::ZERO);
        client.expect("launched in another one");
        client.finish();
    }
}

#[test]
fn a_context_takes_what_it_takes_of_the_card() {
    let node = Node::with(&["--context-ms", "0", "--context-memory", "300Mi"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::gib(1)).start();
    for role in ["context-memory created", "context-memory primary"] {
        let mut client = node.client(role).bound(&agent).start();
        client.expect("free 724");
        agent.wait_for(|_| agent.memory() == Bytes::mib(300));
        client.expect("after its end 0");
        agent.wait_for(|_| agent.memory() == Bytes::ZERO);
        client.finish();
    }
}

#[test]
fn memory_of_another_process_is_charged_to_that_one() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(256)).start();
    let mut exporter = node.client("export").bound(&agent).start();
    let handle = exporter.next();
    assert_eq!(agent.memory(), Bytes::mib(200));
    let mut importer = node.client("import").bound(&agent).start();
    importer.say(handle.strip_prefix("handle ").unwrap());
    importer.expect("opened 0");
    assert_eq!(agent.memory(), Bytes::mib(200));
    importer.say("go on");
    importer.expect("closed 0");
    importer.finish();
    assert_eq!(agent.memory(), Bytes::mib(200));
    exporter.finish();
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
}

#[test]
fn a_function_on_the_host_is_no_time_of_the_gpu() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("host-functions").bound(&agent).start();
    client.expect("done");
    agent.wait_for_yield();
    let (busy, used) = (node.busy(), agent.used());
    // Five times 20 ms on the host lie between the kernels.
    assert!(used.since(busy) < Nanos::from_millis(20), "charged {used:?}, used {busy:?}");
    assert!(used.secs_f64() > 0.95 * busy.secs_f64(), "charged {used:?}, used {busy:?}");
    client.finish();
}

#[test]
fn copies_within_the_gpu_wait_for_the_right_and_others_do_not() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).unwilling().start();
    for role in ["copy unified", "copy batch", "copy rectangle", "copy linear", "set"] {
        let mut client = node.client(role).bound(&agent).start();
        client.expect("to the GPU 0");
        client.expect("from the GPU 0");
        client.expect("within the GPU");
        assert!(!client.says_within("done 0", Duration::from_millis(100)), "{role}");
        agent.grant();
        client.expect("done 0");
        client.finish();
        agent.wait_for_yield();
        agent.revoke();
    }
}

#[test]
fn work_of_green_contexts_and_of_threads_own_streams_is_measured() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    for role in ["green", "per-thread"] {
        let (busy, used, launches) = (node.busy(), agent.used(), agent.launches());
        let mut client = node.client(role).bound(&agent).start();
        client.expect("done");
        agent.wait_for_yield();
        let (busy, used) = (node.busy().since(busy), agent.used().since(used));
        assert!(busy >= Nanos::from_millis(40), "{role}: {busy:?}");
        assert!(used.secs_f64() > 0.95 * busy.secs_f64(), "{role}: charged {used:?}, used {busy:?}");
        assert_eq!(agent.launches() - launches, 40, "{role}");
        client.finish();
    }
}

#[test]
fn two_gpus_that_a_process_sees_count_as_its_one_share() {
    let node = Node::with(&["--gpus", "2", "--context-ms", "0", "--context-memory", "0"]);
    let agent = NodeAgent::builder(&node).memory(Bytes::mib(256)).start();
    let mut client = node.client("two-gpus").bound(&agent).start();
    client.expect("on the first 0");
    client.expect("on the second 0");
    client.expect("more on the second 2");
    client.expect("done");
    agent.wait_for_yield();
    assert_eq!(agent.launches(), 40);
    client.finish();
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
}

#[test]
fn a_kernel_that_was_never_measured_has_nothing_queued_behind_it() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("cold").bound(&agent).start();
    let said = client.next();
    let waited = said.strip_prefix("waited ").unwrap().parse::<u64>().unwrap();
    // Four kernels of 100 ms each were launched; the fourth only after three had ended.
    assert!(waited >= 290, "{waited} ms");
    client.finish();
}

#[test]
fn the_size_of_a_grid_changes_nothing() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut ratios = Vec::new();
    for role in ["grid 1", "grid 188", "grid 60000"] {
        let (busy, used) = (node.busy(), agent.used());
        let mut client = node.client(role).bound(&agent).start();
        client.expect("done");
        agent.wait_for_yield();
        let (busy, used) = (node.busy().since(busy), agent.used().since(used));
        ratios.push(used.secs_f64() / busy.secs_f64());
        client.finish();
    }
    assert!(ratios.iter().all(|ratio| (0.95..1.3).contains(ratio)), "{ratios:?}");
}

#[test]
fn a_process_that_is_killed_in_a_launch_leaves_nothing_behind() {
    let node = Node::start();
    let agent = NodeAgent::builder(&node).start();
    let mut client = node.client("long-launch").bound(&agent).start();
    client.expect("launched");
    client.kill();
    agent.wait_for(|_| agent.connections() == 0 && agent.memory() == Bytes::ZERO);
    node.wait_for(|node| node.memory() == Bytes::ZERO);
}
