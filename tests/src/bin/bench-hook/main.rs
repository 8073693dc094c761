//! `bench-hook`: how exactly shares of GPU time are delivered, what that costs, and how soon a change works.
//!
//! Reads the command line, runs the parts, and writes and prints their figures. It judges nothing but the bars.
// A measurement reports an impossible state by panicking, as the harness does that it is built on.
#![allow(clippy::expect_used)]

mod anchors;
mod change;
mod conservation;
mod cost;
mod hami;
mod inference;
mod matrix;
mod readme;
mod real;
mod virtual_time;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use gpufn::audit::stand::Programs;
use gpufn::figures::{Figure, Figures, Machine};
use tests::{command, programs};

/// Measure how exactly shares of GPU time are delivered; build the workspace in release first, or call `make bench-hook`.
#[derive(Debug, Parser)]
#[command(name = "bench-hook", version)]
struct Cli {
    /// Fewer and shorter cells: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Only these parts; can be given several times.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// HAMi-core's libvgpu.so, to be measured on the same cells.
    #[arg(long, value_name = "FILE", env = "HAMI")]
    hami: Option<PathBuf>,
    /// Folder for bench-hook.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
    /// Document whose block between the markers is renewed; not with --quick or --part.
    #[arg(long, value_name = "FILE", default_value = "watchdog/hook/README.md")]
    readme: PathBuf,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The matrix in virtual time.
    Virtual,
    /// A subset of it in real time, and whether the two agree.
    Real,
    /// The cells that other systems were measured on.
    Anchors,
    /// A model's inferences, unused time, changes of a grant.
    Cases,
    /// What the hook costs.
    Cost,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    pub(crate) quick: bool,
    pub(crate) hami: Option<PathBuf>,
}

impl Effort {
    /// `few` with `--quick`, else `many`.
    pub(crate) fn of<T>(&self, few: T, many: T) -> T {
        if self.quick { few } else { many }
    }
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    command::warn_of_debug_build();
    let effort = Effort { quick: cli.quick, hami: cli.hami.clone() };
    let wanted = |part: Part| cli.part.is_empty() || cli.part.contains(&part);
    let mut figures = Vec::new();
    if wanted(Part::Virtual) {
        let rows = matrix::run(&effort);
        println!("{}", matrix::table(&rows));
        figures.extend(matrix::figures(&rows));
        if !cli.quick && cli.part.is_empty() {
            readme::renew(&cli.readme, &matrix::table(&rows))
                .with_context(|| cli.readme.display().to_string())?;
        }
    }
    let _turn = programs::Turn::take();
    let runtime = gpufn::load::runtime()?;
    let (measured, failures) = runtime.block_on(in_real_time(&effort, wanted))?;
    figures.extend(measured);
    let figures = Figures { name: "bench-hook", figures, machine: Machine::here("gpufn simulated V100") };
    let all_kept = command::record(&figures, &cli.out)?;
    for failure in &failures {
        eprintln!("bench-hook: not measured: {failure:#}");
    }
    Ok(all_kept && failures.is_empty())
}

/// What was measured, and why something was not: half an hour's figures are not lost with those of the last part.
async fn in_real_time(
    effort: &Effort,
    wanted: impl Fn(Part) -> bool,
) -> Result<(Vec<Figure>, Vec<anyhow::Error>)> {
    let programs = Programs::find(Some(&programs::folder()))?;
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    let mut take = |part: Result<Vec<Figure>>| match part {
        Ok(measured) => figures.extend(measured),
        Err(error) => failures.push(error),
    };
    if wanted(Part::Real) {
        take(real::run(&programs, effort).await);
    }
    if wanted(Part::Anchors) {
        take(anchors::run(&programs, effort).await);
    }
    if wanted(Part::Cases) {
        take(inference::run(&programs, effort).await.map(|figure| vec![figure]));
        take(conservation::run(&programs, effort).await);
        take(change::run(&programs, effort).await);
    }
    if wanted(Part::Cost) {
        take(cost::run());
    }
    Ok((figures, failures))
}

/// Gpufn itself, whose hidden command is the probe.
pub(crate) fn probe() -> PathBuf {
    programs::built("gpufn")
}
