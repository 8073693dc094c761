//! Conformal quantiles of a forecast: what was forecast before and turned out otherwise says how much to add.
//!
//! Distribution-free: the quantile is exceeded with probability α if past errors are like coming ones. They need not
//! be, so the level follows the coverage that came of it (the idea of Gibbs and Candès, arXiv 2106.00170), only ever wider.

use std::collections::VecDeque;

use gpu_share::units::Nanos;

/// Errors that are remembered: four minutes at five decisions a second, so that one step in four minutes is within
/// what may be missed, and does not have to be expected again all the time.
const ERRORS: usize = 1_200;
/// Forecasts whose time has not come that are remembered; beyond, the oldest is given up.
const OPEN: usize = 1024;
/// Errors from which on they alone decide; before, the error is at least [`EARLY`].
const FEW: usize = 20;
/// Error assumed at first, in square roots of the rate: two standard errors of a rate averaged over 4 s are 0.7.
const EARLY: f64 = 0.5;
/// Part of one forecast in the running coverage: as long a memory as the errors'.
const GAIN: f64 = 0.001;
/// Least part of α that the level falls to.
const LEAST: f64 = 0.02;

/// The quantile of one horizon.
#[derive(Clone, Debug)]
pub(super) struct Conformal {
    alpha: f64,
    span: Nanos,
    /// Errors in square roots of the rate, as Poisson noise grows, so that they hold at any rate; oldest first.
    errors: VecDeque<f64>,
    /// The same in rising order: a quantile is looked up at every decision, and one error comes and goes between two.
    sorted: Vec<f64>,
    open: VecDeque<Issued>,
    covered: f64,
}

/// A forecast whose time has not come.
#[derive(Clone, Debug)]
struct Issued {
    due: Nanos,
    point: f64,
    quantile: f64,
    highest: f64,
}

impl Conformal {
    pub(super) fn new(alpha: f64, span: Nanos) -> Self {
        let (errors, open) = (VecDeque::with_capacity(ERRORS), VecDeque::new());
        Self { alpha, span, errors, sorted: Vec::with_capacity(ERRORS), open, covered: 1.0 - 0.5 * alpha }
    }

    pub(super) fn span(&self) -> Nanos {
        self.span
    }

    pub(super) fn set_span(&mut self, span: Nanos) {
        self.span = span;
    }

    /// Part of the recent forecasts that were not exceeded.
    pub(super) fn coverage(&self) -> f64 {
        self.covered
    }

    /// Compares the forecasts whose time has come with the highest rate that came in their time.
    pub(super) fn mature(&mut self, now: Nanos, rate: f64) {
        for issued in &mut self.open {
            issued.highest = issued.highest.max(rate);
        }
        while let Some(issued) = self.open.pop_front_if(|issued| issued.due <= now) {
            self.remember((issued.highest - issued.point) / scale(issued.highest.max(issued.point)));
            let covered = if issued.highest > issued.quantile { 0.0 } else { 1.0 };
            self.covered += GAIN * (covered - self.covered);
        }
    }

    fn remember(&mut self, error: f64) {
        if self.errors.len() == ERRORS
            && let Some(oldest) = self.errors.pop_front()
        {
            self.sorted.remove(self.sorted.partition_point(|other| other.total_cmp(&oldest).is_lt()));
        }
        self.errors.push_back(error);
        self.sorted.insert(self.sorted.partition_point(|other| other.total_cmp(&error).is_lt()), error);
    }

    /// The quantile over a forecast of `point`; if `counts`, it is remembered, to be compared with what comes.
    pub(super) fn issue(&mut self, now: Nanos, point: f64, counts: bool) -> f64 {
        let quantile = point + self.error() * scale(point);
        if !counts {
            return quantile;
        }
        if self.open.len() == OPEN {
            self.open.pop_front();
        }
        self.open.push_back(Issued { due: now + self.span, point, quantile, highest: 0.0 });
        quantile
    }

    /// α, or less by as much as forecasts were exceeded more often than that.
    fn level(&self) -> f64 {
        let excess = (1.0 - self.alpha - self.covered).max(0.0);
        (self.alpha - excess).max(LEAST * self.alpha)
    }

    /// The error that a part `level` exceeds, never below zero: a forecast is not believed to be too high.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // At most ERRORS.
    fn error(&self) -> f64 {
        // The k-th smallest of m errors with k = ⌈(m + 1)(1 − α)⌉, the largest if there are too few for α.
        let rank = ((self.sorted.len() + 1) as f64 * (1.0 - self.level())).ceil() as usize;
        let least = if self.sorted.len() < FEW { EARLY } else { 0.0 };
        let error = self.sorted.get(rank.saturating_sub(1)).or_else(|| self.sorted.last());
        error.map_or(least, |error| error.max(least))
    }
}

fn scale(rate: f64) -> f64 {
    rate.max(0.1).sqrt()
}
