//! What the policy is shown, and how its decisions are carried out.

use gpu_share::units::{Nanos, Quota};
use scaler::policy::{Action, FunctionView, ReplicaState};

use super::Cluster;
use crate::event::Event;
use crate::gpu::Enforcement;
use crate::spec::{FunctionSpec, Spec};

/// What is shown of a function before anything has happened.
pub(super) fn first_view(spec: &Spec, function: &FunctionSpec) -> FunctionView {
    let window = match spec.cards.enforcement {
        Enforcement::GpuTime { window, .. } => window,
        _ => Nanos::ZERO,
    };
    FunctionView {
        name: function.name.clone(),
        wish: function.wish.clone(),
        gpu_memory: spec.cards.memory,
        window,
        replicas: Vec::new(),
        arrivals: 0,
        held: 0,
        in_flight: 0,
        latencies: Vec::new(),
        cold_start: Nanos::from_secs_f64(spec.control.cold_start.p95()),
        no_room: false,
    }
}

impl Cluster {
    pub(super) fn tick(&mut self) {
        for index in 0..super::place_of(self.functions.len()) {
            self.give_up(index);
            self.start_missing(index);
        }
        self.update_views();
        self.note_moments();
        self.decide();
        if self.sources > 0 || self.alive > 0 || self.now < self.horizon {
            self.queue.push(self.now + self.control.tick, Event::Tick);
        }
    }

    /// Starts what is wanted and not there: there was no room, or it has failed.
    fn start_missing(&mut self, index: u32) {
        if self.policy.places() {
            return;
        }
        let function = &self.functions[index as usize];
        let staying = |place: &&u32| self.replicas[**place as usize].state != ReplicaState::Draining;
        let present = super::place_of(function.replicas.iter().filter(staying).count());
        for _ in present..function.wanted {
            if !self.start_wanted(index, false) {
                return;
            }
        }
    }

    pub(super) fn update_views(&mut self) {
        for index in 0..self.functions.len() {
            if !self.sort_view(index) {
                continue;
            }
            let cold_start = self.cold_start(index);
            let mut granted = 0.0;
            for position in 0..self.functions[index].replicas.len() {
                let place = self.functions[index].replicas[position];
                self.settle(place);
                let room = self.room(place);
                let replica = &mut self.replicas[place as usize];
                granted += replica.share.sm.fraction() * replica.engine.grant().fraction();
                let view = &mut self.views[self.view_at[index]].replicas[position];
                view.state = replica.state;
                view.row = self.seats[place as usize].row.unwrap_or(0);
                view.grant = replica.engine.grant();
                view.room = room;
                view.in_flight = replica.in_flight;
                view.age = self.now.since(replica.born);
                view.used = replica.meter.see();
            }
            let function = &mut self.functions[index];
            function.outcome.most_granted = function.outcome.most_granted.max(granted);
            let no_room = function.no_room;
            let view = &mut self.views[self.view_at[index]];
            view.arrivals = core::mem::take(&mut function.arrivals);
            core::mem::swap(&mut view.latencies, &mut function.latencies);
            function.latencies.clear();
            view.held = super::place_of(function.held.len());
            view.in_flight = view.replicas.iter().map(|replica| replica.in_flight).sum();
            view.cold_start = cold_start;
            view.no_room = no_room;
        }
    }

    /// Keeps the views that are shown before the others; whether this function's is. One that is meant to have no replica
    /// is not shown, as `gpufn up` does it, unless the policy starts replicas itself.
    fn sort_view(&mut self, index: usize) -> bool {
        let function = &self.functions[index];
        let is_shown = function.wanted > 0 || !function.replicas.is_empty() || self.policy.places();
        let at = self.view_at[index];
        if is_shown == (at < self.shown) {
            return is_shown;
        }
        let border = if is_shown { self.shown } else { self.shown - 1 };
        self.views.swap(at, border);
        if let Some(&other) = self.by_name.get(&self.views[at].name) {
            self.view_at[other as usize] = at;
        }
        self.view_at[index] = border;
        self.shown = if is_shown { self.shown + 1 } else { self.shown - 1 };
        if !is_shown {
            let function = &mut self.functions[index];
            function.arrivals = 0;
            function.latencies.clear();
        }
        is_shown
    }

    /// What is shown of a function.
    pub(super) fn view(&mut self, index: u32) -> &mut FunctionView {
        &mut self.views[self.view_at[index as usize]]
    }

    fn decide(&mut self) {
        self.report.rounds += 1;
        self.report.shown += u64::try_from(self.shown).unwrap_or(u64::MAX);
        let decisions = self.policy.decide(self.now, &self.views[..self.shown]);
        let due = self.now + self.control.delay;
        if !decisions.is_empty() {
            self.queue.push(due, Event::Decided);
        }
        self.decided.extend(decisions.into_iter().map(|decision| (due, decision.action)));
    }

    pub(super) fn carry_out_due(&mut self) {
        while let Some((_, action)) = self.decided.pop_front_if(|(due, _)| *due <= self.now) {
            self.carry_out(action);
        }
    }

    pub(super) fn carry_out(&mut self, action: Action) {
        match action {
            Action::Grant { replica, quota } => {
                let Some(place) = self.existing(&replica) else { return };
                if self.replicas[place as usize].state == ReplicaState::Parked {
                    self.replicas[place as usize].state = ReplicaState::Ready;
                }
                self.grant(place, quota);
            }
            Action::Park { replica } => {
                let Some(place) = self.existing(&replica) else { return };
                let replica = &mut self.replicas[place as usize];
                // A request has come in the meantime.
                if replica.state != ReplicaState::Ready || replica.in_flight > 0 {
                    return;
                }
                replica.state = ReplicaState::Parked;
                self.functions[self.replicas[place as usize].function as usize].outcome.parks += 1;
                self.grant(place, Quota::ZERO);
            }
            Action::Scale { function, replicas } => {
                if let Some(&index) = self.by_name.get(&function) {
                    self.scale(index, replicas);
                }
            }
            Action::Start { function, share, gpu } => {
                if let Some(&index) = self.by_name.get(&function)
                    && self.has_memory(gpu, &share)
                {
                    self.functions[index as usize].wanted += 1;
                    // As under every policy, the fewest that the function allows are ready at the beginning.
                    let least = self.view(index).wish.replicas.min;
                    let ready = self.now == Nanos::ZERO && self.functions[index as usize].wanted <= least;
                    self.start(index, share, gpu, false, ready);
                }
            }
            Action::Stop { replica } => {
                let Some(place) = self.existing(&replica) else { return };
                let function = self.replicas[place as usize].function as usize;
                self.functions[function].wanted = self.functions[function].wanted.saturating_sub(1);
                self.drain(place);
            }
        }
    }

    fn existing(&self, id: &str) -> Option<u32> {
        let place = super::place::place_of_id(id)?;
        let replica = self.replicas.get(place as usize)?;
        (replica.exists && replica.id == id && replica.state != ReplicaState::Draining).then_some(place)
    }

    /// From now on so many replicas are wanted; of too many, the newest go.
    fn scale(&mut self, index: u32, wanted: u32) {
        self.functions[index as usize].wanted = wanted;
        let staying: Vec<u32> = self.functions[index as usize]
            .replicas
            .iter()
            .copied()
            .filter(|&place| self.replicas[place as usize].state != ReplicaState::Draining)
            .collect();
        let keep = usize::try_from(wanted).unwrap_or(usize::MAX);
        for &place in staying.iter().skip(keep).rev() {
            self.drain(place);
        }
        self.start_missing(index);
    }
}
