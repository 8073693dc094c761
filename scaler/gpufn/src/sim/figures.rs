//! The figures of the simulator and of the policies, with their bars.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::figures::{Figure, Figures, Machine};

mod bench;
mod policies;
mod validation;

/// Arguments of `gpufn sim figures`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Which figures.
    #[arg(value_enum)]
    what: What,
    /// Other data of the same form: published runs (validation), or a scenario file (policies).
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder of the figures.
    #[arg(long, value_name = "DIR", default_value = "target/figures")]
    figures: PathBuf,
    /// Fewer seeds and objectives, shorter runs.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The simulator against published runs.
    Validation,
    /// All policies on all traces.
    Policies,
    /// How fast it is.
    Bench,
}

/// Measures, prints and writes them.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (name, figures): (&'static str, Vec<Figure>) = match args.what {
        What::Validation => ("sim-validation", validation::figures(args.data.as_deref())?),
        What::Policies => ("policies", policies::figures(args.data.as_deref(), args.quick)?),
        What::Bench => ("sim", bench::figures(args.quick)?),
    };
    let figures = Figures { name, figures, machine: Machine::here("simulated V100s") };
    let file = figures.write(&args.figures)?;
    println!("{}", figures.table());
    println!("figures  {}", file.display());
    Ok(if figures.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
