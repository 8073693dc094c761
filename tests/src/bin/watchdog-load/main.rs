//! Load on any watchdog that says whether it loses bytes (`bodies`) or grows (`soak`), in every mode that it has.

mod bodies;
mod body;
mod client;
mod function;
mod mode;
mod soak;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tests::command;

use crate::mode::Mode;

/// Load a watchdog and look whether it loses bytes or grows.
#[derive(Debug, Parser)]
#[command(name = "watchdog-load", version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Send random bodies through every mode, and compare what comes back by its hash.
    Bodies(bodies::Options),
    /// Send many requests, and compare memory, descriptors and threads at their beginning and their end.
    Soak(soak::Options),
}

/// What is loaded, and where the figures go.
#[derive(Args, Debug)]
pub(crate) struct Common {
    /// The watchdog's program.
    program: PathBuf,
    /// Only these modes.
    #[arg(long, value_delimiter = ',', default_values_t = Mode::ALL)]
    modes: Vec<Mode>,
    /// A variable for every watchdog, such as compat=of-watchdog.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    environment: Vec<(String, String)>,
    /// Clients at once.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Folder for the figures.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("allowed is NAME=VALUE")?;
    Ok((name.to_string(), value.to_string()))
}

fn main() -> ExitCode {
    command::run(|cli: &Cli| match &cli.what {
        What::Bodies(options) => bodies::run(options),
        What::Soak(options) => soak::run(options),
    })
}
