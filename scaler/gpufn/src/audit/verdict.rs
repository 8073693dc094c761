//! What a share that is kept looks like: how far from what was set a container may be, and for how long.
//!
//! Owns the bars. Pure.

use serde::Serialize;

use crate::figures::number;

/// Most that a window of one second may be off, percentage points, unless one kernel is longer than that.
const SECOND: f64 = 2.0;
/// Most that ten seconds may be off, percentage points.
const TEN_SECONDS: f64 = 0.5;

/// What a container got against what it was set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What it was set, percent of the time.
    pub set: f64,
    /// What it got, percent of the time.
    pub got: f64,
    /// Largest distance of a window of one second from what was set, percentage points.
    pub worst_second: f64,
    /// The most that is allowed for it.
    pub allowed_second: f64,
    /// The most that the whole may be off, percentage points.
    pub allowed_whole: f64,
    /// Whether both are kept.
    pub ok: bool,
}

impl Verdict {
    /// Judges windows of one second, each in percent, of a container that was set `set` percent, on a GPU whose longest
    /// kernel takes `longest` microseconds.
    pub fn new(set: f64, seconds: &[f64], longest: u32) -> Self {
        let count = number(seconds.len() as u64);
        let got = seconds.iter().sum::<f64>() / count;
        let worst_second = seconds.iter().map(|second| (second - set).abs()).fold(0.0, f64::max);
        let allowed_second = SECOND.max(f64::from(longest) / 1e4);
        // In less than ten seconds, ten seconds' distance is more of the time.
        let allowed_whole = (TEN_SECONDS * 10.0 / count).max(TEN_SECONDS);
        // One that delivers exactly a kernel more stands at the bar, not beyond: rounding must not decide.
        let ok = worst_second <= allowed_second + 0.01 && (got - set).abs() <= allowed_whole + 0.01;
        Self { set, got, worst_second, allowed_second, allowed_whole, ok }
    }

    /// Distance of the whole from what was set, percentage points.
    pub fn whole(&self) -> f64 {
        (self.got - self.set).abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_may_be_off_by_two_points_or_one_kernel() {
        assert!(Verdict::new(30.0, &[28.0, 32.0], 1_000).ok);
        assert!(!Verdict::new(30.0, &[27.9, 32.1], 1_000).ok);
        assert!(Verdict::new(30.0, &[25.0, 35.0], 50_000).ok);
        assert!(!Verdict::new(30.0, &[24.9, 35.1], 50_000).ok);
    }

    #[test]
    fn ten_seconds_may_be_off_by_half_a_point() {
        assert!(Verdict::new(30.0, &[30.5; 10], 1_000).ok);
        assert!(!Verdict::new(30.0, &[30.6; 10], 1_000).ok);
        assert!(!Verdict::new(30.0, &[29.4; 10], 1_000).ok);
    }

    #[test]
    fn what_was_never_measured_is_not_kept() {
        assert!(!Verdict::new(30.0, &[], 1_000).ok);
    }
}
