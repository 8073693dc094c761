//! The policy `hpa`: Kubernetes' horizontal pod autoscaler on slices of a fixed size, by the utilisation of their GPU time.
//!
//! Rule (Kubernetes' documentation, "Horizontal Pod Autoscaling"): every 15 s, replicas = ⌈ready · utilisation / target⌉,
//! nothing within 10 % of the target; up by twice as many or 4 more in 15 s, down to the most that was wanted in 300 s.

use std::collections::{BTreeMap, VecDeque};

use gpu_share::annotations::Wish;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};

use super::{Action, Decision, FunctionView, Policy, ReplicaState, fixed_slice};

/// Time between two decisions.
const SYNC: Nanos = Nanos::from_secs(15);
/// Utilisation that is aimed at, and how far off it nothing is done.
const TARGET: f64 = 0.7;
const TOLERANCE: f64 = 0.1;
/// The most that was wanted in this time is kept.
const STABILISATION: Nanos = Nanos::from_secs(300);

/// The policy `hpa`.
#[derive(Debug, Default)]
pub struct Hpa {
    functions: BTreeMap<String, Function>,
}

/// What is remembered of one function since the last decision.
#[derive(Debug, Default)]
struct Function {
    synced: Nanos,
    looked: Nanos,
    /// GPU time used, and that it could have used.
    used: f64,
    granted: f64,
    wanted: VecDeque<(Nanos, u32)>,
}

impl Function {
    fn decide(&mut self, now: Nanos, view: &FunctionView) -> Option<Decision> {
        let ready: Vec<_> = view.replicas.iter().filter(|r| r.state == ReplicaState::Ready).collect();
        let passed = now.since(self.looked).secs_f64();
        self.looked = now;
        self.used += ready.iter().map(|replica| replica.used.secs_f64()).sum::<f64>();
        self.granted += ready.iter().map(|replica| replica.grant.fraction() * passed).sum::<f64>();
        if now.since(self.synced) < SYNC || ready.is_empty() {
            return None;
        }
        self.synced = now;
        let utilisation = core::mem::take(&mut self.used) / core::mem::take(&mut self.granted).max(1e-9);
        let (count, present) = (
            count(ready.len()),
            count(view.replicas.iter().filter(|r| r.state != ReplicaState::Draining).count()),
        );
        let ratio = utilisation / TARGET;
        let wanted =
            if (ratio - 1.0).abs() <= TOLERANCE { present } else { whole((f64::from(count) * ratio).ceil()) };
        let wanted = wanted.min((2 * present).max(present + 4));
        self.wanted.push_back((now, wanted));
        while self.wanted.pop_front_if(|&mut (at, _)| now.since(at) > STABILISATION).is_some() {}
        let kept = self.wanted.iter().map(|&(_, wanted)| wanted).max().unwrap_or(wanted);
        let least = view.wish.replicas.min.max(1);
        let replicas = if wanted >= present { wanted } else { kept.min(present) };
        let replicas = replicas.clamp(least, view.wish.replicas.max.max(least));
        (replicas != present).then(|| Decision {
            action: Action::Scale { function: view.name.clone(), replicas },
            reason: format!("{}: {:.0} % of the GPU time of {count} used", view.name, 100.0 * utilisation),
        })
    }
}

impl Policy for Hpa {
    fn name(&self) -> &'static str {
        "hpa"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        fixed_slice(wish)
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        super::forget(&mut self.functions, functions);
        let mut decisions = Vec::new();
        for view in functions {
            let fresh = || Function { synced: now, looked: now, ..Function::default() };
            let function = self.functions.entry(view.name.clone()).or_insert_with(fresh);
            decisions.extend(function.decide(now, view));
        }
        decisions
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(replicas: f64) -> u32 {
    replicas as u32
}
