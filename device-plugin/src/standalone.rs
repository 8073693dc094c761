//! The agent without Kubernetes: one state folder, two sockets, one port for metrics.
//!
//! Owns start, restore and stop. A kubelet front end would start the same parts and bind through the same handle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use gpu_share::binding::Binding;
use gpu_share::ledger::Sharing;
use gpu_share::names::state;
use gpu_share::page::Counters;
use gpu_share::protocol::Health;
use gpu_share::units::{Nanos, Units};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::arbiter::Rules;
use crate::checkpoint;
use crate::clock::{Clock, monotonic};
use crate::containers::Containers;
use crate::control::{self, Handle};
use crate::environment::Environment;
use crate::health::{self, Watch};
use crate::inventory::{Inventory, InventoryError};
use crate::metrics::Metrics;
use crate::mps::Mps;
use crate::mps::keeper::{Keeper, MpsError, Standing};
use crate::node::Node;
use crate::owner::{Message, Owner};
use crate::pages::Pages;
use crate::reactor::Reactor;

use before::{Before, Gpus};

mod before;
#[cfg(test)]
mod tests;

/// Events that a listener may fall behind.
const EVENTS: usize = 1024;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state folder: sockets, pages, checkpoint.
    pub state: PathBuf,
    /// Path of the management library, for containers.
    pub nvml: PathBuf,
    /// Path of the CUDA driver library, for containers.
    pub driver: Option<PathBuf>,
    /// Folder of the hook library, for containers.
    pub hook: Option<PathBuf>,
    /// How processes share GPUs.
    pub sharing: Sharing,
    /// The daemon of NVIDIA's multi-process service.
    pub mps: Mps,
    /// Window over which quotas are kept, above 0 and at most 1 s.
    pub window: Nanos,
    /// Units that a GPU is divided into.
    pub units: Units,
    /// Where metrics are served, if at all.
    pub metrics: Option<SocketAddr>,
    /// Further variables for containers.
    pub env: Vec<(String, String)>,
    /// What decides about the health of GPUs.
    pub health: health::Options,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The GPUs are not known.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Another agent uses the folder.
    #[error("state folder {0} is in use by another node agent")]
    InUse(PathBuf),
    /// Something in the state folder, or a thread, can't be made.
    #[error("{what} can't be made: {reason}")]
    Io {
        /// What.
        what: String,
        /// Why.
        reason: io::Error,
    },
    /// There is no daemon of NVIDIA's multi-process service.
    #[error(transparent)]
    Mps(#[from] MpsError),
    /// The metrics can't be registered.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

fn can_not_make(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> StartError {
    move |reason| StartError::Io { what: what.to_string(), reason }
}

/// A running agent. Dropped, it stops as if it had been killed: sockets, pages and checkpoint stay as they are.
#[derive(Debug)]
pub struct Agent {
    handle: Handle,
    socket: PathBuf,
    control_socket: PathBuf,
    metrics: Option<SocketAddr>,
    /// Folder of the bindings.
    bindings: PathBuf,
    mps: Option<Keeper>,
    /// How the GPUs are, where somebody says.
    watch: Option<Watch>,
    /// Taken in this order on stop.
    containers: Option<Containers>,
    server: Option<(CancellationToken, JoinHandle<()>)>,
    owner: Option<JoinHandle<()>>,
    /// Held as long as the folder is in use; the kernel releases it with the process.
    _lock: File,
}

impl Agent {
    /// Starts an agent on the GPUs of `inventory`, restoring what an earlier one had bound in the same folder.
    pub fn start(config: &Config, inventory: &dyn Inventory) -> Result<Self, StartError> {
        fs::create_dir_all(&config.state).map_err(can_not_make(config.state.display()))?;
        // Containers see these paths, whatever folder they run in.
        let folder = config.state.canonicalize().map_err(can_not_make(config.state.display()))?;
        let lock = lock(&folder)?;
        let (socket, control_socket) = (folder.join(state::SOCKET), folder.join(state::CONTROL_SOCKET));
        for path in [&socket, &control_socket] {
            remove_stale(path).map_err(can_not_make(path.display()))?;
        }
        let control = control::listen(&control_socket).map_err(can_not_make(control_socket.display()))?;
        let port = config.metrics.map(listen).transpose()?;
        let address = port.as_ref().and_then(|port| port.local_addr().ok());
        let metrics = Arc::new(Metrics::new()?);
        let before = Before::read(&folder).map_err(can_not_make(folder.join(state::LEDGER).display()))?;
        let gpus = before.gpus(inventory.gpus(config.sharing, before.patience()))?;
        let (handle, owner) = start_owner(config, &folder, before, &gpus, Arc::clone(&metrics))?;
        let mut agent = Self {
            handle: handle.clone(),
            socket,
            control_socket,
            metrics: address,
            bindings: folder.join(state::BINDINGS),
            mps: None,
            watch: None,
            containers: None,
            server: None,
            owner: Some(owner),
            _lock: lock,
        };
        if let Mps::Start(program) = &config.mps {
            let owner = handle.owner.clone();
            // An owner that is gone binds nothing.
            let tell = move |standing| drop(owner.send(Message::Mps(standing)));
            agent.mps = Some(Keeper::start(program, &folder, tell)?);
            metrics.mps_is_up(true);
        }
        if let Some(source) = inventory.source() {
            let owner = handle.owner.clone();
            let tell = move |news| drop(owner.send(Message::News(news)));
            let ids = gpus.all.into_iter().map(|gpu| gpu.id).collect();
            let watch = Watch::start(source, ids, &gpus.missing, config.health.clone(), tell);
            agent.watch = Some(watch.map_err(can_not_make("a thread"))?);
        }
        // Last, so that whoever can connect is answered.
        agent.server = Some(serve(control, port, handle.clone())?);
        let containers = Containers::listen(&agent.socket, handle.owner);
        agent.containers = Some(containers.map_err(can_not_make(agent.socket.display()))?);
        Ok(agent)
    }

    /// To bind, release and grant from within this process.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Path of the containers' socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Path of the control socket.
    pub fn control_socket(&self) -> &Path {
        &self.control_socket
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Whether the thread that owns all state still runs; if not, only a new agent helps.
    pub fn is_running(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is_finished())
    }

    /// Stops for good: removes the sockets; pages and checkpoint stay for the next agent, and so does a daemon of NVIDIA's
    /// multi-process service that containers still use.
    pub fn stop(mut self) {
        self.halt();
        if let Some(mps) = self.mps.take() {
            // Functions that still run would lose the GPU with the daemon; the next agent finds it.
            let unused = fs::read_dir(&self.bindings).is_ok_and(|mut folders| folders.next().is_none());
            mps.stop(unused);
        }
        for path in [&self.socket, &self.control_socket] {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "socket stays");
            }
        }
    }

    fn halt(&mut self) {
        drop(self.containers.take());
        drop(self.watch.take());
        if let Some((cancel, server)) = self.server.take() {
            cancel.cancel();
            let _ = server.join();
        }
        if let Some(owner) = self.owner.take() {
            // An owner that is gone has nothing to stop.
            let _ = self.handle.owner.send(Message::Stop);
            let _ = owner.join();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Restores what is in `folder` and starts the thread that owns all state.
fn start_owner(
    config: &Config,
    folder: &Path,
    before: Before,
    gpus: &Gpus,
    metrics: Arc<Metrics>,
) -> Result<(Handle, JoinHandle<()>), StartError> {
    let boot = before.boot.clone();
    let (node, pages) = restore(config, folder, before, gpus)?;
    let known = node.ledger().gpus().map(|gpu| (gpu.id.clone(), node.health(&gpu.id)));
    let (health, followers) = watch::channel(known.collect());
    let (reactor, inbox) = Reactor::new().map_err(can_not_make("a reactor"))?;
    let events = broadcast::channel(EVENTS).0;
    let handle = Handle { owner: inbox.clone(), events, health: followers, metrics: Arc::clone(&metrics) };
    let owner = Owner {
        node,
        clock: Clock::new(),
        pages,
        environment: environment(config, folder),
        mps: Standing::Up,
        blind: None,
        health,
        checkpoint: checkpoint::Writer::start(folder.join(state::LEDGER), boot, gpus.all.clone())
            .map_err(can_not_make("a thread"))?,
        is_unsaved: false,
        events: handle.events.clone(),
        metrics,
        connections: BTreeMap::new(),
        next_process: 0,
        reactor,
        inbox,
    };
    let thread = thread::Builder::new().name("arbiter".into()).spawn(move || owner.run());
    Ok((handle, thread.map_err(can_not_make("a thread"))?))
}

fn lock(folder: &Path) -> Result<File, StartError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(can_not_make(path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse(folder.into())),
        Err(error) => Err(can_not_make(path.display())(error.into())),
    }
}

/// The lock is held, so a socket that is there belongs to nobody.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).map_err(can_not_make(address))?;
    listener.set_nonblocking(true).map_err(can_not_make(address))?;
    Ok(listener)
}

fn environment(config: &Config, folder: &Path) -> Environment {
    Environment {
        socket: folder.join(state::SOCKET),
        driver: config.driver.clone(),
        nvml: config.nvml.clone(),
        hook: config.hook.clone(),
        sharing: config.sharing,
        mps: config.mps.pipes(folder),
        extra: config.env.clone(),
    }
}

/// The node and its pages as an earlier agent left them, as far as that still fits.
fn restore(config: &Config, folder: &Path, before: Before, gpus: &Gpus) -> Result<(Node, Pages), StartError> {
    let rules = Rules { window: config.window, ..Rules::default() };
    let mut node = Node::new(gpus.all.iter().cloned(), config.units, rules);
    let mut pages = Pages::new(folder, config.window).map_err(can_not_make(folder.display()))?;
    let survivors = if before.damaged { pages.survivors() } else { Vec::new() };
    for binding in before.saved.bindings {
        let is_new = before.rebooted;
        // Whoever ran before the machine was started again has to ask anew for more than its floor.
        let grant = if is_new { binding.share.floor } else { binding.grant };
        take_over(&mut node, &mut pages, &Binding { grant, ..binding }, is_new);
    }
    for snapshot in &survivors {
        match before::from_page(node.ledger(), snapshot) {
            Ok(binding) => take_over(&mut node, &mut pages, &binding, false),
            Err(error) => {
                tracing::warn!(binding = %snapshot.identity.binding, error, "A page gives no binding that fits.");
            }
        }
    }
    // After the bindings: what is on such a GPU stays.
    for gpu in &gpus.missing {
        // The ledger knows them all.
        let _ = node.set_health(gpu, Health::Unhealthy { why: health::UNSEEN.into() });
    }
    pages.remove_unknown().map_err(can_not_make(folder.display()))?;
    Ok((node, pages))
}

/// Takes a binding over with its page; one `is_new` starts with nothing counted.
fn take_over(node: &mut Node, pages: &mut Pages, binding: &Binding, is_new: bool) {
    let opened = |pages: &mut Pages| {
        if is_new { pages.create(binding).map(|()| Counters::default()) } else { pages.reopen(binding) }
    };
    let restored = match node.ledger().clone().restore(binding.clone()) {
        Ok(()) => opened(pages).map_err(|error| error.to_string()).and_then(|counters| {
            node.restore(binding, counters, monotonic()).map_err(|refusal| refusal.to_string())
        }),
        Err(refusal) => Err(refusal.to_string()),
    };
    match restored {
        Ok(()) => tracing::info!(binding = %binding.id, "restored"),
        Err(error) => tracing::warn!(binding = %binding.id, error, "not restored"),
    }
}

/// Serves control API and metrics on a thread with a runtime of its own, so that the agent can be embedded anywhere.
fn serve(
    control: std::os::unix::net::UnixListener,
    metrics: Option<TcpListener>,
    handle: Handle,
) -> Result<(CancellationToken, JoinHandle<()>), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(can_not_make("a runtime"))?;
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    let thread = thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(async {
            let control = control::serve(control, handle.clone());
            let metrics = serve_metrics(metrics, handle);
            let ended = tokio::select! {
                () = cancelled.cancelled() => Ok(()),
                ended = control => ended,
                ended = metrics => ended,
            };
            if let Err(error) = ended {
                tracing::error!(%error, "control API ended");
            }
        });
        // Streams of events would go on for ever.
        runtime.shutdown_background();
    });
    Ok((cancel, thread.map_err(can_not_make("a thread"))?))
}

async fn serve_metrics(listener: Option<TcpListener>, handle: Handle) -> io::Result<()> {
    let Some(listener) = listener else { return std::future::pending().await };
    let router = axum::Router::new()
        .route("/healthz", get(control::health))
        .route("/metrics", get(render))
        .with_state(handle);
    axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
}

async fn render(State(handle): State<Handle>) -> Result<String, (StatusCode, String)> {
    let failed = |error: String| (StatusCode::SERVICE_UNAVAILABLE, error + "\n");
    let observation = handle.observe().await.map_err(|error| failed(error.to_string()))?;
    handle.metrics().render(&observation).map_err(|error| failed(error.to_string()))
}
