//! Events and `WebSocket`s: cases 37 to 43.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case};
use crate::client::{Answer, Connection, Request};
use crate::upstream::{Upstream, seen_headers};
use crate::watchdog::Suite;

const EVENTS: &str = "text/event-stream";

pub(crate) const CASES: &[Case] = &[
    case(37, "events come one by one", |suite| one_by_one(suite, EVENTS)),
    case(38, "lines of JSON come one by one", |suite| one_by_one(suite, "application/x-ndjson")),
    case(39, "events are not bound by exec_timeout", |suite| {
        let answer = events(suite, EVENTS, &[("exec_timeout", "400ms")])?.expect(200)?;
        ensure!(answer.is_complete && answer.text().ends_with("data: 2\n\n"), "{answer:?}");
        Ok(())
    }),
    case(40, "events of a function that can't be reached are a 5xx", |suite| {
        // Nothing listens there, and the function is never up.
        let watchdog =
            suite.http("http://127.0.0.1:9")?.env("exec_timeout", "400ms").env("write_timeout", "2s");
        let watchdog = watchdog.start()?;
        let answer = Request::new("GET", "/x").header("Accept", EVENTS).send(watchdog.address)?;
        if suite.is_old {
            ensure!(answer.body.is_empty(), "{answer:?}");
            return answer.expect(200).map(drop);
        }
        ensure!(matches!(answer.status, 500 | 502 | 504), "{answer:?}");
        Ok(())
    }),
    case(41, "a WebSocket passes bytes both ways", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let mut connection = Connection::open(watchdog.address)?;
        connection
            .send("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        connection.answer("GET")?.expect(101)?;
        for words in ["ping", "pong"] {
            connection.send(words)?;
            ensure!(connection.until(words.as_bytes())? == words, "{words} should come back");
        }
        Ok(())
    }),
    case(42, "the function learns for whom events are, and nothing of the connection", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        let request = Request::new("GET", "/x").header("Accept", EVENTS);
        let request = request.header("Connection", "X-Mine").header("X-Mine", "1");
        let seen = request.send(watchdog.address)?.expect(200)?.json()?;
        ensure!(seen_headers(&seen, "x-forwarded-for") == ["127.0.0.1"], "{seen}");
        ensure!(seen_headers(&seen, "x-mine").is_empty(), "{seen}");
        Ok(())
    }),
    case(43, "events come from below the base path too", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&format!("{}/base/", upstream.url()))?.start()?;
        for (accept, old) in [("*/*", "/base//x"), (EVENTS, "/x")] {
            let seen = Request::new("GET", "/x").header("Accept", accept).send(watchdog.address)?.json()?;
            let wanted = if suite.is_old { old } else { "/base//x" };
            ensure!(seen["target"] == wanted, "{accept}: {seen}");
        }
        Ok(())
    }),
];

/// Three events, 300 ms apart.
fn events(suite: &Suite, accept: &str, environment: &[(&str, &str)]) -> Result<Answer> {
    let upstream = Upstream::start()?;
    let setup = suite.http(&upstream.url())?;
    let setup = environment.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    let watchdog = setup.start()?;
    watchdog.get("/x")?.expect(200)?;
    Request::new("GET", "/events/300").header("Accept", accept).send(watchdog.address)
}

fn one_by_one(suite: &Suite, accept: &str) -> Result<()> {
    let answer = events(suite, accept, &[])?.expect(200)?;
    ensure!(answer.header("transfer-encoding") == Some("chunked"), "{answer:?}");
    ensure!(answer.header("x-duration-seconds").is_none(), "{answer:?}");
    let first = answer.parts.first().context("an event")?;
    ensure!(*first < Duration::from_millis(500), "the first came after {first:?}");
    ensure!(*first + Duration::from_millis(450) < answer.took, "{first:?} of {:?}", answer.took);
    Ok(())
}
