//! `clients`: real CUDA programs, unmodified, each behind the hook on a simulated GPU, with a quota of 25 % and a memory
//! limit that it hits.
//!
//! Reads the command line, installs what the clients are made of, runs them one after another, and writes and prints
//! what they got. It judges nothing but the bars.

mod client;
mod outcome;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use gpufn::figures::{Figures, Machine};
use tests::command;
use tests::python::Cache;

use crate::client::Client;

/// Run real CUDA clients under a share of a simulated GPU; build the workspace first, or call `make test-clients`.
#[derive(Debug, Parser)]
#[command(name = "clients", version)]
struct Cli {
    /// Clients to run; all if none is named.
    #[arg(value_enum)]
    clients: Vec<Client>,
    /// Folder in which the clients are installed, once.
    #[arg(long, value_name = "FOLDER", default_value = "target/clients")]
    cache: PathBuf,
    /// Folder for clients.json.
    #[arg(long, value_name = "FOLDER", default_value = "target/figures")]
    out: PathBuf,
    /// Install, and run nothing.
    #[arg(long)]
    install: bool,
}

fn main() -> ExitCode {
    command::run(run)
}

/// Whether all bars are kept.
fn run(cli: &Cli) -> Result<bool> {
    let wanted = if cli.clients.is_empty() { Client::ALL.to_vec() } else { cli.clients.clone() };
    let cache = Cache::open(&cli.cache)?;
    for environment in client::needed(&wanted) {
        cache
            .install(&environment)
            .with_context(|| format!("the clients' environment {}", environment.name))?;
    }
    if cli.install {
        return Ok(true);
    }
    // One thread, so that no other thread of this program takes a processor from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcomes = Vec::new();
    for client in wanted {
        let outcome = runtime.block_on(run::run(client, &cache));
        outcomes.push(outcome.with_context(|| client.to_string())?);
    }
    println!("\n{}", outcome::table(&outcomes));
    // A part of the clients would replace the record of all.
    if cli.clients.is_empty() {
        let figures = outcomes.iter().flat_map(outcome::Outcome::figures).collect();
        let figures =
            Figures { name: "clients", figures, machine: Machine::here("gpufn simulated V100 and T4") };
        command::record(&figures, &cli.out)?;
    }
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.ok()).collect();
    for outcome in &failed {
        eprintln!("clients: {} misses a bar; the last that it printed:\n{}", outcome.client, outcome.tail);
    }
    Ok(failed.is_empty())
}
