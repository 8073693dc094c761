//! Times that requests take, as a distribution: its quantile function, linear between the points that are known.
//!
//! Owns what billing and latency ask of one: mean, variation, quantiles, rounding up, and the part beyond a bound.

use gpu_share::invalid::Invalid;

/// Longest time that one may have, seconds: as long as an objective may be.
const LONGEST: f64 = 3600.0;
/// Points that are kept of measured times; more say nothing that a bill would show.
const KEPT: u32 = 200;
/// Quantiles of the standard normal distribution at [`LEVELS`], for distributions that only two are known of.
const NORMAL: [f64; 11] = [-3.09, -1.645, -1.282, -0.674, -0.253, 0.0, 0.253, 0.674, 1.282, 1.645, 3.09];
const LEVELS: [f64; 11] = [0.001, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.999];
/// Standard normal quantile of 95 %.
const Z95: f64 = 1.645;

/// One point of a quantile function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Part of the requests that take at most so long, from 0 to 1.
    pub part: f64,
    /// Seconds.
    pub seconds: f64,
}

/// A distribution of times.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Rising in both, from part 0 to part 1.
    points: Vec<Point>,
}

impl Distribution {
    /// Always `seconds`.
    pub fn constant(seconds: f64) -> Result<Self, Invalid> {
        Self::through(&[Point { part: 0.0, seconds }, Point { part: 1.0, seconds }])
    }

    /// Through `points`, which rise from part 0 to part 1.
    pub fn through(points: &[Point]) -> Result<Self, Invalid> {
        let bad = |value: f64, allowed: &str| Err(Invalid::new("time of a request", value, allowed));
        if let Some(point) = points.iter().find(|point| !(0.0..=LONGEST).contains(&point.seconds)) {
            return bad(point.seconds, "0 to 3600 seconds");
        }
        let rising = |pair: &[Point]| pair[0].part <= pair[1].part && pair[0].seconds <= pair[1].seconds;
        if let Some(pair) = points.windows(2).find(|pair| !rising(pair)) {
            return bad(pair[1].seconds, "at least what a smaller part of the requests takes");
        }
        let ends = points.first().zip(points.last()).map(|(first, last)| (first.part, last.part));
        if ends != Some((0.0, 1.0)) {
            return Err(Invalid::new("distribution", format!("{ends:?}"), "points from part 0 to part 1"));
        }
        Ok(Self { points: points.to_vec() })
    }

    /// Of measured times; of many, their quantiles are kept.
    #[allow(clippy::cast_precision_loss)] // A count of measured times is far below 2^53.
    pub fn measured(mut seconds: Vec<f64>) -> Result<Self, Invalid> {
        seconds.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (seconds.first(), seconds.last()) else {
            return Err(Invalid::new("times of requests", "", "one or more"));
        };
        let end = (seconds.len() - 1) as f64;
        let kept = (0..=KEPT).map(|step| {
            let part = f64::from(step) / f64::from(KEPT);
            Point { part, seconds: at(&seconds, part * end) }
        });
        let mut points: Vec<_> = kept.collect();
        // The ends as they are: interpolation may miss them by a rounding.
        points[0].seconds = least;
        points[KEPT as usize].seconds = most;
        Self::through(&points)
    }

    /// Log-normal with this median and 95th percentile.
    pub fn log_normal(median: f64, p95: f64) -> Result<Self, Invalid> {
        let spread = (p95 / median).ln() / Z95;
        let inner =
            LEVELS.iter().zip(NORMAL).map(|(&part, z)| Point { part, seconds: median * (z * spread).exp() });
        let mut points: Vec<_> = inner.collect();
        // Beyond one in a thousand the tail is cut: a bill does not show it.
        if let Some((first, last)) = points.first().copied().zip(points.last().copied()) {
            points.insert(0, Point { part: 0.0, ..first });
            points.push(Point { part: 1.0, ..last });
        }
        Self::through(&points)
    }

    /// Through `points` whose last one, the longest time, is moved so that the mean becomes `mean` if it can.
    ///
    /// Between the last percentile that is known and the longest time lies most of what is unknown: one outlier would
    /// count as if a twentieth of all requests lay evenly up to it.
    pub fn with_mean(points: &[Point], mean: f64) -> Result<Self, Invalid> {
        let mut points = points.to_vec();
        if let Some((last, body)) = points.split_last_mut()
            && let Some(before) = body.last()
        {
            let base: f64 = body.windows(2).map(piece_mean).sum();
            let wanted = 2.0 * (mean - base) / (last.part - before.part).max(1e-9) - before.seconds;
            last.seconds = wanted.clamp(before.seconds, last.seconds.max(before.seconds));
        }
        Self::through(&points)
    }

    /// Every time times `factor`, plus `seconds`.
    #[must_use]
    pub fn stretched(&self, factor: f64, seconds: f64) -> Self {
        let moved = |point: &Point| Point { seconds: point.seconds * factor + seconds, ..*point };
        Self { points: self.points.iter().map(moved).collect() }
    }

    /// Mean, seconds.
    pub fn mean(&self) -> f64 {
        self.points.windows(2).map(piece_mean).sum()
    }

    /// Squared coefficient of variation.
    pub fn scv(&self) -> f64 {
        let mean = self.mean();
        // Mean of the squares of values spread evenly from a to b: (a² + ab + b²)/3.
        let squares: f64 = self.pieces().map(|(part, a, b)| part * (a * a + a * b + b * b) / 3.0).sum();
        if mean > 0.0 { (squares / (mean * mean) - 1.0).max(0.0) } else { 0.0 }
    }

    /// The time that a part `part` of the requests does not exceed, seconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let after = self.points.partition_point(|point| point.part < part).clamp(1, self.points.len() - 1);
        let (a, b) = (self.points[after - 1], self.points[after]);
        let along = if b.part > a.part { ((part - a.part) / (b.part - a.part)).clamp(0.0, 1.0) } else { 1.0 };
        a.seconds + along * (b.seconds - a.seconds)
    }

    /// Mean of the times when each is rounded up to a multiple of `step` seconds; the mean itself if that is 0.
    pub fn mean_rounded_up(&self, step: f64) -> f64 {
        if step <= 0.0 {
            return self.mean();
        }
        self.pieces().map(|(part, a, b)| part * step * mean_ceiling(a / step, b / step)).sum()
    }

    /// Mean of what times have beyond `bound`, `E[(S − bound)⁺]`, seconds.
    pub fn excess(&self, bound: f64) -> f64 {
        self.pieces().map(|(part, a, b)| part * piece_excess(a, b, bound)).sum()
    }

    /// Part of the requests that take longer than `bound`.
    pub fn beyond(&self, bound: f64) -> f64 {
        self.pieces().map(|(part, a, b)| part * piece_beyond(a, b, bound)).sum()
    }

    /// Part, shortest and longest time of each stretch between two points.
    fn pieces(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        self.points.windows(2).map(|pair| (pair[1].part - pair[0].part, pair[0].seconds, pair[1].seconds))
    }
}

fn piece_mean(pair: &[Point]) -> f64 {
    (pair[1].part - pair[0].part) * f64::midpoint(pair[0].seconds, pair[1].seconds)
}

/// Mean of `max(x − bound, 0)` for x spread evenly from `a` to `b`.
fn piece_excess(a: f64, b: f64, bound: f64) -> f64 {
    if bound <= a {
        f64::midpoint(a, b) - bound
    } else if bound >= b {
        0.0
    } else {
        (b - bound) * (b - bound) / (2.0 * (b - a))
    }
}

/// Probability that x, spread evenly from `a` to `b`, is larger than `bound`.
fn piece_beyond(a: f64, b: f64, bound: f64) -> f64 {
    if bound < a {
        1.0
    } else if bound >= b {
        0.0
    } else {
        (b - bound) / (b - a)
    }
}

/// Mean of `⌈x⌉` for x spread evenly from `a` to `b`.
fn mean_ceiling(a: f64, b: f64) -> f64 {
    if b - a < 1e-9 {
        // What a rounding of the division left over is no further step.
        return (a - 1e-9).ceil().max(0.0);
    }
    (ceiling_integral(b) - ceiling_integral(a)) / (b - a)
}

/// Integral of `⌈x⌉` from 0 to `x`: whole steps 1 + 2 + … + n, and the part of the next.
fn ceiling_integral(x: f64) -> f64 {
    let whole = x.floor();
    whole * (whole + 1.0) / 2.0 + (x - whole) * (whole + 1.0)
}

/// Value of `sorted` at `index`, linear between two.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // An index, clamped below.
fn at(sorted: &[f64], index: f64) -> f64 {
    let low = (index.floor() as usize).min(sorted.len() - 1);
    let high = (low + 1).min(sorted.len() - 1);
    // Rounding must not carry it beyond the larger one.
    (sorted[low] + (index - index.floor()) * (sorted[high] - sorted[low])).min(sorted[high])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64, by: f64) -> bool {
        (a - b).abs() <= by * b.abs().max(1e-12)
    }

    #[test]
    fn a_constant_is_what_it_says() {
        let constant = Distribution::constant(0.25).unwrap();
        assert_eq!((constant.mean(), constant.scv(), constant.quantile(0.95)), (0.25, 0.0, 0.25));
        assert!(close(constant.mean_rounded_up(0.1), 0.3, 1e-9));
        assert!(close(constant.excess(0.2), 0.05, 1e-9));
        assert_eq!((constant.beyond(0.2), constant.beyond(0.25)), (1.0, 0.0));
    }

    #[test]
    fn a_time_on_a_step_of_billing_is_not_rounded_to_the_next() {
        for steps in [1.0, 3.0, 7.0] {
            let constant = Distribution::constant(0.1 * steps).unwrap();
            assert!(close(constant.mean_rounded_up(0.1), 0.1 * steps, 1e-9), "{steps}");
        }
    }

    #[test]
    fn a_log_normal_has_the_two_quantiles_that_it_was_made_from() {
        let times = Distribution::log_normal(0.02, 0.08).unwrap();
        assert!(close(times.quantile(0.5), 0.02, 1e-9));
        assert!(close(times.quantile(0.95), 0.08, 1e-9));
        assert!(Distribution::log_normal(0.08, 0.02).is_err());
    }

    #[test]
    fn an_outlier_does_not_move_the_mean_that_was_measured() {
        let part = [(0.0, 16.73), (0.5, 24.04), (0.9, 34.23), (0.95, 38.36), (1.0, 1860.0)];
        let points: Vec<_> = part.iter().map(|&(part, ms)| Point { part, seconds: ms / 1e3 }).collect();
        assert!(Distribution::through(&points).unwrap().mean() > 0.06);
        let times = Distribution::with_mean(&points, 25.94e-3).unwrap();
        assert!(close(times.quantile(0.95), 38.36e-3, 1e-9));
        assert!(close(times.mean(), 25.94e-3, 0.01), "{}", times.mean());
    }

    #[test]
    fn what_is_no_time_is_refused() {
        assert!(Distribution::constant(-1.0).is_err());
        assert!(Distribution::constant(f64::NAN).is_err());
        assert!(Distribution::measured(vec![]).is_err());
        assert!(Distribution::measured(vec![0.1, f64::INFINITY]).is_err());
    }

    proptest! {
        #[test]
        fn measured_times_keep_their_mean_and_their_ends(seconds in proptest::collection::vec(0.001..10.0_f64, 1..400)) {
            let times = Distribution::measured(seconds.clone()).unwrap();
            let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
            let most = seconds.iter().copied().fold(0.0, f64::max);
            prop_assert_eq!((times.quantile(0.0), times.quantile(1.0)), (least, most));
            prop_assert!(times.mean() >= least - 1e-9 && times.mean() <= most + 1e-9);
        }

        #[test]
        fn rounding_up_costs_at_most_a_step_and_is_never_for_less(
            seconds in proptest::collection::vec(0.0..3.0_f64, 2..50), step in 0.001..1.0_f64,
        ) {
            let times = Distribution::measured(seconds).unwrap();
            let rounded = times.mean_rounded_up(step);
            prop_assert!(rounded >= times.mean() - 1e-9 && rounded <= times.mean() + step + 1e-9);
        }

        #[test]
        fn rounding_up_agrees_with_rounding_each(from in 0.0..2.0_f64, width in 0.001..2.0_f64, step in 0.01..0.5_f64) {
            let ends = [Point { part: 0.0, seconds: from }, Point { part: 1.0, seconds: from + width }];
            let times = Distribution::through(&ends).unwrap();
            let each = (0..20_000).map(|k| {
                let seconds = from + width * (f64::from(k) + 0.5) / 20_000.0;
                (seconds / step).ceil() * step
            });
            let mean = each.sum::<f64>() / 20_000.0;
            prop_assert!((times.mean_rounded_up(step) - mean).abs() < 0.01 * step, "{} {}", times.mean_rounded_up(step), mean);
        }

        #[test]
        fn the_excess_falls_as_fast_as_times_lie_beyond(
            seconds in proptest::collection::vec(0.0..3.0_f64, 2..50), bound in 0.0..3.0_f64,
        ) {
            let times = Distribution::measured(seconds).unwrap();
            let slope = (times.excess(bound) - times.excess(bound + 1e-6)) / 1e-6;
            prop_assert!(slope <= times.beyond(bound) + 1e-3 && slope >= times.beyond(bound + 1e-6) - 1e-3);
        }
    }
}
