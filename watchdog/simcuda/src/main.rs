//! `simgpu`: the daemon that simulates GPUs. Reads the command line and the files it names; serves until a signal.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use gpu_share::latency::Profiles;
use gpu_share::units::{Bytes, Nanos};
use simcuda::card::Card;
use simcuda::cost::Costs;
use simcuda::daemon::{Daemon, Options};
use simcuda::gpu::{Config, Mode};
use simcuda::signals;

/// Exit code for bad usage or configuration.
const BAD_USAGE: u8 = 64;

/// Simulates GPUs that several processes share.
///
/// A program uses them through libsimcuda.so, found under the names libcuda.so.1 and libnvidia-ml.so.1, with
/// `SIMCUDA_SOCKET` set to the path of the socket.
#[derive(Parser, Debug)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Number of GPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    gpus: u32,
    /// Kind of card
    #[arg(long, value_enum, default_value_t = Model::V100)]
    model: Model,
    /// How processes share a GPU: in turns of 2 ms, or at once by their SM shares
    #[arg(long, value_enum, default_value_t = Sharing::Exclusive)]
    mode: Sharing,
    /// Memory of each card, e.g. 16Gi [default: the card's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<Bytes>,
    /// Memory that each context takes
    #[arg(long, value_name = "BYTES", default_value = "300Mi", value_parser = parse_bytes)]
    context_memory: Bytes,
    /// Milliseconds that the creation of a context takes
    #[arg(long, value_name = "MS", default_value_t = 150)]
    context_ms: u64,
    /// Profiles of models (lines `model,batch,sm,ms`) in place of the shipped ones
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Cost table of kernels: lines `pattern ns [ns_per_block]`, `*` stands for any characters
    #[arg(long, value_name = "FILE")]
    costs: Option<PathBuf>,
    /// File for the lines that a driver would write to the kernel's log
    #[arg(long, value_name = "FILE")]
    kernel_log: Option<PathBuf>,
    /// Log in JSON lines
    #[arg(long)]
    json_logs: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Model {
    V100,
    T4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sharing {
    Exclusive,
    Mps,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log_to_stderr(arguments.json_logs);
    let options = match options(arguments) {
        Ok(options) => options,
        Err(error) => return fail(&error, BAD_USAGE),
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "simgpu: {error:#}");
    ExitCode::from(code)
}

fn serve(options: Options) -> anyhow::Result<()> {
    // Before the first thread, so that all of them leave the signals to this one.
    let stop = signals::block_termination().context("can't block signals")?;
    let socket = options.socket.clone();
    let daemon = Daemon::bind(options).with_context(|| format!("can't listen on {}", socket.display()))?;
    daemon.start().context("can't start")?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", socket.display())?;
    out.flush()?;
    stop.wait().context("can't wait for signals")?;
    daemon.stop().with_context(|| format!("can't remove {}", socket.display()))
}

fn options(arguments: Arguments) -> anyhow::Result<Options> {
    let card = match arguments.model {
        Model::V100 => Card::V100,
        Model::T4 => Card::T4,
    };
    let memory = arguments.memory.unwrap_or(card.memory);
    let mode = match arguments.mode {
        Sharing::Exclusive => Mode::Exclusive,
        Sharing::Mps => Mode::Mps,
    };
    let mut config = Config::of_memory(mode, memory);
    config.context_memory = arguments.context_memory;
    config.context_time = Nanos::from_millis(arguments.context_ms);
    let costs = costs(arguments.profiles.as_deref(), arguments.costs.as_deref())?;
    let kernel_log = arguments.kernel_log.as_deref().map(appended).transpose()?;
    Ok(Options { socket: arguments.socket, gpus: arguments.gpus, card, config, costs, kernel_log })
}

fn appended(path: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("--kernel-log is {}, allowed is a file that can be written", path.display()))
}

fn costs(profiles: Option<&Path>, table: Option<&Path>) -> anyhow::Result<Costs> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let profiles = match profiles {
        Some(path) => Profiles::parse(&read(path)?).with_context(|| path.display().to_string())?,
        None => Profiles::shipped(),
    };
    let costs = Costs::new(profiles);
    match table {
        Some(path) => costs.with_table(&read(path)?).with_context(|| path.display().to_string()),
        None => Ok(costs),
    }
}

/// Bytes as `16Gi`, `300Mi`, `64Ki` or a plain number.
fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let (digits, shift) = [("Gi", 30), ("Mi", 20), ("Ki", 10)]
        .iter()
        .find_map(|&(suffix, shift)| Some((text.strip_suffix(suffix)?, shift)))
        .unwrap_or((text, 0));
    let number: u64 =
        digits.parse().map_err(|_| "allowed is a whole number, optionally with Ki, Mi or Gi")?;
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| "allowed are less than 2^64 bytes".into())
}

fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SIMGPU_LOG").unwrap_or_else(|_| "warn".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { log.json().init() } else { log.init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_as_kubernetes_writes_it() {
        assert_eq!(parse_bytes("16Gi"), Ok(Bytes::gib(16)));
        assert_eq!(parse_bytes("300Mi"), Ok(Bytes::mib(300)));
        assert_eq!(parse_bytes("512"), Ok(Bytes(512)));
        assert!(parse_bytes("16G").is_err());
        assert!(parse_bytes("99999999999Gi").is_err());
    }
}
