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
    why: Why,
}

/// Why a quota is wanted.
enum Why {
    /// The service time is not known yet.
    Unknown,
    /// The safety net was set off, by this.
    Alarm(String),
    /// It keeps the objective.
    Keeps,
    /// The replicas can't bear the demand.
    Exceeded,
}

impl Grants {
    /// The quota that was needed last.
    pub(super) fn last(&self) -> Option<Quota> {
        self.needed.back().map(|&(_, quota)| quota)
    }

    /// Nothing is needed any more.
    pub(super) fn forget(&mut self) {
        self.needed.clear();
    }

    /// Up at once; down to the most that was needed in the hold time, and not for less than the dead band.
    pub(super) fn decide(&mut self, scene: &Scene<'_>, observed: &mut Observed) -> Vec<Decision> {
        let serving = serving(scene, observed);
        let near = self.last();
        let level = level(scene, &serving, observed, near);
        self.needed.push_back((scene.now, level.quota));
        while self.needed.pop_front_if(|&mut (at, _)| scene.now.since(at) > scene.tuning.hold).is_some() {}
        let held = self.needed.iter().map(|&(_, quota)| quota).max().unwrap_or(level.quota);
        let change = |replica: &Replica<'_>| {
            let quota = grant(replica.view, level.quota, held, scene.share, scene.tuning)?;
            let reason = level.reason(scene, &serving, observed);
            Some(Decision {
                action: Action::Grant { replica: replica.view.id.clone(), quota },
                reason: format!("{reason} (from {})", replica.view.grant),
            })
        };
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
            problem.level(&places(&serving), load(observed, observed.forecast.vertical), None).is_some()
        });
        if enough && !serving.is_empty() {
            break;
        }
        serving.push(parked);
    }
    serving
}

/// The quota that each serving replica needs now; `near` is where it was.
fn level(scene: &Scene<'_>, serving: &[Replica<'_>], observed: &mut Observed, near: Option<Quota>) -> Level {
    let (view, share) = (scene.view, scene.share);
    let Some(problem) = &scene.problem else {
        let quota = if is_active(view) { share.ceiling } else { share.floor };
        return Level { quota, why: Why::Unknown };
    };
    if let Some(alarm) = alarm(scene, serving, problem, observed) {
        return Level { quota: share.ceiling, why: Why::Alarm(alarm) };
    }
    let places = places(serving);
    let load = load(observed, observed.forecast.vertical);
    let needed = problem.level(&places, load, near);
    let sound = needed.is_some() && !places.is_empty();
    let level = match needed {
        Some(needed) => {
            let untaken = untaken(serving);
            let more = (untaken != places).then(|| problem.level(&untaken, load, Some(needed))).flatten();
            Level { quota: more.map_or(needed, |more| more.max(needed)), why: Why::Keeps }
        }
        None => Level { quota: share.ceiling, why: Why::Exceeded },
    };
    observed.sound_since = if sound { observed.sound_since.or(Some(scene.now)) } else { None };
    level
}

impl Level {
    /// For people.
    fn reason(&self, scene: &Scene<'_>, serving: &[Replica<'_>], observed: &Observed) -> String {
        let demand = scene.said(observed, observed.forecast.vertical);
        let count = serving.len();
        match &self.why {
            Why::Unknown => format!("{demand}; its service time is not known yet"),
            Why::Alarm(alarm) => format!("{demand}; {alarm}"),
            Why::Exceeded => format!("{demand}; more than {count} can bear"),
            Why::Keeps => {
                let (quota, load) = (self.quota, load(observed, observed.forecast.vertical));
                let latency = scene
                    .problem
                    .map_or(f64::INFINITY, |problem| problem.latency(&places(serving), quota, load) * 1e3);
                format!("{demand}; {quota} on each of {count} keeps {latency:.0} ms")
            }
        }
    }
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
    let each = view.in_flight.div_ceil(super::function::number(ready.len()).max(1));
    let queued = f64::from(view.in_flight) / (speed * problem.estimate.batching.speed_up(each));
    if queued > limit {
        return Some(format!("{} in flight take {:.0} ms", view.in_flight, queued * 1e3));
    }
    let latencies: Vec<f64> = observed.recent().map(Nanos::secs_f64).collect();
    let count = f64::from(super::function::number(latencies.len()));
    let mean = latencies.iter().sum::<f64>() / count.max(1.0);
    (count >= 3.0 && mean > limit).then(|| format!("latency is {:.0} ms", mean * 1e3))
}

/// A new grant for `replica` where it must rise to what is `wanted` or may fall to what was needed in the hold time.
fn grant(replica: &ReplicaView, wanted: Quota, held: Quota, share: &Share, tuning: &Tuning) -> Option<Quota> {
    let cap = cap(replica, share);
    let (wanted, held) = (wanted.clamp(share.floor, cap), held.clamp(share.floor, cap));
    let falls = replica.grant.saturating_sub(held) > tuning.dead_band;
    if wanted > replica.grant { Some(wanted) } else { falls.then_some(held) }
}
