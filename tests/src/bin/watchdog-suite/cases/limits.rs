//! Time limits, clients that go away, and the bound on concurrent requests: cases 25 to 36 and 44 to 47.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Case, case, is_about};
use crate::client::{Answer, Connection, Request};
use crate::upstream::Upstream;
use crate::watchdog::{Suite, wait_for};

pub(crate) const CASES: &[Case] = &[
    case(25, "a function that takes longer than exec_timeout is 504", |suite| {
        let answer = timed(suite, "500ms", 1500, None)?.expect(504)?;
        ensure!(is_about(answer.took, 500) && answer.body.is_empty(), "{answer:?}");
        ensure!(answer.header("x-openfaas-internal") == Some("of-watchdog"), "{answer:?}");
        ensure!(answer.header("x-duration-seconds").is_some(), "{answer:?}");
        Ok(())
    }),
    case(26, "a client can ask for less time", |suite| {
        let answer = timed(suite, "2s", 1800, Some("300ms"))?.expect(504)?;
        ensure!(is_about(answer.took, 300) && answer.took < Duration::from_millis(1700), "{answer:?}");
        Ok(())
    }),
    case(27, "a client can not ask for more time", |suite| late(suite, Some("10s"))),
    case(28, "a limit that is none is ignored", |suite| late(suite, Some("bogus"))),
    case(29, "a limit below zero is ignored", |suite| {
        if suite.is_old {
            return timed(suite, "400ms", 1000, Some("-1s"))?.expect(200).map(drop);
        }
        late(suite, Some("-1s"))
    }),
    case(30, "without exec_timeout a client can not set one", |suite| {
        timed(suite, "0", 800, Some("300ms"))?.expect(200).map(drop)
    }),
    case(31, "an integer is seconds", |suite| {
        let answer = timed(suite, "1", 3000, None)?.expect(504)?;
        ensure!(is_about(answer.took, 1000) && answer.took > Duration::from_millis(900), "{answer:?}");
        Ok(())
    }),
    case(32, "a timeout that can't be read is the default", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("read_timeout", "bogus").start()?;
        let line = watchdog.line("Timeouts: ")?;
        ensure!(line.contains("read: 30s write: 30s hard: 30s"), "{line}");
        Ok(())
    }),
    case(33, "a function that can't be reached is 500", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("exec_timeout", "5s").start()?;
        watchdog.until("/x", 200)?;
        drop(upstream);
        // Connections from before may still be served.
        wait_for(|| watchdog.get("/x").is_ok_and(|answer| answer.status != 200))?;
        let answer = watchdog.get("/x")?.expect(500)?;
        ensure!(
            answer.header("x-openfaas-internal") == Some("of-watchdog") && answer.body.is_empty(),
            "{answer:?}"
        );
        Ok(())
    }),
    case(34, "a body that comes too slowly ends the request and its connection", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("read_timeout", "500ms").start()?;
        let mut connection = Connection::open(watchdog.address)?;
        connection.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhi")?;
        let answer = connection.answer("POST")?;
        ensure!(matches!(answer.status, 400..=499 | 504) && is_about(answer.took, 500), "{answer:?}");
        connection.rest().map(drop).context("the connection should end")
    }),
    case(35, "a function that takes longer than write_timeout is 504", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("write_timeout", "500ms").start()?;
        let answer = watchdog.get("/sleep/1200");
        if suite.is_old {
            ensure!(answer.is_err(), "the reply should be empty");
            return Ok(());
        }
        let answer = answer?.expect(504)?;
        ensure!(is_about(answer.took, 500), "{answer:?}");
        Ok(())
    }),
    case(36, "a client that goes away takes its request with it", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let connection = Connection::open(watchdog.address)?;
        connection.send(Request::new("GET", "/sleep/60000").bytes())?;
        upstream.until_busy(1)?;
        drop(connection);
        let start = Instant::now();
        wait_for(|| upstream.aborted.load(Ordering::SeqCst) == 1)?;
        ensure!(start.elapsed() < Duration::from_secs(2), "after {:?}", start.elapsed());
        wait_for(|| watchdog.metrics().is_ok_and(|text| text.contains("http_requests_total{")))?;
        let text = watchdog.metrics()?;
        ensure!(!text.contains("http_requests_total{code=\"200\""), "{text}");
        Ok(())
    }),
    case(44, "one request too many is 429 in known words", |suite| {
        at_limit(suite, |watchdog| {
            let answer = watchdog.get("/x")?.expect(429)?;
            let words = "Concurrent request limit exceeded. Max concurrent requests: 1\n";
            ensure!(answer.text() == words, "{answer:?}");
            ensure!(
                answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")),
                "{answer:?}"
            );
            ensure!(answer.header("x-openfaas-internal") == Some("faas-middleware"), "{answer:?}");
            Ok(())
        })
    }),
    case(45, "at its limit it is healthy and not ready", |suite| {
        at_limit(suite, |watchdog| {
            let ready = watchdog.get("/_/ready")?.expect(429)?;
            ensure!(ready.body.is_empty(), "{ready:?}");
            watchdog.get("/_/health")?.expect(200).map(drop)
        })
    }),
    case(46, "what is refused is counted", |suite| {
        at_limit(suite, |watchdog| {
            watchdog.get("/x")?.expect(429)?;
            watchdog.until_metric("http_requests_total{code=\"429\",method=\"get\"} 1")
        })
    }),
    case(47, "a slot that is free again is used again", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("max_inflight", 1).start()?;
        for _ in 0..20 {
            watchdog.get("/x")?.expect(200)?;
        }
        Ok(())
    }),
];

/// The answer to a request that takes `millis`.
fn timed(suite: &Suite, exec_timeout: &str, millis: u64, asked: Option<&str>) -> Result<Answer> {
    let upstream = Upstream::start()?;
    let watchdog = suite.http(&upstream.url())?.env("exec_timeout", exec_timeout).start()?;
    watchdog.get("/x")?.expect(200)?;
    let request = Request::new("GET", &format!("/sleep/{millis}"));
    let request = asked.into_iter().fold(request, |request, asked| request.header("X-Timeout", asked));
    request.send(watchdog.address)
}

/// The configured limit holds, whatever the client asks for.
fn late(suite: &Suite, asked: Option<&str>) -> Result<()> {
    let answer = timed(suite, "500ms", 3000, asked)?.expect(504)?;
    ensure!(is_about(answer.took, 500), "{answer:?}");
    Ok(())
}

/// Looks at a watchdog that answers as many requests as it may.
fn at_limit(suite: &Suite, check: fn(&crate::watchdog::Watchdog) -> Result<()>) -> Result<()> {
    let upstream = Upstream::start()?;
    let watchdog = suite.http(&upstream.url())?.env("max_inflight", 1).start()?;
    let address = watchdog.address;
    let held = thread::spawn(move || -> Result<Connection> {
        let connection = Connection::open(address)?;
        connection.send(Request::new("GET", "/sleep/60000").bytes())?;
        Ok(connection)
    });
    upstream.until_busy(1)?;
    let outcome = check(&watchdog);
    drop(held.join());
    outcome
}
