//! How many replicas a function needs, from what its replicas show: what KEDA is told.
//!
//! Owns the memory of one function and the judgement over it. Pure: it is told what was read and what time it is. The demand is
//! [`crate::demand`]'s, how many replicas bear it is [`crate::plan`]'s. Several scalers side by side must say the same, so all
//! that is remembered fades within minutes, and comes from what each of them can read.

use gpu_share::annotations::{Slo, Wish};
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota};
use serde::Serialize;

use crate::demand::{Demand, Forecast};
use crate::keda::metadata::Terms;
use crate::keda::metric;
use crate::plan::{FORECAST_PART, Load, Problem};
use crate::policy::Tuning;
use crate::profile::{Estimate, Observation, ServiceTime};
use crate::traffic::{Interval, Meter, Reading, TooFew};

/// A function counts as active for so long after its last request: KEDA asks every 30 s by default, and must not miss one that
/// gets a request now and then. A scaler that has watched for less does not know.
const ACTIVE_FOR: Nanos = Nanos::from_secs(60);
/// Time between two looks of the autoscaler: what it is told counts for so long before a replica is even started.
const SYNC: Nanos = Nanos::from_secs(15);
/// Requests that wait are to be worked off in this time, besides what comes.
const DRAIN: f64 = 15.0;
/// Seconds over which requests at hand are averaged where they are all that is known.
const AVERAGED: f64 = 8.0;
/// A replica that has just begun has this time to show how long requests take, before those at hand count as load.
const SETTLE: Nanos = Nanos::from_secs(5);
/// Part of its time that a replica is planned to be busy where there is no objective to plan by.
const BUSY: f64 = 0.7;
/// What is told at least of a function that is needed at all, in replicas.
const TRACE: f64 = 0.01;
/// Of a function that has been idle for so long, nothing is remembered of its arrivals.
const FORGOTTEN: Nanos = Nanos::from_secs(600);
/// The forecast for a function without requests.
const NO_DEMAND: Forecast = Forecast { rate: 0.0, vertical: 0.0, cold: 0.0, arrival_scv: 1.0 };
/// Most replicas where nobody says another bound: KEDA's own default.
const MOST: u32 = 100;

/// Everything that is remembered of one function.
#[derive(Clone, Debug)]
pub struct Watched {
    meter: Meter,
    /// Part of the requests that the objective lets be late.
    miss: f64,
    /// Only while there are requests: it takes more memory than all the rest, and most functions are idle most of the time.
    demand: Option<Box<Demand>>,
    forecast: Forecast,
    service: ServiceTime,
    /// Requests at hand, averaged.
    at_hand: f64,
    latest: Interval,
    /// When it was first and last read, since when it has been read again and again, and when it last had a request.
    since: Nanos,
    read: Nanos,
    is_read: bool,
    begun: Nanos,
    active: Option<Nanos>,
}

/// What else is known of a function when its need is asked for.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// Now, on the clock of the readings.
    pub now: Nanos,
    /// What the function asks for, if it asks for a share.
    pub wish: Option<&'a Wish>,
    /// Replicas that there are, those that are starting included.
    pub present: u32,
    /// Whether none of them can be read yet, since all are starting.
    pub is_starting: bool,
    /// Requests that wait in front of the function for a first replica.
    pub held: u32,
    /// The quota that each replica could have, if its grant follows the load; else the present one is all there is.
    pub reach: Option<Quota>,
    /// Memory of the GPUs.
    pub gpu_memory: Bytes,
    /// Π on the nodes.
    pub window: Nanos,
}

/// How a need was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// No request for a while.
    Idle,
    /// By the plan: arrivals, GPU time of a request, objective.
    Plan,
    /// By Little's law: requests at hand over what a replica takes at once.
    AtHand,
}

/// What a function needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Need {
    /// Replicas, the last one as far as it is used.
    pub equivalents: f64,
    /// The metric's value.
    pub value: f64,
    /// Whether there should be any replica.
    pub is_active: bool,
    /// How that was found.
    pub basis: Basis,
    /// One line for people.
    pub reason: String,
}

impl Watched {
    /// Begins at `now`. What is remembered holds for this wish only.
    pub fn new(now: Nanos, wish: Option<&Wish>, profiles: &Profiles) -> Self {
        let miss = wish.and_then(|wish| wish.slo).map_or(0.05, |slo| 1.0 - slo.percentile);
        Self {
            meter: Meter::default(),
            miss,
            demand: None,
            forecast: NO_DEMAND,
            service: wish.map_or_else(ServiceTime::unknown, |wish| ServiceTime::of(wish, profiles)),
            at_hand: 0.0,
            latest: Interval::default(),
            since: now,
            read: now,
            is_read: false,
            begun: now,
            active: None,
        }
    }

    /// Takes in a reading; a replica that is started now could serve after `cold_start`.
    pub fn observe(&mut self, reading: &Reading, cold_start: Nanos) -> Result<(), TooFew> {
        // A source that keeps what it was told may show the same once more.
        if self.is_read && reading.at <= self.read {
            return Ok(());
        }
        let interval = self.meter.advance(reading)?;
        let passed = reading.at.since(self.read);
        if !self.is_read || passed > ACTIVE_FOR {
            // There was no replica to be read.
            (self.begun, self.at_hand) = (reading.at, 0.0);
        } else {
            self.at_hand +=
                (1.0 - (-passed.secs_f64() / AVERAGED).exp()) * (interval.in_flight - self.at_hand);
        }
        self.is_read = true;
        self.forecast(reading.at, interval.arrivals, cold_start + SYNC);
        if interval.served > 0 {
            let (used, finished) = (interval.used, interval.served);
            self.service.observe(&Observation { used, finished, undisturbed: None });
        }
        (self.latest, self.read) = (interval, reading.at);
        if self.is_busy() {
            self.active = Some(reading.at);
        }
        Ok(())
    }

    /// Takes in what came until `now`, to be ready for what comes until a replica could serve `ahead`.
    fn forecast(&mut self, now: Nanos, arrivals: u64, ahead: Nanos) {
        if arrivals > 0 && self.demand.is_none() {
            // The forecasts that the policy `gpufn` decides by.
            let miss = self.miss;
            let mut demand = Demand::new(FORECAST_PART * miss, Tuning::default().vertical, 0.5 * miss);
            demand.observe(self.read, 0, ahead);
            self.demand = Some(Box::new(demand));
        }
        if arrivals == 0 && self.active.is_none_or(|active| now.since(active) > FORGOTTEN) {
            self.demand = None;
        }
        let observe = |demand: &mut Box<Demand>| demand.observe(now, arrivals, ahead);
        self.forecast = self.demand.as_mut().map_or(NO_DEMAND, observe);
    }

    /// When it was last read, or began to be watched.
    pub fn read(&self) -> Nanos {
        self.read
    }

    /// Whether it was read at all.
    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// Whether there was a request with the last reading.
    pub fn is_busy(&self) -> bool {
        self.latest.arrivals > 0 || self.latest.in_flight > 0.0
    }

    /// What came with the last reading.
    pub fn latest(&self) -> &Interval {
        &self.latest
    }

    /// What to be ready for.
    pub fn expected(&self) -> &Forecast {
        &self.forecast
    }

    /// What is known of the time of one request.
    pub fn estimate(&self) -> Option<Estimate> {
        self.service.estimate()
    }

    /// What it needs, on these terms.
    pub fn need(&self, scene: &Scene<'_>, terms: &Terms) -> Need {
        let is_fresh = scene.now.since(self.since) < ACTIVE_FOR;
        let is_recent = self.active.is_some_and(|active| scene.now.since(active) < ACTIVE_FOR);
        let (mut equivalents, basis, mut reason) =
            match (is_recent || scene.held > 0, self.plan(scene, terms)) {
                (false, _) => (0.0, Basis::Idle, format!("no request for {:.0} s", ACTIVE_FOR.secs_f64())),
                (true, Some(plan)) => plan,
                (true, None) => self.by_hand(scene, terms),
            };
        // What a scaler has not seen yet, having just started, or can't see is no reason to remove what is there.
        if (is_fresh || scene.is_starting) && f64::from(scene.present) > equivalents {
            equivalents = scene.present.into();
            let why = if scene.is_starting { "they have started" } else { "they are watched for a minute" };
            reason = format!("{reason}; {} replicas stay until {why}", scene.present);
        }
        let value = metric::value(equivalents, scene.present);
        Need { equivalents, value, is_active: value > terms.activation, basis, reason }
    }

    /// By the plan, where the GPU time of a request is known and the function's quota is.
    ///
    /// What is needed is counted at the quota that replicas can have where grants follow the load (vertical comes first), and
    /// else at the one that they have now. Fewer than there are count only if they would bear a tenth more: what is removed at
    /// the limit comes back at once.
    fn plan(&self, scene: &Scene<'_>, terms: &Terms) -> Option<(f64, Basis, String)> {
        let wish = scene.wish?;
        let estimate = self.estimate().filter(|estimate| estimate.gpu > Nanos::ZERO)?;
        let present = present_quota(&self.latest, &wish.share);
        let quota = scene.reach.map_or(present, |reach| reach.max(present));
        let share = Share { floor: quota, ceiling: quota, ..wish.share };
        let slo = terms.slo.or(wish.slo);
        let (window, gpu_memory) = (scene.window, scene.gpu_memory);
        let problem = Problem { estimate: &estimate, share: &share, slo, window, gpu_memory };
        let most = terms.most.unwrap_or(wish.replicas.max);
        let rate = self.forecast.cold.max(self.forecast.rate) + self.waiting(scene) / DRAIN;
        let bears = |margin: f64| {
            let load = Load {
                rate: rate * margin,
                arrival_scv: self.forecast.arrival_scv,
                recent: self.demand.as_deref().map(Demand::recent),
            };
            let replicas = problem.cheapest(&[], 1..=most, load, None).map_or(most, |plan| plan.replicas);
            let held = estimate.held(quota) / estimate.batching.most_speed_up();
            let busy = load.rate * held / f64::from(replicas);
            f64::from(replicas - 1) + busy.clamp(TRACE, 1.0)
        };
        let equivalents = kept(bears(1.0), || bears(Tuning::default().removal_margin), scene.present);
        let reason = format!(
            "{:.1}/s, ready for {rate:.1}/s at {:.1} ms of GPU time each and a quota of {quota}{}",
            self.forecast.rate,
            estimate.gpu.millis_f64(),
            objective(slo),
        );
        // Requests that are late already say that the plan promises too much.
        let is_late = slo.is_some_and(|slo| self.latest.oldest > slo.bound.secs_f64());
        if is_late {
            let (at_hand, _, counted) = self.by_hand(scene, terms);
            if at_hand > equivalents {
                let reason = format!("{reason}, but one waits for {:.1} s: {counted}", self.latest.oldest);
                return Some((at_hand.min(most.into()), Basis::AtHand, reason));
            }
        }
        Some((equivalents, Basis::Plan, reason))
    }

    /// By Little's law: as many requests are at hand as come in the time that one takes, so over what a replica takes at once
    /// they are the replicas that are busy. It holds for what is steady. Requests that have waited for a first replica to start are
    /// not: they say only that one is needed, and that one how long they take.
    fn by_hand(&self, scene: &Scene<'_>, terms: &Terms) -> (f64, Basis, String) {
        let at_once = terms.concurrency.unwrap_or_else(|| scene.wish.map_or(1.0, |wish| wish.batch.into()));
        let has_begun = scene.present == 0 || scene.is_starting || scene.now.since(self.begun) < SETTLE;
        let most = terms.most.or_else(|| scene.wish.map(|wish| wish.replicas.max)).unwrap_or(MOST);
        let most = if has_begun { scene.present.clamp(1, most) } else { most };
        // A queue that has just come is there to be seen, and no chance.
        let at_hand = self.at_hand.max(self.latest.waiting) + f64::from(scene.held);
        let bears = |margin: f64| (margin * at_hand / (at_once * BUSY)).clamp(TRACE, most.into());
        let equivalents = kept(bears(1.0), || bears(Tuning::default().removal_margin), scene.present);
        let reason =
            format!("{at_hand:.1} requests at hand, {at_once} at once for {:.0} % of the time", 100.0 * BUSY);
        (equivalents, Basis::AtHand, reason)
    }

    fn waiting(&self, scene: &Scene<'_>) -> f64 {
        self.latest.waiting + f64::from(scene.held)
    }
}

/// What is needed, or as many as there are where those are needed with a margin.
fn kept(needed: f64, with_margin: impl FnOnce() -> f64, present: u32) -> f64 {
    let present = f64::from(present);
    if needed >= present { needed } else { with_margin().min(present).max(needed) }
}

/// The quota that a replica has; a parked one is woken at its floor.
fn present_quota(latest: &Interval, share: &Share) -> Quota {
    latest.grant.unwrap_or(share.floor).max(share.floor).min(share.ceiling)
}

fn objective(slo: Option<Slo>) -> String {
    slo.map_or_else(String::new, |slo| format!(", {slo}"))
}

#[cfg(test)]
mod tests;
