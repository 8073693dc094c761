//! The front end's tasks, from start to stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use gpu_share::binding::GpuId;
use gpu_share::ledger::Gpu;
use gpu_share::protocol::Health;
use gpu_share::units::Nanos;
use k8s_openapi::api::resource::v1::{Device, ResourceClaim};
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::health::HealthService;
use super::preparer::{Outlets, Preparer};
use super::registration::Services;
use super::slice::{Card, MAX_DEVICES, devices, slice_name};
use super::{publish, registration};
use crate::clock::monotonic;
use crate::inventory::Traits;
use crate::kubelet::cluster::{Cluster, in_time};
use crate::kubelet::device::distinct;
use crate::kubelet::inject::Injector;
use crate::kubelet::serve::{Front, Options, REFRESH, unhealthy};
use crate::standalone::Agent;

/// Times the grace that lie between two looks at the claims: one that goes without the kubelet telling is rare, and each look is
/// a request of each node.
const GRACES: f64 = 30.0;
/// Longest name of an object at the API server.
const MAX_NAME: usize = 253;

/// Starts the front end beside `agent`, whose GPUs are of the kinds in `traits`.
pub(crate) async fn start(
    agent: &Agent,
    options: &Options,
    injector: Injector,
    traits: BTreeMap<GpuId, Traits>,
) -> anyhow::Result<Front> {
    let node = options.node.clone().context("--node-name is not given, allowed is the node's name")?;
    ensure!(
        slice_name(&node).len() <= MAX_NAME,
        "--node-name is {node}, allowed are {} characters",
        MAX_NAME - slice_name("").len()
    );
    let cluster = Cluster::infer(node.clone()).await.context(
        "no API server is known, allowed is a service account or KUBECONFIG: claims come from there",
    )?;
    let handle = agent.handle();
    let gpus: Vec<_> = handle.status().await?.gpus.into_iter().map(|gpu| gpu.gpu).collect();
    distinct(&gpus.iter().map(|gpu| gpu.id.clone()).collect::<Vec<_>>())?;
    ensure!(gpus.len() <= MAX_DEVICES, "the node has {} GPUs, allowed are {MAX_DEVICES}", gpus.len());
    let (preparer, outlets) = Preparer::restore(handle.clone(), injector, node).await?;
    let preparer = Arc::new(Mutex::new(preparer));
    let Outlets { published, notices } = outlets;

    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let health = handle.health();
    let mut cards = Cards { gpus, traits, since: BTreeMap::new() };
    let (described, seen) = watch::channel(cards.devices(&health.borrow(), now()));
    tasks.spawn(describe(Arc::clone(&preparer), health, cards, described));
    let (registered, is_registered) = watch::channel(None);
    tasks.spawn(publish::keep(cluster.clone(), seen, is_registered));
    tasks.spawn(keep_in_step(Arc::clone(&preparer)));
    tasks.spawn(look_at_claims(Arc::clone(&preparer), cluster.clone(), options.grace));
    let (watcher, told) = (cluster.clone(), Arc::clone(&preparer));
    tasks.spawn(async move { watcher.follow(told).await });
    let writer = cluster.clone();
    tasks.spawn(async move { writer.show(published, notices).await });
    let health = HealthService { pool: cluster.node().into(), health: handle.health(), end: stop.clone() };
    let services = Services {
        driver: Driver { preparer, cluster, registered, metrics: Arc::clone(handle.metrics()) },
        health,
    };
    let (registry, ends) = (options.registry.clone(), stop.clone());
    tasks.spawn(async move { registration::keep(services, &registry, ends).await });
    Ok(Front { tasks, stop })
}

/// The GPUs, and since when some of them take no new containers.
#[derive(Debug)]
struct Cards {
    gpus: Vec<Gpu>,
    traits: BTreeMap<GpuId, Traits>,
    since: BTreeMap<GpuId, Timestamp>,
}

impl Cards {
    /// The devices at `now`.
    fn devices(&mut self, health: &BTreeMap<GpuId, Health>, now: Timestamp) -> Vec<Device> {
        let broken = unhealthy(health);
        self.since.retain(|gpu, _| broken.contains_key(gpu));
        for gpu in broken.into_keys() {
            self.since.entry(gpu).or_insert(now);
        }
        let card = |gpu: &Gpu| Card {
            gpu: gpu.clone(),
            traits: self.traits.get(&gpu.id).cloned().unwrap_or_default(),
            unhealthy: self.since.get(&gpu.id).copied(),
        };
        devices(&self.gpus.iter().map(card).collect::<Vec<_>>())
    }
}

async fn describe(
    preparer: Arc<Mutex<Preparer>>,
    mut health: watch::Receiver<BTreeMap<GpuId, Health>>,
    mut cards: Cards,
    described: watch::Sender<Vec<Device>>,
) {
    loop {
        let known = health.borrow_and_update().clone();
        described.send_replace(cards.devices(&known, now()));
        preparer.lock().await.health(unhealthy(&known));
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// In whole seconds, as the API server keeps times.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

async fn keep_in_step(preparer: Arc<Mutex<Preparer>>) {
    let mut interval = tokio::time::interval(REFRESH);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = preparer.lock().await.refresh().await {
            tracing::warn!(%error, "what is shown of pods may be old");
        }
    }
}

/// Finds claims that are gone. What can't be asked says nothing.
async fn look_at_claims(preparer: Arc<Mutex<Preparer>>, cluster: Cluster, grace: Nanos) {
    let mut interval = tokio::time::interval(Duration::from(grace).mul_f64(GRACES));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let claims = preparer.lock().await.claims();
        for known in claims {
            let api = Api::<ResourceClaim>::namespaced(cluster.client(), &known.namespace);
            let Ok(found) = in_time(api.get_opt(&known.name)).await else { continue };
            let looked = preparer.lock().await.looked(&known, found.as_ref(), monotonic(), grace).await;
            if let Err(error) = looked {
                tracing::warn!(namespace = known.namespace, claim = known.name, %error, "claim is not looked at");
            }
        }
    }
}
