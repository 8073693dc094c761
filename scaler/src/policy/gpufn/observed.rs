//! What one function has shown so far: demand, service time, latency, idleness.
//!
//! Owns the memory between decisions and how it is brought up to date. It decides nothing.

use std::collections::{BTreeSet, VecDeque};

use gpu_share::annotations::Slo;
use gpu_share::latency::Profiles;
use gpu_share::units::Nanos;

use super::Tuning;
use crate::demand::{Demand, Forecast, Recent};
use crate::plan::{FORECAST_PART, WAIT_PART};
use crate::policy::rows::Others;
use crate::policy::{FunctionView, ReplicaState};
use crate::profile::{Estimate, Observation, ServiceTime, Undisturbed};

/// Latencies are looked at for so long.
const RECENT: Nanos = Nanos::from_secs(2);
/// Latencies count for the margin when the plan has been sound for so long: before, the queue is an earlier one.
const SETTLED: Nanos = Nanos::from_secs(2);

/// A row in which others are at work for less than this part of the time is quiet.
const QUIET: f64 = 0.05;

/// The memory of one function.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    demand: Demand,
    service: ServiceTime,
    /// When requests finished, and their latency; oldest first.
    latencies: VecDeque<(Nanos, Nanos)>,
    /// Replicas that served at the last decision.
    served: BTreeSet<String>,
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
        let miss = view.wish.slo.map_or(0.05, |slo| 1.0 - slo.percentile);
        Self {
            // A cold start too many costs more than the grants that bridge one too few, so its forecast is narrower.
            demand: Demand::new(FORECAST_PART * miss, tuning.vertical, 0.5 * miss),
            service: ServiceTime::of(&view.wish, profiles),
            latencies: VecDeque::new(),
            served: BTreeSet::new(),
            in_flight: 0,
            forecast: Forecast { arrival_scv: 1.0, ..Forecast::default() },
            active: now,
            sound_since: None,
            margin: 1.0,
        }
    }

    /// Takes in a view.
    pub(super) fn update(&mut self, now: Nanos, view: &FunctionView, others: &[Others], tuning: &Tuning) {
        self.forecast = self.demand.observe(now, view.arrivals, view.cold_start);
        self.service.observe(&self.observation(view, others));
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
        self.served = serving.map(|replica| replica.id.clone()).collect();
    }

    pub(super) fn estimate(&self) -> Option<Estimate> {
        self.service.estimate()
    }

    /// Arrivals of the last minute.
    pub(super) fn recent_arrivals(&self) -> &Recent {
        self.demand.recent()
    }

    /// Latencies of the last two seconds.
    pub(super) fn recent(&self) -> impl Iterator<Item = Nanos> {
        self.latencies.iter().map(|&(_, latency)| latency)
    }

    /// What the interval since the last decision says of the service time. Only replicas that served before count:
    /// loading a model is GPU time too.
    fn observation(&self, view: &FunctionView, others: &[Others]) -> Observation {
        let served = |id: &str| self.served.contains(id);
        let used =
            view.replicas.iter().filter(|replica| served(&replica.id)).map(|replica| replica.used).sum();
        let finished = if self.served.is_empty() { 0 } else { view.latencies.len() };
        Observation {
            used,
            finished: u64::try_from(finished).unwrap_or(u64::MAX),
            undisturbed: self.undisturbed(view, others),
        }
    }

    /// A request that was alone, or the fastest of several; only on as many replicas as before. It had the ceiling if
    /// nobody else in the row was at work, and at most the ceiling in any case.
    fn undisturbed(&self, view: &FunctionView, others: &[Others]) -> Option<Undisturbed> {
        let ready = view.replicas.iter().zip(others).filter(|(r, _)| r.state == ReplicaState::Ready);
        let (count, quiet) = ready
            .fold((0, true), |(count, quiet), (_, others)| (count + 1, quiet && others.contended < QUIET));
        if count != self.served.len() {
            return None;
        }
        let latency = view.latencies.iter().copied().min()?;
        let alone = self.in_flight == 0 && view.in_flight == 0 && view.held == 0 && view.arrivals == 1;
        let alone = alone && quiet && view.latencies.len() == 1;
        Some(Undisturbed { latency, quota: view.wish.share.ceiling, alone })
    }

    /// Integral feedback: late requests raise the margin on the demand, others lower it, so that it settles where as
    /// many are late as are planned to be, however far off the formulas are. Only while the plan claims
    /// to suffice.
    fn adapt_margin(&mut self, now: Nanos, latencies: &[Nanos], slo: Slo, tuning: &Tuning) {
        if self.sound_since.is_none_or(|since| now.since(since) < SETTLED) {
            return;
        }
        for latency in latencies {
            let late = if *latency > slo.bound { 1.0 } else { 0.0 };
            self.margin += tuning.margin_gain * (late - WAIT_PART * (1.0 - slo.percentile));
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
