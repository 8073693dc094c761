//! The node: ledger, arbiters and processes as one state.
//!
//! Owns what is bound, who is attached and what each holds. Pure: every call takes the time and returns effects. How a
//! binding arrives (control socket, kubelet) and how an effect is carried out are other modules' business.

use std::collections::{BTreeMap, BTreeSet};

use gpu_share::binding::{Binding, BindingId, GpuId};
use gpu_share::ledger::{Gpu, Ledger, Offer, Refusal, Withdrawn};
use gpu_share::page::{Counters, SLOTS, Slot};
use gpu_share::protocol::{Bind, BindingStatus, Event, GpuStatus, Health, NodeStatus};
use gpu_share::units::{Bytes, Nanos, Quota, Units};

use crate::arbiter::{self, Arbiter, ProcessId, Rules, Tally, Terms};

mod placement;
#[cfg(test)]
mod tests;

/// Something to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the slot's word in the binding's page and wake whoever waits for it.
    Right {
        /// Whose page.
        binding: BindingId,
        /// Which slot.
        slot: usize,
        /// The word: odd while the right is held.
        right: u32,
    },
    /// The binding's limits changed: write them to its page and wake all of its slots.
    Limits(BindingId),
    /// End the connection of a process.
    Close(ProcessId),
    /// Tell who listens.
    Announce(Event),
}

/// Why a process is not attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// No such binding.
    #[error(transparent)]
    Binding(#[from] Refusal),
    /// No slot is free.
    #[error("binding {0} has {SLOTS} processes, allowed are {SLOTS}")]
    Full(BindingId),
    /// It is attached.
    #[error("the process is attached to binding {0} already")]
    Attached(BindingId),
}

/// What a process reports when it gives its right back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The slot's word when the right was held.
    pub right: u32,
    /// GPU time that its work occupied.
    pub used: Nanos,
    /// GPU work launched.
    pub launches: u64,
    /// Time that its threads waited for the right.
    pub throttled: Nanos,
    /// It has more work.
    pub more: bool,
    /// Ways to the GPU that its hook does not know.
    pub unknown: u64,
}

/// What a process may hold after asking for more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Whether it may take the memory.
    pub granted: bool,
    /// What the binding's processes hold now.
    pub used: Bytes,
    /// The most that they may hold.
    pub limit: Bytes,
}

/// What a scheduler should see of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuOffer {
    /// Which.
    pub gpu: GpuId,
    /// Its units.
    pub units: Offer,
    /// The most that one new container could have.
    pub largest: Units,
}

#[derive(Clone, Debug)]
struct Process {
    binding: BindingId,
    slot: usize,
    pid: u32,
    memory: Bytes,
}

/// What is counted for a binding.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Charged at the ends of holds: before, nobody knows what one uses.
    used: Nanos,
    throttled: Nanos,
    launches: u64,
    unknown: u64,
    faults: u64,
    rights: [u32; SLOTS],
    taken: [bool; SLOTS],
}

/// A node's state.
#[derive(Clone, Debug)]
pub struct Node {
    rules: Rules,
    units: Units,
    ledger: Ledger,
    rows: BTreeMap<(GpuId, u32), Arbiter>,
    accounts: BTreeMap<BindingId, Account>,
    processes: BTreeMap<ProcessId, Process>,
    /// Of GPUs that are not healthy.
    health: BTreeMap<GpuId, Health>,
    effects: Vec<Effect>,
}

impl Node {
    /// A node with `gpus`, each divided into `units`.
    pub fn new(gpus: impl IntoIterator<Item = Gpu>, units: Units, rules: Rules) -> Self {
        Self {
            rules,
            units,
            ledger: Ledger::new(gpus),
            rows: BTreeMap::new(),
            accounts: BTreeMap::new(),
            processes: BTreeMap::new(),
            health: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// What is bound, and where.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Binds a share; grants that had to make room for its floor shrink.
    pub fn bind(&mut self, id: BindingId, bind: Bind, now: Nanos) -> Result<(Binding, Vec<Effect>), Refusal> {
        let (binding, displaced) = self.ledger.bind(id, bind.owner, bind.share)?;
        // Before the new one joins: its row may be what they leave.
        for moved in displaced.moved {
            self.change_row(&moved, now);
        }
        self.join(&binding, Account::default(), now);
        self.withdrawn(displaced.withdrawn, now);
        Ok((binding, self.take_effects()))
    }

    /// Takes over a binding of an earlier agent, with what that had counted.
    pub fn restore(&mut self, binding: &Binding, counters: Counters, now: Nanos) -> Result<(), Refusal> {
        self.ledger.restore(binding.clone())?;
        let (used, throttled) = (counters.used, counters.throttled);
        self.join(binding, Account { used, throttled, ..Account::default() }, now);
        Ok(())
    }

    /// Notes how a GPU is. What is bound on it stays as it is.
    pub fn set_health(&mut self, gpu: &GpuId, health: Health) -> Result<Vec<Effect>, Refusal> {
        self.ledger.set_healthy(gpu, health.takes_bindings())?;
        if health == Health::Healthy {
            self.health.remove(gpu);
        } else {
            self.health.insert(gpu.clone(), health.clone());
        }
        self.effects.push(Effect::Announce(Event::Health { gpu: gpu.clone(), health }));
        Ok(self.take_effects())
    }

    /// How a GPU is.
    pub fn health(&self, gpu: &GpuId) -> Health {
        self.health.get(gpu).cloned().unwrap_or_default()
    }

    /// The driver reported an Xid of the process `pid`, if it says so; `by_program` says that it is a program's fault.
    ///
    /// Without a process it is put down to the binding that alone has processes on the GPU, if that is so.
    pub fn xid(&mut self, gpu: &GpuId, xid: u64, pid: Option<u32>, by_program: bool) -> Vec<Effect> {
        let binding = match pid {
            Some(pid) => self.processes_on(gpu).find(|process| process.pid == pid).map(|p| p.binding.clone()),
            None if by_program => self.only_user(gpu),
            None => None,
        };
        if let Some(account) = binding.as_ref().and_then(|id| self.accounts.get_mut(id)) {
            account.faults += 1;
        }
        self.effects.push(Effect::Announce(Event::Xid { gpu: gpu.clone(), xid, binding }));
        self.take_effects()
    }

    fn processes_on<'a>(&'a self, gpu: &'a GpuId) -> impl Iterator<Item = &'a Process> {
        self.processes
            .values()
            .filter(|process| self.ledger.get(&process.binding).is_ok_and(|b| b.gpu == *gpu))
    }

    fn only_user(&self, gpu: &GpuId) -> Option<BindingId> {
        let mut users = self.processes_on(gpu).map(|process| &process.binding);
        let first = users.next()?;
        users.all(|user| user == first).then(|| first.clone())
    }

    /// Bindings with processes.
    pub fn busy(&self) -> BTreeSet<BindingId> {
        self.processes.values().map(|process| process.binding.clone()).collect()
    }

    /// Ends a binding, and the connections of its processes.
    pub fn release(&mut self, id: &BindingId, now: Nanos) -> Result<(Binding, Vec<Effect>), Refusal> {
        let binding = self.ledger.release(id)?;
        self.arbitrate(&binding, arbiter::Event::Leave(id.clone()), now);
        self.accounts.remove(id);
        let theirs: Vec<_> = self.processes_of(id).map(|(&process, _)| process).collect();
        for process in theirs {
            self.processes.remove(&process);
            self.effects.push(Effect::Close(process));
        }
        Ok((binding, self.take_effects()))
    }

    /// Gives a binding as much of `quota` as its ceiling and its row allow, at least its floor; zero parks it, unless
    /// one of its processes waits to run.
    pub fn set_grant(
        &mut self,
        id: &BindingId,
        quota: Quota,
        now: Nanos,
    ) -> Result<(Quota, Vec<Effect>), Refusal> {
        if quota.is_zero() {
            self.ledger.park(id)?;
            self.resize(id, now);
            self.wake_if_wanted(id, now);
        } else {
            let (_, withdrawn) = self.ledger.grant(id, quota)?;
            self.withdrawn(withdrawn, now);
            self.resize(id, now);
        }
        Ok((self.ledger.get(id)?.grant, self.take_effects()))
    }

    /// A process joins a binding, holding `memory` already. Returns its slot.
    pub fn attach(
        &mut self,
        process: ProcessId,
        id: &BindingId,
        pid: u32,
        memory: Bytes,
    ) -> Result<(usize, Vec<Effect>), AttachError> {
        if let Some(attached) = self.processes.get(&process) {
            return Err(AttachError::Attached(attached.binding.clone()));
        }
        self.ledger.get(id)?;
        let account = self.accounts.entry(id.clone()).or_default();
        let free = account.taken.iter().position(|taken| !taken);
        let slot = free.ok_or_else(|| AttachError::Full(id.clone()))?;
        account.taken[slot] = true;
        self.processes.insert(process, Process { binding: id.clone(), slot, pid, memory });
        self.effects.push(Effect::Announce(Event::Attached { binding: id.clone(), pid }));
        Ok((slot, self.take_effects()))
    }

    /// A process has work and no right to run. If its binding is parked, it wakes.
    pub fn want(&mut self, process: ProcessId, now: Nanos) -> Vec<Effect> {
        let Some(id) = self.processes.get(&process).map(|process| process.binding.clone()) else {
            return Vec::new();
        };
        self.arbitrate_id(&id, arbiter::Event::Want(id.clone(), process), now);
        self.wake_if_wanted(&id, now);
        self.take_effects()
    }

    /// A process gives its right back. A report about a right that it has not is only counted.
    pub fn give_back(&mut self, process: ProcessId, report: &Report, now: Nanos) -> Vec<Effect> {
        let Some(Process { binding: id, slot, .. }) = self.processes.get(&process).cloned() else {
            return Vec::new();
        };
        if let Some(account) = self.accounts.get_mut(&id) {
            account.launches = account.launches.saturating_add(report.launches);
            account.unknown = account.unknown.saturating_add(report.unknown);
            account.throttled += report.throttled;
            let right = account.rights[slot];
            if Slot::is_held(report.right) && [report.right, report.right.wrapping_add(1)].contains(&right) {
                let event = arbiter::Event::Yield(id.clone(), process, report.used, report.more);
                self.arbitrate_id(&id, event, now);
            } else if report.more {
                self.arbitrate_id(&id, arbiter::Event::Want(id.clone(), process), now);
            }
        }
        if report.more {
            self.wake_if_wanted(&id, now);
        }
        self.take_effects()
    }

    /// A process is about to take memory. `None` if it is not attached.
    pub fn reserve(&mut self, process: ProcessId, bytes: Bytes) -> Option<Reservation> {
        let id = self.processes.get(&process)?.binding.clone();
        let limit = self.ledger.get(&id).ok()?.share.memory;
        let used = self.memory(&id);
        let granted = used + bytes <= limit && used.0.checked_add(bytes.0).is_some();
        if granted {
            self.processes.get_mut(&process)?.memory += bytes;
        }
        Some(Reservation { granted, used: self.memory(&id), limit })
    }

    /// A process gave memory back.
    pub fn free(&mut self, process: ProcessId, bytes: Bytes) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.memory = process.memory.saturating_sub(bytes);
        }
    }

    /// A process is gone, and holds nothing any more.
    pub fn gone(&mut self, process: ProcessId, now: Nanos) -> Vec<Effect> {
        let Some(Process { binding: id, slot, pid, .. }) = self.processes.get(&process).cloned() else {
            return Vec::new();
        };
        self.arbitrate_id(&id, arbiter::Event::Gone(id.clone(), process), now);
        self.processes.remove(&process);
        if let Some(account) = self.accounts.get_mut(&id) {
            account.taken[slot] = false;
        }
        self.effects.push(Effect::Announce(Event::Detached { binding: id, pid }));
        self.take_effects()
    }

    /// Time passed.
    pub fn tick(&mut self, now: Nanos) -> Vec<Effect> {
        let due: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| row.deadline(now).is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let decided = self.rows.get_mut(&key).map(|row| row.step(arbiter::Event::Tick, now));
            self.translate(decided.unwrap_or_default());
        }
        self.take_effects()
    }

    /// When [`Node::tick`] is due, if nothing happens before.
    pub fn deadline(&self, now: Nanos) -> Option<Nanos> {
        self.rows.values().filter_map(|row| row.deadline(now)).min()
    }

    /// What is counted for a binding up to its last hold that ended, which is at most [`Rules::longest_hold`] and a kernel
    /// ago. The length of a hold that goes on is no part of it: a process that was held up used less, and counters
    /// that never fall would stand still until real use made up for it.
    pub fn counters(&self, id: &BindingId) -> Counters {
        let Some(account) = self.accounts.get(id) else { return Counters::default() };
        Counters { used: account.used, throttled: account.throttled, memory: self.memory(id) }
    }

    /// The whole node, for whoever asks.
    pub fn status(&self, version: &str, pid: u32) -> NodeStatus {
        let mut gpus: Vec<_> = self.ledger.gpus().cloned().collect();
        gpus.sort_by_key(|gpu| gpu.index);
        let gpus = gpus.into_iter().map(|gpu| GpuStatus {
            health: self.health(&gpu.id),
            free_units: self.ledger.free_units(&gpu, self.units),
            largest_fit: self.ledger.largest_fit(&gpu, self.units),
            bindings: self.bindings_status(&gpu.id),
            gpu,
        });
        let gpus = gpus.collect();
        NodeStatus { version: version.into(), pid, units_per_gpu: self.units, blind: None, gpus }
    }

    /// The units of each GPU as a scheduler should see them, in the driver's order, where `allocated` are with containers
    /// and nobody asks for fewer than `smallest`.
    pub fn offers(&self, allocated: &BTreeMap<GpuId, Units>, smallest: Units) -> Vec<GpuOffer> {
        let mut gpus: Vec<_> = self.ledger.gpus().collect();
        gpus.sort_by_key(|gpu| gpu.index);
        let offer = |gpu: &Gpu| {
            let allocated = allocated.get(&gpu.id).copied().unwrap_or_default();
            let units = self.ledger.offer(gpu, self.units, allocated, smallest);
            let largest = self.ledger.largest_fit(gpu, self.units).min(units.free);
            GpuOffer { gpu: gpu.id.clone(), units, largest }
        };
        gpus.into_iter().map(offer).collect()
    }

    /// What the arbiters of each GPU did so far.
    pub fn tallies(&self) -> BTreeMap<GpuId, Tally> {
        let mut tallies = BTreeMap::<_, Tally>::new();
        for ((gpu, _), row) in &self.rows {
            let (sum, tally) = (tallies.entry(gpu.clone()).or_default(), row.tally());
            sum.holds += tally.holds;
            sum.revocations += tally.revocations;
            sum.overdue += tally.overdue;
            sum.overrun += tally.overrun;
        }
        tallies
    }

    fn bindings_status(&self, gpu: &GpuId) -> Vec<BindingStatus> {
        let status = self.ledger.bindings_on(gpu).cloned().map(|binding| {
            let Counters { used, throttled, memory } = self.counters(&binding.id);
            let processes = self.processes_of(&binding.id).map(|(_, process)| process.pid).collect();
            let account = self.accounts.get(&binding.id);
            let (launches, unknown, faults) =
                account.map_or((0, 0, 0), |account| (account.launches, account.unknown, account.faults));
            BindingStatus {
                binding,
                used,
                throttled,
                memory_used: memory,
                processes,
                launches,
                unknown,
                faults,
            }
        });
        status.collect()
    }

    fn join(&mut self, binding: &Binding, account: Account, now: Nanos) {
        self.accounts.insert(binding.id.clone(), account);
        self.enter_row(binding, now);
    }

    fn enter_row(&mut self, binding: &Binding, now: Nanos) {
        let key = (binding.gpu.clone(), binding.row);
        let row = self.rows.entry(key).or_insert_with(|| Arbiter::new(self.rules));
        let decided = row.step(arbiter::Event::Join(binding.id.clone(), terms(binding)), now);
        self.translate(decided);
    }

    /// The ledger moved a binding: it leaves the arbiter that it is with, which ends its hold, and waits with the one of its
    /// row. A kernel that runs runs to its end.
    fn change_row(&mut self, id: &BindingId, now: Nanos) {
        let Ok(binding) = self.ledger.get(id).cloned() else { return };
        let old = self.rows.iter_mut().find(|((gpu, _), row)| *gpu == binding.gpu && row.has(id));
        let Some((_, old)) = old else { return };
        let waiting = old.waiting(id);
        let decided = old.step(arbiter::Event::Leave(id.clone()), now);
        self.translate(decided);
        self.enter_row(&binding, now);
        for process in waiting {
            self.arbitrate(&binding, arbiter::Event::Want(id.clone(), process), now);
        }
    }

    /// A parked binding whose process waits to run gets its floor.
    fn wake_if_wanted(&mut self, id: &BindingId, now: Nanos) {
        let Ok(binding) = self.ledger.get(id).cloned() else { return };
        if !binding.is_parked() || !self.row_of(id).is_some_and(|row| row.wants(id)) {
            return;
        }
        let Ok((grant, withdrawn)) = self.ledger.grant(id, binding.share.floor) else { return };
        self.withdrawn(withdrawn, now);
        self.resize(id, now);
        self.effects.push(Effect::Announce(Event::Woken { binding: id.clone(), grant }));
    }

    fn withdrawn(&mut self, withdrawn: Withdrawn, now: Nanos) {
        for (binding, grant) in withdrawn {
            self.resize(&binding, now);
            self.effects.push(Effect::Announce(Event::Withdrawn { binding, grant }));
        }
    }

    /// The ledger changed a binding's grant: its arbiter and its page follow.
    fn resize(&mut self, id: &BindingId, now: Nanos) {
        let Ok(binding) = self.ledger.get(id).cloned() else { return };
        // The page first: whoever sees the right sees the grant that it rests on.
        self.effects.push(Effect::Limits(id.clone()));
        self.arbitrate(&binding, arbiter::Event::Resize(id.clone(), terms(&binding)), now);
    }

    fn row_of(&self, id: &BindingId) -> Option<&Arbiter> {
        let binding = self.ledger.get(id).ok()?;
        self.rows.get(&(binding.gpu.clone(), binding.row))
    }

    fn arbitrate_id(&mut self, id: &BindingId, event: arbiter::Event, now: Nanos) {
        if let Ok(binding) = self.ledger.get(id).cloned() {
            self.arbitrate(&binding, event, now);
        }
    }

    fn arbitrate(&mut self, binding: &Binding, event: arbiter::Event, now: Nanos) {
        let row = self.rows.get_mut(&(binding.gpu.clone(), binding.row));
        let decided = row.map(|row| row.step(event, now)).unwrap_or_default();
        self.translate(decided);
    }

    /// Rights as words of slots: each grant and each revocation adds one.
    fn translate(&mut self, decided: Vec<arbiter::Effect>) {
        for effect in decided {
            let (binding, process, held) = match effect {
                arbiter::Effect::Grant(binding, process) => (binding, process, true),
                arbiter::Effect::Revoke(binding, process) => (binding, process, false),
                arbiter::Effect::Used(binding, used) => {
                    if let Some(account) = self.accounts.get_mut(&binding) {
                        account.used += used;
                    }
                    continue;
                }
            };
            let slot = self.processes.get(&process).map(|process| process.slot);
            let Some((slot, account)) = slot.zip(self.accounts.get_mut(&binding)) else { continue };
            let right = &mut account.rights[slot];
            if Slot::is_held(*right) != held {
                *right = right.wrapping_add(1);
                self.effects.push(Effect::Right { binding, slot, right: *right });
            }
        }
    }

    fn processes_of<'a>(&'a self, id: &'a BindingId) -> impl Iterator<Item = (&'a ProcessId, &'a Process)> {
        self.processes.iter().filter(move |(_, process)| process.binding == *id)
    }

    fn memory(&self, id: &BindingId) -> Bytes {
        self.processes_of(id).map(|(_, process)| process.memory).sum()
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.effects)
    }
}

fn terms(binding: &Binding) -> Terms {
    let share = &binding.share;
    Terms { floor: share.floor, ceiling: share.ceiling, grant: binding.grant }
}
