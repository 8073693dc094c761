//! `bench`: what sharing costs, measured with the real programs on a simulated GPU, side by side in one run.
//!
//! Reads the command line, runs the measurements, and writes and prints their figures. It judges nothing but the bars,
//! and excuses nothing: a figure that a busy machine spoils is not ok.

mod latency;
mod quota;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use gpufn::figures::{Figures, Machine};
use tests::command;
use tests::load::median;
use tests::local::Local;

/// Measure what sharing a GPU costs; build the workspace in release first, or call `make bench`.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Fewer and shorter rounds: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Folder for bench.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
}

/// How much is measured. Each figure is the median of the rounds.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    /// Requests to each target in a round of latencies.
    requests: usize,
    /// Time over which GPU time is counted.
    window: Duration,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self { rounds: 3, requests: 300, window: Duration::from_secs(3) }
        } else {
            Self { rounds: 5, requests: 1000, window: Duration::from_secs(10) }
        }
    }
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    command::warn_of_debug_build();
    // One thread, so that no other thread of this program takes a processor from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(Effort::new(cli.quick)))?;
    command::record(&figures, &cli.out)
}

async fn measure(effort: Effort) -> Result<Figures> {
    let local = Local::up().start().await;
    let gpu = local.gateway().overview().await.gpus.first().map(|gpu| gpu.name.clone());
    let mut figures = latency::added(&local, effort).await?;
    figures.push(wake::wake(&local, effort.rounds).await?);
    local.stop().await;
    figures.push(quota::alone(effort).await?);
    figures.push(quota::contending(effort).await?);
    figures.push(quota::grant_change(effort.rounds).await?);
    Ok(Figures { name: "bench", figures, machine: Machine::here(gpu.unwrap_or_default()) })
}

/// The median of one value for each round, and how it came about: `how`, and what the rounds had.
fn of_rounds(what: &str, rounds: &[f64], unit: &str, how: &str) -> Result<(f64, String)> {
    let value = median(rounds.iter().copied()).context("no round was measured")?;
    let each = rounds.iter().map(|&round| gpufn::figures::short(round)).collect::<Vec<_>>().join(", ");
    println!("{what}: {each} {unit}");
    Ok((value, format!("{how}; median of {} rounds: {each}", rounds.len())))
}
