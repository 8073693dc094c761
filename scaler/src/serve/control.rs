//! The control loop: while this scaler leads, it reads the watchdogs every control period, asks the policy, and puts what
//! follows into the outbox. Once a second it looks at numbers of replicas that nobody else owns.
//!
//! It reads by itself, beside `sampler`: that reads once a second on every scaler, at moments that all of them share; this one
//! reads as often as a grant may change, on the leader only, and waits for an answer no longer than a period.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu_share::latency::Profiles;
use gpu_share::units::Nanos;
use k8s_openapi::jiff::Timestamp;
use tokio::time::MissedTickBehavior;

use super::board::{Board, Stage};
use super::clock::Clock;
use super::fleet::FunctionName;
use super::lead::Leadership;
use super::metrics::Metrics;
use super::outbox::{Outbox, Write};
use super::source::Watchdogs;
use crate::control::explanation::Explanation;
use crate::control::period::{Controller, Past, Settings};
use crate::control::replicas::Count;
use crate::control::standing::Standing;

/// Time between two looks at numbers of replicas: what they need is read that often.
const COUNTS: Nanos = Nanos::from_secs(1);

/// What the control loop is started with.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Time between two decisions about grants.
    pub(super) period: Duration,
    /// Who shows load as often as that; without, grants are left alone.
    pub(super) watchdogs: Option<Watchdogs>,
    /// Whether numbers of replicas are written where nobody else owns them.
    pub(super) counts: bool,
    /// It decides and tells, and changes nothing.
    pub(super) is_dry_run: bool,
}

/// The controller, for whoever decides, notes and explains. There is none while another scaler leads.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Option<Controller>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Controller>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what became of a change.
    pub(super) fn note(&self, function: &str, past: Past) {
        if let Some(controller) = self.lock().as_mut() {
            controller.note(function, past);
        }
    }

    /// What a function has.
    pub(super) fn standing(&self, function: &str) -> Option<Standing> {
        self.lock().as_ref()?.standing(function)
    }

    /// Fills in what the controller knows of a function.
    pub(super) fn explain(&self, now: Nanos, explanation: &mut Explanation) {
        if let Some(controller) = self.lock().as_ref() {
            controller.explain(now, explanation);
        }
    }
}

/// The loop.
pub(super) struct Control {
    pub(super) options: Options,
    pub(super) profiles: Profiles,
    pub(super) settings: Settings,
    pub(super) board: Arc<Board>,
    pub(super) clock: Clock,
    pub(super) leadership: Arc<Leadership>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: Arc<Shared>,
    pub(super) outbox: Arc<Outbox>,
}

/// What the loop remembers of numbers of replicas, and of what a dry run has told.
#[derive(Default)]
struct Counts {
    looked: Option<Nanos>,
    each: HashMap<FunctionName, Count>,
    told: HashMap<String, String>,
}

impl Counts {
    /// Numbers of replicas to be written.
    fn look(&mut self, now: Nanos, stage: &Stage) -> Vec<Write> {
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.each);
        let mut writes = Vec::new();
        for one in &stage.counted {
            let mut count = before.remove(&one.name).unwrap_or_default();
            if let Some(to) = count.decide(now, &one.need, one.wanted, one.bounds, one.cold_start) {
                let (function, reason) = (one.name.clone(), one.need.reason.clone());
                writes.push(Write::Replicas { function, from: one.wanted, to, reason });
            }
            self.each.insert(one.name.clone(), count);
        }
        writes
    }
}

impl Control {
    /// Decides every period, until dropped.
    pub(super) async fn run(self) {
        // Without grants to decide about there is nothing to be done more often.
        let period =
            if self.options.watchdogs.is_some() { self.options.period } else { Duration::from(COUNTS) };
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counts = Counts::default();
        loop {
            ticks.tick().await;
            if !self.leadership.is_ours() {
                // Whatever was known is of the past when it leads again.
                *self.shared.lock() = None;
                self.outbox.replace(Vec::new());
                counts = Counts::default();
                continue;
            }
            if self.board.is_listed() && self.board.are_owners_listed() {
                let begin = || Controller::new(self.profiles.clone(), self.settings);
                self.shared.lock().get_or_insert_with(begin);
                self.period(&mut counts).await;
            }
        }
    }

    async fn period(&self, counts: &mut Counts) {
        let (timer, now) = (self.metrics.control("look"), self.clock.now());
        let is_due = counts.looked.is_none_or(|looked| now.since(looked) >= COUNTS);
        let stage = self.board.stage(Timestamp::now().as_nanosecond(), self.options.counts && is_due);
        let mut writes = if is_due { counts.look(now, &stage) } else { Vec::new() };
        drop(timer);
        if let Some(watchdogs) = &self.options.watchdogs {
            let timer = self.metrics.control("read");
            let readings = watchdogs.look(self.clock.now(), &stage.roster, self.options.period).await;
            drop(timer);
            // It may take a while where there are thousands of functions, and others are served meanwhile.
            let changes = tokio::task::block_in_place(|| {
                let _timer = self.metrics.control("decide");
                let mut shared = self.shared.lock();
                let controller = shared.as_mut()?;
                controller.learn(self.board.profiles());
                Some(controller.decide(self.clock.now(), &stage.seen, &readings))
            });
            writes.extend(changes.into_iter().flatten().map(Write::Quota));
        }
        if self.options.is_dry_run {
            self.tell(&writes, counts);
        } else {
            self.outbox.replace(writes);
        }
    }

    /// Tells what would be written, each once.
    fn tell(&self, writes: &[Write], counts: &mut Counts) {
        for write in writes {
            let (function, past) = write.named();
            let said = format!("{}: {}", past.subject, past.what);
            if counts.told.get(&past.subject) == Some(&said) {
                continue;
            }
            tracing::info!(
                function,
                what = said,
                reason = past.reason,
                "would be changed, but this is a dry run"
            );
            self.metrics.decided(write.action(), "told");
            counts.told.insert(past.subject.clone(), said);
            self.shared.note(&function, past);
        }
    }
}
