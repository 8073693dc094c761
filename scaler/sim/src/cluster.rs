//! GPUs, replicas and requests, and what happens to them.
//!
//! ```text
//! arrival ─► held at the gateway ─► prepared (CPU) ─► queue of a replica ─► batch on the GPU ─► answered
//!                 ▲ no replica is ready                                             │ replica or client is gone
//!                 └─────────────────────────────────────────────────────────────────┴─► failed
//! ```
//!
//! Everything that is alive lies in vectors and is named by its place in them; what is gone leaves its place to the next.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use gpu_share::invalid::Invalid;
use gpu_share::ledger::{Gpu, Ledger};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};
use scaler::policy::{Action, FunctionView, Policy, ReplicaState};

use crate::arrivals::{Arrivals, Load};
use crate::client::Client;
use crate::event::{Event, Queue};
use crate::gpu::{Contention, Engine};
use crate::random::{LogNormal, Purpose, Stream};
use crate::report::{Histogram, Outcome, Report};
use crate::spec::{Cards, Control, Faults, FunctionSpec, Spec};
use crate::surface::Surface;

mod account;
mod control;
mod life;
mod place;
mod serve;

/// A simulated cluster under a policy.
pub struct Cluster {
    cards: Cards,
    control: Control,
    faults: Faults,
    policy: Box<dyn Policy>,
    queue: Queue,
    now: Nanos,
    /// When costs are counted no more.
    horizon: Nanos,
    gpus: Vec<Card>,
    replicas: Vec<Replica>,
    /// Where each replica is on its GPU: what others there look at when they begin work, in little memory.
    seats: Vec<Seat>,
    free_replicas: Vec<u32>,
    requests: Vec<Request>,
    free_requests: Vec<u32>,
    /// Requests that are being answered; empty between events.
    answered: Vec<u32>,
    functions: Vec<Function>,
    by_name: HashMap<String, u32>,
    /// What the policy is shown: the first `shown` of these.
    views: Vec<FunctionView>,
    shown: usize,
    /// Where in `views` each function is.
    view_at: Vec<usize>,
    /// Decisions that are on their way, by the time that they arrive.
    decided: VecDeque<(Nanos, Action)>,
    /// Streams of what belongs to no function.
    random: Vec<Stream>,
    /// Requests that are alive, and functions that have more to come.
    alive: u32,
    sources: u32,
    moments: Option<Nanos>,
    next_moment: Nanos,
    report: Report,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("policy", &self.policy.name())
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// One GPU.
#[derive(Debug)]
struct Card {
    ledger: Ledger,
    gpu: Gpu,
    replicas: Vec<u32>,
    /// Memory that is bound, and time that floors have, in parts per million.
    memory: Bytes,
    sold: u64,
    healthy: bool,
}

/// One replica, or the place of one.
#[derive(Debug)]
struct Replica {
    generation: u32,
    function: u32,
    gpu: u32,
    state: ReplicaState,
    /// Its place is taken.
    exists: bool,
    share: Share,
    id: String,
    born: Nanos,
    /// Requests at it.
    in_flight: u32,
    /// Requests that it prepares, and those that wait for that.
    preparing: u32,
    unprepared: VecDeque<u32>,
    queue: VecDeque<u32>,
    /// Requests on the GPU.
    batch: Vec<u32>,
    /// Number of the work on the GPU, or of the wait for a batch.
    version: u32,
    filling: bool,
    engine: Engine,
    /// GPU time by size of the batch, from 1, and the part of it that each neighbour at work adds.
    times: Vec<Nanos>,
    slowed: f64,
    /// GPU time of the work on the GPU.
    needs: Nanos,
    meter: account::Meter,
}

/// Where a replica is on its GPU.
#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    /// Of its GPU, if the ledger placed it.
    row: Option<u32>,
    /// It has work on the GPU.
    works: bool,
}

/// One request, or the place of one.
#[derive(Clone, Copy, Debug)]
struct Request {
    arrived: Nanos,
    function: u32,
    replica: u32,
}

/// One function.
#[derive(Debug)]
struct Function {
    surface: Arc<Surface>,
    contention: Contention,
    cpu: LogNormal,
    workers: u32,
    limit: u32,
    fill: Nanos,
    batch: usize,
    bound: Nanos,
    source: Source,
    prepare: Stream,
    start: Stream,
    fail: Stream,
    route: Stream,
    /// Replicas that there should be.
    wanted: u32,
    /// The last one that was to start found no room.
    no_room: bool,
    replicas: Vec<u32>,
    held: VecDeque<u32>,
    /// Requests that came and latencies of those that were answered since the policy looked.
    arrivals: u64,
    latencies: Vec<Nanos>,
    /// Seconds that the last cold starts took.
    cold_starts: VecDeque<f64>,
    outcome: Outcome,
    recent: Histogram,
    /// Arrivals and GPU-seconds at the end of the last moment.
    marked: (u64, f64),
}

/// Where requests come from.
#[derive(Clone, Debug)]
enum Source {
    Open(Arrivals),
    Client(Client),
}

/// Moments of a timeline.
const MOMENTS: u32 = 200;
/// Functions up to which each has a timeline of its own.
const MOST_TIMELINES: usize = 32;

impl Cluster {
    /// The cluster of `spec` at its start: each function has the fewest replicas that it allows, ready.
    pub fn new(spec: &Spec, policy: Box<dyn Policy>) -> Result<Self, Invalid> {
        spec.check()?;
        let by_name: HashMap<_, _> = spec.functions.iter().map(|f| f.name.clone()).zip(0..).collect();
        if by_name.len() < spec.functions.len() {
            return Err(Invalid::new("functions", "two of one name", "each name once"));
        }
        let horizon = Nanos::from_secs_f64(spec.seconds);
        let mut cluster = Self {
            cards: spec.cards,
            control: spec.control,
            faults: spec.faults.clone(),
            policy,
            queue: Queue::default(),
            now: Nanos::ZERO,
            horizon,
            gpus: (0..spec.cards.count).map(|index| place::card(&spec.cards, index)).collect(),
            replicas: Vec::new(),
            seats: Vec::new(),
            free_replicas: Vec::new(),
            requests: Vec::new(),
            free_requests: Vec::new(),
            answered: Vec::new(),
            functions: Vec::new(),
            by_name,
            views: spec.functions.iter().map(|function| control::first_view(spec, function)).collect(),
            shown: 0,
            view_at: (0..spec.functions.len()).collect(),
            decided: VecDeque::new(),
            random: (0..spec.cards.count).map(|i| Stream::new(spec.seed, Purpose::Loss, i)).collect(),
            alive: 0,
            sources: 0,
            moments: None,
            next_moment: Nanos(u64::MAX),
            report: Report { seconds: spec.seconds, ..Report::default() },
        };
        if spec.functions.len() <= MOST_TIMELINES {
            let step = Nanos(horizon.0 / u64::from(MOMENTS));
            (cluster.moments, cluster.next_moment) = (Some(step), step);
        }
        cluster.begin(spec);
        Ok(cluster)
    }

    fn begin(&mut self, spec: &Spec) {
        for (index, function) in (0..).zip(&spec.functions) {
            self.functions.push(Function::new(spec, function, index));
            self.sources += 1;
            match &function.load {
                Load::Client(_) => self.queue.push(Nanos::ZERO, Event::Arrival(index)),
                _ => self.next_arrival(index),
            }
            let first = function.wish.replicas.min;
            if !self.policy.places() {
                self.functions[index as usize].wanted = first;
                for _ in 0..first {
                    self.start_wanted(index, true);
                }
            }
        }
        if self.policy.places() {
            self.update_views();
            let first = self.policy.decide(self.now, &self.views[..self.shown]);
            for decision in first {
                self.carry_out(decision.action);
            }
        }
        for &(at, node) in &spec.faults.losses {
            self.queue.push(Nanos::from_secs_f64(at), Event::Lost(node));
        }
        for node in 0..spec.cards.count.div_ceil(spec.cards.per_node) {
            self.plan_loss(node);
        }
        self.queue.push(self.control.tick, Event::Tick);
    }

    /// Runs to the end.
    pub fn run(mut self) -> Report {
        while self.advance(Nanos(u64::MAX)) {}
        self.finish()
    }

    /// Works off what happens up to `until`; whether there is more to come.
    pub fn advance(&mut self, until: Nanos) -> bool {
        while let Some((at, event)) = self.queue.pop_until(until) {
            self.now = at;
            self.report.events += 1;
            self.happen(event);
            if self.sources == 0 && self.alive == 0 && self.now >= self.horizon {
                return false;
            }
        }
        !self.queue.is_empty()
    }

    /// The time that it is at.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// What came of it so far.
    pub fn finish(mut self) -> Report {
        self.settle_all();
        self.report.functions = self.functions.into_iter().map(|function| function.outcome).collect();
        self.report
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival(function) => self.arrival(function),
            Event::Prepared(request) => self.prepared(request),
            Event::Done { replica, version } => self.done(replica, version),
            Event::Filled { replica, version } => self.filled(replica, version),
            Event::Ready { replica, generation } => self.ready(replica, generation),
            Event::Failure { replica, generation } => self.failure(replica, generation),
            Event::Decided => self.carry_out_due(),
            Event::Tick => self.tick(),
            Event::Lost(node) => self.lose(node),
            Event::Repaired(node) => self.repair(node),
        }
    }
}

impl Function {
    fn new(spec: &Spec, function: &FunctionSpec, index: u32) -> Self {
        let stream = |purpose| Stream::new(spec.seed, purpose, index);
        let source = match &function.load {
            Load::Client(steps) => Source::Client(Client::new(steps.clone())),
            load => Source::Open(Arrivals::new(load.clone(), stream(Purpose::Arrivals))),
        };
        Self {
            surface: function.surface.clone(),
            contention: function.contention,
            cpu: function.cpu.law(),
            workers: if function.workers == 0 { u32::MAX } else { function.workers },
            limit: if function.limit == 0 { u32::MAX } else { function.limit },
            fill: function.fill,
            batch: usize::try_from(function.wish.batch.max(1)).unwrap_or(usize::MAX),
            bound: function.wish.slo.map_or(Nanos(u64::MAX), |slo| slo.bound),
            source,
            prepare: stream(Purpose::Cpu),
            start: stream(Purpose::ColdStart),
            fail: stream(Purpose::Failure),
            route: stream(Purpose::Routing),
            wanted: 0,
            no_room: false,
            replicas: Vec::new(),
            held: VecDeque::new(),
            arrivals: 0,
            latencies: Vec::new(),
            cold_starts: VecDeque::new(),
            outcome: Outcome { name: function.name.clone(), ..Outcome::default() },
            recent: Histogram::default(),
            marked: (0, 0.0),
        }
    }
}

/// A place in one of the vectors; far below 2^32 are alive at once.
#[allow(clippy::cast_possible_truncation)]
fn place_of(length: usize) -> u32 {
    length as u32
}

#[cfg(test)]
mod tests;
