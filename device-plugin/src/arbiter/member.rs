//! One binding in a row: its two quotas, who of its processes waits, and its place in the queues.
//!
//! Never looks at other members; the arbiter compares them.

use std::collections::VecDeque;

use gpu_share::quota::{QuotaServer, Verdict};
use gpu_share::units::{Nanos, Quota};

use super::account::Account;
use super::{ProcessId, Rules, Terms, Tier};

/// A process that is revoked, or waits for a result before it goes on, yields and wants again within this time. Its
/// credit is kept meanwhile: a gap in its work is no end of it.
const LINGER: Nanos = Nanos::from_millis(1);

/// What a member has used in a hold that still goes on, by the tiers that it is charged to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unsettled {
    /// Since the hold began.
    pub(super) held: Nanos,
    /// Since the present stage began, if that is guaranteed time.
    pub(super) guaranteed: Nanos,
    /// Since the present stage began, if that is borrowed time.
    pub(super) borrowed: Nanos,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) terms: Terms,
    window: Nanos,
    guaranteed: Account,
    /// Clamped while waiting: a ceiling is not saved up.
    pub(super) cap: Account,
    /// Processes with work and no right to run, in the order of their turns.
    pub(super) wanting: VecDeque<ProcessId>,
    /// When it could first run on its guaranteed quota, in the present wait.
    pub(super) eligible_at: Nanos,
    /// Borrowed time over floor; who has the smallest borrows first.
    pub(super) borrowed: Nanos,
    /// Longest recent time from a revocation to its yield: one kernel, or a few that were queued.
    pub(super) overrun: Nanos,
    /// When it last had no work.
    idle_since: Option<Nanos>,
    /// Longest recent guaranteed time in one hold.
    turn: Nanos,
    /// It failed to yield; it may not borrow until what that took is repaid.
    barred: bool,
    /// What it may still hold without using it while others could run.
    idle: QuotaServer,
}

impl Member {
    pub(super) fn new(terms: Terms, rules: &Rules, now: Nanos) -> Self {
        let window = rules.window;
        Self {
            terms,
            window,
            guaranteed: Account::new(terms.grant, window, now),
            cap: Account::new(terms.cap(), window, now),
            wanting: VecDeque::new(),
            eligible_at: now,
            borrowed: Nanos::ZERO,
            overrun: Nanos::ZERO,
            idle_since: None,
            turn: Nanos::ZERO,
            barred: false,
            idle: QuotaServer::new(rules.idle_allowance, window, now),
        }
    }

    pub(super) fn resize(&mut self, terms: Terms, now: Nanos) {
        self.terms = terms;
        self.guaranteed.resize(terms.grant, now);
        self.cap.resize(terms.cap(), now);
        if self.eligible_at > now {
            self.eligible_at = self.next_eligible(now);
        }
    }

    /// It has work from `now` on and does not hold the right. `row_borrowed` is where the others are with borrowing:
    /// who was away does not come back with a claim to all that it might have borrowed.
    pub(super) fn begin_wait(&mut self, row_borrowed: Nanos, now: Nanos) {
        if self.idle_since.take().is_some_and(|since| now.since(since) <= LINGER) {
            self.wait_on(now);
            return;
        }
        self.end_wait(now);
        self.wait_on(now);
        self.borrowed = self.borrowed.max(row_borrowed);
    }

    /// It goes on waiting after a turn. What it was behind before, it still is: its next turn is due as if it had had
    /// this one in time.
    pub(super) fn wait_on(&mut self, now: Nanos) {
        self.guaranteed.open(now);
        let next = self.next_eligible(now);
        self.eligible_at = if next > now { next } else { self.eligible_at.min(now) };
    }

    /// It runs on borrowed time from `now` on, which earns nothing, or has been idle for long.
    pub(super) fn end_wait(&mut self, now: Nanos) {
        self.guaranteed.close(now);
        self.eligible_at = Nanos(u64::MAX);
    }

    /// It has no work any more; if it comes back at once, it has never been away.
    pub(super) fn rest(&mut self, now: Nanos) {
        self.idle_since = Some(now);
    }

    /// A process has work: its turn comes after those that wait already.
    pub(super) fn queue(&mut self, process: ProcessId) {
        if !self.wanting.contains(&process) {
            self.wanting.push_back(process);
        }
    }

    /// A process has no work any more; whether it had.
    pub(super) fn stop_waiting(&mut self, process: ProcessId) -> bool {
        let place = self.wanting.iter().position(|waiting| *waiting == process);
        place.and_then(|place| self.wanting.remove(place)).is_some()
    }

    /// Takes note of how long a turn of this member is, whoever it is charged to.
    pub(super) fn had_turn(&mut self, time: Nanos) {
        self.turn = time.max(Nanos(self.turn.0 / 8 * 7));
    }

    /// Charges `used` to what `tier` runs on.
    pub(super) fn settle(&mut self, tier: Tier, used: Nanos) {
        match tier {
            Tier::Guaranteed => {
                self.guaranteed.charge(used);
                self.eligible_at += self.earned_in(used);
            }
            Tier::Borrowed => self.borrowed += self.over_floor(used),
        }
    }

    /// It failed to yield: all the time counts as its own, and it borrows nothing until that is repaid.
    pub(super) fn bar(&mut self, held: Nanos) {
        self.guaranteed.charge(held);
        self.barred = true;
    }

    /// Whether it may run on its guaranteed quota at `now`.
    pub(super) fn guaranteed(&self, unsettled: Unsettled, now: Nanos) -> Verdict {
        self.guaranteed.verdict(unsettled.guaranteed, now)
    }

    /// Whether it may run on time that others leave at `now`.
    pub(super) fn borrowing(&self, unsettled: Unsettled, now: Nanos) -> Verdict {
        if self.barred {
            return Verdict::Never;
        }
        self.cap.verdict(unsettled.held, now)
    }

    /// It held the right for `idle` without using it, while others could run: what of that is charged.
    pub(super) fn idled_too_long(&mut self, idle: Nanos, now: Nanos) -> Nanos {
        let free = self.idle.credit(now).min(idle);
        self.idle.end(free, now);
        idle.since(free)
    }

    /// It held the right on guaranteed time for `idle` without using it, while nobody else could run: that is not saved
    /// up.
    pub(super) fn idled_alone(&mut self, idle: Nanos, now: Nanos) {
        self.guaranteed.left_idle(idle, now);
    }

    /// Whether it has work that may run at `now`.
    pub(super) fn could_run(&self, now: Nanos) -> bool {
        !self.wanting.is_empty() && self.next_chance(now).is_some_and(|at| at <= now)
    }

    /// Lifts the bar once what it took is repaid.
    pub(super) fn lift_bar(&mut self, now: Nanos) {
        self.barred &= !matches!(self.guaranteed(Unsettled::default(), now), Verdict::Run(_));
    }

    /// By when it should have had its turn: as long as its grant takes to earn what its turns use, at least a window.
    ///
    /// Earliest deadline first, not longest wait first, or a client with short kernels would wait for one long
    /// kernel of every neighbour.
    pub(super) fn deadline(&self) -> Nanos {
        self.eligible_at + self.earned_in(self.turn).max(self.window)
    }

    /// How long its grant takes to earn `time`.
    pub(super) fn earned_in(&self, time: Nanos) -> Nanos {
        Nanos::from_secs_f64(time.secs_f64() / self.guaranteed.quota().fraction().max(1e-6))
    }

    /// `time` weighted for the queue of borrowers: those with large floors borrow more.
    pub(super) fn over_floor(&self, time: Nanos) -> Nanos {
        Nanos::from_secs_f64(time.secs_f64() / self.terms.floor.fraction().max(1e-6))
    }

    /// When it can run on either quota, if not now.
    pub(super) fn next_chance(&self, now: Nanos) -> Option<Nanos> {
        [self.guaranteed(Unsettled::default(), now), self.borrowing(Unsettled::default(), now)]
            .into_iter()
            .filter_map(|verdict| match verdict {
                Verdict::Run(_) => Some(now),
                Verdict::WaitUntil(then) => Some(then),
                Verdict::Never => None,
            })
            .min()
    }

    /// When it can run on its guaranteed quota.
    pub(super) fn next_eligible(&self, now: Nanos) -> Nanos {
        match self.guaranteed(Unsettled::default(), now) {
            Verdict::Run(_) => now,
            Verdict::WaitUntil(then) => then,
            Verdict::Never => Nanos(u64::MAX),
        }
    }
}

impl Terms {
    /// What it may use at most: nothing while parked.
    fn cap(self) -> Quota {
        if self.grant.is_zero() { Quota::ZERO } else { self.ceiling }
    }
}
