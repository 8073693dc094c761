//! A day's worth of requests: what a watchdog uses at their end must be what it used at their beginning.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gpufn::audit::bar;
use gpufn::figures::{Bar, Figure, Figures, Machine};
use indicatif::ProgressBar;
use tests::command;
use tests::server::{Server, Usage};
use tests::wait::pause;

use crate::Common;
use crate::body::{Body, Numbers};
use crate::client::{Answer, Connection, Request, Sent};
use crate::function::WORDS;
use crate::mode::{MESSAGE, Mode, PARAMETERS};

/// Between two looks, and how many of them there are at most in a time that is longer.
const LOOK: Duration = Duration::from_millis(5);
const MOST_LOOKS: u32 = 5_000;

/// Longest time for connections and processes to go once the load has ended.
const REST: Duration = Duration::from_secs(15);

/// Failures after which a mode is given up.
const MOST_FAILURES: usize = 20;

/// Fewest requests that show anything, and where each has a process.
const FEWEST: u64 = 50_000;
const FEWEST_PROCESSES: u64 = 2_000;

/// Growth that is allowed from the second tenth of the requests to the last one: of resident memory in MiB, of
/// descriptors under load, and of threads.
const MEMORY: f64 = 2.0;
const DESCRIPTORS: f64 = 16.0;
const THREADS: f64 = 2.0;

/// What may be left at rest: descriptors beyond those at the start and two for each client (connections to the function
/// that are kept), and processes.
const LEFT_DESCRIPTORS: f64 = 8.0;
const LEFT_PROCESSES: f64 = 0.0;

/// How many requests.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Requests in mode http; a 50th of them where there are lines or files, a 500th where each has a process.
    #[arg(long, default_value_t = 50_000_000)]
    requests: u64,
}

/// What a mode used while it was loaded.
#[derive(Debug, Default)]
struct Looks {
    before: Usage,
    /// With the number of requests that had been answered.
    during: Vec<(u64, Usage)>,
    after: Usage,
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    done: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Whether nothing grew.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("words"), WORDS)?;
    let mut figures = Vec::new();
    for mode in &options.common.modes {
        let requests = match mode {
            Mode::Http => options.requests,
            mode if mode.forks() => (options.requests / 500).max(FEWEST_PROCESSES),
            _ => (options.requests / 50).max(FEWEST),
        };
        figures.extend(soak(options, *mode, requests, files.path()).with_context(|| mode.to_string())?);
    }
    let figures = Figures { name: "watchdog-soak", figures, machine: Machine::here("") };
    command::record(&figures, &options.common.out)
}

fn soak(options: &Options, mode: Mode, requests: u64, files: &Path) -> Result<Vec<Figure>> {
    let (common, seen, mut looks) = (&options.common, Seen::default(), Looks::default());
    let watchdog = mode.start(common, files)?;
    let (start, next, is_over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let progress = bar(usize::try_from(requests)?);
    progress.set_message(mode.to_string());
    looks.before = watchdog.usage()?;
    looks.during = thread::scope(|scope| {
        let looking = scope.spawn(|| look(&watchdog, &seen, &progress, &is_over));
        let clients: Vec<_> = (0..common.clients.max(1))
            .map(|_| scope.spawn(|| client(mode, &watchdog, requests, &next, &seen)))
            .collect();
        for client in clients {
            drop(client.join());
        }
        is_over.store(true, Ordering::Relaxed);
        looking.join().unwrap_or_default()
    });
    progress.finish_and_clear();
    let took = start.elapsed().as_secs_f64();
    let kept = looks.before.descriptors + 2 * common.clients as u64;
    looks.after = at_rest(&watchdog, kept)?;
    let failures = seen.failures.lock().unwrap_or_else(PoisonError::into_inner);
    failures.iter().take(5).for_each(|failure| println!("    {failure}"));
    println!("{mode}: {requests} requests in {took:.0} s, {} failed", failures.len());
    Ok(judge(mode, requests, kept, &looks, failures.len()))
}

/// Looks until the load is over.
fn look(watchdog: &Server, seen: &Seen, progress: &ProgressBar, is_over: &AtomicBool) -> Vec<(u64, Usage)> {
    let (mut looks, start) = (Vec::new(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        // One that has ended fails its requests.
        let Ok(usage) = watchdog.usage() else { return looks };
        let done = seen.done.load(Ordering::Relaxed);
        progress.set_position(done);
        looks.push((done, usage));
        pause(LOOK.max(start.elapsed() / MOST_LOOKS));
    }
    looks
}

/// What is used when nothing is asked any more, after a while if more than `kept` descriptors are open.
fn at_rest(watchdog: &Server, kept: u64) -> Result<Usage> {
    let start = Instant::now();
    loop {
        let usage = watchdog.usage()?;
        if (usage.descriptors <= kept && usage.children <= 1) || start.elapsed() > REST {
            return Ok(usage);
        }
        pause(LOOK);
    }
}

fn judge(mode: Mode, requests: u64, kept: u64, looks: &Looks, failed: usize) -> Vec<Figure> {
    let tenth = |from: u64| {
        let range = requests * from / 10..requests * (from + 1) / 10;
        looks.during.iter().filter(move |(done, _)| range.contains(done)).map(|(_, usage)| *usage)
    };
    let grown = |of: fn(&Usage) -> u64| {
        let (first, last) =
            (middle(tenth(1).map(|usage| of(&usage))), middle(tenth(9).map(|usage| of(&usage))));
        // Without a look there is nothing to compare.
        let growth = first.zip(last).map_or(f64::NAN, |(first, last)| last - first);
        (growth, first.unwrap_or_default(), last.unwrap_or_default())
    };
    let (memory, first, last) = grown(|usage| usage.memory);
    let count = |figure: u64| f64::from(u32::try_from(figure).unwrap_or(u32::MAX));
    let how = format!(
        "median VmRSS in the 2nd and in the 10th tenth of {requests} requests: {:.1} and {:.1} MiB; at the start {:.1}",
        first / 1024.0,
        last / 1024.0,
        count(looks.before.memory) / 1024.0
    );
    let figure = |id: &str, value: f64, unit, most: f64, how: String| {
        Figure::new(format!("{mode}-{id}"), value, unit, Bar::AtMost(most), how)
    };
    let (descriptors, first_open, last_open) = grown(|usage| usage.descriptors);
    let (threads, first_threads, last_threads) = grown(|usage| usage.threads);
    let most_left = count(kept) + LEFT_DESCRIPTORS;
    let before = looks.before;
    vec![
        figure("memory-growth", memory / 1024.0, "MiB", MEMORY, how),
        figure(
            "descriptors-growth",
            descriptors,
            "",
            DESCRIPTORS,
            format!("{first_open} and {last_open} under load"),
        ),
        figure(
            "threads-growth",
            threads,
            "",
            THREADS,
            format!("{first_threads} and {last_threads} under load"),
        ),
        figure(
            "descriptors-left",
            count(looks.after.descriptors),
            "",
            most_left,
            format!("{} before", before.descriptors),
        ),
        figure(
            "processes-left",
            count(looks.after.children) - count(before.children),
            "",
            LEFT_PROCESSES,
            format!("{} before", before.children),
        ),
        figure("requests-failed", count(failed as u64), "", 0.0, format!("of {requests}")),
    ]
}

/// The middle one of `values`.
fn middle(values: impl Iterator<Item = u64>) -> Option<f64> {
    tests::load::median(values.map(|value| f64::from(u32::try_from(value).unwrap_or(u32::MAX))))
}

fn client(mode: Mode, watchdog: &Server, requests: u64, next: &AtomicU64, seen: &Seen) {
    let mut connection = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= requests {
            return;
        }
        if let Err(error) = one(mode, watchdog, &mut connection, number) {
            connection = None;
            let mut failures = seen.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("request {number}: {error:#}"));
            if failures.len() >= MOST_FAILURES {
                next.store(requests, Ordering::Relaxed);
            }
        }
        seen.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// One request: most are small, and every kind comes again and again.
fn one(mode: Mode, watchdog: &Server, open: &mut Option<Connection>, number: u64) -> Result<()> {
    let mut numbers = Numbers::new(number);
    let kind = numbers.below(4096);
    let mut connection = match open.take() {
        Some(connection) => connection,
        None => Connection::open(watchdog.address())?,
    };
    let target = format!("/path-{number}?query={number}");
    let answer = match (mode, kind) {
        (_, 0..4) => return leave(mode, &mut connection),
        (Mode::Http, 4) => return web_socket(&mut connection, number),
        (Mode::Static, 4..64) => expect(connection.exchange(&Request::new("GET", &target))?, 404)?,
        (Mode::Static, _) => whole(connection.exchange(&Request::new("GET", "/words"))?)?,
        (mode, _) if mode.is_action() => activate(mode, &mut connection, &mut numbers)?,
        (mode, kind) if mode.is_served() => match kind {
            4..12 => back(&mut connection, &mut numbers, 1 << 20)?,
            12..20 => expect(connection.exchange(&Request::new("GET", "/events/20"))?, 200)?,
            20..84 => {
                let status = [404, 500, 503][usize::try_from(kind % 3)?];
                expect(connection.exchange(&Request::new("GET", &format!("/status/{status}")))?, status)?
            }
            84..100 => expect(connection.exchange(&Request::new(&format!("METHOD{number}"), &target))?, 200)?,
            100..700 => back(&mut connection, &mut numbers, 16 << 10)?,
            _ => whole(connection.exchange(&Request::new("GET", &target))?)?,
        },
        (_, kind) => back(&mut connection, &mut numbers, if kind < 12 { 1 << 20 } else { 16 << 10 })?,
    };
    // Some clients come only once.
    *open = Some(connection).filter(|_| answer.is_reusable && kind % 64 != 63);
    Ok(())
}

fn expect(answer: Answer, status: u16) -> Result<Answer> {
    ensure!(answer.status == status, "status is {}, wanted {status}", answer.status);
    Ok(answer)
}

fn whole(answer: Answer) -> Result<Answer> {
    ensure!(answer.length == WORDS.len() as u64, "{} bytes of {} came", answer.length, WORDS.len());
    expect(answer, 200)
}

/// A body that comes back, with its length or in chunks.
fn back(connection: &mut Connection, numbers: &mut Numbers, largest: u64) -> Result<Answer> {
    let body = Body::bytes(numbers.next(), numbers.below(largest));
    let chunks = (numbers.below(2) == 0).then(|| numbers.clone());
    let sent = Sent { body: &body, chunks, holds_last: false };
    let answer = connection.exchange(&Request { body: Some(sent), ..Request::new("POST", "/back") })?;
    is_same(&answer, &body)?;
    expect(answer, 200)
}

fn activate(mode: Mode, connection: &mut Connection, numbers: &mut Numbers) -> Result<Answer> {
    let (seed, length) = (numbers.next(), numbers.below(16 << 10));
    let body = Body::text(seed, length, MESSAGE.0, MESSAGE.1);
    let sent = Sent { body: &body, chunks: None, holds_last: false };
    let answer = connection.exchange(&Request { body: Some(sent), ..Request::new("POST", "/run") })?;
    let around = if mode == Mode::Actionloop { MESSAGE } else { PARAMETERS };
    is_same(&answer, &Body::text(seed, length, around.0, around.1))?;
    expect(answer, 200)
}

fn is_same(answer: &Answer, body: &Body) -> Result<()> {
    let is_same = answer.digest.as_ref() == body.read().digest().as_ref();
    ensure!(is_same, "status {}, {} bytes of {} came back", answer.status, answer.length, body.length());
    Ok(())
}

/// A client that goes away before it has its answer.
fn leave(mode: Mode, connection: &mut Connection) -> Result<()> {
    let (method, target) = match mode {
        Mode::Static => ("GET", "/words"),
        mode if mode.is_action() => ("POST", "/run"),
        _ => ("POST", "/slow"),
    };
    // Processes read to the end of a body, which never comes.
    let headers = if mode.is_served() || mode == Mode::Static { "" } else { "Content-Length: 10\r\n" };
    connection.send(&Request { headers, ..Request::new(method, target) })
}

/// A connection that becomes something else.
fn web_socket(connection: &mut Connection, number: u64) -> Result<()> {
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: aaaaaaaaaaaaaaaaaaaaaA==\r\n";
    let answer = connection.exchange(&Request { headers, ..Request::new("GET", "/socket") })?;
    expect(answer, 101)?;
    let (writer, reader) = connection.stream();
    let (sent, mut got) = (number.to_le_bytes(), [0; 8]);
    writer.write_all(&sent)?;
    reader.read_exact(&mut got).context("nothing comes through the socket")?;
    ensure!(sent == got, "{got:?} came through the socket, {sent:?} was sent");
    Ok(())
}
