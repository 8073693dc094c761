//! A running watchdog with everything that a test needs to look at it. Nothing of it outlives the test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// No wait of a test is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Port of every watchdog's metrics: each has an address of its own.
const METRICS_PORT: u16 = 18_081;

/// Port on which a function that is a process of its own listens.
const FUNCTION_PORT: u16 = 13_000;

/// Builds the environment of a watchdog.
pub(crate) struct Builder {
    environment: Vec<(String, String)>,
    folder: TempDir,
    address: String,
    waits: bool,
}

/// A running watchdog. Killed when dropped.
pub(crate) struct Watchdog {
    child: Child,
    address: String,
    port: u16,
    client: Client,
    lines: watch::Receiver<Vec<String>>,
    folder: TempDir,
}

/// A watchdog without settings.
pub(crate) fn bare() -> Builder {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let address = format!("127.{}.{high}.{low}", 10 + std::process::id() % 200);
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    let builder = Builder { environment: Vec::new(), folder, address: address.clone(), waits: true };
    let lock_folder = builder.folder.path().display().to_string();
    builder
        .env("PATH", path)
        .env("TMPDIR", lock_folder)
        .env("listen_address", address)
        .env("port", 0)
        .env("metrics_port", METRICS_PORT)
}

/// A watchdog in front of the function at `url`.
pub(crate) fn in_front_of(url: &str) -> Builder {
    bare().env("fprocess", "sleep 1000").env("mode", "http").env("upstream_url", url)
}

/// A watchdog whose function is a process that serves what [`crate::function`] serves.
pub(crate) fn with_process() -> Builder {
    let builder = bare();
    let function = format!("{}:{FUNCTION_PORT}", builder.address);
    let program = std::env::current_exe().unwrap();
    builder
        .env("fprocess", format!("{} --ignored --exact --nocapture function::process", program.display()))
        .env("mode", "http")
        .env("upstream_url", format!("http://{function}"))
        .env("TEST_FUNCTION_LISTENS", function)
}

/// A watchdog whose function is this shell script.
pub(crate) fn with_script(mode: &str, script: &str) -> Builder {
    let builder = bare();
    let path = builder.path("function.sh");
    std::fs::write(&path, script).unwrap();
    builder.env("fprocess", format!("sh {}", path.display())).env("mode", mode)
}

impl Builder {
    /// Sets a variable.
    #[allow(clippy::needless_pass_by_value)] // Tests write values on the spot.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Unsets a variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(key, _)| key != name);
        self
    }

    /// Does not wait until the function is up.
    pub(crate) fn no_wait(mut self) -> Self {
        self.waits = false;
        self
    }

    /// Path in the watchdog's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fwatchdog"));
        command.args(arguments).env_clear().envs(self.environment.clone());
        command
    }

    /// Runs it until it ends by itself: its status, and what it wrote to stderr.
    pub(crate) async fn run(self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut command = self.command(arguments);
        let output = tokio::task::spawn_blocking(move || command.stdout(Stdio::piped()).output());
        let output = timeout(DEADLINE, output).await.expect("it should end").unwrap().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    /// Starts it and waits until requests are answered.
    pub(crate) async fn start(self) -> Watchdog {
        let stdout = std::fs::File::create(self.path("stdout")).unwrap();
        let mut child = self.command(&[]).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                sender.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        let client = Client::builder().redirect(redirect::Policy::none()).timeout(DEADLINE).build().unwrap();
        let mut watchdog =
            Watchdog { child, address: self.address, port: 0, client, lines, folder: self.folder };
        let line = watchdog.line("Listening on port: ").await;
        watchdog.port = line.rsplit(' ').next().unwrap().parse().unwrap();
        if self.waits {
            watchdog.until_status("/_/ready", StatusCode::OK).await;
        }
        watchdog
    }
}

impl Watchdog {
    /// Address and port of the function's listener.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// The watchdog's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Path of its lock file.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.path().join(".lock")
    }

    /// What it has written to stdout so far.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap()
    }

    /// Path in its own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A request for `path`.
    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("http://{}{path}", self.authority()))
    }

    /// The answer to GET `path`.
    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    /// The status of the answer to GET `path`.
    pub(crate) async fn status(&self, path: &str) -> StatusCode {
        self.get(path).await.status()
    }

    /// Waits until GET `path` is answered with `wanted`.
    pub(crate) async fn until_status(&self, path: &str, wanted: StatusCode) {
        let wait = async {
            while self.request("GET", path).send().await.map(|answer| answer.status()).ok() != Some(wanted) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{path} never answered {wanted}"));
    }

    /// Sends `bytes` over a connection of their own and returns all that comes back until it ends.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.authority()).await.unwrap();
        // It may answer, and end the connection, before it has read all.
        let _ = stream.write_all(bytes.as_ref()).await;
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the connection should end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The metrics' text.
    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}:{METRICS_PORT}/metrics", self.address);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// The status of another path of the metrics' listener.
    pub(crate) async fn metrics_status(&self, path: &str) -> StatusCode {
        self.client
            .get(format!("http://{}:{METRICS_PORT}{path}", self.address))
            .send()
            .await
            .unwrap()
            .status()
    }

    /// Waits until the metrics have `line`.
    pub(crate) async fn until_metric(&self, line: &str) {
        let start = Instant::now();
        loop {
            let text = self.metrics().await;
            if text.lines().any(|found| found == line) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "no {line} in\n{text}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for a line on stderr that contains `text`.
    pub(crate) async fn line(&self, text: &str) -> String {
        let mut lines = self.lines.clone();
        let found = |lines: &Vec<String>| lines.iter().find(|line| line.contains(text)).cloned();
        let wait = lines.wait_for(|lines| found(lines).is_some());
        let lines = match timeout(DEADLINE, wait).await {
            Ok(Ok(lines)) => lines.clone(),
            outcome => panic!("no line with {text:?} ({}): {:#?}", outcome.is_ok(), self.lines.borrow()),
        };
        found(&lines).unwrap()
    }

    /// Waits for as many lines on stderr that contain `text`; how many there are then.
    pub(crate) async fn count_lines(&self, text: &str, wanted: usize) -> usize {
        let mut lines = self.lines.clone();
        let count = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).count();
        let wait = lines.wait_for(|lines| count(lines) >= wanted);
        // Fewer than wanted is what the caller then tells.
        let _ = timeout(DEADLINE, wait).await;
        count(&self.lines.borrow())
    }

    /// The lines on stderr so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "it should end: {:#?}", self.lines());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal, by its name, to one process.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits until there is no process `pid`, or only its exit status is left.
pub(crate) async fn until_gone(pid: u32) {
    let start = Instant::now();
    while is_alive(pid) {
        assert!(start.elapsed() < DEADLINE, "process {pid} should end");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether there is a process `pid` that has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Whether tests run at full length, which takes minutes: `WATCHDOG_TESTS=full`.
pub(crate) fn is_full() -> bool {
    std::env::var("WATCHDOG_TESTS").is_ok_and(|value| value == "full")
}
