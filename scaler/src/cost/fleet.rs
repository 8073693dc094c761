//! How many replicas an autoscaler pays for and how many serve, when the number that is needed is known.
//!
//! A new one is paid for at once and serves after its start; one that is not needed any more stays for a while. The
//! load repeats without end, so what comes before its first step is its last.

use std::collections::VecDeque;

use gpu_share::invalid::Invalid;
use serde::Deserialize;

use super::load::Load;

/// Bounds and delays of an autoscaler.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scaling {
    /// Fewest replicas.
    pub least: u32,
    /// Most replicas.
    pub most: u32,
    /// Seconds until a new one serves.
    pub start_seconds: f64,
    /// Seconds for which one stays that is not needed any more.
    pub hold_seconds: f64,
}

impl Scaling {
    /// Refuses bounds and delays that can't be.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.most == 0 || self.least > self.most || self.most > 10_000 {
            let value = format!("{}..{}", self.least, self.most);
            return Err(Invalid::new(
                "scaling.least..most",
                value,
                "least at most most, most from 1 to 10000",
            ));
        }
        for (field, seconds) in [("startSeconds", self.start_seconds), ("holdSeconds", self.hold_seconds)] {
            if !(0.0..=86_400.0).contains(&seconds) {
                return Err(Invalid::new(format!("scaling.{field}"), seconds, "0 to 86400 seconds"));
            }
        }
        Ok(())
    }

    /// Part of the time in which there are any replicas: where requests come at random at a rate that never changes, each
    /// of them keeps what there is for a start and a hold. A load that changes shows by itself when none is needed.
    pub fn there(&self, load: &Load) -> f64 {
        let kept = self.start_seconds + self.hold_seconds;
        let rate = load.always().filter(|_| self.least == 0);
        rate.map_or(1.0, |rate| -(-rate * kept).exp_m1())
    }

    /// What is paid for and what serves in each step of `step` seconds that needs `needed`.
    pub fn follow(&self, needed: &[u32], step: f64) -> Fleet {
        let wanted: Vec<_> = needed.iter().map(|&needed| needed.clamp(self.least, self.most)).collect();
        let paid = windowed(&wanted, steps(self.hold_seconds, step), |a, b| a >= b);
        let serving = windowed(&paid, steps(self.start_seconds, step), |a, b| a <= b);
        Fleet { paid, serving }
    }
}

/// Replicas over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Paid for, in each step.
    pub paid: Vec<u32>,
    /// Serving, in each step.
    pub serving: Vec<u32>,
}

/// Whole steps that cover `seconds`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked to be from 0 to a day.
fn steps(seconds: f64, step: f64) -> usize {
    (seconds / step - 1e-9).ceil().max(0.0) as usize
}

/// Of each value and the `before` ones before it, the one that `wins` against all others; the first has the last
/// before it.
fn windowed(values: &[u32], before: usize, wins: impl Fn(u32, u32) -> bool) -> Vec<u32> {
    let count = values.len();
    let before = before.min(count.saturating_sub(1));
    let (mut best, mut found) = (VecDeque::new(), Vec::with_capacity(count));
    for at in 0..count + before {
        let value = values[(at + count - before) % count];
        while best.back().is_some_and(|&(_, other)| wins(value, other)) {
            best.pop_back();
        }
        best.push_back((at, value));
        while best.front().is_some_and(|&(since, _)| since + before < at) {
            best.pop_front();
        }
        if at >= before {
            found.extend(best.front().map(|&(_, value)| value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scaling(least: u32, most: u32, start_seconds: f64, hold_seconds: f64) -> Scaling {
        Scaling { least, most, start_seconds, hold_seconds }
    }

    #[test]
    fn a_new_replica_is_paid_for_before_it_serves_and_after_it_is_needed() {
        let fleet = scaling(0, 4, 10.0, 20.0).follow(&[0, 0, 0, 2, 9, 0, 0, 0, 0, 0], 10.0);
        assert_eq!(fleet.paid, [0, 0, 0, 2, 4, 4, 4, 0, 0, 0]);
        assert_eq!(fleet.serving, [0, 0, 0, 0, 2, 4, 4, 0, 0, 0]);
    }

    #[test]
    fn the_first_step_comes_after_the_last() {
        let fleet = scaling(1, 4, 0.0, 10.0).follow(&[1, 1, 3], 10.0);
        assert_eq!(fleet.paid, [3, 1, 3]);
    }

    #[test]
    fn a_delay_shorter_than_a_step_takes_one_and_none_takes_none() {
        let needed = [0, 1, 0, 0];
        assert_eq!(scaling(0, 4, 1.0, 0.0).follow(&needed, 60.0).serving, [0, 0, 0, 0]);
        assert_eq!(scaling(0, 4, 0.0, 0.0).follow(&needed, 60.0).serving, needed);
    }

    #[test]
    fn where_requests_are_rare_nothing_is_there_most_of_the_time_unless_it_must_be() {
        let rare = Load::constant(1e-5).unwrap();
        assert!((scaling(0, 4, 100.0, 900.0).there(&rare) - 0.00995).abs() < 1e-5);
        assert!((scaling(1, 4, 100.0, 900.0).there(&rare) - 1.0).abs() < 1e-12);
        assert!((scaling(0, 4, 100.0, 900.0).there(&Load::constant(1.0).unwrap()) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bounds_that_can_not_be_are_refused() {
        for wrong in [scaling(0, 0, 1.0, 1.0), scaling(3, 2, 1.0, 1.0), scaling(0, 1, -1.0, 0.0)] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn never_more_serve_than_are_paid_for_nor_fewer_paid_for_than_needed(
            needed in proptest::collection::vec(0..9_u32, 1..60), start in 0.0..100.0_f64, hold in 0.0..100.0_f64,
        ) {
            let fleet = scaling(1, 7, start, hold).follow(&needed, 5.0);
            prop_assert_eq!((fleet.paid.len(), fleet.serving.len()), (needed.len(), needed.len()));
            for ((&paid, &serving), &needed) in fleet.paid.iter().zip(&fleet.serving).zip(&needed) {
                prop_assert!(serving <= paid && paid >= needed.clamp(1, 7) && paid <= 7);
            }
        }

        #[test]
        fn windows_agree_with_looking_at_each(values in proptest::collection::vec(0..9_u32, 1..40), before in 0..50_usize) {
            let count = values.len();
            let slow: Vec<_> = (0..count)
                .map(|at| (0..=before.min(count - 1)).map(|back| values[(at + count - back) % count]).max().unwrap())
                .collect();
            prop_assert_eq!(windowed(&values, before, |a, b| a >= b), slow);
        }
    }
}
