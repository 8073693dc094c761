//! `bench-scaler`: what KEDA waits for. The real scaler with many functions, of which a tenth has a replica under load, read from
//! a Prometheus; a client of KEDA's shape polls the `ScaledObject` of each, and follows it. And what a control period takes
//! (`control`).
//!
//! Reads the command line, runs the measurements, and writes and prints their figures. It excuses nothing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gpufn::figures::{Bar, Figure, Figures, Machine};
use tests::apiserver::ApiServer;
use tests::command;
use tests::keda::Keda;
use tests::process;
use tests::scaler::Scaler;
use tests::watchdogs::Prometheus;
use tokio::task::JoinSet;

mod control;

/// Time between two polls of a `ScaledObject`, and between two readings of load.
const POLL: Duration = Duration::from_secs(15);
/// One of so many functions has a replica under load; the others have none, as most functions most of the time (Shahrad et al.,
/// Serverless in the Wild, USENIX ATC 2020).
const BUSY: usize = 10;
/// Functions whose first request is held, one after the other.
const HELD: usize = 200;

/// Measure how long KEDA waits for the scaler; build the workspace in release first, or call `make bench-scaler`.
#[derive(Debug, Parser)]
#[command(name = "bench-scaler", version)]
struct Cli {
    /// Fewer functions, for a shorter time: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Folder for bench-scaler.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    command::warn_of_debug_build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(cli.quick))?;
    command::record(&figures, &cli.out)
}

async fn measure(quick: bool) -> Result<Figures> {
    let (count, rounds) = if quick { (1_000, 2) } else { (10_000, 4) };
    let cluster = ApiServer::start().await;
    let mut pods = Vec::new();
    for number in 0..count {
        let (function, pod) = (format!("f{number}"), format!("f{number}-0"));
        let is_busy = number % BUSY == 0;
        let asks = [("sm", "50"), ("quota", "40"), ("slo", "p95<250ms")];
        cluster.put_deployment(&function, u32::from(is_busy), &asks);
        if is_busy {
            cluster.put_replica(&function, &pod, "127.0.0.1".parse()?, true);
            pods.push(pod);
        }
    }
    for number in 0..HELD {
        cluster.put_deployment(&format!("empty{number}"), 0, &[]);
    }
    let prometheus = Prometheus::start(&pods).await;
    prometheus.show(|shown| (shown.rate, shown.in_flight, shown.share) = (8.0, 1, Some((0.02, 0.4))));
    let scaler = Scaler::builder(&cluster).with("--prometheus", &prometheus.url).with("--period", "15s");
    let scaler = scaler.with("--patience", "10s").with("--stale", "60s").start().await;
    scaler.until_read("f0").await;

    let all: Vec<_> = (0..count).map(|number| format!("f{number}")).collect();
    let connection = Keda::at(&[scaler.grpc], "").connect();
    let triggers: Vec<_> = all.iter().map(|name| Arc::new(connection.trigger(name))).collect();
    let mut streams = Vec::new();
    for trigger in &triggers {
        streams.push(trigger.stream().await.context("a stream")?);
    }
    let before = process::processor_time(scaler.pid())?;
    let start = Instant::now();
    let (mut metrics, mut active) = poll(&triggers, rounds).await?;
    let part = (process::processor_time(scaler.pid())? - before) / start.elapsed().as_secs_f64() * 100.0;
    let resident = process::resident_mib(scaler.pid())?;
    drop(streams);
    let mut pushes = pushes(&scaler).await;

    let how = |what: &str| {
        format!(
            "{what}; {count} ScaledObjects polled every {} s, a stream open for each; one of {BUSY} has a replica with 8 requests \
             a second, read from a Prometheus every {} s; client and fakes on the same processors",
            POLL.as_secs(),
            POLL.as_secs()
        )
    };
    let calls = how(&format!("{} calls", metrics.len()));
    let figures = vec![
        Figure::new("scaler-get-metrics-p99", p99(&mut metrics), "ms", Bar::AtMost(5.0), calls.clone()),
        Figure::new("scaler-is-active-p99", p99(&mut active), "ms", Bar::AtMost(5.0), calls),
        Figure::new("scaler-processor", part, "%", Bar::AtMost(20.0), how("of one core, all threads")),
        Figure::new("scaler-resident-memory", resident, "MiB", Bar::AtMost(200.0), how("VmRSS at the end")),
        Figure::new(
            "scaler-activation-push-p99",
            p99(&mut pushes),
            "ms",
            Bar::AtMost(20.0),
            format!("{HELD} functions without a replica, from the front end's word to KEDA's ear"),
        ),
    ];
    drop(scaler);
    let figures = figures.into_iter().chain(control::measure(quick).await?).collect();
    Ok(Figures { name: "bench-scaler", figures, machine: Machine::here("none") })
}

/// Polls each trigger so many times, evenly over the time: how long values and activity took, in milliseconds.
async fn poll(triggers: &[Arc<Keda>], rounds: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut metrics, mut active, mut polls) = (Vec::new(), Vec::new(), JoinSet::new());
    let pause = POLL / u32::try_from(triggers.len())?;
    let start = Instant::now();
    let mut due = start;
    for _ in 0..rounds {
        for trigger in triggers {
            due += pause;
            tokio::time::sleep_until(due.into()).await;
            let trigger = Arc::clone(trigger);
            polls.spawn(async move { trigger.timed_poll().await });
            while let Some(done) = polls.try_join_next() {
                let (values, activity) = done??;
                metrics.push(millis(values));
                active.push(millis(activity));
            }
        }
    }
    while let Some(done) = polls.join_next().await {
        let (values, activity) = done??;
        metrics.push(millis(values));
        active.push(millis(activity));
    }
    let wanted = triggers.len() * rounds as usize;
    ensure!(metrics.len() == wanted, "{} of {wanted} polls were answered", metrics.len());
    Ok((metrics, active))
}

/// How long it takes until KEDA hears of the first request of each of some functions, in milliseconds.
async fn pushes(scaler: &Scaler) -> Vec<f64> {
    let mut spans = Vec::new();
    for number in 0..HELD {
        let function = format!("empty{number}");
        let mut followed = Keda::at(&[scaler.grpc], &function).trigger(&function).follow();
        let first = followed.next(POLL).await.0;
        assert_eq!(first, Some(false), "{function} has no request yet");
        let held = Instant::now();
        scaler.hold(&function, 1).await;
        spans.push(millis(followed.until_active(POLL).await - held));
    }
    spans
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
