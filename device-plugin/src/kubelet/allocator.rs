//! The allocator: it answers the kubelet from the claims, and keeps bindings, pages and what is told to the kubelet in step
//! with them.
//!
//! Which devices, which GPU, which share and what is told are pure functions beside this file; here they meet the owner of
//! the ledger. Calls take effect one after another: who holds the allocator holds it until the owner has answered.

use std::collections::{BTreeMap, BTreeSet};

use gpu_share::annotations::Shape;
use gpu_share::binding::{Binding, BindingId, GpuId, Owner};
use gpu_share::ledger::Gpu;
use gpu_share::protocol::{Bind, Bound, Event, NodeStatus};
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota, Units};
use tokio::sync::{broadcast, mpsc, watch};

use super::Unhealthy;
use super::advert::{self, Advert};
use super::choose::{self, Wanted};
use super::claims::{Claim, Claims, Container, PodName};
use super::device::{Catalog, DeviceId};
use super::entitlement::{Complaint, Entitlement, entitlement};
use super::inject::Injector;
use crate::control::Handle;
use crate::fit;
use crate::node::GpuOffer;
use crate::owner::{ControlError, Reshape};

/// A pod's annotations.
pub(crate) type Annotations = BTreeMap<String, String>;

/// Why a call of the kubelet is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The node has no such device.
    #[error("device {0} is not of this node, allowed are those that the plugin lists")]
    UnknownDevice(DeviceId),
    /// Nobody was given the devices together.
    #[error("devices {0} were not allocated together by this agent; delete the pod, so that it gets others")]
    NotAllocated(String),
    /// No GPU has any room.
    #[error("no GPU takes a new container: {0}")]
    NoRoom(String),
    /// The container can't do with the memory that there is.
    #[error("GPU {gpu} has {free} left for a container that needs {needed}; it starts once there is more")]
    NoMemory {
        /// Its GPU.
        gpu: GpuId,
        /// What it could have.
        free: Bytes,
        /// What it needs.
        needed: Bytes,
    },
    /// The owner refuses.
    #[error(transparent)]
    Owner(#[from] ControlError),
    /// What the container's runtime reads can't be written.
    #[error("the CDI file can't be written: {0}")]
    Inject(std::io::Error),
}

/// Something that an operator must know about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) pod: PodName,
    pub(crate) is_warning: bool,
    /// One word for machines.
    pub(crate) reason: &'static str,
    /// One line for people.
    pub(crate) note: String,
}

/// What the API server should show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The most units that one new container could have.
    pub(crate) max_free: usize,
    /// Of each pod: its grant in percent, and its GPU.
    pub(crate) grants: BTreeMap<PodName, Grant>,
}

/// What a pod has now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Quota in percent; for several containers `name=percent`, separated by commas.
    pub(crate) quota: String,
    /// UUID of the GPU, or several.
    pub(crate) gpu: String,
}

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
    published: watch::Sender<Published>,
    notices: mpsc::Sender<Notice>,
}

/// Where the allocator's results are to be had.
#[derive(Debug)]
pub(crate) struct Outlets {
    pub(crate) advert: watch::Receiver<Advert>,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) notices: mpsc::Receiver<Notice>,
}

/// Notices that wait for an API server; more are dropped.
const NOTICES: usize = 256;

impl Allocator {
    /// An allocator with the claims that the ledger has from an earlier agent.
    pub(crate) async fn restore(
        handle: Handle,
        division: Division,
        injector: Injector,
    ) -> anyhow::Result<(Self, Outlets)> {
        let events = handle.events();
        let status = handle.status().await?;
        let gpus: Vec<_> = status.gpus.iter().map(|gpu| gpu.gpu.clone()).collect();
        let catalog = Catalog::new(gpus.iter().map(|gpu| gpu.id.clone()).collect(), division.per_gpu)?;
        let (advert, advert_seen) = watch::channel(Advert::new());
        let (published, published_seen) = watch::channel(Published::default());
        let (notices, noticed) = mpsc::channel(NOTICES);
        let mut allocator = Self {
            handle,
            events,
            division,
            catalog,
            gpus,
            claims: Claims::default(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            pods: BTreeMap::new(),
            learned: BTreeSet::new(),
            unhealthy: Unhealthy::new(),
            injector,
            advert,
            published,
            notices,
        };
        for binding in bindings(&status) {
            allocator.adopt(binding);
        }
        allocator.recover().await;
        let claims = &allocator.claims;
        allocator.injector.retain(|id| claims.get(id).is_some());
        allocator.refresh().await?;
        Ok((allocator, Outlets { advert: advert_seen, published: published_seen, notices: noticed }))
    }

    /// Binds again what containers were told by CDI files and the ledger does not know: its checkpoint was damaged. Whoever is
    /// gone meanwhile goes with the next looks at the kubelet's list.
    async fn recover(&mut self) {
        for binding in self.injector.recorded() {
            if self.claims.get(&binding.id).is_some() {
                continue;
            }
            match self.handle.restore(binding.clone()).await {
                Ok(()) => {
                    tracing::warn!(binding = %binding.id, "not in the checkpoint, restored from its CDI file");
                    self.adopt(&binding);
                }
                Err(error) => tracing::warn!(binding = %binding.id, %error, "not restored from its CDI file"),
            }
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

    /// The devices to prefer.
    pub(crate) fn prefer(&self, wanted: &Wanted) -> Vec<DeviceId> {
        choose::prefer(&self.catalog, &self.room(), wanted)
    }

    /// Binds a container that the kubelet admits, or finds the binding that it has.
    pub(crate) async fn allocate(&mut self, devices: &BTreeSet<DeviceId>) -> Result<Bound, Refused> {
        if let Some(unknown) = devices.iter().find(|device| self.catalog.gpu_of(device).is_none()) {
            return Err(Refused::UnknownDevice(unknown.clone()));
        }
        let busy = self.busy_among(devices).await?;
        let admission = self.claims.admit(devices, |id| busy.contains(id));
        for id in &admission.gone {
            self.release(id).await;
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
            claim.container = container.or(claim.container.take());
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

    /// A pod's annotations are known, or changed.
    pub(crate) async fn annotated(&mut self, pod: PodName, annotations: Annotations) {
        if self.pods.get(&pod) == Some(&annotations) {
            return;
        }
        self.pods.insert(pod.clone(), annotations);
        for id in self.claims_of(&pod) {
            self.follow(&id).await;
        }
    }

    /// The annotations of a pod that the watch has not shown; it need not ever do so.
    pub(crate) async fn learned(&mut self, pod: PodName, annotations: Annotations) {
        self.learned.insert(pod.clone());
        self.annotated(pod, annotations).await;
    }

    /// A pod is gone from the API server. Its claims stay until the kubelet's list misses them.
    pub(crate) fn forgotten(&mut self, pod: &PodName) {
        self.pods.remove(pod);
    }

    /// The kubelet's list, at `now`.
    pub(crate) async fn listed(
        &mut self,
        list: &[(Container, BTreeSet<DeviceId>)],
        now: Nanos,
    ) -> Result<(), Refused> {
        let busy = busy(&self.handle.status().await?);
        let (grace, claims) = (self.division.grace, &mut self.claims);
        let reconciled = claims.reconcile(list, |id| busy.contains(id), now, grace);
        for id in &reconciled.gone {
            tracing::info!(binding = %id, "its pod is gone");
            self.release(id).await;
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
                self.notice(&container.pod, true, "GpuUnhealthy", note.clone());
            }
        }
        self.refresh().await
    }

    /// Brings what is told to kubelet and API server into step with the ledger, and gives claims what they lack once there is
    /// room.
    pub(crate) async fn refresh(&mut self) -> Result<(), Refused> {
        self.note_withdrawals();
        let mut status = self.handle.status().await?;
        if self.repair(&status).await {
            status = self.handle.status().await?;
        }
        let gpus: Vec<_> = self.offers().await?.iter().map(|offer| self.as_told(offer)).collect();
        let advert = advert::advert(&self.catalog, &gpus, &self.claims.taken());
        replace(&self.advert, advert);
        replace(
            &self.published,
            Published { max_free: advert::max_free(&gpus), grants: self.grants(&status) },
        );
        Ok(())
    }

    fn as_told(&self, offer: &GpuOffer) -> advert::Gpu {
        let is_healthy = !self.unhealthy.contains_key(&offer.gpu);
        advert::Gpu { is_healthy, free: offer.units.free.0 as usize, largest: offer.largest.0 as usize }
    }

    async fn offers(&self) -> Result<Vec<GpuOffer>, Refused> {
        let allocated = self.gpus.iter().enumerate().map(|(position, gpu)| {
            let units = u32::try_from(self.claims.units_on(position)).unwrap_or(u32::MAX);
            (gpu.id.clone(), Units(units))
        });
        Ok(self.handle.offers(allocated.collect(), self.division.smallest).await?)
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
            self.tell(id, &container.pod, true, "GpuAnnotationInvalid", note);
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
                self.tell(id, &container.pod, true, "GpuShareUnchanged", note);
            }
        }
    }

    async fn reshape(&mut self, id: &BindingId, share: Share, quota: Quota) -> Result<Bound, Refused> {
        let owner = self.owner_of(id);
        let bound = self.handle.reshape(id.clone(), Reshape { owner, share, quota }).await?;
        self.asked.insert(id.clone(), Asked { share, quota, given: bound.binding.grant });
        Ok(bound)
    }

    async fn release(&mut self, id: &BindingId) {
        self.claims.remove(id);
        self.asked.remove(id);
        self.told.remove(id);
        self.injector.remove(id);
        if let Err(error) = self.handle.release(id.clone()).await {
            tracing::warn!(binding = %id, %error, "not released");
        }
    }

    /// Asks again for what claims lack, on GPUs that have something left; whether anything was asked.
    async fn repair(&mut self, status: &NodeStatus) -> bool {
        let gpus = status.gpus.iter().filter(|gpu| gpu.free_units > Units(0));
        let lacking =
            gpus.flat_map(|gpu| &gpu.bindings).map(|one| &one.binding).filter(|binding| self.lacks(binding));
        let lacking: Vec<_> = lacking.map(|binding| binding.id.clone()).collect();
        for id in &lacking {
            let Some(Asked { share, quota, .. }) = self.asked.get(id).cloned() else { continue };
            if let Err(error) = self.reshape(id, share, quota).await {
                tracing::debug!(binding = %id, %error, "it lacks something still");
            }
        }
        !lacking.is_empty()
    }

    /// Whether a started container has less than it was to have. A grant that somebody else made smaller is their business.
    fn lacks(&self, binding: &Binding) -> bool {
        let is_started = self.claims.get(&binding.id).is_some_and(|claim| claim.started.is_some());
        let Some(asked) = self.asked.get(&binding.id).filter(|_| is_started && !binding.is_parked()) else {
            return false;
        };
        let area = |share: &Share| Area::of_time(share.sm, share.floor);
        area(&binding.share) < area(&asked.share)
            || binding.share.memory < asked.share.memory
            || (binding.grant == asked.given && binding.grant < asked.quota.min(binding.share.ceiling))
    }

    /// Grants that the ledger took for others' floors are still ours to give again.
    fn note_withdrawals(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(Event::Withdrawn { binding, grant }) => {
                    if let Some(asked) = self.asked.get_mut(&binding) {
                        asked.given = grant;
                    }
                }
                Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return,
            }
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
        }
    }

    /// Bindings with processes, if a claim with some of `devices` has started; else nobody asks.
    async fn busy_among(&self, devices: &BTreeSet<DeviceId>) -> Result<BTreeSet<BindingId>, Refused> {
        let started = |claim: &Claim| claim.started.is_some() && !claim.devices.is_disjoint(devices);
        if self.claims.iter().any(|(_, claim)| started(claim)) {
            Ok(busy(&self.handle.status().await?))
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

    /// What each pod has now.
    fn grants(&self, status: &NodeStatus) -> BTreeMap<PodName, Grant> {
        let mut parts = BTreeMap::<PodName, Vec<(&str, &Binding)>>::new();
        for binding in bindings(status) {
            let container = self.claims.get(&binding.id).filter(|claim| claim.started.is_some());
            if let Some(container) = container.and_then(|claim| claim.container.as_ref()) {
                parts.entry(container.pod.clone()).or_default().push((&container.name, binding));
            }
        }
        parts.into_iter().map(|(pod, parts)| (pod, Grant::of(&parts))).collect()
    }

    fn tell_of_start(&mut self, id: &BindingId, entitled: &Entitlement, binding: &Binding) {
        let Some(container) = self.claims.get(id).and_then(|claim| claim.container.clone()) else { return };
        let (pod, name) = (&container.pod, &container.name);
        match &entitled.complaint {
            Some(Complaint::Invalid(invalid)) => {
                let note = format!("{name}: {}", Complaint::Invalid(invalid.clone()));
                self.tell(id, pod, true, "GpuAnnotationInvalid", note);
            }
            Some(complaint) => self.tell(id, pod, true, "GpuUnitsMismatch", format!("{name}: {complaint}")),
            None => {}
        }
        let (has, asked) = (&binding.share, &entitled.share);
        if has.sm != asked.sm || has.floor < asked.floor || has.memory < asked.memory {
            let note = format!(
                "{name} has SM share {}, quota {} and {} instead of {}, {} and {}: beside the others on GPU {} no more fits",
                has.sm, has.floor, has.memory, asked.sm, asked.floor, asked.memory, binding.gpu
            );
            self.notice(pod, true, "GpuShareDegraded", note);
        }
    }

    fn tell_of_delay(&mut self, id: &BindingId, error: &Refused) {
        if let Some(Container { pod, name }) = self.claims.get(id).and_then(|claim| claim.container.clone()) {
            self.tell(id, &pod, true, "GpuShareUnavailable", format!("{name} does not start yet: {error}"));
        }
    }

    /// Tells something about a claim, unless that was the last that was told.
    fn tell(&mut self, id: &BindingId, pod: &PodName, is_warning: bool, reason: &'static str, note: String) {
        if self.told.get(id) != Some(&note) {
            self.told.insert(id.clone(), note.clone());
            self.notice(pod, is_warning, reason, note);
        }
    }

    fn notice(&self, pod: &PodName, is_warning: bool, reason: &'static str, note: String) {
        tracing::warn!(namespace = pod.namespace, pod = pod.name, reason, note, "pod");
        // Without an API server nobody reads them; the log has them.
        let _ = self.notices.try_send(Notice { pod: pod.clone(), is_warning, reason, note });
    }
}

impl Grant {
    fn of(parts: &[(&str, &Binding)]) -> Self {
        let percent = |binding: &Binding| format!("{}", (binding.grant.percent() * 10.0).round() / 10.0);
        let gpus: BTreeSet<_> = parts.iter().map(|(_, binding)| binding.gpu.0.as_str()).collect();
        let quota = match parts {
            [(_, one)] => percent(one),
            several => {
                let each: Vec<_> =
                    several.iter().map(|(name, one)| format!("{name}={}", percent(one))).collect();
                each.join(",")
            }
        };
        Self { quota, gpu: gpus.into_iter().collect::<Vec<_>>().join(",") }
    }
}

fn bindings(status: &NodeStatus) -> impl Iterator<Item = &Binding> {
    status.gpus.iter().flat_map(|gpu| &gpu.bindings).map(|one| &one.binding)
}

/// Bindings with processes.
fn busy(status: &NodeStatus) -> BTreeSet<BindingId> {
    let all = status.gpus.iter().flat_map(|gpu| &gpu.bindings);
    all.filter(|one| !one.processes.is_empty()).map(|one| one.binding.id.clone()).collect()
}

fn names(devices: &BTreeSet<DeviceId>) -> Vec<String> {
    devices.iter().map(ToString::to_string).collect()
}

fn unknown(id: &BindingId) -> Refused {
    Refused::Owner(ControlError::Refused(gpu_share::ledger::Refusal::Unknown(id.clone())))
}

/// Sends a value to those who watch, if it is another one.
fn replace<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|old| {
        let differs = *old != value;
        if differs {
            *old = value;
        }
        differs
    });
}
