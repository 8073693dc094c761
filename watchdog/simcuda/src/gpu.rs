//! One simulated GPU: a discrete-event model of clients, streams, engines and memory.
//!
//! Pure: callers pass `now`, and act on the notices they are handed. No clock, no I/O. Every time stamp that the
//! model gives out is exact on its own timeline: queued work starts at the very end of the work before it, however
//! late the caller wakes up.

mod config;
mod engine;
pub(crate) mod load;
mod memory;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gpu_share::units::{Bytes, Nanos, SmShare};

pub use self::config::{Config, Mode};
pub use self::engine::Running;
pub use self::memory::MemoryError;
pub use self::stream::{StreamKind, Work};

use self::engine::Engines;
use self::memory::Memory;
use self::stream::{Op, Stream};

/// The most operations that may be pending on one stream; then the client has to wait.
pub const QUEUE_LIMIT: u64 = 1024;

/// One process that uses the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u32);

/// A CUDA context of a client; the client chooses the number and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub u32);

/// A stream of a client; the client chooses the number and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// An event of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u32);

/// What the owner of the model has to tell a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An operation that asked for it is done.
    Completed {
        /// Whose operation.
        client: ClientId,
        /// The client's number for the operation.
        tag: u64,
        /// When it was done.
        at: Nanos,
    },
    /// The latest record of an event is done. Nobody is to be woken for that.
    Recorded {
        /// Whose event.
        client: ClientId,
        /// Which.
        event: EventId,
        /// The client's number for the operation.
        tag: u64,
        /// When it was done.
        at: Nanos,
    },
    /// A host function is due; the stream stands still until [`Gpu::host_done`].
    HostDue {
        /// Whose operation.
        client: ClientId,
        /// The stream that waits.
        stream: StreamId,
        /// The client's number for the operation.
        tag: u64,
    },
    /// What a client waited for has come.
    Reached {
        /// Who waited.
        client: ClientId,
        /// The client's number for the wait.
        token: u64,
        /// When it came.
        at: Nanos,
        /// Operations done on the stream that was waited for (the first one of several).
        retired: u64,
    },
}

/// What a client may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that is queued on a stream by now.
    Stream(StreamId),
    /// All that is queued in a context by now.
    Context(ContextId),
    /// The latest record of an event.
    Event(EventId),
    /// Room for one more operation on a stream.
    Room(StreamId),
}

/// Why the model refuses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// The client is not connected.
    #[error("client {0:?} is unknown")]
    UnknownClient(ClientId),
    /// The context does not exist.
    #[error("context {0:?} is unknown")]
    UnknownContext(ContextId),
    /// The stream does not exist.
    #[error("stream {0:?} is unknown")]
    UnknownStream(StreamId),
    /// An event was never recorded.
    #[error("event {0:?} is not recorded")]
    UnrecordedEvent(EventId),
    /// An event's work is not done.
    #[error("event {0:?} is not complete")]
    PendingEvent(EventId),
    /// Too many operations are pending.
    #[error("stream {0:?} has {QUEUE_LIMIT} operations pending, the most allowed")]
    QueueFull(StreamId),
    /// The number is taken.
    #[error("the number of a new context or stream is in use, allowed is a number never used before")]
    Taken,
    /// The memory book refuses.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Place in a stream: reached once `seq` operations of it are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    stream: StreamId,
    seq: u64,
}

#[derive(Debug)]
struct Event {
    point: Point,
    at: Option<Nanos>,
}

#[derive(Debug)]
struct Context {
    sm: SmShare,
    /// Its share is a part of the SMs themselves, which nobody needs MPS for.
    green: bool,
    legacy: Option<StreamId>,
    /// What it takes of the card.
    memory: Bytes,
}

/// A context that a client wants.
#[derive(Clone, Copy, Debug)]
pub struct NewContext {
    /// Its number.
    pub id: ContextId,
    /// The number of its legacy default stream.
    pub legacy: StreamId,
    /// Its part of the SMs.
    pub sm: SmShare,
    /// A part of another context: it takes no memory and no time.
    pub green: bool,
}

#[derive(Debug)]
struct Watch {
    token: u64,
    points: Vec<Point>,
}

#[derive(Debug, Default)]
struct Client {
    contexts: BTreeMap<ContextId, Context>,
    streams: BTreeMap<StreamId, Stream>,
    events: BTreeMap<EventId, Event>,
    watches: Vec<Watch>,
    /// Operations queued that the client is told of.
    notices_due: u64,
}

impl Client {
    fn reached(&self, point: Point) -> bool {
        self.streams.get(&point.stream).is_none_or(|stream| stream.retired >= point.seq)
    }
}

/// What one client has used, for those who look from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// GPU time of its kernels, the running one up to now included.
    pub busy: Nanos,
    /// Memory it holds, contexts included.
    pub memory: Bytes,
    /// Kernels that ran to their end, copies and fills on the SMs included.
    pub kernels: u64,
    /// Kernels that run now.
    pub running: usize,
    /// Operations that are queued or run.
    pub pending: u64,
    /// Contexts it has.
    pub contexts: usize,
    /// Part of the last second that its kernels took, in percent.
    pub utilization: u32,
}

/// The model of one GPU.
#[derive(Debug)]
pub struct Gpu {
    config: Config,
    clock: Nanos,
    order: u64,
    clients: BTreeMap<ClientId, Client>,
    engines: Engines,
    memory: Memory,
    timers: BTreeMap<(Nanos, u64), (ClientId, u64)>,
    notices: Vec<Notice>,
}

impl Gpu {
    /// An idle GPU.
    pub fn new(config: Config) -> Self {
        let memory = Memory::new(config.memory);
        let engines = Engines::new(config.mode, config.slice);
        Self {
            config,
            clock: Nanos::ZERO,
            order: 0,
            clients: BTreeMap::new(),
            engines,
            memory,
            timers: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// What kind of card this is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Lets `client` use the GPU.
    pub fn connect(&mut self, client: ClientId) {
        self.clients.entry(client).or_default();
    }

    /// Takes back all that `client` has: its memory, and its queued work. A kernel that runs runs to its end.
    pub fn disconnect(&mut self, now: Nanos, client: ClientId) {
        self.advance(now);
        self.clients.remove(&client);
        self.memory.release(client);
        self.engines.forget_copies(client);
        self.timers.retain(|_, (waiting, _)| *waiting != client);
        self.notices.retain(|notice| notice.client() != client);
        self.advance(now);
    }

    /// Drops what is remembered of a client that is gone.
    pub fn forget(&mut self, client: ClientId) {
        if !self.clients.contains_key(&client) {
            self.engines.forget(client);
        }
    }

    /// Creates a context and its legacy default stream. `token` is reached when it is ready.
    pub fn create_context(
        &mut self,
        now: Nanos,
        client: ClientId,
        wanted: NewContext,
        token: u64,
    ) -> Result<(), GpuError> {
        self.advance(now);
        let NewContext { id: context, legacy, sm, green } = wanted;
        let (memory, time) = if green {
            (Bytes::ZERO, Nanos::ZERO)
        } else {
            (self.config.context_memory, self.config.context_time)
        };
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        if owner.contexts.contains_key(&context) || owner.streams.contains_key(&legacy) {
            return Err(GpuError::Taken);
        }
        self.memory.allocate(client, memory)?;
        owner.contexts.insert(context, Context { sm, green, legacy: Some(legacy), memory });
        owner.streams.insert(legacy, Stream::new(context, StreamKind::Legacy));
        self.order += 1;
        self.timers.insert((self.clock + time, self.order), (client, token));
        self.advance(now);
        Ok(())
    }

    /// Ends a context; what is still queued in it is dropped.
    pub fn destroy_context(
        &mut self,
        now: Nanos,
        client: ClientId,
        context: ContextId,
    ) -> Result<(), GpuError> {
        self.advance(now);
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        let gone = owner.contexts.remove(&context).ok_or(GpuError::UnknownContext(context))?;
        let dropped = owner.streams.extract_if(.., |_, stream| stream.context == context);
        let unsaid: usize =
            dropped.map(|(_, stream)| stream.queue.iter().filter(|op| op.is_announced()).count()).sum();
        owner.notices_due -= unsaid as u64;
        self.memory.free(client, gone.memory)?;
        self.advance(now);
        Ok(())
    }

    /// Creates a stream in a context.
    pub fn create_stream(
        &mut self,
        client: ClientId,
        context: ContextId,
        stream: StreamId,
        kind: StreamKind,
    ) -> Result<(), GpuError> {
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        if !owner.contexts.contains_key(&context) {
            return Err(GpuError::UnknownContext(context));
        }
        if owner.streams.contains_key(&stream) {
            return Err(GpuError::Taken);
        }
        owner.streams.insert(stream, Stream::new(context, kind));
        Ok(())
    }

    /// Ends a stream once all that is queued on it is done.
    pub fn destroy_stream(&mut self, client: ClientId, stream: StreamId) -> Result<(), GpuError> {
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        let entry = owner.streams.get_mut(&stream).ok_or(GpuError::UnknownStream(stream))?;
        entry.closing = true;
        if entry.queue.is_empty() {
            owner.streams.remove(&stream);
        }
        Ok(())
    }

    /// Forgets an event. Waits for it that are queued already go on.
    pub fn destroy_event(&mut self, client: ClientId, event: EventId) {
        if let Some(owner) = self.clients.get_mut(&client) {
            owner.events.remove(&event);
        }
    }

    /// Takes `bytes` of the card's memory for `client`.
    pub fn allocate(&mut self, now: Nanos, client: ClientId, bytes: Bytes) -> Result<(), GpuError> {
        self.advance(now);
        if !self.clients.contains_key(&client) {
            return Err(GpuError::UnknownClient(client));
        }
        Ok(self.memory.allocate(client, bytes)?)
    }

    /// Gives `bytes` of `client`'s memory back.
    pub fn free(&mut self, client: ClientId, bytes: Bytes) -> Result<(), GpuError> {
        Ok(self.memory.free(client, bytes)?)
    }

    /// Free and total memory of the card.
    pub fn memory(&self) -> (Bytes, Bytes) {
        (self.memory.free_bytes(), self.memory.total())
    }

    /// Part of the SMs that a kernel on `stream` gets: in exclusive mode the whole GPU, except in a green context.
    pub fn sm_share(&self, client: ClientId, stream: StreamId) -> Result<SmShare, GpuError> {
        let owner = self.clients.get(&client).ok_or(GpuError::UnknownClient(client))?;
        let context = owner.streams.get(&stream).ok_or(GpuError::UnknownStream(stream))?.context;
        let context = owner.contexts.get(&context).ok_or(GpuError::UnknownContext(context))?;
        Ok(if self.config.mode == Mode::Mps || context.green { context.sm } else { SmShare::WHOLE })
    }

    /// Queues `work` on `stream`. `tag` comes back in a notice if `notify` is set.
    pub fn submit(
        &mut self,
        now: Nanos,
        client: ClientId,
        stream: StreamId,
        work: Work,
        tag: u64,
        notify: bool,
    ) -> Result<(), GpuError> {
        self.advance(now);
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        let after = owner.prerequisites(stream, &work)?;
        let target = owner.streams.get_mut(&stream).ok_or(GpuError::UnknownStream(stream))?;
        if target.pending() >= QUEUE_LIMIT {
            return Err(GpuError::QueueFull(stream));
        }
        target.submitted += 1;
        owner.notices_due += u64::from(notify || work == Work::Host);
        if let Work::Record(event) = work {
            let point = Point { stream, seq: target.submitted };
            owner.events.insert(event, Event { point, at: None });
        }
        self.order += 1;
        target.queue.push_back(Op { work, tag, notify, order: self.order, after, ready: None });
        self.advance(now);
        Ok(())
    }

    /// The host function that stream waits for has returned.
    pub fn host_done(&mut self, now: Nanos, client: ClientId, stream: StreamId) {
        self.advance(now);
        let Some(owner) = self.clients.get_mut(&client) else { return };
        let Some(entry) = owner.streams.get_mut(&stream) else { return };
        if entry.active && entry.queue.front().is_some_and(|op| op.work == Work::Host) {
            self.retire(client, stream);
        }
        self.advance(now);
    }

    /// Answers with [`Notice::Reached`] and `token` when all of `scope` is done.
    pub fn watch(&mut self, now: Nanos, client: ClientId, scope: Scope, token: u64) -> Result<(), GpuError> {
        self.advance(now);
        let owner = self.clients.get_mut(&client).ok_or(GpuError::UnknownClient(client))?;
        let points = owner.points(scope)?;
        owner.watches.push(Watch { token, points });
        self.advance(now);
        Ok(())
    }

    /// Whether all of `scope` is done at `now`.
    pub fn is_done(&mut self, now: Nanos, client: ClientId, scope: Scope) -> Result<bool, GpuError> {
        self.advance(now);
        let owner = self.clients.get(&client).ok_or(GpuError::UnknownClient(client))?;
        Ok(owner.points(scope)?.into_iter().all(|point| owner.reached(point)))
    }

    /// When the latest record of `event` was done.
    pub fn event_time(&mut self, now: Nanos, client: ClientId, event: EventId) -> Result<Nanos, GpuError> {
        self.advance(now);
        let owner = self.clients.get(&client).ok_or(GpuError::UnknownClient(client))?;
        let entry = owner.events.get(&event).ok_or(GpuError::UnrecordedEvent(event))?;
        entry.at.ok_or(GpuError::PendingEvent(event))
    }

    /// Operations that are done on `stream`, if it exists.
    pub fn retired(&self, client: ClientId, stream: StreamId) -> Option<u64> {
        Some(self.clients.get(&client)?.streams.get(&stream)?.retired)
    }

    /// Lets the GPU work until `now`.
    pub fn advance(&mut self, now: Nanos) {
        self.settle();
        while let Some(at) = self.next_event().filter(|&at| at <= now) {
            self.clock = self.clock.max(at);
            self.finish_due();
            self.settle();
        }
        self.clock = self.clock.max(now);
    }

    /// When the model changes by itself next.
    pub fn next_event(&self) -> Option<Nanos> {
        let timer = self.timers.keys().next().map(|&(at, _)| at);
        self.engines.next_end().into_iter().chain(timer).min()
    }

    /// When somebody may have to be told something next, at the earliest. Not every end of a kernel counts: whoever
    /// waits for the last of a thousand need not be looked after a thousand times.
    pub fn next_notice(&self) -> Option<Nanos> {
        let timer = self.timers.keys().next().map(|&(at, _)| at);
        let earliest = self.clients.iter().filter_map(|(&id, owner)| self.earliest_notice(id, owner)).min();
        // Until the next event nothing changes, however early the estimate.
        let work = earliest.and_then(|at| Some(at.max(self.engines.next_end()?)));
        timer.into_iter().chain(work).min()
    }

    /// What clients have to be told since the last call, in order.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Kernels that run now.
    pub fn running(&self) -> &[Running] {
        self.engines.running()
    }

    /// Time during which at least one kernel ran, up to the model's clock.
    pub fn busy(&self) -> Nanos {
        self.engines.busy(self.clock)
    }

    /// Part of the completed sample periods of the last second during which a kernel ran, in percent.
    pub fn utilization(&self) -> u32 {
        self.engines.utilization(self.clock)
    }

    /// What `client` has used, also after it has gone.
    pub fn usage(&self, client: ClientId) -> Usage {
        let owner = self.clients.get(&client);
        Usage {
            busy: self.engines.client_busy(client, self.clock),
            memory: self.memory.held(client),
            kernels: self.engines.client_kernels(client),
            running: self.running().iter().filter(|kernel| kernel.client == client).count(),
            pending: owner.map_or(0, |owner| owner.streams.values().map(Stream::pending).sum()),
            contexts: owner.map_or(0, |owner| owner.contexts.len()),
            utilization: self.engines.client_utilization(client, self.clock),
        }
    }
}

impl Notice {
    fn client(&self) -> ClientId {
        match self {
            Self::Completed { client, .. }
            | Self::Recorded { client, .. }
            | Self::HostDue { client, .. }
            | Self::Reached { client, .. } => *client,
        }
    }
}
