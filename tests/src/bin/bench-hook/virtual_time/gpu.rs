//! The GPU: which kernel runs when. Serial and in slices between processes, or beside each other by SM shares, as
//! `simcuda` does it in real time; kernels are never preempted.

use std::collections::VecDeque;

use gpu_share::units::Nanos;
use gpufn::audit::cell::Mode;

/// How long a process keeps the GPU while others have work, in exclusive mode.
const SLICE: Nanos = Nanos::from_millis(2);

/// One thing on a stream.
#[derive(Clone, Copy, Debug)]
enum Item {
    Kernel(Nanos),
    Record(usize),
}

/// The stream of one process.
#[derive(Debug, Default)]
pub(super) struct Queue {
    sm: u8,
    items: VecDeque<(Nanos, Item)>,
    runs_until: Option<Nanos>,
    /// When the last kernel or record on it was done.
    done: Nanos,
    drained: bool,
}

impl Queue {
    pub(super) fn kernel(&mut self, at: Nanos, length: Nanos) {
        self.items.push_back((at, Item::Kernel(length)));
        self.drained = false;
    }

    pub(super) fn record(&mut self, at: Nanos, event: usize) {
        self.items.push_back((at, Item::Record(event)));
        self.drained = false;
    }

    pub(super) fn is_drained(&self) -> bool {
        self.items.is_empty() && self.runs_until.is_none()
    }

    /// The record at the head, and when it happened.
    pub(super) fn pass_record(&mut self) -> Option<(usize, Nanos)> {
        if self.runs_until.is_some() {
            return None;
        }
        let &(at, Item::Record(event)) = self.items.front()? else { return None };
        self.items.pop_front();
        self.done = self.done.max(at);
        Some((event, self.done))
    }

    /// When it was drained, once.
    pub(super) fn take_drained(&mut self) -> Option<Nanos> {
        let drained = !self.drained && self.is_drained();
        self.drained |= drained;
        drained.then_some(self.done)
    }

    /// The kernel at the head: since when it could run, and its length.
    fn candidate(&self) -> Option<(Nanos, Nanos)> {
        if self.runs_until.is_some() {
            return None;
        }
        let &(at, Item::Kernel(length)) = self.items.front()? else { return None };
        Some((at.max(self.done), length))
    }
}

/// What came of looking for work.
#[derive(Debug)]
pub(super) enum Started {
    /// A kernel of this process runs until then.
    Runs(usize, Nanos),
    /// There will be work then.
    Later(Nanos),
}

/// Streams of all processes, and the engine.
#[derive(Debug)]
pub(super) struct Gpu {
    mode: Mode,
    pub(super) queues: Vec<Queue>,
    turn: Option<(usize, Nanos)>,
}

impl Gpu {
    pub(super) fn new(mode: Mode, shares: impl Iterator<Item = u8>) -> Self {
        let queues = shares.map(|sm| Queue { sm, drained: true, ..Queue::default() }).collect();
        Self { mode, queues, turn: None }
    }

    pub(super) fn ended(&mut self, index: usize, now: Nanos) {
        self.queues[index].runs_until = None;
        self.queues[index].done = now;
    }

    /// Starts what can run.
    pub(super) fn dispatch(&mut self, now: Nanos) -> Vec<Started> {
        let mut started = Vec::new();
        loop {
            let (ready, later) = self.candidates(now);
            let Some(index) = self.choose(&ready, now) else {
                // Work that is submitted a moment from now.
                started.extend(later.map(Started::Later));
                return started;
            };
            let queue = &mut self.queues[index];
            let Some((_, Item::Kernel(length))) = queue.items.pop_front() else { return started };
            queue.runs_until = Some(now + length);
            if self.turn.is_none_or(|(holder, _)| holder != index) {
                self.turn = Some((index, now));
            }
            started.push(Started::Runs(index, now + length));
        }
    }

    fn candidates(&self, now: Nanos) -> (Vec<(Nanos, usize)>, Option<Nanos>) {
        let heads =
            self.queues.iter().enumerate().filter_map(|(index, queue)| Some((queue.candidate()?.0, index)));
        let (ready, later): (Vec<_>, Vec<_>) = heads.partition(|&(at, _)| at <= now);
        (ready, later.into_iter().map(|(at, _)| at).min())
    }

    fn choose(&self, ready: &[(Nanos, usize)], now: Nanos) -> Option<usize> {
        let mut taken: u32 = self
            .queues
            .iter()
            .filter(|queue| queue.runs_until.is_some())
            .map(|queue| u32::from(queue.sm))
            .sum();
        match self.mode {
            Mode::Exclusive if taken > 0 => None,
            Mode::Exclusive => {
                let holder = self.turn.filter(|&(_, began)| now.since(began) < SLICE).map(|(index, _)| index);
                if let Some(index) = holder.filter(|index| ready.iter().any(|(_, other)| other == index)) {
                    return Some(index);
                }
                let last = self.turn.map_or(0, |(index, _)| index + 1);
                let later = ready.iter().map(|&(_, index)| index).find(|&index| index >= last);
                later.or_else(|| ready.first().map(|&(_, index)| index))
            }
            Mode::Mps => {
                // In the order of their arrival; nobody overtakes one that has to wait for room.
                let &(_, index) = ready.iter().min()?;
                taken += u32::from(self.queues[index].sm);
                (taken <= 100).then_some(index)
            }
        }
    }
}
