//! What happens to running functions when a part fails: the node agent, its socket, a page, a process, a clock; and a
//! hundred containers at once. Real processes under the real hook and node agent, GPU time as the simulated GPU counts it.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::process::Command;
use std::time::{Duration, Instant};

use gpu_share::protocol::{BindingStatus, Bound};
use gpu_share::units::Bytes;
use tests::delivery::{Claim, SETTLE, Stretch, get_their_time};
use tests::node::{self, Node};
use tests::process::{self, Process};
use tests::relay::{Mode, Relay};
use tests::wait::until;

/// Time for which is measured what functions get.
const SPAN: Duration = Duration::from_secs(2);
/// Longest time until processes are back at an agent that is back, or gone from the books.
const REJOIN: Duration = Duration::from_secs(5);

async fn status_of(node: &Node, bound: &Bound) -> Option<BindingStatus> {
    // While the agent is away there is no answer.
    let bindings = node.control().bindings().await.ok()?;
    bindings.into_iter().find(|status| status.binding.id == bound.binding.id)
}

/// Waits until the binding has so many processes that hold so much.
async fn attached(node: &Node, bound: &Bound, processes: usize, memory: Bytes) {
    until("processes and memory of a binding", REJOIN, async || {
        let status = status_of(node, bound).await?;
        (status.processes.len() == processes && status.memory_used >= memory).then_some(())
    })
    .await;
}

async fn take(client: &mut Process, mib: u32) {
    client.tell(&format!("take {mib}"));
    let took = format!("took {mib}\n");
    until("memory to be taken", REJOIN * 2, async || client.output().contains(&took).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_agent_functions_go_on_at_their_floors_and_a_new_agent_finds_all_as_it_was() {
    let mut node = Node::start("exclusive").await;
    let small = node.bind("small", 100, 30, 100, Bytes::gib(2)).await;
    let large = node.bind("large", 100, 40, 100, Bytes::gib(2)).await;
    let mut first = node.client(&small, &["spin", "2000"]).await;
    let mut second = node.client(&large, &["spin", "2000"]).await;
    take(&mut first, 200).await;
    take(&mut second, 300).await;
    let memory = status_of(&node, &small).await.unwrap().memory_used;
    assert!(memory >= Bytes::mib(200), "{memory}");

    node.crash_agent();
    // Nobody knows of the other, and what one measures contains the other's kernels: less than the floor, never more.
    let claims = [Claim::between([&first], 15.0, 33.0), Claim::between([&second], 20.0, 44.0)];
    get_their_time("no agent, floors 30 and 40", &node, SPAN, &claims).await;
    let used = Duration::from_nanos(node.stats().busy_ns(first.pid()));

    let start = Instant::now();
    node.restart_agent().await;
    attached(&node, &small, 1, memory).await;
    attached(&node, &large, 1, Bytes::mib(300)).await;
    println!("back at the new agent after {:?}", start.elapsed());
    let status = status_of(&node, &small).await.unwrap();
    assert_eq!(status.memory_used, memory, "what it holds is known again");
    let before = status.used;
    // On the page is what was charged by the last beat, up to the last hold that had ended.
    assert!(before.secs_f64() > 0.1, "{before:?} of GPU time known after the restart, {used:?} used");
    // Nobody is above its share any more, and all of the time is used.
    let claims = [Claim::between([&first], 40.0, 50.0), Claim::between([&second], 51.0, 61.0)];
    get_their_time("a new agent, floors 30 and 40", &node, SPAN, &claims).await;
    let now = status_of(&node, &small).await.unwrap().used;
    assert!(now.secs_f64() > before.secs_f64() + 0.25 * SPAN.as_secs_f64(), "{before:?}, then {now:?}");
    take(&mut first, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_stops_nobody() {
    let node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 50, 50, Bytes::gib(2)).await;
    let other = node.bind("other", 100, 20, 20, Bytes::gib(2)).await;
    let (client, other) =
        (node.client(&bound, &["spin", "2000"]).await, node.client(&other, &["spin", "2000"]).await);
    process::halt(node.agent().pid());
    // By then they have noticed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let claims = [Claim::between([&client], 25.0, 53.0), Claim::between([&other], 8.0, 22.0)];
    get_their_time("the agent hangs, floors 50 and 20", &node, SPAN, &claims).await;
    process::resume(node.agent().pid());
    attached(&node, &bound, 1, Bytes::ZERO).await;
    let claims = [Claim::exactly([&client], 50.0, 3.0), Claim::exactly([&other], 20.0, 3.0)];
    get_their_time("the agent goes on, floors 50 and 20", &node, SPAN, &claims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_shortened_overwritten_or_removed_harms_no_function() {
    let mut node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 40, 40, Bytes::gib(2)).await;
    let mut client = node.client(&bound, &["spin", "2000"]).await;
    let damage: [(&str, &dyn Fn()); 3] = [
        ("overwritten", &|| fs::write(&bound.page, [0xa5; 4096]).unwrap()),
        ("shortened", &|| OpenOptions::new().write(true).open(&bound.page).unwrap().set_len(0).unwrap()),
        ("removed", &|| fs::remove_dir_all(bound.page.parent().unwrap()).unwrap()),
    ];
    for (what, make) in damage {
        make();
        let claims = [Claim::exactly([&client], 40.0, 3.0)];
        get_their_time(what, &node, Duration::from_secs(1), &claims).await;
        assert_eq!(client.ended(), None, "{what}");
    }
    // Not even an agent that starts with nothing of it.
    node.crash_agent();
    node.restart_agent().await;
    attached(&node, &bound, 1, Bytes::ZERO).await;
    take(&mut client, 100).await;
    assert!(bound.page.exists(), "it is made anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_silent_cut_or_garbled_stops_no_function() {
    let node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 40, 40, Bytes::gib(2)).await;
    let relay = Relay::start(&node.path("relay.sock"), &node.socket());
    let through = [("GPUFN_SOCKET", relay.path().as_os_str())];
    let mut client = node.launch(&bound, &["spin", "2000"], &through);
    node::ready(&mut client).await;
    for (mode, name) in
        [(Mode::HalfLine, "half a line"), (Mode::Garbage, "garbage"), (Mode::Silent, "silence")]
    {
        relay.set(mode);
        if mode == Mode::Silent {
            // That an agent is silent shows only after a while.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let claims = [Claim::between([&client], 34.0, 43.0)];
        get_their_time(name, &node, Duration::from_secs(1), &claims).await;
        let start = Instant::now();
        take(&mut client, 10).await;
        assert!(start.elapsed() < Duration::from_secs(6), "{name}: memory after {:?}", start.elapsed());
        assert_eq!(client.ended(), None, "{name}");
        relay.set(Mode::Pass);
        attached(&node, &bound, 1, Bytes::ZERO).await;
    }
    get_their_time("all well again", &node, SPAN, &[Claim::exactly([&client], 40.0, 3.0)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_finds_no_sound_agent_says_so_and_does_not_hang() {
    let node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 40, 40, Bytes::gib(2)).await;
    for mode in [Mode::Silent, Mode::HalfLine, Mode::Garbage] {
        let relay = Relay::start(&node.path(&format!("{mode:?}.sock")), &node.socket());
        relay.set(mode);
        let start = Instant::now();
        let through = [("GPUFN_SOCKET", relay.path().as_os_str())];
        let mut client = node.launch(&bound, &["spin", "2000"], &through);
        let status = client.wait(Duration::from_secs(10));
        println!("{mode:?}: ended after {:?} with {status}", start.elapsed());
        assert_eq!(status.code(), Some(1), "an error of the program, not a signal:\n{}", client.tail());
        assert!(client.output().contains("gpufn hook: "), "{}", client.tail());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_killed_in_a_launch_or_while_it_waits_leaves_nothing_behind() {
    let node = Node::start("exclusive").await;
    let steady = node.bind("steady", 100, 50, 50, Bytes::gib(2)).await;
    let steady = node.client(&steady, &["spin", "2000"]).await;
    // Kernels of 300 ms at 20 %: most of the time it waits for its right, the rest of it runs.
    let bound = node.bind("long", 100, 20, 20, Bytes::gib(1)).await;
    for round in 0..3 {
        let mut victim = node.client(&bound, &["spin", "300000"]).await;
        take(&mut victim, 100).await;
        let wanted = usize::from(round != 1);
        until("the victim to run, or to wait", REJOIN, async || {
            let stats = node.stats();
            let client = stats.gpus[0].clients.iter().find(|client| client.pid == victim.pid())?;
            (client.running == wanted).then_some(())
        })
        .await;
        process::kill(victim.pid());
        let start = Instant::now();
        attached(&node, &bound, 0, Bytes::ZERO).await;
        let status = status_of(&node, &bound).await.unwrap();
        assert_eq!(status.memory_used, Bytes::ZERO);
        println!("killed while {}: gone after {:?}", ["waiting", "running"][wanted], start.elapsed());
    }
    get_their_time("after the deaths", &node, SPAN, &[Claim::exactly([&steady], 50.0, 3.0)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_holder_is_passed_over_and_comes_back() {
    let node = Node::start("exclusive").await;
    let halted = node.bind("halted", 100, 40, 100, Bytes::gib(1)).await;
    let other = node.bind("other", 100, 40, 100, Bytes::gib(1)).await;
    let halted = node.client(&halted, &["spin", "2000"]).await;
    let other = node.client(&other, &["spin", "2000"]).await;
    tokio::time::sleep(SETTLE).await;
    process::halt(halted.pid());
    // It may have been waiting, and be passed over only after its next turn.
    tokio::time::sleep(2 * SETTLE).await;
    let (start, before) = (Instant::now(), node.stats());
    until("the other to run again", Duration::from_secs(3), async || {
        let gained = node.stats().busy_ns(other.pid()) - before.busy_ns(other.pid());
        (gained > 20_000_000).then_some(())
    })
    .await;
    println!("the other went on after {:?}", start.elapsed());
    // One grace is the most that it may cost; from then on all of the time is the other's.
    get_their_time("one is halted", &node, SPAN, &[Claim::between([&other], 95.0, 100.5)]).await;
    process::resume(halted.pid());
    // Both have their floors; who gets how much of what is left differs for a while.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let claims = [Claim::between([&halted], 37.0, 63.0), Claim::between([&other], 37.0, 63.0)];
    get_their_time("it goes on", &node, SPAN, &claims).await;
}

/// A library that makes the wall clock jump by an hour, forth and back, whenever it is asked.
const JUMPING_CLOCK: &str = r"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void) {
  static long calls;
  return __sync_fetch_and_add(&calls, 1) % 2 ? 3600 : -3600;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
  return result;
}
int gettimeofday(struct timeval *now, void *zone) {
  int result = syscall(SYS_gettimeofday, now, zone);
  now->tv_sec += jump();
  return result;
}
time_t time(time_t *now) {
  time_t seconds = syscall(SYS_time, 0) + jump();
  if (now) *now = seconds;
  return seconds;
}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
    fs::write(&source, JUMPING_CLOCK).unwrap();
    let mut compiler = Command::new("cc");
    let result = compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status();
    assert!(result.expect("a C compiler, which Rust links with").success());
    let preload = [("LD_PRELOAD", library.as_os_str())];
    let node = Node::builder("exclusive").variables(&preload).start().await;
    let small = node.bind("small", 100, 30, 30, Bytes::gib(1)).await;
    let large = node.bind("large", 100, 60, 60, Bytes::gib(1)).await;
    let mut clients = [&small, &large].map(|bound| node.launch(bound, &["spin", "2000"], &preload));
    for client in &mut clients {
        node::ready(client).await;
    }
    let claims = [Claim::exactly([&clients[0]], 30.0, 3.0), Claim::exactly([&clients[1]], 60.0, 3.0)];
    get_their_time("the wall clock jumps", &node, SPAN, &claims).await;
}

/// What each gets in some seconds, percent, the least first, and what of its due a busy machine leaves.
async fn parts_of_each(node: &Node, pids: &[u32]) -> (Vec<f64>, f64) {
    let stretch = Stretch::watch(node, pids, Duration::from_secs(5)).await;
    let mut parts: Vec<_> = pids.iter().map(|&pid| stretch.percent(&[pid])).collect();
    parts.sort_by(f64::total_cmp);
    println!(
        "{} containers: {:.2} % to {:.2} %, median {:.2} %, together {:.1} %; others had {:.1} % of the processors",
        parts.len(),
        parts[0],
        parts[parts.len() - 1],
        parts[parts.len() / 2],
        parts.iter().sum::<f64>(),
        100.0 * stretch.others
    );
    (parts, stretch.due())
}

/// Whether three of four have at least that. A container whose first kernel was measured while a hundred others started was
/// charged for some of that time, and with 1 % it pays for it for seconds.
fn served(parts: &[f64], at_least: f64) -> bool {
    parts[parts.len() / 4] >= at_least
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_containers_on_one_gpu_all_have_their_floor() {
    const CONTAINERS: usize = 100;
    const MEMORY: Bytes = Bytes::mib(100);
    // A hundred contexts of the usual size don't fit on the card.
    let node =
        Node::builder("exclusive").gpu(&["--context-memory", "8Mi", "--context-ms", "1"]).start().await;
    let mut bindings = Vec::new();
    for index in 0..CONTAINERS {
        bindings.push(node.bind(&format!("f{index}"), 100, 1, 1, MEMORY).await);
    }
    let start = Instant::now();
    let no_variables: [(&str, &OsStr); 0] = [];
    let launch = |bound| node.launch(bound, &["spin", "5000"], &no_variables);
    let mut clients: Vec<_> = bindings.iter().map(launch).collect();
    for client in &mut clients {
        node::ready(client).await;
    }
    let ready = start.elapsed();
    println!("{CONTAINERS} processes were ready after {ready:?}");
    assert!(ready < Duration::from_secs(30), "{ready:?}");

    let pids: Vec<_> = clients.iter().map(Process::pid).collect();
    // All of the time is booked, and handing it over takes some: nobody has more than its part, and all have the same.
    tokio::time::sleep(SETTLE).await;
    let (all, _) = parts_of_each(&node, &pids).await;
    let median = all[CONTAINERS / 2];
    assert!(all[CONTAINERS - 1] <= 1.5 && served(&all, 0.6 * median), "{all:.2?}");
    // With half of them there is time to hand over, and all have what they are guaranteed.
    for client in clients.drain(CONTAINERS / 2..) {
        process::kill(client.pid());
    }
    tokio::time::sleep(SETTLE).await;
    let (half, due) = parts_of_each(&node, &pids[..CONTAINERS / 2]).await;
    // What they were owed before they get now, so that some have more for a while.
    assert!(half[CONTAINERS / 2 - 1] <= 3.0 && served(&half, 0.8 * due), "{half:.2?}");

    for client in &clients {
        process::kill(client.pid());
    }
    until("all memory to be given back", REJOIN, async || {
        let bindings = node.control().bindings().await.ok()?;
        let left = |status: &BindingStatus| status.memory_used != Bytes::ZERO || !status.processes.is_empty();
        (!bindings.iter().any(left)).then_some(())
    })
    .await;
    until("the card to be empty", REJOIN, async || (node.stats().gpus[0].memory_used == 0).then_some(()))
        .await;
}
