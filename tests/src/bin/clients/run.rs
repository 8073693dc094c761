//! Runs one client under its share: what it says of itself, what the simulated GPU says of it, and what the hook saw.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use ::tests::delivery::{Stretch, settle};
use ::tests::node::Node;
use ::tests::process::Process;
use ::tests::python::Cache;
use anyhow::{Context, Result, bail, ensure};
use gpu_share::units::Bytes;
use serde_json::Value;

use crate::client::Client;
use crate::outcome::{Delivered, Numbers, Outcome, QUOTA, TOLERANCE};

/// The memory limit; clients ask for twice as much.
const MEMORY: Bytes = Bytes::gib(2);
/// Every kernel takes so long, but for those that know better.
const COSTS: &str = "* 2000000\n";
/// Time over which GPU time is counted.
const WINDOW: Duration = Duration::from_secs(5);
/// How often too little is measured again: a neighbour may have had the processors.
const WINDOWS: usize = 5;
/// Longest time until a client has computed and has met its memory limit.
const START: Duration = Duration::from_mins(2);
/// Longest time until it has finished.
const END: Duration = Duration::from_secs(30);
/// Longest time until the hook has reported what it saw.
const REPORT: Duration = Duration::from_secs(3);

/// What a client says: the fields of all its lines.
type Facts = BTreeMap<String, Value>;

pub(crate) async fn run(client: Client, cache: &Cache) -> Result<Outcome> {
    let costs = tempfile::Builder::new().prefix("costs-").tempfile()?;
    std::fs::write(costs.path(), COSTS)?;
    let path = costs.path().to_str().context("the temp folder's name is not UTF-8")?;
    let node = Node::builder("exclusive").gpu(&["--costs", path, "--model", client.model()]).start().await;
    let bound = node.bind("client", 100, QUOTA, QUOTA, MEMORY).await;
    let mut command = client.command(cache, &node.path(""))?;
    command.env("LD_LIBRARY_PATH", library_path(client, cache, &node)?);
    let mut process = node.run(&bound, command);

    let facts = until_said(&mut process, "ready", START).await?;
    let delivered = delivered(&node, &process).await;
    process.tell("stop");
    let last = until_said(&mut process, "done", END).await?;
    let (seen, kernels) = launches(&node, process.pid(), &last).await?;
    process.tell("end");
    let status = process.wait(END);
    ensure!(status.success(), "it ended with {status} and printed:\n{}", process.tail());

    let text = |name: &str| facts.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| facts.get(name).and_then(Value::as_u64).unwrap_or_default();
    let total = Bytes(number("total"));
    ensure!(total == MEMORY, "it sees {total} of memory, and its limit is {MEMORY}");
    let outcome = Outcome {
        client,
        numbers: Numbers::parse(&text("numbers")),
        delivered,
        refused: number("refused"),
        error: text("error"),
        taken: Bytes(number("taken")),
        seen,
        kernels,
        tail: process.tail(),
    };
    println!("{outcome}");
    Ok(outcome)
}

/// The hook's folder before all others.
fn library_path(client: Client, cache: &Cache, node: &Node) -> Result<OsString> {
    let folders = std::iter::once(node.path("hook")).chain(client.libraries(cache));
    std::env::join_paths(folders).context("LD_LIBRARY_PATH")
}

/// What the client has said, once it has said `word`.
async fn until_said(process: &mut Process, word: &str, patience: Duration) -> Result<Facts> {
    let start = Instant::now();
    loop {
        let facts = said(&process.output());
        if facts.contains_key(word) {
            return Ok(facts);
        }
        if let Some(status) = process.ended() {
            bail!("it ended with {status} before it said {word:?}, and printed:\n{}", process.tail());
        }
        ensure!(
            start.elapsed() < patience,
            "it did not say {word:?} in {patience:?}, and printed:\n{}",
            process.tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn said(output: &str) -> Facts {
    let objects = output.lines().filter_map(|line| serde_json::from_str::<Facts>(line).ok());
    objects.flatten().collect()
}

/// Part of the time that the client got in each window. More than it may have ends it, less is measured again.
async fn delivered(node: &Node, process: &Process) -> Vec<Delivered> {
    settle(node, &[process.pid()]).await;
    let mut delivered = Vec::new();
    while delivered.len() < WINDOWS {
        let stretch = Stretch::watch(node, &[process.pid()], WINDOW).await;
        let got = Delivered { percent: stretch.percent(&[process.pid()]), due: stretch.due() };
        delivered.push(got);
        if got.percent >= f64::from(QUOTA) - TOLERANCE {
            break;
        }
    }
    delivered
}

/// Launches that the hook saw, and those that the GPU had, a graph counted as one.
async fn launches(node: &Node, pid: u32, facts: &Facts) -> Result<(u64, u64)> {
    let number = |name: &str| facts.get(name).and_then(Value::as_u64).unwrap_or_default();
    let start = Instant::now();
    loop {
        let clients = node.stats().gpus.into_iter().flat_map(|gpu| gpu.clients);
        let kernels: u64 = clients.filter(|client| client.pid == pid).map(|client| client.kernels).sum();
        let kernels = (kernels + number("graphs")).saturating_sub(number("graph_kernels"));
        let bindings = node.control().bindings().await?;
        let seen = bindings.first().context("the client has no binding")?.launches;
        if seen >= kernels || start.elapsed() > REPORT {
            return Ok((seen, kernels));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_is_found_among_what_they_print() {
        let facts = said("a warning\n{\"total\": 5}\n{\"numbers\": \"right\", \"ready\": true}\n{half\n");
        assert_eq!(facts["total"], 5);
        assert_eq!(facts["numbers"], "right");
        assert!(facts.contains_key("ready") && !facts.contains_key("done"));
    }
}
