//! A watchdog of any make as the cases start it and look at it: its environment, its lines, its lock file, its end.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tests::server::{Server, WatchdogSetup};
use tests::wait::pause;

use crate::client::{Answer, DEADLINE, Request};

/// Waits until something is so.
pub(crate) fn wait_for(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        ensure!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}");
        pause(Duration::from_millis(3));
    }
    Ok(())
}

/// How a watchdog is started, and what is expected of it.
#[derive(Clone, Debug)]
pub(crate) struct Suite {
    /// The program.
    pub(crate) program: PathBuf,
    /// Whether the faults of of-watchdog are what is expected.
    pub(crate) is_old: bool,
    /// Variables for every watchdog.
    pub(crate) environment: Vec<(String, String)>,
}

/// The environment of a watchdog that is not yet started.
#[derive(Debug)]
pub(crate) struct Setup {
    inner: WatchdogSetup,
    /// Whether the function says that it has started by a file.
    says_ready: bool,
}

impl Suite {
    /// A watchdog with a free port, and without a function.
    pub(crate) fn bare(&self) -> Result<Setup> {
        let mut inner = WatchdogSetup::new(&self.program)?.env("healthcheck_interval", "200ms");
        for (name, value) in &self.environment {
            inner = inner.env(name, value);
        }
        Ok(Setup { inner, says_ready: false })
    }

    /// A watchdog in front of the function at `url`, with a process that ends when it is told to, or its watchdog is gone
    /// (a killed of-watchdog leaves it behind).
    pub(crate) fn http(&self, url: &str) -> Result<Setup> {
        let setup = self.bare()?;
        let script = setup.script(
            "trap 'exit 0' TERM\n: > \"$0.ready\"\nwhile kill -0 $PPID 2>/dev/null; do sleep 0.05; done",
        )?;
        let setup = setup.env("fprocess", script).env("mode", "http").env("upstream_url", url);
        Ok(Setup { says_ready: true, ..setup })
    }

    /// A watchdog with a process for each request: `script` as a shell script.
    pub(crate) fn fork(&self, mode: &str, script: &str) -> Result<Setup> {
        let setup = self.bare()?;
        let script = setup.script(script)?;
        Ok(setup.env("fprocess", script).env("mode", mode))
    }
}

impl Setup {
    /// Sets a variable.
    pub(crate) fn env(self, name: &str, value: impl ToString) -> Self {
        Self { inner: self.inner.env(name, value), says_ready: self.says_ready && name != "fprocess" }
    }

    /// Unsets a variable.
    pub(crate) fn without(self, name: &str) -> Self {
        Self { inner: self.inner.without(name), ..self }
    }

    /// The watchdog's own folder.
    pub(crate) fn folder(&self) -> &Path {
        self.inner.folder()
    }

    /// Writes a shell script that can be run, and gives its path.
    pub(crate) fn script(&self, lines: &str) -> Result<String> {
        let path = self.folder().join("function");
        // A file that is still open for writing in a process that was just forked can't be run.
        let written = self.folder().join("function.new");
        std::fs::write(&written, format!("#!/bin/sh\n{lines}\n"))?;
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755))?;
        std::fs::copy(&written, &path)?;
        Ok(path.display().to_string())
    }

    fn command(&self) -> Command {
        let mut command = self.inner.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it until it ends by itself: its exit code, and all that it has written.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut child = self.command().args(arguments).spawn()?;
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.as_mut().map(|pipe| pipe.read_to_string(&mut text)).transpose().map(|_| text)
        });
        let start = Instant::now();
        let code = loop {
            if let Some(status) = child.try_wait()? {
                break status.code().unwrap_or(-1);
            }
            if start.elapsed() > Duration::from_secs(5) {
                child.kill()?;
                child.wait()?;
                bail!("it does not end");
            }
            pause(Duration::from_millis(3));
        };
        let mut text = String::new();
        stderr.as_mut().map(|pipe| pipe.read_to_string(&mut text)).transpose()?;
        let stdout = reader.join().map_err(|_| anyhow::anyhow!("no output"))??;
        Ok((code, text + &stdout))
    }

    /// Starts it and waits until it accepts requests.
    pub(crate) fn start(self) -> Result<Watchdog> {
        let mut command = self.command();
        let is_suppressed = self.inner.value("suppress_lock").is_some();
        let mut server = self.inner.start(&mut command)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        copy(server.child().stdout.take(), &lines);
        copy(server.child().stderr.take(), &lines);
        let has_started =
            |server: &Server| !self.says_ready || server.folder().join("function.ready").exists();
        let is_open = |server: &Server| {
            (is_suppressed || lock_file(server).exists()) && TcpStream::connect(server.address()).is_ok()
        };
        let server =
            server.until_up(Duration::from_millis(3), |server| has_started(server) && is_open(server));
        let shown =
            || format!("it does not listen: {:#?}", lines.lock().unwrap_or_else(PoisonError::into_inner));
        let server = server.with_context(shown)?;
        Ok(Watchdog { address: server.address(), server, lines })
    }
}

fn lock_file(server: &Server) -> PathBuf {
    server.folder().join(".lock")
}

fn copy(pipe: Option<impl Read + Send + 'static>, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        for line in pipe.into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n').map_while(Result::ok))
        {
            let line = String::from_utf8_lossy(&line).into_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}

/// A running watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    server: Server,
    pub(crate) address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watchdog {
    /// The answer to GET `target`.
    pub(crate) fn get(&self, target: &str) -> Result<Answer> {
        Request::new("GET", target).send(self.address)
    }

    /// The answer to POST `target` with a body.
    pub(crate) fn post(&self, target: &str, body: impl Into<Vec<u8>>) -> Result<Answer> {
        Request::new("POST", target).body(body).send(self.address)
    }

    /// Waits until GET `target` has the status `wanted`.
    pub(crate) fn until(&self, target: &str, wanted: u16) -> Result<()> {
        wait_for(|| self.get(target).is_ok_and(|answer| answer.status == wanted))
            .with_context(|| format!("{target} never answers {wanted}"))
    }

    /// Path of its lock file.
    pub(crate) fn lock_file(&self) -> PathBuf {
        lock_file(&self.server)
    }

    /// What it has written so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line with `text`.
    pub(crate) fn line(&self, text: &str) -> Result<String> {
        let found = || self.lines().into_iter().find(|line| line.contains(text));
        wait_for(|| found().is_some())
            .with_context(|| format!("no line with {text:?}: {:#?}", self.lines()))?;
        found().context("the line is there")
    }

    /// Where its metrics are, as it says itself.
    pub(crate) fn metrics_address(&self) -> Result<SocketAddr> {
        let line = self.line("Metrics listening on port")?;
        let port = line.rsplit(' ').next().and_then(|port| port.parse().ok()).context("a port")?;
        Ok(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Its metrics.
    pub(crate) fn metrics(&self) -> Result<String> {
        Ok(Request::new("GET", "/metrics").send(self.metrics_address()?)?.expect(200)?.text())
    }

    /// Waits until the metrics have a line that `is_wanted`.
    pub(crate) fn until_metric(&self, line: &str) -> Result<()> {
        let has = |text: String| text.lines().any(|found| found == line);
        wait_for(|| self.metrics().is_ok_and(has))
            .with_context(|| format!("no {line} in {}", self.metrics().unwrap_or_default()))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.server.signal(signal)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.server.child().try_wait(), Ok(Some(_)))
    }

    /// Waits until it has ended: its exit code.
    pub(crate) fn ended(&mut self) -> Result<i32> {
        wait_for(|| self.has_ended()).context("it does not end")?;
        Ok(self.server.child().wait()?.code().unwrap_or(-1))
    }
}
