//! The engines: which ready kernel runs on the SMs and which ready copy moves, and for how long they were busy.

use std::collections::BTreeMap;

use gpu_share::units::{Bytes, Nanos, SmShare};

use super::load::Load;
use super::{ClientId, Config, Gpu, Mode, StreamId, Work};

/// A copy takes at least this long, whatever its size.
const SHORTEST_COPY: Nanos = Nanos::from_micros(1);

/// A kernel on the SMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Whose kernel.
    pub client: ClientId,
    /// The stream that it came from.
    pub stream: StreamId,
    /// Part of the SMs that it has.
    pub sm: SmShare,
    /// When it began.
    pub start: Nanos,
    /// When it ends.
    pub end: Nanos,
}

/// The client whose turn it is in exclusive mode.
#[derive(Clone, Copy, Debug)]
struct Turn {
    client: ClientId,
    began: Nanos,
}

#[derive(Debug)]
struct Copy {
    client: ClientId,
    stream: StreamId,
    end: Nanos,
}

#[derive(Debug)]
pub(super) struct Engines {
    mode: Mode,
    slice: Nanos,
    kernels: Vec<Running>,
    turn: Option<Turn>,
    copy_in: Option<Copy>,
    copy_out: Option<Copy>,
    /// Since when at least one kernel has been running.
    busy_since: Option<Nanos>,
    load: Load,
    loads: BTreeMap<ClientId, Load>,
}

/// A kernel that could run now.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    client: ClientId,
    stream: StreamId,
    sm: SmShare,
    ready: Nanos,
    order: u64,
    time: Nanos,
}

impl Engines {
    pub(super) fn new(mode: Mode, slice: Nanos) -> Self {
        Self {
            mode,
            slice,
            kernels: Vec::new(),
            turn: None,
            copy_in: None,
            copy_out: None,
            busy_since: None,
            load: Load::default(),
            loads: BTreeMap::new(),
        }
    }

    pub(super) fn running(&self) -> &[Running] {
        &self.kernels
    }

    pub(super) fn next_end(&self) -> Option<Nanos> {
        let copies = self.copy_in.iter().chain(&self.copy_out).map(|copy| copy.end);
        self.kernels.iter().map(|kernel| kernel.end).chain(copies).min()
    }

    /// When the engine that works for `stream` is done.
    pub(super) fn end_of(&self, client: ClientId, stream: StreamId) -> Option<Nanos> {
        let copies = self.copy_in.iter().chain(&self.copy_out);
        let copies =
            copies.filter(|copy| copy.client == client && copy.stream == stream).map(|copy| copy.end);
        let of_stream = |kernel: &&Running| kernel.client == client && kernel.stream == stream;
        self.kernels.iter().filter(of_stream).map(|kernel| kernel.end).chain(copies).next()
    }

    pub(super) fn busy(&self, now: Nanos) -> Nanos {
        self.load.total(self.busy_since, now)
    }

    pub(super) fn utilization(&self, now: Nanos) -> u32 {
        self.load.percent(self.busy_since, now)
    }

    pub(super) fn client_busy(&self, client: ClientId, now: Nanos) -> Nanos {
        self.loads.get(&client).map_or(Nanos::ZERO, |load| load.total(self.running_since(client), now))
    }

    /// Kernels of the client that ran to their end.
    pub(super) fn client_kernels(&self, client: ClientId) -> u64 {
        self.loads.get(&client).map_or(0, Load::spans)
    }

    pub(super) fn client_utilization(&self, client: ClientId, now: Nanos) -> u32 {
        self.loads.get(&client).map_or(0, |load| load.percent(self.running_since(client), now))
    }

    fn running_since(&self, client: ClientId) -> Option<Nanos> {
        self.kernels.iter().find(|kernel| kernel.client == client).map(|kernel| kernel.start)
    }

    /// Drops the busy time of a client.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.loads.remove(&client);
    }

    /// Stops the copies of a client that is gone.
    pub(super) fn forget_copies(&mut self, client: ClientId) {
        for copy in [&mut self.copy_in, &mut self.copy_out] {
            if copy.as_ref().is_some_and(|copy| copy.client == client) {
                *copy = None;
            }
        }
    }

    /// Which of `candidates` run next, and whose turn it then is.
    fn choose(&self, mut candidates: Vec<Candidate>, now: Nanos) -> Vec<Candidate> {
        match self.mode {
            Mode::Exclusive if self.kernels.is_empty() => {
                let next = self.next_turn(&candidates, now);
                candidates.retain(|candidate| Some(candidate.client) == next);
                candidates.into_iter().min_by_key(|candidate| candidate.order).into_iter().collect()
            }
            Mode::Exclusive => Vec::new(),
            Mode::Mps => {
                candidates.sort_by_key(|candidate| (candidate.ready, candidate.order));
                self.fitting(candidates)
            }
        }
    }

    /// The holder goes on until its slice is over or it has nothing; then the next one in the round.
    fn next_turn(&self, candidates: &[Candidate], now: Nanos) -> Option<ClientId> {
        let first = candidates.iter().map(|candidate| candidate.client).min()?;
        let Some(turn) = self.turn else { return Some(first) };
        let holds = candidates.iter().any(|candidate| candidate.client == turn.client);
        if holds && now.since(turn.began) < self.slice {
            return Some(turn.client);
        }
        let later =
            candidates.iter().map(|candidate| candidate.client).filter(|&client| client > turn.client);
        Some(later.min().unwrap_or(first))
    }

    /// In the order of their arrival, as many as fit; nobody overtakes one that has to wait for room.
    fn fitting(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut taken: u32 = self.kernels.iter().map(|kernel| u32::from(kernel.sm.percent())).sum();
        let mut chosen: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            if chosen.iter().any(|other| other.client == candidate.client) {
                continue; // Kernels of one client run one after the other.
            }
            taken += u32::from(candidate.sm.percent());
            if taken > 100 {
                break;
            }
            chosen.push(candidate);
        }
        chosen
    }

    fn start(&mut self, kernel: Candidate, now: Nanos) {
        if self.mode == Mode::Exclusive && self.turn.is_none_or(|turn| turn.client != kernel.client) {
            self.turn = Some(Turn { client: kernel.client, began: now });
        }
        self.busy_since.get_or_insert(now);
        self.loads.entry(kernel.client).or_default();
        let Candidate { client, stream, sm, time, .. } = kernel;
        self.kernels.push(Running { client, stream, sm, start: now, end: now + time });
    }

    /// Takes what ends at `now` off the engines.
    fn finish(&mut self, now: Nanos) -> Vec<(ClientId, StreamId)> {
        let (done, running) = self.kernels.drain(..).partition(|kernel| kernel.end <= now);
        self.kernels = running;
        let done: Vec<Running> = done;
        for kernel in &done {
            self.loads.entry(kernel.client).or_default().add(kernel.start, kernel.end);
        }
        if self.kernels.is_empty()
            && let Some(since) = self.busy_since.take()
        {
            self.load.add(since, now);
        }
        let kernels = done.into_iter().map(|kernel| (kernel.client, kernel.stream));
        let copies = [&mut self.copy_in, &mut self.copy_out]
            .into_iter()
            .filter_map(|copy| copy.take_if(|copy| copy.end <= now))
            .map(|copy| (copy.client, copy.stream));
        kernels.chain(copies).collect()
    }
}

impl Gpu {
    /// Ends what is due at the model's clock.
    pub(super) fn finish_due(&mut self) {
        for (client, stream) in self.engines.finish(self.clock) {
            self.retire(client, stream);
        }
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= self.clock) {
            let (client, token) = entry.remove();
            self.notices.push(super::Notice::Reached { client, token, at: self.clock, retired: 0 });
        }
    }

    /// Starts all that an engine can take. Says whether anything was started.
    pub(super) fn dispatch(&mut self) -> bool {
        let copied = self.start_copies();
        let kernels = self.kernel_candidates();
        let chosen = self.engines.choose(kernels, self.clock);
        for &kernel in &chosen {
            self.mark_active(kernel.client, kernel.stream);
            self.engines.start(kernel, self.clock);
        }
        copied || !chosen.is_empty()
    }

    fn kernel_candidates(&mut self) -> Vec<Candidate> {
        if self.config.mode == Mode::Exclusive && !self.engines.kernels.is_empty() {
            return Vec::new();
        }
        let mut candidates = Vec::new();
        for (&client, owner) in &self.clients {
            if self.engines.running_since(client).is_some() {
                continue;
            }
            for id in owner.ready_heads() {
                let Some(op) = owner.streams.get(&id).and_then(|stream| stream.queue.front()) else {
                    continue;
                };
                if !matches!(op.work, Work::Kernel { .. } | Work::CopyWithin(_)) {
                    continue;
                }
                let time = duration(op.work, &self.config);
                let Ok(sm) = self.sm_share(client, id) else { continue };
                let since = self.engines.loads.get(&client).map_or(Nanos::ZERO, Load::latest_end);
                let ready = op.ready.unwrap_or(self.clock).max(since);
                candidates.push(Candidate { client, stream: id, sm, ready, order: op.order, time });
            }
        }
        candidates
    }

    fn start_copies(&mut self) -> bool {
        let mut started = false;
        if self.engines.copy_in.is_none() {
            self.engines.copy_in = self.next_copy(|work| matches!(work, Work::CopyIn(_)));
            started |= self.engines.copy_in.is_some();
        }
        if self.engines.copy_out.is_none() {
            self.engines.copy_out = self.next_copy(|work| matches!(work, Work::CopyOut(_)));
            started |= self.engines.copy_out.is_some();
        }
        started
    }

    fn next_copy(&mut self, is_wanted: impl Fn(Work) -> bool) -> Option<Copy> {
        let mut first: Option<((Nanos, u64), ClientId, StreamId, Work)> = None;
        for (&client, owner) in &self.clients {
            for stream in owner.ready_heads() {
                let Some(op) = owner.streams.get(&stream).and_then(|stream| stream.queue.front()) else {
                    continue;
                };
                if !is_wanted(op.work) {
                    continue;
                }
                let key = (op.ready.unwrap_or(self.clock), op.order);
                if first.as_ref().is_none_or(|(best, ..)| key < *best) {
                    first = Some((key, client, stream, op.work));
                }
            }
        }
        let (_, client, stream, work) = first?;
        self.mark_active(client, stream);
        Some(Copy { client, stream, end: self.clock + duration(work, &self.config) })
    }

    fn mark_active(&mut self, client: ClientId, stream: StreamId) {
        if let Some(owner) = self.clients.get_mut(&client)
            && let Some(stream) = owner.streams.get_mut(&stream)
        {
            stream.active = true;
        }
    }
}

/// How long an engine works on it.
pub(super) fn duration(work: Work, config: &Config) -> Nanos {
    match work {
        Work::Kernel { time } => time,
        Work::CopyWithin(bytes) => copy_time(bytes, config.device_bandwidth),
        Work::CopyIn(bytes) | Work::CopyOut(bytes) => copy_time(bytes, config.copy_bandwidth),
        Work::Record(_) | Work::Wait(_) | Work::Host | Work::Release(_) => Nanos::ZERO,
    }
}

fn copy_time(bytes: Bytes, bandwidth: u64) -> Nanos {
    let nanos = u128::from(bytes.0) * 1_000_000_000 / u128::from(bandwidth.max(1));
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).max(SHORTEST_COPY)
}
