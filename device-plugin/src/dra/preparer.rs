//! The preparer: it makes bindings of what claims have, and gives them back.
//!
//! What a claim has, and which bindings stand for it, are pure functions beside this file; here they meet the owner of the
//! ledger. Calls take effect one after another: who holds the preparer holds it until the owner has answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_share::annotations::Shape;
use gpu_share::binding::{Binding, BindingId};
use gpu_share::invalid::Invalid;
use gpu_share::ledger::{Gpu, Refusal};
use gpu_share::names::annotation;
use gpu_share::protocol::{Bind, BindingStatus, Bound, NodeStatus};
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota, SmShare};
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::sync::{mpsc, watch};

use super::api::v1::Device;
use super::claim::{self, Part};
use super::held::{ClaimName, Held, Holdings};
use crate::cdi;
use crate::control::Handle;
use crate::kubelet::Unhealthy;
use crate::kubelet::allocator::replace;
use crate::kubelet::claims::PodName;
use crate::kubelet::cluster::{Annotations, Follower, Grant, Notice, Notices, Published};
use crate::kubelet::inject::Injector;
use crate::kubelet::recovery;
use crate::owner::{ControlError, Reshape};
use crate::refused::Refused;

/// See the module.
#[derive(Debug)]
pub(crate) struct Preparer {
    handle: Handle,
    injector: Injector,
    /// The node's pool of devices.
    pool: String,
    gpus: Vec<Gpu>,
    holdings: Holdings,
    /// What bindings are to have, as far as their claim was read since the agent started.
    wanted: BTreeMap<BindingId, Share>,
    /// What was bound, with how many processes, when something was lacking last.
    in_vain: Vec<(BindingId, Share, usize)>,
    /// The quotas that pods ask for in their annotations, as they are written.
    quotas: BTreeMap<PodName, String>,
    unhealthy: Unhealthy,
    published: watch::Sender<Published>,
    notices: Notices,
}

/// Where the preparer's results are to be had.
#[derive(Debug)]
pub(crate) struct Outlets {
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) notices: mpsc::Receiver<Notice>,
}

impl Preparer {
    /// A preparer for the node's `pool`, with the claims that the ledger has from an earlier agent.
    pub(crate) async fn restore(
        handle: Handle,
        injector: Injector,
        pool: String,
    ) -> Result<(Self, Outlets), ControlError> {
        let status = handle.status().await?;
        let mut holdings = Holdings::default();
        status.bindings().for_each(|one| holdings.insert(&one.binding));
        let lost =
            |recorded: &Binding| recorded.owner.claim.is_some() && holdings.get(&recorded.id).is_none();
        for binding in recovery::recover(&handle, &injector, &status, lost).await {
            holdings.insert(&binding);
        }
        // The other front end's are not this one's to remove.
        let is_bound = |id: &BindingId| status.binding(id).is_some();
        injector.retain(|id| holdings.get(id).is_some() || is_bound(id));
        let foreign = status.bindings().filter(|one| !one.binding.owner.devices.is_empty()).count();
        if foreign > 0 {
            tracing::warn!(
                foreign,
                "bindings of pods that came by the device plugin stay until they are released by hand"
            );
        }
        let (published, published_seen) = watch::channel(Published::default());
        let (notices, heard) = Notices::channel(Arc::clone(handle.metrics()));
        let preparer = Self {
            handle,
            injector,
            pool,
            gpus: status.gpus.iter().map(|gpu| gpu.gpu.clone()).collect(),
            holdings,
            wanted: BTreeMap::new(),
            in_vain: Vec::new(),
            quotas: BTreeMap::new(),
            unhealthy: Unhealthy::new(),
            published,
            notices,
        };
        Ok((preparer, Outlets { published: published_seen, notices: heard }))
    }

    /// Makes what a claim has ready for containers, or finds that it is.
    pub(crate) async fn prepare(&mut self, claim: &ResourceClaim) -> Result<Vec<Device>, Refused> {
        let parts = claim::parts(claim, &self.pool, &self.gpus)?;
        let status = self.handle.status().await?;
        self.forget_released(&status);
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        let stale =
            self.holdings.of_claim(uid).filter(|(_, held)| !parts.iter().any(|part| is_for(held, part)));
        for id in stale.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.release(&id).await?;
        }
        let mut devices = Vec::new();
        for part in &parts {
            let bound = self.bind(claim, part).await?;
            self.injector.publish(&bound).map_err(Refused::Inject)?;
            devices.push(self.device(part, &bound.binding));
        }
        Ok(devices)
    }

    /// Gives back what the claim with this UID has. One that has nothing is given back.
    pub(crate) async fn unprepare(&mut self, uid: &str) -> Result<(), Refused> {
        let held: Vec<_> = self.holdings.of_claim(uid).map(|(id, _)| id.clone()).collect();
        for id in held {
            self.release(&id).await?;
        }
        Ok(())
    }

    /// The claims that something is bound for.
    pub(crate) fn claims(&self) -> Vec<ClaimName> {
        self.holdings.claims().into_iter().collect()
    }

    /// The API server shows `claim` under the name `known`, or no such claim, at `now`.
    pub(crate) async fn looked(
        &mut self,
        known: &ClaimName,
        claim: Option<&ResourceClaim>,
        now: Nanos,
        grace: Nanos,
    ) -> Result<(), Refused> {
        let same = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(known.uid.as_str()));
        let parts = same.and_then(|claim| claim::parts(claim, &self.pool, &self.gpus).ok());
        let parts = parts.unwrap_or_default();
        let status = self.handle.status().await?;
        let busy = |id: &BindingId| status.binding(id).is_some_and(|one| !one.processes.is_empty());
        // What can't be read any more was read once: only that it is gone counts.
        let has = |held: &Held| same.is_some_and(|claim| claim::has(claim, &held.part, &held.gpu));
        for id in self.holdings.looked(&known.uid, has, busy, now, grace) {
            tracing::info!(binding = %id, namespace = known.namespace, claim = known.name, "its claim is gone");
            self.release(&id).await?;
        }
        for part in parts {
            let of_part = self.holdings.of_claim(&known.uid).find(|(_, held)| is_for(held, &part));
            if let Some((id, _)) = of_part {
                self.wanted.insert(id.clone(), part.share);
            }
        }
        Ok(())
    }

    /// Another set of GPUs takes no new containers.
    pub(crate) fn health(&mut self, unhealthy: Unhealthy) {
        let before = std::mem::replace(&mut self.unhealthy, unhealthy);
        for (gpu, why) in self.unhealthy.iter().filter(|(gpu, _)| !before.contains_key(*gpu)) {
            let note = format!("GPU {gpu} is unhealthy: {why}; what runs on it goes on");
            for (_, held) in self.holdings.iter().filter(|(_, held)| held.gpu == *gpu) {
                self.notices.tell(&held.pod, "GpuUnhealthy", note.clone());
            }
        }
    }

    /// Gives bindings what they lack once there is room, and shows what pods have.
    pub(crate) async fn refresh(&mut self) -> Result<(), Refused> {
        let mut status = self.handle.status().await?;
        if self.repair(&status).await {
            status = self.handle.status().await?;
        }
        self.forget_released(&status);
        let mut parts = BTreeMap::<PodName, Vec<(&str, &Binding)>>::new();
        for one in status.bindings() {
            if let Some(held) = self.holdings.get(&one.binding.id) {
                parts.entry(held.pod.clone()).or_default().push((&held.part.request, &one.binding));
            }
        }
        self.handle.metrics().front_end.claims(self.holdings.claims().len());
        let grants = parts.into_iter().map(|(pod, parts)| (pod, Grant::of(&parts))).collect();
        // By units nobody can come.
        replace(&self.published, Published { max_free: 0, grants });
        Ok(())
    }

    /// Asks again for what bindings lack, if anything has changed since that was in vain; whether anything was asked.
    async fn repair(&mut self, status: &NodeStatus) -> bool {
        let picture: Vec<_> = status
            .bindings()
            .map(|one| (one.binding.id.clone(), one.binding.share, one.processes.len()))
            .collect();
        let lacking: Vec<_> = status.bindings().filter(|one| self.is_lacking(one)).collect();
        if lacking.is_empty() || self.in_vain == picture {
            return false;
        }
        for one in lacking {
            let Some(wanted) = self.wanted.get(&one.binding.id) else { continue };
            match self.reshape(one, wanted).await {
                // For its container's next start.
                Ok(bound) => {
                    if let Err(error) = self.injector.publish(&bound) {
                        tracing::warn!(binding = %one.binding.id, %error, "its CDI file is old");
                    }
                }
                Err(error) => tracing::debug!(binding = %one.binding.id, %error, "it lacks something still"),
            }
        }
        self.in_vain = picture;
        true
    }

    fn is_lacking(&self, one: &BindingStatus) -> bool {
        self.wanted.get(&one.binding.id).is_some_and(|wanted| lacks(&one.binding.share, wanted))
    }

    async fn bind(&mut self, claim: &ResourceClaim, part: &Part) -> Result<Bound, Refused> {
        let owner = claim::owner(claim, part);
        let known =
            owner.claim.as_deref().and_then(|part_of| self.holdings.find(part_of, &part.gpu)).cloned();
        let id = if let Some(id) = known {
            id
        } else {
            let bind = Bind { owner, share: part.share };
            let bound = self.handle.bind_on(part.gpu.clone(), bind).await?;
            self.holdings.insert(&bound.binding);
            self.check_memory(&bound.binding, part).await?;
            self.tell_if_degraded(&bound.binding, part);
            bound.binding.id
        };
        self.wanted.insert(id.clone(), part.share);
        let status = self.handle.status().await?;
        let unknown = || ControlError::Refused(Refusal::Unknown(id.clone()));
        // It is about to start, so that the owner has to say what it says to those that start.
        self.reshape(status.binding(&id).ok_or_else(unknown)?, &part.share).await
    }

    /// Somebody may release a binding by hand.
    fn forget_released(&mut self, status: &NodeStatus) {
        let is_released = |id: &&BindingId| status.binding(id).is_none();
        let released: Vec<_> = self.holdings.iter().map(|(id, _)| id).filter(is_released).cloned().collect();
        for id in released {
            self.forget(&id);
        }
    }

    /// The scheduler counts memory exactly, so that less of it than the claim has is somebody else's doing.
    async fn check_memory(&mut self, binding: &Binding, part: &Part) -> Result<(), Refused> {
        let (free, needed) = (binding.share.memory, part.share.memory);
        if free >= needed {
            return Ok(());
        }
        self.release(&binding.id).await?;
        Err(Refused::NoMemory { gpu: part.gpu.clone(), free, needed })
    }

    fn tell_if_degraded(&self, binding: &Binding, part: &Part) {
        let (has, asked) = (&binding.share, &part.share);
        let pod = Held::of(binding).map(|held| held.pod);
        if let Some(pod) = pod.filter(|_| lacks(has, asked)) {
            let note = format!(
                "request {} has SM share {} and quota {} instead of {} and {}: beside the others on GPU {} no more fits yet",
                part.request, has.sm, has.floor, asked.sm, asked.floor, binding.gpu
            );
            self.notices.tell(&pod, "GpuShareDegraded", note);
        }
    }

    /// Gives a binding what it lacks of `wanted`, and its pod's quota; else it stays as it is.
    async fn reshape(&self, one: &BindingStatus, wanted: &Share) -> Result<Bound, Refused> {
        let Binding { id, owner, share, grant, .. } = &one.binding;
        let share = match lacks(share, wanted) {
            false => *share,
            true if one.processes.is_empty() => *wanted,
            true => at_width(wanted, share.sm),
        };
        let asked = self.holdings.get(id).and_then(|held| self.asked_quota(&held.pod).ok()?);
        let quota = asked.unwrap_or(*grant).clamp(share.floor, share.ceiling);
        let reshape = Reshape { owner: owner.clone(), share, quota };
        Ok(self.handle.reshape(id.clone(), reshape).await?)
    }

    /// The quota that a pod asks for in its annotations, if it does.
    fn asked_quota(&self, pod: &PodName) -> Result<Option<Quota>, Invalid> {
        let Some(text) = self.quotas.get(pod) else { return Ok(None) };
        let annotations = BTreeMap::from([(annotation::QUOTA.to_string(), text.clone())]);
        Ok(Shape::read(&annotations, Bytes::ZERO)?.quota)
    }

    /// Gives the bindings of `pod` the quota that its annotations ask for, within floor and ceiling; their floor if none.
    async fn follow(&self, pod: &PodName) {
        let quota = match self.asked_quota(pod) {
            Ok(quota) => quota,
            Err(invalid) => {
                return self.notices.tell(
                    pod,
                    "GpuAnnotationInvalid",
                    format!("{invalid}; it keeps what it has"),
                );
            }
        };
        let status = match self.handle.status().await {
            Ok(status) => status,
            Err(error) => return tracing::warn!(%error, "annotations are not followed"),
        };
        for id in self.holdings.of_pod(pod) {
            let floor = || status.binding(&id).map(|one| one.binding.share.floor);
            let Some(quota) = quota.or_else(floor) else { continue };
            match self.handle.set_grant(id.clone(), quota).await {
                Ok(granted) => tracing::info!(binding = %id, grant = %granted.grant, "annotations changed"),
                Err(error) => tracing::warn!(binding = %id, %error, "annotations are not followed"),
            }
        }
    }

    async fn release(&mut self, id: &BindingId) -> Result<(), Refused> {
        match self.handle.release(id.clone()).await {
            // Released by hand.
            Err(ControlError::Refused(_)) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        self.forget(id);
        Ok(())
    }

    fn forget(&mut self, id: &BindingId) {
        self.injector.remove(id);
        self.holdings.remove(id);
        self.wanted.remove(id);
    }

    fn device(&self, part: &Part, binding: &Binding) -> Device {
        let own = format!("{}={}", cdi::KIND, binding.id);
        let gpu = self.injector.gpu_kind.iter().map(|kind| format!("{kind}={}", binding.gpu));
        Device {
            request_names: vec![part.request.clone()],
            pool_name: self.pool.clone(),
            device_name: part.device.clone(),
            cdi_device_ids: [own].into_iter().chain(gpu).collect(),
            share_id: part.share_id.clone(),
        }
    }
}

impl Follower for Preparer {
    /// Only the quota counts: the rest of the form is the claim's matter.
    async fn annotated(&mut self, pod: PodName, mut annotations: Annotations) {
        let quota = annotations.remove(annotation::QUOTA);
        let before = match &quota {
            Some(text) => self.quotas.insert(pod.clone(), text.clone()),
            None => self.quotas.remove(&pod),
        };
        if before != quota {
            self.follow(&pod).await;
        }
    }

    fn forgotten(&mut self, pod: &PodName) {
        self.quotas.remove(pod);
    }
}

fn is_for(held: &Held, part: &Part) -> bool {
    held.part.request == part.request && held.part.share == part.share_id && held.gpu == part.gpu
}

/// Whether a binding with `has` has less than `wanted`, in whatever form.
fn lacks(has: &Share, wanted: &Share) -> bool {
    let area = |share: &Share| Area::of_time(share.sm, share.floor);
    area(has) < area(wanted) || has.memory < wanted.memory
}

/// The same area as `wanted` on `sm`, where a process keeps its SMs; at most all of the time of them.
fn at_width(wanted: &Share, sm: SmShare) -> Share {
    let at = |quota: Quota| {
        let area = u64::from(quota.ppm()) * u64::from(wanted.sm.percent());
        let ppm = area.div_ceil(sm.percent().into()).min(Quota::WHOLE.ppm().into());
        u32::try_from(ppm).ok().and_then(|ppm| Quota::from_ppm(ppm).ok()).unwrap_or(Quota::WHOLE)
    };
    Share { sm, floor: at(wanted.floor), ceiling: at(wanted.ceiling), ..*wanted }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn another_width_has_the_same_area_as_far_as_there_is_time(
            wide in 1u8..=100, floor in 1u32..=1_000_000, more in 0u32..=1_000_000, width in 1u8..=100,
        ) {
            let sm = |percent| SmShare::from_percent(percent).unwrap();
            let (floor, ceiling) = (Quota::from_ppm(floor).unwrap(), Quota::from_ppm((floor + more).min(1_000_000)).unwrap());
            let wanted = Share::new(sm(wide), floor, ceiling, Bytes::gib(1)).unwrap();
            let same = at_width(&wanted, sm(width));
            prop_assert!(Share::new(same.sm, same.floor, same.ceiling, same.memory).is_ok());
            prop_assert_eq!(lacks(&same, &wanted), same.floor == Quota::WHOLE
                && Area::of_time(same.sm, same.floor) < Area::of_time(wanted.sm, wanted.floor));
        }
    }
}
