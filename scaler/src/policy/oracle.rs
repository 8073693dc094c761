//! The policy `oracle`: knows at what rates requests will come, and does the cheapest that bears them. What others are
//! measured against, not what anybody can run; and no lower bound, since it does not know when single requests come, and
//! plans for them by the formulas that others plan by.
//!
//! Rule: the cheapest plan of [`crate::plan`] for the largest rate until the next look (grants) and until a replica that is
//! started now is ready (counts); no forecast, no margin, no keep time beyond the ski rental of one cold start.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_share::annotations::Wish;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota};

use super::rows::Rows;
use super::{Action, Decision, FunctionView, Policy, ReplicaState, ReplicaView};
use crate::plan::{Load, Place, Problem};
use crate::profile::Estimate;
use crate::queueing::Batching;

/// How far a grant looks ahead: it must bear what comes until the next one has reached the GPU.
const NEXT: Nanos = Nanos::from_secs(1);

/// Requests a second of a function, the largest from one time to another.
pub type Future = Arc<dyn Fn(&str, Nanos, Nanos) -> f64 + Send + Sync>;

/// The policy `oracle`.
pub struct Oracle {
    profiles: Profiles,
    future: Future,
    /// Until when each function's replicas were last all needed.
    needed: BTreeMap<String, Nanos>,
    rows: Rows,
}

impl core::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Oracle").finish_non_exhaustive()
    }
}

impl Oracle {
    /// The policy with these profiles, and what will come.
    pub fn new(profiles: Profiles, future: Future) -> Self {
        Self { profiles, future, needed: BTreeMap::new(), rows: Rows::default() }
    }

    fn scale(&mut self, now: Nanos, view: &FunctionView) -> Vec<Decision> {
        let share = view.wish.share;
        let surface = view.wish.model.as_deref().and_then(|model| self.profiles.get(model));
        let Some(surface) = surface else { return Vec::new() };
        let time = |items| surface.gpu_time(share.sm, items);
        let estimate = Estimate {
            gpu: time(1),
            uncertainty: 0.0,
            overhead: Nanos::from_millis(3),
            deviation: Nanos::from_millis(1),
            batching: Batching::new(view.wish.batch, |items| time(items).secs_f64()),
        };
        let problem = Problem {
            estimate: &estimate,
            share: &share,
            slo: view.wish.slo,
            window: view.window,
            gpu_memory: view.gpu_memory,
        };
        let load = |until: Nanos| Load {
            rate: (self.future)(&view.name, now, now + until),
            arrival_scv: 1.0,
            recent: None,
        };
        let serving: Vec<_> = view
            .replicas
            .iter()
            .filter(|r| matches!(r.state, ReplicaState::Ready | ReplicaState::Parked))
            .collect();
        let present: Vec<_> = view.replicas.iter().filter(|r| r.state != ReplicaState::Draining).collect();
        let caps = |replicas: &[&ReplicaView]| -> Vec<Place> {
            let place = |replica: &&ReplicaView| Place {
                cap: replica.room.min(share.ceiling).max(share.floor),
                alone: share.ceiling,
                contended: self.rows.beside(replica).contended,
            };
            replicas.iter().map(place).collect()
        };
        let soon = load(NEXT);
        let quota = problem.level(&caps(&serving), soon, None).unwrap_or(share.ceiling);
        let idle = soon.rate <= 0.0 && view.in_flight == 0 && view.held == 0;
        let reason = format!("{}: {:.1}/s will come", view.name, soon.rate);
        let grants = serving.iter().filter_map(|replica| grant(replica, quota, idle, &share));
        let mut decisions: Vec<_> =
            grants.map(|action| Decision { action, reason: reason.clone() }).collect();
        let bounds = view.wish.replicas;
        let later = load(view.cold_start + NEXT);
        let wanted = if later.rate <= 0.0 && idle {
            bounds.min
        } else {
            let plan = problem.cheapest(&caps(&present), bounds.min.max(1)..=bounds.max.max(1), later, None);
            plan.map_or(bounds.max, |plan| plan.replicas)
        };
        let count = u32::try_from(present.len()).unwrap_or(u32::MAX);
        let needed = self.needed.entry(view.name.clone()).or_insert(now);
        if wanted >= count {
            *needed = now;
        }
        if wanted > count || (wanted < count && now.since(*needed) >= view.cold_start) {
            *needed = now;
            decisions.push(Decision {
                action: Action::Scale { function: view.name.clone(), replicas: wanted },
                reason,
            });
        }
        decisions
    }
}

fn grant(replica: &ReplicaView, quota: Quota, idle: bool, share: &Share) -> Option<Action> {
    if idle && replica.in_flight == 0 {
        return (replica.state == ReplicaState::Ready).then(|| Action::Park { replica: replica.id.clone() });
    }
    let quota = quota.min(replica.room).clamp(share.floor, share.ceiling);
    (quota != replica.grant).then(|| Action::Grant { replica: replica.id.clone(), quota })
}

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        self.rows.look(now, functions);
        functions.iter().flat_map(|view| self.scale(now, view)).collect()
    }
}
