//! A scaler that a test started: the real program `gpufn-scaler serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::apiserver::ApiServer;
use crate::process::{Process, kill};
use crate::programs;
use crate::wait::until;

/// Longest time until it listens, and until it ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// How it is started.
#[derive(Debug)]
pub struct Builder {
    folder: TempDir,
    arguments: Vec<String>,
}

/// A running scaler.
#[derive(Debug)]
pub struct Scaler {
    process: Process,
    /// Where it listens for KEDA.
    pub grpc: SocketAddr,
    /// Where it listens for HTTP.
    pub http: SocketAddr,
    client: reqwest::Client,
    _folder: TempDir,
}

impl Scaler {
    /// One that follows `cluster`, reads often, and listens where it likes.
    pub fn builder(cluster: &ApiServer) -> Builder {
        let builder = Builder::new();
        cluster.write_kubeconfig(&builder.path("kubeconfig"));
        builder.with("--period", "20ms")
    }

    /// One that follows the cluster of this kubeconfig, and listens where it likes.
    pub fn of_cluster(kubeconfig: &Path) -> Builder {
        let builder = Builder::new();
        let copied = std::fs::copy(kubeconfig, builder.path("kubeconfig"));
        copied.unwrap_or_else(|error| panic!("{}: {error}", kubeconfig.display()));
        builder
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Tells it to end, and how it did.
    pub fn stop(mut self) -> (ExitStatus, bool) {
        self.process.stop(PATIENCE)
    }

    /// What it answers over HTTP.
    pub async fn get(&self, path: &str) -> (reqwest::StatusCode, String) {
        let answer = self.client.get(format!("http://{}{path}", self.http)).send().await.expect("it answers");
        (answer.status(), answer.text().await.expect("it answers text"))
    }

    /// What it explains of a function.
    pub async fn explain(&self, name: &str) -> Value {
        let (status, text) = self.get(&format!("/v1/functions/fn/{name}")).await;
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).expect("explanations are JSON")
    }

    /// Why a function has what it has.
    pub async fn why(&self, name: &str) -> Value {
        let (status, text) = self.get(&format!("/v1/functions/fn/{name}/explanation")).await;
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).expect("explanations are JSON")
    }

    /// The value of a metric, by its name and labels as they are shown; 0 if it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.1;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    /// Waits for so many more decisions about grants.
    pub async fn until_decided(&self, times: f64) {
        let series = "gpufn_scaler_control_seconds_count{part=\"decide\"}";
        let before = self.metric(series).await;
        until(&format!("{times} decisions"), PATIENCE * 2, async || {
            (self.metric(series).await >= before + times).then_some(())
        })
        .await;
    }

    /// Tells it of requests that wait for a first replica.
    pub async fn hold(&self, name: &str, held: u32) -> reqwest::StatusCode {
        let url = format!("http://{}/v1/functions/fn/{name}/held", self.http);
        let body = serde_json::json!({"held": held});
        self.client.put(url).json(&body).send().await.expect("it answers").status()
    }

    /// Waits until it can tell what a function needs.
    pub async fn until_read(&self, name: &str) {
        until(&format!("{name} to be read"), PATIENCE, async || {
            let (status, text) = self.get(&format!("/v1/functions/fn/{name}")).await;
            let seen: Value = serde_json::from_str(&text).ok().filter(|_| status.is_success())?;
            (seen["is_known"] == true).then_some(())
        })
        .await;
    }
}

impl Drop for Scaler {
    /// It is not asked to end: it would wait for clients of the test, which waits here.
    fn drop(&mut self) {
        if self.process.ended().is_none() {
            kill(self.pid());
        }
    }
}

impl Builder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let builder = Self { folder, arguments: Vec::new() };
        builder.with("--listen", "127.0.0.1:0").with("--http", "127.0.0.1:0")
    }

    /// An option with its value; of two, the later one counts.
    #[must_use]
    pub fn with(mut self, option: &str, value: &(impl ToString + ?Sized)) -> Self {
        if let Some(place) = self.arguments.iter().position(|argument| argument == option) {
            self.arguments.drain(place..place + 2);
        }
        self.arguments.extend([option.to_string(), value.to_string()]);
        self
    }

    /// An option without a value.
    #[must_use]
    pub fn flag(mut self, option: &str) -> Self {
        self.arguments.push(option.into());
        self
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it, and waits until it has seen which functions there are.
    pub async fn start(self) -> Scaler {
        let scaler = self.start_unready().await;
        until("the scaler to be ready", PATIENCE, async || {
            (scaler.get("/readyz").await.0 == reqwest::StatusCode::OK).then_some(())
        })
        .await;
        scaler
    }

    /// Starts it, and waits until it listens.
    pub async fn start_unready(self) -> Scaler {
        let mut process = spawn(&self.arguments, self.folder.path());
        let (grpc, http) = until("the scaler to listen", PATIENCE, async || {
            assert!(process.ended().is_none(), "it has ended: {}", process.tail());
            let output = process.output();
            let line = output.lines().find_map(|line| line.strip_prefix("listening on "))?;
            let (grpc, http) = line.split_once(" for KEDA, on ")?;
            Some((grpc.parse().ok()?, http.strip_suffix(" for HTTP")?.parse().ok()?))
        })
        .await;
        let client =
            reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client can be made");
        Scaler { process, grpc, http, client, _folder: self.folder }
    }
}

fn spawn(arguments: &[String], folder: &Path) -> Process {
    let mut command = Command::new(programs::built("gpufn-scaler"));
    command.arg("serve").args(arguments).env("KUBECONFIG", folder.join("kubeconfig"));
    Process::spawn(&mut command, &folder.join("log"))
}
