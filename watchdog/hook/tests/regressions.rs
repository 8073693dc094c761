//! What went wrong in other hooks, once each, in miniature: behind this one, on a driver that does nothing (`fixtures/`).
//!
//! The table in the hook's README says which report each test is of. A client is this test program once more.

#![allow(clippy::unwrap_used, clippy::panic)] // A test ends where something is wrong with it.

#[path = "clients/agent.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod agent;
#[path = "regressions/fake.rs"]
mod fake;
#[path = "clients/node.rs"]
#[allow(dead_code)] // Other tests need what these do not.
mod node;
#[path = "regressions/roles.rs"]
mod roles;

use std::time::{Duration, Instant};

use gpu_share::protocol::FromContainer;
use gpu_share::units::{Bytes, Nanos};

use agent::NodeAgent;
use fake::Fake;

const PATIENCE: Duration = Duration::from_secs(30);

fn agent() -> NodeAgent {
    NodeAgent::of_gpu("GPU-fake".to_owned()).start()
}

fn agent_with(memory: Bytes) -> NodeAgent {
    NodeAgent::of_gpu("GPU-fake".to_owned()).memory(memory).start()
}

#[test]
fn a_driver_that_looks_itself_up_while_it_starts_does_not_hang() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("curious").bound(&agent).env("FAKE_CURIOUS", "1").start();
    client.expect("init 0");
    client.expect("deepest 1");
    client.finish();
}

#[test]
fn names_that_are_not_the_drivers_are_found_where_they_are() {
    let fake = Fake::build();
    let mut client = fake.client("lookups").start();
    client.expect("dlsym libc");
    client.expect("dlopen libc");
    client.expect("cudnnCreate none");
    client.finish();
}

#[test]
fn both_forms_of_the_question_for_addresses_keep_their_arguments() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("forms").bound(&agent).start();
    for said in ["first form of 11030", "second form of 12000", "second form of 13050", "found 0"] {
        client.expect(said);
    }
    client.finish();
}

#[test]
fn a_function_whose_arguments_changed_is_the_one_of_the_version_that_was_asked_for() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("versions").bound(&agent).start();
    for said in
        ["cuCtxSynchronize of 12090: 0", "cuCtxSynchronize of 13000: 0", "cuCtxGetDevice of 12090: driver"]
    {
        client.expect(said);
    }
    client.expect("cuCtxGetDevice of 13000: driver");
    client.expect("cuCtxCreate of 12000 is cuCtxCreate_v2");
    client.finish();
}

#[test]
fn a_kernel_that_waits_for_the_next_launch_gets_it() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("launch 2").bound(&agent).env("FAKE_STUCK", "1").start();
    client.expect("ready");
    let start = Instant::now();
    client.expect("launched 2");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    client.finish();
}

#[test]
fn memory_that_is_made_without_a_context_is_charged_where_it_lies() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::gib(1)));
    let mut client = fake.client("physical").bound(&agent).start();
    client.expect("device 0");
    client.expect("beyond the limit 2");
    client.expect("another device 101");
    client.expect("host 0");
    agent.wait_for(|_| agent.memory() == Bytes::mib(512));
    client.say("go on");
    client.expect("released");
    agent.wait_for(|_| agent.memory() == Bytes::ZERO);
    client.finish();
}

#[test]
fn a_context_is_charged_with_what_it_takes_and_gives_it_back() {
    for (listed, with) in [("0", false), ("1", true)] {
        let (fake, agent) = (Fake::build(), agent_with(Bytes::gib(1)));
        let mut client = fake.client("contexts").bound(&agent);
        if with {
            client = client.env("FAKE_PROCESSES", listed);
        }
        let mut client = client.start();
        client.expect("created 0");
        client.expect(&format!("free {}", Bytes::mib(724).0));
        client.expect("taken 0");
        client.expect(&format!("free {}", Bytes::mib(624).0));
        client.expect("destroyed 0");
        agent.wait_for(|_| agent.memory() == Bytes::ZERO);
        client.finish();
    }
}

#[test]
fn a_context_that_the_share_has_no_room_for_is_out_of_memory() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::mib(200)));
    let mut client = fake.client("contexts").bound(&agent).start();
    client.expect("created 2");
    client.finish();
    assert_eq!(agent.memory(), Bytes::ZERO);
}

#[test]
fn a_way_to_launch_that_the_hook_does_not_know_is_counted() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("unknown").bound(&agent).start();
    client.expect("asked for known names");
    assert_eq!(agent.unknown(), 0);
    client.say("go on");
    client.expect("asked for an unknown name");
    agent.wait_for(|_| agent.unknown() == 1);
    client.say("go on");
    client.expect("asked for tables");
    agent.wait_for(|_| agent.unknown() == 2);
    client.finish();
}

#[test]
fn a_hundred_processes_start_side_by_side() {
    const EACH: usize = 24;
    let fake = Fake::build();
    let agents = [agent(), agent(), agent(), agent()];
    let start = Instant::now();
    let clients =
        agents.iter().flat_map(|agent| (0..EACH).map(|_| fake.launcher(agent, 100)).collect::<Vec<_>>());
    for mut client in clients.collect::<Vec<_>>() {
        assert!(client.wait().unwrap().success());
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    for agent in agents {
        agent.wait_for(|_| agent.launches() == EACH as u64 * 1_100);
    }
}

#[test]
fn two_processes_never_take_the_last_of_the_memory_twice() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::gib(1)));
    let mut clients =
        [(); 2].map(|()| fake.client("take-all").bound(&agent).env("GPUFN_NVML", "/none").start());
    let taken = clients.each_mut().map(|client| {
        let said = client.next();
        said.strip_prefix("took ").unwrap().parse::<u64>().unwrap()
    });
    assert_eq!(taken.iter().sum::<u64>(), Bytes::gib(1).0 / Bytes::mib(16).0, "{taken:?}");
    for client in &mut clients {
        client.say("go on");
        client.expect("free 0");
    }
    clients.into_iter().for_each(node::Client::finish);
}

#[test]
fn the_second_process_sees_what_the_first_one_holds() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::gib(1)));
    let start = || fake.client("contexts").bound(&agent).env("GPUFN_NVML", "/none").start();
    let mut first = start();
    for said in
        ["created 0", &format!("free {}", Bytes::gib(1).0), "taken 0", &format!("free {}", Bytes::mib(924).0)]
    {
        first.expect(said);
    }
    let mut second = start();
    second.expect("created 0");
    second.expect(&format!("free {}", Bytes::mib(924).0));
    second.finish();
    first.finish();
}

#[test]
fn what_was_never_taken_can_not_be_given_back() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::gib(1)));
    let mut client = fake.client("free-too-much").bound(&agent).env("GPUFN_NVML", "/none").start();
    client.expect(&format!("free {} of {}", Bytes::mib(924).0, Bytes::gib(1).0));
    assert_eq!(agent.memory(), Bytes::mib(100));
    client.finish();
}

#[test]
fn without_a_management_library_all_is_enforced() {
    let (fake, agent) = (Fake::build(), agent_with(Bytes::mib(64)));
    let mut client = fake.client("take-all").bound(&agent).env("GPUFN_NVML", "/none").start();
    client.expect("took 4");
    client.say("go on");
    client.expect("free 0");
    client.finish();
}

#[test]
fn a_process_that_ends_at_once_after_its_work_tells_what_it_used() {
    let (fake, agent) = (Fake::build(), agent());
    let mut client = fake.client("leave").bound(&agent).start();
    client.expect("launched");
    agent.wait_for(|_| agent.connections() == 0 && agent.launches() == 1);
    assert!(agent.used() > Nanos::ZERO);
}

#[test]
fn an_executed_program_joins_by_itself_and_one_that_never_asks_does_not() {
    let (fake, agent) = (Fake::build(), agent());
    for role in ["exec", "vfork"] {
        let attached = |log: &[FromContainer]| {
            log.iter().filter(|message| matches!(message, FromContainer::Attach { .. })).count()
        };
        agent.clear();
        let mut client = fake.client(role).bound(&agent).start();
        client.expect("parent launched 1");
        client.expect("child launched 1");
        agent.wait_for(|log| attached(log) == 2);
        client.finish();
        agent.wait_for(|_| agent.connections() == 0);
    }
}

/// `cargo build --release -p cuda-hook && cargo test -p cuda-hook --test regressions -- --ignored --nocapture fast_path`
#[test]
#[ignore = "a measurement of the release build; needs valgrind"]
fn the_fast_path_adds_at_most_sixty_instructions_and_ten_nanoseconds() {
    let (fake, agent) = (Fake::build(), agent());
    let added = fake.instructions(Some(&agent), 100_000) - fake.instructions(None, 100_000);
    let nanos = |run: &dyn Fn() -> f64| (0..7).map(|_| run()).fold(f64::MAX, f64::min);
    let (behind, alone) =
        (nanos(&|| fake.nanos(Some(&agent), 2_000_000)), nanos(&|| fake.nanos(None, 2_000_000)));
    println!("{added:.1} instructions, {:.2} ns (direct {alone:.2} ns)", behind - alone);
    assert!(added <= 60.0, "{added} instructions");
    assert!(behind - alone <= 10.0, "{behind} ns, {alone} ns without");
}

/// `cargo build --release -p cuda-hook && cargo test -p cuda-hook --test regressions -- --ignored --nocapture storm`
///
/// The GPU is a count of nanoseconds within the program: where launches go through another process, as to the simulated GPU,
/// the time says most of all how the two wake each other.
#[test]
#[ignore = "a measurement of the release build"]
fn a_storm_of_short_kernels_takes_at_most_a_hundredth_longer() {
    const KERNEL: Duration = Duration::from_micros(2);
    const LAUNCHES: u32 = 100_000;
    let (fake, agent) = (Fake::build(), agent());
    let mut ratios = (0..11)
        .map(|_| {
            let alone = fake.storm(None, LAUNCHES, KERNEL);
            fake.storm(Some(&agent), LAUNCHES, KERNEL).as_secs_f64() / alone.as_secs_f64()
        })
        .collect::<Vec<_>>();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("a storm takes {median:.4} times as long ({:.4} to {:.4})", ratios[0], ratios[ratios.len() - 1]);
    assert!((median - 1.0).abs() <= 0.01, "{ratios:?}");
}
