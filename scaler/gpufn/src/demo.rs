//! `gpufn demo`: four functions on one GPU, against a whole GPU for each replica, and the report on it.
//!
//! Owns the command line and the files of the report. What is run is in `scenario`, how in `run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use gpu_share::invalid::Invalid;

use self::report::{Observed, Report};
use self::run::{Setup, say};
use self::scenario::Scenario;
use crate::figures::Machine;
use crate::load::{Interrupt, read_traces, runtime, write_rows};

pub(crate) mod chart;
mod forecast;
mod page;
mod report;
mod run;
mod scenario;
pub(crate) mod series;
mod story;

/// GPUs of the run with whole GPUs: two for each function.
const WHOLE_GPUS: u32 = 8;

/// The program that the functions of the demo are.
const PROGRAM: &str = "inference-function";

/// Arguments of `gpufn demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Run the steps of the load at their full length of 5 s, not 1.5 s.
    #[arg(long)]
    full: bool,
    /// Folder of the report.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// Folder of the figures.
    #[arg(long, value_name = "DIR", default_value = "target/figures")]
    figures: PathBuf,
    /// Scaling policy of the run on one GPU.
    #[arg(long, default_value = "gpufn")]
    policy: String,
    /// Seed of the arrivals; both runs get the same ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of gpufn's programs [default: that of this one].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// CSV file with traces; its first one takes the place of has-standard.
    #[arg(long, visible_alias = "data", value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Price of a GPU-hour in dollars, for the cost of 1,000 requests.
    #[arg(long, value_name = "DOLLARS", default_value_t = 2.5, value_parser = price)]
    gpu_hour_price: f64,
    /// Keep the state folders of both runs.
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // A command owns its arguments; all of them are run alike.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let traces = read_traces(args.traces.as_deref())?;
    let bin = bin_folder(args.bin_dir.as_deref())?;
    let scenario = Scenario::new(&bin.to_string_lossy(), &traces, args.full, args.seed)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("can't make {}", args.out.display()))?;
    // Paths of sockets are made from it, also by children that may have another working folder.
    let out = args.out.canonicalize()?;
    let setup = |label, name: &str, policy: &str, gpus| Setup {
        label,
        policy: policy.into(),
        gpus,
        bin: bin.clone(),
        state: out.join(name),
        log: out.join(format!("{name}.log")),
    };
    let setups =
        [setup("gpufn", "shared", &args.policy, 1), setup("whole GPUs", "whole", "kserve", WHOLE_GPUS)];
    let [shared, whole] = runtime()?.block_on(run_both(&scenario, &setups))?;
    if !args.keep {
        for setup in &setups {
            std::fs::remove_dir_all(&setup.state)
                .with_context(|| format!("can't remove {}", setup.state.display()))?;
        }
    }
    let simulated = forecast::simulate(&scenario, &args.policy, shared.gpus)?;
    let machine = Machine::here(gpu(&shared));
    let report = Report::new(&scenario, [&shared, &whole], &simulated, args.gpu_hour_price, machine);
    write(&args, &scenario, &report, [&shared, &whole])?;
    Ok(if report.figures.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One after the other, so that they do not disturb each other.
async fn run_both(scenario: &Scenario, [shared, whole]: &[Setup; 2]) -> anyhow::Result<[Observed; 2]> {
    let interrupt = Interrupt::on_signal()?;
    let seconds = scenario.seconds;
    say(None, &format!("{} requests to four functions over {seconds:.0} s, twice", scenario.requests.len()));
    let shared = run::run(scenario, shared, &interrupt).await?;
    let whole = run::run(scenario, whole, &interrupt).await?;
    Ok([shared, whole])
}

/// Writes the report and the figures, and prints what they say.
fn write(args: &Args, scenario: &Scenario, report: &Report, runs: [&Observed; 2]) -> anyhow::Result<()> {
    let path = |name: &str| args.out.join(name);
    let names: Vec<_> = scenario.functions.iter().map(|function| function.name().to_string()).collect();
    for (observed, name) in runs.into_iter().zip(["shared-requests.csv", "whole-requests.csv"]) {
        write_rows(&path(name), &names, &observed.outcomes)?;
    }
    let page = path("report.html");
    std::fs::write(path("report.json"), serde_json::to_string_pretty(report)? + "\n")?;
    std::fs::write(&page, page::html(report)).with_context(|| format!("can't write {}", page.display()))?;
    let figures = report.figures.write(&args.figures)?;
    println!("\n{}", report.table());
    println!("{}", report.figures.table());
    println!("report   {}\nfigures  {}", page.display(), figures.display());
    Ok(())
}

/// Folder of the programs, checked to hold the functions' program.
fn bin_folder(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = given.or_else(|| own.parent()).map_or_else(PathBuf::new, Path::to_path_buf);
    let folder = folder.canonicalize().with_context(|| format!("can't find {}", folder.display()))?;
    let program = folder.join(PROGRAM);
    ensure!(program.is_file(), "{} is missing; build it with `cargo build --workspace`", program.display());
    Ok(folder)
}

/// The GPU in words, as the first overview has it.
fn gpu(observed: &Observed) -> String {
    let gpus = observed.looks.iter().flat_map(|look| &look.overview.gpus);
    gpus.map(|gpu| gpu.name.clone()).find(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}

fn price(text: &str) -> Result<f64, Invalid> {
    let price = text.parse().ok().filter(|price: &f64| price.is_finite() && *price >= 0.0);
    price.ok_or_else(|| Invalid::new("gpu-hour-price", text, "a number of dollars, 0 or more"))
}
