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
//! others hold above theirs is taken back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, BindingId, GpuId, Owner};
use crate::share::Share;
use crate::units::{Area, Bytes, Quota, SmShare, Units};

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
        /// The largest free memory on one GPU.
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
}

/// Grants that had to shrink so that a floor could be kept: binding and its new grant.
pub type Withdrawn = Vec<(BindingId, Quota)>;

/// A node's GPUs and what is bound on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    gpus: BTreeMap<GpuId, Gpu>,
    bindings: BTreeMap<BindingId, Binding>,
}

impl Ledger {
    /// A ledger of `gpus` with nothing bound.
    pub fn new(gpus: impl IntoIterator<Item = Gpu>) -> Self {
        let gpus = gpus.into_iter().map(|gpu| (gpu.id.clone(), gpu)).collect();
        Self { gpus, bindings: BTreeMap::new() }
    }

    /// Binds `share` where it fits best: on the GPU that it leaves the least room on, so that large holes stay whole.
    ///
    /// It starts with its floor. Grants that had to make room come back with it.
    pub fn bind(
        &mut self,
        id: BindingId,
        owner: Owner,
        share: Share,
    ) -> Result<(Binding, Withdrawn), Refusal> {
        if self.bindings.contains_key(&id) {
            return Err(Refusal::Exists(id));
        }
        let place = self
            .gpus
            .values()
            .filter_map(|gpu| Some((self.free_memory(gpu), gpu, self.row_for(gpu, &share)?)))
            .filter(|(free, ..)| *free >= share.memory)
            .min_by_key(|(free, gpu, _)| (*free, gpu.index));
        let Some((_, gpu, row)) = place else { return Err(self.no_room(&share)) };
        let binding = Binding { id: id.clone(), owner, gpu: gpu.id.clone(), share, grant: Quota::ZERO, row };
        self.bindings.insert(id.clone(), binding.clone());
        let withdrawn = self.restore_floor(&binding);
        Ok((Binding { grant: share.floor, ..binding }, withdrawn))
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

    /// Memory of a GPU that is not bound.
    pub fn free_memory(&self, gpu: &Gpu) -> Bytes {
        gpu.memory.saturating_sub(self.bindings_on(&gpu.id).map(|b| b.share.memory).sum())
    }

    /// Units of a GPU that no floor and no grant covers: what a scheduler may still count on.
    pub fn free_units(&self, gpu: &Gpu, per_gpu: Units) -> Units {
        let held: Area = self
            .bindings_on(&gpu.id)
            .map(|b| b.share.dominant_at(b.grant.max(b.share.floor), gpu.memory))
            .sum();
        Units(per_gpu.0.saturating_sub(held.units(per_gpu).0))
    }

    /// Whether everything in the module's head holds; if not, what does not.
    pub fn check(&self) -> Result<(), String> {
        for gpu in self.gpus.values() {
            let memory: Bytes = self.bindings_on(&gpu.id).map(|b| b.share.memory).sum();
            if memory > gpu.memory {
                return Err(format!("GPU {}: {memory} bound on a card of {}", gpu.id, gpu.memory));
            }
            let mut width = 0;
            for row in self.rows(gpu).values() {
                width += u32::from(row.width(gpu).percent());
                if row.floors > Quota::WHOLE.ppm() || row.grants > Quota::WHOLE.ppm() {
                    return Err(format!("GPU {}: a row's floors or grants sum to more than 100 %", gpu.id));
                }
            }
            if width > 100 {
                return Err(format!("GPU {}: rows are {width} % wide", gpu.id));
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

    /// The row that a new binding goes to: one of its own while there is width, so that it has nobody to wait for, else
    /// the one that widens least, then the one with the most time left.
    fn row_for(&self, gpu: &Gpu, share: &Share) -> Option<u32> {
        let rows = self.rows(gpu);
        let used: u32 = rows.values().map(|row| u32::from(row.width(gpu).percent())).sum();
        let wanted = u32::from(if gpu.sharing == Sharing::Mps { share.sm } else { SmShare::WHOLE }.percent());
        if used + wanted <= 100 {
            return (0..u32::MAX).find(|index| !rows.contains_key(index));
        }
        let growth = |row: &Row| wanted.saturating_sub(u32::from(row.width(gpu).percent()));
        rows.iter()
            .filter(|(_, row)| row.floors + share.floor.ppm() <= Quota::WHOLE.ppm())
            .filter(|(_, row)| used + growth(row) <= 100)
            .min_by_key(|(_, row)| (growth(row), row.width(gpu), row.floors))
            .map(|(&index, _)| index)
    }

    fn rows(&self, gpu: &Gpu) -> BTreeMap<u32, Row> {
        let mut rows = BTreeMap::<u32, Row>::new();
        for binding in self.bindings_on(&gpu.id) {
            let row = rows.entry(binding.row).or_default();
            row.widest = row.widest.max(Some(binding.share.sm));
            row.floors += binding.share.floor.ppm();
            row.grants += binding.grant.ppm();
        }
        rows
    }

    fn row<'a>(&'a self, of: &'a Binding) -> impl Iterator<Item = &'a Binding> {
        self.bindings_on(&of.gpu).filter(|b| b.row == of.row)
    }

    /// Raises a binding to its floor, taking from the row's largest excesses first.
    fn restore_floor(&mut self, binding: &Binding) -> Withdrawn {
        let floor = binding.share.floor;
        if self.get(&binding.id).is_ok_and(|b| b.grant >= floor) {
            return Vec::new();
        }
        let mut others: Vec<_> = self.row(binding).filter(|b| b.id != binding.id).cloned().collect();
        let granted: u32 = others.iter().map(|b| b.grant.ppm()).sum();
        let mut missing = (granted + floor.ppm()).saturating_sub(Quota::WHOLE.ppm());
        others.sort_by_key(|b| core::cmp::Reverse(b.grant.saturating_sub(b.share.floor)));
        let mut withdrawn = Vec::new();
        for other in others {
            let excess = other.grant.saturating_sub(other.share.floor).ppm().min(missing);
            if excess > 0 {
                missing -= excess;
                let grant = Quota::from_ppm(other.grant.ppm() - excess).unwrap_or(other.share.floor);
                self.set_grant(&other.id, grant);
                withdrawn.push((other.id, grant));
            }
        }
        self.set_grant(&binding.id, floor);
        withdrawn
    }

    fn set_grant(&mut self, id: &BindingId, grant: Quota) {
        if let Some(binding) = self.bindings.get_mut(id) {
            binding.grant = grant;
        }
    }

    fn no_room(&self, share: &Share) -> Refusal {
        let most_memory = self.gpus.values().map(|gpu| self.free_memory(gpu)).max().unwrap_or_default();
        Refusal::NoRoom { sm: share.sm, floor: share.floor, memory: share.memory, most_memory }
    }
}

/// What the members of one row sum to.
#[derive(Debug, Default)]
struct Row {
    widest: Option<SmShare>,
    floors: u32,
    grants: u32,
}

impl Row {
    fn width(&self, gpu: &Gpu) -> SmShare {
        self.widest.filter(|_| gpu.sharing == Sharing::Mps).unwrap_or(SmShare::WHOLE)
    }
}

#[cfg(test)]
mod tests;
