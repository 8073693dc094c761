//! `gpufn sim`: a simulated cluster under the policies, with the code that decides in production.
//!
//! Owns the command line, scenario files, tables and pages. What happens in the cluster is [`faas_sim`]'s.
//!
//! | module | what it owns |
//! |---|---|
//! | `scenario` | scenario files |
//! | `load` | loads that they name: traces, counts of minutes, k6's output |
//! | `neighbours` | what replicas on one GPU cost each other, from published curves |
//! | `policies` | the policies by name |
//! | `runs` | runs side by side, with a progress bar |
//! | `show` | tables, JSON |
//! | `page` | a page of HTML |
//! | `figures` | how fast it is, how near to published runs, and how the policies compare |

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use gpu_share::invalid::Invalid;

use self::runs::{Run, run_all};
use self::scenario::Scenario;
pub(crate) use self::scenario::known_surfaces;

mod figures;
mod load;
mod neighbours;
mod page;
mod policies;
mod runs;
mod scenario;
mod show;

/// Arguments of `gpufn sim`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Run a scenario under one policy.
    Run {
        #[command(flatten)]
        common: Common,
        /// The policy.
        #[arg(long, default_value = "gpufn")]
        policy: String,
        /// Seed of everything that is random.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run a scenario under several policies, each with several seeds.
    Compare {
        #[command(flatten)]
        common: Common,
        /// The policies [default: all].
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        policies: Vec<String>,
        /// Seeds: 1 to this.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        seeds: u64,
    },
    /// Run a scenario again and again with one thing changed.
    Sweep {
        #[command(flatten)]
        common: Common,
        /// What is changed, and its values.
        #[arg(long, value_name = "WHAT=VALUE,…", required = true)]
        vary: String,
        /// The policies.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "gpufn")]
        policies: Vec<String>,
        /// Seeds: 1 to this.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        seeds: u64,
    },
    /// Measured figures with their bars.
    #[command(hide = true)]
    Figures(figures::Args),
}

/// What all of them take.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// A scenario file, or the name of one that is shipped.
    #[arg(default_value = "has-standard")]
    scenario: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (common, wanted) = match args.command {
        Command::Figures(args) => return figures::run(&args),
        Command::Run { common, policy, seed } => {
            let scenario = Scenario::open(&common.scenario)?;
            (common, vec![Run { label: policy.clone(), policy, seed, scenario }])
        }
        Command::Compare { common, policies, seeds } => {
            let scenario = Scenario::open(&common.scenario)?;
            let names = or_all(policies);
            let wanted =
                names.into_iter().flat_map(|policy| runs(&policy, &policy, seeds, &scenario)).collect();
            (common, wanted)
        }
        Command::Sweep { common, vary, policies, seeds } => {
            let scenario = Scenario::open(&common.scenario)?;
            let mut wanted = Vec::new();
            for (value, varied) in varied(&scenario, &vary)? {
                for policy in &policies {
                    wanted.extend(runs(&format!("{policy}, {value}"), policy, seeds, &varied));
                }
            }
            (common, wanted)
        }
    };
    let done = run_all(&wanted)?;
    if common.json {
        println!("{}", serde_json::to_string_pretty(&show::json(&done))?);
    } else {
        print!("{}", show::text(&wanted[0].scenario, &done));
    }
    if let Some(file) = &common.html {
        let text = page::html(&wanted[0].scenario, &done);
        std::fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))?;
        eprintln!("page  {}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn or_all(policies: Vec<String>) -> Vec<String> {
    if policies.is_empty() { policies::NAMES.iter().map(ToString::to_string).collect() } else { policies }
}

fn runs(label: &str, policy: &str, seeds: u64, scenario: &Scenario) -> Vec<Run> {
    let run = |seed| Run { label: label.into(), policy: policy.into(), seed, scenario: scenario.clone() };
    (1..=seeds).map(run).collect()
}

/// What may be varied.
const KNOBS: &str = "slo=TIMES,… (of a lone request on a whole GPU), gpus=COUNT,…, rate=FACTOR,…, cold-start=SECONDS,…, \
                     delay=SECONDS,… or tick=SECONDS,…";

/// The scenario with each of the values of `vary`.
fn varied(scenario: &Scenario, vary: &str) -> Result<Vec<(String, Scenario)>, Invalid> {
    let bad = || Invalid::new("--vary", vary, KNOBS);
    let (knob, values) = vary.split_once('=').ok_or_else(bad)?;
    let each = |text: &str| {
        let value: f64 = text
            .trim()
            .parse()
            .ok()
            .filter(|value: &f64| value.is_finite() && *value > 0.0)
            .ok_or_else(bad)?;
        let changed = scenario.varied(knob, value).ok_or_else(bad)?;
        changed.spec.check()?;
        Ok((format!("{knob} {value}"), changed))
    };
    values.split(',').map(each).collect()
}
