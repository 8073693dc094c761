//! One function: what it has shown, and what is decided for it.
//!
//! Owns the order of decisions: grants ([`super::grants`]) or parking first, then the number of replicas
//! ([`super::counts`]).

use gpu_share::annotations::Scaling;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Nanos, Quota};

use super::Tuning;
use super::counts::{Counts, Moves};
use super::grants::Grants;
use super::observed::{Observed, is_active};
use crate::plan::{Load, Place, Problem};
use crate::policy::rows::Others;
use crate::policy::{Action, Decision, FunctionView, ReplicaState, ReplicaView};

/// State of one function.
#[derive(Debug)]
pub(super) struct Function {
    observed: Observed,
    grants: Grants,
    counts: Counts,
}

/// What a decision is made from.
#[derive(Clone, Debug)]
pub(super) struct Scene<'a> {
    pub(super) now: Nanos,
    pub(super) view: &'a FunctionView,
    pub(super) tuning: &'a Tuning,
    /// Its replicas, those that drain included.
    pub(super) replicas: Vec<Replica<'a>>,
    /// The share that grants move in.
    pub(super) share: &'a Share,
    /// Nothing while its service time is not known.
    pub(super) problem: Option<Problem<'a>>,
}

/// A replica as it is seen, and what it can count on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica<'a> {
    pub(super) view: &'a ReplicaView,
    pub(super) place: Place,
    /// Nobody else is in its row.
    pub(super) is_alone: bool,
}

impl Function {
    pub(super) fn new(now: Nanos, view: &FunctionView, profiles: &Profiles, tuning: &Tuning) -> Self {
        let observed = Observed::new(now, view, profiles, tuning);
        Self { observed, grants: Grants::default(), counts: Counts::new(now) }
    }

    /// What it has shown so far.
    pub(super) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The quota that was needed last.
    pub(super) fn needed(&self) -> Option<Quota> {
        self.grants.last()
    }

    /// The state of its count.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// It may have so many replicas at most, where that is said.
    pub(super) fn set_most(&mut self, most: Option<u32>) {
        self.counts.set_most(most);
    }

    /// What to change, given what is seen now. `others` are those in the row of each replica.
    pub(super) fn decide(
        &mut self,
        now: Nanos,
        view: &FunctionView,
        others: &[Others],
        tuning: &Tuning,
        moves: &mut Moves,
    ) -> Vec<Decision> {
        self.observed.update(now, view, others, tuning);
        let (share, estimate) = (bound_share(view), self.observed.estimate());
        let problem = estimate.as_ref().map(|estimate| Problem {
            estimate,
            share: &share,
            slo: view.wish.slo,
            window: view.window,
            gpu_memory: view.gpu_memory,
        });
        let replicas = replicas(view, others, &share);
        let scene = Scene { now, view, tuning, replicas, share: &share, problem };
        let mut decisions = match view.wish.scaling {
            Scaling::Hybrid | Scaling::Vertical if self.is_idle(&scene) => {
                self.grants.forget();
                self.observed.sound_since = None;
                self.park(&scene)
            }
            Scaling::Hybrid | Scaling::Vertical => self.grants.decide(&scene, &mut self.observed),
            Scaling::Horizontal | Scaling::Off => Vec::new(),
        };
        decisions.extend(self.counts.decide(&scene, &self.observed, moves));
        decisions
    }

    /// Whether no request has come for so long that its replicas are parked. Where a request that wakes one would be
    /// late at its floor, a replica that stays awake costs others in its row that time, so that is kept up for longer.
    fn is_idle(&self, scene: &Scene<'_>) -> bool {
        let wakes_late = scene.problem.is_some_and(|problem| {
            let floor = scene.share.floor;
            scene.replicas.iter().any(|replica| !problem.serves(&Place { cap: floor, ..replica.place }))
        });
        let after = if wakes_late { scene.tuning.park_late_after } else { scene.tuning.park_after };
        !is_active(scene.view) && scene.now.since(self.observed.active) >= after
    }

    fn park(&self, scene: &Scene<'_>) -> Vec<Decision> {
        let idle = scene.now.since(self.observed.active).secs_f64();
        let ready = scene.view.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready);
        ready
            .map(|replica| Decision {
                action: Action::Park { replica: replica.id.clone() },
                reason: format!(
                    "{}: no request for {idle:.1} s, its model stays on the GPU",
                    scene.view.name
                ),
            })
            .collect()
    }
}

impl<'a> Scene<'a> {
    /// Replicas that are not about to go away.
    pub(super) fn staying(&self) -> impl Iterator<Item = &Replica<'a>> {
        self.replicas.iter().filter(|replica| replica.view.state != ReplicaState::Draining)
    }

    /// The number of them.
    pub(super) fn present(&self) -> u32 {
        super::counts::present(self.view)
    }

    /// The demand, for people: `quantile` is what to be ready for.
    pub(super) fn said(&self, observed: &Observed, quantile: f64) -> String {
        let slo = self.view.wish.slo.map(|slo| format!(", {slo}")).unwrap_or_default();
        let (rate, margin) = (observed.forecast.rate, observed.margin);
        format!("{}: {rate:.1}/s, ready for {:.1}/s{slo}", self.view.name, quantile * margin)
    }
}

/// A load of `rate`, with the margin that was learnt on top, and the burstiness that was seen.
pub(super) fn load(observed: &Observed, rate: f64) -> Load<'_> {
    Load {
        rate: rate * observed.margin,
        arrival_scv: observed.forecast.arrival_scv,
        recent: Some(observed.recent_arrivals()),
    }
}

pub(super) fn places(replicas: &[Replica<'_>]) -> Vec<Place> {
    replicas.iter().map(|replica| replica.place).collect()
}

pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The most that a replica can have: its ceiling or the room in its row, but always its floor.
pub(super) fn cap(replica: &ReplicaView, share: &Share) -> Quota {
    share.ceiling.min(replica.room).max(share.floor)
}

/// The replicas, and what each can count on. The node lends up to the ceiling that a replica is bound with.
pub(super) fn replicas<'a>(view: &'a FunctionView, others: &[Others], share: &Share) -> Vec<Replica<'a>> {
    let alone = view.wish.share.ceiling;
    let of = |(view, others): (&'a ReplicaView, &Others)| Replica {
        view,
        place: Place { cap: cap(view, share), alone, contended: others.contended },
        is_alone: others.are_none,
    };
    view.replicas.iter().zip(others).map(of).collect()
}

/// The share that grants move in: scaling by number alone leaves each at its floor.
pub(super) fn bound_share(view: &FunctionView) -> Share {
    let share = view.wish.share;
    match view.wish.scaling {
        Scaling::Horizontal => Share { ceiling: share.floor, ..share },
        _ => share,
    }
}
