//! Keeping in step with the ledger: what kubelet and API server are told of it, and what containers lack once there is room.

use std::collections::BTreeMap;

use gpu_share::binding::Binding;
use gpu_share::protocol::{BindingStatus, Event, NodeStatus};
use gpu_share::share::Share;
use gpu_share::units::{Area, Units};
use tokio::sync::{broadcast, watch};

use super::{Allocator, Asked};
use crate::kubelet::advert;
use crate::kubelet::claims::PodName;
use crate::kubelet::cluster::{Grant, Published};
use crate::node::GpuOffer;
use crate::refused::Refused;

impl Allocator {
    /// Brings what is told to kubelet and API server into step with the ledger, and gives claims what they lack once there is
    /// room.
    pub(crate) async fn refresh(&mut self) -> Result<(), Refused> {
        self.note_withdrawals();
        let mut status = self.handle.status().await?;
        if self.repair(&status).await {
            status = self.handle.status().await?;
        }
        let offers = self.offers().await?;
        self.handle.metrics().front_end.offer(&offers);
        let gpus: Vec<_> = offers.iter().map(|offer| self.as_told(offer)).collect();
        let max_free = advert::max_free(&gpus);
        let mirrored = (gpus, self.claims.taken());
        // The list is long, and mostly nothing has changed.
        if self.mirrored != mirrored {
            replace(&self.advert, advert::advert(&self.catalog, &mirrored.0, &mirrored.1));
            self.mirrored = mirrored;
        }
        replace(&self.published, Published { max_free, grants: self.grants(&status) });
        Ok(())
    }

    fn as_told(&self, offer: &GpuOffer) -> advert::Gpu {
        let is_healthy = !self.unhealthy.contains_key(&offer.gpu);
        let (free, largest) = (offer.units.free.0 as usize, offer.largest.0 as usize);
        advert::Gpu { is_healthy, free, largest, numa: self.numa.get(&offer.gpu).copied() }
    }

    async fn offers(&self) -> Result<Vec<GpuOffer>, Refused> {
        let allocated = self.gpus.iter().enumerate().map(|(position, gpu)| {
            let units = u32::try_from(self.claims.units_on(position)).unwrap_or(u32::MAX);
            (gpu.id.clone(), Units(units))
        });
        Ok(self.handle.offers(allocated.collect(), self.division.smallest).await?)
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

    /// What each pod has now.
    fn grants(&self, status: &NodeStatus) -> BTreeMap<PodName, Grant> {
        let mut parts = BTreeMap::<PodName, Vec<(&str, &Binding)>>::new();
        for BindingStatus { binding, .. } in status.bindings() {
            let container = self.claims.get(&binding.id).filter(|claim| claim.started.is_some());
            if let Some(container) = container.and_then(|claim| claim.container.as_ref()) {
                parts.entry(container.pod.clone()).or_default().push((&container.name, binding));
            }
        }
        parts.into_iter().map(|(pod, parts)| (pod, Grant::of(&parts))).collect()
    }
}

/// Sends a value to those who watch, if it is another one.
pub(crate) fn replace<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|old| {
        let differs = *old != value;
        if differs {
            *old = value;
        }
        differs
    });
}
