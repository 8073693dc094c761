//! The black-box suite of watchdogs: takes any program that wants to be one, and says which cases it passes. It knows
//! two forms of each case where of-watchdog's behaviour is a fault that is mended here.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::cases::{Case, ELSEWHERE, all};
use crate::watchdog::Suite;

mod cases;
mod client;
mod upstream;
mod watchdog;

/// Runs the numbered cases against a watchdog.
#[derive(Debug, Parser)]
struct Options {
    /// The watchdog's program.
    program: PathBuf,
    /// Expect of-watchdog's behaviour where it differs.
    #[arg(long)]
    old: bool,
    /// A variable for every watchdog, such as compat=of-watchdog.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    environment: Vec<(String, String)>,
    /// Only these cases.
    #[arg(long, value_delimiter = ',')]
    only: Vec<u16>,
    /// Cases at once; 1 for a watchdog whose metrics have a fixed port.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("allowed is NAME=VALUE")?;
    Ok((name.to_string(), value.to_string()))
}

/// How a case went.
struct Outcome {
    case: Case,
    failure: Option<String>,
    took: Duration,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let suite = Suite { program: options.program, is_old: options.old, environment: options.environment };
    let is_wanted = |case: &Case| options.only.is_empty() || options.only.contains(&case.number);
    let cases: Vec<Case> = all().into_iter().filter(is_wanted).collect();
    let start = Instant::now();
    let outcomes = run(&suite, &cases, options.jobs.max(1));
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    for Outcome { case, failure, took } in &outcomes {
        let verdict = if failure.is_some() { "FAIL" } else { "ok" };
        println!("{:>3} {verdict:<4} {:>6.2}s  {}", case.number, took.as_secs_f64(), case.title);
        if let Some(failure) = failure {
            println!("             {failure}");
        }
    }
    if options.only.is_empty() {
        for (number, place) in ELSEWHERE {
            println!("{number:>3} --            {place}");
        }
    }
    let passed = outcomes.len() - failed;
    println!("{passed} passed, {failed} failed, in {:.1} s", start.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs `cases`, `jobs` at once, and gives the outcomes in their order.
fn run(suite: &Suite, cases: &[Case], jobs: usize) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let failure = (case.check)(suite).err().map(|error| format!("{error:#}"));
                    let outcome = Outcome { case: *case, failure, took: start.elapsed() };
                    outcomes.lock().map(|mut outcomes| outcomes.push(outcome)).unwrap_or_default();
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|outcome| outcome.case.number);
    outcomes
}
