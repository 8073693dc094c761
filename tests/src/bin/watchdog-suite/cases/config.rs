//! Configuration, flags and what can't work: cases 66 to 74 and 94.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};

use super::{Case, case};
use crate::upstream::Upstream;
use crate::watchdog::Setup;

pub(crate) const CASES: &[Case] = &[
    case(66, "without a function it ends with 1", |suite| {
        fails(&suite.http("http://127.0.0.1:9")?.without("fprocess"), &[1], "Error loading config")
    }),
    case(67, "mode http without upstream_url ends with 1", |suite| {
        fails(&suite.http("http://127.0.0.1:9")?.without("upstream_url"), &[1], "upstream_url")
    }),
    case(68, "a mode that nobody knows ends it with a message", |suite| {
        for mode in ["afterburn", "nonsense"] {
            let (code, text) = suite.http("http://127.0.0.1:9")?.env("mode", mode).run(&[])?;
            ensure!(code == if suite.is_old { 2 } else { 1 }, "{mode}: {code} {text}");
            ensure!(text.contains("mode") && (suite.is_old || !text.contains("panic")), "{mode}: {text}");
        }
        Ok(())
    }),
    case(69, "a write_timeout of 0 ends it with 1", |suite| {
        fails(&suite.http("http://127.0.0.1:9")?.env("write_timeout", 0), &[1], "Error loading config")
    }),
    case(70, "a log_buffer_size that is no number ends it with 1", |suite| {
        fails(&suite.http("http://127.0.0.1:9")?.env("log_buffer_size", "x"), &[1], "log_buffer_size")
    }),
    case(71, "port is where it listens, and PORT only without port", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.env("PORT", 1).start()?;
        watchdog.get("/x")?.expect(200)?;
        if suite.is_old {
            return Ok(());
        }
        let port = tests::port::free()?;
        let watchdog = suite.http(&upstream.url())?.without("port").env("PORT", port).start()?;
        watchdog.get("/x")?.expect(200).map(drop)
    }),
    case(72, "-version ends with 0", |suite| {
        let (code, text) = suite.bare()?.run(&["-version"])?;
        ensure!(code == 0 && text.contains("Version: ") && text.contains("SHA: "), "{code} {text}");
        Ok(())
    }),
    case(73, "-run-healthcheck ends with 0 if the lock file is there, else with 1", |suite| {
        let setup = suite.http("http://127.0.0.1:9")?;
        let (code, text) = setup.run(&["-run-healthcheck"])?;
        ensure!(code == 1 && text.contains("unable to find lock file."), "{code} {text}");
        std::fs::write(setup.folder().join(".lock"), "")?;
        let (code, text) = setup.run(&["-run-healthcheck"])?;
        ensure!(code == 0, "{code} {text}");
        Ok(())
    }),
    case(74, "a folder of temporary files that can't be written ends it with a message", |suite| {
        // Not even root can make a folder below a file.
        let setup = suite.http("http://127.0.0.1:9")?;
        let file = setup.folder().join("file");
        std::fs::write(&file, "")?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        let (code, text) = setup.env("TMPDIR", file.join("tmp").display()).run(&[])?;
        if suite.is_old {
            ensure!(code == 0, "{code} {text}");
            return Ok(());
        }
        ensure!(code == 1 && text.contains("TMPDIR"), "{code} {text}");
        Ok(())
    }),
    case(94, "without a GPU it is a plain watchdog", |suite| {
        let upstream = Upstream::start()?;
        let watchdog = suite.http(&upstream.url())?.start()?;
        watchdog.get("/x")?.expect(200)?;
        let text = watchdog.metrics()?;
        ensure!(!text.contains("gpu"), "{text}");
        Ok(())
    }),
];

/// It ends with one of these codes, and says why.
fn fails(setup: &Setup, codes: &[i32], words: &str) -> Result<()> {
    let (code, text) = setup.run(&[])?;
    ensure!(codes.contains(&code) && text.contains(words), "{code} {text}");
    Ok(())
}
