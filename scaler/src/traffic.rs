//! What is read of a function's replicas, and what came between two readings.
//!
//! Owns the arithmetic of counters: replicas come and go, start again at zero, or don't answer. It reads nothing itself.

use std::collections::BTreeMap;

use gpu_share::units::{Nanos, Quota};

pub mod exposition;

/// What one replica shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Requests answered so far, whatever the answer.
    pub answered: f64,
    /// Those of them that succeeded.
    pub served: f64,
    /// Requests that are there now, those that wait included.
    pub in_flight: f64,
    /// Requests that wait for a slot.
    pub waiting: f64,
    /// Seconds that the oldest of them has waited.
    pub oldest: f64,
    /// GPU time used so far in seconds, if the replica has a share.
    pub used: Option<f64>,
    /// The quota that it has now, if it has a share; zero while parked.
    pub grant: Option<Quota>,
}

/// What all replicas of a function showed at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// When, on the reader's clock.
    pub at: Nanos,
    /// How many replicas should have answered.
    pub expected: usize,
    /// Those that did, by a name that no other replica has.
    pub replicas: BTreeMap<String, Counters>,
}

/// What came between two readings, and what is there now: sums over the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Interval {
    /// Requests that came.
    pub arrivals: u64,
    /// Requests that succeeded, at replicas that were there before and say how much GPU time they used.
    pub served: u64,
    /// GPU time that those used.
    pub used: Nanos,
    /// Requests that are there now, those that wait included.
    pub in_flight: f64,
    /// Requests that wait.
    pub waiting: f64,
    /// Seconds that the oldest of them has waited.
    pub oldest: f64,
    /// Mean quota of the replicas that say theirs.
    pub grant: Option<Quota>,
}

/// Fewer than half of the replicas answered: what they show says little of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{answered} of {expected} replicas answered")]
pub struct TooFew {
    /// Replicas that answered.
    pub answered: usize,
    /// Replicas that should have.
    pub expected: usize,
}

/// Turns readings into intervals.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    /// The newest counters of each replica; nothing before the first reading.
    known: Option<BTreeMap<String, Counters>>,
}

impl Meter {
    /// What came since the reading before. Before the first one, everything counts as past.
    ///
    /// Replicas that did not answer are taken to be like those that did, so that a lost answer never looks like less load;
    /// what such a replica counted meanwhile counts once more when it answers again, rather than not at all.
    pub fn advance(&mut self, reading: &Reading) -> Result<Interval, TooFew> {
        let (answered, expected) = (reading.replicas.len(), reading.expected);
        if 2 * answered < expected {
            return Err(TooFew { answered, expected });
        }
        let (mut arrivals, mut served, mut used) = (0.0, 0.0, 0.0);
        let mut interval = Interval::default();
        let mut grants = Vec::new();
        for (id, now) in &reading.replicas {
            interval.in_flight += now.in_flight;
            interval.waiting += now.waiting;
            interval.oldest = interval.oldest.max(now.oldest);
            grants.extend(now.grant);
            let Some(known) = &self.known else { continue };
            let before = known.get(id).filter(|before| before.answered <= now.answered);
            let then = before.copied().unwrap_or_default();
            arrivals += (now.answered - then.answered + now.in_flight - then.in_flight).max(0.0);
            // To load a model takes GPU time too, which is no request's.
            if let (Some(before), Some(now_used)) = (before, now.used) {
                served += (now.served - before.served).max(0.0);
                used += (now_used - before.used.unwrap_or(now_used)).max(0.0);
            }
        }
        if answered < expected {
            let more = count(expected) / count(answered);
            arrivals *= more;
            interval.in_flight *= more;
            interval.waiting *= more;
            self.known.get_or_insert_default().extend(reading.replicas.clone());
        } else {
            self.known = Some(reading.replicas.clone());
        }
        interval.arrivals = whole(arrivals);
        interval.served = whole(served);
        interval.used = Nanos::from_secs_f64(used);
        interval.grant = mean(&grants);
        Ok(interval)
    }
}

fn mean(grants: &[Quota]) -> Option<Quota> {
    let sum: f64 = grants.iter().map(|grant| grant.fraction()).sum();
    (!grants.is_empty()).then(|| Quota::saturating_from_fraction(sum / count(grants.len())))
}

fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(requests: f64) -> u64 {
    requests.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replica(answered: f64, in_flight: f64) -> Counters {
        Counters { answered, served: answered, in_flight, ..Counters::default() }
    }

    fn reading(replicas: &[(&str, Counters)]) -> Reading {
        let replicas: BTreeMap<_, _> = replicas.iter().map(|&(id, seen)| (id.to_string(), seen)).collect();
        Reading { at: Nanos::ZERO, expected: replicas.len(), replicas }
    }

    #[test]
    fn what_was_there_before_the_first_reading_is_past() {
        let mut meter = Meter::default();
        let first = meter.advance(&reading(&[("a", replica(1_000.0, 3.0))])).unwrap();
        assert_eq!((first.arrivals, first.in_flight), (0, 3.0));
        let second = meter.advance(&reading(&[("a", replica(1_010.0, 5.0))])).unwrap();
        assert_eq!(second.arrivals, 12, "ten were answered, and two more are there");
    }

    #[test]
    fn a_new_replica_and_one_that_started_again_count_from_zero() {
        let mut meter = Meter::default();
        meter.advance(&reading(&[("a", replica(1_000.0, 3.0))])).unwrap();
        let next = meter.advance(&reading(&[("a", replica(4.0, 1.0)), ("b", replica(7.0, 0.0))])).unwrap();
        assert_eq!(next.arrivals, 12);
    }

    #[test]
    fn gpu_time_counts_only_of_replicas_that_were_there_before() {
        let with = |served, used| Counters {
            answered: served,
            served,
            used: Some(used),
            grant: Some(Quota::from_percent(40).unwrap()),
            ..Counters::default()
        };
        let mut meter = Meter::default();
        meter.advance(&reading(&[("a", with(10.0, 5.0))])).unwrap();
        let next = meter.advance(&reading(&[("a", with(14.0, 5.2)), ("b", with(3.0, 9.0))])).unwrap();
        assert_eq!((next.served, next.used), (4, Nanos::from_secs_f64(0.2)));
        assert_eq!(next.grant, Some(Quota::from_percent(40).unwrap()));
    }

    #[test]
    fn replicas_that_do_not_answer_are_taken_to_be_like_the_others() {
        let mut meter = Meter::default();
        meter.advance(&reading(&[("a", replica(0.0, 0.0)), ("b", replica(0.0, 0.0))])).unwrap();
        let partial = Reading { expected: 2, ..reading(&[("a", replica(10.0, 2.0))]) };
        let interval = meter.advance(&partial).unwrap();
        assert_eq!((interval.arrivals, interval.in_flight), (24, 4.0));
        let none = Reading { expected: 3, ..reading(&[("a", replica(10.0, 2.0))]) };
        assert_eq!(meter.advance(&none), Err(TooFew { answered: 1, expected: 3 }));
    }

    proptest! {
        #[test]
        fn as_many_arrivals_are_seen_as_there_were(steps in prop::collection::vec((0u32..50, 0u32..50), 1..30)) {
            let (mut meter, mut answered, mut in_flight, mut came, mut seen) = (Meter::default(), 0, 0, 0, 0);
            meter.advance(&reading(&[("a", replica(0.0, 0.0))])).unwrap();
            for (arrived, done) in steps {
                let done = done.min(in_flight + arrived);
                came += u64::from(arrived);
                in_flight = in_flight + arrived - done;
                answered += done;
                let shown = replica(f64::from(answered), f64::from(in_flight));
                seen += meter.advance(&reading(&[("a", shown)])).unwrap().arrivals;
            }
            prop_assert_eq!(seen, came);
        }
    }
}
