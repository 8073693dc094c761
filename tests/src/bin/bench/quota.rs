//! How exactly and how soon a quota is kept: GPU time of clients that never stop asking, as the simulated GPU itself
//! counts it, on its own clock.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpu_share::binding::BindingId;
use gpu_share::units::{Bytes, Quota};
use gpufn::figures::{Bar, Figure};
use tests::node::{Node, Stats};
use tests::process::Process;

use crate::{Effort, of_rounds};

/// Time until debts and queues of the start, or of the change before, are settled.
const SETTLE: Duration = Duration::from_secs(1);
/// Kernels of 1 ms without an end.
const SPIN: [&str; 2] = ["spin", "1000"];
/// Time between two looks at the GPU after a change.
const LOOK: Duration = Duration::from_millis(1);
/// Longest time that a change is watched.
const PATIENCE: Duration = Duration::from_secs(3);
/// The window that must deliver [`DELIVERED`] of the time after a change.
const WINDOW_NS: u64 = 50_000_000;
const DELIVERED: f64 = 0.70;

/// How far a saturating client under 30 % is from 30 %.
pub(crate) async fn alone(effort: Effort) -> Result<Figure> {
    let node = Node::start("exclusive").await;
    let bound = node.bind("alone", 100, 30, 30, Bytes::gib(1)).await;
    let client = node.client(&bound, &SPIN).await;
    let errors = errors(&node, effort, &[(&client, 30.0)]).await;
    let how = format!(
        "|delivered - 30| of a saturating client with 1 ms kernels under 30 %, over {} s",
        effort.window.as_secs()
    );
    let (value, how) = of_rounds("quota-30-percent", &errors, "pp", &how)?;
    Ok(Figure::new("quota-30-percent", value, "pp", Bar::AtMost(1.5), how))
}

/// The larger of the errors of two saturating clients under 30 % and 60 % in one row.
pub(crate) async fn contending(effort: Effort) -> Result<Figure> {
    let node = Node::start("exclusive").await;
    let small = node.bind("small", 100, 30, 30, Bytes::gib(1)).await;
    let large = node.bind("large", 100, 60, 60, Bytes::gib(1)).await;
    ensure!(small.binding.row == large.binding.row, "the two are not in one row");
    let (small, large) = (node.client(&small, &SPIN).await, node.client(&large, &SPIN).await);
    let errors = errors(&node, effort, &[(&small, 30.0), (&large, 60.0)]).await;
    let how = format!(
        "largest |delivered - quota| of two saturating clients with 1 ms kernels under 30 % and 60 % in one row, \
         over {} s",
        effort.window.as_secs()
    );
    let (value, how) = of_rounds("quota-30-60-worst-pp", &errors, "pp", &how)?;
    Ok(Figure::new("quota-30-60-worst-pp", value, "pp", Bar::AtMost(3.0), how))
}

/// The worst error of each round, percentage points.
async fn errors(node: &Node, effort: Effort, clients: &[(&Process, f64)]) -> Vec<f64> {
    tokio::time::sleep(SETTLE).await;
    let mut errors = Vec::new();
    for _ in 0..effort.rounds {
        let start = node.stats();
        tokio::time::sleep(effort.window).await;
        let end = node.stats();
        let delivered =
            clients.iter().map(|(client, due)| (100.0 * end.part_since(&start, client.pid()), due));
        let delivered: Vec<_> = delivered.collect();
        println!("delivered and due, %: {delivered:.2?}");
        errors.push(delivered.iter().map(|(got, due)| (got - *due).abs()).fold(0.0, f64::max));
    }
    errors
}

/// How soon a client whose grant goes from 20 % to 80 % gets its time. Another one holds the 80 % before: alone, a client
/// gets up to its ceiling whatever its grant is.
pub(crate) async fn grant_change(rounds: usize) -> Result<Figure> {
    let node = Node::start("exclusive").await;
    let grown = node.bind("grown", 100, 20, 80, Bytes::gib(1)).await;
    let other = node.bind("other", 100, 20, 80, Bytes::gib(1)).await;
    let client = node.client(&grown, &SPIN).await;
    let _rival = node.client(&other, &SPIN).await;
    let (grown, other) = (grown.binding.id, other.binding.id);
    let mut times = Vec::new();
    for _ in 0..rounds {
        trade(&node, &grown, &other).await?;
        tokio::time::sleep(SETTLE / 2).await;
        let settled = node.stats();
        tokio::time::sleep(SETTLE / 2).await;
        let start = node.stats();
        let before = start.part_since(&settled, client.pid());
        ensure!((0.1..0.3).contains(&before), "the client had {before:.2} of the time under a grant of 20 %");
        trade(&node, &other, &grown).await?;
        times.push(until_delivered(&node, start, client.pid()).await?);
    }
    let how = "from the request that changes the grant of a saturating client from 20 % to 80 %, a rival's the \
               other way, to the end of the first 50 ms that deliver 70 %";
    let (value, how) = of_rounds("grant-change-ms", &times, "ms", how)?;
    Ok(Figure::new("grant-change-ms", value, "ms", Bar::AtMost(150.0), how))
}

/// Takes `from` down to 20 % and gives `to` 80 %, in this order: together they may not have more than the GPU.
async fn trade(node: &Node, from: &BindingId, to: &BindingId) -> Result<()> {
    for (binding, percent) in [(from, 20), (to, 80)] {
        let wanted = Quota::from_percent(percent)?;
        let granted = node.control().grant(binding, wanted).await?.grant;
        ensure!(granted == wanted, "{binding} was granted {granted} instead of {wanted}");
    }
    Ok(())
}

/// Milliseconds from `start` to the end of the first window that delivers enough.
async fn until_delivered(node: &Node, start: Stats, pid: u32) -> Result<f64> {
    let from = start.now_ns;
    let mut seen = vec![start];
    loop {
        tokio::time::sleep(LOOK).await;
        let now = node.stats();
        let since = Duration::from_nanos(now.now_ns - from);
        // The latest look that is a whole window ago.
        let begin = seen.iter().rev().find(|look| now.now_ns - look.now_ns >= WINDOW_NS);
        if begin.is_some_and(|begin| now.part_since(begin, pid) >= DELIVERED) {
            return Ok(1e3 * since.as_secs_f64());
        }
        let part = begin.map(|begin| now.part_since(begin, pid));
        (since < PATIENCE)
            .then_some(())
            .with_context(|| format!("{part:.2?} of the last window {since:?} after the change"))?;
        seen.push(now);
    }
}
