//! A daemon, the folder with the library under the names that programs look for, and clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Names the program that this test binary is to run as.
pub(crate) const PROGRAM: &str = "SIMCUDA_TEST_PROGRAM";

/// What precedes a program's answer.
pub(crate) const ANSWER: &str = "ANSWER ";

/// Waits until `reached`, or fails.
pub(crate) fn until(patience: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !reached() {
        assert!(Instant::now() < deadline, "in {patience:?} it did not happen that {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) struct Rig {
    daemon: Child,
    folder: TempDir,
}

/// The shared library beside the test binaries.
fn library() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    let library = binary.parent().and_then(Path::parent).unwrap().join("libsimcuda.so");
    assert!(
        library.exists(),
        "{} is missing: run `cargo build -p simcuda` before the tests",
        library.display()
    );
    library
}

impl Rig {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"] {
            std::os::unix::fs::symlink(library(), folder.path().join(name)).unwrap();
        }
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_simgpu"))
            .arg("--socket")
            .arg(folder.path().join("gpu.sock"))
            .args(["--context-ms", "1"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line}");
        Self { daemon, folder }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("gpu.sock")
    }

    fn command(&self, program: &str, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["client_program", "--exact", "--nocapture", "--test-threads=1"])
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("SIMCUDA_SOCKET", self.socket())
            .env(PROGRAM, program)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped());
        command
    }

    /// Runs a program to its end. Returns its answer.
    pub(crate) fn run(&self, program: &str) -> String {
        self.run_with(program, &[])
    }

    pub(crate) fn run_with(&self, program: &str, environment: &[(&str, &str)]) -> String {
        let output = self.command(program, environment).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{program} failed:\n{text}");
        let answer = text.lines().find_map(|line| line.split(ANSWER).nth(1));
        answer.unwrap_or_else(|| panic!("{program} gave no answer:\n{text}")).to_owned()
    }

    pub(crate) fn spawn(&self, program: &str, environment: &[(&str, &str)]) -> Client {
        let child = self.command(program, environment).stdin(Stdio::piped()).spawn().unwrap();
        Client(Mutex::new(child))
    }

    pub(crate) fn stats(&self) -> Value {
        self.ask(r#"{"request":"stats"}"#)
    }

    /// The answer to a line of JSON.
    pub(crate) fn ask(&self, question: &str) -> Value {
        let stream = UnixStream::connect(self.socket()).unwrap();
        (&stream).write_all(format!("{question}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Has the daemon do something.
    pub(crate) fn order(&self, order: &str) {
        assert_eq!(self.ask(order), serde_json::json!({"done": true}), "{order}");
    }

    /// What the daemon says of a process on the first GPU.
    pub(crate) fn client(&self, pid: u32) -> Option<Value> {
        let stats = self.stats();
        stats["gpus"][0]["clients"].as_array().unwrap().iter().find(|client| client["pid"] == pid).cloned()
    }

    /// Parts of the time that two processes get while both have work all the time.
    pub(crate) fn shares_of(&self, pids: [u32; 2]) -> [f64; 2] {
        let busy = |pid| self.client(pid).map_or(0, |client| client["busy_ns"].as_u64().unwrap());
        let patience = Duration::from_secs(50);
        until(patience, "both run", || pids.iter().all(|&pid| busy(pid) > 20_000_000));
        let sample = || {
            let stats = self.stats();
            let clients = stats["gpus"][0]["clients"].as_array().unwrap().clone();
            let of =
                |pid: u32| clients.iter().find(|c| c["pid"] == pid).unwrap()["busy_ns"].as_u64().unwrap();
            (stats["now_ns"].as_u64().unwrap(), pids.map(of))
        };
        let (start, first) = sample();
        until(patience, "a second passes", || sample().0 > start + 1_000_000_000);
        let (end, last) = sample();
        #[allow(clippy::cast_precision_loss)]
        [0, 1].map(|i| (last[i] - first[i]) as f64 / (end - start) as f64)
    }

    /// Asks the daemon to end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.daemon.wait().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A program that is running.
pub(crate) struct Client(Mutex<Child>);

impl Client {
    pub(crate) fn pid(&self) -> u32 {
        self.0.lock().unwrap().id()
    }

    /// Waits until the program has said `answer`.
    pub(crate) fn wait_for(&self, answer: &str) {
        let mut child = self.0.lock().unwrap();
        let mut seen = Vec::new();
        let wanted = format!("{ANSWER}{answer}");
        let output = child.stdout.as_mut().unwrap();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(&wanted) {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "ended: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    }

    /// The next answer of the program.
    pub(crate) fn answer(&self) -> String {
        let mut child = self.0.lock().unwrap();
        let output = child.stdout.as_mut().unwrap();
        let (mut line, mut byte) = (String::new(), [0]);
        loop {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "ended: {line}");
            match (byte[0], line.split_once(ANSWER)) {
                (b'\n', Some((_, answer))) => return answer.to_owned(),
                (b'\n', None) => line.clear(),
                (other, _) => line.push(char::from(other)),
            }
        }
    }

    pub(crate) fn kill(&self) {
        let mut child = self.0.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Ok(child) = self.0.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
