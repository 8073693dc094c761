//! What one function has shown so far: demand, service time, latency, idleness.
//!
//! Owns the memory between decisions and how it is brought up to date. It decides nothing.

use std::collections::{BTreeMap, VecDeque};

use gpu_share::annotations::Slo;
use gpu_share::latency::Profiles;
use gpu_share::units::{Nanos, Quota};

use super::Tuning;
use crate::demand::{Demand, Forecast};
use crate::plan::FORECAST_PART;
use crate::policy::{FunctionView, ReplicaState};
use crate::profile::{Estimate, Observation, ServiceTime, Undisturbed};

/// Latencies are looked at for so long.
const RECENT: Nanos = Nanos::from_secs(2);
/// Latencies count for the margin when the plan has been sound for so long: before, the queue is an earlier one.
const SETTLED: Nanos = Nanos::from_secs(2);

/// The memory of one function.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    demand: Demand,
    service: ServiceTime,
    /// When requests finished, and their latency; oldest first.
    latencies: VecDeque<(Nanos, Nanos)>,
    /// Grant of each replica that served at the last decision.
    grants: BTreeMap<String, Quota>,
    in_flight: u32,
    /// What is to be ready for.
    pub(super) forecast: Forecast,
    /// Last time that there was a request anywhere.
    pub(super) active: Nanos,
    /// Since when the plan bears the demand, if it does.
    pub(super) sound_since: Option<Nanos>,
    /// Factor on the demand: above 1 where the formulas promise too much, below where they promise too little.
    pub(super) margin: f64,
}

impl Observed {
    pub(super) fn new(now: Nanos, view: &FunctionView, profiles: &Profiles, tuning: &Tuning) -> Self {
        let surface = view.wish.model.as_deref().and_then(|model| profiles.get(model));
        let miss = view.wish.slo.map_or(0.05, |slo| 1.0 - slo.percentile);
        Self {
            // A cold start too many costs more than the grants that bridge one too few, so its forecast is narrower.
            demand: Demand::new(FORECAST_PART * miss, tuning.vertical, 0.5 * miss),
            service: ServiceTime::new(surface.map(|surface| surface.gpu_time(view.wish.share.sm, 1))),
            latencies: VecDeque::new(),
            grants: BTreeMap::new(),
            in_flight: 0,
            forecast: Forecast { arrival_scv: 1.0, ..Forecast::default() },
            active: now,
            sound_since: None,
            margin: 1.0,
        }
    }

    /// Takes in a view.
    pub(super) fn update(&mut self, now: Nanos, view: &FunctionView, tuning: &Tuning) {
        self.forecast = self.demand.observe(now, view.arrivals, view.cold_start);
        self.service.observe(&self.observation(view));
        self.latencies.extend(view.latencies.iter().map(|&latency| (now, latency)));
        while self.latencies.pop_front_if(|&mut (at, _)| now.since(at) > RECENT).is_some() {}
        if let Some(slo) = view.wish.slo {
            self.adapt_margin(now, &view.latencies, slo, tuning);
        }
        if is_active(view) {
            self.active = now;
        }
        self.in_flight = view.in_flight;
        let serving = view.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready);
        self.grants = serving.map(|replica| (replica.id.clone(), replica.grant)).collect();
    }

    pub(super) fn estimate(&self) -> Option<Estimate> {
        self.service.estimate()
    }

    /// Latencies of the last two seconds.
    pub(super) fn recent(&self) -> impl Iterator<Item = Nanos> {
        self.latencies.iter().map(|&(_, latency)| latency)
    }

    /// What the interval since the last decision says of the service time. Only replicas that served before count:
    /// loading a model is GPU time too.
    fn observation(&self, view: &FunctionView) -> Observation {
        let served = |id: &str| self.grants.contains_key(id);
        let used =
            view.replicas.iter().filter(|replica| served(&replica.id)).map(|replica| replica.used).sum();
        let finished = if self.grants.is_empty() { 0 } else { view.latencies.len() };
        Observation {
            used,
            finished: u64::try_from(finished).unwrap_or(u64::MAX),
            undisturbed: self.undisturbed(view),
        }
    }

    /// A request that was alone, or the fastest of several; only while the grant has not changed, and on as many
    /// replicas as before.
    fn undisturbed(&self, view: &FunctionView) -> Option<Undisturbed> {
        let grant = *self.grants.values().next()?;
        let same =
            view.replicas.iter().filter(|r| r.state == ReplicaState::Ready && r.grant == grant).count();
        if same != self.grants.len() || self.grants.values().any(|&before| before != grant) {
            return None;
        }
        let latency = view.latencies.iter().copied().min()?;
        let alone = self.in_flight == 0 && view.in_flight == 0 && view.held == 0 && view.arrivals == 1;
        Some(Undisturbed { latency, grant, alone: alone && view.latencies.len() == 1 })
    }

    /// Integral feedback: late requests raise the margin on the demand, others lower it, so that it settles where half
    /// of the misses that the objective allows come about, however far off the formulas are. Only while the plan claims
    /// to suffice.
    fn adapt_margin(&mut self, now: Nanos, latencies: &[Nanos], slo: Slo, tuning: &Tuning) {
        if self.sound_since.is_none_or(|since| now.since(since) < SETTLED) {
            return;
        }
        for latency in latencies {
            let late = if *latency > slo.bound { 1.0 } else { 0.0 };
            self.margin += tuning.margin_gain * (late - 0.5 * (1.0 - slo.percentile));
            self.margin = self.margin.max(tuning.margin_least).min(tuning.margin_most);
        }
    }
}

/// Whether there was a request since the last decision, or is one anywhere.
pub(super) fn is_active(view: &FunctionView) -> bool {
    view.arrivals > 0
        || view.held > 0
        || view.in_flight > 0
        || !view.latencies.is_empty()
        || view.replicas.iter().any(|replica| replica.in_flight > 0)
}
