//! The agent with a front end for the kubelet, from start to stop: the device plugin, or [`crate::dra`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use gpu_share::binding::GpuId;
use gpu_share::names::state;
use gpu_share::protocol::Health;
use gpu_share::units::{Nanos, Units};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::allocator::{Allocator, Division, Outlets};
use super::cluster::Cluster;
use super::inject::{Form, Injector};
use super::plugin::Plugin;
use super::podresources::PodResources;
use super::resource::Resource;
use super::{Unhealthy, install, registration};
use crate::clock::monotonic;
use crate::dra;
use crate::inventory::{Inventory, Traits};
use crate::standalone::{Agent, Config, StartError};

/// How often what is told is compared with the ledger. Each difference costs the scheduler a node status.
pub(crate) const REFRESH: Duration = Duration::from_secs(1);
/// Longest time between two looks at the kubelet's list.
const RECONCILE: Duration = Duration::from_secs(10);
/// How long NVML has to say what and where the GPUs are.
const KINDS: Duration = Duration::from_secs(5);
/// How often a new agent looks whether the one before it has left the state folder.
const TURN: Duration = Duration::from_millis(50);

/// How the kubelet comes to hand out GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FrontEnd {
    /// As a device plugin: units of an extended resource.
    #[default]
    Plugin,
    /// As a driver of dynamic resource allocation: claims.
    Dra,
}

/// What the front end is started with, beside the agent's own configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which one.
    pub front_end: FrontEnd,
    /// The kubelet's folder of sockets by which it finds drivers.
    pub registry: PathBuf,
    /// The extended resource.
    pub resource: Resource,
    /// The kubelet's folder of plugins.
    pub plugins: PathBuf,
    /// The kubelet's pod-resources socket.
    pub pod_resources: PathBuf,
    /// How a container gets at its binding.
    pub form: Form,
    /// Folder of CDI files.
    pub cdi: PathBuf,
    /// Kind of the CDI devices that stand for the GPUs themselves, if there are any.
    pub gpu_kind: Option<String>,
    /// Folder below which the hook library is installed.
    pub install: PathBuf,
    /// The node's name at the API server; without it nothing is asked or told there.
    pub node: Option<String>,
    /// The fewest units that any container asks for.
    pub smallest: Units,
    /// How long the kubelet's list has to miss a container until that is gone.
    pub grace: Nanos,
}

/// Runs agent and front end until `stop`. `ready` is called with the agent once it serves containers.
pub async fn run(
    mut config: Config,
    options: Options,
    inventory: &dyn Inventory,
    ready: impl FnOnce(&Agent) -> std::io::Result<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let source =
        config.hook.take().context("--hook is not given, allowed is the folder of the hook library")?;
    let hook = install::install(&source, &options.install, env!("CARGO_PKG_VERSION"))
        .with_context(|| format!("the hook library can't be installed in {}", options.install.display()))?;
    config.hook = Some(hook);
    let Some(agent) = start(&config, inventory, &stop).await? else { return Ok(()) };
    let injector = injector(&agent, &config, &options)?;
    let traits = inventory.traits(KINDS);
    let front = match options.front_end {
        FrontEnd::Plugin => Front::plugin(&agent, &config, &options, injector, traits).await?,
        FrontEnd::Dra => dra::serve::start(&agent, &options, injector, traits).await?,
    };
    ready(&agent)?;
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = agent_ends(&agent) => Err(anyhow::anyhow!("the arbiter's thread ended; the log says why")),
    };
    front.stop().await;
    agent.stop();
    ended
}

/// Starts the agent once the one before it has left: an upgrade starts the new one while the old one still runs. `None` if it
/// is told to stop before.
async fn start(
    config: &Config,
    inventory: &dyn Inventory,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Agent>> {
    let mut waits = false;
    loop {
        match Agent::start(config, inventory) {
            Err(StartError::InUse(folder)) => {
                if !waits {
                    tracing::info!(folder = %folder.display(), "another agent is here; waiting until it leaves");
                    waits = true;
                }
            }
            result => return Ok(Some(result?)),
        }
        tokio::select! {
            () = tokio::time::sleep(TURN) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

async fn agent_ends(agent: &Agent) {
    let mut interval = tokio::time::interval(REFRESH);
    while agent.is_running() {
        interval.tick().await;
    }
}

fn injector(agent: &Agent, config: &Config, options: &Options) -> anyhow::Result<Injector> {
    let folder = agent.socket().parent().unwrap_or(&config.state);
    let injector = Injector {
        form: options.form,
        sockets: folder.join(state::SOCKETS),
        folder: options.cdi.clone(),
        gpu_kind: options.gpu_kind.clone(),
    };
    injector.link(agent.socket()).context("the containers' socket can't be linked")?;
    Ok(injector)
}

/// A front end's tasks.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) tasks: JoinSet<()>,
    pub(crate) stop: CancellationToken,
}

impl Front {
    async fn plugin(
        agent: &Agent,
        config: &Config,
        options: &Options,
        injector: Injector,
        traits: BTreeMap<GpuId, Traits>,
    ) -> anyhow::Result<Self> {
        let numa = traits.into_iter().filter_map(|(gpu, traits)| Some((gpu, traits.numa?))).collect();
        let division = Division { per_gpu: config.units, smallest: options.smallest, grace: options.grace };
        let (allocator, outlets) =
            Allocator::restore(agent.handle(), division, injector.clone(), numa).await?;
        let allocator = Arc::new(Mutex::new(allocator));
        let pods = PodResources::new(options.pod_resources.clone(), options.resource.clone());
        let cluster = cluster(options.node.clone()).await;

        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let Outlets { advert, published, notices } = outlets;
        if let Some(cluster) = cluster.clone() {
            let (follower, allocator) = (cluster.clone(), Arc::clone(&allocator));
            tasks.spawn(async move { follower.follow(allocator).await });
            tasks.spawn(async move { cluster.show(published, notices).await });
        }
        tasks.spawn(keep_in_step(Arc::clone(&allocator), agent.handle().health()));
        let period = Duration::from(options.grace).div_f64(2.0).clamp(Duration::from_millis(50), RECONCILE);
        tasks.spawn(reconcile(Arc::clone(&allocator), pods.clone(), period));
        let plugin = Plugin {
            allocator,
            injector,
            advert,
            pods,
            cluster,
            metrics: Arc::clone(agent.handle().metrics()),
            end: stop.clone(),
        };
        let (plugins, resource, ends) = (options.plugins.clone(), options.resource.clone(), stop.clone());
        tasks.spawn(async move { registration::keep(plugin, &plugins, &resource, ends).await });
        Ok(Self { tasks, stop })
    }

    /// Ends the service for the kubelet first: it sees the plugin go, and its socket with it.
    async fn stop(mut self) {
        self.stop.cancel();
        tokio::task::yield_now().await;
        self.tasks.shutdown().await;
    }
}

async fn cluster(node: Option<String>) -> Option<Cluster> {
    let Some(node) = node else {
        tracing::warn!(
            "--node-name is not given: annotations are not read, and grants, events and labels not written"
        );
        return None;
    };
    Cluster::infer(node)
        .await
        .inspect_err(|error| {
            tracing::warn!(%error, "no API server: annotations are not read, and grants, events and labels not written");
        })
        .ok()
}

async fn keep_in_step(
    allocator: Arc<Mutex<Allocator>>,
    mut health: watch::Receiver<BTreeMap<GpuId, Health>>,
) {
    let mut interval = tokio::time::interval(REFRESH);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_watched = true;
    health.mark_changed();
    loop {
        let done = tokio::select! {
            changed = health.changed(), if is_watched => {
                is_watched = changed.is_ok();
                let unhealthy = unhealthy(&health.borrow_and_update());
                allocator.lock().await.health(unhealthy).await
            }
            _ = interval.tick() => allocator.lock().await.refresh().await,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "what is told to the kubelet may be old");
        }
    }
}

/// The GPUs that take no new containers.
pub(crate) fn unhealthy(health: &BTreeMap<GpuId, Health>) -> Unhealthy {
    let broken = health.iter().filter(|(_, health)| !health.takes_bindings());
    broken.map(|(gpu, health)| (gpu.clone(), health.why().unwrap_or_default().into())).collect()
}

async fn reconcile(allocator: Arc<Mutex<Allocator>>, pods: PodResources, period: Duration) {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        interval.tick().await;
        let listed = pods.list().await;
        if let (Err(error), false) = (&listed, failing) {
            tracing::warn!(%error, "the kubelet does not list pods; nothing is released");
        }
        failing = listed.is_err();
        let Ok(listed) = listed else { continue };
        if let Err(error) = allocator.lock().await.listed(&listed, monotonic()).await {
            tracing::warn!(%error, "claims are not compared with the kubelet's list");
        }
    }
}
