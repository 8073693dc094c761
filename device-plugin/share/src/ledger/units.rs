//! What a scheduler is told of a GPU: whole units, so that it never counts on what could not be bound.
//!
//! An extended resource can't be resized while a pod runs (KEP-1287), so a grant above a floor is invisible to the
//! scheduler unless as many free units are withdrawn. Only free units are: what a container was given stays its own.

use serde::{Deserialize, Serialize};

use super::{Gpu, Ledger};
use crate::units::{Area, Units};

/// The units of one GPU; `allocated + free + withdrawn` is what the GPU is divided into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Given to containers.
    pub allocated: Units,
    /// For new ones.
    pub free: Units,
    /// Given to nobody and not on offer: they mirror grants above floors, what rows waste, a remainder that is too small
    /// to be of use, or all of a GPU that is not healthy.
    pub withdrawn: Units,
}

impl Ledger {
    /// Units of a GPU that no floor and no grant covers, also if it takes no bindings now.
    ///
    /// A binding counts with the larger of its memory and what it occupies in its row; its floor counts while it is
    /// parked.
    pub fn free_units(&self, gpu: &Gpu, per_gpu: Units) -> Units {
        let rows = self.rows(gpu);
        let held: Area = self
            .bindings_on(&gpu.id)
            .map(|b| {
                let memory = Area::of_memory(b.share.memory, gpu.memory);
                rows.occupied(b, b.grant.max(b.share.floor)).max(memory)
            })
            .sum();
        Units(per_gpu.0.saturating_sub(held.units(per_gpu).0))
    }

    /// The units of a GPU as a scheduler should see them, where `allocated` of `per_gpu` are with containers and nobody asks
    /// for fewer than `smallest`.
    pub fn offer(&self, gpu: &Gpu, per_gpu: Units, allocated: Units, smallest: Units) -> Offer {
        let allocated = allocated.min(per_gpu);
        let unallocated = per_gpu.0 - allocated.0;
        let room = self.free_units(gpu, per_gpu).0.min(unallocated);
        let is_of_use = self.is_healthy(&gpu.id) && self.largest_fit(gpu, per_gpu) >= smallest;
        let free = if is_of_use && room >= smallest.0 { room } else { 0 };
        Offer { allocated, free: Units(free), withdrawn: Units(unallocated - free) }
    }

    /// The most units that one new binding could have on a GPU without anybody losing a grant, whatever its shape. What it
    /// can't have is a share of the same cost in a shape that no row has room for.
    pub fn largest_fit(&self, gpu: &Gpu, per_gpu: Units) -> Units {
        if !self.is_healthy(&gpu.id) {
            return Units(0);
        }
        let memory = Area::GPU
            .saturating_sub(Area::of_memory(gpu.memory.saturating_sub(self.free_memory(gpu)), gpu.memory));
        let hole = self.rows(gpu).largest_hole().min(memory);
        hole.whole_units(per_gpu).min(self.free_units(gpu, per_gpu))
    }

    /// The most units that one new binding could have on any GPU of the node: its label for schedulers.
    pub fn max_free_units(&self, per_gpu: Units) -> Units {
        self.gpus().map(|gpu| self.largest_fit(gpu, per_gpu)).max().unwrap_or_default()
    }
}
