//! The node from inside: makes its file system, boots the components in their order, watches over them, and ends when one
//! of them ends by itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, stdin};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::net::{UnixListener, UnixStream};

use super::components::{self, Component, PAUSE, Programs, kubeconfig};
use super::control::{self, Answer, Request};
use super::image::Image;
use super::{API_ADDRESS, NODE, at, certificates, mounts, remains};
use crate::process::{self, Process};

/// Longest time until all is ready. It takes seconds, but minutes on a machine that does much else.
pub const BOOT: Duration = Duration::from_mins(3);
/// What the node says when pods can be created.
pub const READY: &str = "ready after";
/// The line of standard input after which the node stays also when the input ends.
pub const STAY: &str = "stay";
/// Time between two looks at what others do.
const GLANCE: Duration = Duration::from_millis(50);
/// Longest time until a killed process is gone.
const DEATH: Duration = Duration::from_secs(10);

/// Boots, and serves until a component ends by itself. `logs` is a folder for what the components and pods print; `cgroup`
/// is made, and is the group of all that the node does.
///
/// # Errors
/// If something does not start or ends by itself.
pub async fn run(programs: Programs, logs: &Path, cgroup: &str) -> Result<()> {
    thread::spawn(end_with_input);
    let start = Instant::now();
    remains::enter_group(cgroup)?;
    mounts::make()?;
    for folder in ["tmp", "etcd", "cni", "volume-plugins"] {
        fs::create_dir_all(at(folder))?;
    }
    run_to_end(Command::new(&programs.kubernetes).args(["loopback", &format!("{API_ADDRESS}/32")]))?;
    certificates::write(&at("pki"))?;
    for (path, text) in programs.files(&logs.join("pods"), cgroup) {
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let mut node = Supervisor { programs, logs: logs.into(), running: BTreeMap::new() };
    tokio::time::timeout(BOOT, node.boot(start)).await.context("booting")??;
    println!("{READY} {:.1} s", start.elapsed().as_secs_f64());
    node.serve().await
}

/// Ends this process when its standard input does: whoever started the node has gone. A thread, since nothing that the
/// node waits for may hold this up.
#[allow(clippy::exit)] // Process 1 clears up.
fn end_with_input() {
    let mut lines = stdin().lock().lines();
    if !lines.any(|line| line.is_ok_and(|line| line == STAY)) {
        std::process::exit(0);
    }
}

fn run_to_end(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| name.clone())?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The components that run.
struct Supervisor {
    programs: Programs,
    logs: PathBuf,
    running: BTreeMap<Component, Process>,
}

impl Supervisor {
    /// Starts each component when what it needs is there.
    async fn boot(&mut self, start: Instant) -> Result<()> {
        let said = |what: &str| println!("{what} after {:.1} s", start.elapsed().as_secs_f64());
        for component in [Component::Etcd, Component::Containerd, Component::ApiServer] {
            self.start(component)?;
        }
        self.until("containerd", async || UnixStream::connect(components::socket()).await.is_ok()).await?;
        let pause = Image::new(PAUSE).file(&self.programs.pause, "/pause").entrypoint(&["/pause"]);
        pause.load(&self.programs.ctr)?;
        said("containerd");

        let client = client(Path::new(&kubeconfig("admin"))).await?;
        self.until("the API server", async || {
            let request = hyper::Request::get("/readyz").body(Vec::new());
            let Ok(request) = request else { return false };
            client.request_text(request).await.is_ok()
        })
        .await?;
        said("API server");
        for component in [Component::Kubelet, Component::ControllerManager, Component::Scheduler] {
            self.start(component)?;
        }
        let nodes = Api::<v1::Node>::all(client.clone());
        self.until("the node", async || nodes.get(NODE).await.is_ok_and(|node| is_ready(&node))).await?;
        said("node");
        // A pod that comes before its service account is refused.
        let accounts = Api::<v1::ServiceAccount>::default_namespaced(client);
        self.until("the default service account", async || accounts.get("default").await.is_ok()).await
    }

    fn start(&mut self, component: Component) -> Result<()> {
        ensure!(!self.running.contains_key(&component), "{}: it runs already", component.name());
        let log = self.logs.join(component.name()).with_extension("log");
        let process = Process::spawn(&mut self.programs.command(component), &log);
        self.running.insert(component, process);
        Ok(())
    }

    /// Looks until `is_there`, or until a component ends. The caller sets the deadline.
    async fn until(&mut self, what: &str, is_there: impl AsyncFn() -> bool) -> Result<()> {
        while !is_there().await {
            self.check().with_context(|| format!("waiting for {what}"))?;
            tokio::time::sleep(GLANCE).await;
        }
        Ok(())
    }

    /// An error if a component has ended by itself.
    fn check(&mut self) -> Result<()> {
        for (component, process) in &mut self.running {
            if let Some(status) = process.ended() {
                bail!(
                    "{} ended with {status}; the last that it printed:\n{}",
                    component.name(),
                    process.tail()
                );
            }
        }
        Ok(())
    }

    async fn serve(&mut self) -> Result<()> {
        let listener = UnixListener::bind(at(control::SOCKET)).context("the control socket")?;
        loop {
            if let Ok(accepted) = tokio::time::timeout(GLANCE, listener.accept()).await {
                let (stream, _) = accepted.context("the control socket")?;
                // Whoever asks and goes away is no reason to end.
                if let Err(error) = control::take(stream, |request| self.answer(request)).await {
                    eprintln!("control: {error:#}");
                }
            }
            self.check()?;
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Status => {}
            Request::Kill(component) => {
                let process = self.running.remove(&component);
                let mut process = process.ok_or_else(|| format!("{}: it does not run", component.name()))?;
                process::kill(process.pid());
                process.wait(DEATH);
            }
            Request::Start(component) => self.start(component).map_err(|error| format!("{error:#}"))?,
        }
        Ok(self.running.iter().map(|(&component, process)| (component, process.pid())).collect())
    }
}

/// A client with the rights of the kubeconfig's user.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn is_ready(node: &v1::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
