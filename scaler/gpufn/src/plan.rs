//! `gpufn plan`: what a load would cost on other platforms, and how fast each would answer.
//!
//! Owns the command line and the files; the cost model is the scaler's ([`scaler::cost`]).
//!
//! | module | what it owns |
//! |---|---|
//! | `input` | the workload, from arguments, traces, profiles and what k6 wrote |
//! | `k6` | the forms of k6's output |
//! | `report` | what came out, as a table and JSON |
//! | `page` | the same as a page of HTML |
//! | [`study`] | `gpufn plan-figures`: the cost model against the bills of a published study |

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use scaler::cost::prices::{Platform, Prices};

use self::input::in_file;
use self::report::Report;

mod input;
mod k6;
mod page;
mod report;
pub mod study;

/// Arguments of `gpufn plan`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gpufn plan --load has-standard --model resnet50 --slo 'p95<100ms' --cpu 250ms --html plan.html\n\n\
                        Prices are what the price file says, on the day that it says. --print-prices shows the shipped one."
)]
pub struct Args {
    #[command(flatten)]
    work: input::WorkloadArgs,
    /// CSV file with traces for --load; the shipped ones are known as well.
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// YAML file with platforms and prices [default: the shipped list prices].
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Only this platform of the price file; may be repeated.
    #[arg(long = "platform", value_name = "NAME")]
    platforms: Vec<String>,
    /// The platform that break-even rates are told against [default: the cheapest].
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// Write everything as a page of HTML to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the shipped price file, and do nothing else.
    #[arg(long)]
    print_prices: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // A reader that has seen enough closes the pipe: no reason to panic.
    let mut out = std::io::stdout().lock();
    if args.print_prices {
        write!(out, "{}", Prices::shipped_text())?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = report(&args)?;
    if let Some(path) = &args.html {
        std::fs::write(path, page::html(&report))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "{}", report.text())?;
        if let Some(path) = &args.html {
            writeln!(out, "page  {}", path.display())?;
        }
    }
    Ok(if report.platforms.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(args: &Args) -> anyhow::Result<Report> {
    let prices =
        args.prices.as_deref().map_or_else(|| Ok(Prices::shipped()?), |path| in_file(path, Prices::read))?;
    let wanted: Vec<&Platform> = match args.platforms.as_slice() {
        [] => prices.platforms.iter().collect(),
        names => names.iter().map(|name| prices.platform(name)).collect::<Result<_, _>>()?,
    };
    let against = args.against.as_deref().map(|name| prices.platform(name)).transpose()?;
    Ok(Report::of(&prices, &wanted, &args.work.workload(args.traces.as_deref())?, against))
}
