//! The allocator: it answers the kubelet from the claims, and keeps bindings, pages and what is told to the kubelet in step
//! with them.
//!
//! Which devices, which GPU, which share and what is told are pure functions beside this file; here they meet the owner of
//! the ledger. Calls take effect one after another: who holds the allocator holds it until the owner has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_share::annotations::Shape;
use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
use gpu_share::ledger::Gpu;
use gpu_share::protocol::{Bind, Bound, Event, NodeStatus};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, Units};
use tokio::sync::{broadcast, mpsc, watch};

use super::Unhealthy;
use super::advert::{self, Advert};
use super::choose::{self, Wanted};
use super::claims::{Claim, Claims, Container, PodName};
use super::cluster::{Annotations, Follower, Notice, Notices, Published};
use super::device::{Catalog, DeviceId};
use super::entitlement::{Entitlement, entitlement};
use super::inject::Injector;
use super::recovery;
use crate::control::Handle;
use crate::fit;
use crate::owner::{ControlError, Reshape};
use crate::refused::Refused;

pub(crate) use step::replace;

mod notices;
mod step;

/// What the node is divided into, and how strict it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Division {
    /// Units per GPU.
    pub(crate) per_gpu: Units,
    /// The fewest units that any container asks for; what is left below that is withdrawn.
    pub(crate) smallest: Units,
    /// How long the kubelet's list has to miss a container until that is gone.
    pub(crate) grace: Nanos,
}

/// What was last asked of the owner for a claim, and what came of it.
#[derive(Clone, Debug)]
struct Asked {
    share: Share,
    quota: Quota,
    /// The grant that came of it; another one is somebody else's wish.
    given: Quota,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Allocator {
    handle: Handle,
    events: broadcast::Receiver<Event>,
    division: Division,
    catalog: Catalog,
    gpus: Vec<Gpu>,
    /// The NUMA nodes of the GPUs, as far as they are known.
    numa: BTreeMap<GpuId, u32>,
    claims: Claims,
    asked: BTreeMap<BindingId, Asked>,
    /// The last that was told about a claim, so that it is told once.
    told: BTreeMap<BindingId, String>,
    pods: BTreeMap<PodName, Annotations>,
    /// Pods that were asked for; nobody tells when they are gone.
    learned: BTreeSet<PodName>,
    unhealthy: Unhealthy,
    injector: Injector,
    advert: watch::Sender<Advert>,
    /// What the list that was sent last follows from: the GPUs, and the devices that containers hold.
    mirrored: (Vec<advert::Gpu>, BTreeSet<DeviceId>),
    published: watch::Sender<Published>,
    notices: Notices,
}

/// Where the allocator's results are to be had.
#[derive(Debug)]
pub(crate) struct Outlets {
    pub(crate) advert: watch::Receiver<Advert>,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) notices: mpsc::Receiver<Notice>,
}

impl Allocator {
    /// An allocator with the claims that the ledger has from an earlier agent.
    pub(crate) async fn restore(
        handle: Handle,
        division: Division,
        injector: Injector,
        numa: BTreeMap<GpuId, u32>,
    ) -> anyhow::Result<(Self, Outlets)> {
        let events = handle.events();
        let status = handle.status().await?;
        let gpus: Vec<_> = status.gpus.iter().map(|gpu| gpu.gpu.clone()).collect();
        let catalog = Catalog::new(gpus.iter().map(|gpu| gpu.id.clone()).collect(), division.per_gpu)?;
        let (advert, advert_seen) = watch::channel(Advert::new());
        let (published, published_seen) = watch::channel(Published::default());
        let (notices, heard) = Notices::channel(Arc::clone(handle.metrics()));
        let mut allocator = Self {
            handle,
            events,
            division,
            catalog,
            gpus,
            numa,
            claims: Claims::default(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            pods: BTreeMap::new(),
            learned: BTreeSet::new(),
            unhealthy: Unhealthy::new(),
            injector,
            advert,
            mirrored: (Vec::new(), BTreeSet::new()),
            published,
            notices,
        };
        for one in status.bindings() {
            allocator.adopt(&one.binding);
        }
        allocator.recover(&status).await;
        let claims = &allocator.claims;
        // The other front end's are not this one's to remove.
        let is_bound = |id: &BindingId| status.binding(id).is_some();
        allocator.injector.retain(|id| claims.get(id).is_some() || is_bound(id));
        let foreign = status.bindings().filter(|one| one.binding.owner.claim.is_some()).count();
        if foreign > 0 {
            tracing::warn!(foreign, "bindings of claims stay until they are released by hand");
        }
        allocator.refresh().await?;
        Ok((allocator, Outlets { advert: advert_seen, published: published_seen, notices: heard }))
    }

    /// Whoever is gone meanwhile goes with the next looks at the kubelet's list.
    async fn recover(&mut self, status: &NodeStatus) {
        let claims = &self.claims;
        let lost =
            |recorded: &Binding| !recorded.owner.devices.is_empty() && claims.get(&recorded.id).is_none();
        for binding in recovery::recover(&self.handle, &self.injector, status, lost).await {
            self.adopt(&binding);
        }
    }

    /// Takes over a binding that an earlier agent made for the kubelet; others are not the kubelet's.
    fn adopt(&mut self, binding: &Binding) {
        let owner = &binding.owner;
        let Some(gpu) = self.catalog.position(&binding.gpu).filter(|_| !owner.devices.is_empty()) else {
            return;
        };
        let pod = PodName { namespace: owner.namespace.clone(), name: owner.instance.clone() };
        let is_known = !owner.container.is_empty();
        let devices: BTreeSet<_> = owner.devices.iter().cloned().map(DeviceId).collect();
        let claim = Claim {
            started: is_known.then_some(devices.len()),
            container: is_known.then(|| Container { pod, name: owner.container.clone() }),
            ..Claim::new(devices, gpu)
        };
        if claim.started.is_some() {
            let (share, given) = (binding.share, binding.grant);
            let quota = given.max(share.floor);
            self.asked.insert(binding.id.clone(), Asked { share, quota, given });
        }
        self.claims.insert(binding.id.clone(), claim);
    }

    /// Names of the `size` devices to prefer among those that are `available`, with all that are `included`.
    pub(crate) fn prefer(&self, available: &[String], included: &[String], size: usize) -> Vec<String> {
        let positions = |names: &[String]| names.iter().filter_map(|name| self.catalog.find(name)).collect();
        let wanted = Wanted { available: positions(available), included: positions(included), size };
        let chosen = choose::prefer(&self.room(), &wanted);
        chosen.into_iter().map(|device| self.catalog.device(device).to_string()).collect()
    }

    /// Binds a container that the kubelet admits, or finds the binding that it has.
    pub(crate) async fn allocate(&mut self, devices: &BTreeSet<DeviceId>) -> Result<Bound, Refused> {
        if let Some(unknown) = devices.iter().find(|device| self.catalog.gpu_of(device).is_none()) {
            return Err(Refused::UnknownDevice(unknown.clone()));
        }
        let busy = self.busy_among(devices).await?;
        let admission = self.claims.admit(devices, |id| busy.contains(id));
        for id in &admission.gone {
            self.release(id);
        }
        for id in &admission.shrunk {
            self.renew(id).await?;
        }
        match admission.reuse {
            Some(id) => self.renew(&id).await,
            None => self.bind(devices).await,
        }
    }

    /// Gives a container that is about to start the form of its share.
    pub(crate) async fn start(
        &mut self,
        devices: &BTreeSet<DeviceId>,
        container: Option<Container>,
    ) -> Result<Bound, Refused> {
        let Some(id) = self.claims.holding(devices).map(|(id, _)| id.clone()) else {
            let names: Vec<_> = devices.iter().map(ToString::to_string).collect();
            return Err(Refused::NotAllocated(names.join(", ")));
        };
        if let Some(claim) = self.claims.get_mut(&id) {
            claim.started = Some(devices.len());
            claim.container = container.or_else(|| claim.container.take());
        }
        let entitled = self.entitled(&id);
        let bound = match self.reshape(&id, entitled.share, entitled.quota).await {
            Ok(bound) => bound,
            Err(error) => {
                self.tell_of_delay(&id, &error);
                return Err(error);
            }
        };
        self.tell_of_start(&id, &entitled, &bound.binding);
        let (has, needed) = (bound.binding.share.memory, entitled.share.memory);
        if has < needed && (entitled.needs_memory || has == Bytes::ZERO) {
            let error = Refused::NoMemory { gpu: bound.binding.gpu, free: has, needed };
            self.tell_of_delay(&id, &error);
            return Err(error);
        }
        self.injector.publish(&bound).map_err(Refused::Inject)?;
        Ok(bound)
    }

    /// Whether the annotations of a pod are known.
    pub(crate) fn knows(&self, pod: &PodName) -> bool {
        self.pods.contains_key(pod)
    }

    /// The annotations of a pod that the watch has not shown; it need not ever do so.
    pub(crate) async fn learned(&mut self, pod: PodName, annotations: Annotations) {
        self.learned.insert(pod.clone());
        self.annotated(pod, annotations).await;
    }

    /// The kubelet's list, at `now`.
    pub(crate) async fn listed(
        &mut self,
        list: &[(Container, BTreeSet<DeviceId>)],
        now: Nanos,
    ) -> Result<(), Refused> {
        let busy = self.handle.busy().await?;
        let (grace, claims) = (self.division.grace, &mut self.claims);
        let reconciled = claims.reconcile(list, |id| busy.contains(id), now, grace);
        for id in &reconciled.gone {
            tracing::info!(binding = %id, "its pod is gone");
            self.release(id);
        }
        for id in &reconciled.found {
            self.follow(id).await;
        }
        let done: Vec<_> =
            self.learned.iter().filter(|pod| self.claims_of(pod).is_empty()).cloned().collect();
        for pod in done {
            self.learned.remove(&pod);
            self.pods.remove(&pod);
        }
        Ok(())
    }

    /// Another set of GPUs takes no new containers.
    pub(crate) async fn health(&mut self, unhealthy: Unhealthy) -> Result<(), Refused> {
        let before = std::mem::replace(&mut self.unhealthy, unhealthy);
        let broken: Vec<_> = self.unhealthy.iter().filter(|(gpu, _)| !before.contains_key(*gpu)).collect();
        for (gpu, why) in broken {
            let position = self.catalog.position(gpu);
            let note = format!("GPU {gpu} is unhealthy: {why}; what runs on it goes on");
            let on_it = self.claims.iter().filter(|(_, claim)| Some(claim.gpu) == position);
            for container in on_it.filter_map(|(_, claim)| claim.container.as_ref()) {
                self.notices.tell(&container.pod, "GpuUnhealthy", note.clone());
            }
        }
        self.refresh().await
    }

    /// Units of each GPU that nobody has paid for. Grants don't count: floors beat them.
    fn room(&self) -> Vec<usize> {
        let room = |(position, gpu): (usize, &Gpu)| {
            let paid = self.claims.units_on(position);
            let is_healthy = !self.unhealthy.contains_key(&gpu.id);
            if is_healthy { (self.division.per_gpu.0 as usize).saturating_sub(paid) } else { 0 }
        };
        self.gpus.iter().enumerate().map(room).collect()
    }

    async fn bind(&mut self, devices: &BTreeSet<DeviceId>) -> Result<Bound, Refused> {
        let mut why = "none has a unit left".to_string();
        for gpu in choose::homes(&self.catalog, &self.room(), devices) {
            let owner = Owner { devices: names(devices), ..Owner::default() };
            let memory = self.paid_memory(gpu, devices.len());
            let Some(share) = fit::placeholder(memory) else { continue };
            match self.handle.bind_on(self.gpus[gpu].id.clone(), Bind { owner, share }).await {
                Ok(bound) => {
                    self.claims.insert(bound.binding.id.clone(), Claim::new(devices.clone(), gpu));
                    return Ok(bound);
                }
                Err(ControlError::Refused(refusal)) => why = refusal.to_string(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refused::NoRoom(why))
    }

    /// Writes what a claim is to the ledger, with the share that it has.
    async fn renew(&mut self, id: &BindingId) -> Result<Bound, Refused> {
        let claim = self.claims.get(id).ok_or_else(|| unknown(id))?;
        let memory = self.paid_memory(claim.gpu, claim.units);
        let has_form = self.asked.get(id).filter(|_| claim.started.is_some());
        let form = has_form.map(|asked| (asked.share, asked.quota));
        let placeholder = || fit::placeholder(memory).map(|share| (share, share.floor));
        let (share, quota) = form.or_else(placeholder).ok_or_else(|| unknown(id))?;
        self.reshape(id, share, quota).await
    }

    /// A claim's pod or its annotations are known: its share follows. What can't be read leaves a running container as it is.
    async fn follow(&mut self, id: &BindingId) {
        let Some(claim) = self.claims.get(id).filter(|claim| claim.started.is_some()) else { return };
        let Some(container) = claim.container.clone() else { return };
        let annotations = self.pods.get(&container.pod).cloned().unwrap_or_default();
        if let Err(invalid) = Shape::read(&annotations, self.gpus[claim.gpu].memory) {
            let note = format!("{invalid}; {} keeps what it has", container.name);
            self.tell(id, &container.pod, "GpuAnnotationInvalid", note);
            return;
        }
        let entitled = self.entitled(id);
        let same = |asked: &Asked| (asked.share, asked.quota) == (entitled.share, entitled.quota);
        if self.asked.get(id).is_some_and(same) {
            return;
        }
        match self.reshape(id, entitled.share, entitled.quota).await {
            Ok(bound) => tracing::info!(binding = %id, grant = %bound.binding.grant, "annotations changed"),
            Err(error) => {
                let note = format!("{} keeps what it has: {error}", container.name);
                self.tell(id, &container.pod, "GpuShareUnchanged", note);
            }
        }
    }

    async fn reshape(&mut self, id: &BindingId, share: Share, quota: Quota) -> Result<Bound, Refused> {
        let owner = self.owner_of(id);
        let bound = self.handle.reshape(id.clone(), Reshape { owner, share, quota }).await?;
        self.asked.insert(id.clone(), Asked { share, quota, given: bound.binding.grant });
        Ok(bound)
    }

    fn release(&mut self, id: &BindingId) {
        self.claims.remove(id);
        self.asked.remove(id);
        self.told.remove(id);
        self.injector.remove(id);
        if let Err(error) = self.handle.release_unwaited(id.clone()) {
            tracing::warn!(binding = %id, %error, "not released");
        }
    }

    fn entitled(&self, id: &BindingId) -> Entitlement {
        let claim = self.claims.get(id);
        let pod = claim.and_then(|claim| claim.container.as_ref()).map(|container| &container.pod);
        let annotations = pod.and_then(|pod| self.pods.get(pod)).cloned().unwrap_or_default();
        let (units, gpu) = claim.map_or((1, 0), |claim| (claim.started.unwrap_or(claim.units), claim.gpu));
        entitlement(units, self.division.per_gpu, &self.gpus[gpu], &annotations)
    }

    fn owner_of(&self, id: &BindingId) -> Owner {
        let Some(claim) = self.claims.get(id) else { return Owner::default() };
        let devices = names(&claim.devices);
        let Some(Container { pod, name }) = claim.container.clone() else {
            return Owner { devices, ..Owner::default() };
        };
        Owner {
            namespace: pod.namespace,
            function: name.clone(),
            instance: pod.name,
            container: name,
            devices,
            claim: None,
        }
    }

    /// Bindings with processes, if a claim with some of `devices` has started; else nobody asks.
    async fn busy_among(&self, devices: &BTreeSet<DeviceId>) -> Result<BTreeSet<BindingId>, Refused> {
        let started = |claim: &Claim| claim.started.is_some() && !claim.devices.is_disjoint(devices);
        if self.claims.iter().any(|(_, claim)| started(claim)) {
            Ok(self.handle.busy().await?)
        } else {
            Ok(BTreeSet::new())
        }
    }

    fn claims_of(&self, pod: &PodName) -> Vec<BindingId> {
        let of_pod = |claim: &Claim| claim.container.as_ref().is_some_and(|container| container.pod == *pod);
        self.claims.iter().filter(|(_, claim)| of_pod(claim)).map(|(id, _)| id.clone()).collect()
    }

    fn paid_memory(&self, gpu: usize, units: usize) -> Bytes {
        entitlement(units, self.division.per_gpu, &self.gpus[gpu], &Annotations::new()).share.memory
    }
}

impl Follower for Allocator {
    async fn annotated(&mut self, pod: PodName, annotations: Annotations) {
        if self.pods.get(&pod) == Some(&annotations) {
            return;
        }
        self.pods.insert(pod.clone(), annotations);
        for id in self.claims_of(&pod) {
            self.follow(&id).await;
        }
    }

    /// Its claims stay until the kubelet's list misses them.
    fn forgotten(&mut self, pod: &PodName) {
        self.pods.remove(pod);
    }
}

fn names(devices: &BTreeSet<DeviceId>) -> Arc<[Arc<str>]> {
    devices.iter().map(|device| device.0.clone()).collect()
}

fn unknown(id: &BindingId) -> Refused {
    Refused::Owner(ControlError::Refused(gpu_share::ledger::Refusal::Unknown(id.clone())))
}
