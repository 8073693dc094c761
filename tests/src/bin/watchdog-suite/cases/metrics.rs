//! Metrics: cases 52 to 55.

use std::thread;

use anyhow::ensure;

use super::{Case, case};
use crate::client::Request;
use crate::upstream::Upstream;

pub(crate) const CASES: &[Case] = &[
    case(52, "three families with the buckets of Prometheus, and the requests that run", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        watchdog.get("/x")?.expect(200)?;
        watchdog.until_metric("http_requests_in_flight 0")?;
        let address = watchdog.address;
        let running = thread::spawn(move || Request::new("GET", "/sleep/700").send(address));
        upstream.until_busy(1)?;
        watchdog.until_metric("http_requests_in_flight 1")?;
        let text = watchdog.metrics()?;
        for kind in [
            "http_requests_total counter",
            "http_request_duration_seconds histogram",
            "http_requests_in_flight gauge",
        ] {
            ensure!(text.contains(&format!("# TYPE {kind}\n")), "{kind} in {text}");
        }
        for bound in ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"] {
            let series = "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=";
            ensure!(text.contains(&format!("{series}\"{bound}\"}} ")), "{bound} in {text}");
        }
        drop(running.join());
        Ok(())
    }),
    case(53, "other paths of the metrics' port are 404", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        Request::new("GET", "/").send(watchdog.metrics_address()?)?.expect(404).map(drop)
    }),
    case(54, "methods that nobody knows share a label", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        Request::new("WEIRD", "/x").send(watchdog.address)?.expect(200)?;
        watchdog.until_metric("http_requests_total{code=\"200\",method=\"unknown\"} 1")
    }),
    case(55, "durations are counted by status and method", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        watchdog.post("/status/503", "x")?.expect(503)?;
        watchdog.until_metric("http_request_duration_seconds_count{code=\"503\",method=\"post\"} 1")
    }),
];
