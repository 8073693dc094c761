//! What happens to a request, from its arrival to its answer.

use gpu_share::units::{Nanos, Quota};
use scaler::policy::ReplicaState;

use super::place::Beside;
use super::{Cluster, Request, Source, place_of};
use crate::client::Next;
use crate::event::Event;
use crate::gpu::Enforcement;
use crate::spec::Routing;

impl Cluster {
    /// Plans the next arrival at a function.
    pub(super) fn next_arrival(&mut self, index: u32) {
        let Source::Open(arrivals) = &mut self.functions[index as usize].source else { return };
        match arrivals.next() {
            Some(at) => self.queue.push(at, Event::Arrival(index)),
            None => self.sources -= 1,
        }
    }

    pub(super) fn arrival(&mut self, index: u32) {
        match &mut self.functions[index as usize].source {
            Source::Open(_) => {
                self.next_arrival(index);
                self.arrive(index);
            }
            Source::Client(client) => {
                let next = client.come(self.now);
                self.client_goes_on(index, next);
            }
        }
    }

    fn client_goes_on(&mut self, index: u32, next: Next) {
        let sends = match next {
            Next::Come { sends, at } => {
                self.queue.push(at, Event::Arrival(index));
                sends
            }
            Next::Wait { sends } => sends,
            Next::Ended => {
                self.sources -= 1;
                false
            }
        };
        if sends {
            self.arrive(index);
        }
    }

    fn arrive(&mut self, index: u32) {
        let request = Request { arrived: self.now, function: index, replica: u32::MAX };
        let id = if let Some(id) = self.free_requests.pop() {
            self.requests[id as usize] = request;
            id
        } else {
            self.requests.push(request);
            place_of(self.requests.len()) - 1
        };
        self.alive += 1;
        self.report.most_alive = self.report.most_alive.max(self.alive);
        let places = self.policy.places();
        let function = &mut self.functions[index as usize];
        function.outcome.arrived += 1;
        function.arrivals += 1;
        function.held.push_back(id);
        if function.wanted == 0 && !places {
            // The gateway asks for a first replica by itself.
            function.wanted = 1;
            self.start_wanted(index, false);
        }
        self.release_held(index);
    }

    /// Sends what is held at the gateway to replicas, as far as they take it.
    pub(super) fn release_held(&mut self, index: u32) {
        while let Some(&request) = self.functions[index as usize].held.front() {
            let Some(place) = self.route(index) else { return };
            self.functions[index as usize].held.pop_front();
            self.take(place, request);
        }
    }

    fn route(&mut self, index: u32) -> Option<u32> {
        let function = &mut self.functions[index as usize];
        let replicas = &self.replicas;
        let takes = |place: &u32| {
            let replica = &replicas[*place as usize];
            matches!(replica.state, ReplicaState::Ready | ReplicaState::Parked)
                && replica.in_flight < function.limit
        };
        let open = function.replicas.iter().copied().filter(takes);
        match self.control.routing {
            Routing::Least => open.min_by_key(|&place| {
                let replica = &replicas[place as usize];
                (replica.state == ReplicaState::Parked, replica.in_flight)
            }),
            Routing::Random => {
                let count = open.clone().count();
                open.clone().nth(function.route.below(count))
            }
        }
    }

    /// A request comes to a replica.
    fn take(&mut self, place: u32, request: u32) {
        self.requests[request as usize].replica = place;
        let replica = &mut self.replicas[place as usize];
        replica.in_flight += 1;
        if replica.state == ReplicaState::Parked {
            replica.state = ReplicaState::Ready;
            let (floor, function) = (replica.share.floor, replica.function);
            self.functions[function as usize].outcome.wakes += 1;
            self.grant(place, floor);
        }
        let replica = &mut self.replicas[place as usize];
        let function = &mut self.functions[replica.function as usize];
        if function.cpu.is_zero() {
            replica.queue.push_back(request);
            self.begin_work(place);
        } else if replica.preparing < function.workers {
            replica.preparing += 1;
            let takes = Nanos::from_secs_f64(function.cpu.draw(&mut function.prepare));
            self.queue.push(self.now + takes, Event::Prepared(request));
        } else {
            replica.unprepared.push_back(request);
        }
    }

    pub(super) fn prepared(&mut self, request: u32) {
        let place = self.requests[request as usize].replica;
        if place == u32::MAX {
            // Its replica has failed in the meantime; it was counted then.
            self.free_requests.push(request);
            return;
        }
        let replica = &mut self.replicas[place as usize];
        replica.queue.push_back(request);
        if let Some(next) = replica.unprepared.pop_front() {
            let function = &mut self.functions[replica.function as usize];
            let takes = Nanos::from_secs_f64(function.cpu.draw(&mut function.prepare));
            self.queue.push(self.now + takes, Event::Prepared(next));
        } else {
            replica.preparing -= 1;
        }
        self.begin_work(place);
    }

    pub(super) fn filled(&mut self, place: u32, version: u32) {
        let replica = &mut self.replicas[place as usize];
        if replica.version == version && replica.filling {
            replica.filling = false;
            self.begin_batch(place);
        }
    }

    /// Begins the next batch if nothing is on the GPU and the batch is full or has waited.
    fn begin_work(&mut self, place: u32) {
        let replica = &mut self.replicas[place as usize];
        if !replica.batch.is_empty() || replica.queue.is_empty() {
            return;
        }
        let function = &self.functions[replica.function as usize];
        if function.fill > Nanos::ZERO && replica.queue.len() < function.batch {
            if !replica.filling {
                replica.filling = true;
                let event = Event::Filled { replica: place, version: replica.version };
                self.queue.push(self.now + function.fill, event);
            }
            return;
        }
        self.begin_batch(place);
    }

    fn begin_batch(&mut self, place: u32) {
        let replica = &mut self.replicas[place as usize];
        replica.filling = false;
        let most = self.functions[replica.function as usize].batch;
        while self.replicas[place as usize].batch.len() < most {
            let Some(request) = self.replicas[place as usize].queue.pop_front() else { break };
            if self.now.since(self.requests[request as usize].arrived) > self.control.timeout {
                self.replicas[place as usize].in_flight -= 1;
                self.fail(request);
            } else {
                self.replicas[place as usize].batch.push(request);
            }
        }
        let items = self.replicas[place as usize].batch.len();
        if items == 0 {
            return self.after_drain(place);
        }
        let replica = &self.replicas[place as usize];
        let (alone, slowed) = (replica.times[items - 1], replica.slowed);
        // As it is when the batch begins: neighbours that come and go while it runs even out.
        let beside = self.beside(place);
        let needs = if slowed > 0.0 && beside.neighbours > 0 {
            Nanos::from_secs_f64(alone.secs_f64() * (1.0 + slowed * f64::from(beside.neighbours)))
        } else {
            alone
        };
        let lent = self.lent(place, beside);
        self.seats[place as usize].works = true;
        let replica = &mut self.replicas[place as usize];
        replica.needs = needs;
        let end = replica.engine.begin(needs, lent, self.now);
        self.work_ends(place, end);
    }

    /// Time that nobody in the row uses when the work begins, up to the ceiling: among those who work, each gets a part as
    /// its floor is.
    fn lent(&self, place: u32, beside: Beside) -> Quota {
        if !matches!(self.cards.enforcement, Enforcement::GpuTime { lends: true, .. }) {
            return Quota::ZERO;
        }
        let replica = &self.replicas[place as usize];
        let most = replica.share.ceiling.saturating_sub(replica.engine.grant());
        let taken = Quota::from_ppm(replica.engine.grant().ppm() + beside.grants).unwrap_or(Quota::WHOLE);
        let (idle, floor) = (Quota::WHOLE.saturating_sub(taken), replica.share.floor.ppm());
        if beside.floors == 0 {
            return idle.min(most);
        }
        let part = f64::from(floor) / f64::from(floor + beside.floors);
        Quota::saturating_from_fraction(idle.fraction() * part).min(most)
    }

    /// Plans the end of a replica's work, if it has one.
    pub(super) fn work_ends(&mut self, place: u32, end: Option<Nanos>) {
        let replica = &mut self.replicas[place as usize];
        replica.version = replica.version.wrapping_add(1);
        if let Some(end) = end {
            self.queue.push(end, Event::Done { replica: place, version: replica.version });
        }
    }

    pub(super) fn done(&mut self, place: u32, version: u32) {
        let replica = &mut self.replicas[place as usize];
        if replica.version != version || replica.batch.is_empty() {
            return;
        }
        replica.engine.end();
        let needs = replica.needs;
        replica.meter.uses(needs, self.now <= self.horizon);
        // The spare vector takes its place: an answer may bring the next request, and with it the next batch.
        core::mem::swap(&mut replica.batch, &mut self.answered);
        self.seats[place as usize].works = false;
        replica.in_flight -= place_of(self.answered.len());
        let function = replica.function;
        for index in 0..self.answered.len() {
            self.answer(self.answered[index]);
        }
        self.answered.clear();
        self.begin_work(place);
        self.after_drain(place);
        if !self.functions[function as usize].held.is_empty() {
            self.release_held(function);
        }
    }

    fn answer(&mut self, id: u32) {
        let Request { arrived, function: index, .. } = self.requests[id as usize];
        let latency = self.now.since(arrived);
        let function = &mut self.functions[index as usize];
        function.outcome.finished += 1;
        function.outcome.late += u64::from(latency > function.bound);
        function.outcome.latency.add(latency);
        function.latencies.push(latency);
        if self.moments.is_some() {
            function.recent.add(latency);
        }
        self.free_requests.push(id);
        self.leave(index);
    }

    /// A request gets no answer.
    pub(super) fn fail(&mut self, id: u32) {
        self.free_requests.push(id);
        self.fail_in_preparation(id);
    }

    /// The same, while an event that names it is still to come: its place is free only then.
    pub(super) fn fail_in_preparation(&mut self, id: u32) {
        let index = self.requests[id as usize].function;
        self.functions[index as usize].outcome.failed += 1;
        self.leave(index);
    }

    fn leave(&mut self, index: u32) {
        self.alive -= 1;
        if let Source::Client(client) = &mut self.functions[index as usize].source {
            let next = client.answered(self.now);
            self.client_goes_on(index, next);
        }
    }

    /// Clients that have waited too long at the gateway give up.
    pub(super) fn give_up(&mut self, index: u32) {
        while let Some(&request) = self.functions[index as usize].held.front()
            && self.now.since(self.requests[request as usize].arrived) > self.control.timeout
        {
            self.functions[index as usize].held.pop_front();
            self.fail(request);
        }
    }
}
