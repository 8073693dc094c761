//! The life of a replica: starting, ready, parked, draining, gone; and what breaks.

use std::collections::VecDeque;

use gpu_share::share::Share;
use gpu_share::units::{Nanos, Quota};
use scaler::policy::{ReplicaState, ReplicaView};

use super::account::Meter;
use super::{Cluster, Replica, Seat, place_of};
use crate::event::Event;
use crate::gpu::Engine;

/// Cold starts that are remembered.
const COLD_STARTS: usize = 20;

impl Cluster {
    /// Starts one of the replicas that are wanted, with the share that the policy gives it, where the ledger has room; ready
    /// at once, if so. False if there is no room.
    pub(super) fn start_wanted(&mut self, index: u32, ready: bool) -> bool {
        let view = &self.views[self.view_at[index as usize]];
        let share = self.policy.share(&view.wish, view.gpu_memory);
        let gpu = self.best_fit(&share);
        self.functions[index as usize].no_room = gpu.is_none();
        if let Some(gpu) = gpu {
            return self.start(index, share, gpu, true, ready);
        }
        self.functions[index as usize].outcome.refused += 1;
        false
    }

    /// Starts a replica on `gpu`.
    pub(super) fn start(&mut self, index: u32, share: Share, gpu: u32, by_ledger: bool, ready: bool) -> bool {
        let place = self.free_replicas.pop().unwrap_or_else(|| {
            self.replicas.push(nowhere(share, self.cards.enforcement));
            self.seats.push(Seat::default());
            place_of(self.replicas.len()) - 1
        });
        let counted = self.counted();
        let replica = &mut self.replicas[place as usize];
        replica.generation = replica.generation.wrapping_add(1);
        replica.id = format!("r-{}-{place}", replica.generation);
        (replica.function, replica.gpu, replica.share) = (index, gpu, share);
        self.seats[place as usize] = Seat::default();
        (replica.exists, replica.state, replica.born) = (true, ReplicaState::Starting, self.now);
        replica.engine = Engine::new(self.cards.enforcement, share.floor, self.now);
        replica.meter = Meter::new(&share, self.cards.memory, counted);
        if !self.bind(place, by_ledger) {
            self.replicas[place as usize].exists = false;
            self.free_replicas.push(place);
            return false;
        }
        self.measure(place);
        self.note_start(index, place, ready);
        true
    }

    fn note_start(&mut self, index: u32, place: u32, ready: bool) {
        let replica = &self.replicas[place as usize];
        let generation = replica.generation;
        let view = ReplicaView {
            id: replica.id.clone(),
            state: ReplicaState::Starting,
            share: replica.share,
            gpu: replica.gpu,
            row: self.seats[place as usize].row.unwrap_or(0),
            grant: replica.share.floor,
            room: replica.share.ceiling,
            in_flight: 0,
            age: Nanos::ZERO,
            used: Nanos::ZERO,
        };
        self.view(index).replicas.push(view);
        let function = &mut self.functions[index as usize];
        function.replicas.push(place);
        function.outcome.most_replicas =
            function.outcome.most_replicas.max(place_of(function.replicas.len()));
        if ready {
            return self.ready(place, generation);
        }
        function.outcome.cold_starts += 1;
        let seconds = self.control.cold_start.law().draw(&mut function.start);
        if function.cold_starts.len() == COLD_STARTS {
            function.cold_starts.pop_front();
        }
        function.cold_starts.push_back(seconds);
        self.queue
            .push(self.now + Nanos::from_secs_f64(seconds), Event::Ready { replica: place, generation });
    }

    /// The 95th percentile of the last cold starts, or of what they are drawn from.
    pub(super) fn cold_start(&self, index: usize) -> Nanos {
        let mut sorted: Vec<f64> = self.functions[index].cold_starts.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied();
        Nanos::from_secs_f64(last.unwrap_or_else(|| self.control.cold_start.p95()))
    }

    pub(super) fn ready(&mut self, place: u32, generation: u32) {
        let replica = &mut self.replicas[place as usize];
        if replica.generation != generation || !replica.exists || replica.state != ReplicaState::Starting {
            return;
        }
        replica.state = ReplicaState::Ready;
        let index = replica.function;
        if let Some(mean) = self.faults.replica_mtbf {
            let after = Nanos::from_secs_f64(mean * self.functions[index as usize].fail.exponential());
            self.queue.push(self.now + after, Event::Failure { replica: place, generation });
        }
        self.release_held(index);
    }

    /// It gets no more requests and goes away when it has none.
    pub(super) fn drain(&mut self, place: u32) {
        self.replicas[place as usize].state = ReplicaState::Draining;
        self.after_drain(place);
    }

    /// A draining replica that has no request goes away.
    pub(super) fn after_drain(&mut self, place: u32) {
        let replica = &self.replicas[place as usize];
        if replica.exists && replica.state == ReplicaState::Draining && replica.in_flight == 0 {
            self.remove(place);
        }
    }

    fn remove(&mut self, place: u32) {
        self.settle(place);
        self.unbind(place);
        let replica = &mut self.replicas[place as usize];
        replica.exists = false;
        replica.version = replica.version.wrapping_add(1);
        replica.filling = false;
        replica.preparing = 0;
        replica.in_flight = 0;
        let index = replica.function as usize;
        let function = &mut self.functions[index];
        if let Some(position) = function.replicas.iter().position(|&other| other == place) {
            function.replicas.remove(position);
            self.views[self.view_at[index]].replicas.remove(position);
        }
        self.free_replicas.push(place);
    }

    pub(super) fn failure(&mut self, place: u32, generation: u32) {
        let replica = &self.replicas[place as usize];
        if replica.generation == generation && replica.exists {
            self.kill(place);
        }
    }

    /// A replica ends at once; its requests get no answer.
    fn kill(&mut self, place: u32) {
        let replica = &mut self.replicas[place as usize];
        let by_ledger = self.seats[place as usize].row.is_some();
        let index = replica.function;
        let batch = core::mem::take(&mut replica.batch);
        self.seats[place as usize].works = false;
        let waiting: Vec<u32> =
            replica.queue.drain(..).chain(replica.unprepared.drain(..)).chain(batch).collect();
        let preparing: Vec<u32> =
            if replica.preparing > 0 { self.prepared_at(place, &waiting) } else { Vec::new() };
        self.remove(place);
        if !by_ledger {
            // Who keeps its own books starts another by itself.
            let function = &mut self.functions[index as usize];
            function.wanted = function.wanted.saturating_sub(1);
        }
        for request in waiting {
            self.fail(request);
        }
        for request in preparing {
            self.requests[request as usize].replica = u32::MAX;
            self.fail_in_preparation(request);
        }
    }

    /// Requests at a replica that are being prepared. Looked up among all: replicas seldom fail.
    fn prepared_at(&self, place: u32, others: &[u32]) -> Vec<u32> {
        let mut is_free = vec![false; self.requests.len()];
        for &id in self.free_requests.iter().chain(others) {
            is_free[id as usize] = true;
        }
        let here = self.requests.iter().zip(0..).zip(&is_free);
        here.filter(|((request, _), free)| request.replica == place && !**free)
            .map(|((_, id), _)| id)
            .collect()
    }

    /// Plans when a node is lost by chance.
    pub(super) fn plan_loss(&mut self, node: u32) {
        if let (Some(mean), Some(random)) = (self.faults.node_mtbf, self.random.get_mut(node as usize)) {
            self.queue.push(self.now + Nanos::from_secs_f64(mean * random.exponential()), Event::Lost(node));
        }
    }

    fn gpus_of(&self, node: u32) -> core::ops::Range<usize> {
        let first = node as usize * self.cards.per_node as usize;
        first..(first + self.cards.per_node as usize).min(self.gpus.len())
    }

    pub(super) fn lose(&mut self, node: u32) {
        for gpu in self.gpus_of(node) {
            self.set_healthy(gpu, false);
            for place in self.gpus[gpu].replicas.clone() {
                if self.replicas[place as usize].exists {
                    self.kill(place);
                }
            }
        }
        self.queue.push(self.now + Nanos::from_secs_f64(self.faults.repair), Event::Repaired(node));
    }

    pub(super) fn repair(&mut self, node: u32) {
        for gpu in self.gpus_of(node) {
            self.set_healthy(gpu, true);
        }
        self.plan_loss(node);
    }

    fn set_healthy(&mut self, gpu: usize, healthy: bool) {
        let card = &mut self.gpus[gpu];
        card.healthy = healthy;
        // The ledger knows its own GPU.
        let _ = card.ledger.set_healthy(&card.gpu.id, healthy);
    }
}

/// A place for a replica that is not there yet.
fn nowhere(share: Share, enforcement: crate::gpu::Enforcement) -> Replica {
    Replica {
        generation: 0,
        function: 0,
        gpu: 0,
        state: ReplicaState::Starting,
        exists: false,
        share,
        id: String::new(),
        born: Nanos::ZERO,
        in_flight: 0,
        preparing: 0,
        unprepared: VecDeque::new(),
        queue: VecDeque::new(),
        batch: Vec::new(),
        version: 0,
        filling: false,
        engine: Engine::new(enforcement, Quota::ZERO, Nanos::ZERO),
        times: Vec::new(),
        slowed: 0.0,
        needs: Nanos::ZERO,
        meter: Meter::new(&share, gpu_share::units::Bytes::ZERO, Nanos::ZERO),
    }
}
