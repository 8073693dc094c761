//! `gpufn up` on a simulated GPU, in a state folder of its own: started, waited for, watched, and ended with all that it
//! started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::control::Control;
use crate::gateway::Gateway;
use crate::process::{self, Found, Process};
use crate::programs::{self, Turn};
use crate::wait::until;

/// Its state folder, in the temp folder.
const STATE: &str = "state";
/// Longest time until it is ready.
const START: Duration = Duration::from_secs(30);
/// Longest time to end by itself once it is asked to.
const STOP: Duration = Duration::from_secs(20);
/// Longest time until its children are gone after that.
const LEFTOVERS: Duration = Duration::from_secs(5);

/// How it is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    gpus: u32,
    policy: String,
    sharing: String,
    auth: bool,
}

impl Builder {
    /// Number of simulated GPUs.
    #[must_use]
    pub fn gpus(self, gpus: u32) -> Self {
        Self { gpus, ..self }
    }

    /// The scaling policy.
    #[must_use]
    pub fn policy(self, policy: &str) -> Self {
        Self { policy: policy.into(), ..self }
    }

    /// How processes share a GPU: `mps` or `exclusive`.
    #[must_use]
    pub fn sharing(self, sharing: &str) -> Self {
        Self { sharing: sharing.into(), ..self }
    }

    /// With basic auth, or without.
    #[must_use]
    pub fn auth(self, auth: bool) -> Self {
        Self { auth, ..self }
    }

    /// Takes the machine's turn, starts it, and waits until it is ready.
    pub async fn start(self) -> Local {
        // All that it will start must be there, or the failure would be a riddle.
        for name in ["gpufn-node", "fwatchdog", "simgpu", "libcuda_hook.so", "libsimcuda.so"] {
            programs::built(name);
        }
        let turn = Turn::take();
        let folder = tempfile::Builder::new().prefix("gpufn-").tempdir().expect("a temp folder can be made");
        let process = self.spawn(folder.path());
        let mut local = Local { process, options: self, gateway: Gateway::at("", None), folder, _turn: turn };
        local.become_ready().await;
        local
    }

    fn spawn(&self, folder: &Path) -> Process {
        let mut command = Command::new(programs::built("gpufn"));
        command.args(["up", "--listen", "127.0.0.1:0", "--simulate", "always"]);
        command.arg("--state").arg(folder.join(STATE)).args(["--gpus", &self.gpus.to_string()]);
        command.args(["--policy", &self.policy, "--sharing", &self.sharing]);
        if self.auth {
            command.arg("--auth");
        }
        Process::spawn(&mut command, &folder.join("up.log"))
    }
}

/// A running `gpufn up`.
#[derive(Debug)]
pub struct Local {
    // First, so that it has ended before its folder and its turn do.
    process: Process,
    options: Builder,
    gateway: Gateway,
    folder: TempDir,
    _turn: Turn,
}

impl Local {
    /// One simulated GPU, its policy, no auth.
    pub fn up() -> Builder {
        Builder { gpus: 1, policy: "gpufn".into(), sharing: "mps".into(), auth: false }
    }

    /// Its gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where its gateway listens.
    pub fn address(&self) -> SocketAddr {
        let url = self.gateway.url();
        url.trim_start_matches("http://").parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// Its node agent.
    pub fn node(&self) -> Control {
        Control(self.state().join("node/control.sock"))
    }

    /// Its simulated GPU's socket.
    pub fn gpu_socket(&self) -> PathBuf {
        self.state().join("simgpu.sock")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join(STATE)
    }

    /// The login that it made up, if it asks for one.
    pub fn login(&self) -> Option<(String, String)> {
        let password = fs::read_to_string(self.state().join("basic-auth-password")).ok()?;
        let user =
            fs::read_to_string(self.state().join("basic-auth-user")).unwrap_or_else(|_| "admin".into());
        Some((user.trim().into(), password.trim().into()))
    }

    /// What it and its children printed so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Processes that it started, directly or not.
    pub fn children(&self) -> Vec<Found> {
        let own = self.process.pid();
        process::naming(&self.state()).into_iter().filter(|found| found.pid != own).collect()
    }

    /// Kills it as a crash would, and starts it again in the same state folder.
    pub async fn crash_and_restart(&mut self) {
        process::kill(self.process.pid());
        self.process.wait(STOP);
        // The URL of the crashed one is no sign of the new one.
        fs::remove_file(self.state().join("url")).expect("it wrote its URL");
        self.process = self.options.spawn(self.folder.path());
        self.become_ready().await;
    }

    /// Ends it, and fails the test if it does not end well or leaves a process behind.
    pub async fn stop(mut self) {
        let (status, by_itself) = self.process.stop(STOP);
        assert!(
            by_itself,
            "gpufn up did not end within {STOP:?} of SIGTERM; it printed:\n{}",
            self.process.tail()
        );
        assert!(status.success(), "gpufn up ended with {status}; it printed:\n{}", self.process.tail());
        until("the children of gpufn up to be gone", LEFTOVERS, async || {
            self.children().is_empty().then_some(())
        })
        .await;
    }

    /// Shows the end of what its children and functions printed.
    fn show_logs(&self) {
        let logs = self.state().join("logs");
        for folder in [logs.clone(), logs.join("openfaas-fn")] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_file() {
                    eprintln!("--- the last lines of {}:\n{}\n---", path.display(), process::tail(&path));
                }
            }
        }
    }

    async fn become_ready(&mut self) {
        let url_file = self.state().join("url");
        let url = until("gpufn up to say its URL", START, async || {
            if let Some(status) = self.process.ended() {
                panic!("gpufn up ended at once with {status}; it printed:\n{}", self.process.tail());
            }
            fs::read_to_string(&url_file).ok().filter(|url| !url.trim().is_empty())
        })
        .await;
        let login = self.options.auth.then(|| self.login().expect("it writes its password"));
        self.gateway = Gateway::at(url.trim(), login);
        let healthz = format!("{}/healthz", self.gateway.url());
        until("gpufn up to be healthy", START, async || {
            let answer = self.gateway.client().get(&healthz).timeout(Duration::from_secs(1)).send().await;
            answer.ok().filter(|answer| answer.status().is_success()).map(drop)
        })
        .await;
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        self.process.stop(Duration::from_secs(10));
        // All of these carry the temp folder of this very test in their command line or environment.
        for left in self.children() {
            eprintln!("killing what gpufn up left behind: {} {}", left.pid, left.command);
            process::kill(left.pid);
        }
    }
}
