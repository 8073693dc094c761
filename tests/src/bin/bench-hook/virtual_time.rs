//! A GPU, its containers, their hooks and the node agent in virtual time.
//!
//! Owns the clock and the events. What decides is not modelled but run: the node agent's `Node` with its ledger and
//! arbiters, and the hook's rules in `gpu_share::accounting`. What lies between them takes the time that [`delay`] says,
//! more or less of it each time.

mod agent;
mod delay;
mod gpu;
mod process;
mod windows;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use gpu_share::accounting::right::Ask;
use gpu_share::protocol::FromContainer;
use gpu_share::units::{Nanos, Quota};
use gpufn::audit::cell::{Container, Mode};

use agent::Agent;
use delay::Delay;
use gpu::Gpu;
use process::{App, Batch, Process, Until};
use windows::Busy;

/// Something that happens at a time.
#[derive(Debug)]
enum Event {
    /// A program goes on; stale if it went on otherwise meanwhile.
    Step(usize, u32),
    /// A harvester looks; stale if it has looked meanwhile.
    Harvest(usize, u32),
    /// Work that was submitted for this time may start.
    Ready,
    /// The kernel of a process ends.
    Ends(usize),
    /// A message reaches the agent.
    Arrives(usize, FromContainer),
    /// The agent's deadline.
    Tick(u32),
    /// A change from outside.
    Change(Change),
}

/// What happens to a container from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Its processes begin to launch.
    Start(usize),
    /// Its processes launch nothing more.
    Stop(usize),
    /// It is given another quota.
    Grant(usize, Quota),
}

/// The entries of the queue are taken by time, and among equals in the order of their arrival.
#[derive(Debug)]
struct Entry {
    at: Nanos,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The world in virtual time.
pub(crate) struct World {
    now: Nanos,
    order: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    delay: Delay,
    agent: Agent,
    agent_tick: u32,
    gpu: Gpu,
    processes: Vec<Process>,
    busy: Vec<Busy>,
}

impl World {
    /// A GPU shared in `mode` by `containers`, which all start at once; `seed` makes the delays.
    pub(crate) fn new(containers: &[Container], mode: Mode, seed: u64) -> Self {
        let mut world = Self::idle(containers, mode, seed);
        (0..containers.len()).for_each(|container| world.change(Nanos::ZERO, Change::Start(container)));
        world
    }

    /// The same with containers that wait for [`Change::Start`].
    pub(crate) fn idle(containers: &[Container], mode: Mode, seed: u64) -> Self {
        let (mut agent, mut processes) = (Agent::new(mode), Vec::new());
        for (index, container) in containers.iter().enumerate() {
            agent.bind(index, container);
            for _ in 0..container.processes {
                agent.attach(index, processes.len());
                processes.push(Process::new(index, container));
            }
        }
        Self {
            now: Nanos::ZERO,
            order: 0,
            queue: BinaryHeap::new(),
            delay: Delay::new(seed),
            agent,
            agent_tick: 0,
            gpu: Gpu::new(mode, processes.iter().map(|process| process.sm)),
            processes,
            busy: vec![Busy::default(); containers.len()],
        }
    }

    /// Lets `change` happen at `at`.
    pub(crate) fn change(&mut self, at: Nanos, change: Change) {
        self.push(at, Event::Change(change));
    }

    /// Kernel time of each container in each whole second so far, percent: kernels that run at once count each.
    pub(crate) fn seconds(&self) -> Vec<Vec<f64>> {
        self.busy.iter().map(|busy| busy.percent(self.now, Nanos::from_secs(1))).collect()
    }

    /// Kernel time of the container so far.
    pub(crate) fn used(&self, container: usize) -> Nanos {
        self.busy[container].total(self.now)
    }

    /// Lets the world go on until `end`.
    pub(crate) fn run_until(&mut self, end: Nanos) {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= end) {
            let Some(Reverse(Entry { at, event, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    fn push(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at, order: self.order, event }));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Step(index, turn) if self.processes[index].turn == turn => self.step(index),
            Event::Harvest(index, look) if self.processes[index].look == look => self.harvest(index),
            Event::Ready => self.dispatch(),
            Event::Ends(index) => self.kernel_ended(index),
            Event::Arrives(index, message) => {
                self.agent.hear(index, &message, self.now);
                self.after_agent();
            }
            Event::Tick(turn) if self.agent_tick == turn => {
                self.agent.tick(self.now);
                self.after_agent();
            }
            // Stale: it happened otherwise meanwhile.
            Event::Step(..) | Event::Harvest(..) | Event::Tick(_) => {}
            Event::Change(change) => self.apply(change),
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Start(container) => {
                for index in self.of(container) {
                    self.processes[index].app = App::Running;
                    let at = self.now + self.delay.of(delay::START);
                    self.wake_at(index, at);
                }
            }
            Change::Stop(container) => {
                self.of(container).for_each(|index| self.processes[index].stopping = true);
            }
            Change::Grant(container, quota) => {
                self.agent.grant(container, quota, self.now);
                self.after_agent();
            }
        }
    }

    fn of(&self, container: usize) -> impl Iterator<Item = usize> + use<> {
        let theirs: Vec<_> =
            (0..self.processes.len()).filter(|&index| self.processes[index].container == container).collect();
        theirs.into_iter()
    }

    /// Carries out what the agent decided, and waits for its next deadline.
    fn after_agent(&mut self) {
        for (index, word) in self.agent.take_words() {
            self.processes[index].word = word;
            self.wake(index, Until::Word, delay::FUTEX);
        }
        self.agent_tick += 1;
        if let Some(deadline) = self.agent.deadline(self.now) {
            let late = self.delay.of(delay::TIMER);
            self.push(deadline.max(self.now) + late, Event::Tick(self.agent_tick));
        }
    }

    fn wake_at(&mut self, index: usize, at: Nanos) {
        let turn = self.processes[index].turn;
        self.push(at, Event::Step(index, turn));
    }

    /// Wakes the program if it waits for just that.
    fn wake(&mut self, index: usize, what: Until, after: Nanos) {
        if matches!(&self.processes[index].app, App::AtGate { until, .. } if *until == what) {
            let at = self.now + self.delay.of(after);
            self.wake_at(index, at);
        }
    }

    /// The program goes on.
    fn step(&mut self, index: usize) {
        self.processes[index].turn += 1;
        match core::mem::replace(&mut self.processes[index].app, App::Running) {
            App::Idle => self.processes[index].app = App::Idle,
            App::Running | App::Syncing => self.launch(index),
            App::AtGate { since, mut patience, kind, .. } => {
                self.processes[index].right.waited(self.now.since(since));
                self.wait_at_gate(index, kind, &mut patience);
            }
        }
    }

    fn launch(&mut self, index: usize) {
        let process = &mut self.processes[index];
        if core::mem::take(&mut process.stopping) {
            process.app = App::Idle;
            return;
        }
        let kind = process.next_kind();
        if process.admits() {
            self.launched(index, kind);
            return;
        }
        self.close_batch(index, Nanos::ZERO);
        let process = &mut self.processes[index];
        process.right.waiting += 1;
        let mut patience = process.patience(self.now);
        self.wait_at_gate(index, kind, &mut patience);
    }

    /// Launches or goes on waiting, as the hook's `Gate::enter_slowly` does.
    fn wait_at_gate(&mut self, index: usize, kind: usize, patience: &mut process::Patience) {
        let now = self.now;
        loop {
            let process = &mut self.processes[index];
            if process.is_out_of_patience(patience, now) {
                break;
            }
            let (until, most) = match process.right.ask(process.word, process.is_busy(), now) {
                Ask::Run(held) => {
                    process.accept(held, self.agent.grant_of(process.container));
                    if process.admits() {
                        break;
                    }
                    if process.right.is_revoked(process.word) {
                        continue;
                    }
                    (Until::Changed, gpu_share::accounting::right::RECHECK)
                }
                Ask::Wait(messages, most) => {
                    let until = if process.right.held() == 0 { Until::Word } else { Until::Changed };
                    self.send(index, messages);
                    (until, most)
                }
            };
            self.processes[index].app = App::AtGate { since: now, patience: *patience, kind, until };
            self.wake_at(index, now + most);
            return;
        }
        self.processes[index].right.waiting -= 1;
        self.launched(index, kind);
    }

    fn send(&mut self, index: usize, messages: Vec<FromContainer>) {
        for message in messages {
            let at = self.now + self.delay.of(delay::MESSAGE);
            let at = at.max(self.processes[index].heard_until);
            self.processes[index].heard_until = at;
            self.push(at, Event::Arrives(index, message));
        }
    }

    /// Puts the launch on the stream between events, as the hook's `Harvester::measured` does.
    fn launched(&mut self, index: usize, kind: usize) {
        let (record, launch) = (self.delay.of(delay::RECORD), self.delay.of(delay::LAUNCH));
        let started =
            self.processes[index].enter(kind, self.now, record, launch, &mut self.gpu.queues[index]);
        let mut at = self.now + started.host;
        if let Some(batch) = started.alone {
            at += record;
            self.hand_over(index, batch);
        }
        if started.opened {
            self.kick(index);
        }
        if started.full {
            at += self.close_batch_at(index, at, Nanos::ZERO);
        }
        self.push(at, Event::Ready);
        if self.processes[index].waits_now() {
            at += self.close_batch_at(index, at, Nanos::ZERO);
            self.processes[index].app = App::Syncing;
            if self.gpu.queues[index].is_drained() {
                at += self.delay.of(delay::SYNC);
                self.wake_at(index, at);
            }
            return;
        }
        self.wake_at(index, at);
    }

    fn close_batch(&mut self, index: usize, idle: Nanos) {
        self.close_batch_at(index, self.now, idle);
    }

    /// Ends the open batch, if there is one; returns how long that took.
    fn close_batch_at(&mut self, index: usize, at: Nanos, idle: Nanos) -> Nanos {
        let record = self.delay.of(delay::RECORD);
        let closed = self.processes[index].close(at, idle, record, &mut self.gpu.queues[index]);
        let Some(batch) = closed else { return Nanos::ZERO };
        self.hand_over(index, batch);
        self.push(at + record, Event::Ready);
        record
    }

    fn hand_over(&mut self, index: usize, batch: Batch) {
        self.processes[index].pending.push_back(batch);
        self.kick(index);
    }

    /// Wakes the harvester, if it sleeps.
    fn kick(&mut self, index: usize) {
        if !self.processes[index].awaits_event {
            let at = self.now + self.delay.of(delay::NOTIFY);
            let look = self.processes[index].look;
            self.push(at, Event::Harvest(index, look));
        }
    }

    /// One look of the harvester's thread.
    fn harvest(&mut self, index: usize) {
        let now = self.now;
        self.processes[index].look += 1;
        self.processes[index].awaits_event = false;
        if let Some(idle) = self.processes[index].stale(now) {
            self.close_batch(index, idle);
        }
        let mut settled = false;
        while let Some(batch) = self.processes[index].take_ended(now) {
            self.processes[index].settle(&batch, now);
            settled = true;
        }
        let (messages, due) = self.processes[index].give_back(now);
        let gave_back = !messages.is_empty();
        self.send(index, messages);
        if settled || gave_back {
            self.wake(index, Until::Changed, delay::NOTIFY);
        }
        let look = self.processes[index].look;
        if self.processes[index].pending.is_empty() {
            if let Some(next) = self.processes[index].next_look(due, now) {
                self.push(next, Event::Harvest(index, look));
            }
        } else {
            self.processes[index].awaits_event = true;
            self.await_event(index);
        }
    }

    /// Schedules the look that the end of the first batch brings, if that is known by now.
    fn await_event(&mut self, index: usize) {
        let process = &self.processes[index];
        let (Some(at), look) = (process.first_end(), process.look) else { return };
        let at = at.max(self.now) + self.delay.of(delay::EVENT);
        self.push(at, Event::Harvest(index, look));
    }

    fn dispatch(&mut self) {
        for index in 0..self.processes.len() {
            self.pass_records(index);
        }
        for started in self.gpu.dispatch(self.now) {
            match started {
                gpu::Started::Runs(index, end) => {
                    self.busy[self.processes[index].container].begin(self.now);
                    self.push(end, Event::Ends(index));
                }
                gpu::Started::Later(at) => self.push(at, Event::Ready),
            }
        }
    }

    fn kernel_ended(&mut self, index: usize) {
        self.gpu.ended(index, self.now);
        self.busy[self.processes[index].container].end(self.now);
        self.dispatch();
    }

    /// Gives the events that are due their times, and tells whoever waits for them.
    fn pass_records(&mut self, index: usize) {
        while let Some((event, at)) = self.gpu.queues[index].pass_record() {
            self.processes[index].events.happened(event, at);
            if self.processes[index].awaits_event && self.processes[index].is_first_end(event) {
                self.await_event(index);
            }
        }
        let drained = self.gpu.queues[index].take_drained();
        if let Some(at) = drained
            && matches!(self.processes[index].app, App::Syncing)
        {
            let at = at.max(self.now) + self.delay.of(delay::SYNC);
            self.wake_at(index, at);
        }
    }
}

#[cfg(test)]
mod tests;
