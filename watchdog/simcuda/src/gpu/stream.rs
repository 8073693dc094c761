//! Streams: in which order the work of one client becomes ready. Which ready work runs is the engines' choice.

use std::collections::VecDeque;

use gpu_share::units::{Bytes, Nanos};

use super::engine::duration;
use super::{Client, ContextId, EventId, Gpu, GpuError, Notice, Point, Scope, StreamId};

/// How a stream stands to the legacy default stream of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// The legacy default stream: its work waits for all blocking streams, and they wait for it.
    Legacy,
    /// Waits for the legacy default stream, as a stream does by default; also the per-thread default stream.
    Blocking,
    /// Independent of the legacy default stream.
    NonBlocking,
}

/// One operation of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A kernel that takes `time` on its share of the SMs.
    Kernel {
        /// How long it runs.
        time: Nanos,
    },
    /// A copy from host to device.
    CopyIn(Bytes),
    /// A copy from device to host.
    CopyOut(Bytes),
    /// A copy or a fill within the device: it occupies the SMs like a kernel.
    CopyWithin(Bytes),
    /// Takes the time of an event.
    Record(EventId),
    /// Waits for the latest record of an event, seen when this was queued.
    Wait(EventId),
    /// A host function: the stream waits until the client says that it has returned.
    Host,
    /// Gives memory back in stream order.
    Release(Bytes),
}

#[derive(Debug)]
pub(super) struct Op {
    pub(super) work: Work,
    pub(super) tag: u64,
    pub(super) notify: bool,
    /// Number of the submission among all of the GPU.
    pub(super) order: u64,
    /// What has to be done before, beside the operation before it in the same stream.
    pub(super) after: Vec<Point>,
    /// Since when nothing but a busy engine holds it up.
    pub(super) ready: Option<Nanos>,
}

impl Op {
    /// Whether the client is told of it.
    pub(super) fn is_announced(&self) -> bool {
        self.notify || self.work == Work::Host
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) context: ContextId,
    pub(super) kind: StreamKind,
    pub(super) queue: VecDeque<Op>,
    pub(super) submitted: u64,
    pub(super) retired: u64,
    /// The head of the queue is being executed.
    pub(super) active: bool,
    /// Goes away when its queue is empty.
    pub(super) closing: bool,
}

impl Stream {
    pub(super) fn new(context: ContextId, kind: StreamKind) -> Self {
        let queue = VecDeque::new();
        Self { context, kind, queue, submitted: 0, retired: 0, active: false, closing: false }
    }

    pub(super) fn pending(&self) -> u64 {
        self.submitted - self.retired
    }

    fn tail(&self, stream: StreamId) -> Point {
        Point { stream, seq: self.submitted }
    }
}

impl Client {
    /// What new `work` on `stream` has to wait for.
    pub(super) fn prerequisites(&self, stream: StreamId, work: &Work) -> Result<Vec<Point>, GpuError> {
        let target = self.streams.get(&stream).ok_or(GpuError::UnknownStream(stream))?;
        let mut after = self.barriers(target);
        if let Work::Wait(event) = work {
            // An event that was never recorded holds nobody up.
            after.extend(self.events.get(event).map(|event| event.point));
        }
        after.retain(|&point| !self.reached(point));
        Ok(after)
    }

    fn barriers(&self, target: &Stream) -> Vec<Point> {
        match target.kind {
            StreamKind::NonBlocking => Vec::new(),
            StreamKind::Blocking => {
                let legacy = self.contexts.get(&target.context).and_then(|context| context.legacy);
                legacy.and_then(|id| Some(self.streams.get(&id)?.tail(id))).into_iter().collect()
            }
            StreamKind::Legacy => self
                .streams
                .iter()
                .filter(|(_, other)| other.context == target.context && other.kind == StreamKind::Blocking)
                .map(|(&id, other)| other.tail(id))
                .collect(),
        }
    }

    /// The places in streams that make up `scope` now.
    pub(super) fn points(&self, scope: Scope) -> Result<Vec<Point>, GpuError> {
        let tail = |id: StreamId| self.streams.get(&id).map(|stream| stream.tail(id));
        match scope {
            Scope::Stream(id) => Ok(vec![tail(id).ok_or(GpuError::UnknownStream(id))?]),
            Scope::Room(id) => {
                let mut point = tail(id).ok_or(GpuError::UnknownStream(id))?;
                point.seq = (point.seq + 1).saturating_sub(super::QUEUE_LIMIT);
                Ok(vec![point])
            }
            Scope::Context(context) => {
                let of_context = self.streams.iter().filter(|(_, stream)| stream.context == context);
                Ok(of_context.map(|(&id, stream)| stream.tail(id)).collect())
            }
            Scope::Event(event) => Ok(self.events.get(&event).map(|event| event.point).into_iter().collect()),
        }
    }
}

impl Gpu {
    /// Does all that takes no time, then lets the engines take what is ready, until nothing changes any more.
    pub(super) fn settle(&mut self) {
        loop {
            while self.pass_instant_work() {}
            if !self.dispatch() {
                break;
            }
        }
        self.answer_watches();
    }

    /// Marks heads of streams as ready, and retires those that need no engine.
    fn pass_instant_work(&mut self) -> bool {
        let mut passed = Vec::new();
        for (&client, owner) in &mut self.clients {
            let ready: Vec<StreamId> = owner.ready_heads().collect();
            for id in ready {
                let Some(stream) = owner.streams.get_mut(&id) else { continue };
                let Some(op) = stream.queue.front_mut() else { continue };
                op.ready.get_or_insert(self.clock);
                match op.work {
                    Work::Record(_) | Work::Wait(_) | Work::Release(_) => passed.push((client, id)),
                    Work::Host => {
                        stream.active = true;
                        self.notices.push(Notice::HostDue { client, stream: id, tag: op.tag });
                    }
                    Work::Kernel { .. } | Work::CopyIn(_) | Work::CopyOut(_) | Work::CopyWithin(_) => {}
                }
            }
        }
        for &(client, stream) in &passed {
            self.retire(client, stream);
        }
        !passed.is_empty()
    }

    /// Takes the head off a stream whose execution is over.
    pub(super) fn retire(&mut self, client: super::ClientId, id: StreamId) {
        let Some(owner) = self.clients.get_mut(&client) else { return };
        let Some(stream) = owner.streams.get_mut(&id) else { return };
        let Some(op) = stream.queue.pop_front() else { return };
        stream.active = false;
        stream.retired += 1;
        owner.notices_due -= u64::from(op.is_announced());
        let point = Point { stream: id, seq: stream.retired };
        if stream.closing && stream.queue.is_empty() {
            owner.streams.remove(&id);
        }
        match op.work {
            Work::Record(event) => {
                if let Some(record) = owner.events.get_mut(&event).filter(|event| event.point == point) {
                    record.at = Some(self.clock);
                    self.notices.push(Notice::Recorded { client, event, tag: op.tag, at: self.clock });
                }
            }
            Work::Release(bytes) => {
                // A client that gives back more than it holds gives back nothing.
                let _ = self.memory.free(client, bytes);
            }
            _ => {}
        }
        if op.notify {
            self.notices.push(Notice::Completed { client, tag: op.tag, at: self.clock });
        }
    }

    /// When `owner` may have to be told something, at the earliest: as if all engines were its own.
    pub(super) fn earliest_notice(&self, client: super::ClientId, owner: &Client) -> Option<Nanos> {
        let reached = |watch: &super::Watch| {
            let open = watch.points.iter().filter(|&&point| !owner.reached(point));
            open.map(|&point| self.earliest(client, owner, point))
                .try_fold(Nanos::ZERO, |latest, at| Some(latest.max(at?)))
        };
        let watches = owner.watches.iter().filter_map(reached).min();
        if owner.notices_due == 0 {
            return watches;
        }
        let announced = owner.streams.iter().filter_map(|(&id, stream)| {
            let position = stream.queue.iter().position(Op::is_announced)?;
            let seq = stream.retired + position as u64 + 1;
            self.earliest(client, owner, Point { stream: id, seq })
        });
        announced.chain(watches).min()
    }

    /// When `point` may be reached, at the earliest; none if that takes the return of a host function.
    fn earliest(&self, client: super::ClientId, owner: &Client, point: Point) -> Option<Nanos> {
        let stream = owner.streams.get(&point.stream)?;
        let start = if stream.active { self.engines.end_of(client, point.stream)? } else { self.clock };
        let ahead = usize::try_from(point.seq - stream.retired).unwrap_or(usize::MAX);
        let rest = stream.queue.iter().take(ahead).skip(usize::from(stream.active));
        Some(start + rest.map(|op| duration(op.work, &self.config)).sum())
    }

    fn answer_watches(&mut self) {
        for (&client, owner) in &mut self.clients {
            if owner.watches.is_empty() {
                continue;
            }
            let watches = std::mem::take(&mut owner.watches);
            let (done, open) =
                watches.into_iter().partition(|watch| watch.points.iter().all(|&point| owner.reached(point)));
            owner.watches = open;
            let done: Vec<super::Watch> = done;
            for watch in done {
                let stream = watch.points.first().and_then(|point| owner.streams.get(&point.stream));
                let retired = stream.map_or(0, |stream| stream.retired);
                self.notices.push(Notice::Reached { client, token: watch.token, at: self.clock, retired });
            }
        }
    }
}

impl Client {
    /// Streams whose head waits for nothing but an engine.
    pub(super) fn ready_heads(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.streams.iter().filter(|(_, stream)| !stream.active).filter_map(|(&id, stream)| {
            let op = stream.queue.front()?;
            op.after.iter().all(|&point| self.reached(point)).then_some(id)
        })
    }
}
