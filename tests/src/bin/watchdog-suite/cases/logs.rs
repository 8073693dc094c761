//! The function's lines and those of requests: cases 87 to 91.

use anyhow::{Result, ensure};

use super::{Case, case};
use crate::client::Request;
use crate::upstream::Upstream;
use crate::watchdog::{Suite, Watchdog};

pub(crate) const CASES: &[Case] = &[
    case(87, "the function's lines have time and stream, unless they should not", |suite| {
        let line = speaking(suite, "echo words", &[])?.line("words")?;
        let shape: String = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        ensure!(shape == "0000/00/00 00:00:00 stdout: words", "{line:?}");
        let line = speaking(suite, "echo words", &[("prefix_logs", "false")])?.line("words")?;
        ensure!(line == "words", "{line:?}");
        Ok(())
    }),
    case(88, "a line that is too long does not silence the function", |suite| {
        let watchdog = speaking(suite, LONG, &[])?;
        if suite.is_old {
            return watchdog.line("token too long").map(drop);
        }
        watchdog.line("after")?;
        let count: usize = watchdog
            .lines()
            .iter()
            .filter(|line| line.contains("xxxx"))
            .map(|line| line.matches('x').count())
            .sum();
        ensure!(count == 70_000, "{count} of 70000 letters");
        Ok(())
    }),
    case(89, "lines can have any length", |suite| {
        let watchdog = speaking(suite, LONG, &[("log_buffer_size", "-1")])?;
        watchdog.line("after")?;
        let line = watchdog.line("xxxx")?;
        ensure!(line.matches('x').count() == 70_000, "{} letters", line.len());
        Ok(())
    }),
    case(90, "a call is named in the log", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("log_callid", true).start()?;
        Request::new("GET", "/named").header("X-Call-Id", "abc").send(watchdog.address)?.expect(200)?;
        watchdog.get("/unnamed")?.expect(200)?;
        let (named, unnamed) = (watchdog.line("/named")?, watchdog.line("/unnamed")?);
        ensure!(named.ends_with("s) [abc]") && unnamed.ends_with("s) [none]"), "{named:?} {unnamed:?}");
        Ok(())
    }),
    case(91, "the kubelet's probes are not logged", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        Request::new("GET", "/probe")
            .header("User-Agent", "kube-probe/1.33")
            .send(watchdog.address)?
            .expect(200)?;
        watchdog.get("/status/404?x=y")?.expect(404)?;
        let line = watchdog.line("GET /status")?;
        ensure!(
            line.contains("GET /status/404?x=y - 404 ") && line.contains("ContentLength: 4B ("),
            "{line:?}"
        );
        ensure!(!watchdog.lines().iter().any(|line| line.contains("/probe")), "{:#?}", watchdog.lines());
        Ok(())
    }),
];

/// A line of 70,000 letters, and another.
const LONG: &str = "head -c 70000 /dev/zero | tr '\\0' x; echo; echo after";

/// A watchdog whose function says something when it starts.
fn speaking(suite: &Suite, script: &str, environment: &[(&str, &str)]) -> Result<Watchdog> {
    let setup = suite.http("http://127.0.0.1:9")?;
    let script = setup.script(&format!(
        "{script}\ntrap 'exit 0' TERM\nwhile kill -0 $PPID 2>/dev/null; do sleep 0.05; done"
    ))?;
    let setup = environment.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    setup.env("fprocess", script).start()
}
