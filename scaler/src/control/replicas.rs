//! How many replicas a function is to have where nobody else owns their number: what KEDA would be told, with patience.
//!
//! Owns the hold: more at once, fewer only when they have not been needed for as long as a new start would take. Pure; how many
//! are needed is [`crate::need`]'s to say.

use std::collections::VecDeque;

use gpu_share::annotations::Replicas;
use gpu_share::units::Nanos;

use crate::need::Need;
use crate::policy::Tuning;

/// The count of one function.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Replicas that were needed in the hold time, each later than and fewer than the one before.
    needed: VecDeque<(Nanos, u32)>,
    /// Since when none has been needed.
    idle: Option<Nanos>,
}

impl Count {
    /// The number to be written, if another one than `wanted`, the one that is there to be had. `bounds` are the function's; a
    /// new replica could serve after `cold_start`.
    pub fn decide(
        &mut self,
        now: Nanos,
        need: &Need,
        wanted: u32,
        bounds: Replicas,
        cold_start: Nanos,
    ) -> Option<u32> {
        let tuning = Tuning::default();
        let needed = if need.is_active { whole(need.equivalents).max(1) } else { 0 };
        self.idle = if needed > 0 { None } else { self.idle.or(Some(now)) };
        let hold = tuning.keep.max(cold_start);
        while self.needed.pop_front_if(|&mut (at, _)| now.since(at) > hold).is_some() {}
        while self.needed.pop_back_if(|&mut (_, fewer)| fewer <= needed).is_some() {}
        self.needed.push_back((now, needed));
        let most = self.needed.front().map_or(needed, |&(_, most)| most);
        // The last one costs a request a cold start, so that it stays for longer.
        let may_empty = self.idle.is_some_and(|since| now.since(since) >= tuning.keep_last);
        let least = bounds.min.max(u32::from(!may_empty && wanted > 0));
        let number = most.max(least).min(bounds.max).max(bounds.min);
        (number != wanted).then_some(number)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(replicas: f64) -> u32 {
    // A hundredth of a replica more is no reason for another one: that is how finely KEDA is told.
    (replicas - 0.01).ceil() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::need::Basis;

    const BOUNDS: Replicas = Replicas { min: 0, max: 8 };
    const COLD: Nanos = Nanos::from_secs(5);

    fn need(equivalents: f64) -> Need {
        let (is_active, basis) = (equivalents > 0.0, Basis::Plan);
        Need { equivalents, value: equivalents * 100.0, is_active, basis, reason: String::new() }
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    #[test]
    fn more_come_at_once_and_fewer_after_the_hold() {
        let mut count = Count::default();
        assert_eq!(count.decide(at(0), &need(2.2), 1, BOUNDS, COLD), Some(3));
        assert_eq!(count.decide(at(1), &need(0.5), 3, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(20), &need(0.5), 3, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(21), &need(0.5), 3, BOUNDS, COLD), Some(1));
        assert_eq!(count.decide(at(22), &need(90.0), 1, BOUNDS, COLD), Some(8));
    }

    #[test]
    fn the_last_one_goes_after_five_minutes_without_a_request() {
        let mut count = Count::default();
        assert_eq!(count.decide(at(0), &need(0.3), 1, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(1), &need(0.0), 1, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(300), &need(0.0), 1, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(301), &need(0.0), 1, BOUNDS, COLD), Some(0));
        assert_eq!(count.decide(at(302), &need(0.0), 0, BOUNDS, COLD), None);
        assert_eq!(count.decide(at(303), &need(0.01), 0, BOUNDS, COLD), Some(1));
    }

    proptest! {
        #[test]
        fn the_number_is_within_bounds_and_never_below_what_is_needed_now(
            steps in prop::collection::vec((0u64..40, 0.0f64..12.0), 1..60), min in 0u32..3, more in 1u32..6,
        ) {
            let bounds = Replicas { min, max: min + more };
            let (mut count, mut now, mut wanted) = (Count::default(), Nanos::ZERO, min);
            for (seconds, equivalents) in steps {
                now += Nanos::from_secs(seconds);
                wanted = count.decide(now, &need(equivalents), wanted, bounds, COLD).unwrap_or(wanted);
                prop_assert!((bounds.min..=bounds.max).contains(&wanted));
                prop_assert!(f64::from(wanted) >= (equivalents - 0.01).min(f64::from(bounds.max)));
            }
        }
    }
}
