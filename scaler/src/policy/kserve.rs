//! The policy `kserve`: whole GPUs, and Knative's concurrency autoscaler. What gpufn is compared with.
//!
//! Owns the rules of Knative's pod autoscaler (docs of Knative Serving, "Configuring the autoscaler") as `KServe` runs
//! them on GPUs. It never changes a grant and never parks.

use std::collections::{BTreeMap, VecDeque};

use gpu_share::annotations::Wish;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};

use super::{Action, Decision, FunctionView, Policy, ReplicaState};

/// Knative's settings, with its defaults but for the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concurrency {
    /// Requests at once that a replica is meant to have at most: 15, as in HAS-GPU's runs of `KServe`.
    pub target: f64,
    /// Part of the target that is aimed at: 70 %.
    pub utilisation: f64,
    /// Window of the mean concurrency: 60 s.
    pub stable_window: Nanos,
    /// Window in which a panic is looked for, and by which a panic scales: 6 s.
    pub panic_window: Nanos,
    /// How many times the ready replicas the panic window must need to set off a panic: 2.
    pub panic_threshold: f64,
    /// How many times the ready replicas may be wanted at once, and the part of them that may be left: 1000 and 1/2.
    pub max_scale_up: f64,
    /// See `max_scale_up`.
    pub max_scale_down: f64,
    /// Fewer replicas are wanted only when they suffice for so long: 0 s.
    pub scale_down_delay: Nanos,
    /// Whether the last replica goes too, where a function allows it: not with GPUs under `KServe`.
    pub to_zero: bool,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            target: 15.0,
            utilisation: 0.7,
            stable_window: Nanos::from_secs(60),
            panic_window: Nanos::from_secs(6),
            panic_threshold: 2.0,
            max_scale_up: 1000.0,
            max_scale_down: 2.0,
            scale_down_delay: Nanos::ZERO,
            to_zero: false,
        }
    }
}

/// The policy `kserve`.
#[derive(Debug, Default)]
pub struct Kserve {
    concurrency: Concurrency,
    functions: BTreeMap<String, Function>,
}

/// What is remembered of one function.
#[derive(Debug, Default)]
struct Function {
    /// Time of each view, and the requests that were at replicas or on the way to one; oldest first.
    seen: VecDeque<(Nanos, f64)>,
    /// Last time that the panic window needed too much, and the most replicas wanted in this panic.
    panic: Option<(Nanos, u32)>,
    /// Replicas that were wanted in the scale-down delay.
    wanted: VecDeque<(Nanos, u32)>,
}

impl Kserve {
    /// The policy with other settings.
    pub fn new(concurrency: Concurrency) -> Self {
        Self { concurrency, functions: BTreeMap::new() }
    }
}

impl Policy for Kserve {
    fn name(&self) -> &'static str {
        "kserve"
    }

    fn share(&self, _: &Wish, gpu_memory: Bytes) -> Share {
        Share::whole_gpu(gpu_memory)
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        super::forget(&mut self.functions, functions);
        functions
            .iter()
            .filter_map(|view| {
                let function = self.functions.entry(view.name.clone()).or_default();
                function.decide(now, view, &self.concurrency)
            })
            .collect()
    }
}

impl Function {
    fn decide(&mut self, now: Nanos, view: &FunctionView, settings: &Concurrency) -> Option<Decision> {
        self.seen.push_back((now, f64::from(view.in_flight) + f64::from(view.held)));
        while self.seen.pop_front_if(|&mut (at, _)| now.since(at) > settings.stable_window).is_some() {}
        let states = || view.replicas.iter().map(|replica| replica.state);
        let ready = counted(states().filter(|&state| state == ReplicaState::Ready).count());
        let present = counted(states().filter(|&state| state != ReplicaState::Draining).count());
        let (stable, panic) = (self.mean(now, settings.stable_window), self.mean(now, settings.panic_window));
        let wanted = self.wanted(now, ready, (stable, panic), settings);
        // The fewest that a GPU service of KServe has is one, and what is starting is not given up.
        let least = view.wish.replicas.min.max(u32::from(!settings.to_zero));
        let replicas = self.delayed(now, wanted, settings).clamp(least, view.wish.replicas.max.max(least));
        let mode = if self.panic.is_some() { "panic" } else { "stable" };
        let reason = format!("{}: concurrency {stable:.1} over 60 s, {panic:.1} over 6 s, {mode}", view.name);
        (replicas != present)
            .then(|| Decision { action: Action::Scale { function: view.name.clone(), replicas }, reason })
    }

    /// Replicas for the stable window's concurrency, or in a panic for the panic window's if that is more, never less
    /// than before in the same panic.
    fn wanted(&mut self, now: Nanos, ready: u32, (stable, panic): (f64, f64), settings: &Concurrency) -> u32 {
        let base = f64::from(ready.max(1));
        let (most, fewest) =
            ((base * settings.max_scale_up).ceil(), (base / settings.max_scale_down).floor());
        let replicas = |concurrency: f64| {
            let wanted = (concurrency / (settings.target * settings.utilisation)).ceil();
            whole(wanted.clamp(fewest.min(most), most))
        };
        let (stable, urgent) = (replicas(stable), replicas(panic));
        if panic / (settings.target * settings.utilisation) / base >= settings.panic_threshold {
            let highest = self.panic.map_or(0, |(_, highest)| highest);
            self.panic = Some((now, highest));
        }
        if self.panic.is_some_and(|(last, _)| now.since(last) > settings.stable_window) {
            self.panic = None;
        }
        match &mut self.panic {
            Some((_, highest)) => {
                *highest = (*highest).max(urgent).max(stable).max(ready);
                *highest
            }
            None => stable,
        }
    }

    fn delayed(&mut self, now: Nanos, wanted: u32, settings: &Concurrency) -> u32 {
        self.wanted.push_back((now, wanted));
        while self.wanted.pop_front_if(|&mut (at, _)| now.since(at) > settings.scale_down_delay).is_some() {}
        self.wanted.iter().map(|&(_, wanted)| wanted).max().unwrap_or(wanted)
    }

    /// Mean concurrency over `window`, or over what has been seen if that is less.
    fn mean(&self, now: Nanos, window: Nanos) -> f64 {
        let values = self.seen.iter().rev().take_while(|&&(at, _)| now.since(at) <= window);
        let (sum, count) = values.fold((0.0, 0.0), |(sum, count), &(_, value)| (sum + value, count + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

fn counted(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(replicas: f64) -> u32 {
    replicas as u32
}
