//! A simulated GPU and the client programs that a test starts on it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use gpu_share::units::{Bytes, Nanos};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::agent::NodeAgent;

/// Environment that tells this program which client it is.
pub(crate) const ROLE: &str = "HOOK_TEST_ROLE";

/// A file that `cargo build` puts beside the tests' folder.
pub(crate) fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is missing: run `cargo build -p cuda-hook -p simcuda` first", path.display());
    path
}

/// Puts the hook into `folder` under the names that programs ask for.
pub(crate) fn install(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for name in ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"] {
        symlink(built("libcuda_hook.so"), folder.join(name)).unwrap();
    }
}

/// One simulated GPU, and a folder with the hook under the names that programs ask for.
pub(crate) struct Node {
    folder: TempDir,
    gpu: Child,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with(&["--context-ms", "0", "--context-memory", "0"])
    }

    /// One with other options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        install(&folder.path().join("lib"));
        let socket = folder.path().join("simgpu.sock");
        let mut gpu = Command::new(built("simgpu"))
            .arg("--socket")
            .arg(&socket)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(gpu.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on"), "{line}");
        Self { folder, gpu }
    }

    /// A client with `role`, which may have arguments.
    pub(crate) fn client(&self, role: &str) -> Starter {
        Starter::role(role)
            .env("LD_LIBRARY_PATH", self.folder.path().join("lib"))
            .env("GPUFN_DRIVER", built("libsimcuda.so"))
            .env("GPUFN_NVML", built("libsimcuda.so"))
            .env("SIMCUDA_SOCKET", self.folder.path().join("simgpu.sock"))
    }

    fn stats(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.folder.path().join("simgpu.sock")).unwrap();
        stream.write_all(b"{\"request\":\"stats\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn uuid(&self) -> String {
        self.stats()["gpus"][0]["uuid"].as_str().unwrap().to_owned()
    }

    /// Time for which kernels have run on the GPU so far.
    pub(crate) fn busy(&self) -> Nanos {
        Nanos(self.stats()["gpus"][0]["busy_ns"].as_u64().unwrap())
    }

    /// The same, summed over the processes that use it.
    pub(crate) fn busy_of_all(&self) -> Nanos {
        let stats = self.stats();
        let clients = stats["gpus"][0]["clients"].as_array().unwrap();
        Nanos(clients.iter().map(|client| client["busy_ns"].as_u64().unwrap()).sum())
    }

    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.stats()["now_ns"].as_u64().unwrap())
    }

    pub(crate) fn memory(&self) -> Bytes {
        Bytes(self.stats()["gpus"][0]["memory_used"].as_u64().unwrap())
    }

    pub(crate) fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not in time: {}", self.stats());
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.gpu.kill();
        let _ = self.gpu.wait();
    }
}

/// A client that is about to start.
pub(crate) struct Starter(Command);

impl Starter {
    /// This test program once more, with `role`, which may have arguments.
    pub(crate) fn role(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "roles::client", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Self(command)
    }

    /// Lets it share the GPU through `agent`.
    pub(crate) fn bound(mut self, agent: &NodeAgent) -> Self {
        self.0.envs(agent.environment());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn start(mut self) -> Client {
        let mut child = self.0.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once('@')
                    && sender.send(said.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Client { child, lines }
    }
}

/// A client that runs. What it says begins with `@`.
pub(crate) struct Client {
    child: Child,
    lines: Receiver<String>,
}

impl Client {
    /// The next thing that it says is `wanted`.
    pub(crate) fn expect(&mut self, wanted: &str) {
        let said = self.lines.recv_timeout(PATIENCE);
        assert_eq!(said.as_deref(), Ok(wanted));
    }

    /// The next thing that it says.
    pub(crate) fn next(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Tells it something, in one line.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Whether it says `wanted` next, before `time` is over.
    pub(crate) fn says_within(&mut self, wanted: &str, time: Duration) -> bool {
        self.lines.recv_timeout(time).is_ok_and(|said| said == wanted)
    }

    /// Tells it to end, which it must do well.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "the client does not end");
            thread::park_timeout(Duration::from_millis(2));
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
