//! `bench-plugin`: what the kubelet waits for. The real agent with 16 GPUs of 100 units beside a kubelet of the tests, with an
//! NVML that answered once and hangs since: its GPUs are halted.
//!
//! Reads the command line, runs the measurements, and writes and prints their figures. It excuses nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use device_plugin::kubelet::api::v1beta1::Empty;
use gpu_share::units::Quota;
use gpufn::figures::{Bar, Figure, Figures, Machine};
use rand::Rng;
use tests::apiserver::ApiServer;
use tests::command;
use tests::kubelet::{Allocation, Kubelet, preference};
use tests::plugin::{Place, Plugin};
use tests::process;

const GPUS: u32 = 16;
const UNITS: u32 = 100;

/// Measure how long the kubelet waits for the plugin; build the workspace in release first, or call `make bench-plugin`.
#[derive(Debug, Parser)]
#[command(name = "bench-plugin", version)]
struct Cli {
    /// Fewer calls: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Folder for bench-plugin.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
    /// The agent to measure, if it is not the one beside this program.
    #[arg(long, value_name = "PATH")]
    node: Option<PathBuf>,
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    command::warn_of_debug_build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(cli))?;
    command::record(&figures, &cli.out)
}

async fn measure(cli: &Cli) -> Result<Figures> {
    let quick = cli.quick;
    let (rounds, calls, idle) = if quick { (3, 300, 3) } else { (10, 3000, 20) };
    // A cluster node has the state folder in memory.
    let place = Place::in_memory();
    let mut kubelet = Kubelet::builder(&place.path("")).start();
    let cluster = ApiServer::start().await;
    let kubeconfig = place.path("kubeconfig");
    cluster.write_kubeconfig(&kubeconfig);
    let builder = Plugin::builder().gpus(GPUS).with(&["--units", &UNITS.to_string()]).cluster(&kubeconfig);
    let builder = cli.node.iter().fold(builder, |builder, path| builder.program(path));
    let plugin = builder.start(place).await;
    let agent = plugin.agent_pid();
    let mut figures = restarts(&mut kubelet, rounds).await?;
    figures.push(idle_part(agent, Duration::from_secs(idle)).await?);
    figures.push(quota_changes(&kubelet, &cluster, &plugin, if quick { 20 } else { 100 }).await?);
    process::halt(plugin.gpu().pid());
    let before = process::processor_time(agent)?;
    let measured = load(&kubelet, calls).await;
    let used = process::processor_time(agent)? - before;
    process::resume(plugin.gpu().pid());
    figures.extend(measured?);
    let how = format!("of the agent, over {calls} that came or went, all threads");
    let each = used * 1e3 / f64::from(u32::try_from(calls)?);
    figures.push(Figure::new("plugin-processor-per-container", each, "ms", Bar::Any, how));
    let resident = process::resident_mib(agent)?;
    let how = format!(
        "VmRSS after {calls} containers came and went, with the lists of {GPUS} GPUs of {UNITS} units"
    );
    figures.push(Figure::new("plugin-resident-memory", resident, "MiB", Bar::AtMost(15.0), how));
    Ok(Figures { name: "bench-plugin", figures, machine: Machine::here(format!("{GPUS} simulated V100")) })
}

/// The kubelet's restarts: how soon the plugin is back, and its list with it.
async fn restarts(kubelet: &mut Kubelet, rounds: usize) -> Result<Vec<Figure>> {
    kubelet.registered(1).await;
    let (mut again, mut listed) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let start = Instant::now();
        kubelet.restart().await;
        let registered = kubelet.registered(round + 2).await;
        again.push(millis(registered.at.duration_since(start)));
        let first = registered.first_list.context("a list came")?;
        listed.push(millis(first.duration_since(registered.at)));
    }
    let how = format!("longest of {rounds} restarts of the kubelet");
    Ok(vec![
        Figure::new(
            "plugin-registration-to-first-list",
            longest(&listed),
            "ms",
            Bar::AtMost(50.0),
            how.clone(),
        ),
        Figure::new("plugin-registration-after-restart", longest(&again), "ms", Bar::AtMost(1000.0), how),
    ])
}

/// From the write to the API server until the binding has its new grant, which its page has before anybody is told.
async fn quota_changes(
    kubelet: &Kubelet,
    cluster: &ApiServer,
    plugin: &Plugin,
    changes: usize,
) -> Result<Figure> {
    cluster.put("quota", &[("quota", "20")]);
    let allocation = kubelet.admit("quota", "main", UNITS as usize / 5).await?;
    kubelet.start_container(&allocation).await?;
    let mut spans = Vec::new();
    for change in 0..changes {
        let quota = if change % 2 == 0 { 60 } else { 20 };
        let start = Instant::now();
        cluster.put("quota", &[("quota", &quota.to_string())]);
        while plugin
            .control()
            .bindings()
            .await?
            .iter()
            .all(|one| one.binding.grant != Quota::from_percent(quota).unwrap_or_default())
        {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(10), "a quota did not change");
        }
        spans.push(millis(start.elapsed()));
    }
    kubelet.remove("quota");
    let how = format!("{changes} changes of gpufn.dev/quota on a pod, from the write to the page");
    Ok(Figure::new("plugin-quota-change-p99", p99(&mut spans), "ms", Bar::AtMost(100.0), how))
}

/// Containers come and go on a node that is nearly full.
async fn load(kubelet: &Kubelet, calls: usize) -> Result<Vec<Figure>> {
    let mut random = rand::rng();
    let mut running: Vec<Allocation> = Vec::new();
    let (mut empty, mut prefers, mut allocates, mut starts) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..calls {
        let size = random.random_range(1..=40);
        let free = kubelet.available();
        if free.len() < size + (GPUS * UNITS) as usize / 5 && !running.is_empty() {
            let gone = running.swap_remove(random.random_range(0..running.len()));
            kubelet.remove(&gone.pod);
            continue;
        }
        let (mut client, none) = (kubelet.client(), BTreeSet::new());
        let question = preference(&free, &none, size);
        timed(&mut empty, client.get_device_plugin_options(Empty {})).await?;
        let answer = timed(&mut prefers, client.get_preferred_allocation(question)).await?;
        let devices = kubelet.pick(&free, &none, size, answer.into_inner());
        let pod = format!("p{number}");
        let allocation = timed(&mut allocates, kubelet.allocate(&pod, "main", devices, false)).await?;
        timed(&mut starts, kubelet.start_container(&allocation)).await?;
        running.push(allocation);
    }
    let floor = p99(&mut empty);
    let how = |count: usize| {
        format!(
            "{count} calls over the socket, {GPUS} GPUs of {UNITS} units, NVML hangs; an empty call between them: {floor:.2} ms"
        )
    };
    Ok(vec![
        Figure::new(
            "plugin-preferred-allocation-p99",
            p99(&mut prefers),
            "ms",
            Bar::AtMost(1.0),
            how(prefers.len()),
        ),
        Figure::new("plugin-allocate-p99", p99(&mut allocates), "ms", Bar::AtMost(1.0), how(allocates.len())),
        Figure::new("plugin-pre-start-p99", p99(&mut starts), "ms", Bar::AtMost(10.0), how(starts.len())),
    ])
}

/// Notes in `spans`, in milliseconds, how long a call took.
async fn timed<T>(spans: &mut Vec<f64>, call: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let answer = call.await;
    spans.push(millis(start.elapsed()));
    answer
}

/// Part of a processor that the agent uses while nothing is bound.
async fn idle_part(pid: u32, over: Duration) -> Result<Figure> {
    let before = process::processor_time(pid)?;
    tokio::time::sleep(over).await;
    let used = process::processor_time(pid)? - before;
    let how = format!("processor time in {} s, registered, nothing bound", over.as_secs());
    Ok(Figure::new("plugin-idle-processor", used / over.as_secs_f64() * 100.0, "%", Bar::AtMost(0.1), how))
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn longest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
