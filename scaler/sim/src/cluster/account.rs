//! What replicas keep from others and what they use, and how a run went over time.

use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota};

use super::Cluster;
use crate::report::{Moment, Outcome};

/// Meter of one replica since it was last read: of each stretch between two looks it keeps the largest of time granted,
/// time used and memory from others, as `gpufn up` counts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    sm: f64,
    /// Part of the card's memory.
    memory: f64,
    read: Nanos,
    /// Up to when `granted` is summed.
    summed: Nanos,
    /// GPU-seconds granted since the meter was read.
    granted: f64,
    /// GPU time used since it was read, and since the policy last saw it.
    used: Nanos,
    unseen: Nanos,
}

impl Meter {
    pub(super) fn new(share: &Share, gpu_memory: Bytes, now: Nanos) -> Self {
        Self {
            sm: share.sm.fraction(),
            memory: Area::of_memory(share.memory, gpu_memory).gpus(),
            read: now,
            summed: now,
            granted: 0.0,
            used: Nanos::ZERO,
            unseen: Nanos::ZERO,
        }
    }

    /// It had `grant` up to `now`.
    pub(super) fn sum(&mut self, grant: Quota, now: Nanos) {
        self.granted += self.sm * grant.fraction() * now.since(self.summed).secs_f64();
        self.summed = now;
    }

    /// It used so much GPU time, which is counted as a cost if so.
    pub(super) fn uses(&mut self, time: Nanos, counts: bool) {
        self.unseen += time;
        if counts {
            self.used += time;
        }
    }

    /// GPU time used since the policy last saw it.
    pub(super) fn see(&mut self) -> Nanos {
        core::mem::take(&mut self.unseen)
    }

    /// Adds what was kept and used up to `now` to `outcome`.
    pub(super) fn read(&mut self, grant: Quota, now: Nanos, outcome: &mut Outcome) {
        self.sum(grant, now);
        let held = self.memory * now.since(self.read).secs_f64();
        let used = self.sm * self.used.secs_f64();
        outcome.reserved += held.max(self.granted).max(used);
        outcome.granted += self.granted;
        outcome.used += used;
        (self.read, self.granted, self.used) = (now, 0.0, Nanos::ZERO);
    }
}

impl Cluster {
    /// The time that costs are counted up to.
    pub(super) fn counted(&self) -> Nanos {
        self.now.min(self.horizon)
    }

    /// Reads the meter of a replica.
    pub(super) fn settle(&mut self, place: u32) {
        let now = self.counted();
        let replica = &mut self.replicas[place as usize];
        let outcome = &mut self.functions[replica.function as usize].outcome;
        replica.meter.read(replica.engine.grant(), now, outcome);
    }

    pub(super) fn settle_all(&mut self) {
        for place in 0..super::place_of(self.replicas.len()) {
            if self.replicas[place as usize].exists {
                self.settle(place);
            }
        }
        self.report.ended = self.now.secs_f64();
    }

    /// Notes how it goes at the end of each moment.
    pub(super) fn note_moments(&mut self) {
        let Some(step) = self.moments else { return };
        if self.now < self.next_moment || self.now > self.horizon + step {
            return;
        }
        self.next_moment = self.now + step;
        for index in 0..self.functions.len() {
            let granted = self.granted(index);
            let function = &mut self.functions[index];
            let at = self.now.secs_f64();
            let before = function.outcome.timeline.last().map_or(0.0, |moment| moment.at);
            let seconds = (at - before).max(f64::MIN_POSITIVE);
            let (arrived, reserved) = (function.outcome.arrived, function.outcome.reserved);
            #[allow(clippy::cast_precision_loss)] // Counts of requests.
            function.outcome.timeline.push(Moment {
                at,
                rate: (arrived - function.marked.0) as f64 / seconds,
                p95_ms: function.recent.quantile_ms(0.95).unwrap_or(f64::NAN),
                granted,
                replicas: super::place_of(function.replicas.len()),
                reserved: (reserved - function.marked.1) / seconds,
            });
            function.marked = (arrived, reserved);
            function.recent.clear();
        }
    }

    /// Sum of SM share times quota of a function's replicas, now.
    pub(super) fn granted(&self, function: usize) -> f64 {
        let replicas = self.functions[function].replicas.iter().map(|&place| &self.replicas[place as usize]);
        replicas.map(|replica| replica.share.sm.fraction() * replica.engine.grant().fraction()).sum()
    }
}
