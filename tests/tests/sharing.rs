//! How processes share one GPU: beside each other and in turns, on what others leave, several of one container, and by
//! every way of launching. Real processes under the real hook and node agent, GPU time as the simulated GPU counts it.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::time::Duration;

use gpu_share::units::Bytes;
use tests::delivery::{Claim, Stretch, get_their_time, settle};
use tests::load::median;
use tests::node::{self, Node};
use tests::process::Process;
use tests::wait::until;

const SPAN: Duration = Duration::from_secs(3);
const MEMORY: Bytes = Bytes::gib(1);
/// An inference of VGG-16, batch 8, on 5 % of the SMs of a V100.
const PROFILE_MS: f64 = 250.5;
/// How often a client wakes.
const BURSTS: usize = 30;

fn pids<'a>(clients: impl IntoIterator<Item = &'a Process>) -> Vec<u32> {
    clients.into_iter().map(Process::pid).collect()
}

/// Each of them must get `percent`, give or take `tolerance`.
fn each(clients: &[Process], percent: f64, tolerance: f64) -> Vec<Claim> {
    clients.iter().map(|client| Claim::exactly([client], percent, tolerance)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_on_the_multiprocessors_runs_beside_each_other_and_the_rest_takes_turns() {
    let node = Node::start("mps").await;
    let narrow = node.bind("narrow", 40, 100, 100, MEMORY).await;
    let wide = node.bind("wide", 60, 50, 100, MEMORY).await;
    assert_ne!(narrow.binding.row, wide.binding.row);
    let (narrow, wide) =
        (node.client(&narrow, &["spin", "4000"]).await, node.client(&wide, &["spin", "4000"]).await);
    let claims = [Claim::between([&narrow], 96.0, 100.5), Claim::between([&wide], 96.0, 100.5)];
    get_their_time("40 % and 60 % of the SMs", &node, SPAN, &claims).await;

    // No width is left: the second wide one shares the row of the first.
    let other = node.bind("other", 60, 50, 100, MEMORY).await;
    let other = node.client(&other, &["spin", "4000"]).await;
    let all = pids([&narrow, &wide, &other]);
    settle(&node, &all).await;
    let stretch = Stretch::watch(&node, &all, SPAN).await;
    let claims = [
        Claim::between([&narrow], 96.0, 100.5),
        Claim::exactly([&wide], 50.0, 3.0),
        Claim::exactly([&other], 50.0, 3.0),
    ];
    stretch.check("40 %, and two of 60 % of the SMs", &claims);
    assert!(stretch.percent(&pids([&wide, &other])) <= 100.5, "the wide ones never run at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_mps_two_processes_never_run_at_once() {
    // The GPU itself would run them beside each other: only the agent keeps them apart.
    let node = Node::builder("exclusive").gpu(&["--mode", "mps"]).start().await;
    let half = [("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", OsStr::new("40"))];
    let mut clients = Vec::new();
    for name in ["first", "second"] {
        let bound = node.bind(name, 100, 45, 45, MEMORY).await;
        let mut client = node.launch(&bound, &["spin", "4000"], &half);
        node::ready(&mut client).await;
        clients.push(client);
    }
    settle(&node, &pids(&clients)).await;
    let stretch = Stretch::watch(&node, &pids(&clients), SPAN).await;
    stretch.check("45 % and 45 %", &each(&clients, 45.0, 3.0));
    let (together, busy) = (stretch.percent(&pids(&clients)), stretch.busy_percent());
    assert!((together - busy).abs() < 0.1, "{together} % by process, and the GPU is busy for {busy} %");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_goes_to_who_wants_it_and_who_wakes_has_its_floor_at_once() {
    let node = Node::start("exclusive").await;
    let mut bindings = Vec::new();
    for name in ["first", "second", "third"] {
        bindings.push(node.bind(name, 100, 30, 100, MEMORY).await);
    }
    let first = node.client(&bindings[0], &["spin", "4000"]).await;
    get_their_time("30 % alone", &node, SPAN, &[Claim::between([&first], 98.0, 100.5)]).await;

    // A window's floor is 3 ms: who wakes has that within two windows.
    let mut waking = node.client(&bindings[1], &["burst", "1000", "3"]).await;
    for number in 1..=BURSTS {
        waking.tell("go");
        until("a burst to end", Duration::from_secs(5), async || {
            (bursts(&waking).len() == number).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let mut took = bursts(&waking);
    took.sort_unstable();
    let (median, most) = (took[BURSTS / 2], took[BURSTS * 9 / 10]);
    println!("waking for 3 ms of work: {median} µs, nine of ten within {most} µs");
    assert!(median <= 20_000, "{took:?}");
    drop(waking);

    let second = node.client(&bindings[1], &["spin", "4000"]).await;
    let third = node.client(&bindings[2], &["spin", "4000"]).await;
    let claims = [&first, &second, &third].map(|client| Claim::exactly([client], 33.0, 1.5));
    get_their_time("three of 30 %", &node, SPAN, &claims).await;
}

/// Microseconds that each burst took.
fn bursts(client: &Process) -> Vec<u64> {
    let output = client.output();
    output.lines().filter_map(|line| line.strip_prefix("burst ")?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_processes_of_a_container_share_one_quota() {
    let node = Node::start("exclusive").await;
    let many = node.bind("many", 100, 30, 30, MEMORY).await;
    let single = node.bind("single", 100, 60, 60, MEMORY).await;
    let single = node.client(&single, &["spin", "4000"]).await;
    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(node.client(&many, &["spin", "4000"]).await);
    }
    let own: Vec<_> = pids(three.iter().chain([&single]));
    settle(&node, &own).await;
    let stretch = Stretch::watch(&node, &own, SPAN).await;
    let claims = [Claim::exactly(&three, 30.0, 2.0), Claim::exactly([&single], 60.0, 3.0)];
    stretch.check("three processes at 30 % beside one at 60 %", &claims);
    let each = three.iter().map(|client| stretch.percent(&[client.pid()])).collect::<Vec<_>>();
    println!("each of the three: {each:.2?}");
    assert!(each.iter().all(|&percent| percent >= 4.0), "none of them starves: {each:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_launch_keeps_to_the_quota() {
    let node = Node::start("exclusive").await;
    let ways = [("launch", "1"), ("ex", "1"), ("cooperative", "1"), ("graph", "1"), ("launch", "4")];
    let mut clients = Vec::new();
    for (way, streams) in ways {
        let bound = node.bind(&format!("{way}-{streams}"), 100, 18, 18, MEMORY).await;
        clients.push(node.client(&bound, &["spin", "2000", way, streams]).await);
    }
    let claims = each(&clients, 18.0, 2.0);
    get_their_time("launch, ex, cooperative, graph and four streams", &node, SPAN, &claims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vgg16_takes_ten_times_as_long_at_a_tenth_of_the_time() {
    let node = Node::start("mps").await;
    let whole = node.bind("whole", 5, 100, 100, MEMORY).await;
    let tenth = node.bind("tenth", 5, 10, 10, MEMORY).await;
    let run = |bound, count| node.launch(bound, &["infer", "vgg16", "8", "16", count], &[]);
    let (mut whole, mut tenth) = (run(&whole, "8"), run(&tenth, "4"));
    let own = pids([&whole, &tenth]);
    let stretch = Stretch::during(&node, &own, async {
        for client in [&mut whole, &mut tenth] {
            assert!(client.wait(Duration::from_secs(30)).success());
        }
    })
    .await;
    let [whole, tenth] = [&whole, &tenth].map(|client| {
        let output = client.output();
        let took = output.lines().filter_map(|line| line.strip_prefix("inference ")?.parse::<f64>().ok());
        // The first one finds kernels that nobody has measured yet.
        median(took.skip(1)).expect("it ran several") / 1e3
    });
    println!("VGG-16, batch 8, 5 % of the SMs: {whole:.1} ms, and {tenth:.1} ms at 10 % of the time");
    // The ratio alone would let a busy machine pass for a smaller share.
    let due = stretch.due();
    assert!(
        (0.95..=1.05 / due).contains(&(tenth / 10.0 / PROFILE_MS)),
        "{tenth:.1} ms at 10 %, {due:.2} due"
    );
    let ratio = tenth / whole;
    assert!((9.5 * due..=10.5 / due).contains(&ratio), "{ratio:.2} times as long, {due:.2} due");
}
