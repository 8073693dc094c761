//! One quota of one binding as the arbiter keeps it: the periodic server, and what was used but not settled yet.
//!
//! Owns when credit is clamped. It never decides who runs.

use gpu_share::quota::{QuotaServer, Verdict};
use gpu_share::units::{Nanos, Quota};

/// A periodic server that stays open over several holds.
///
/// While open, credit is not clamped to one window: a client that waits behind another's long kernel must not lose
/// what flows in meanwhile. What it uses is kept beside the server until it is closed, since the server clamps
/// whenever use ends.
#[derive(Clone, Debug)]
pub(super) struct Account {
    server: QuotaServer,
    spent: Nanos,
}

impl Account {
    pub(super) fn new(quota: Quota, window: Nanos, now: Nanos) -> Self {
        Self { server: QuotaServer::new(quota, window, now), spent: Nanos::ZERO }
    }

    /// From `now` on credit is kept, until closed. Opening twice is opening once.
    pub(super) fn open(&mut self, now: Nanos) {
        self.server.begin(now);
    }

    /// `used` was used; settled when the account is closed.
    pub(super) fn charge(&mut self, used: Nanos) {
        self.spent += used;
    }

    /// For `idle` before `now` nothing was used, although it might have been: of what flowed in then, no more than one
    /// window's supply is kept.
    pub(super) fn left_idle(&mut self, idle: Nanos, now: Nanos) {
        let inflow = Nanos::from_secs_f64(idle.secs_f64() * self.quota().fraction());
        self.spent += self.server.surplus(now).since(self.spent).min(inflow);
    }

    /// Settles what was used; from `now` on idle time is not saved up. Closing twice is closing once.
    pub(super) fn close(&mut self, now: Nanos) {
        let spent = core::mem::take(&mut self.spent);
        self.server.end(spent, now);
    }

    pub(super) fn resize(&mut self, quota: Quota, now: Nanos) {
        self.server.resize(quota, now);
    }

    /// Whether work may start at `now`, if besides what was charged `unsettled` was used too.
    pub(super) fn verdict(&self, unsettled: Nanos, now: Nanos) -> Verdict {
        let mut server = self.server.clone();
        server.end(self.spent + unsettled, now);
        server.ask(now)
    }

    pub(super) fn quota(&self) -> Quota {
        self.server.quota()
    }
}
