//! The arbiter: which binding of a row holds the right to run, from when and how long.
//!
//! Owns the queues, quotas and the present hold of one row of one GPU. Pure: a step takes an event and the time and
//! returns what to do. It knows no page, no socket and no clock, and never decides what fits (the ledger does).
//!
//! Time is handed out in two tiers. **Guaranteed** time is a binding's grant: whoever has credit and work gets it,
//! earliest deadline first. **Borrowed** time is what is left: whoever is below its ceiling gets it, in proportion to
//! floors, and loses it as soon as somebody can run on guaranteed time. Borrowed time is charged to the ceiling only:
//! who used an idle GPU for an hour still has its guarantee in the next window.

use std::collections::BTreeMap;

use gpu_share::binding::BindingId;
use gpu_share::quota::{Verdict, WINDOW};
use gpu_share::units::{Nanos, Quota};

use member::{Member, Unsettled};

mod account;
mod member;
#[cfg(test)]
mod tests;

/// A process of a container, by its connection to the agent. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u64);

/// How long rights last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Window Π over which quotas are kept.
    pub window: Nanos,
    /// Longest stretch of guaranteed time while somebody else has work.
    pub quantum: Nanos,
    /// Longest stretch of borrowed time while somebody else has work.
    pub borrowed_quantum: Nanos,
    /// Longest stretch of one process while another of the same binding has work. They take turns, or each would add a
    /// kernel to an overrun, and with MPS their SM shares would add up.
    pub sibling_quantum: Nanos,
    /// A process that has not yielded so long after a revocation is passed over, unless its kernels are known to be
    /// long.
    pub grace: Nanos,
    /// The same for processes with long kernels.
    pub longest_grace: Nanos,
    /// Longest hold, also where nobody else has work: what it used is known only when it ends.
    pub longest_hold: Nanos,
    /// Part of the time that a binding may hold the right and leave the GPU idle, or say so, while others could run,
    /// before that is charged: handing over takes some of it. It bounds what a false report gains.
    pub idle_allowance: Quota,
    /// What a turn costs others at least, used or not: one process is woken to run, and the next one after it.
    pub turn: Nanos,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            window: WINDOW,
            quantum: Nanos::from_millis(5),
            borrowed_quantum: Nanos::from_millis(5),
            sibling_quantum: Nanos::from_millis(20),
            grace: Nanos::from_secs(1),
            longest_grace: Nanos::from_secs(10),
            // Handing the right over costs some 0.1 ms: 0.1 % of this.
            longest_hold: Nanos::from_millis(100),
            idle_allowance: Quota::saturating_from_fraction(0.1),
            turn: Nanos::from_micros(300),
        }
    }
}

/// The quotas of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Guaranteed for as long as it lives; its weight among borrowers.
    pub floor: Quota,
    /// The most that it may use.
    pub ceiling: Quota,
    /// Guaranteed now; zero while parked.
    pub grant: Quota,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A binding joins the row.
    Join(BindingId, Terms),
    /// Its quotas changed.
    Resize(BindingId, Terms),
    /// It is released.
    Leave(BindingId),
    /// One of its processes has work and no right to run.
    Want(BindingId, ProcessId),
    /// A process has nothing on the GPU any more, having used so much under its present right; whether it has more work.
    Yield(BindingId, ProcessId, Nanos, bool),
    /// A process is gone.
    Gone(BindingId, ProcessId),
    /// Time passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The process holds the right to run.
    Grant(BindingId, ProcessId),
    /// It starts nothing any more, and yields when what it started is done.
    Revoke(BindingId, ProcessId),
    /// A hold ended; the binding is charged so much GPU time.
    Used(BindingId, Nanos),
}

/// What happened in a row so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Holds begun.
    pub holds: u64,
    /// Holds revoked before they were given back.
    pub revocations: u64,
    /// Holds ended because a process did not yield in time.
    pub overdue: u64,
    /// Time from revocations to yields.
    pub overrun: Nanos,
}

/// What a hold is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The binding's grant.
    Guaranteed,
    /// What others leave.
    Borrowed,
}

/// The right to run, as one process of a binding has it now.
///
/// A hold that nobody disputes goes on in stages, each charged to one tier.
#[derive(Clone, Debug)]
struct Hold {
    binding: BindingId,
    process: ProcessId,
    tier: Tier,
    began: Nanos,
    stage_began: Nanos,
    /// When the credit of the stage's tier is used up.
    credit_until: Nanos,
    revoked: Option<Nanos>,
    /// Since when somebody else could run.
    contended: Option<Nanos>,
}

impl Hold {
    fn unsettled(&self, now: Nanos) -> Unsettled {
        let stage = now.since(self.stage_began);
        let held = now.since(self.began);
        match self.tier {
            Tier::Guaranteed => Unsettled { held, guaranteed: stage, borrowed: Nanos::ZERO },
            Tier::Borrowed => Unsettled { held, guaranteed: Nanos::ZERO, borrowed: stage },
        }
    }
}

/// Who may run, on what, and for how long.
struct Choice {
    binding: BindingId,
    tier: Tier,
    run: Nanos,
}

/// The arbiter of one row.
#[derive(Clone, Debug, Default)]
pub struct Arbiter {
    rules: Rules,
    members: BTreeMap<BindingId, Member>,
    hold: Option<Hold>,
    /// How far the last borrower was with borrowing.
    row_borrowed: Nanos,
    tally: Tally,
    effects: Vec<Effect>,
}

impl Arbiter {
    /// An arbiter of a row that nobody is in yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Takes note of `event` at `now`, and says what to do, in this order.
    pub fn step(&mut self, event: Event, now: Nanos) -> Vec<Effect> {
        match event {
            Event::Join(id, terms) => {
                self.members.insert(id, Member::new(terms, &self.rules, now));
            }
            Event::Resize(id, terms) => self.resize(&id, terms, now),
            Event::Leave(id) => self.leave(&id, now),
            Event::Want(id, process) => self.want(&id, process, now),
            Event::Yield(id, process, used, more) => self.yielded(&id, process, used, more, now),
            Event::Gone(id, process) => self.gone(&id, process, now),
            Event::Tick => {}
        }
        self.review(now);
        self.note_contention(now);
        core::mem::take(&mut self.effects)
    }

    /// From the first moment that somebody else could run, time that is held and not used is counted.
    fn note_contention(&mut self, now: Nanos) {
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.contended.is_none()) {
            let mut rivals = self.members.iter().filter(|(id, _)| **id != hold.binding);
            hold.contended = rivals.any(|(_, rival)| rival.could_run(now)).then_some(now);
        }
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn deadline(&self, now: Nanos) -> Option<Nanos> {
        let waiting = self.members.iter().filter(|(_, member)| !member.wanting.is_empty());
        let Some(hold) = &self.hold else {
            return waiting.filter_map(|(_, member)| member.next_chance(now)).min();
        };
        if let Some(revoked) = hold.revoked {
            return Some(revoked + self.grace(&hold.binding));
        }
        // Rivals that can run already, and did not revoke the hold, wait for the end of the stage.
        let rivals = waiting.filter(|(id, _)| **id != hold.binding);
        let candidate = rivals.map(|(_, rival)| rival.next_eligible(now)).filter(|&at| at > now).min();
        candidate.into_iter().chain([self.stage_end(hold)]).min().filter(|at| at.0 < u64::MAX)
    }

    /// Whether the process has a right that it has not given back, revoked or not.
    pub fn holds(&self, process: ProcessId) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.process == process)
    }

    /// Whether the binding is in this row.
    pub fn has(&self, id: &BindingId) -> bool {
        self.members.contains_key(id)
    }

    /// Processes of a binding that have work and no right to run, in the order of their turns.
    pub fn waiting(&self, id: &BindingId) -> Vec<ProcessId> {
        self.members.get(id).map(|member| member.wanting.iter().copied().collect()).unwrap_or_default()
    }

    /// Whether the binding has work and no right to run.
    pub fn wants(&self, id: &BindingId) -> bool {
        self.members.get(id).is_some_and(|member| !member.wanting.is_empty())
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn resize(&mut self, id: &BindingId, terms: Terms, now: Nanos) {
        if let Some(member) = self.members.get_mut(id) {
            member.resize(terms, now);
        }
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.binding == *id) {
            // The credit is another now: look again at once.
            hold.credit_until = now;
        }
    }

    fn leave(&mut self, id: &BindingId, now: Nanos) {
        if let Some(hold) = self.hold.take_if(|hold| hold.binding == *id) {
            self.effects.push(Effect::Revoke(id.clone(), hold.process));
            self.effects.push(Effect::Used(id.clone(), now.since(hold.began)));
        }
        self.members.remove(id);
    }

    fn want(&mut self, id: &BindingId, process: ProcessId, now: Nanos) {
        let Some(member) = self.members.get_mut(id) else { return };
        match self.hold.as_ref().filter(|hold| hold.binding == *id) {
            Some(hold) if hold.process == process && hold.revoked.is_none() => return,
            None if member.wanting.is_empty() => member.begin_wait(self.row_borrowed, now),
            _ => {}
        }
        member.queue(process);
    }

    fn yielded(&mut self, id: &BindingId, process: ProcessId, used: Nanos, more: bool, now: Nanos) {
        if !self.holds(process) {
            if more {
                self.want(id, process, now);
            }
            return;
        }
        if more && let Some(member) = self.members.get_mut(id) {
            // It waits before the hold ends, and is a candidate for the next one.
            member.queue(process);
        }
        self.give_back(id, process, Some(used), now);
    }

    /// `used` is `None` for a process that can't say.
    fn give_back(&mut self, id: &BindingId, process: ProcessId, used: Option<Nanos>, now: Nanos) {
        let Some(hold) = self.hold.as_ref().filter(|hold| hold.process == process) else { return };
        if hold.revoked.is_none() {
            self.effects.push(Effect::Revoke(id.clone(), process));
        }
        self.end_hold(used, now);
    }

    fn gone(&mut self, id: &BindingId, process: ProcessId, now: Nanos) {
        if let Some(member) = self.members.get_mut(id)
            && member.stop_waiting(process)
            && member.wanting.is_empty()
            && self.hold.as_ref().is_none_or(|hold| hold.binding != *id)
        {
            member.rest(now);
        }
        self.give_back(id, process, None, now);
    }

    /// Charges what the hold used, all of its time if that is not known; whoever has work again waits from now on.
    fn end_hold(&mut self, used: Option<Nanos>, now: Nanos) {
        let Some(hold) = self.hold.take() else { return };
        let rivals =
            self.members.iter().filter(|(id, member)| **id != hold.binding && !member.wanting.is_empty());
        let disturbed_at = rivals.map(|(_, rival)| rival.eligible_at).min().unwrap_or(now);
        let Some(member) = self.members.get_mut(&hold.binding) else { return };
        let length = now.since(hold.began);
        let contended = hold.contended.map_or(Nanos::ZERO, |since| now.since(since).max(self.rules.turn));
        let reported = used.map_or(length, |used| used.min(length));
        let disputed = contended.since(reported);
        let charged = reported + member.idled_too_long(disputed, now);
        // Earlier stages were charged as they ended, as if it had always been busy.
        let in_stage = charged.since(hold.stage_began.since(hold.began));
        let overrun = hold.revoked.map_or(Nanos::ZERO, |revoked| now.since(revoked));
        // Borrowed time ends where somebody's guarantee begins: what goes on is its own.
        let own =
            if hold.tier == Tier::Borrowed { now.since(disturbed_at).min(in_stage) } else { Nanos::ZERO };
        member.settle(hold.tier, in_stage - own);
        member.settle(Tier::Guaranteed, own);
        if hold.tier == Tier::Guaranteed {
            let idle_in_stage = now.since(hold.stage_began).since(in_stage);
            member.idled_alone(idle_in_stage.since(disputed), now);
        }
        member.cap.charge(charged);
        member.cap.close(now);
        self.tally.overrun += overrun;
        if hold.revoked.is_some() && used.is_some() {
            member.overrun = overrun.max(Nanos(member.overrun.0 / 8 * 7));
        }
        member.had_turn(in_stage);
        if member.wanting.is_empty() {
            member.rest(now);
        } else {
            member.wait_on(now);
        }
        self.effects.push(Effect::Used(hold.binding, charged));
    }

    /// Ends a revoked hold whose processes don't yield, so that nothing they do keeps the row for ever.
    fn end_overdue(&mut self, now: Nanos) {
        let Some(hold) = &self.hold else { return };
        self.tally.overdue += 1;
        let (id, tier) = (hold.binding.clone(), hold.tier);
        let in_stage = now.since(hold.stage_began);
        if let Some(member) = self.members.get_mut(&id) {
            // A guaranteed stage is charged when the hold ends.
            member.bar(if tier == Tier::Borrowed { in_stage } else { Nanos::ZERO });
        }
        self.end_hold(None, now);
    }

    /// Hands out, extends or revokes the right, as the time and the queues demand.
    fn review(&mut self, now: Nanos) {
        if let Some((binding, revoked)) = self.hold.as_ref().and_then(|h| Some((&h.binding, h.revoked?))) {
            if now < revoked + self.grace(binding) {
                return;
            }
            self.end_overdue(now);
        }
        let undisputed = self
            .hold
            .as_ref()
            .is_some_and(|hold| now < self.stage_end(hold) && !self.has_urgent_rival(hold, now));
        if undisputed {
            return;
        }
        match (self.choose(now), &self.hold) {
            (Some(choice), Some(hold)) if choice.binding == hold.binding && now < self.hold_end(hold) => {
                self.extend(&choice, now);
            }
            (_, Some(_)) => self.revoke(now),
            (Some(choice), None) => self.start(choice, now),
            (None, None) => {}
        }
    }

    /// Whether somebody can run on guaranteed time and has to before the holder.
    fn has_urgent_rival(&self, hold: &Hold, now: Nanos) -> bool {
        let holder = self.members.get(&hold.binding).map(Member::deadline);
        let rivals =
            self.members.iter().filter(|(id, member)| **id != hold.binding && !member.wanting.is_empty());
        rivals.map(|(_, rival)| rival).any(|rival| {
            let sooner = hold.tier == Tier::Borrowed || holder.is_none_or(|holder| rival.deadline() < holder);
            sooner && matches!(rival.guaranteed(Unsettled::default(), now), Verdict::Run(_))
        })
    }

    /// Who may run now. The present holder is a candidate too, as if it had work.
    fn choose(&mut self, now: Nanos) -> Option<Choice> {
        for member in self.members.values_mut() {
            member.lift_bar(now);
        }
        let holder = self.hold.as_ref().map(|hold| (&hold.binding, hold.unsettled(now)));
        let candidates = self.members.iter().filter_map(|(id, member)| match holder {
            Some((holder, unsettled)) if holder == id => Some((id, member, unsettled, true)),
            _ => (!member.wanting.is_empty()).then_some((id, member, Unsettled::default(), false)),
        });
        let candidates: Vec<_> = candidates.collect();
        let guaranteed = candidates.iter().filter_map(|&(id, member, unsettled, holds)| {
            let Verdict::Run(run) = member.guaranteed(unsettled, now) else { return None };
            Some(((member.deadline() + member.earned_in(unsettled.guaranteed), holds), id, run))
        });
        if let Some((_, id, run)) = guaranteed.min_by_key(|&(key, ..)| key) {
            return Some(Choice { binding: id.clone(), tier: Tier::Guaranteed, run });
        }
        let borrowers = candidates.iter().filter_map(|&(id, member, unsettled, holds)| {
            let Verdict::Run(run) = member.borrowing(unsettled, now) else { return None };
            Some(((member.borrowed + member.over_floor(unsettled.borrowed), holds), id, run))
        });
        let (_, id, run) = borrowers.min_by_key(|&(key, ..)| key)?;
        Some(Choice { binding: id.clone(), tier: Tier::Borrowed, run })
    }

    fn start(&mut self, choice: Choice, now: Nanos) {
        let Choice { binding, tier, run } = choice;
        let Some(member) = self.members.get_mut(&binding) else { return };
        let Some(process) = member.wanting.pop_front() else { return };
        member.cap.open(now);
        if tier == Tier::Borrowed {
            member.end_wait(now);
            self.row_borrowed = self.row_borrowed.max(member.borrowed);
        }
        self.tally.holds += 1;
        self.effects.push(Effect::Grant(binding.clone(), process));
        self.hold = Some(Hold {
            binding,
            process,
            tier,
            began: now,
            stage_began: now,
            // A process that must stop before it has woken uses nothing, and costs others a turn.
            credit_until: now + run.max(self.rules.turn),
            revoked: None,
            contended: None,
        });
    }

    /// The holder runs on, in a new stage.
    fn extend(&mut self, choice: &Choice, now: Nanos) {
        let Some(hold) = &mut self.hold else { return };
        let Some(member) = self.members.get_mut(&hold.binding) else { return };
        member.settle(hold.tier, now.since(hold.stage_began));
        match choice.tier {
            Tier::Guaranteed => member.wait_on(now),
            Tier::Borrowed => {
                member.end_wait(now);
                self.row_borrowed = self.row_borrowed.max(member.borrowed);
            }
        }
        hold.tier = choice.tier;
        hold.stage_began = now;
        hold.credit_until = now + choice.run;
    }

    fn revoke(&mut self, now: Nanos) {
        let Some(hold) = &mut self.hold else { return };
        hold.revoked = Some(now);
        self.tally.revocations += 1;
        self.effects.push(Effect::Revoke(hold.binding.clone(), hold.process));
    }

    /// When the hold ends at the latest: after the longest hold, or so that a sibling has its turn.
    fn hold_end(&self, hold: &Hold) -> Nanos {
        let has_sibling = self.members.get(&hold.binding).is_some_and(|member| !member.wanting.is_empty());
        let most = if has_sibling { self.rules.sibling_quantum } else { self.rules.longest_hold };
        hold.began + most
    }

    /// When the present stage is over: at the end of its credit, of the longest hold, or of its quantum if somebody else
    /// has work.
    fn stage_end(&self, hold: &Hold) -> Nanos {
        let alone = hold.credit_until.min(self.hold_end(hold));
        if !self.members.iter().any(|(id, member)| *id != hold.binding && !member.wanting.is_empty()) {
            return alone;
        }
        let quantum = match hold.tier {
            Tier::Guaranteed => self.rules.quantum,
            Tier::Borrowed => self.rules.borrowed_quantum,
        };
        alone.min(hold.stage_began + quantum)
    }

    fn grace(&self, id: &BindingId) -> Nanos {
        let overrun = self.members.get(id).map_or(0, |member| member.overrun.0);
        Nanos(overrun.saturating_mul(4)).clamp(self.rules.grace, self.rules.longest_grace)
    }
}
