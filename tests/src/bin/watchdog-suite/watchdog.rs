//! A watchdog of any make as a process: its environment, its lines, its end. Nothing of it outlives its case.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tests::port;

use crate::client::{Answer, DEADLINE, Request};

/// A moment between two looks, or in which something happens on the other side. Who calls it has a deadline.
#[allow(clippy::disallowed_methods)] // There is nothing to wait for that could be told.
pub(crate) fn pause(span: Duration) {
    thread::sleep(span);
}

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
    program: PathBuf,
    environment: Vec<(String, String)>,
    folder: TempDir,
    /// Whether the function says that it has started by a file.
    says_ready: bool,
}

impl Suite {
    /// A watchdog with a free port, and without a function.
    pub(crate) fn bare(&self) -> Result<Setup> {
        let folder = tempfile::tempdir()?;
        let mut environment = self.environment.clone();
        let port = port::free()?;
        for (name, value) in [
            ("PATH", std::env::var("PATH")?),
            ("TMPDIR", folder.path().display().to_string()),
            ("port", port.to_string()),
            ("metrics_port", port::free()?.to_string()),
            ("healthcheck_interval", "200ms".to_string()),
        ] {
            environment.push((name.to_string(), value));
        }
        Ok(Setup { program: self.program.clone(), environment, folder, says_ready: false })
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
    #[allow(clippy::needless_pass_by_value)] // Cases write values on the spot.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.retain(|(own, _)| own != name);
        self.environment.push((name.to_string(), value.to_string()));
        self.says_ready &= name != "fprocess";
        self
    }

    /// Unsets a variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(own, _)| own != name);
        self
    }

    /// The watchdog's own folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a shell script that can be run, and gives its path.
    pub(crate) fn script(&self, lines: &str) -> Result<String> {
        let path = self.folder.path().join("function");
        // A file that is still open for writing in a process that was just forked can't be run.
        let written = self.folder.path().join("function.new");
        std::fs::write(&written, format!("#!/bin/sh\n{lines}\n"))?;
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755))?;
        std::fs::copy(&written, &path)?;
        Ok(path.display().to_string())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.environment.clone());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
        let mut child = self.command().spawn()?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        copy(child.stdout.take(), &lines);
        copy(child.stderr.take(), &lines);
        let port =
            |name: &str| self.environment.iter().find(|(own, _)| own == name).map(|(_, port)| port.as_str());
        let port = port("port").or_else(|| port("PORT")).unwrap_or("8080").parse()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut watchdog = Watchdog { child, address, lines, folder: self.folder };
        let lock = watchdog.lock_file();
        let suppressed = self.environment.iter().any(|(name, _)| name == "suppress_lock");
        let ready = watchdog.folder.path().join("function.ready");
        let has_started = || !self.says_ready || ready.exists();
        let is_open = || (suppressed || lock.exists()) && TcpStream::connect(address).is_ok();
        wait_for(|| has_started() && is_open() || watchdog.has_ended())
            .with_context(|| format!("it does not listen: {:#?}", watchdog.lines()))?;
        ensure!(!watchdog.has_ended(), "it has ended: {:#?}", watchdog.lines());
        Ok(watchdog)
    }
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

/// A running watchdog. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
    pub(crate) address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
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

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Path of its lock file.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.path().join(".lock")
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

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status()?;
        ensure!(status.success(), "can't send {name}");
        Ok(())
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits until it has ended: its exit code.
    pub(crate) fn ended(&mut self) -> Result<i32> {
        wait_for(|| self.has_ended()).context("it does not end")?;
        Ok(self.child.wait()?.code().unwrap_or(-1))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
