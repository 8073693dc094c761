//! The thread that owns all state: it takes messages, asks [`Node`] and carries out the effects.
//!
//! One thread with a deadline, not tasks with timers: a right must turn within microseconds, and timers of async
//! runtimes are a millisecond coarse. It decides nothing, and waits for nothing but messages and deadlines: checkpoints
//! are written and answers are sent by other threads.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use gpu_share::binding::{BindingId, GpuId};
use gpu_share::ledger::Refusal;
use gpu_share::protocol::{Bind, Bound, Event, FromContainer, Granted, NodeStatus, ToContainer};
use gpu_share::units::{Bytes, Nanos, Quota};
use tokio::sync::{broadcast, oneshot};

use crate::arbiter::{ProcessId, Tally};
use crate::checkpoint::{self, Then};
use crate::clock::{Clock, monotonic};
use crate::environment::Environment;
use crate::metrics::Metrics;
use crate::mps::keeper::Standing;
use crate::node::{Effect, Node, Report};
use crate::pages::Pages;
use crate::precedence;

/// How often pages show that the agent lives, and what was counted.
const BEAT: Nanos = Nanos::from_millis(100);

/// Why a request is not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// The ledger refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file could not be written.
    #[error("{0}")]
    State(String),
    /// Processes can't use a GPU beside each other now.
    #[error("nothing is bound while the multi-process service is broken: {0}")]
    Mps(String),
    /// The agent is stopping.
    #[error("the node agent is stopping")]
    Stopped,
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// What the node looks like, and what its arbiters did.
#[derive(Clone, Debug)]
pub struct Observation {
    /// GPUs and bindings.
    pub status: NodeStatus,
    /// Per GPU.
    pub tallies: BTreeMap<GpuId, Tally>,
}

/// A container's connection, as the owner sees it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// To end the connection.
    pub(crate) stream: UnixStream,
    /// To the connection's thread.
    pub(crate) answers: mpsc::Sender<Answer>,
    /// The process as the kernel knows it, if it can be seen from here.
    pub(crate) pid: Option<u32>,
}

/// What a connection's thread sends.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The line.
    pub(crate) line: ToContainer,
    /// The page, for a process that is attached.
    pub(crate) page: Option<OwnedFd>,
}

#[derive(Debug)]
pub(crate) enum Message {
    Connected(ProcessId, Peer),
    Line(ProcessId, FromContainer, Instant),
    Gone(ProcessId),
    Bind(Bind, Reply<Bound>),
    Release(BindingId, Reply<()>),
    SetGrant(BindingId, Quota, Reply<Granted>),
    Observe(Reply<Observation>),
    Mps(Standing),
    Stop,
}

/// The owner of all state.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) pages: Pages,
    pub(crate) environment: Environment,
    /// How NVIDIA's multi-process service is, where the agent keeps it.
    pub(crate) mps: Standing,
    pub(crate) checkpoint: checkpoint::Writer,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) peers: BTreeMap<ProcessId, Peer>,
    /// For messages to itself.
    pub(crate) inbox: mpsc::SyncSender<Message>,
}

impl Owner {
    /// Runs until [`Message::Stop`], or until nobody can send a message any more.
    #[allow(clippy::needless_pass_by_value)] // The queue ends before the checkpoint's thread is waited for, which may send.
    pub(crate) fn run(mut self, messages: mpsc::Receiver<Message>) {
        precedence::take();
        let mut next_beat = self.clock.now();
        loop {
            let now = self.clock.now();
            if now >= next_beat {
                self.beat(now);
                next_beat = now + BEAT;
            }
            let deadline = self.node.deadline(now).unwrap_or(next_beat).min(next_beat);
            match messages.recv_timeout(deadline.since(now).into()) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Also after a message, or a flood of them would stop the clock.
            let now = self.clock.now();
            let effects = self.node.tick(now);
            self.carry_out(effects);
        }
        for peer in self.peers.values() {
            let _ = peer.stream.shutdown(Shutdown::Both);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Connected(process, peer) => {
                self.peers.insert(process, peer);
            }
            Message::Line(process, line, received) => {
                self.line(process, line);
                self.metrics.decision.observe(received.elapsed().as_secs_f64());
            }
            Message::Gone(process) => {
                let effects = self.node.gone(process, self.clock.now());
                self.carry_out(effects);
                self.peers.remove(&process);
            }
            Message::Bind(bind, reply) => self.bind(bind, reply),
            Message::Release(id, reply) => self.release(&id, reply),
            Message::SetGrant(id, quota, reply) => {
                let result = self.node.set_grant(&id, quota, self.clock.now()).map(|(grant, effects)| {
                    self.carry_out(effects);
                    self.save(None);
                    Granted { grant }
                });
                let _ = reply.send(result.map_err(ControlError::from));
            }
            Message::Observe(reply) => {
                let status =
                    self.node.status(env!("CARGO_PKG_VERSION"), std::process::id(), self.clock.now());
                let _ = reply.send(Ok(Observation { status, tallies: self.node.tallies() }));
            }
            Message::Mps(standing) => {
                self.metrics.mps_is_up(standing == Standing::Up);
                self.mps = standing;
            }
            Message::Stop => {}
        }
    }

    fn line(&mut self, process: ProcessId, line: FromContainer) {
        let now = self.clock.now();
        let effects = match line {
            FromContainer::Want => self.node.want(process, now),
            FromContainer::Yield { right, used, launches, throttled, more, unknown } => {
                self.node.give_back(process, &Report { right, used, launches, throttled, more, unknown }, now)
            }
            FromContainer::Free { bytes } => {
                self.node.free(process, bytes);
                Vec::new()
            }
            FromContainer::Reserve { bytes } => {
                let answer = match self.node.reserve(process, bytes) {
                    Some(r) => ToContainer::Reserved { granted: r.granted, used: r.used, limit: r.limit },
                    None => ToContainer::Refused { error: "the process is attached to no binding".into() },
                };
                self.answer(process, answer);
                Vec::new()
            }
            FromContainer::Hello { binding } => {
                let answer = match self.node.ledger().get(&binding) {
                    Ok(binding) => ToContainer::Welcome { binding: binding.clone() },
                    Err(error) => ToContainer::Refused { error: error.to_string() },
                };
                self.answer(process, answer);
                Vec::new()
            }
            FromContainer::Attach { binding, pid, memory } => self.attach(process, &binding, pid, memory),
        };
        self.carry_out(effects);
    }

    fn attach(&mut self, process: ProcessId, id: &BindingId, pid: u32, memory: Bytes) -> Vec<Effect> {
        // What the kernel says counts: a process can't speak for another.
        let pid = self.peers.get(&process).and_then(|peer| peer.pid).unwrap_or(pid);
        match self.node.attach(process, id, pid, memory) {
            Ok((slot, effects)) => {
                tracing::debug!(binding = %id, pid, slot, "process attached");
                match self.pages.descriptor(id) {
                    Ok(page) => self.answer_with(process, ToContainer::Attached { slot }, Some(page)),
                    Err(error) => {
                        self.answer(process, ToContainer::Refused { error: format!("page: {error}") });
                    }
                }
                effects
            }
            Err(error) => {
                self.answer(process, ToContainer::Refused { error: error.to_string() });
                Vec::new()
            }
        }
    }

    fn answer(&self, process: ProcessId, line: ToContainer) {
        self.answer_with(process, line, None);
    }

    fn answer_with(&self, process: ProcessId, line: ToContainer, page: Option<OwnedFd>) {
        if let Some(peer) = self.peers.get(&process) {
            // A connection that has ended needs no answer.
            let _ = peer.answers.send(Answer { line, page });
        }
    }

    fn bind(&mut self, bind: Bind, reply: Reply<Bound>) {
        if let Standing::Broken(why) = &self.mps {
            // A function that started now would share the GPU's time with its neighbours, unseen.
            let _ = reply.send(Err(ControlError::Mps(why.clone())));
            return;
        }
        let id = new_id();
        let (binding, effects) = match self.node.bind(id.clone(), bind, self.clock.now()) {
            Ok(bound) => bound,
            Err(refusal) => {
                let _ = reply.send(Err(refusal.into()));
                return;
            }
        };
        self.carry_out(effects);
        if let Err(error) = self.pages.create(&binding) {
            let path = self.pages.path(&id);
            self.forget(&id);
            let _ =
                reply.send(Err(ControlError::State(format!("{} can't be made: {error}", path.display()))));
            return;
        }
        let owner = &binding.owner;
        tracing::info!(binding = %id, namespace = owner.namespace, function = owner.function, gpu = %binding.gpu, "bound");
        let bound = self.environment.bound(binding, self.pages.path(&id));
        let inbox = self.inbox.clone();
        let then = move |written: Result<(), String>| {
            if written.is_err() {
                // Who asked will ask again; the share must not stay behind.
                let _ = inbox.send(Message::Release(id, oneshot::channel().0));
            }
            let _ = reply.send(written.map(|()| bound).map_err(ControlError::State));
        };
        self.save(Some(Box::new(then)));
    }

    fn release(&mut self, id: &BindingId, reply: Reply<()>) {
        if let Err(refusal) = self.node.ledger().get(id) {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        self.forget(id);
        tracing::info!(binding = %id, "released");
        self.save(Some(Box::new(move |written| {
            let _ = reply.send(written.map_err(ControlError::State));
        })));
    }

    /// Removes a binding, its page and its connections.
    fn forget(&mut self, id: &BindingId) {
        if let Ok((_, effects)) = self.node.release(id, self.clock.now()) {
            self.carry_out(effects);
        }
        self.pages.remove(id);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Right { binding, slot, right } => self.pages.set_right(&binding, slot, right),
                Effect::Limits(id) => {
                    if let Ok(binding) = self.node.ledger().get(&id) {
                        self.pages.set_limits(binding);
                    }
                }
                Effect::Close(process) => {
                    if let Some(peer) = self.peers.get(&process) {
                        let _ = peer.stream.shutdown(Shutdown::Both);
                    }
                }
                Effect::Announce(event) => {
                    if matches!(event, Event::Woken { .. }) {
                        // Not waited for: a grant that is lost is asked for again.
                        self.save(None);
                    }
                    // Nobody listening is no error.
                    let _ = self.events.send(event);
                }
            }
        }
    }

    fn save(&self, then: Option<Then>) {
        self.checkpoint.write(self.node.ledger().bindings().cloned().collect(), then);
    }

    fn beat(&mut self, now: Nanos) {
        let ids: Vec<_> = self.node.ledger().bindings().map(|binding| binding.id.clone()).collect();
        for id in ids {
            let counters = self.node.counters(&id, now);
            // The beat is on the clock that others can read too.
            self.pages.beat(&id, &counters, monotonic());
        }
    }
}

/// A name that nobody can guess.
fn new_id() -> BindingId {
    loop {
        // Sixteen hexadecimal digits are a sound name, so this ends at once.
        if let Ok(id) = BindingId::try_from(format!("{:016x}", rand::random::<u64>())) {
            return id;
        }
    }
}
