//! One run of the demo: starts `gpufn up` as a child, deploys the functions, loads them, watches, and ends it all.
//!
//! Owns processes, HTTP and waiting. Every wait has a deadline, and the child is ended however the run ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::report::Observed;
use super::scenario::Scenario;
use super::series::Look;
use super::story::Story;
use crate::load::send::{Load, Outcome, send};
use crate::load::{Interrupt, function_url, progress};
use crate::stack::FunctionDeployment;
use crate::top::Source;
use crate::view::{DecisionRecord, Overview};

/// How long `gpufn up` may take to listen, and a function to be ready.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How long `gpufn up` may take to end: it drains its replicas first.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How often things are looked at while waiting, and during the load.
const WAIT_EVERY: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Longest wait for the answer to a request of the load.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How one run is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Name of the run for people.
    pub label: &'static str,
    /// Scaling policy.
    pub policy: String,
    /// Simulated GPUs.
    pub gpus: u32,
    /// Folder of the programs.
    pub bin: PathBuf,
    /// State folder of `gpufn up`.
    pub state: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

/// Runs `scenario` as `setup` says.
pub(super) async fn run(
    scenario: &Scenario,
    setup: &Setup,
    interrupt: &Interrupt,
) -> anyhow::Result<Observed> {
    say(None, &format!("{}: {} simulated GPU(s), policy {}", setup.label, setup.gpus, setup.policy));
    let mut up = Up::start(setup)?;
    let run = async {
        let gateway = up.url(setup).await?;
        drive(scenario, setup, &gateway, interrupt).await
    };
    let observed = tokio::select! {
        observed = run => observed,
        () = given_up(interrupt) => Err(anyhow::anyhow!("interrupted")),
    };
    let ended = up.stop().await;
    let tail = || format!("gpufn up said last:\n{}", last_lines(setup));
    let observed = observed.with_context(tail)?;
    ended.with_context(tail)?;
    Ok(observed)
}

/// Returns at the second interrupt, or a while after the first one, for what does not look at it by itself.
async fn given_up(interrupt: &Interrupt) {
    interrupt.stop.cancelled().await;
    let patience = REQUEST_LIMIT + Duration::from_secs(1);
    // Either end of the wait means the same.
    let _ = tokio::time::timeout(patience, interrupt.now.cancelled()).await;
}

/// `gpufn up` as a child in a process group of its own, so that a Ctrl-C reaches it through us only.
struct Up {
    child: Child,
}

impl Up {
    fn start(setup: &Setup) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&setup.state)
            .with_context(|| format!("can't make {}", setup.state.display()))?;
        // A former run may have left one; nobody listens there any more.
        let _ = std::fs::remove_file(setup.state.join("url"));
        let log = std::fs::File::create(&setup.log)
            .with_context(|| format!("can't write {}", setup.log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["up", "--listen", "127.0.0.1:0", "--simulate", "always", "--sharing", "mps"])
            .args(["--gpus", &setup.gpus.to_string(), "--policy", &setup.policy])
            .arg("--state")
            .arg(&setup.state)
            .arg("--bin-dir")
            .arg(&setup.bin)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("can't start gpufn up")?;
        Ok(Self { child })
    }

    /// Its address, once it listens.
    async fn url(&mut self, setup: &Setup) -> anyhow::Result<String> {
        let path = setup.state.join("url");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match std::fs::read_to_string(&path) {
                Ok(url) if url.trim().starts_with("http") => return Ok(url.trim().to_string()),
                _ => {}
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("gpufn up ended before it listened: {status}");
            }
            ensure!(Instant::now() < deadline, "gpufn up does not listen after {START_LIMIT:?}");
            tokio::time::sleep(WAIT_EVERY).await;
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        let Some(id) = id else { bail!("gpufn up ended early") };
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let Ok(status) = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await else {
            self.child.kill().await?;
            bail!("gpufn up did not end within {STOP_LIMIT:?} and was killed");
        };
        let status = status?;
        ensure!(status.success(), "gpufn up ended with {status}");
        Ok(())
    }
}

fn last_lines(setup: &Setup) -> String {
    let text = std::fs::read_to_string(&setup.log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// Deploys, waits, loads and watches behind `gateway`.
async fn drive(
    scenario: &Scenario,
    setup: &Setup,
    gateway: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<Observed> {
    let client = reqwest::Client::builder().timeout(START_LIMIT).no_proxy().build()?;
    // One after the other: how long a cold start takes is learnt here, and four at once would take longer than one.
    for function in &scenario.functions {
        deploy(&client, gateway, &function.deployment).await?;
        ready(&client, gateway, function.name(), interrupt).await?;
        answers(&client, gateway, function.name()).await?;
    }
    say(None, &format!("{}: {} functions are ready, the load starts", setup.label, scenario.functions.len()));
    let source = Source::new(gateway, None)?;
    let watcher = Watcher::new(source, progress(scenario.requests.len())).await?;
    let (looks, decisions, outcomes) = load(scenario, gateway, watcher, interrupt).await?;
    ensure!(!interrupt.stop.is_cancelled(), "interrupted");
    for function in &scenario.functions {
        remove(&client, gateway, function.name()).await?;
    }
    Ok(Observed { label: setup.label, gpus: setup.gpus, outcomes, looks, decisions })
}

/// As faas-cli does: PUT, and POST where there is nothing to update.
async fn deploy(
    client: &reqwest::Client,
    gateway: &str,
    function: &FunctionDeployment,
) -> anyhow::Result<()> {
    let url = format!("{gateway}/system/functions");
    let mut answer = client.put(&url).json(function).send().await?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        answer = client.post(&url).json(function).send().await?;
    }
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    ensure!(status.is_success(), "function {} is not deployed: {status} {}", function.service, text.trim());
    Ok(())
}

/// Waits until a replica of `name` is available.
async fn ready(
    client: &reqwest::Client,
    gateway: &str,
    name: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let url = format!("{gateway}/system/function/{name}");
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let status: serde_json::Value = client.get(&url).send().await?.error_for_status()?.json().await?;
        if status["availableReplicas"].as_u64().is_some_and(|replicas| replicas > 0) {
            return Ok(());
        }
        ensure!(!interrupt.stop.is_cancelled(), "interrupted");
        ensure!(Instant::now() < deadline, "function {name} is not ready after {START_LIMIT:?}");
        tokio::time::sleep(WAIT_EVERY).await;
    }
}

/// One request before the load, so that a function that can't answer is found out at once.
async fn answers(client: &reqwest::Client, gateway: &str, name: &str) -> anyhow::Result<()> {
    let answer = client.post(function_url(gateway, name)).send().await?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    ensure!(status.is_success(), "function {name} answers {status} {}", text.trim());
    Ok(())
}

async fn remove(client: &reqwest::Client, gateway: &str, name: &str) -> anyhow::Result<()> {
    let body = serde_json::json!({ "functionName": name });
    let url = format!("{gateway}/system/functions");
    client.delete(url).json(&body).send().await?.error_for_status()?;
    Ok(())
}

/// Sends the requests while the watcher looks.
async fn load(
    scenario: &Scenario,
    gateway: &str,
    watcher: Watcher,
    interrupt: &Interrupt,
) -> anyhow::Result<(Vec<Look>, Vec<DecisionRecord>, Vec<Outcome>)> {
    let load = Load {
        urls: scenario.functions.iter().map(|function| function_url(gateway, function.name())).collect(),
        requests: scenario.requests.clone(),
        timeout: REQUEST_LIMIT,
        method: http::Method::POST,
        body: Bytes::new(),
    };
    let (bar, done) = (watcher.bar.clone(), CancellationToken::new());
    let watching = tokio::spawn(watcher.watch(done.clone()));
    let sent = send(load, interrupt, |_| bar.inc(1)).await;
    done.cancel();
    let (looks, decisions) = watching.await??;
    bar.finish_and_clear();
    Ok((looks, decisions, sent?))
}

/// Looks at overview and decisions while the load runs, and tells people.
struct Watcher {
    source: Source,
    bar: ProgressBar,
    story: Story,
    last_seq: u64,
    start: Instant,
    looks: Vec<Look>,
    decisions: Vec<DecisionRecord>,
}

impl Watcher {
    async fn new(source: Source, bar: ProgressBar) -> anyhow::Result<Self> {
        let before: Vec<DecisionRecord> = source.get("/v1/decisions?after=0").await?;
        let last_seq = before.last().map_or(0, |decision| decision.seq);
        let overview = source.overview().await?;
        Ok(Self {
            source,
            bar,
            story: Story::default(),
            last_seq,
            start: Instant::now(),
            looks: vec![Look { at_s: 0.0, overview }],
            decisions: Vec::new(),
        })
    }

    async fn watch(mut self, done: CancellationToken) -> anyhow::Result<(Vec<Look>, Vec<DecisionRecord>)> {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let last = tokio::select! {
                () = done.cancelled() => true,
                _ = every.tick() => false,
            };
            self.look().await?;
            if last {
                return Ok((self.looks, self.decisions));
            }
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let at_s = self.start.elapsed().as_secs_f64();
        let overview = self.source.overview().await?;
        let path = format!("/v1/decisions?after={}", self.last_seq);
        let decisions: Vec<DecisionRecord> = self.source.get(&path).await?;
        let pids = pids(&overview);
        for decision in &decisions {
            self.last_seq = self.last_seq.max(decision.seq);
            let pid = decision.instance.as_ref().and_then(|instance| pids.get(instance)).copied();
            let made_s = (at_s - (overview.uptime_s - decision.at_s)).max(0.0);
            if let Some(line) = self.story.line(decision, made_s, pid) {
                say(Some(&self.bar), &line);
            }
        }
        self.decisions.extend(decisions);
        self.looks.push(Look { at_s, overview });
        Ok(())
    }
}

fn pids(overview: &Overview) -> BTreeMap<String, u32> {
    let replicas = overview.functions.iter().flat_map(|function| &function.replicas);
    replicas.filter_map(|replica| Some((replica.instance.clone(), replica.pid?))).collect()
}

/// Says `line` to people, above the bar if there is one.
pub(super) fn say(bar: Option<&ProgressBar>, line: &str) {
    match bar.filter(|bar| !bar.is_hidden()) {
        Some(bar) => bar.println(line),
        None => println!("{line}"),
    }
}

#[cfg(test)]
mod tests;
