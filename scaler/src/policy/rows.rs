//! How much of the time others in a replica's row are at work: then it has its grant, else what the node lends it.
//!
//! Owns what each replica used of late. Reports come as GPU time since the last one; a burst counts at once and is
//! forgotten slowly, since it comes again.

use std::collections::{BTreeMap, HashMap};

use gpu_share::units::Nanos;

use crate::policy::{FunctionView, ReplicaView};

/// Seconds over which use is averaged: soon enough for a burst, and long enough for what comes now and then.
const SPANS: [f64; 2] = [2.0, 30.0];
/// Busiest that a replica counts as: one that is always at work leaves others nothing, and the product below no number.
const BUSIEST: f64 = 0.999;

/// A row of a GPU.
type Row = (u32, u32);

/// Use of all replicas.
#[derive(Debug, Default)]
pub(super) struct Rows {
    used: BTreeMap<String, [f64; 2]>,
    looked: Option<Nanos>,
    /// Replicas of a row, and the probability that none of them is at work.
    members: HashMap<Row, (u32, f64)>,
}

/// The others in a replica's row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    /// Part of the time that one of them is at work.
    pub(super) contended: f64,
    /// There are none.
    pub(super) are_none: bool,
}

impl Rows {
    /// Takes in what the replicas used since the last look.
    pub(super) fn look(&mut self, now: Nanos, functions: &[FunctionView]) {
        let seconds = self.looked.map_or(0.0, |looked| now.since(looked).secs_f64());
        self.looked = Some(now);
        self.members.clear();
        let mut before = core::mem::take(&mut self.used);
        for replica in functions.iter().flat_map(|view| &view.replicas) {
            let (id, mut used) =
                before.remove_entry(&replica.id).unwrap_or_else(|| (replica.id.clone(), [0.0; 2]));
            if seconds > 0.0 {
                let part = (replica.used.secs_f64() / seconds).min(1.0);
                for (average, span) in used.iter_mut().zip(SPANS) {
                    *average += (1.0 - (-seconds / span).exp()) * (part - *average);
                }
            }
            let (count, idle) = self.members.entry(row(replica)).or_insert((0, 1.0));
            (*count, *idle) = (*count + 1, *idle * (1.0 - busy(used)));
            self.used.insert(id, used);
        }
    }

    /// The others in the row of `replica`, as if each came independent of the rest.
    pub(super) fn beside(&self, replica: &ReplicaView) -> Others {
        let own = self.used.get(&replica.id).map_or(0.0, |&used| busy(used));
        let (count, idle) = self.members.get(&row(replica)).copied().unwrap_or((1, 1.0 - own));
        Others { contended: (1.0 - idle / (1.0 - own)).clamp(0.0, 1.0), are_none: count <= 1 }
    }
}

fn row(replica: &ReplicaView) -> Row {
    (replica.gpu, replica.row)
}

fn busy(used: [f64; 2]) -> f64 {
    used.into_iter().fold(0.0, f64::max).min(BUSIEST)
}
