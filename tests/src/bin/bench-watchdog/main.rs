//! `bench-watchdog`: fwatchdog side by side with other programs that do its work, in one run on this machine.
//!
//! Reads the command line, runs the measurements, and writes and prints their figures. Each figure is the median over
//! rounds of a ratio within one round, so that what else the machine does falls out; it judges nothing but the bars.

mod memory;
mod target;
mod throughput;
mod wrk;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use gpufn::figures::{Figures, Machine};
use tests::command;

/// Programs that are measured with or against.
const NEEDED: [&str; 2] = ["wrk", "nginx"];

/// Measure fwatchdog against of-watchdog, nginx and haproxy; build it in release first, or call `make bench-watchdog`.
#[derive(Debug, Parser)]
#[command(name = "bench-watchdog", version)]
pub(crate) struct Cli {
    /// The watchdog to measure.
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/fwatchdog")]
    watchdog: PathBuf,
    /// An of-watchdog to measure against; without it those figures are left out.
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<PathBuf>,
    /// Rounds; each measures every program once at every concurrency.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Folder for bench-watchdog.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    for program in NEEDED {
        if !is_installed(program) {
            bail!("{program} is not installed: apt-get install wrk nginx-light haproxy");
        }
    }
    let mut figures = memory::figures(cli)?;
    figures.extend(throughput::figures(cli)?);
    let figures = Figures { name: "bench-watchdog", figures, machine: Machine::here("") };
    command::record(&figures, &cli.out)
}

/// Whether `program` is found, also where only root looks.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).exists())
}
