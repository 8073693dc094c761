//! Modes with a process for each request, and files: cases 75 to 86.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, case, is_about};
use crate::client::Request;
use crate::watchdog::Suite;

pub(crate) const CASES: &[Case] = &[
    case(75, "18 MB come back as they were sent", |suite| {
        let watchdog = suite.bare()?.env("fprocess", "cat").env("mode", "streaming").start()?;
        let sent: Vec<u8> =
            (0..18_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let answer = watchdog.post("/", sent.clone())?.expect(200)?;
        ensure!(answer.is_complete && answer.body == sent, "{} of {} bytes", answer.body.len(), sent.len());
        Ok(())
    }),
    case(76, "content_type is the type of what a process writes", |suite| {
        for (setting, wanted) in [(None, "application/octet-stream"), (Some("text/plain"), "text/plain")] {
            let setup = suite.bare()?.env("fprocess", "cat");
            let setup = setting.into_iter().fold(setup, |setup, value| setup.env("content_type", value));
            let answer = setup.start()?.post("/", "x")?.expect(200)?;
            ensure!(answer.header("content-type") == Some(wanted), "{answer:?}");
        }
        Ok(())
    }),
    case(77, "a process finds the request in its environment", |suite| {
        let watchdog = suite.bare()?.env("fprocess", "env").env("A", 1).start()?;
        let request =
            Request::new("POST", "/a%20b?x=1&y=%2F").header("X-Foo-Bar", "baz").body("hi").chunked();
        let text = request.send(watchdog.address)?.expect(200)?.text();
        for line in [
            "Http_X_Foo_Bar=baz",
            "Http_Method=POST",
            "Http_Query=x=1&y=%2F",
            "Http_Path=/a b",
            "Http_Transfer_Encoding=chunked",
            "A=1",
        ] {
            ensure!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        Ok(())
    }),
    case(78, "a process that fails without a word is 200", |suite| {
        let answer = suite.bare()?.env("fprocess", "false").start()?.get("/")?.expect(200)?;
        ensure!(answer.body.is_empty(), "{answer:?}");
        Ok(())
    }),
    case(79, "a process that fails after it has written is 200, and its stderr is logged", |suite| {
        let watchdog = suite.fork("streaming", "echo out; echo problem >&2; exit 7")?.start()?;
        let answer = watchdog.get("/")?.expect(200)?;
        ensure!(answer.text() == "out\n", "{answer:?}");
        watchdog.line("stderr: problem")?;
        watchdog.line("exit status 7").map(drop)
    }),
    case(80, "a program that is not there is 200 without a body, and a 500 in the log", |suite| {
        let watchdog = suite.bare()?.env("fprocess", "no-such-program").start()?;
        let answer = watchdog.get("/")?.expect(200)?;
        ensure!(answer.body.is_empty(), "{answer:?}");
        watchdog.line("GET / - 500")?;
        watchdog.line("no-such-program").map(drop)
    }),
    case(81, "what a process has started ends with it when its time is over", |suite| {
        let setup = suite.fork("streaming", "sleep 3 & wait")?;
        let watchdog = setup.env("exec_timeout", "600ms").start()?;
        let answer = watchdog.get("/")?;
        if suite.is_old {
            ensure!(answer.took > Duration::from_millis(2500), "{answer:?}");
            return Ok(());
        }
        ensure!(is_about(answer.took, 600) && answer.took < Duration::from_millis(2500), "{answer:?}");
        Ok(())
    }),
    case(82, "a serialized answer says how long it took", |suite| {
        let watchdog = suite.bare()?.env("fprocess", "cat").env("mode", "serializing").start()?;
        let answer = watchdog.post("/", "hello")?.expect(200)?;
        ensure!(answer.text() == "hello" && answer.header("x-duration-seconds").is_some(), "{answer:?}");
        Ok(())
    }),
    case(83, "a serialized process that fails is 500", |suite| {
        serialized(suite, "echo out; exit 7", "exit status 7")
    }),
    case(84, "a serialized process whose time is over is 500", |suite| {
        serialized(suite, "exec sleep 5", "signal: killed")
    }),
    case(85, "a serialized process that can't be started is 500", |suite| {
        let setup = suite.bare()?.env("fprocess", "no-such-program").env("mode", "serializing");
        let answer = setup.start()?.get("/")?.expect(500)?;
        let words = "exec: \"no-such-program\": executable file not found in $PATH";
        ensure!(answer.text() == words, "{answer:?}");
        Ok(())
    }),
    case(86, "files, parts of files and folders", files),
];

fn serialized(suite: &Suite, script: &str, words: &str) -> Result<()> {
    let watchdog = suite.fork("serializing", script)?.env("exec_timeout", "700ms").start()?;
    let answer = watchdog.get("/")?.expect(500)?;
    ensure!(answer.text() == words, "{answer:?}");
    Ok(())
}

fn files(suite: &Suite) -> Result<()> {
    let setup = suite.bare()?.env("mode", "static");
    let root = setup.folder().join("public");
    std::fs::create_dir_all(root.join("sub"))?;
    std::fs::write(root.join("index.html"), "<p>index")?;
    std::fs::write(root.join("sub/a.txt"), "0123456789")?;
    let watchdog = setup.env("static_path", root.display()).start()?;
    let index = watchdog.get("/")?.expect(200)?;
    ensure!(index.text() == "<p>index" && index.header("last-modified").is_some(), "{index:?}");
    ensure!(index.header("content-type") == Some("text/html; charset=utf-8"), "{index:?}");
    let moved = watchdog.get("/index.html")?.expect(301)?;
    ensure!(moved.header("location") == Some("./"), "{moved:?}");
    let moved = watchdog.get("/sub")?.expect(301)?;
    ensure!(moved.header("location") == Some("sub/"), "{moved:?}");
    let missing = watchdog.get("/missing")?.expect(404)?;
    ensure!(missing.text() == "404 page not found\n", "{missing:?}");
    let listing = watchdog.get("/sub/")?.expect(200)?;
    ensure!(listing.text().contains("<a href=\"a.txt\">a.txt</a>"), "{listing:?}");
    let part =
        Request::new("GET", "/sub/a.txt").header("Range", "bytes=2-4").send(watchdog.address)?.expect(206)?;
    ensure!(part.text() == "234" && part.header("content-range") == Some("bytes 2-4/10"), "{part:?}");
    let part =
        Request::new("GET", "/sub/a.txt").header("Range", "bytes=20-").send(watchdog.address)?.expect(416)?;
    ensure!(part.header("content-range") == Some("bytes */10"), "{part:?}");
    let stamp = index.header("last-modified").unwrap_or_default();
    let known = Request::new("GET", "/").header("If-Modified-Since", stamp).send(watchdog.address)?;
    known.expect(304).map(drop)
}
