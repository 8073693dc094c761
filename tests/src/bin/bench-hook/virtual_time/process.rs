//! One process: the program that launches without an end, and what the hook keeps in it.
//!
//! Decides nothing by itself: who may launch, what is measured together and what is charged is asked of
//! `gpu_share::accounting`.

use std::collections::VecDeque;

use gpu_share::accounting::admission;
pub(super) use gpu_share::accounting::admission::Patience;
use gpu_share::accounting::batch::{self, STALE};
use gpu_share::accounting::cost::Cost;
use gpu_share::accounting::right::Right;
use gpu_share::accounting::timeline::Timeline;
use gpu_share::protocol::FromContainer;
use gpu_share::units::{Nanos, Quota};
use gpufn::audit::cell::{BATCH_MICROS, Container, Load, Wait};

use super::gpu::Queue;

/// What a program that can't launch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The word in the page.
    Word,
    /// Work of its own process.
    Changed,
}

/// What the program does.
#[derive(Debug)]
pub(super) enum App {
    Idle,
    Running,
    AtGate { since: Nanos, patience: Patience, kind: usize, until: Until },
    Syncing,
}

/// Launches between two events.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    start: usize,
    end: usize,
    launches: u64,
    expected: Nanos,
    since: Nanos,
    gap: Nanos,
    tail: Nanos,
    kinds: Vec<usize>,
}

/// Events of one process, by number, used again as the hook does.
#[derive(Debug, Default)]
pub(super) struct Events {
    times: Vec<Option<Nanos>>,
    free: Vec<usize>,
}

impl Events {
    fn take(&mut self) -> usize {
        let event = self.free.pop().unwrap_or_else(|| {
            self.times.push(None);
            self.times.len() - 1
        });
        self.times[event] = None;
        event
    }

    pub(super) fn happened(&mut self, event: usize, at: Nanos) {
        self.times[event] = Some(at);
    }

    /// As the driver tells it: a float of milliseconds.
    fn elapsed(&self, from: usize, to: usize) -> Option<f64> {
        let (from, to) = (self.times[from]?, self.times[to]?);
        let span = if to >= from { to.since(from).millis_f64() } else { -from.since(to).millis_f64() };
        #[allow(clippy::cast_possible_truncation)] // It is what the driver does.
        let told = span as f32;
        Some(f64::from(told))
    }
}

/// What came of a launch.
#[derive(Debug)]
pub(super) struct Started {
    /// Time that the calls took.
    pub(super) host: Nanos,
    /// It was measured by itself.
    pub(super) alone: Option<Batch>,
    pub(super) opened: bool,
    pub(super) full: bool,
}

pub(super) struct Process {
    pub(super) container: usize,
    pub(super) sm: u8,
    load: Load,
    launches: usize,
    unsynced: u32,
    pub(super) app: App,
    pub(super) turn: u32,
    pub(super) stopping: bool,
    pub(super) word: u32,
    /// When the last of its messages reaches the agent: a socket keeps their order.
    pub(super) heard_until: Nanos,
    accepted: u32,
    window: Nanos,
    in_flight: u64,
    queued: Nanos,
    ended: u64,
    pub(super) right: Right,
    costs: Vec<Cost>,
    open: Option<Batch>,
    pub(super) pending: VecDeque<Batch>,
    pub(super) events: Events,
    timeline: Timeline,
    pub(super) look: u32,
    /// The harvester's thread waits for the end of the first batch, and hears nothing else.
    pub(super) awaits_event: bool,
    looked: Nanos,
    seen: u64,
}

impl Process {
    pub(super) fn new(container: usize, of: &Container) -> Self {
        Self {
            container,
            sm: of.sm,
            load: of.load.clone(),
            launches: 0,
            unsynced: 0,
            app: App::Idle,
            turn: 0,
            stopping: false,
            word: 0,
            heard_until: Nanos::ZERO,
            accepted: 0,
            window: admission::WINDOW,
            in_flight: 0,
            queued: Nanos::ZERO,
            ended: 0,
            right: Right::new(0),
            costs: of.load.kernels.iter().map(|_| Cost::default()).collect(),
            open: None,
            pending: VecDeque::new(),
            events: Events::default(),
            timeline: Timeline::default(),
            look: 0,
            awaits_event: false,
            looked: Nanos::ZERO,
            seen: 0,
        }
    }

    /// Which of its kernels comes next.
    pub(super) fn next_kind(&self) -> usize {
        self.launches % self.load.kernels.len()
    }

    /// Whether a launch passes on the fast path.
    pub(super) fn admits(&self) -> bool {
        admission::admits(self.queued, self.window, self.accepted, self.word)
    }

    pub(super) fn accept(&mut self, held: u32, grant: Option<Quota>) {
        self.window = admission::window(grant);
        self.accepted = held;
    }

    pub(super) fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    pub(super) fn patience(&self, now: Nanos) -> Patience {
        Patience::new(self.ended, now)
    }

    pub(super) fn is_out_of_patience(&self, patience: &mut Patience, now: Nanos) -> bool {
        patience.is_over(self.ended, self.is_busy(), now)
    }

    /// The launch of `kind` goes on the stream.
    pub(super) fn enter(
        &mut self,
        kind: usize,
        now: Nanos,
        record: Nanos,
        launch: Nanos,
        queue: &mut Queue,
    ) -> Started {
        let (ahead, expected) = (self.queued, self.costs[kind].estimate());
        self.in_flight += 1;
        self.queued += expected;
        let dense = batch::is_dense(ahead, self.costs[kind].is_known(), false);
        let opens = self.open.is_none();
        let mut host = launch;
        let mut single = None;
        if opens {
            let start = self.events.take();
            queue.record(now + record, start);
            host += record;
            let fresh = Batch { start, since: now, ..Batch::default() };
            if dense {
                self.open = Some(fresh);
            } else {
                single = Some(fresh);
            }
        }
        self.start_kernels(kind, now + host, queue);
        if let Some(batch) = single.as_mut().or(self.open.as_mut()) {
            batch.launches += 1;
            batch.expected += expected;
            batch.kinds.push(kind);
        }
        let alone = single.map(|batch| self.end(batch, now + host, record, Nanos::ZERO, queue));
        let is_full = |batch: &Batch| batch::is_full(batch.launches, batch.expected);
        let full = self.open.as_ref().is_some_and(|batch| is_full(batch) || !dense);
        Started { host, alone, opened: opens && dense, full }
    }

    fn start_kernels(&mut self, kind: usize, at: Nanos, queue: &mut Queue) {
        let micros = self.load.kernels[kind];
        let kernels = Load::kernels_per_launch(self.load.launch, micros);
        (0..kernels).for_each(|_| queue.kernel(at, Nanos::from_micros(micros.into())));
        self.launches += 1;
        self.unsynced += micros * kernels;
    }

    fn end(&mut self, batch: Batch, at: Nanos, record: Nanos, idle: Nanos, queue: &mut Queue) -> Batch {
        let end = self.events.take();
        queue.record(at + record, end);
        let gap = at.since(idle).since(batch.since);
        Batch { end, gap, tail: idle + record, ..batch }
    }

    /// Ends the open batch, to which nothing came for `idle`.
    pub(super) fn close(
        &mut self,
        at: Nanos,
        idle: Nanos,
        record: Nanos,
        queue: &mut Queue,
    ) -> Option<Batch> {
        let batch = self.open.take()?;
        Some(self.end(batch, at, record, idle, queue))
    }

    /// Whether the program waits for its work after this launch.
    pub(super) fn waits_now(&mut self) -> bool {
        let waits = match self.load.wait {
            Wait::Each => true,
            Wait::Batch => self.unsynced >= BATCH_MICROS,
            Wait::Never => false,
        };
        if waits {
            self.unsynced = 0;
        }
        waits
    }

    /// The open batch is to be closed, since nothing came for so long.
    pub(super) fn stale(&mut self, now: Nanos) -> Option<Nanos> {
        let open = self.open.as_ref()?;
        let idle = now.since(self.looked);
        if idle < STALE {
            return None;
        }
        self.looked = now;
        let progress = (open.start as u64) << 32 | open.launches;
        let same = progress == self.seen;
        self.seen = progress;
        same.then_some(idle)
    }

    /// When the first batch that is pending ended or will have ended, as far as that is known.
    pub(super) fn first_end(&self) -> Option<Nanos> {
        self.events.times[self.pending.front()?.end]
    }

    pub(super) fn is_first_end(&self, event: usize) -> bool {
        self.pending.front().is_some_and(|batch| batch.end == event)
    }

    pub(super) fn take_ended(&mut self, now: Nanos) -> Option<Batch> {
        self.first_end().filter(|&at| at <= now)?;
        self.pending.pop_front()
    }

    /// Charges what the batch occupied.
    pub(super) fn settle(&mut self, batch: &Batch, now: Nanos) {
        let costs: Vec<_> = batch.kinds.iter().map(|&kind| (&self.costs[kind], 1)).collect();
        let (launches, expected) = (batch.launches, batch.expected);
        let measured = batch::Batch { launches, expected, gap: batch.gap, tail: batch.tail, costs: &costs };
        let events = &self.events;
        let span = self.timeline.span(batch.start, batch.end, |from, to| events.elapsed(from, to));
        let used = span.map_or(expected, |span| {
            let used = measured.without_gaps(span);
            measured.learn(span.length(), used.length());
            self.timeline.occupy(used)
        });
        self.right.charge(used, launches, now);
        self.in_flight -= launches;
        self.queued = self.queued.since(expected);
        self.ended += 1;
        self.events.free.extend(self.timeline.release(batch.start, batch.end, span));
    }

    /// Gives the right back if it is due; else says when to look again.
    pub(super) fn give_back(&mut self, now: Nanos) -> (Vec<FromContainer>, Option<Nanos>) {
        if self.is_busy() {
            return (Vec::new(), None);
        }
        match self.right.is_due(self.word, now) {
            Ok(false) => (Vec::new(), None),
            Err(then) => (Vec::new(), Some(then)),
            Ok(true) => {
                self.accepted = 0;
                (self.right.give_back(self.word, now), None)
            }
        }
    }

    /// When a harvester without batches looks again.
    pub(super) fn next_look(&self, due: Option<Nanos>, now: Nanos) -> Option<Nanos> {
        let stale = self.open.is_some().then_some(now + STALE);
        due.into_iter().chain(stale).min()
    }
}
