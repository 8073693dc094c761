//! No byte lost: random bodies through every mode, and what comes back compared by its hash.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use gpufn::audit::bar;
use gpufn::figures::{Bar, Figure, Figures, Machine};
use indicatif::ProgressBar;
use tempfile::TempDir;
use tests::command;
use tests::server::Server;

use crate::Common;
use crate::body::{Body, Numbers};
use crate::client::{Answer, Connection, Request, Sent};
use crate::mode::{MESSAGE, Mode, PARAMETERS};

/// What is called a whole run.
const WHOLE: (u64, u64) = (10_000, 50_000_000);

/// Failures after which a mode is given up: each may have cost a deadline.
const MOST_FAILURES: usize = 20;

/// Files of mode `static`, of which parts are asked too.
const FILES: u64 = 60;

/// How many bodies, and how large.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Bodies through each mode.
    #[arg(long, default_value_t = 200)]
    bodies: u64,
    /// Most bytes of a body.
    #[arg(long, default_value_t = 5_000_000)]
    largest: u64,
    /// All: 10,000 bodies of up to 50 MB.
    #[arg(long, conflicts_with_all = ["bodies", "largest"])]
    full: bool,
    /// Do not wait for the answer's beginning before a body's last byte, for watchdogs that hold small answers back.
    #[arg(long)]
    no_hold: bool,
}

/// What went through a mode.
#[derive(Debug, Default)]
struct Seen {
    bodies: AtomicU64,
    there: AtomicU64,
    back: AtomicU64,
    early: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Seen {
    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether no byte was lost.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let (bodies, largest) = if options.full { WHOLE } else { (options.bodies, options.largest) };
    let kind = if (bodies, largest) == WHOLE { "the whole run" } else { "a short run, --full for all" };
    println!("{bodies} bodies of 0 to {largest} bytes through each mode: {kind}");
    let files = Files::new(largest)?;
    let mut figures = Vec::new();
    for mode in &options.common.modes {
        let watchdog = mode.start(&options.common, files.folder.path()).with_context(|| mode.to_string())?;
        let (start, seen) = (Instant::now(), Seen::default());
        let load = Load { mode: *mode, bodies, largest, files: &files, holds: !options.no_hold };
        let progress = bar(usize::try_from(bodies)?);
        progress.set_message(mode.to_string());
        load.run(&watchdog, options.common.clients, &seen, &progress);
        progress.finish_and_clear();
        let failures = seen.failures();
        let [done, there, back, early] =
            [&seen.bodies, &seen.there, &seen.back, &seen.early].map(|count| count.load(Ordering::Relaxed));
        let how = format!(
            "of {done} bodies of up to {largest} bytes, {:.1} MB there and {:.1} MB back in {:.0} s; {early} requests ended \
             only after their answer had begun",
            megabytes(there),
            megabytes(back),
            start.elapsed().as_secs_f64()
        );
        println!("{mode:<12} {} lost {how}", failures.len());
        failures.iter().take(5).for_each(|failure| println!("    {failure}"));
        // A number of failures is small.
        #[allow(clippy::cast_precision_loss)]
        let lost = failures.len() as f64;
        figures.push(Figure::new(format!("bodies-lost-{mode}"), lost, "", Bar::AtMost(0.0), how));
    }
    let figures = Figures { name: "watchdog-bodies", figures, machine: Machine::here("") };
    command::record(&figures, &options.common.out)
}

#[allow(clippy::cast_precision_loss)] // Shown with one decimal.
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Files that look random.
#[derive(Debug)]
struct Files {
    folder: TempDir,
    bodies: Vec<Body>,
}

impl Files {
    fn new(largest: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut numbers = Numbers::new(11);
        let bodies: Vec<_> =
            (0..FILES).map(|number| Body::bytes(number, size(&mut numbers, number, largest))).collect();
        for (number, body) in bodies.iter().enumerate() {
            let mut file = fs::File::create(folder.path().join(format!("{number}.bin")))?;
            io::copy(&mut body.read(), &mut file)?;
        }
        Ok(Self { folder, bodies })
    }
}

/// The first is the largest; most are small, and some are of any size.
fn size(numbers: &mut Numbers, number: u64, largest: u64) -> u64 {
    if number == 0 {
        return largest;
    }
    let most = match numbers.below(20) {
        0 => 0,
        1..=14 => 20_000,
        15..=18 => 300_000,
        _ => largest,
    };
    numbers.below(most.min(largest) + 1)
}

/// Bodies through one mode.
struct Load<'a> {
    mode: Mode,
    bodies: u64,
    largest: u64,
    files: &'a Files,
    holds: bool,
}

impl Load<'_> {
    fn run(&self, watchdog: &Server, clients: usize, seen: &Seen, progress: &ProgressBar) {
        let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..clients.max(1) {
                scope.spawn(|| {
                    let mut connection = None;
                    while !is_over.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.bodies {
                            return;
                        }
                        if let Err(error) = self.one(watchdog, &mut connection, number, seen) {
                            connection = None;
                            let mut failures = seen.failures.lock().unwrap_or_else(PoisonError::into_inner);
                            failures.push(format!("body {number}: {error:#}"));
                            is_over.store(failures.len() >= MOST_FAILURES, Ordering::Relaxed);
                        }
                        seen.bodies.fetch_add(1, Ordering::Relaxed);
                        progress.inc(1);
                    }
                });
            }
        });
    }

    fn one(&self, watchdog: &Server, open: &mut Option<Connection>, number: u64, seen: &Seen) -> Result<()> {
        let mut numbers = Numbers::new(number);
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => Connection::open(watchdog.address())?,
        };
        let (answer, sent) = match self.mode {
            Mode::Static => (self.file(&mut connection, &mut numbers)?, 0),
            mode if mode.is_action() => self.activation(&mut connection, &mut numbers, number)?,
            _ => self.echo(&mut connection, &mut numbers, number)?,
        };
        seen.there.fetch_add(sent, Ordering::Relaxed);
        seen.back.fetch_add(answer.length, Ordering::Relaxed);
        seen.early.fetch_add(answer.is_early.into(), Ordering::Relaxed);
        *open = Some(connection).filter(|_| answer.is_reusable);
        Ok(())
    }

    fn echo(&self, connection: &mut Connection, numbers: &mut Numbers, number: u64) -> Result<(Answer, u64)> {
        let body = Body::bytes(numbers.next(), size(numbers, number, self.largest));
        let holds_last =
            self.holds && self.mode.can_be_early() && body.length() >= 2 && numbers.below(4) == 0;
        let chunks = (numbers.below(2) == 0).then(|| numbers.clone());
        let sent = Sent { body: &body, chunks, holds_last };
        let answer = connection.exchange(&Request { body: Some(sent), ..Request::new("POST", "/back") })?;
        check(&answer, 200, &body, 0..body.length())?;
        Ok((answer, body.length()))
    }

    /// An action gives its parameters back; one that reads lines, the whole message.
    fn activation(
        &self,
        connection: &mut Connection,
        numbers: &mut Numbers,
        number: u64,
    ) -> Result<(Answer, u64)> {
        let around = (MESSAGE.0.len() + MESSAGE.1.len()) as u64;
        let length = size(numbers, number, self.largest).saturating_sub(around);
        let seed = numbers.next();
        let body = Body::text(seed, length, MESSAGE.0, MESSAGE.1);
        let chunks = (numbers.below(2) == 0).then(|| numbers.clone());
        let sent = Sent { body: &body, chunks, holds_last: false };
        let answer = connection.exchange(&Request { body: Some(sent), ..Request::new("POST", "/run") })?;
        let result = if self.mode == Mode::Actionloop {
            body.clone()
        } else {
            Body::text(seed, length, PARAMETERS.0, PARAMETERS.1)
        };
        check(&answer, 200, &result, 0..result.length())?;
        Ok((answer, body.length()))
    }

    /// A file, or a part of it.
    fn file(&self, connection: &mut Connection, numbers: &mut Numbers) -> Result<Answer> {
        let number = numbers.below(FILES);
        let body = self.files.bodies.get(usize::try_from(number)?).context("a file")?;
        let target = format!("/{number}.bin");
        if body.length() == 0 || numbers.below(2) == 0 {
            let answer = connection.exchange(&Request::new("GET", &target))?;
            check(&answer, 200, body, 0..body.length())?;
            return Ok(answer);
        }
        let from = numbers.below(body.length());
        let to = from + numbers.below(body.length() - from);
        let headers = format!("Range: bytes={from}-{to}\r\n");
        let answer = connection.exchange(&Request { headers: &headers, ..Request::new("GET", &target) })?;
        check(&answer, 206, body, from..to + 1)?;
        Ok(answer)
    }
}

fn check(answer: &Answer, status: u16, body: &Body, range: std::ops::Range<u64>) -> Result<()> {
    ensure!(answer.status == status, "status is {}, wanted {status}", answer.status);
    let length = range.end - range.start;
    ensure!(answer.length == length, "{} bytes of {length} came back", answer.length);
    ensure!(
        answer.digest.as_ref() == body.read_part(range).digest().as_ref(),
        "{length} bytes came back changed"
    );
    Ok(())
}
