//! One function, its watchdog and the node agent are killed in turn while open-loop load runs on all functions: the
//! others must not notice, the killed one must come back, and no request may hang.
// Helpers of tests report by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use gpu_share::protocol::BindingStatus;
use tests::function::Function;
use tests::gateway::Gateway;
use tests::load::{Load, Outcome, Shot, Stream, median, percentile};
use tests::local::Local;
use tests::process;
use tests::wait::until;
use tokio::time::{Instant, sleep_until};

/// The function whose parts are killed.
const VICTIM: &str = "victim";
const OTHERS: [&str; 3] = ["first", "second", "third"];
/// Time that is compared before and after each fault.
const WINDOW: Duration = Duration::from_secs(5);
/// Rounds of all faults; medians of them are compared.
const ROUNDS: usize = 3;
/// Requests per second and function: far below what they can do, so that latency shows the disturbance.
const RPS: f64 = 12.0;
/// Longest time until the killed function serves again.
const RECOVERY: Duration = Duration::from_secs(5);
/// Longest time for a request to end with a status.
const DEADLINE: Duration = Duration::from_secs(15);
/// How much a percentile may rise; more only if windows without a fault differ by more.
const RISE: f64 = 0.20;
const NOISE_MS: f64 = 5.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Function,
    Watchdog,
    Agent,
}

/// A fault that was made, and what came of it.
#[derive(Debug)]
struct Made {
    fault: Fault,
    at: Instant,
    recovery: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_function_watchdog_or_agent_leaves_the_other_functions_undisturbed() {
    let local = Local::up().start().await;
    let gateway = local.gateway();
    let function = |name: &str| {
        let function = Function::inference(name, "resnet50").sm(25).quota(50, 100).memory("1500Mi");
        function.policy("off").replicas(1, 1)
    };
    for name in OTHERS.into_iter().chain([VICTIM]) {
        gateway.deploy_ready(&function(name)).await;
        gateway.infer(name).await;
    }
    let others_before = pids(gateway).await;
    let streams = OTHERS.into_iter().chain([VICTIM]).map(|name| Stream::new(name, RPS));
    let load = Load::start(gateway, streams, DEADLINE);
    // The first second is warm-up and belongs to no window.
    let mut next = Instant::now() + Duration::from_secs(1) + WINDOW;
    let mut made = Vec::new();
    for _ in 0..ROUNDS {
        for fault in [Fault::Function, Fault::Watchdog, Fault::Agent] {
            sleep_until(next).await;
            made.push(make(&local, fault).await);
            // The window after one fault ends before the window before the next begins.
            next = made.last().unwrap().at + WINDOW * 2;
        }
    }
    sleep_until(next).await;
    let shots = load.stop().await;
    assert_eq!(pids(gateway).await, others_before, "a function that nobody touched was replaced");
    local.stop().await;

    let mut wrong = Vec::new();
    check_recovery(&made, &mut wrong);
    check_requests(&shots, &mut wrong);
    for fault in [Fault::Function, Fault::Watchdog, Fault::Agent] {
        for name in OTHERS {
            check_neighbour(fault, name, &made, &shots, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn pids(gateway: &Gateway) -> Vec<Option<u32>> {
    let overview = gateway.overview().await;
    let pid = |name: &str| overview.function(name)?.replicas.first()?.pid;
    OTHERS.into_iter().map(pid).collect()
}

/// Kills a part as a crash would, and waits until the victim serves again and the ledger is as before.
async fn make(local: &Local, fault: Fault) -> Made {
    let gateway = local.gateway();
    let before = gateway.serving_replica(VICTIM).await;
    let bound = bindings(local).await;
    let pid = match fault {
        Fault::Function => before.pid.expect("the function's process is known"),
        Fault::Watchdog => before.watchdog_pid.expect("the watchdog's process is known"),
        Fault::Agent => local.node().status().await.unwrap().pid,
    };
    let at = Instant::now();
    process::kill(pid);
    until("the killed process to be gone", RECOVERY, async || (!process::lives(pid)).then_some(())).await;
    let recovery = serves_again(gateway, at, (fault != Fault::Agent).then_some(before.pid).flatten()).await;
    if fault == Fault::Agent {
        until("a new node agent with the old bindings", RECOVERY, async || {
            let status = local.node().status().await.ok()?;
            (status.pid != pid && ids(&bindings(local).await) == ids(&bound)).then_some(())
        })
        .await;
        assert_eq!(gateway.infer(VICTIM).await.pid, before.pid.unwrap(), "the function outlives the agent");
    } else {
        let old = before.binding.expect("it has a binding");
        until("the killed function's share to be given back and taken again", RECOVERY, async || {
            let now = bindings(local).await;
            let gone = now.iter().all(|status| status.binding.id.as_str() != old);
            let dead = now.iter().flat_map(|status| &status.processes).any(|&holder| holder == pid);
            (gone && !dead && now.len() == bound.len() && memory(&now) == memory(&bound)).then_some(())
        })
        .await;
    }
    println!("{fault:?} killed (process {pid}): serves again after {recovery:?}");
    Made { fault, at, recovery }
}

/// Time from the fault until the victim answers, from another process than `old` if that was killed.
async fn serves_again(gateway: &Gateway, at: Instant, old: Option<u32>) -> Duration {
    until("the victim to serve again", RECOVERY * 2, async || {
        let answer = gateway.send(VICTIM, "").await.ok().filter(|answer| answer.status() == 200)?;
        let answer: tests::gateway::Inference = answer.json().await.ok()?;
        (Some(answer.pid) != old).then(|| at.elapsed())
    })
    .await
}

async fn bindings(local: &Local) -> Vec<BindingStatus> {
    // While the agent is down there is no answer.
    local.node().bindings().await.unwrap_or_default()
}

fn ids(bindings: &[BindingStatus]) -> Vec<String> {
    let mut ids: Vec<_> = bindings.iter().map(|status| status.binding.id.to_string()).collect();
    ids.sort();
    ids
}

fn memory(bindings: &[BindingStatus]) -> u64 {
    bindings.iter().map(|status| status.binding.share.memory.0).sum()
}

fn check_recovery(made: &[Made], wrong: &mut Vec<String>) {
    for Made { fault, recovery, .. } in made {
        if *recovery > RECOVERY {
            wrong.push(format!("after {fault:?} the victim served again only after {recovery:?}"));
        }
    }
}

/// Every request ends with a status within its deadline, and only the victim's may fail.
fn check_requests(shots: &[Shot], wrong: &mut Vec<String>) {
    let failed = shots.iter().filter(|shot| !shot.is_ok()).count();
    println!("{} requests, {failed} of them failed", shots.len());
    for Shot { function, latency, outcome, .. } in shots {
        match outcome {
            Outcome::Status(200) => {}
            Outcome::Status(500..=599) if function == VICTIM => {}
            other => wrong.push(format!("a request of {function} ended after {latency:?} as {other:?}")),
        }
    }
}

fn check_neighbour(fault: Fault, name: &str, made: &[Made], shots: &[Shot], wrong: &mut Vec<String>) {
    let p95 = |from: Instant| {
        let inside = |shot: &&Shot| shot.function == name && shot.at >= from && shot.at < from + WINDOW;
        percentile(shots.iter().filter(inside).map(|shot| shot.latency.as_secs_f64() * 1e3), 0.95)
    };
    let undisturbed = |made: &Made| p95(made.at.checked_sub(WINDOW)?);
    let same = || made.iter().filter(|made| made.fault == fault);
    let before = median(same().filter_map(undisturbed)).unwrap();
    let after = median(same().filter_map(|made| p95(made.at))).unwrap();
    let noise = noise(made.iter().filter_map(undisturbed));
    println!(
        "{fault:?} killed: p95 of {name} {before:.1} ms → {after:.1} ms, without a fault ±{noise:.1} ms"
    );
    if after - before > (before * RISE).max(NOISE_MS).max(noise) {
        wrong.push(format!("after {fault:?} p95 of {name} rose from {before:.1} ms to {after:.1} ms"));
    }
}

/// How far the second worst of the undisturbed windows is above their median: what the machine does by itself.
fn noise(windows: impl Iterator<Item = f64>) -> f64 {
    let mut windows: Vec<_> = windows.collect();
    windows.sort_by(f64::total_cmp);
    let second_worst = windows[windows.len().saturating_sub(2)];
    second_worst - median(windows).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_gpufn_up_itself_the_functions_come_back_and_nothing_of_before_is_left() {
    let mut local = Local::up().start().await;
    local.gateway().secret("api-key", "openfaas-fn", "kept").await;
    let function = Function::inference(VICTIM, "resnet50").sm(25).quota(50, 100).memory("1500Mi");
    local.gateway().deploy_ready(&function).await;
    local.gateway().deploy(&Function::echo("echo").secret("api-key")).await;
    assert_eq!(local.gateway().invoke("echo/secret/api-key", "").await.1, "kept");
    let pid = local.gateway().infer(VICTIM).await.pid;
    let before = local.children();

    local.crash_and_restart().await;
    until("what the crashed one started to be gone", RECOVERY, async || {
        let left = local.children();
        before.iter().all(|old| !left.contains(old)).then_some(())
    })
    .await;
    local.gateway().serving_replica(VICTIM).await;
    assert_ne!(local.gateway().infer(VICTIM).await.pid, pid);
    assert_eq!(local.gateway().invoke("echo/secret/api-key", "").await.1, "kept");
    assert_eq!(local.node().bindings().await.unwrap().len(), 1, "the crashed one's binding is given back");
    local.stop().await;
}
