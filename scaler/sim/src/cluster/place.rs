//! Which GPU a replica goes to, and what it gets there.
//!
//! What fits is the ledger's to say, the same that a node agent keeps; each GPU has one. A policy that keeps its own books
//! places replicas itself: then only memory is checked, as its node agent does.

use gpu_share::binding::{BindingId, GpuId, Owner};
use gpu_share::ledger::{Gpu, Ledger};
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota, SmShare};

use super::{Card, Cluster};
use crate::gpu::Enforcement;
use crate::spec::Cards;
use crate::surface::Surface;

pub(super) fn card(cards: &Cards, index: u32) -> Card {
    let gpu = Gpu {
        id: GpuId(format!("GPU-{index}")),
        index,
        name: "simulated".into(),
        memory: cards.memory,
        sharing: cards.sharing,
    };
    let ledger = Ledger::new([gpu.clone()]);
    Card { ledger, gpu, replicas: Vec::new(), memory: Bytes::ZERO, sold: 0, healthy: true }
}

/// What a share has sold of a GPU's time.
fn time_of(share: &Share) -> u64 {
    Area::of_time(share.sm, share.floor).ppm()
}

impl Card {
    /// What `share` would leave: the smaller of unsold time and memory, and both; `None` if either is too little.
    fn left_by(&self, share: &Share) -> Option<(u64, u64)> {
        let time = Area::GPU.ppm().checked_sub(self.sold + time_of(share))?;
        let bound = self.memory + share.memory;
        if !self.healthy || bound > self.gpu.memory {
            return None;
        }
        let memory = Area::GPU.ppm().saturating_sub(Area::of_memory(bound, self.gpu.memory).ppm());
        Some((time.min(memory), time + memory))
    }
}

/// Who works on a GPU beside a replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside {
    /// Replicas in other rows.
    pub(super) neighbours: u32,
    /// Grants and floors of those in its own, in parts per million.
    pub(super) grants: u32,
    pub(super) floors: u32,
}

impl Cluster {
    /// The GPU with room for `share` that it leaves the least room on, as the ledger chooses among a node's.
    pub(super) fn best_fit(&self, share: &Share) -> Option<u32> {
        let left = |card: &Card| Some((card.left_by(share)?, card.gpu.index));
        let mut candidates: Vec<_> = self.gpus.iter().filter_map(left).collect();
        candidates.sort_unstable();
        let fits = |&(_, gpu): &(_, u32)| self.gpus[gpu as usize].ledger.best_fit(share).is_some();
        candidates.into_iter().find(fits).map(|(_, gpu)| gpu)
    }

    /// Whether `share` may go to `gpu` by a policy's own books.
    pub(super) fn has_memory(&self, gpu: u32, share: &Share) -> bool {
        self.gpus
            .get(gpu as usize)
            .is_some_and(|card| card.healthy && card.memory + share.memory <= card.gpu.memory)
    }

    /// Binds the replica at `place` on its GPU; in the ledger, if that is to say what fits. False if it does not fit.
    pub(super) fn bind(&mut self, place: u32, by_ledger: bool) -> bool {
        let replica = &self.replicas[place as usize];
        let card = &mut self.gpus[replica.gpu as usize];
        let share = replica.share;
        if by_ledger {
            let Some(id) = binding_id(&replica.id) else { return false };
            let Ok((binding, displaced)) = card.ledger.bind_on(&card.gpu.id, id, Owner::default(), share)
            else {
                return false;
            };
            self.seats[place as usize].row = Some(binding.row);
            let (withdrawn, moved) = (displaced.withdrawn, displaced.moved);
            card.replicas.push(place);
            for id in &moved {
                self.follow_row(id);
            }
            self.follow_grants(&withdrawn);
        } else {
            card.replicas.push(place);
        }
        let card = &mut self.gpus[self.replicas[place as usize].gpu as usize];
        card.memory += share.memory;
        card.sold += time_of(&share);
        true
    }

    pub(super) fn unbind(&mut self, place: u32) {
        let replica = &self.replicas[place as usize];
        let card = &mut self.gpus[replica.gpu as usize];
        if self.seats[place as usize].row.is_some()
            && let Some(id) = binding_id(&replica.id)
        {
            // What was bound is in the ledger.
            let _ = card.ledger.release(&id);
        }
        card.replicas.retain(|&other| other != place);
        card.memory = card.memory.saturating_sub(replica.share.memory);
        card.sold = card.sold.saturating_sub(time_of(&replica.share));
    }

    /// Gives a replica `quota`, or what its row has left.
    pub(super) fn grant(&mut self, place: u32, quota: Quota) {
        let replica = &self.replicas[place as usize];
        let given = if self.seats[place as usize].row.is_none() {
            quota
        } else {
            let card = &mut self.gpus[replica.gpu as usize];
            let Some(id) = binding_id(&replica.id) else { return };
            let changed = if quota.is_zero() {
                card.ledger.park(&id).map(|()| (quota, Vec::new()))
            } else {
                card.ledger.grant(&id, quota)
            };
            let Ok((given, withdrawn)) = changed else { return };
            self.follow_grants(&withdrawn);
            given
        };
        self.follow_grant(place, given);
    }

    /// The most that a replica could have now: what the others in its row leave, as far as its share goes.
    pub(super) fn room(&self, place: u32) -> Quota {
        let replica = &self.replicas[place as usize];
        if self.seats[place as usize].row.is_none() {
            return replica.share.ceiling;
        }
        let others = self.row_mates(place).map(|mate| self.replicas[mate as usize].engine.grant());
        let left = others.fold(Quota::WHOLE, Quota::saturating_sub);
        left.min(replica.share.ceiling).max(replica.share.floor)
    }

    /// Replicas in the same row of the same GPU.
    pub(super) fn row_mates(&self, place: u32) -> impl Iterator<Item = u32> {
        let row = self.seats[place as usize].row;
        let on_card = &self.gpus[self.replicas[place as usize].gpu as usize].replicas;
        let mates = on_card.iter().copied();
        mates.filter(move |&mate| mate != place && row.is_some() && self.seats[mate as usize].row == row)
    }

    /// Who works on the GPU of this one.
    pub(super) fn beside(&self, place: u32) -> Beside {
        let row = self.seats[place as usize].row;
        let card = &self.gpus[self.replicas[place as usize].gpu as usize];
        let mut beside = Beside::default();
        for &other in card.replicas.iter().filter(|&&other| other != place) {
            let seat = self.seats[other as usize];
            if !seat.works {
                continue;
            }
            if row.is_none() || seat.row != row {
                beside.neighbours += 1;
            } else {
                let mate = &self.replicas[other as usize];
                beside.grants += mate.engine.grant().ppm();
                beside.floors += mate.share.floor.ppm();
            }
        }
        beside
    }

    fn follow_row(&mut self, id: &BindingId) {
        let Some(place) = place_of_id(id.as_str()) else { return };
        let gpu = self.replicas[place as usize].gpu;
        if let Ok(binding) = self.gpus[gpu as usize].ledger.get(id) {
            self.seats[place as usize].row = Some(binding.row);
        }
    }

    fn follow_grants(&mut self, withdrawn: &[(BindingId, Quota)]) {
        for (id, quota) in withdrawn {
            if let Some(place) = place_of_id(id.as_str()) {
                self.follow_grant(place, *quota);
            }
        }
    }

    /// A replica has another grant from now on.
    fn follow_grant(&mut self, place: u32, quota: Quota) {
        let (now, counted) = (self.now, self.counted());
        let replica = &mut self.replicas[place as usize];
        let before = replica.engine.grant();
        if before == quota {
            return;
        }
        replica.meter.sum(before, counted);
        let again = replica.engine.regrant(quota, now);
        let function = replica.function as usize;
        if self.cards.enforcement == Enforcement::LaunchGated && !quota.is_zero() {
            self.measure(place);
        }
        let outcome = &mut self.functions[function].outcome;
        outcome.grants += u64::from(!before.is_zero() && !quota.is_zero());
        if let Some(end) = again {
            self.work_ends(place, end);
        }
    }

    /// Finds out how long batches take at the replica's share and grant.
    pub(super) fn measure(&mut self, place: u32) {
        let replica = &mut self.replicas[place as usize];
        let function = &self.functions[replica.function as usize];
        let (sm, quota) = (replica.share.sm, replica.engine.grant());
        let gated = self.cards.enforcement == Enforcement::LaunchGated;
        replica.slowed = function.contention.coefficient(sm);
        replica.times.clear();
        replica
            .times
            .extend((1..).take(function.batch).map(|batch| time(&function.surface, gated, sm, quota, batch)));
    }
}

fn time(surface: &Surface, gated: bool, sm: SmShare, quota: Quota, batch: u32) -> Nanos {
    if gated { surface.gated(sm, quota, batch) } else { surface.gpu_time(sm, batch) }
}

/// The name that the ledger knows a replica by is its id.
fn binding_id(id: &str) -> Option<BindingId> {
    BindingId::try_from(id.to_string()).ok()
}

/// The place in an id `r-<generation>-<place>`.
pub(super) fn place_of_id(id: &str) -> Option<u32> {
    id.rsplit_once('-')?.1.parse().ok()
}
