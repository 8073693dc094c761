//! The grants of one function's replicas: up at once, down slowly.
//!
//! Owns what was needed of late. What is enough is [`crate::plan`]'s to say.

use std::collections::VecDeque;

use gpu_share::share::Share;
use gpu_share::units::{Nanos, Quota};

use super::function::{Replica, Scene, cap, load, places};
use super::observed::{Observed, is_active};
use super::tuning::Tuning;
use crate::plan::{Place, Problem};
use crate::policy::{Action, Decision, ReplicaState, ReplicaView};

/// Quotas that were needed in the last hold time, oldest first.
#[derive(Debug, Default)]
pub(super) struct Grants {
    needed: VecDeque<(Nanos, Quota)>,
}

/// The quota wanted now, and why.
struct Level {
    quota: Quota,
    reason: String,
}

impl Grants {
    /// Nothing is needed any more.
    pub(super) fn forget(&mut self) {
        self.needed.clear();
    }

    /// Up at once; down to the most that was needed in the hold time, and not for less than the dead band.
    pub(super) fn decide(&mut self, scene: &Scene<'_>, observed: &mut Observed) -> Vec<Decision> {
        let serving = serving(scene, observed);
        let level = level(scene, &serving, observed);
        self.needed.push_back((scene.now, level.quota));
        while self.needed.pop_front_if(|&mut (at, _)| scene.now.since(at) > scene.tuning.hold).is_some() {}
        let held = self.needed.iter().map(|&(_, quota)| quota).max().unwrap_or(level.quota);
        let change = |replica: &Replica<'_>| grant(replica.view, &level, held, scene.share, scene.tuning);
        serving.iter().filter_map(change).collect()
    }
}

/// The replicas that the load falls on: ready ones, and parked ones as far as they have requests or are needed.
fn serving<'a>(scene: &Scene<'a>, observed: &Observed) -> Vec<Replica<'a>> {
    let is_up = |replica: &ReplicaView| {
        replica.state == ReplicaState::Ready
            || (replica.state == ReplicaState::Parked && replica.in_flight > 0)
    };
    let mut serving: Vec<_> = scene.replicas.iter().copied().filter(|replica| is_up(replica.view)).collect();
    if !is_active(scene.view) {
        return serving;
    }
    let is_spare = |replica: &ReplicaView| replica.state == ReplicaState::Parked && replica.in_flight == 0;
    for &parked in scene.replicas.iter().filter(|replica| is_spare(replica.view)) {
        let enough = scene.problem.is_none_or(|problem| {
            problem.level(&places(&serving), load(observed, observed.forecast.vertical)).is_some()
        });
        if enough && !serving.is_empty() {
            break;
        }
        serving.push(parked);
    }
    serving
}

/// The quota that each serving replica needs now.
fn level(scene: &Scene<'_>, serving: &[Replica<'_>], observed: &mut Observed) -> Level {
    let (view, share) = (scene.view, scene.share);
    let demand = scene.said(observed, observed.forecast.vertical);
    let Some(problem) = &scene.problem else {
        let quota = if is_active(view) { share.ceiling } else { share.floor };
        return Level { quota, reason: format!("{demand}; its service time is not known yet") };
    };
    if let Some(alarm) = alarm(scene, serving, problem, observed) {
        return Level { quota: share.ceiling, reason: format!("{demand}; {alarm}") };
    }
    let places = places(serving);
    let load = load(observed, observed.forecast.vertical);
    let needed = problem.level(&places, load);
    let (count, sound) = (places.len(), needed.is_some() && !places.is_empty());
    let found = needed.map(|needed| problem.level(&untaken(serving), load).map_or(needed, |q| q.max(needed)));
    let level = match found {
        Some(quota) => {
            let latency = problem.latency(&places, quota, load) * 1e3;
            Level { quota, reason: format!("{demand}; {quota} on each of {count} keeps {latency:.0} ms") }
        }
        None => Level { quota: share.ceiling, reason: format!("{demand}; more than {count} can bear") },
    };
    observed.sound_since = if sound { observed.sound_since.or(Some(scene.now)) } else { None };
    level
}

/// Places as grants are measured in them: alone in a row, a replica's grant takes nothing from anybody, and is what it
/// will need when somebody comes.
fn untaken(serving: &[Replica<'_>]) -> Vec<Place> {
    let untaken = |replica: &Replica<'_>| {
        if replica.is_alone { Place::guaranteed(replica.place.cap) } else { replica.place }
    };
    serving.iter().map(untaken).collect()
}

/// The safety net: what queues and latencies say, whatever the forecast does.
fn alarm(
    scene: &Scene<'_>,
    serving: &[Replica<'_>],
    problem: &Problem<'_>,
    observed: &Observed,
) -> Option<String> {
    let view = scene.view;
    let ready: Vec<_> = serving.iter().filter(|replica| !replica.view.grant.is_zero()).collect();
    if view.held > 0 && !ready.is_empty() {
        return Some(format!("{} held at the gateway", view.held));
    }
    let slo = view.wish.slo?;
    let limit = slo.bound.secs_f64() * scene.tuning.alarm;
    let held = |replica: &Replica<'_>| problem.held(&replica.place, replica.view.grant).max(1e-9);
    let speed: f64 = ready.iter().map(|replica| 1.0 / held(replica)).sum();
    let slowest = ready.iter().map(|replica| held(replica)).reduce(f64::max)?;
    // A lone request is no queue, however long it takes.
    let limit = limit.max(1.5 * (slowest + problem.estimate.overhead.secs_f64()));
    let queued = f64::from(view.in_flight) / speed;
    if queued > limit {
        return Some(format!("{} in flight take {:.0} ms", view.in_flight, queued * 1e3));
    }
    let latencies: Vec<f64> = observed.recent().map(Nanos::secs_f64).collect();
    let count = f64::from(super::function::number(latencies.len()));
    let mean = latencies.iter().sum::<f64>() / count.max(1.0);
    (count >= 3.0 && mean > limit).then(|| format!("latency is {:.0} ms", mean * 1e3))
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
