//! The policy `fast-gshare`: FaST-GShare (Gu et al., ICPP 2023, arXiv 2309.00558).
//!
//! Rule: the rate minus what the pods bear is filled with pods of the configuration that bears most per area, and one that
//! just bears the rest; too much is taken away from the pods that bear least per area. Pods go where maximal rectangles
//! of quota and SM share have room, a new GPU only if none has. No pod is ever resized.
//!
//! Its own curves make the smallest pod the best per area, with latencies of seconds; so only configurations count here
//! whose latency keeps the objective.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use gpu_share::annotations::Wish;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};

use self::rectangles::Bin;
use super::{Action, Decision, FunctionView, LatencyOf, Policy, ReplicaState};

mod rectangles;

/// Time between two decisions: 1 s in the code of 2023.
const TICK: Nanos = Nanos::from_secs(1);
/// Window of the measured rate.
const RATE_WINDOW: Nanos = Nanos::from_secs(10);
/// Configurations that its profiler tries, percent.
const SMS: [u8; 7] = [6, 12, 24, 50, 60, 80, 100];
const QUOTAS: [u8; 5] = [20, 40, 60, 80, 100];

/// The policy `fast-gshare`.
pub struct FastGshare {
    gpus: u32,
    latency: LatencyOf,
    decided: Option<Nanos>,
    arrivals: BTreeMap<String, VecDeque<(Nanos, u64)>>,
}

impl fmt::Debug for FastGshare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastGshare").field("gpus", &self.gpus).finish_non_exhaustive()
    }
}

/// A configuration, and the requests a second that it bears.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Configuration {
    sm: SmShare,
    quota: Quota,
    bears: f64,
}

impl Configuration {
    /// Requests a second per area: RPR.
    fn per_area(&self) -> f64 {
        self.bears / (self.sm.fraction() * self.quota.fraction())
    }

    fn size(&self) -> (u32, u32) {
        (self.quota.ppm() / 1_000, self.sm.percent().into())
    }
}

/// What is bound on each GPU.
#[derive(Clone, Debug)]
struct Books {
    bins: Vec<Bin>,
    memory: Vec<Bytes>,
    card: Bytes,
}

impl Books {
    /// As its code does, packed anew from the list of pods.
    fn of(functions: &[FunctionView], gpus: u32) -> Self {
        let count = usize::try_from(gpus).unwrap_or(0);
        let card = functions.iter().map(|view| view.gpu_memory).max().unwrap_or_default();
        let mut books = Self { bins: vec![Bin::default(); count], memory: vec![Bytes::ZERO; count], card };
        for replica in functions.iter().flat_map(|view| &view.replicas) {
            let gpu = usize::try_from(replica.gpu).unwrap_or(usize::MAX);
            if let (Some(bin), Some(memory)) = (books.bins.get_mut(gpu), books.memory.get_mut(gpu)) {
                let size = (replica.share.floor.ppm() / 1_000, u32::from(replica.share.sm.percent()));
                bin.insert(size);
                *memory += replica.share.memory;
            }
        }
        books
    }

    /// Of the GPUs in use that have a hole, the one with the least area left; else an unused one.
    fn place(&mut self, (width, height): (u32, u32), memory: Bytes) -> Option<u32> {
        let fits =
            |gpu: &usize| self.bins[*gpu].fits((width, height)) && self.memory[*gpu] + memory <= self.card;
        let open = (0..self.bins.len()).filter(|&gpu| self.bins[gpu].used() > 0).filter(fits);
        let gpu = open.min_by_key(|&gpu| self.bins[gpu].left()).or_else(|| {
            (0..self.bins.len()).find(|&gpu| self.bins[gpu].used() == 0 && memory <= self.card)
        })?;
        self.bins[gpu].insert((width, height));
        self.memory[gpu] += memory;
        u32::try_from(gpu).ok()
    }
}

impl FastGshare {
    /// The policy on `gpus` GPUs, with the latencies that its profiler measured.
    pub fn new(gpus: u32, latency: LatencyOf) -> Self {
        Self { gpus, latency, decided: None, arrivals: BTreeMap::new() }
    }

    fn rate(&mut self, now: Nanos, view: &FunctionView) -> f64 {
        let seen = self.arrivals.entry(view.name.clone()).or_default();
        seen.push_back((now, view.arrivals));
        while seen.pop_front_if(|&mut (at, _)| now.since(at) >= RATE_WINDOW).is_some() {}
        let count = seen.iter().fold(0_u64, |sum, &(_, count)| sum.saturating_add(count));
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / RATE_WINDOW.secs_f64()
    }

    /// What a configuration bears: a batch after the other.
    fn bears(&self, wish: &Wish, sm: SmShare, quota: Quota) -> Option<(Nanos, f64)> {
        let latency = (self.latency)(wish.model.as_deref()?, wish.batch, sm, quota)?;
        Some((latency, f64::from(wish.batch) / latency.secs_f64().max(1e-9)))
    }

    /// Configurations whose latency keeps the objective, or the fastest one if none does.
    fn configurations(&self, wish: &Wish) -> Vec<Configuration> {
        let percents = SMS.iter().flat_map(|&sm| QUOTAS.iter().map(move |&quota| (sm, quota)));
        let shares = percents.filter_map(|(sm, quota)| {
            Some((SmShare::from_percent(sm).ok()?, Quota::from_percent(quota).ok()?))
        });
        let mut all: Vec<_> = shares
            .filter_map(|(sm, quota)| {
                let (latency, bears) = self.bears(wish, sm, quota)?;
                Some((latency, Configuration { sm, quota, bears }))
            })
            .collect();
        all.sort_by_key(|&(latency, _)| latency);
        let bound = wish.slo.map_or(Nanos(u64::MAX), |slo| slo.bound);
        let keeping = all.iter().filter(|&&(latency, _)| latency <= bound).count().max(1);
        all.into_iter().take(keeping).map(|(_, configuration)| configuration).collect()
    }

    fn scale(&self, view: &FunctionView, rate: f64, books: &mut Books) -> Vec<Action> {
        let wish = &view.wish;
        let staying = view.replicas.iter().filter(|replica| replica.state != ReplicaState::Draining);
        let mut pods: Vec<(&str, Configuration)> = staying
            .filter_map(|replica| {
                let (sm, quota) = (replica.share.sm, replica.share.floor);
                let bears = self.bears(wish, sm, quota)?.1;
                Some((replica.id.as_str(), Configuration { sm, quota, bears }))
            })
            .collect();
        let missing = rate - pods.iter().map(|(_, pod)| pod.bears).sum::<f64>();
        if missing > 0.0 || pods.is_empty() {
            let room = wish.replicas.max.saturating_sub(u32::try_from(pods.len()).unwrap_or(u32::MAX));
            return self.up(view, missing.max(f64::MIN_POSITIVE), room, books);
        }
        pods.sort_by(|(_, a), (_, b)| a.per_area().total_cmp(&b.per_area()));
        let (mut surplus, mut actions) = (-missing, Vec::new());
        for (id, pod) in pods.iter().take(pods.len() - 1) {
            if pod.bears > surplus {
                break;
            }
            surplus -= pod.bears;
            actions.push(Action::Stop { replica: (*id).to_string() });
        }
        actions
    }

    /// Saturate, then residual.
    fn up(&self, view: &FunctionView, mut missing: f64, room: u32, books: &mut Books) -> Vec<Action> {
        let configurations = self.configurations(&view.wish);
        let Some(best) = configurations.iter().max_by(|a, b| a.per_area().total_cmp(&b.per_area())) else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        for _ in 0..room {
            if missing <= 0.0 {
                break;
            }
            let rest = configurations.iter().filter(|configuration| configuration.bears > missing);
            let residual = rest.min_by(|a, b| a.bears.total_cmp(&b.bears));
            let chosen = if missing >= best.bears { best } else { residual.unwrap_or(best) };
            let memory = view.wish.share.memory;
            let Some(gpu) = books.place(chosen.size(), memory) else { break };
            let Ok(share) = Share::new(chosen.sm, chosen.quota, chosen.quota, memory) else { break };
            missing -= chosen.bears;
            actions.push(Action::Start { function: view.name.clone(), share, gpu });
        }
        actions
    }
}

impl Policy for FastGshare {
    fn name(&self) -> &'static str {
        "fast-gshare"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn places(&self) -> bool {
        true
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        let rates: Vec<_> = functions.iter().map(|view| self.rate(now, view)).collect();
        if self.decided.is_some_and(|at| now.since(at) < TICK) {
            return Vec::new();
        }
        self.decided = Some(now);
        let mut books = Books::of(functions, self.gpus);
        let mut decisions = Vec::new();
        for (view, rate) in functions.iter().zip(rates) {
            let actions = self.scale(view, rate, &mut books);
            decisions.extend(actions.into_iter().map(|action| Decision {
                action,
                reason: format!("{}: {rate:.1}/s measured over 10 s", view.name),
            }));
        }
        decisions
    }
}
