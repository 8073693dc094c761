//! The policy `themis`: vertical at once, horizontal when it has settled (Razavi et al., "A tale of two scales: reconciling
//! horizontal and vertical scaling for inference serving systems", arXiv 2407.14843).
//!
//! Rule: for a rate, the cheapest (replicas, quota) whose throughput bears it and whose latency, waiting for one batch
//! before it included, keeps the objective. More load first raises the quotas of the replicas that are there; once the
//! rate has been steady, the cheapest plan takes its place, and what was raised falls back when its replicas are ready.
//! Its forecast by a neural network is the largest rate of the last 10 s here, which is what it falls back to.

use std::collections::{BTreeMap, VecDeque};

use gpu_share::annotations::Wish;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota};

use super::{Action, Decision, FunctionView, Policy, ReplicaState, ReplicaView};

/// The rate is counted over so long, and its largest value taken over so long.
const COUNTED: Nanos = Nanos::from_secs(1);
const LOOKED_BACK: Nanos = Nanos::from_secs(10);
/// A plan is made anew when the rate has stayed within this part for so long.
const STEADY: Nanos = Nanos::from_secs(10);
const STEADY_PART: f64 = 0.3;
/// Quotas that are tried, percent.
const STEP: u8 = 10;

/// The policy `themis`.
#[derive(Debug)]
pub struct Themis {
    profiles: Profiles,
    functions: BTreeMap<String, Function>,
}

/// What is remembered of one function.
#[derive(Debug, Default)]
struct Function {
    arrivals: VecDeque<(Nanos, u64)>,
    rates: VecDeque<(Nanos, f64)>,
    planned: Nanos,
}

/// What a function needs of its replicas.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// GPU seconds of a request.
    work: f64,
    rate: f64,
    bound: f64,
}

impl Need {
    /// The smallest quota with which `replicas` bear the rate and keep the bound: a request waits for one before it.
    fn quota(&self, replicas: u32, share: &Share) -> Option<Quota> {
        let percents = (1..=100 / STEP).map(|step| Quota::from_percent(step * STEP)).filter_map(Result::ok);
        percents.filter(|quota| (share.floor..=share.ceiling).contains(quota)).find(|quota| {
            let takes = self.work / quota.fraction();
            self.rate * takes <= f64::from(replicas) && 2.0 * takes <= self.bound
        })
    }

    /// The cheapest number of replicas and their quota.
    fn cheapest(&self, view: &FunctionView) -> Option<(u32, Quota)> {
        let (share, bounds) = (view.wish.share, view.wish.replicas);
        let plans = (bounds.min.max(1)..=bounds.max).filter_map(|n| Some((n, self.quota(n, &share)?)));
        plans.min_by_key(|&(n, quota)| share.dominant_at(quota, view.gpu_memory).ppm() * u64::from(n))
    }
}

impl Themis {
    /// The policy with these profiles.
    pub fn new(profiles: Profiles) -> Self {
        Self { profiles, functions: BTreeMap::new() }
    }

    fn scale(&mut self, now: Nanos, view: &FunctionView) -> Vec<Decision> {
        let function = self.functions.entry(view.name.clone()).or_default();
        let rate = function.rate(now, view.arrivals);
        let surface = view.wish.model.as_deref().and_then(|model| self.profiles.get(model));
        let Some(work) = surface.map(|surface| surface.gpu_time(view.wish.share.sm, 1).secs_f64()) else {
            return Vec::new();
        };
        let bound = view.wish.slo.map_or(f64::INFINITY, |slo| slo.bound.secs_f64());
        let need = Need { work, rate, bound };
        let ready: Vec<_> = view.replicas.iter().filter(|r| r.state == ReplicaState::Ready).collect();
        let present = view.replicas.iter().filter(|r| r.state != ReplicaState::Draining).count();
        let [count, present] = [ready.len(), present].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let reason = format!("{}: {rate:.1}/s at most in 10 s", view.name);
        // Stage one: what is there bears what comes, as far as it can.
        let quota = need.quota(count, &view.wish.share).unwrap_or(view.wish.share.ceiling);
        let mut decisions: Vec<_> =
            ready.iter().filter_map(|replica| grant(replica, quota, &reason)).collect();
        // Stage two: the cheapest plan, when the rate has settled or the vertical room is used up.
        let (wanted, _) = need.cheapest(view).unwrap_or((view.wish.replicas.max, quota));
        let short = wanted > present && need.quota(present, &view.wish.share).is_none();
        let settled = function.is_steady() && now.since(function.planned) >= STEADY;
        if wanted != present && (short || settled) {
            function.planned = now;
            decisions.push(Decision {
                action: Action::Scale { function: view.name.clone(), replicas: wanted },
                reason,
            });
        }
        decisions
    }
}

fn grant(replica: &ReplicaView, quota: Quota, reason: &str) -> Option<Decision> {
    let quota = quota.min(replica.room).max(replica.share.floor);
    (quota != replica.grant).then(|| Decision {
        action: Action::Grant { replica: replica.id.clone(), quota },
        reason: reason.into(),
    })
}

impl Function {
    /// The largest rate of the last seconds.
    fn rate(&mut self, now: Nanos, arrivals: u64) -> f64 {
        self.arrivals.push_back((now, arrivals));
        while self.arrivals.pop_front_if(|&mut (at, _)| now.since(at) >= COUNTED).is_some() {}
        let count = self.arrivals.iter().fold(0_u64, |sum, &(_, count)| sum.saturating_add(count));
        let rate = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / COUNTED.secs_f64();
        self.rates.push_back((now, rate));
        while self.rates.pop_front_if(|&mut (at, _)| now.since(at) > LOOKED_BACK).is_some() {}
        self.rates.iter().map(|&(_, rate)| rate).fold(0.0, f64::max)
    }

    /// Whether the mean of the older half is near that of the newer one.
    fn is_steady(&self) -> bool {
        let half = self.rates.len() / 2;
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0.0_f64), |(sum, count), value| (sum + value, count + 1.0));
            sum / count.max(1.0)
        };
        let older = mean(&mut self.rates.iter().take(half).map(|&(_, rate)| rate));
        let newer = mean(&mut self.rates.iter().skip(half).map(|&(_, rate)| rate));
        (newer - older).abs() <= STEADY_PART * older.max(newer)
    }
}

impl Policy for Themis {
    fn name(&self) -> &'static str {
        "themis"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        super::forget(&mut self.functions, functions);
        functions.iter().flat_map(|view| self.scale(now, view)).collect()
    }
}
