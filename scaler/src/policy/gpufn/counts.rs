//! How many replicas one function has, and which of them are moved to another place.
//!
//! Owns when replicas are started and removed. How many are enough is [`crate::plan`]'s to say.

use std::collections::BTreeMap;

use gpu_share::annotations::Scaling;
use gpu_share::units::Nanos;

use super::function::{Replica, Scene, load};
use super::observed::{Observed, is_active};
use crate::plan::{Load, Place, Plan};
use crate::policy::{Action, Decision, FunctionView, ReplicaState};

/// A wanted number of replicas that has not come about is said again after this time.
const REPEAT: Nanos = Nanos::from_secs(1);
/// From one GPU at most one replica is moved in this time: a move costs a cold start and memory for two, and what it
/// brings is seen only afterwards.
const MOVE: Nanos = Nanos::from_secs(60);

/// When replicas were last moved away from each GPU.
#[derive(Debug, Default)]
pub(super) struct Moves(BTreeMap<u32, Nanos>);

impl Moves {
    /// Whether one may be moved from `gpu` now; if so, it is noted.
    fn take(&mut self, now: Nanos, gpu: u32) -> bool {
        let may = self.0.get(&gpu).is_none_or(|&last| now.since(last) >= MOVE);
        if may {
            self.0.insert(gpu, now);
        }
        may
    }
}

/// State of the count of one function.
#[derive(Debug)]
pub(super) struct Counts {
    /// Since when the replicas have not been able to bear the demand.
    short_since: Option<Nanos>,
    /// Last time that one replica less would not have been enough.
    all_needed: Nanos,
    /// The number of replicas that was wanted last, and when.
    scaled: Option<(Nanos, u32)>,
    /// The number of replicas that was wanted last, however long ago: who carries it out may still be trying.
    asked: u32,
    /// What was planned last: the next plan is seldom far from it.
    planned: Option<Plan>,
    /// The most replicas that were needed in the keep time, and when.
    wanted: (Nanos, u32),
    /// Most that there may be while there are not enough GPUs for all.
    most: Option<u32>,
}

impl Counts {
    pub(super) fn new(now: Nanos) -> Self {
        Self {
            short_since: None,
            all_needed: now,
            scaled: None,
            asked: 0,
            planned: None,
            wanted: (now, 0),
            most: None,
        }
    }

    /// Replicas that bear the demand, whether there is room or not: as long as one is kept that is not needed, so long it is
    /// wanted too.
    pub(super) fn wanted(&self) -> u32 {
        self.wanted.1
    }

    pub(super) fn set_most(&mut self, most: Option<u32>) {
        self.most = most;
    }

    /// What to change about the number of replicas, if anything.
    pub(super) fn decide(
        &mut self,
        scene: &Scene<'_>,
        observed: &Observed,
        moves: &mut Moves,
    ) -> Option<Decision> {
        let (bounds, present) = (scene.view.wish.replicas, scene.present());
        let demand = || scene.said(observed, observed.forecast.cold);
        let least = least(scene.view);
        if present < least || present > bounds.max {
            let reason = format!("{}; {least} to {} are allowed", demand(), bounds.max);
            return self.scale(scene, present.clamp(least, bounds.max), reason);
        }
        // Nothing runs and nothing has come: what was forecast before does not start anything.
        if scene.view.wish.scaling == Scaling::Vertical || (present == 0 && !is_active(scene.view)) {
            return None;
        }
        let is_idle = is_idle(scene, observed);
        let needed = if is_idle { least } else { self.needed(scene, observed, 1.0).max(least) };
        if needed >= self.wanted.1 || scene.now.since(self.wanted.0) >= scene.tuning.keep {
            self.wanted = (scene.now, needed);
        }
        let most = self.most.map_or(bounds.max, |most| most.clamp(least, bounds.max));
        if self.most.is_some() && present.max(self.asked) > most {
            let reason = format!("{}; {most} are its part of GPUs that are not enough for all", demand());
            return self.scale(scene, most, reason);
        }
        if is_idle {
            self.short_since = None;
            return self.removal(scene, observed);
        }
        let needed = needed.min(most);
        if needed > present {
            self.all_needed = scene.now;
            let since = *self.short_since.get_or_insert(scene.now);
            if scene.now.since(since) < scene.tuning.confirm && present > 0 {
                return None;
            }
            let secs = scene.view.cold_start.secs_f64();
            let reason = format!("{} in {secs:.1} s; {present} at their most can't bear that", demand());
            return self.scale(scene, needed, reason);
        }
        self.short_since = None;
        match most_crowded(scene) {
            Some(crowded) => self.move_away(scene, observed, crowded, (needed, most), moves),
            None => self.removal(scene, observed),
        }
    }

    /// A replica in whose row others are at work so much that its requests are late is replaced: another one starts
    /// first, where the ledger finds it a place, and when that is ready, this one goes.
    fn move_away(
        &mut self,
        scene: &Scene<'_>,
        observed: &Observed,
        crowded: &Replica<'_>,
        (needed, most): (u32, u32),
        moves: &mut Moves,
    ) -> Option<Decision> {
        let (name, present) = (&scene.view.name, scene.present());
        self.all_needed = scene.now;
        if scene.view.replicas.iter().any(|replica| replica.state == ReplicaState::Starting) {
            return None;
        }
        let busy = format!(
            "{name}: others in the row of {} are at work for {:.0} % of the time",
            crowded.view.id,
            100.0 * crowded.place.contended
        );
        if present > needed.max(scene.view.wish.replicas.min).max(1) {
            return Some(self.stop(crowded, busy));
        }
        let is_used = scene.now.since(observed.active) < MOVE;
        if !is_used || present >= most || !moves.take(scene.now, crowded.view.gpu) {
            return None;
        }
        self.scale(scene, present + 1, format!("{busy}; another takes its place"))
    }

    /// One replica less when it has not been needed for the keep time.
    fn removal(&mut self, scene: &Scene<'_>, observed: &Observed) -> Option<Decision> {
        let (tuning, present) = (scene.tuning, scene.present());
        let idle = is_idle(scene, observed);
        let least = if idle { scene.view.wish.replicas.min } else { scene.view.wish.replicas.min.max(1) };
        let starting = scene.view.replicas.iter().any(|replica| replica.state == ReplicaState::Starting);
        if present <= least
            || starting
            || (!idle && present <= self.needed(scene, observed, tuning.removal_margin))
        {
            self.all_needed = scene.now;
        }
        let keep = if present == 1 { tuning.keep_last.max(tuning.keep) } else { tuning.keep };
        let unneeded = scene.now.since(self.all_needed);
        if unneeded < keep.max(scene.view.cold_start) {
            self.scaled = None;
            return None;
        }
        self.all_needed = scene.now;
        let demand = scene.said(observed, observed.forecast.cold);
        let reason = format!("{demand}; {} suffice since {:.0} s", present - 1, unneeded.secs_f64());
        match most_crowded(scene) {
            Some(crowded) => Some(self.stop(crowded, reason)),
            None => self.scale(scene, present - 1, reason),
        }
    }

    /// The fewest replicas, the present ones first, that bear the demand a cold start from now times `margin`. One in a row
    /// where its requests are late counts for nothing.
    fn needed(&mut self, scene: &Scene<'_>, observed: &Observed, margin: f64) -> u32 {
        let bounds = scene.view.wish.replicas;
        let Some(problem) = &scene.problem else { return scene.present().clamp(bounds.min, bounds.max) };
        // A margin below 1 was learnt at another rate, perhaps; a late replica costs more than a spare one.
        let margin = margin * observed.margin.max(1.0);
        let load = Load { rate: observed.forecast.cold * margin, ..load(observed, 0.0) };
        let places: Vec<Place> =
            scene.staying().map(|replica| replica.place).filter(|place| problem.serves(place)).collect();
        self.planned = problem.cheapest(&places, 1..=bounds.max, load, self.planned);
        self.planned.map_or(bounds.max, |plan| plan.replicas).clamp(bounds.min, bounds.max)
    }

    fn stop(&mut self, replica: &Replica<'_>, reason: String) -> Decision {
        self.scaled = None;
        self.asked = self.asked.saturating_sub(1);
        Decision { action: Action::Stop { replica: replica.view.id.clone() }, reason }
    }

    fn scale(&mut self, scene: &Scene<'_>, replicas: u32, reason: String) -> Option<Decision> {
        if self.scaled.is_some_and(|(at, wanted)| wanted == replicas && scene.now.since(at) < REPEAT) {
            return None;
        }
        self.scaled = Some((scene.now, replicas));
        self.asked = replicas;
        let function = scene.view.name.clone();
        Some(Decision { action: Action::Scale { function, replicas }, reason })
    }
}

/// Replicas that are not about to go away.
pub(super) fn present(view: &FunctionView) -> u32 {
    let staying = view.replicas.iter().filter(|replica| replica.state != ReplicaState::Draining);
    super::function::number(staying.count())
}

/// The fewest replicas that a function is to have now.
pub(super) fn least(view: &FunctionView) -> u32 {
    let bounds = view.wish.replicas;
    bounds.min.max(u32::from(is_active(view))).min(bounds.max)
}

/// Whether no request has come for so long that what was forecast before needs no replica.
fn is_idle(scene: &Scene<'_>, observed: &Observed) -> bool {
    !is_active(scene.view) && scene.now.since(observed.active) >= scene.tuning.park_after
}

/// Of the replicas whose requests are late because of others in their row, the one where it is worst.
fn most_crowded<'a, 'b>(scene: &'b Scene<'a>) -> Option<&'b Replica<'a>> {
    let problem = scene.problem.as_ref()?;
    let crowded = scene.staying().filter(|replica| !problem.serves(&replica.place));
    crowded.max_by(|a, b| a.place.contended.total_cmp(&b.place.contended))
}
