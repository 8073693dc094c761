//! Decisions for one function: the grants of its replicas, how many there are, and when they are parked.

use std::collections::VecDeque;

use gpu_share::annotations::Scaling;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Nanos, Quota};

use super::Tuning;
use super::observed::{Observed, is_active};
use crate::plan::{Load, Problem};
use crate::policy::{Action, Decision, FunctionView, ReplicaState, ReplicaView};
use crate::profile::Estimate;

/// A wanted number of replicas that has not come about is said again after this time.
const REPEAT: Nanos = Nanos::from_secs(1);

/// State of one function.
#[derive(Debug)]
pub(super) struct Function {
    observed: Observed,
    /// Quotas that were needed in the last hold time, oldest first.
    needed: VecDeque<(Nanos, Quota)>,
    /// Since when the grants have not been able to bear the demand.
    short_since: Option<Nanos>,
    /// Last time that one replica less would not have been enough.
    all_needed: Nanos,
    /// The number of replicas that was wanted last, and when.
    scaled: Option<(Nanos, u32)>,
}

/// The quota wanted now, and why.
struct Level {
    quota: Quota,
    reason: String,
}

impl Function {
    pub(super) fn new(now: Nanos, view: &FunctionView, profiles: &Profiles, tuning: &Tuning) -> Self {
        let observed = Observed::new(now, view, profiles, tuning);
        Self { observed, needed: VecDeque::new(), short_since: None, all_needed: now, scaled: None }
    }

    /// What to change, given what is seen now.
    pub(super) fn decide(&mut self, now: Nanos, view: &FunctionView, tuning: &Tuning) -> Vec<Decision> {
        self.observed.update(now, view, tuning);
        let share = bound_share(view);
        let estimate = self.observed.estimate();
        let mut decisions = match view.wish.scaling {
            Scaling::Hybrid | Scaling::Vertical if self.is_idle(now, view, tuning) => {
                self.needed.clear();
                self.observed.sound_since = None;
                self.park(now, view)
            }
            Scaling::Hybrid | Scaling::Vertical => self.grants(now, view, estimate.as_ref(), &share, tuning),
            Scaling::Horizontal | Scaling::Off => Vec::new(),
        };
        let (replicas, reason) = self.count(now, view, estimate.as_ref(), &share, tuning);
        decisions.extend(self.scale(now, view, replicas, reason));
        decisions
    }

    fn is_idle(&self, now: Nanos, view: &FunctionView, tuning: &Tuning) -> bool {
        !is_active(view) && now.since(self.observed.active) >= tuning.park_after
    }

    fn park(&self, now: Nanos, view: &FunctionView) -> Vec<Decision> {
        let idle = now.since(self.observed.active).secs_f64();
        let ready = view.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready);
        ready
            .map(|replica| Decision {
                action: Action::Park { replica: replica.id.clone() },
                reason: format!("{}: no request for {idle:.1} s, its model stays on the GPU", view.name),
            })
            .collect()
    }

    /// Up at once; down to the most that was needed in the hold time, and not for less than the dead band.
    fn grants(
        &mut self,
        now: Nanos,
        view: &FunctionView,
        estimate: Option<&Estimate>,
        share: &Share,
        tuning: &Tuning,
    ) -> Vec<Decision> {
        let serving = self.serving(view, estimate, share);
        let level = self.level(now, view, &serving, estimate, share, tuning);
        self.needed.push_back((now, level.quota));
        while self.needed.pop_front_if(|&mut (at, _)| now.since(at) > tuning.hold).is_some() {}
        let held = self.needed.iter().map(|&(_, quota)| quota).max().unwrap_or(level.quota);
        serving.iter().filter_map(|replica| grant(replica, &level, held, share, tuning)).collect()
    }

    /// The replicas that the load falls on: ready ones, and parked ones as far as they have requests or are needed.
    fn serving<'a>(
        &self,
        view: &'a FunctionView,
        estimate: Option<&Estimate>,
        share: &Share,
    ) -> Vec<&'a ReplicaView> {
        let is_up = |replica: &ReplicaView| {
            replica.state == ReplicaState::Ready
                || (replica.state == ReplicaState::Parked && replica.in_flight > 0)
        };
        let mut serving: Vec<_> = view.replicas.iter().filter(|replica| is_up(replica)).collect();
        if !is_active(view) {
            return serving;
        }
        let parked = view.replicas.iter().filter(|r| r.state == ReplicaState::Parked && r.in_flight == 0);
        for replica in parked {
            let enough = estimate.is_none_or(|estimate| {
                let problem = problem(view, estimate, share);
                problem.level(&caps(&serving, share), self.load(self.observed.forecast.vertical)).is_some()
            });
            if enough && !serving.is_empty() {
                break;
            }
            serving.push(replica);
        }
        serving
    }

    /// The quota that each serving replica needs now.
    fn level(
        &mut self,
        now: Nanos,
        view: &FunctionView,
        serving: &[&ReplicaView],
        estimate: Option<&Estimate>,
        share: &Share,
        tuning: &Tuning,
    ) -> Level {
        let demand = self.said(view, self.observed.forecast.vertical);
        let Some(estimate) = estimate else {
            let quota = if is_active(view) { share.ceiling } else { share.floor };
            return Level { quota, reason: format!("{demand}; its service time is not known yet") };
        };
        if let Some(alarm) = self.alarm(view, serving, estimate, tuning) {
            return Level { quota: share.ceiling, reason: format!("{demand}; {alarm}") };
        }
        let problem = problem(view, estimate, share);
        let caps = caps(serving, share);
        let load = self.load(self.observed.forecast.vertical);
        let found = problem.level(&caps, load);
        let sound = found.is_some() && !caps.is_empty();
        self.observed.sound_since = if sound { self.observed.sound_since.or(Some(now)) } else { None };
        let count = caps.len();
        match found {
            Some(quota) => {
                let latency = problem.latency(&problem.grants(quota, &caps), load) * 1e3;
                Level { quota, reason: format!("{demand}; {quota} on each of {count} keeps {latency:.0} ms") }
            }
            None => Level { quota: share.ceiling, reason: format!("{demand}; more than {count} can bear") },
        }
    }

    /// The safety net: what queues and latencies say, whatever the forecast does.
    fn alarm(
        &self,
        view: &FunctionView,
        serving: &[&ReplicaView],
        estimate: &Estimate,
        tuning: &Tuning,
    ) -> Option<String> {
        let ready: Vec<_> = serving.iter().filter(|replica| !replica.grant.is_zero()).collect();
        if view.held > 0 && !ready.is_empty() {
            return Some(format!("{} held at the gateway", view.held));
        }
        let slo = view.wish.slo?;
        let limit = slo.bound.secs_f64() * tuning.alarm;
        let speed: f64 = ready.iter().map(|r| 1.0 / estimate.mean_seconds(r.grant).max(1e-9)).sum();
        let alone = estimate.mean_seconds(ready.iter().map(|r| r.grant).min()?);
        let queued = f64::from(view.in_flight) / speed;
        // A lone request is no queue, however long it takes.
        if queued > limit.max(1.5 * alone) {
            return Some(format!("{} in flight take {:.0} ms", view.in_flight, queued * 1e3));
        }
        let latencies: Vec<f64> = self.observed.recent().map(Nanos::secs_f64).collect();
        let count = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
        let mean = latencies.iter().sum::<f64>() / count.max(1.0);
        (count >= 3.0 && mean > limit.max(1.5 * alone)).then(|| format!("latency is {:.0} ms", mean * 1e3))
    }

    /// How many replicas there should be, and why.
    fn count(
        &mut self,
        now: Nanos,
        view: &FunctionView,
        estimate: Option<&Estimate>,
        share: &Share,
        tuning: &Tuning,
    ) -> (u32, String) {
        let bounds = view.wish.replicas;
        let present = present(view);
        let least = bounds.min.max(u32::from(is_active(view))).min(bounds.max);
        let demand = self.said(view, self.observed.forecast.cold);
        if present < least || present > bounds.max {
            return (
                present.clamp(least, bounds.max),
                format!("{demand}; {least} to {} are allowed", bounds.max),
            );
        }
        // Nothing runs and nothing has come: what was forecast before does not start anything.
        if view.wish.scaling == Scaling::Vertical || (present == 0 && !is_active(view)) {
            return (present, demand);
        }
        let wanted = self.needed_replicas(view, estimate, share, 1.0);
        if wanted > present {
            self.all_needed = now;
            let since = *self.short_since.get_or_insert(now);
            if now.since(since) >= tuning.confirm || present == 0 {
                let secs = view.cold_start.secs_f64();
                return (wanted, format!("{demand} in {secs:.1} s; {present} at their most can't bear that"));
            }
            return (present, demand);
        }
        self.short_since = None;
        self.removal(now, view, present, tuning, (estimate, share))
    }

    /// One replica less when it has not been needed for the keep time.
    fn removal(
        &mut self,
        now: Nanos,
        view: &FunctionView,
        present: u32,
        tuning: &Tuning,
        (estimate, share): (Option<&Estimate>, &Share),
    ) -> (u32, String) {
        let demand = self.said(view, self.observed.forecast.cold);
        let idle = !is_active(view) && now.since(self.observed.active) >= tuning.park_after;
        let enough = if idle {
            view.wish.replicas.min
        } else {
            let margined = self.needed_replicas(view, estimate, share, tuning.removal_margin);
            margined.max(view.wish.replicas.min).max(1)
        };
        let starting = view.replicas.iter().any(|replica| replica.state == ReplicaState::Starting);
        if present <= enough || starting {
            self.all_needed = now;
        }
        let keep = if present == 1 { tuning.keep_last.max(tuning.keep) } else { tuning.keep };
        let unneeded = now.since(self.all_needed);
        if unneeded < keep.max(view.cold_start) {
            return (present, demand);
        }
        self.all_needed = now;
        (present - 1, format!("{demand}; {} suffice since {:.0} s", present - 1, unneeded.secs_f64()))
    }

    /// The fewest replicas, the present ones first, that bear the demand a cold start from now times `margin`.
    fn needed_replicas(
        &self,
        view: &FunctionView,
        estimate: Option<&Estimate>,
        share: &Share,
        margin: f64,
    ) -> u32 {
        let bounds = view.wish.replicas;
        let Some(estimate) = estimate else { return present(view).clamp(bounds.min, bounds.max) };
        let problem = problem(view, estimate, share);
        // A margin below 1 was learnt at another rate, perhaps; a late replica costs more than a spare one.
        let margin = margin * self.observed.margin.max(1.0);
        let load = Load { rate: self.observed.forecast.cold * margin, ..self.load(0.0) };
        // A replica whose row is taken by others, so that a lone request there is late, counts for nothing.
        let (caps, useless): (Vec<Quota>, Vec<Quota>) =
            caps(&staying(view), share).into_iter().partition(|&cap| problem.serves(cap));
        let useless = u32::try_from(useless.len()).unwrap_or(u32::MAX);
        let counts = 1..=bounds.max.saturating_sub(useless).max(1);
        let plan = problem.cheapest(&caps, counts, load);
        plan.map_or(bounds.max, |plan| plan.replicas.saturating_add(useless)).clamp(bounds.min, bounds.max)
    }

    fn scale(&mut self, now: Nanos, view: &FunctionView, replicas: u32, reason: String) -> Option<Decision> {
        if replicas == present(view) {
            self.scaled = None;
            return None;
        }
        if self.scaled.is_some_and(|(at, wanted)| wanted == replicas && now.since(at) < REPEAT) {
            return None;
        }
        self.scaled = Some((now, replicas));
        Some(Decision { action: Action::Scale { function: view.name.clone(), replicas }, reason })
    }

    fn load(&self, rate: f64) -> Load {
        Load { rate: rate * self.observed.margin, arrival_scv: self.observed.forecast.arrival_scv }
    }

    /// The demand, for people.
    fn said(&self, view: &FunctionView, quantile: f64) -> String {
        let slo = view.wish.slo.map(|slo| format!(", {slo}")).unwrap_or_default();
        let (rate, margin) = (self.observed.forecast.rate, self.observed.margin);
        format!("{}: {rate:.1}/s, ready for {:.1}/s{slo}", view.name, quantile * margin)
    }
}

/// The share that grants move in: scaling by number alone leaves each at its floor.
fn bound_share(view: &FunctionView) -> Share {
    let share = view.wish.share;
    match view.wish.scaling {
        Scaling::Horizontal => Share { ceiling: share.floor, ..share },
        _ => share,
    }
}

fn problem<'a>(view: &FunctionView, estimate: &'a Estimate, share: &'a Share) -> Problem<'a> {
    Problem { estimate, share, slo: view.wish.slo, window: view.window, gpu_memory: view.gpu_memory }
}

/// A new grant for `replica` where it must rise or may fall.
fn grant(
    replica: &ReplicaView,
    level: &Level,
    held: Quota,
    share: &Share,
    tuning: &Tuning,
) -> Option<Decision> {
    let cap = cap(replica, share);
    let (wanted, held) = (level.quota.clamp(share.floor, cap), held.clamp(share.floor, cap));
    let falls = replica.grant.saturating_sub(held) > tuning.dead_band;
    let quota = if wanted > replica.grant {
        wanted
    } else if falls {
        held
    } else {
        return None;
    };
    let reason = format!("{} (from {})", level.reason, replica.grant);
    Some(Decision { action: Action::Grant { replica: replica.id.clone(), quota }, reason })
}

/// The most that a replica can have: its ceiling or the room in its row, but always its floor.
fn cap(replica: &ReplicaView, share: &Share) -> Quota {
    share.ceiling.min(replica.room).max(share.floor)
}

fn caps(replicas: &[&ReplicaView], share: &Share) -> Vec<Quota> {
    replicas.iter().map(|replica| cap(replica, share)).collect()
}

/// Replicas that are not about to go away.
fn staying(view: &FunctionView) -> Vec<&ReplicaView> {
    view.replicas.iter().filter(|replica| replica.state != ReplicaState::Draining).collect()
}

fn present(view: &FunctionView) -> u32 {
    u32::try_from(staying(view).len()).unwrap_or(u32::MAX)
}
