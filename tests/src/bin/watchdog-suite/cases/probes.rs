//! Health, readiness and the lock file: cases 1 to 7 and 48 to 51.

use anyhow::{Result, ensure};

use super::{Case, case};
use crate::client::Request;
use crate::upstream::Upstream;
use crate::watchdog::Suite;

pub(crate) const CASES: &[Case] = &[
    case(1, "GET /_/health is 200 OK", |suite| {
        let upstream = Upstream::start()?;
        let answer = suite.http(&upstream.url())?.start()?.get("/_/health")?.expect(200)?;
        ensure!(answer.text() == "OK", "{answer:?}");
        Ok(())
    }),
    case(2, "POST /_/health is 405", |suite| other_method(suite, "POST", "/_/health")),
    case(3, "HEAD /_/health is 405", |suite| other_method(suite, "HEAD", "/_/health")),
    case(4, "without its lock file it is not healthy, and the function still answers", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        std::fs::remove_file(watchdog.lock_file())?;
        watchdog.get("/_/health")?.expect(503)?;
        watchdog.get("/_/ready")?.expect(503)?;
        watchdog.get("/x")?.expect(200).map(drop)
    }),
    case(5, "GET /_/ready is 200 without a body", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        watchdog.until("/_/ready", 200)?;
        let answer = watchdog.get("/_/ready")?;
        ensure!(answer.body.is_empty(), "{answer:?}");
        Ok(())
    }),
    case(6, "POST /_/ready is 405", |suite| other_method(suite, "POST", "/_/ready")),
    case(7, "paths that only look like probes go to the function", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        for path in ["/_/healthz", "/_/health/", "/_/x"] {
            let seen = watchdog.get(path)?.expect(200)?.json()?;
            ensure!(seen["target"] == path, "{seen}");
        }
        Ok(())
    }),
    case(48, "ready_path says what the function says", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("ready_path", "/status/418").start()?;
        watchdog.until("/_/ready", 418)
    }),
    case(49, "ready_path works with buffered bodies", |suite| {
        let upstream = Upstream::start()?;
        let setup = suite.http(&upstream.url())?.env("ready_path", "/status/418");
        let watchdog = setup.env("http_buffer_req_body", true).start()?;
        if suite.is_old && watchdog.get("/_/ready").is_err() {
            // A crash of its handler. Nobody can rely on it, so both forms are taken.
            return Ok(());
        }
        watchdog.until("/_/ready", 418)
    }),
    case(50, "without its lock file it is not ready, whatever the function says", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("ready_path", "/status/418").start()?;
        std::fs::remove_file(watchdog.lock_file())?;
        watchdog.get("/_/ready")?.expect(503).map(drop)
    }),
    case(51, "probes are not in the metrics", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("ready_path", "/status/418").start()?;
        watchdog.until("/_/ready", 418)?;
        watchdog.get("/_/health")?;
        watchdog.get("/x")?;
        watchdog.until_metric("http_requests_total{code=\"200\",method=\"get\"} 1")?;
        let text = watchdog.metrics()?;
        ensure!(!text.contains("code=\"418\""), "{text}");
        Ok(())
    }),
];

fn other_method(suite: &Suite, method: &str, path: &str) -> Result<()> {
    let upstream = Upstream::start()?;
    let watchdog = suite.http(&upstream.url())?.start()?;
    Request::new(method, path).send(watchdog.address)?.expect(405).map(drop)
}
