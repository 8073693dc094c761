//! The thread that owns all state: it takes messages, asks [`Node`] and carries out the effects.
//!
//! One thread with a deadline, not tasks with timers: a right must turn within microseconds, and timers of async
//! runtimes are a millisecond coarse. It reads the lines of attached processes itself, since each thread between a line
//! and its consequence would leave the GPU idle for as long as it takes to wake. It decides nothing, and waits for
//! nothing but the reactor: checkpoints are written by another thread, and who does not read its answers is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use gpu_share::binding::{Binding, BindingId, GpuId};
use gpu_share::ledger::Refusal;
use gpu_share::page::Counters;
use gpu_share::protocol::{Bind, Bound, Event, FromContainer, Granted, Health, NodeStatus, ToContainer};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, Units};
use tokio::sync::{broadcast, oneshot, watch};

use crate::arbiter::{ProcessId, Tally};
use crate::checkpoint::{self, Then};
use crate::clock::{Clock, monotonic};
use crate::containers::Connection;
use crate::environment::Environment;
use crate::health::{Meaning, News, describe};
use crate::metrics::Metrics;
use crate::mps::keeper::Standing;
use crate::node::{Effect, GpuOffer, Node, Report};
use crate::pages::Pages;
use crate::precedence;
use crate::reactor::{Arrival, Reactor, Sender};

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

/// What a binding becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshape {
    /// Whom it is for.
    pub owner: gpu_share::binding::Owner,
    /// What it may use.
    pub share: Share,
    /// The quota that it should have if there is room.
    pub quota: Quota,
}

#[derive(Debug)]
pub(crate) enum Message {
    /// A process that has not attached asks what it is bound to.
    Hello(BindingId, mpsc::Sender<ToContainer>),
    /// A process attaches; its connection is the owner's from here on.
    Attach {
        connection: Box<Connection>,
        binding: BindingId,
        pid: u32,
        memory: Bytes,
    },
    Bind(Bind, Reply<Bound>),
    /// Without a reply nobody waits until it is on the disk.
    Release(BindingId, Option<Reply<()>>),
    SetGrant(BindingId, Quota, Reply<Granted>),
    /// Bind on a GPU that the sender chose.
    BindOn(GpuId, Bind, Reply<Bound>),
    Reshape(BindingId, Box<Reshape>, Reply<Bound>),
    /// Take over a binding whose checkpoint is lost.
    Restore(Box<Binding>, Reply<()>),
    /// The units of each GPU, where so many are with containers and nobody asks for fewer than the last.
    Offers(BTreeMap<GpuId, Units>, Units, Reply<Vec<GpuOffer>>),
    Observe(Reply<Observation>),
    /// Which bindings have processes.
    Busy(Reply<BTreeSet<BindingId>>),
    Mps(Standing),
    News(News),
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
    /// Why nothing is heard of the GPUs, if so.
    pub(crate) blind: Option<String>,
    /// How each GPU is, for those who follow that.
    pub(crate) health: watch::Sender<BTreeMap<GpuId, Health>>,
    pub(crate) checkpoint: checkpoint::Writer,
    /// Something changed that is written with the next change, or at the next beat.
    pub(crate) is_unsaved: bool,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of processes that are attached.
    pub(crate) connections: BTreeMap<ProcessId, Connection>,
    pub(crate) next_process: u64,
    pub(crate) reactor: Reactor<Message>,
    /// For messages to itself.
    pub(crate) inbox: Sender<Message>,
}

impl Owner {
    /// Runs until [`Message::Stop`].
    pub(crate) fn run(mut self) {
        precedence::take();
        // So that it says in which run of the machine these bindings live, also if none changes.
        self.save(None);
        let mut next_beat = self.clock.now();
        loop {
            let now = self.clock.now();
            if now >= next_beat {
                self.beat();
                next_beat = now + BEAT;
            }
            let deadline = self.node.deadline(now).unwrap_or(next_beat).min(next_beat);
            let is_idle = self.is_idle();
            let arrivals = match self.reactor.wait((!is_idle).then(|| deadline.since(now))) {
                Ok(arrivals) => arrivals,
                Err(error) => {
                    tracing::error!(%error, "the agent can't wait for anything any more");
                    return;
                }
            };
            if is_idle {
                self.clock.rested();
            }
            for arrival in arrivals {
                match arrival {
                    Arrival::Bytes(process) => self.hear(ProcessId(process)),
                    Arrival::Mail => {
                        for message in self.reactor.mail() {
                            if matches!(message, Message::Stop) {
                                self.save_the_rest();
                                return;
                            }
                            self.handle(message);
                        }
                    }
                }
            }
            // Also after a message, or a flood of them would stop the clock.
            let now = self.clock.now();
            let effects = self.node.tick(now);
            self.carry_out(effects);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Hello(id, reply) => {
                // Who has gone meanwhile needs no answer.
                let _ = reply.send(self.welcome(&id));
            }
            Message::Attach { connection, binding, pid, memory } => {
                self.attach(*connection, &binding, pid, memory);
            }
            Message::Bind(bind, reply) => {
                if let Standing::Broken(why) = &self.mps {
                    // A function that started now would share the GPU's time with its neighbours, unseen.
                    let _ = reply.send(Err(ControlError::Mps(why.clone())));
                } else {
                    self.bind(reply, |node, id, now| node.bind(id, bind, now));
                }
            }
            Message::BindOn(gpu, Bind { owner, share }, reply) => {
                self.bind(reply, |node, id, now| node.bind_on(&gpu, &id, &owner, &share, now));
            }
            Message::Reshape(id, reshape, reply) => {
                let _ = reply.send(self.reshape(&id, *reshape));
            }
            Message::Restore(binding, reply) => {
                let _ = reply.send(self.restore(&binding));
            }
            Message::Offers(allocated, smallest, reply) => {
                let _ = reply.send(Ok(self.node.offers(&allocated, smallest)));
            }
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
                let status = self.node.status(env!("CARGO_PKG_VERSION"), std::process::id());
                let status = NodeStatus { blind: self.blind.clone(), ..status };
                let _ = reply.send(Ok(Observation { status, tallies: self.node.tallies() }));
            }
            Message::Busy(reply) => {
                let _ = reply.send(Ok(self.node.busy()));
            }
            Message::Mps(standing) => {
                self.metrics.mps_is_up(standing == Standing::Up);
                self.mps = standing;
            }
            Message::News(news) => self.hear_of_gpus(news),
            Message::Stop => {}
        }
    }

    fn hear_of_gpus(&mut self, news: News) {
        match news {
            News::Health(gpu, health) => {
                match &health {
                    Health::Healthy => tracing::info!(%gpu, "GPU is healthy again."),
                    Health::Unhealthy { why } => {
                        tracing::error!(%gpu, why, "GPU is unhealthy: it takes no new bindings.");
                    }
                    other => tracing::warn!(%gpu, health = %other, "GPU is watched closely."),
                }
                let Ok(effects) = self.node.set_health(&gpu, health.clone()) else { return };
                self.carry_out(effects);
                self.health.send_modify(|known| {
                    known.insert(gpu, health);
                });
            }
            News::Xid { gpu, xid, pid, meaning } => {
                self.metrics.count_xid(&gpu, xid);
                let effects = self.node.xid(&gpu, xid, pid, meaning == Meaning::Application);
                for effect in &effects {
                    if let Effect::Announce(Event::Xid { binding, .. }) = effect {
                        let binding = binding.as_ref().map(ToString::to_string);
                        tracing::warn!(%gpu, xid, what = describe(xid), pid, binding, "The driver reported an Xid.");
                    }
                }
                self.carry_out(effects);
            }
            News::Nvml(Ok(())) => {
                tracing::info!("GPUs can be asked again.");
                self.blind = None;
            }
            News::Nvml(Err(why)) => {
                tracing::error!(why, "GPUs can't be asked: each keeps the health that it had.");
                self.blind = Some(why);
            }
        }
    }

    /// Reads what a process says, and does it.
    fn hear(&mut self, process: ProcessId) {
        let Some(connection) = self.connections.get_mut(&process) else { return };
        if !connection.read() || !self.obey(process) {
            self.gone(process);
        }
    }

    /// Does what the lines of a process say that have been read; whether its connection goes on.
    fn obey(&mut self, process: ProcessId) -> bool {
        let received = Instant::now();
        while let Some(line) = self.connections.get_mut(&process).and_then(Connection::line) {
            if let Err(error) = line.and_then(|line| self.line(process, line)) {
                self.answer(process, &ToContainer::Refused { error });
                return false;
            }
            self.metrics.decision.observe(received.elapsed().as_secs_f64());
        }
        true
    }

    fn line(&mut self, process: ProcessId, line: FromContainer) -> Result<(), String> {
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
                let reserved =
                    self.node.reserve(process, bytes).ok_or("the process is attached to no binding")?;
                let (granted, used, limit) = (reserved.granted, reserved.used, reserved.limit);
                self.answer(process, &ToContainer::Reserved { granted, used, limit });
                Vec::new()
            }
            FromContainer::Hello { binding } => {
                self.answer(process, &self.welcome(&binding));
                Vec::new()
            }
            FromContainer::Attach { .. } => {
                return Err("op attach comes again, allowed is once in a connection".into());
            }
        };
        self.carry_out(effects);
        Ok(())
    }

    fn welcome(&self, id: &BindingId) -> ToContainer {
        match self.node.ledger().get(id) {
            Ok(binding) => ToContainer::Welcome { binding: binding.clone() },
            Err(error) => ToContainer::Refused { error: error.to_string() },
        }
    }

    fn attach(&mut self, mut connection: Connection, id: &BindingId, pid: u32, memory: Bytes) {
        let process = ProcessId(self.next_process);
        self.next_process += 1;
        // What the kernel says counts: a process can't speak for another.
        let pid = connection.pid.unwrap_or(pid);
        let joined = self.node.attach(process, id, pid, memory).map_err(|error| error.to_string());
        let (slot, effects) = match joined {
            Ok(joined) => joined,
            Err(error) => return connection.answer(&ToContainer::Refused { error }, None),
        };
        self.carry_out(effects);
        let page = self.pages.descriptor(id).and_then(|page| {
            connection.attach()?;
            self.reactor.add(&connection, process.0)?;
            Ok(page)
        });
        match page {
            Ok(page) => {
                tracing::debug!(binding = %id, pid, slot, "process attached");
                connection.answer(&ToContainer::Attached { slot, pid: connection.pid }, Some(page));
                self.connections.insert(process, connection);
                // It may have said more without waiting for the answer.
                if !self.obey(process) {
                    self.gone(process);
                }
            }
            Err(error) => {
                connection.answer(
                    &ToContainer::Refused { error: format!("the page can't be handed over: {error}") },
                    None,
                );
                self.gone(process);
            }
        }
    }

    fn gone(&mut self, process: ProcessId) {
        let effects = self.node.gone(process, self.clock.now());
        self.carry_out(effects);
        self.connections.remove(&process);
    }

    fn answer(&self, process: ProcessId, line: &ToContainer) {
        if let Some(connection) = self.connections.get(&process) {
            connection.answer(line, None);
        }
    }

    fn bind(
        &mut self,
        reply: Reply<Bound>,
        bind: impl FnOnce(&mut Node, BindingId, Nanos) -> Result<(Binding, Vec<Effect>), Refusal>,
    ) {
        let id = new_id();
        let (binding, effects) = match bind(&mut self.node, id.clone(), self.clock.now()) {
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
                let _ = inbox.send(Message::Release(id, None));
            }
            let _ = reply.send(written.map(|()| bound).map_err(ControlError::State));
        };
        self.save(Some(Box::new(then)));
    }

    /// Not waited for until it is on the disk, as a grant: the container waits for its page.
    fn reshape(
        &mut self,
        id: &BindingId,
        Reshape { owner, share, quota }: Reshape,
    ) -> Result<Bound, ControlError> {
        if let Standing::Broken(why) = &self.mps
            && !self.node.is_attached(id)
        {
            // It is about to start.
            return Err(ControlError::Mps(why.clone()));
        }
        let (binding, effects) = self.node.reshape(id, owner, &share, quota, self.clock.now())?;
        self.carry_out(effects);
        self.save(None);
        Ok(self.environment.bound(binding, self.pages.path(id)))
    }

    /// Its processes attach again by themselves.
    fn restore(&mut self, binding: &Binding) -> Result<(), ControlError> {
        self.node.restore(binding, Counters::default(), self.clock.now())?;
        let made = self.pages.create(binding);
        if let Err(error) = made {
            self.forget(&binding.id);
            return Err(ControlError::State(format!("the page can't be made: {error}")));
        }
        self.save(None);
        Ok(())
    }

    fn release(&mut self, id: &BindingId, reply: Option<Reply<()>>) {
        if let Err(refusal) = self.node.ledger().get(id) {
            if let Some(reply) = reply {
                let _ = reply.send(Err(refusal.into()));
            }
            return;
        }
        self.forget(id);
        tracing::info!(binding = %id, "released");
        match reply {
            Some(reply) => self.save(Some(Box::new(move |written| {
                let _ = reply.send(written.map_err(ControlError::State));
            }))),
            None => self.is_unsaved = true,
        }
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
                    if let Some(connection) = self.connections.get(&process) {
                        connection.end();
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

    fn save(&mut self, then: Option<Then>) {
        self.is_unsaved = false;
        self.checkpoint.write(self.node.ledger().bindings().cloned().collect(), then);
    }

    fn save_the_rest(&mut self) {
        if self.is_unsaved {
            self.save(None);
        }
    }

    /// Whether only a message can change anything: nothing is bound, so no page has to show that the agent lives, and no right
    /// ends.
    fn is_idle(&self) -> bool {
        !self.is_unsaved && self.node.ledger().bindings().next().is_none()
    }

    fn beat(&mut self) {
        self.save_the_rest();
        let ids: Vec<_> = self.node.ledger().bindings().map(|binding| binding.id.clone()).collect();
        for id in ids {
            let counters = self.node.counters(&id);
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
