//! `gpufn`: the command people type. Reads the command line, runs one command, and turns its end into an exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use gpufn::{audit, demo, explain, load, plan, profile, sim, top, up};

/// Many functions on one GPU, each with its own slice, resized while they run.
#[derive(Debug, Parser)]
#[command(name = "gpufn", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run functions on this machine behind the OpenFaaS gateway API; no cluster, no root, no GPU needed.
    Up(up::Args),
    /// Show what each function has, uses and needs, as it changes.
    Top(top::Args),
    /// Say why a function in a cluster has what it has: demand, plans that were weighed, what was done.
    Explain(explain::Args),
    /// Send requests to functions as a trace says, whether or not they keep up.
    Load(load::Args),
    /// Show the whole: one GPU for four functions, against a GPU for each.
    Demo(demo::Args),
    /// Measure how long a deployed function takes by SM share and quota, and write its profile.
    Profile(profile::Args),
    /// How well latencies of models are predicted that were not seen, on measured data.
    #[command(hide = true)]
    ProfileFigures(profile::accuracy::Args),
    /// Simulate a cluster under a policy, or under several.
    Sim(sim::Args),
    /// What a load would cost on whole GPUs, shares, Kubernetes, OpenWhisk and Cloud Run, and how fast they would answer.
    Plan(Box<plan::Args>),
    /// The cost model against the bills of a published study.
    #[command(hide = true)]
    PlanFigures(plan::study::Args),
    /// Measure which share of the GPU programs get, against what was set.
    Audit(audit::Args),
    /// The program that is measured.
    #[command(hide = true)]
    AuditProbe(audit::probe::Args),
    /// Print the completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Exit code for bad usage or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not mistakes; either way the text is clap's.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let ended = match cli.command {
        Command::Up(args) => up::run(args),
        Command::Top(args) => top::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Load(args) => load::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Profile(args) => profile::run(args),
        Command::ProfileFigures(args) => profile::accuracy::run(args),
        Command::Sim(args) => sim::run(args),
        Command::Plan(args) => plan::run(*args),
        Command::PlanFigures(args) => plan::study::run(args),
        Command::Audit(args) => audit::run(args),
        Command::AuditProbe(args) => audit::probe::run(args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "gpufn", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("gpufn: {error:#}");
        if error.is::<gpu_share::invalid::Invalid>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
    })
}
