//! What a share is worth, with the real hook and node agent: GPU time as the simulated GPU itself counts it, and memory
//! as the program finds it.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use gpu_share::units::{Bytes, Quota};
use tests::delivery::{Claim, SETTLE, get_their_time};
use tests::node::Node;
use tests::process;

const WINDOW: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saturating_client_gets_its_quota_of_gpu_time_and_no_more() {
    let node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 30, 30, Bytes::gib(1)).await;
    let client = node.client(&bound, &["spin", "1000"]).await;
    get_their_time("30 % alone", &node, WINDOW, &[Claim::exactly([&client], 30.0, 3.0)]).await;
    // What the agent charged is what the GPU did.
    let charged = node.control().bindings().await.unwrap()[0].used.secs_f64();
    let used = Duration::from_nanos(node.stats().busy_ns(client.pid())).as_secs_f64();
    println!("charged {charged:.3} s, the GPU counts {used:.3} s");
    assert!((charged - used).abs() <= 0.05 * used, "charged {charged:.3} s, the GPU counts {used:.3} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_contending_clients_get_their_quotas() {
    let node = Node::start("exclusive").await;
    let small = node.bind("small", 100, 30, 30, Bytes::gib(1)).await;
    let large = node.bind("large", 100, 60, 60, Bytes::gib(1)).await;
    assert_eq!((small.binding.row, &small.binding.gpu), (large.binding.row, &large.binding.gpu));
    let (small, large) =
        (node.client(&small, &["spin", "1000"]).await, node.client(&large, &["spin", "1000"]).await);
    let claims = [Claim::exactly([&small], 30.0, 4.0), Claim::exactly([&large], 60.0, 4.0)];
    get_their_time("30 % and 60 % contending", &node, WINDOW, &claims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_alone_goes_up_to_its_ceiling_and_back_to_its_floor_when_another_needs_its_own() {
    let node = Node::start("exclusive").await;
    let greedy = node.bind("greedy", 100, 20, 80, Bytes::gib(1)).await;
    let greedy = node.client(&greedy, &["spin", "1000"]).await;
    get_their_time("20 % to 80 %, alone", &node, WINDOW, &[Claim::exactly([&greedy], 80.0, 4.0)]).await;
    let other = node.bind("other", 100, 70, 70, Bytes::gib(1)).await;
    let other = node.client(&other, &["spin", "1000"]).await;
    // What the other leaves, the greedy one may use: at least its floor, at most all but 70 %.
    let claims = [Claim::between([&greedy], 16.0, 34.0), Claim::exactly([&other], 70.0, 4.0)];
    get_their_time("20 % to 80 % beside 70 %", &node, WINDOW, &claims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_grant_moves_time_from_one_running_client_to_another() {
    let node = Node::start("exclusive").await;
    let first_bound = node.bind("first", 100, 30, 80, Bytes::gib(1)).await;
    let second_bound = node.bind("second", 100, 30, 80, Bytes::gib(1)).await;
    let first = node.client(&first_bound, &["spin", "1000"]).await;
    let second = node.client(&second_bound, &["spin", "1000"]).await;
    // Part of what both got, so that it does not depend on how busy the machine is.
    let part = async || {
        tokio::time::sleep(SETTLE).await;
        let start = node.stats();
        tokio::time::sleep(WINDOW / 2).await;
        let end = node.stats();
        let [first, second] = [&first, &second].map(|client| end.part_since(&start, client.pid()));
        first / (first + second)
    };
    let before = part().await;
    let wanted = Quota::from_percent(60).unwrap();
    assert_eq!(node.control().grant(&first_bound.binding.id, wanted).await.unwrap().grant, wanted);
    let after = part().await;
    println!(
        "two of 30 % to 80 %: the first has {before:.2} of the time used, and {after:.2} with a grant of 60 %"
    );
    assert!((before - 0.5).abs() <= 0.06, "{before:.2} of the time used, with equal shares");
    // 60 % of the time and half of the 10 % that no grant covers, of the 95 % or more that are used.
    assert!(
        (0.58..=0.75).contains(&after),
        "{after:.2} of the time used, with a grant of 60 % beside one of 30 %"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_over_the_limit_is_an_error_and_a_killed_client_gives_its_memory_back() {
    let node = Node::start("exclusive").await;
    let bound = node.bind("taker", 100, 50, 50, Bytes::mib(1000)).await;
    let client = node.client(&bound, &["memory", "200", "900", "100"]).await;
    let output = client.output();
    println!("{output}");
    let total = output.lines().find_map(|line| line.split_once("total ")?.1.parse::<u64>().ok()).unwrap();
    assert_eq!(Bytes(total), Bytes::mib(1000), "the program sees its share, not the card");
    for line in ["took 200", "refused 900 error 2", "took 100"] {
        assert!(output.lines().any(|printed| printed == line), "{line:?} is not in:\n{output}");
    }
    assert!(process::lives(client.pid()));

    process::kill(client.pid());
    tests::wait::until("the killed client's memory to come back", Duration::from_secs(5), async || {
        let bindings = node.control().bindings().await.ok()?;
        (bindings[0].memory_used == Bytes::ZERO && bindings[0].processes.is_empty()).then_some(())
    })
    .await;
    assert_eq!(node.stats().gpus[0].memory_used, 0, "the card is empty");
}
