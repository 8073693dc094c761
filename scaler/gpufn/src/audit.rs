//! `gpufn audit`: which share of a GPU each of several programs gets, against what it was set.
//!
//! Owns the command line and the files of the report. It measures on any machine, on a real GPU or a simulated one, with
//! the node agent and the hook that functions run with.
//!
//! | module | what it owns |
//! |---|---|
//! | [`cell`] | the matrix: quotas, kernels, ways to launch, containers, processes, ways to share |
//! | [`stand`] | GPU, node agent and hook for the time of an audit |
//! | [`probe`] | the CUDA program that is measured |
//! | [`measure`] | what it got, second by second |
//! | [`verdict`] | how far off is allowed |
//! | [`report`], [`heatmap`] | the cells as table, JSON and HTML |

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use self::cell::{Kernel, Launch, MODES, Mode, Place};
use self::measure::Bench;
use self::report::{Report, Row};
use self::stand::{Card, Programs, Stand};
use self::torch::Torch;
use self::verdict::Verdict;
use crate::figures::Machine;
use crate::load::runtime;
use crate::up::Simulate;

pub mod cell;
pub mod heatmap;
pub mod measure;
pub mod probe;
pub mod report;
pub mod stand;
mod torch;
pub mod verdict;

/// Quotas of the programs in `PyTorch`, percent.
const TORCH: [&[u8]; 2] = [&[30], &[30, 60]];
/// What a program in `PyTorch` is called in the report.
const TORCH_NAME: &str = "PyTorch";

/// Arguments of `gpufn audit`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A few cells of 3 s: for a look, not for the record.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Every cell, not only those in which every two values meet; takes hours.
    #[arg(long)]
    full: bool,
    /// Length of each cell, seconds [default: 10, with --quick 3].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    duration: Option<u32>,
    /// Only cells whose name has this text, such as "30 %" or "exclusive"; can be given several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Whether the GPU is simulated.
    #[arg(long, value_enum, default_value = "auto")]
    simulate: Simulate,
    /// Write the report as JSON to this file, `-` for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page of HTML to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Python to look for `PyTorch` in.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Folder of gpufn's programs [default: that of this one].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Runs the audit.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = runtime()?.block_on(audit(&args))?;
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.html {
        write(path, &heatmap::html(&report))?;
    }
    if let Some(path) = args.json.as_deref().filter(|_| !to_stdout) {
        write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if to_stdout {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}\n{}", report.table(), report.summary());
        report.left_out.iter().for_each(|why| println!("{why}"));
        args.html.iter().chain(&args.json).for_each(|path| println!("{}", path.display()));
    }
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

fn card(simulate: Simulate) -> anyhow::Result<Card> {
    if simulate == Simulate::Always {
        return Ok(Card::Simulated);
    }
    let card = Card::detect();
    let missing = simulate == Simulate::Never && matches!(card, Card::Simulated);
    anyhow::ensure!(!missing, "NVML finds no GPU, and --simulate never was given");
    Ok(card)
}

fn cells(args: &Args) -> Vec<Place> {
    let all = match (args.full, args.quick) {
        (true, _) => Place::all(),
        (_, true) => quick(),
        _ => Place::pairwise(),
    };
    let wanted = |place: &Place| args.only.iter().all(|text| place.to_string().contains(text));
    all.into_iter().filter(wanted).collect()
}

fn quick() -> Vec<Place> {
    let mut places = Vec::new();
    for mode in MODES {
        for (quota, micros, launch, containers, processes) in [
            (30, 1_000, Launch::Kernel, 1, 1),
            (10, 100, Launch::Extended, 1, 1),
            (50, 5_000, Launch::Graph, 2, 1),
            (30, 20_000, Launch::Cooperative, 2, 1),
            (20, 1_000, Launch::Kernel, 2, 3),
        ] {
            places.push(Place { quota, kernel: Kernel::Micros(micros), launch, containers, processes, mode });
        }
    }
    places
}

async fn audit(args: &Args) -> anyhow::Result<Report> {
    let (programs, card) = (Programs::find(args.bin_dir.as_deref())?, card(args.simulate)?);
    let seconds = args.duration.unwrap_or(if args.quick { 3 } else { 10 });
    let cells = cells(args);
    let progress = bar(cells.len());
    let (mut rows, mut left_out, mut gpu) = (Vec::new(), Vec::new(), String::new());
    for mode in MODES {
        let cells: Vec<_> = cells.iter().copied().filter(|place| place.mode == mode).collect();
        if cells.is_empty() {
            continue;
        }
        if mode == Mode::Mps && matches!(card, Card::Real(..)) && !stand::has_mps() {
            left_out.push(format!("{} cells under MPS: nvidia-cuda-mps-control is not here.", cells.len()));
            progress.inc(cells.len() as u64);
            continue;
        }
        let stand = Stand::start(&programs, &card, mode).await?;
        gpu.clone_from(&stand.gpu);
        let measured = on_stand(&stand, &cells, args, seconds, &progress).await;
        stand.stop().await;
        let (more, out) = measured?;
        rows.extend(more);
        left_out.extend(out);
    }
    progress.finish_and_clear();
    left_out.dedup();
    let how = match card {
        Card::Real(..) => {
            "Delivered time: kernels that were done, times the length of one as measured without a share"
        }
        Card::Simulated => {
            "Delivered time: as the simulated GPU itself counts it; says nothing about a real card"
        }
    };
    Ok(Report { machine: Machine::here(gpu), seconds, how, rows, left_out })
}

/// The cells of one way of sharing, and what is left out.
async fn on_stand(
    stand: &Stand,
    cells: &[Place],
    args: &Args,
    seconds: u32,
    progress: &ProgressBar,
) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    let mut bench = Bench::new(stand, std::env::current_exe()?);
    for place in cells {
        progress.set_message(place.to_string());
        let got = bench.run(&place.containers(), seconds).await.with_context(|| place.to_string())?;
        rows.push(Row::of(*place, &got));
        progress.inc(1);
    }
    let wanted = args.only.iter().all(|text| TORCH_NAME.contains(text.as_str()));
    if !wanted {
        return Ok((rows, left_out));
    }
    progress.set_message(TORCH_NAME);
    let Some(torch) = Torch::find(stand, &args.python).await else {
        left_out.push(format!("{TORCH_NAME}: {} has none that can use this GPU.", args.python.display()));
        return Ok((rows, left_out));
    };
    for quotas in TORCH {
        let got = torch.run(stand, &mut bench, quotas, seconds).await?;
        let containers = quotas.iter().zip(&got).map(|(&set, got)| Verdict::new(f64::from(set), got, 0));
        let mode = cells.first().map(|place| place.mode.to_string()).unwrap_or_default();
        rows.push(Row {
            name: format!("{TORCH_NAME}, {mode}"),
            place: None,
            containers: containers.collect(),
        });
    }
    Ok((rows, left_out))
}

/// A bar over so many cells.
pub fn bar(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64);
    // The template is constant and sound; without it the bar is only plainer.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of about {duration}  {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
