//! The ledger: a node's book of bindings, and the only place that decides what fits.
//!
//! A GPU's streaming multiprocessors are divided into **rows**. Rows run beside each other, so their widths sum to at
//! most the whole; the members of one row run one after the other, so their quotas sum to at most the whole time. A
//! GPU whose processes can't run beside each other (no multi-process service) has a single row of full width.
//!
//! What always holds ([`Ledger::check`]), per GPU:
//!
//! ```text
//! Σ row width ≤ 100 %      per row: Σ floor ≤ 100 %, Σ grant ≤ 100 %      Σ memory ≤ card      floor ≤ grant ≤ ceiling
//!                                                                                             (or 0 while parked)
//! ```
//!
//! from which Σ s·floor ≤ 1 and Σ s·grant ≤ 1 follow. Floors beat grants: whoever needs its floor gets it, and what
//! others hold above theirs is taken back. A GPU that is not healthy takes no new bindings and keeps those that it has.
//!
//! Bindings don't change their GPU. They change their row if a wide one would otherwise find no place: see
//! [`Displaced::moved`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, BindingId, GpuId, Owner};
use crate::share::Share;
use crate::units::{Area, Bytes, Quota, SmShare};

pub use units::Offer;

use place::{Merge, Rows};

mod place;
mod units;

/// How processes of different containers use a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// One at a time: SM shares have no effect.
    Exclusive,
    /// Beside each other, each on its SM share (NVIDIA's multi-process service).
    Mps,
}

/// One GPU of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its UUID.
    pub id: GpuId,
    /// Position in which the driver lists it.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// Memory that containers may use.
    pub memory: Bytes,
    /// How processes share it.
    pub sharing: Sharing,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No GPU has room.
    #[error("no GPU has room for SM share {sm}, quota {floor} and {memory}; the most room is {most_memory}")]
    NoRoom {
        /// What was asked for.
        sm: SmShare,
        /// What was asked for.
        floor: Quota,
        /// What was asked for.
        memory: Bytes,
        /// The largest free memory on one GPU that is healthy.
        most_memory: Bytes,
    },
    /// There is no such binding.
    #[error("binding {0} is not in the ledger")]
    Unknown(BindingId),
    /// The name is taken.
    #[error("binding {0} is in the ledger already")]
    Exists(BindingId),
    /// The node has no such GPU.
    #[error("GPU {0} is not on this node")]
    UnknownGpu(GpuId),
    /// The GPU takes no new bindings.
    #[error("GPU {0} is unhealthy, allowed is a healthy one")]
    Unhealthy(GpuId),
}

/// Grants that had to shrink so that a floor could be kept: binding and its new grant.
pub type Withdrawn = Vec<(BindingId, Quota)>;

/// What a new binding meant for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Displaced {
    /// Grants that shrank.
    pub withdrawn: Withdrawn,
    /// Bindings that are in another row now, as [`Binding::row`] says: they share a row that they had for themselves, so that
    /// the new one has width. Their floors and grants are kept, unless `withdrawn` says otherwise.
    pub moved: Vec<BindingId>,
}

/// A node's GPUs and what is bound on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    gpus: BTreeMap<GpuId, Gpu>,
    /// GPUs that take no new bindings.
    unhealthy: BTreeSet<GpuId>,
    bindings: BTreeMap<BindingId, Binding>,
}

/// Where a share would go on one GPU.
#[derive(Debug)]
struct Place {
    merges: Vec<Merge>,
    row: u32,
}

impl Ledger {
    /// A ledger of `gpus` with nothing bound.
    pub fn new(gpus: impl IntoIterator<Item = Gpu>) -> Self {
        let gpus = gpus.into_iter().map(|gpu| (gpu.id.clone(), gpu)).collect();
        Self { gpus, ..Self::default() }
    }

    /// The GPU that `share` fits best: of the healthy ones with room, the one that it leaves the least room on, so that large
    /// holes stay whole.
    ///
    /// Room is what one more binding could cost at most, the smaller of free time and free memory: a share with much memory
    /// goes where the time is sold already. GPUs on which no binding has to move come first, ties are broken by the
    /// driver's order.
    pub fn best_fit(&self, share: &Share) -> Option<&Gpu> {
        let fitting = self.gpus.values().filter_map(|gpu| Some((self.place(gpu, share)?, gpu)));
        let best = fitting.min_by_key(|(place, gpu)| {
            let (least, sum) = self.room_after(gpu, share);
            (place.merges.len(), least, sum, gpu.index)
        });
        best.map(|(_, gpu)| gpu)
    }

    /// Binds `share` on the GPU that it fits best.
    ///
    /// It starts with its floor. What that meant for others comes back with it.
    pub fn bind(
        &mut self,
        id: BindingId,
        owner: Owner,
        share: Share,
    ) -> Result<(Binding, Displaced), Refusal> {
        let Some(gpu) = self.best_fit(&share).map(|gpu| gpu.id.clone()) else {
            return Err(if self.bindings.contains_key(&id) {
                Refusal::Exists(id)
            } else {
                self.no_room(&share)
            });
        };
        self.bind_on(&gpu, id, owner, share)
    }

    /// Binds `share` on `gpu`, which somebody else has chosen.
    pub fn bind_on(
        &mut self,
        gpu: &GpuId,
        id: BindingId,
        owner: Owner,
        share: Share,
    ) -> Result<(Binding, Displaced), Refusal> {
        if self.bindings.contains_key(&id) {
            return Err(Refusal::Exists(id));
        }
        let Some(card) = self.gpus.get(gpu) else { return Err(Refusal::UnknownGpu(gpu.clone())) };
        if !self.is_healthy(gpu) {
            return Err(Refusal::Unhealthy(gpu.clone()));
        }
        let Some(Place { merges, row }) = self.place(card, &share) else { return Err(self.no_room(&share)) };
        let (moved, mut withdrawn) = self.merge(gpu, &merges);
        let binding = Binding { id: id.clone(), owner, gpu: gpu.clone(), share, grant: Quota::ZERO, row };
        self.bindings.insert(id, binding.clone());
        withdrawn.extend(self.restore_floor(&binding));
        Ok((Binding { grant: share.floor, ..binding }, Displaced { withdrawn: latest(withdrawn), moved }))
    }

    /// Takes over a binding as a checkpoint has it, if it still fits exactly there.
    pub fn restore(&mut self, binding: Binding) -> Result<(), Refusal> {
        if self.bindings.contains_key(&binding.id) {
            return Err(Refusal::Exists(binding.id));
        }
        if !self.gpus.contains_key(&binding.gpu) {
            return Err(Refusal::UnknownGpu(binding.gpu));
        }
        let mut after = self.clone();
        let share = binding.share;
        after.bindings.insert(binding.id.clone(), binding);
        if after.check().is_err() {
            return Err(self.no_room(&share));
        }
        *self = after;
        Ok(())
    }

    /// Changes what a binding asks for, on its GPU and in its row; returns the binding as it is now.
    ///
    /// Its grant stays as far as the new share and the row allow, and is at least the new floor, unless it is parked. What
    /// does not fit changes nothing.
    pub fn resize(&mut self, id: &BindingId, share: Share) -> Result<(Binding, Withdrawn), Refusal> {
        let before = self.get(id)?.clone();
        let Some(gpu) = self.gpus.get(&before.gpu) else { return Err(Refusal::UnknownGpu(before.gpu)) };
        let rows = Rows::of(gpu.sharing, self.bindings_on(&gpu.id).filter(|b| b.id != *id));
        let memory = self.free_memory(gpu) + before.share.memory;
        if share.memory > memory || !rows.admits(before.row, &share) {
            return Err(self.no_room(&share));
        }
        let parked = before.is_parked();
        let binding = Binding { share, grant: Quota::ZERO, ..before.clone() };
        self.bindings.insert(id.clone(), binding);
        let withdrawn = if parked { Withdrawn::new() } else { self.grant(id, before.grant)?.1 };
        Ok((self.get(id)?.clone(), withdrawn))
    }

    /// Notes whom a binding is for.
    pub fn set_owner(&mut self, id: &BindingId, owner: Owner) -> Result<(), Refusal> {
        let binding = self.bindings.get_mut(id).ok_or_else(|| Refusal::Unknown(id.clone()))?;
        binding.owner = owner;
        Ok(())
    }

    /// Ends a binding; its time and memory are free.
    pub fn release(&mut self, id: &BindingId) -> Result<Binding, Refusal> {
        self.bindings.remove(id).ok_or_else(|| Refusal::Unknown(id.clone()))
    }

    /// Gives a binding as much of `wanted` as its ceiling and its row allow, at least its floor; returns what it has now.
    ///
    /// A parked binding wakes. Others lose grants only where the floor needs them.
    pub fn grant(&mut self, id: &BindingId, wanted: Quota) -> Result<(Quota, Withdrawn), Refusal> {
        let binding = self.get(id)?.clone();
        let withdrawn = self.restore_floor(&binding);
        let others: u32 = self.row(&binding).filter(|b| b.id != binding.id).map(|b| b.grant.ppm()).sum();
        let room = Quota::WHOLE.ppm().saturating_sub(others);
        let Share { floor, ceiling, .. } = binding.share;
        let grant = wanted.clamp(floor, ceiling).ppm().min(room);
        let grant = Quota::from_ppm(grant).unwrap_or(floor).max(floor);
        self.set_grant(id, grant);
        Ok((grant, withdrawn))
    }

    /// Takes a binding's whole grant: it keeps its memory and its claim to its floor.
    pub fn park(&mut self, id: &BindingId) -> Result<(), Refusal> {
        self.get(id)?;
        self.set_grant(id, Quota::ZERO);
        Ok(())
    }

    /// Takes back what a binding holds above its floor; returns what it has now.
    pub fn withdraw(&mut self, id: &BindingId) -> Result<Quota, Refusal> {
        let grant = self.get(id)?.grant.min(self.get(id)?.share.floor);
        self.set_grant(id, grant);
        Ok(grant)
    }

    /// The binding named `id`.
    pub fn get(&self, id: &BindingId) -> Result<&Binding, Refusal> {
        self.bindings.get(id).ok_or_else(|| Refusal::Unknown(id.clone()))
    }

    /// All bindings, by name.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// Bindings on one GPU, by name.
    pub fn bindings_on<'a>(&'a self, gpu: &'a GpuId) -> impl Iterator<Item = &'a Binding> {
        self.bindings.values().filter(move |binding| binding.gpu == *gpu)
    }

    /// The node's GPUs, by UUID.
    pub fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.values()
    }

    /// The GPU with this UUID.
    pub fn gpu(&self, id: &GpuId) -> Option<&Gpu> {
        self.gpus.get(id)
    }

    /// Notes whether a GPU takes new bindings. Those that are on it stay as they are.
    pub fn set_healthy(&mut self, gpu: &GpuId, healthy: bool) -> Result<(), Refusal> {
        if !self.gpus.contains_key(gpu) {
            return Err(Refusal::UnknownGpu(gpu.clone()));
        }
        if healthy {
            self.unhealthy.remove(gpu);
        } else {
            self.unhealthy.insert(gpu.clone());
        }
        Ok(())
    }

    /// Whether a GPU takes new bindings.
    pub fn is_healthy(&self, gpu: &GpuId) -> bool {
        self.gpus.contains_key(gpu) && !self.unhealthy.contains(gpu)
    }

    /// Memory of a GPU that is not bound.
    pub fn free_memory(&self, gpu: &Gpu) -> Bytes {
        gpu.memory.saturating_sub(self.bindings_on(&gpu.id).map(|b| b.share.memory).sum())
    }

    /// Whether everything in the module's head holds; if not, what does not.
    pub fn check(&self) -> Result<(), String> {
        for gpu in self.gpus.values() {
            let memory: Bytes = self.bindings_on(&gpu.id).map(|b| b.share.memory).sum();
            if memory > gpu.memory {
                return Err(format!("GPU {}: {memory} bound on a card of {}", gpu.id, gpu.memory));
            }
            let rows = self.rows(gpu);
            let whole = Quota::WHOLE.ppm();
            if rows.iter().any(|row| row.floors > whole || row.grants > whole) {
                return Err(format!("GPU {}: a row's floors or grants sum to more than 100 %", gpu.id));
            }
            if rows.width() > 100 {
                return Err(format!("GPU {}: rows are {} % wide", gpu.id, rows.width()));
            }
        }
        match self.bindings.values().find(|b| {
            !self.gpus.contains_key(&b.gpu)
                || !(b.is_parked() || (b.share.floor..=b.share.ceiling).contains(&b.grant))
        }) {
            Some(binding) => Err(format!("binding {}: its grant or GPU is out of bounds", binding.id)),
            None => Ok(()),
        }
    }

    /// Where `share` would go on `gpu`, if that is healthy and has room.
    fn place(&self, gpu: &Gpu, share: &Share) -> Option<Place> {
        if !self.is_healthy(&gpu.id) || self.free_memory(gpu) < share.memory {
            return None;
        }
        let mut rows = self.rows(gpu);
        let merges = rows.merges_for(share)?;
        for &merge in &merges {
            rows.merge(merge);
        }
        Some(Place { row: rows.fit(share)?, merges })
    }

    /// What `share` would leave on `gpu`: the smaller of unsold time and memory, and both together.
    fn room_after(&self, gpu: &Gpu, share: &Share) -> (Area, Area) {
        let time_of = |share: &Share| match gpu.sharing {
            Sharing::Mps => Area::of_time(share.sm, share.floor),
            Sharing::Exclusive => Area::of_time(SmShare::WHOLE, share.floor),
        };
        let sold = self.bindings_on(&gpu.id).map(|b| time_of(&b.share)).sum::<Area>() + time_of(share);
        let bound = gpu.memory.saturating_sub(self.free_memory(gpu)) + share.memory;
        let time = Area::GPU.saturating_sub(sold);
        let memory = Area::GPU.saturating_sub(Area::of_memory(bound, gpu.memory));
        (time.min(memory), time + memory)
    }

    /// Merges rows of `gpu`; who is in another row now, and which grants its new row has no time for.
    fn merge(&mut self, gpu: &GpuId, merges: &[Merge]) -> (Vec<BindingId>, Withdrawn) {
        let mut moved = Vec::new();
        for merge in merges {
            for binding in self.bindings.values_mut().filter(|b| b.gpu == *gpu && b.row == merge.from) {
                binding.row = merge.into;
                moved.push(binding.id.clone());
            }
        }
        let mut withdrawn = Withdrawn::new();
        for merge in merges {
            let member = self.bindings_on(gpu).find(|b| b.row == merge.into).cloned();
            withdrawn.extend(member.map(|member| self.take_excess(&member, None)).unwrap_or_default());
        }
        moved.sort();
        moved.dedup();
        (moved, withdrawn)
    }

    fn rows(&self, gpu: &Gpu) -> Rows {
        Rows::of(gpu.sharing, self.bindings_on(&gpu.id))
    }

    fn row<'a>(&'a self, of: &'a Binding) -> impl Iterator<Item = &'a Binding> {
        self.bindings_on(&of.gpu).filter(|b| b.row == of.row)
    }

    /// Raises a binding to its floor, taking from others what that needs.
    fn restore_floor(&mut self, binding: &Binding) -> Withdrawn {
        let floor = binding.share.floor;
        if self.get(&binding.id).is_ok_and(|b| b.grant >= floor) {
            return Withdrawn::new();
        }
        self.set_grant(&binding.id, floor);
        self.take_excess(binding, Some(&binding.id))
    }

    /// Shrinks grants in the row of `member` until they sum to at most the whole time, the largest excesses over floors
    /// first, but never that of `spared`.
    fn take_excess(&mut self, member: &Binding, spared: Option<&BindingId>) -> Withdrawn {
        let mut members: Vec<_> = self.row(member).cloned().collect();
        let granted: u32 = members.iter().map(|b| b.grant.ppm()).sum();
        let mut missing = granted.saturating_sub(Quota::WHOLE.ppm());
        members.retain(|b| Some(&b.id) != spared);
        members.sort_by_key(|b| Reverse(b.grant.saturating_sub(b.share.floor)));
        let mut withdrawn = Withdrawn::new();
        for other in members {
            let excess = other.grant.saturating_sub(other.share.floor).ppm().min(missing);
            if excess > 0 {
                missing -= excess;
                let grant = Quota::from_ppm(other.grant.ppm() - excess).unwrap_or(other.share.floor);
                self.set_grant(&other.id, grant);
                withdrawn.push((other.id, grant));
            }
        }
        withdrawn
    }

    fn set_grant(&mut self, id: &BindingId, grant: Quota) {
        if let Some(binding) = self.bindings.get_mut(id) {
            binding.grant = grant;
        }
    }

    fn no_room(&self, share: &Share) -> Refusal {
        let healthy = self.gpus.values().filter(|gpu| self.is_healthy(&gpu.id));
        let most_memory = healthy.map(|gpu| self.free_memory(gpu)).max().unwrap_or_default();
        Refusal::NoRoom { sm: share.sm, floor: share.floor, memory: share.memory, most_memory }
    }
}

/// Of several changes of one grant only the last.
fn latest(withdrawn: Withdrawn) -> Withdrawn {
    withdrawn.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
