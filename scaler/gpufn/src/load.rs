//! `gpufn load`: open-loop load from a trace.
//!
//! Owns the command line and what is printed; times come from the schedule, requests go through the sender.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use gpu_share::invalid::Invalid;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use self::schedule::{Arrivals, schedule};
use self::send::{Load, Outcome, Planned, send};
use self::summary::Summary;
use self::trace::Traces;
use crate::figures::number;

pub mod schedule;
pub mod send;
pub mod summary;
pub mod trace;

/// Most requests of one load; their times are all made before it starts.
const MOST_REQUESTS: f64 = 20e6;

/// Arguments of `gpufn load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Gateway that the functions are behind.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "OPENFAAS_URL")]
    gateway: String,
    /// Function and the load on it; TRANSFORM is shift=SECONDS, scale=FACTOR, invert or burst, and may be repeated.
    #[arg(long = "function", value_name = "NAME=TRACE[:TRANSFORM]", required = true)]
    functions: Vec<String>,
    /// CSV file with traces (columns `trace,shape,step,start_s,duration_s,rps`); the shipped ones are known as well.
    #[arg(long, visible_alias = "data", value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Length of a second of the trace; rates stay as they are.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = time_scale)]
    time_scale: f64,
    /// How requests follow each other.
    #[arg(long, value_enum, default_value_t)]
    arrivals: Arrivals,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest wait for an answer.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Method of the requests.
    #[arg(long, default_value = "POST")]
    method: http::Method,
    /// Body of the requests.
    #[arg(long, default_value = "")]
    body: String,
    /// Bound beyond which a request counts as late.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    slo: Option<Duration>,
    /// Write one row for each request to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // A command owns its arguments; all of them are run alike.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let traces = read_traces(args.traces.as_deref())?;
    let (names, requests, seconds) = plan(&args, &traces)?;
    let urls = names.iter().map(|name| function_url(&args.gateway, name)).collect();
    let load = Load {
        urls,
        requests,
        timeout: args.timeout,
        method: args.method.clone(),
        body: Bytes::from(args.body.clone()),
    };
    let (outcomes, took) = runtime()?.block_on(send_and_show(load))?;
    if let Some(path) = &args.csv {
        write_rows(path, &names, &outcomes).with_context(|| format!("can't write {}", path.display()))?;
    }
    // A load that was ended early has its rate over the time it ran.
    let seconds = seconds.min(took.as_secs_f64());
    let of = |(index, name): (usize, &String)| {
        let outcomes = outcomes.iter().filter(move |outcome| outcome.target == index);
        Summary::of(name, &outcomes, args.slo, seconds)
    };
    let summaries: Vec<_> = names.iter().enumerate().map(of).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&summaries)?)?;
    } else {
        write!(out, "{}", summary::text(&summaries))?;
    }
    Ok(if outcomes.iter().any(Outcome::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The shipped traces, and those of `path` over them.
pub fn read_traces(path: Option<&Path>) -> anyhow::Result<Traces> {
    let shipped = Traces::shipped()?;
    let Some(path) = path else { return Ok(shipped) };
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let given = Traces::parse(&text).with_context(|| path.display().to_string())?;
    Ok(shipped.with(given))
}

/// Requests of all functions by rising time: the times of each, and the index of the function.
pub fn merge(times: impl IntoIterator<Item = Vec<Duration>>) -> Vec<Planned> {
    let of =
        |(target, times): (usize, Vec<Duration>)| times.into_iter().map(move |at| Planned { at, target });
    let mut all: Vec<_> = times.into_iter().enumerate().flat_map(of).collect();
    all.sort_by_key(|request| request.at);
    all
}

/// Seed of the function with `index`, so that two functions on one trace are not in step.
pub fn seed_of(seed: u64, index: usize) -> u64 {
    seed.wrapping_add(u64::try_from(index).unwrap_or_default().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The functions, their requests, and how long they go on.
fn plan(args: &Args, traces: &Traces) -> Result<(Vec<String>, Vec<Planned>, f64), Invalid> {
    let (mut names, mut times, mut seconds, mut total) = (Vec::new(), Vec::new(), 0.0_f64, 0.0);
    for (index, text) in args.functions.iter().enumerate() {
        let (name, spec) = function(text)?;
        let trace = traces.find(spec)?;
        total += trace.requests() * args.time_scale;
        if total > MOST_REQUESTS {
            let allowed = format!("loads of at most {MOST_REQUESTS} requests in all");
            return Err(Invalid::new("function", text, allowed));
        }
        seconds = seconds.max(trace.seconds() * args.time_scale);
        times.push(schedule(&trace, args.time_scale, args.arrivals, seed_of(args.seed, index)));
        names.push(name.to_string());
    }
    Ok((names, merge(times), seconds))
}

/// Name of the function and its trace in `NAME=TRACE[:TRANSFORM]`.
fn function(text: &str) -> Result<(&str, &str), Invalid> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.split_once('=').filter(|(name, _)| !name.is_empty() && name.bytes().all(letter)).ok_or_else(|| {
        Invalid::new("function", text, "NAME=TRACE[:TRANSFORM], NAME of letters, digits, dashes and dots")
    })
}

/// Where the function called `name` is behind `gateway`.
pub fn function_url(gateway: &str, name: &str) -> String {
    format!("{}/function/{name}", gateway.trim_end_matches('/'))
}

/// The async runtime of a command.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// What a user at the terminal wants of a command that goes on for long.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// To come to its end in order; the first SIGINT or SIGTERM.
    pub stop: CancellationToken,
    /// To end now; the second one.
    pub now: CancellationToken,
}

impl Interrupt {
    /// Listens for signals from now on.
    pub fn on_signal() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let Self { stop, now } = interrupt.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::spawn(async move {
            for token in [stop, now] {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(interrupt)
    }
}

/// A bar over `total` requests; hidden where nobody looks.
pub fn progress(total: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests  {msg}  {elapsed}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn send_and_show(load: Load) -> anyhow::Result<(Vec<Outcome>, Duration)> {
    let interrupt = Interrupt::on_signal()?;
    let bar = progress(load.requests.len());
    let (mut failed, start) = (0, std::time::Instant::now());
    let outcomes = send(load, &interrupt, |outcome| {
        bar.inc(1);
        if !outcome.is_ok() {
            failed += 1;
            bar.set_message(format!("{failed} failed"));
        }
    })
    .await?;
    bar.finish_and_clear();
    Ok((outcomes, start.elapsed()))
}

/// Writes one row for each of `outcomes`.
pub fn write_rows(path: &Path, names: &[String], outcomes: &[Outcome]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    writeln!(file, "function,at_s,lag_ms,latency_ms,status,failure")?;
    for outcome in outcomes {
        let (status, failure) = match outcome.answer {
            Ok(status) => (status.to_string(), ""),
            Err(failure) => (String::new(), failure.word()),
        };
        let name = names.get(outcome.target).map_or("", String::as_str);
        let Outcome { at_s, lag_ms, latency_ms, .. } = outcome;
        writeln!(file, "{name},{at_s:.6},{lag_ms:.3},{latency_ms:.3},{status},{failure}")?;
    }
    file.flush()
}

/// `10s`, `250ms` or `1m`.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    const SUFFIXES: [(&str, f64); 3] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let seconds = SUFFIXES.iter().find_map(|(suffix, unit)| {
        let number: f64 = text.strip_suffix(suffix)?.trim().parse().ok()?;
        Some(number * unit).filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0)
    });
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| Invalid::new("duration", text, "a number and ms, s or m, above 0 and at most a day"))
}

fn time_scale(text: &str) -> Result<f64, Invalid> {
    let factor = text.parse().ok().filter(|factor| (0.001..=1000.0).contains(factor));
    factor.ok_or_else(|| Invalid::new("time-scale", text, "a number from 0.001 to 1000"))
}

/// Share of `part` in `whole`, percent; nothing of nothing is 0.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * number(part) / number(whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_and_its_trace_are_told_apart() {
        assert_eq!(function("a.ns=t:shift=5").unwrap(), ("a.ns", "t:shift=5"));
        for text in ["a", "=t", "a/b=t", ""] {
            let error = function(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("function is {text:?}")), "{error}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        for text in ["5", "0s", "-1s", "nans", "s", "infs"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_of_all_functions_are_in_the_order_of_their_times() {
        let ms = Duration::from_millis;
        let merged = merge([vec![ms(1), ms(5)], vec![ms(2)]]);
        let order: Vec<_> = merged.iter().map(|request| (request.at, request.target)).collect();
        assert_eq!(order, [(ms(1), 0), (ms(2), 1), (ms(5), 0)]);
        assert_ne!(seed_of(1, 0), seed_of(1, 1));
    }

    #[test]
    fn rows_of_requests_are_written_one_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        let ok = Outcome { target: 0, at_s: 1.5, lag_ms: 0.02, latency_ms: 12.5, answer: Ok(200) };
        let failed = Outcome { answer: Err(send::Failure::Connect), ..ok };
        write_rows(&path, &["f".into()], &[ok, failed]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(rows, ["f,1.500000,0.020,12.500,200,", "f,1.500000,0.020,12.500,,connect"]);
    }
}
