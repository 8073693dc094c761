//! One function on simulated GPUs: requests, replicas that keep to their quota as the real ones do, and a policy.

use std::collections::VecDeque;

use gpu_share::annotations::Scaling;
use gpu_share::quota::{QuotaServer, Verdict, WINDOW};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::policy::*;

/// The simulation goes on in steps of this, which is also how long a kernel is.
const TICK: Nanos = Nanos::from_millis(1);
/// Time between two decisions, in ticks.
const DECIDE: u64 = 200;
/// Ticks of a request beside the GPU, and on it.
const BESIDE: u32 = 3;
const ON_GPU: u32 = 20;

/// The function.
const NAME: &str = "resnet";

/// Another function in the same row, whose replica used so much since the last decision.
fn neighbour(beside: &FunctionView, used: Nanos) -> FunctionView {
    let share = Share { floor: Quota::from_percent(10).unwrap(), ..beside.wish.share };
    FunctionView {
        name: "neighbour".into(),
        wish: Wish { scaling: Scaling::Off, ..beside.wish.clone() },
        replicas: vec![ReplicaView {
            id: "neighbour".into(),
            state: ReplicaState::Ready,
            share,
            gpu: 0,
            row: 0,
            grant: share.floor,
            room: share.floor,
            in_flight: 1,
            age: Nanos::from_secs(3_600),
            used,
        }],
        arrivals: 0,
        held: 0,
        in_flight: 1,
        latencies: Vec::new(),
        ..beside.clone()
    }
}

/// How requests come.
#[derive(Clone, Copy)]
pub(super) enum Arrivals {
    Poisson,
    Even,
}

pub(super) struct Cluster {
    policy: Box<dyn Policy>,
    pub(super) wish: Wish,
    /// Most that a replica may be granted.
    pub(super) room: Quota,
    pub(super) cold_start: Nanos,
    /// Nobody else in the row is at work; else somebody always is, and no time is left to be lent.
    pub(super) quiet: bool,
    /// There is nobody else in the row.
    pub(super) alone: bool,
    arrivals: Arrivals,
    random: StdRng,
    due: f64,
    tick: u64,
    next_id: u32,
    pub(super) replicas: Vec<Replica>,
    held: VecDeque<Nanos>,
    arrived: u64,
    finished: Vec<Nanos>,
    /// Every request's time of arrival and latency.
    pub(super) served: Vec<(Nanos, Nanos)>,
    /// Every decision and its time.
    pub(super) decisions: Vec<(Nanos, Decision)>,
    /// Sum over ticks of all grants, in GPU-ticks.
    pub(super) granted: f64,
}

pub(super) struct Replica {
    pub(super) id: String,
    pub(super) state: ReplicaState,
    server: QuotaServer,
    started: Nanos,
    queue: VecDeque<Request>,
    used: Nanos,
    runs: bool,
}

struct Request {
    arrived: Nanos,
    beside: u32,
    on_gpu: u32,
}

impl Replica {
    pub(super) fn grant(&self) -> Quota {
        self.server.quota()
    }

    /// A tick; `lent` is all time that it is not granted.
    fn step(&mut self, now: Nanos, lent: bool) -> Option<Nanos> {
        let request = self.queue.front_mut()?;
        if request.beside > 0 {
            request.beside -= 1;
        } else {
            self.runs = if lent {
                true
            } else if self.runs {
                self.server.has_credit(now)
            } else {
                matches!(self.server.ask(now), Verdict::Run(_))
            };
            if self.runs {
                self.server.begin(now);
                self.server.end(TICK, now + TICK);
                self.used += TICK;
                request.on_gpu -= 1;
            }
        }
        if request.on_gpu > 0 {
            return None;
        }
        self.runs = false;
        self.queue.pop_front().map(|request| request.arrived)
    }
}

impl Cluster {
    pub(super) fn new(policy: Box<dyn Policy>, wish: Wish, arrivals: Arrivals) -> Self {
        let mut cluster = Self {
            policy,
            wish,
            room: Quota::WHOLE,
            cold_start: Nanos::from_secs(5),
            quiet: false,
            alone: false,
            arrivals,
            random: StdRng::seed_from_u64(11),
            due: 0.0,
            tick: 0,
            next_id: 0,
            replicas: Vec::new(),
            held: VecDeque::new(),
            arrived: 0,
            finished: Vec::new(),
            served: Vec::new(),
            decisions: Vec::new(),
            granted: 0.0,
        };
        cluster.scale(cluster.wish.replicas.min);
        cluster.replicas.iter_mut().for_each(|replica| replica.state = ReplicaState::Ready);
        cluster
    }

    pub(super) fn now(&self) -> Nanos {
        Nanos(TICK.0 * self.tick)
    }

    /// Goes on for `seconds` with `rate` requests a second.
    pub(super) fn run(&mut self, seconds: u64, rate: f64) {
        for _ in 0..seconds * 1000 {
            self.tick += 1;
            self.arrive(rate / 1000.0);
            self.step();
            if self.tick.is_multiple_of(DECIDE) {
                self.decide();
            }
        }
    }

    /// Latencies of the requests that arrived since `since`, sorted, in milliseconds.
    pub(super) fn latencies(&self, since: Nanos) -> Vec<f64> {
        let late = self.served.iter().filter(|served| served.0 >= since);
        let mut latencies: Vec<f64> = late.map(|served| served.1.millis_f64()).collect();
        latencies.sort_by(f64::total_cmp);
        latencies
    }

    pub(super) fn percentile(&self, since: Nanos, percentile: f64) -> f64 {
        let latencies = self.latencies(since);
        latencies[((latencies.len() as f64 * percentile) as usize).min(latencies.len() - 1)]
    }

    pub(super) fn actions(&self, since: Nanos) -> Vec<&Action> {
        self.decisions.iter().filter(|(at, _)| *at >= since).map(|(_, decision)| &decision.action).collect()
    }

    pub(super) fn grants_changed(&self, since: Nanos) -> usize {
        self.actions(since).iter().filter(|action| matches!(action, Action::Grant { .. })).count()
    }

    pub(super) fn scaled(&self, since: Nanos) -> Vec<u32> {
        let counts = self.actions(since).into_iter().map(|action| match action {
            Action::Scale { replicas, .. } => Some(*replicas),
            _ => None,
        });
        counts.flatten().collect()
    }

    fn arrive(&mut self, mean: f64) {
        let comes = match self.arrivals {
            Arrivals::Poisson => self.random.random::<f64>() < mean,
            Arrivals::Even => {
                self.due += mean;
                self.due >= 1.0
            }
        };
        if comes {
            self.due = (self.due - 1.0).max(0.0);
            self.arrived += 1;
            self.held.push_back(self.now());
        }
    }

    fn step(&mut self) {
        let (now, floor) = (self.now(), self.wish.share.floor);
        let serves =
            |replica: &&mut Replica| matches!(replica.state, ReplicaState::Ready | ReplicaState::Parked);
        while let Some(&arrived) = self.held.front()
            && let Some(replica) = self.replicas.iter_mut().filter(serves).min_by_key(|r| r.queue.len())
        {
            if replica.state == ReplicaState::Parked {
                replica.state = ReplicaState::Ready;
                replica.server.resize(floor, now);
            }
            replica.queue.push_back(Request { arrived, beside: BESIDE, on_gpu: ON_GPU });
            self.held.pop_front();
        }
        for replica in &mut self.replicas {
            if replica.state == ReplicaState::Starting && now.since(replica.started) >= self.cold_start {
                replica.state = ReplicaState::Ready;
            }
            self.granted += replica.grant().fraction();
            if let Some(arrived) = replica.step(now, self.quiet) {
                let latency = (now + TICK).since(arrived);
                self.finished.push(latency);
                self.served.push((arrived, latency));
            }
        }
        self.replicas.retain(|replica| replica.state != ReplicaState::Draining || !replica.queue.is_empty());
    }

    fn view(&mut self) -> FunctionView {
        let now = self.now();
        let room = self.room;
        let replicas: Vec<_> = self
            .replicas
            .iter_mut()
            .map(|replica| ReplicaView {
                id: replica.id.clone(),
                state: replica.state,
                share: self.wish.share,
                gpu: 0,
                row: 0,
                grant: replica.server.quota(),
                room,
                in_flight: replica.queue.len() as u32,
                age: now.since(replica.started),
                used: core::mem::take(&mut replica.used),
            })
            .collect();
        FunctionView {
            name: NAME.into(),
            wish: self.wish.clone(),
            gpu_memory: Bytes::gib(16),
            window: WINDOW,
            arrivals: core::mem::take(&mut self.arrived),
            held: self.held.len() as u32,
            in_flight: replicas.iter().map(|replica| replica.in_flight).sum(),
            replicas,
            latencies: core::mem::take(&mut self.finished),
            cold_start: self.cold_start,
            no_room: false,
        }
    }

    fn decide(&mut self) {
        let (now, view) = (self.now(), self.view());
        let used = if self.quiet { Nanos::ZERO } else { Nanos(DECIDE * TICK.0) };
        let neighbour = neighbour(&view, used);
        let shown = if self.alone { vec![view] } else { vec![view, neighbour] };
        for decision in self.policy.decide(now, &shown) {
            self.carry_out(now, &decision.action);
            self.decisions.push((now, decision));
        }
    }

    fn carry_out(&mut self, now: Nanos, action: &Action) {
        match action {
            Action::Grant { replica, quota } => {
                let quota = (*quota).min(self.room);
                if let Some(replica) = self.replicas.iter_mut().find(|r| r.id == *replica) {
                    replica.server.resize(quota, now);
                    replica.state = ReplicaState::Ready;
                }
            }
            Action::Park { replica } => {
                if let Some(replica) = self.replicas.iter_mut().find(|r| r.id == *replica) {
                    replica.server.resize(Quota::ZERO, now);
                    replica.state = ReplicaState::Parked;
                }
            }
            Action::Scale { function, replicas } if function == NAME => self.scale(*replicas),
            Action::Scale { .. } => {}
            Action::Start { .. } | Action::Stop { .. } => {
                panic!("{action:?} of a policy that keeps no books")
            }
        }
    }

    fn scale(&mut self, wanted: u32) {
        let now = self.now();
        let share = self.policy.share(&self.wish, Bytes::gib(16));
        let present = self.replicas.iter().filter(|r| r.state != ReplicaState::Draining).count();
        for _ in present..wanted as usize {
            self.next_id += 1;
            self.replicas.push(Replica {
                id: format!("r{}", self.next_id),
                state: ReplicaState::Starting,
                server: QuotaServer::new(share.floor, WINDOW, now),
                started: now,
                queue: VecDeque::new(),
                used: Nanos::ZERO,
                runs: false,
            });
        }
        let newest = self.replicas.iter_mut().rev().filter(|r| r.state != ReplicaState::Draining);
        for replica in newest.take(present.saturating_sub(wanted as usize)) {
            replica.state = ReplicaState::Draining;
        }
    }
}
