//! How a command begins and ends: its arguments, its exit code, and, where it measures, the record of its figures.
//!
//! It measures nothing.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use gpufn::figures::Figures;

/// Exit code for bad usage (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// Runs `measure` with the command line's arguments: 0 if it says that all bars are kept, 1 if not or where it failed, 64
/// for bad usage.
pub fn run<C: Parser>(measure: impl FnOnce(&C) -> Result<bool>) -> ExitCode {
    exit_with(|cli| Ok(if measure(cli)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// Runs `act` with the command line's arguments: its exit code, 1 where it failed, 64 for bad usage.
pub fn exit_with<C: Parser>(act: impl FnOnce(&C) -> Result<ExitCode>) -> ExitCode {
    let name = C::command().get_name().to_string();
    let cli = match C::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not mistakes; either way the text is clap's.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match act(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Warns where the measured programs are not what users run.
pub fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build; its figures say nothing about a release build");
    }
}

/// Writes the figures below `folder` and prints them; whether all bars are kept.
pub fn record(figures: &Figures, folder: &Path) -> Result<bool> {
    let path = figures.write(folder).with_context(|| folder.display().to_string())?;
    println!("\n{}\n{}", figures.table(), path.display());
    Ok(figures.all_ok())
}
