//! The request rate to be ready for: a quantile with tracked coverage, for each of two horizons.
//!
//! Owns the estimate of the rate, its trend and its burstiness. Counts go in, a rate comes out: a quantile of counts
//! would hold the noise that the queue arithmetic accounts for already. It knows nothing of replicas or grants.

use std::collections::VecDeque;

use gpu_share::units::Nanos;

use self::conformal::Conformal;
use self::dispersion::Dispersion;
pub use self::recent::Recent;

mod conformal;
mod dispersion;
mod recent;

/// Seconds over which the rate is averaged.
const STEADY: f64 = 4.0;
/// Seconds over which the rate is averaged that the trend is taken against.
const SLOW: f64 = 16.0;
/// Seconds of the windows that are looked at for a sudden rise.
const SUDDEN: [f64; 3] = [0.4, 1.0, 2.0];
/// A count so improbable at the steady rate is a sudden rise, not chance. The probability is bounded from above, so that
/// false alarms are rarer than this says: about one in two minutes.
const CHANCE: f64 = 1e-2;
/// Below this rate a function counts as idle.
const IDLE: f64 = 0.05;
/// Forecasts are compared with what came only when requests have been coming for so many seconds: waking up is no error
/// of a forecast, and says nothing about busy times.
const SETTLED: f64 = 2.0 * STEADY;
/// The interval that the first observation of a function stands for, in seconds.
const FIRST: f64 = 0.25;

/// The demand of one function.
#[derive(Clone, Debug)]
pub struct Demand {
    steady: Average,
    slow: Average,
    /// Intervals of the last 2 s, newest last.
    latest: VecDeque<Interval>,
    recent: Recent,
    vertical: Conformal,
    cold: Conformal,
    dispersion: Dispersion,
    last: Option<Nanos>,
    /// Seconds for which requests have been coming, up to [`SETTLED`] of them.
    busy: f64,
    /// Arrivals of calls between which no time passed.
    carried: f64,
    forecast: Forecast,
}

/// What came between two observations.
#[derive(Clone, Debug)]
struct Interval {
    seconds: f64,
    count: f64,
    /// The steady rate before it.
    rate: f64,
}

/// What to be ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Requests a second now.
    pub rate: f64,
    /// Requests a second to be ready for until a grant could change again.
    pub vertical: f64,
    /// Requests a second to be ready for until a replica that is started now could serve.
    pub cold: f64,
    /// Squared coefficient of variation of the times between arrivals.
    pub arrival_scv: f64,
}

impl Demand {
    /// Forecasts that are exceeded with probability `alpha` `vertical` ahead, and with `cold_alpha` a cold start ahead
    /// (see [`Self::observe`]).
    pub fn new(alpha: f64, vertical: Nanos, cold_alpha: f64) -> Self {
        Self {
            steady: Average::over(STEADY),
            slow: Average::over(SLOW),
            latest: VecDeque::new(),
            recent: Recent::default(),
            vertical: Conformal::new(alpha, vertical),
            cold: Conformal::new(cold_alpha, Nanos::ZERO),
            dispersion: Dispersion::default(),
            last: None,
            busy: 0.0,
            carried: 0.0,
            forecast: Forecast { arrival_scv: 1.0, ..Forecast::default() },
        }
    }

    /// Takes in that `arrivals` requests came since the last call, and says what to be ready for; a replica that is
    /// started now could serve after `cold_start`.
    pub fn observe(&mut self, now: Nanos, arrivals: u64, cold_start: Nanos) -> Forecast {
        let count = f64::from(u32::try_from(arrivals).unwrap_or(u32::MAX)) + self.carried;
        let seconds = self.last.map_or(FIRST, |last| now.since(last).secs_f64());
        if seconds <= 0.0 {
            self.carried = count;
            return self.forecast;
        }
        self.carried = 0.0;
        self.last = Some(now);
        self.remember(Interval { seconds, count, rate: self.steady.rate() });
        self.dispersion.add(count, seconds, self.steady.rate());
        self.steady.add(count, seconds);
        self.slow.add(count, seconds);
        let rate = self.steady.rate();
        self.recent.add(arrivals, seconds, rate);
        self.vertical.mature(now, rate);
        self.cold.mature(now, rate);
        self.cold.set_span(cold_start);
        self.busy = if rate < IDLE { 0.0 } else { (self.busy + seconds).min(SETTLED) };
        let settled = self.busy >= SETTLED;
        let (vertical, cold) = (self.point(self.vertical.span()), self.point(cold_start));
        self.forecast = Forecast {
            rate,
            vertical: self.vertical.issue(now, vertical, settled),
            cold: self.cold.issue(now, cold, settled),
            arrival_scv: self.dispersion.scv(),
        };
        self.forecast
    }

    /// The arrivals of the last minute.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Part of the vertical forecasts that were not exceeded, of the recent ones.
    pub fn coverage(&self) -> f64 {
        self.vertical.coverage()
    }

    /// The rate expected `ahead`: the steady rate and a rise that is no chance, or a sudden rate if that is higher.
    ///
    /// What is decided further ahead than the shorter windows last is not decided by them.
    fn point(&self, ahead: Nanos) -> f64 {
        let sudden = self.sudden(ahead.secs_f64());
        let rate = self.steady.rate();
        // The averages lag behind a steady rise by their spans, so their difference shows it.
        let noise = 2.0 * (rate.max(0.5) / (2.0 * STEADY)).sqrt();
        let rise = (rate - self.slow.rate() - noise).max(0.0) / (SLOW - STEADY);
        // A rise is not believed for longer than it could be seen.
        let ahead = ahead.secs_f64().min(SLOW);
        (rate + rise * (STEADY + ahead)).max(sudden)
    }

    /// The highest rate of the short windows whose count is no chance at the steady rate before them, else 0. Looking
    /// `ahead` seconds, windows shorter than that are left out, but for the longest.
    fn sudden(&self, ahead: f64) -> f64 {
        let least = ahead.min(SUDDEN[SUDDEN.len() - 1]) - 1e-9;
        let scv = self.dispersion.scv();
        let mut highest: f64 = 0.0;
        let (mut seconds, mut count) = (0.0, 0.0);
        let mut windows = SUDDEN.iter().peekable();
        for interval in self.latest.iter().rev() {
            seconds += interval.seconds;
            count += interval.count;
            // The window that this interval fills; intervals are no finer than the caller's.
            if windows.next_if(|&&window| seconds >= window - 1e-9).is_some()
                && seconds >= least
                && chance(count, interval.rate * seconds, scv) < CHANCE
            {
                highest = highest.max(count / seconds);
            }
        }
        highest
    }

    fn remember(&mut self, interval: Interval) {
        self.latest.push_back(interval);
        let longest = SUDDEN[SUDDEN.len() - 1];
        let mut total: f64 = self.latest.iter().map(|interval| interval.seconds).sum();
        while let Some(oldest) = self.latest.front()
            && total - oldest.seconds >= longest - 1e-9
        {
            total -= oldest.seconds;
            self.latest.pop_front();
        }
    }
}

/// A rate averaged with exponentially falling weights.
#[derive(Clone, Debug)]
struct Average {
    span: f64,
    events: f64,
    seconds: f64,
}

impl Average {
    /// Starts as if a second without a request had passed, so that the first ones don't look like a flood.
    fn over(span: f64) -> Self {
        Self { span, events: 0.0, seconds: 1.0 }
    }

    fn add(&mut self, count: f64, seconds: f64) {
        let keep = (-seconds / self.span).exp();
        // The weight of an interval that itself fades while it lasts.
        let fresh = self.span * (1.0 - keep) / seconds;
        self.events = self.events * keep + count * fresh;
        self.seconds = self.seconds * keep + seconds * fresh;
    }

    fn rate(&self) -> f64 {
        self.events / self.seconds
    }
}

/// Bound on the probability of `count` or more events where `mean` are expected: Chernoff's for Poisson events, with
/// the exponent shrunk or stretched for others as the variance is.
fn chance(count: f64, mean: f64, scv: f64) -> f64 {
    if count <= mean {
        return 1.0;
    }
    let exponent = if mean > 0.0 { count - mean - count * (count / mean).ln() } else { f64::NEG_INFINITY };
    (exponent / scv).exp()
}

#[cfg(test)]
mod tests;
