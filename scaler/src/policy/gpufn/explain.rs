//! What is known of one function, and the plans around the one that is chosen, for people.
//!
//! Changes nothing: it judges again, by the same plan, what the last decision was made from.

use std::collections::BTreeSet;

use gpu_share::units::{Nanos, Quota};

use super::function::{Function, bound_share, load, places, replicas};
use crate::plan::{Load, Place, Problem};
use crate::policy::rows::Others;
use crate::policy::{Candidate, Explained, FunctionView, ReplicaState, Request};

impl Function {
    /// What is known of the function that is seen as `view`, with those in the row of each replica.
    pub(super) fn explain(&self, view: &FunctionView, others: &[Others]) -> Explained {
        let observed = self.observed();
        let (share, estimate) = (bound_share(view), observed.estimate());
        let (forecast, margin) = (&observed.forecast, observed.margin);
        let latencies: Vec<_> = observed.recent().map(Nanos::millis_f64).collect();
        let count = f64::from(super::function::number(latencies.len()));
        let candidates = estimate.as_ref().map(|estimate| {
            let (slo, window, gpu_memory) = (view.wish.slo, view.window, view.gpu_memory);
            let problem = Problem { estimate, share: &share, slo, window, gpu_memory };
            let staying: Vec<_> = replicas(view, others, &share)
                .into_iter()
                .filter(|replica| matches!(replica.view.state, ReplicaState::Ready | ReplicaState::Parked))
                .collect();
            candidates(&problem, &places(&staying), load(observed, forecast.vertical), self.needed())
        });
        Explained {
            rate: forecast.rate,
            ready_for: forecast.vertical * margin,
            ready_for_cold: forecast.cold * margin,
            burstiness: forecast.arrival_scv,
            margin,
            request: estimate.map(|estimate| Request {
                gpu_ms: estimate.gpu.millis_f64(),
                uncertainty: estimate.uncertainty,
                beside_ms: estimate.overhead.millis_f64(),
            }),
            latency_ms: (count > 0.0).then(|| latencies.iter().sum::<f64>() / count),
            candidates: candidates.unwrap_or_default(),
        }
    }
}

/// Plans with as many replicas as serve: the floor, the quota that is needed and the one below it, and the ceiling. And the
/// least quota with one less and one more; the ceiling where none does.
fn candidates(
    problem: &Problem<'_>,
    places: &[Place],
    load: Load<'_>,
    needed: Option<Quota>,
) -> Vec<Candidate> {
    let grid = problem.grid();
    let present = super::function::number(places.len());
    let Some((&floor, &ceiling)) = grid.first().zip(grid.last()) else { return Vec::new() };
    let mut all = Vec::new();
    for replicas in [present.checked_sub(1).filter(|&fewer| fewer > 0), Some(present), present.checked_add(1)]
    {
        let Some(replicas) = replicas.filter(|&replicas| replicas > 0) else { continue };
        let places = problem.extended(places, replicas);
        let quotas: BTreeSet<Quota> = if replicas == present {
            let below = needed.and_then(|needed| grid.iter().rev().find(|&&quota| quota < needed).copied());
            [Some(floor), below, needed, Some(ceiling)].into_iter().flatten().collect()
        } else {
            BTreeSet::from([problem.level(&places, load, needed).unwrap_or(ceiling)])
        };
        let is_chosen = |quota| replicas == present && needed == Some(quota);
        all.extend(
            quotas.into_iter().map(|quota| candidate(problem, &places, quota, load, is_chosen(quota))),
        );
    }
    all
}

fn candidate(
    problem: &Problem<'_>,
    places: &[Place],
    quota: Quota,
    load: Load<'_>,
    is_chosen: bool,
) -> Candidate {
    let latency = problem.latency(places, quota, load) * 1e3;
    Candidate {
        replicas: super::function::number(places.len()),
        quota_percent: quota.percent(),
        gpus: problem.cost(places, quota).gpus(),
        latency_ms: latency.is_finite().then_some(latency),
        refused: problem.refusal(places, quota, load).map(|refusal| refusal.to_string()),
        is_chosen,
    }
}
