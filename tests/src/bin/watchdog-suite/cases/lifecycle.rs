//! The end: what happens to requests, to the function and to the watchdog: cases 56 to 65.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use rustix::process::Signal;
use tests::wait::pause;

use super::{Case, case};
use crate::client::{Answer, Connection, Request};
use crate::upstream::Upstream;
use crate::watchdog::{Suite, Watchdog, wait_for};

pub(crate) const CASES: &[Case] = &[
    case(56, "told to stop, it is unhealthy at once, and listens for the interval", |suite| {
        let upstream = Upstream::start()?;
        let mut watchdog = suite.http(&upstream.url())?.env("healthcheck_interval", "700ms").start()?;
        let start = Instant::now();
        watchdog.signal(Signal::TERM)?;
        watchdog.until("/_/health", 503)?;
        watchdog.get("/_/ready")?.expect(503)?;
        ensure!(start.elapsed() < Duration::from_millis(600), "after {:?}", start.elapsed());
        let code = watchdog.ended()?;
        ensure!(
            code == 0 && start.elapsed() >= Duration::from_millis(700),
            "{code} after {:?}",
            start.elapsed()
        );
        Ok(())
    }),
    case(57, "requests in the interval are answered", |suite| {
        let upstream = Upstream::start()?;
        let mut watchdog = suite.http(&upstream.url())?.env("healthcheck_interval", "700ms").start()?;
        watchdog.signal(Signal::TERM)?;
        watchdog.until("/_/health", 503)?;
        watchdog.get("/x")?.expect(200)?;
        ensure!(watchdog.ended()? == 0, "its exit code should be 0");
        Ok(())
    }),
    case(58, "after the interval nobody can connect, and what is in flight is answered", |suite| {
        let upstream = Upstream::start()?;
        let mut watchdog = suite.http(&upstream.url())?.env("healthcheck_interval", "300ms").start()?;
        let (address, start) = (watchdog.address, Instant::now());
        let running = in_flight(&watchdog, "/sleep/1500");
        upstream.until_busy(1)?;
        watchdog.signal(Signal::TERM)?;
        wait_for(|| TcpStream::connect(address).is_err())?;
        ensure!(start.elapsed() < Duration::from_millis(1400), "closed after {:?}", start.elapsed());
        outcome(running)?.expect(200)?;
        ensure!(watchdog.ended()? == 0, "its exit code should be 0");
        ensure!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        Ok(())
    }),
    case(59, "what is in flight is answered by a function that knows no SIGTERM", |suite| {
        let upstream = Upstream::start()?;
        let setup =
            suite.http(&upstream.url())?.env("fprocess", "sleep 1000").env("healthcheck_interval", "100ms");
        let mut watchdog = setup.start()?;
        let running = in_flight(&watchdog, "/sleep/800");
        upstream.until_busy(1)?;
        watchdog.signal(Signal::TERM)?;
        let answer = outcome(running);
        let code = watchdog.ended()?;
        if suite.is_old {
            ensure!(answer.map_or(true, |answer| answer.status == 500) && code == 1, "exit code {code}");
            return Ok(());
        }
        answer?.expect(200)?;
        ensure!(code == 0, "exit code {code}");
        Ok(())
    }),
    case(60, "a request that takes longer than write_timeout does not hold up the end", |suite| {
        let upstream = Upstream::start()?;
        let setup =
            suite.http(&upstream.url())?.env("healthcheck_interval", "200ms").env("write_timeout", "600ms");
        let mut watchdog = setup.env("exec_timeout", "10s").start()?;
        let running = in_flight(&watchdog, "/sleep/60000");
        upstream.until_busy(1)?;
        let start = Instant::now();
        watchdog.signal(Signal::TERM)?;
        watchdog.ended()?;
        ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        drop(running.join());
        Ok(())
    }),
    case(61, "a second SIGTERM changes nothing, SIGINT ends it", |suite| {
        let upstream = Upstream::start()?;
        let mut watchdog = suite.http(&upstream.url())?.env("healthcheck_interval", "500ms").start()?;
        watchdog.signal(Signal::TERM)?;
        watchdog.until("/_/health", 503)?;
        watchdog.signal(Signal::TERM)?;
        ensure!(watchdog.ended()? == 0, "its exit code should be 0");
        let mut watchdog = suite.http(&upstream.url())?.env("healthcheck_interval", "1h").start()?;
        let start = Instant::now();
        watchdog.signal(Signal::INT)?;
        watchdog.ended()?;
        ensure!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        Ok(())
    }),
    case(62, "told to stop, it removes its lock file", |suite| {
        let upstream = Upstream::start()?;
        let mut watchdog = suite.http(&upstream.url())?.start()?;
        watchdog.signal(Signal::TERM)?;
        watchdog.ended()?;
        ensure!(!watchdog.lock_file().exists(), "the lock file is there");
        Ok(())
    }),
    case(63, "on Knative it does not wait for the interval", |suite| {
        let upstream = Upstream::start()?;
        let setup = suite.http(&upstream.url())?.env("healthcheck_interval", "1500ms");
        let mut watchdog = setup.env("K_REVISION", "f-00001").start()?;
        let start = Instant::now();
        watchdog.signal(Signal::TERM)?;
        ensure!(watchdog.ended()? == 0, "its exit code should be 0");
        let waited = start.elapsed() >= Duration::from_millis(1400);
        ensure!(waited == suite.is_old, "{:?}", start.elapsed());
        Ok(())
    }),
    case(64, "a function that ends with 3 ends the watchdog with 1", |suite| {
        let mut watchdog = ending(suite, 3)?;
        ensure!(watchdog.ended()? == 1, "its exit code should be 1");
        watchdog.line("Forked function has terminated: exit status 3").map(drop)
    }),
    case(65, "a function that ends with 0 leaves no watchdog behind", |suite| {
        let mut watchdog = ending(suite, 0)?;
        if suite.is_old {
            pause(Duration::from_millis(900));
            return watchdog.get("/_/health")?.expect(200).map(drop);
        }
        ensure!(watchdog.ended()? != 0, "its exit code should not be 0");
        Ok(())
    }),
];

/// A watchdog whose function ends soon.
fn ending(suite: &Suite, code: u8) -> Result<Watchdog> {
    let setup = suite.http("http://127.0.0.1:9")?;
    let script = setup.script(&format!("sleep 0.5; exit {code}"))?;
    setup.env("fprocess", script).start()
}

fn in_flight(watchdog: &Watchdog, target: &str) -> thread::JoinHandle<Result<Answer>> {
    let (address, request) = (watchdog.address, Request::new("GET", target));
    thread::spawn(move || {
        let mut connection = Connection::open(address)?;
        connection.send(request.bytes())?;
        connection.answer("GET")
    })
}

fn outcome(running: thread::JoinHandle<Result<Answer>>) -> Result<Answer> {
    running.join().map_err(|_| anyhow!("the client failed"))?
}
