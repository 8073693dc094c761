//! A provider that a test started: the real program `gpufn-scaler provider`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use crate::function_cluster::FunctionCluster;
use crate::gateway::Gateway;
use crate::process::{Process, kill};
use crate::programs;
use crate::wait::until;

/// Longest time until it listens, and until it ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// The login, where it asks for one.
const LOGIN: (&str, &str) = ("admin", "s3cret-of-a-test");

/// How it is started.
#[derive(Debug)]
pub struct Builder {
    folder: TempDir,
    arguments: Vec<String>,
    login: Option<(String, String)>,
}

/// A running provider.
#[derive(Debug)]
pub struct Provider {
    process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    gateway: Gateway,
    login: Option<(String, String)>,
    _folder: TempDir,
}

impl Provider {
    /// One in front of `cluster`, which listens where it likes.
    pub fn builder(cluster: &FunctionCluster) -> Builder {
        let folder = tempfile::tempdir().expect("a folder can be made");
        cluster.write_kubeconfig(&folder.path().join("kubeconfig"));
        Builder::with_kubeconfig(folder).with("--function-port", &cluster.port())
    }

    /// One of the cluster that a kubeconfig names.
    pub fn of(kubeconfig: &Path) -> Builder {
        let folder = tempfile::tempdir().expect("a folder can be made");
        fs::copy(kubeconfig, folder.path().join("kubeconfig")).expect("the kubeconfig can be read");
        Builder::with_kubeconfig(folder)
    }

    /// A client of it.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Its login, where it asks for one.
    pub fn login(&self) -> Option<(String, String)> {
        self.login.clone()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.tail()
    }

    /// Tells it to end, and how it did: whether by itself.
    pub fn stop(mut self) -> (ExitStatus, bool) {
        self.process.stop(PATIENCE)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if self.process.ended().is_none() {
            kill(self.process.pid());
        }
    }
}

impl Builder {
    fn with_kubeconfig(folder: TempDir) -> Self {
        Self { folder, arguments: Vec::new(), login: None }.with("--listen", "127.0.0.1:0")
    }

    /// An option with its value.
    #[must_use]
    pub fn with(mut self, option: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.arguments.extend([option.to_string(), value.to_string()]);
        self
    }

    /// An option without a value.
    #[must_use]
    pub fn flag(mut self, option: &str) -> Self {
        self.arguments.push(option.into());
        self
    }

    /// It asks for a login.
    #[must_use]
    pub fn auth(mut self, auth: bool) -> Self {
        if !auth {
            return self;
        }
        let (user, password) = LOGIN;
        for (name, text) in [("basic-auth-user", user), ("basic-auth-password", password)] {
            fs::write(self.folder.path().join(name), format!("{text}\n")).expect("a file can be written");
        }
        self.login = Some((user.into(), password.into()));
        let folder = self.folder.path().display().to_string();
        self.flag("--basic-auth").with("--secret-mount-path", &folder)
    }

    /// Starts it, and waits until it has seen which functions there are.
    pub async fn start(self) -> Provider {
        let mut command = Command::new(programs::built("gpufn-scaler"));
        command
            .arg("provider")
            .args(&self.arguments)
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"));
        command.env("GPUFN_LOG", "info,scaler=debug");
        let mut process = Process::spawn(&mut command, &self.folder.path().join("log"));
        let address: SocketAddr = until("the provider to listen", PATIENCE, async || {
            assert!(process.ended().is_none(), "it has ended: {}", process.tail());
            let output = process.output();
            let line = output.lines().find_map(|line| line.strip_prefix("listening on "))?;
            line.strip_suffix(" for functions")?.parse().ok()
        })
        .await;
        let gateway = Gateway::at(&format!("http://{address}"), self.login.clone());
        until("the provider to be ready", PATIENCE, async || {
            let (status, _) = gateway.call(reqwest::Method::GET, "/readyz", &serde_json::Value::Null).await;
            status.is_success().then_some(())
        })
        .await;
        Provider { process, address, gateway, login: self.login, _folder: self.folder }
    }
}
