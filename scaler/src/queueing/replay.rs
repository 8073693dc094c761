//! How long requests that came of late would have waited at other servers: what no two moments say of bursts.
//!
//! Owns the replay. Exact for constant service: in a queue of n servers that is first come, first served, a request's
//! server is the one that the n-th request before it had. Where requests are merged, the servers are followed one by one.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::{Batching, Slack};
use crate::chances::Chances;

/// Servers behind one queue.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// How many, at least 1.
    pub count: u32,
    /// Seconds that one request takes.
    pub service: f64,
    /// What they merge.
    pub batching: Batching,
}

impl Servers {
    /// Whether at most a part `most` of `arrivals` (rising, in seconds) are late here, when the times between arrivals are
    /// multiplied by `stretch`. It stops at the first that is too many.
    ///
    /// What a batch takes longer than one request counts as waiting.
    #[allow(clippy::cast_precision_loss)] // A few thousand.
    pub fn keep(&self, arrivals: &[f64], stretch: f64, slacks: &[Slack], most: f64) -> bool {
        let arrived = arrivals.len() as f64;
        let Some(mut tally) = Tally::new(arrived, slacks, most * arrived) else { return false };
        if self.batching.most > 1 {
            self.merged(arrivals, stretch, |wait| tally.takes(wait))
        } else {
            self.single(arrivals, stretch, |wait| tally.takes(wait))
        }
    }

    /// The part of `arrivals` that is late here, as [`Self::keep`] counts it.
    #[allow(clippy::cast_precision_loss)] // A few thousand.
    pub fn late(&self, arrivals: &[f64], stretch: f64, slacks: &[Slack]) -> f64 {
        let arrived = arrivals.len() as f64;
        let Some(mut tally) = Tally::new(arrived, slacks, f64::INFINITY) else { return 1.0 };
        self.merged(arrivals, stretch, |wait| tally.takes(wait));
        tally.late / arrived
    }

    /// The wait in seconds that a part `percentile` of `arrivals` does not exceed, as [`Self::keep`] counts it.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few thousand.
    pub fn wait(&self, arrivals: &[f64], stretch: f64, percentile: f64) -> f64 {
        let mut waits = Vec::with_capacity(arrivals.len());
        self.merged(arrivals, stretch, |wait| {
            waits.push(wait);
            true
        });
        let index = (percentile * waits.len() as f64) as usize;
        let Some(last) = waits.len().checked_sub(1) else { return 0.0 };
        *waits.select_nth_unstable_by(index.min(last), f64::total_cmp).1
    }

    /// Whether `may` says so of each wait, request by request: a request's server is the one that the n-th before it had.
    fn single(&self, arrivals: &[f64], stretch: f64, mut may: impl FnMut(f64) -> bool) -> bool {
        let servers = usize::try_from(self.count.max(1)).unwrap_or(usize::MAX);
        for first in 0..servers.min(arrivals.len()) {
            // What one server gets: it waits for as much as the work that came exceeds the time that passed, from where that
            // was least (Lindley's recursion, written as a running minimum: one step of the processor, where the recursion is
            // three).
            let (mut served, mut least) = (0.0, f64::INFINITY);
            for arrival in arrivals[first..].iter().step_by(servers) {
                let ahead = served - stretch * (arrival - arrivals[first]);
                least = ahead.min(least);
                if !may(ahead - least) {
                    return false;
                }
                served += self.service;
            }
        }
        true
    }

    /// The same where who is free takes as many as wait, up to a full batch.
    fn merged(&self, arrivals: &[f64], stretch: f64, mut may: impl FnMut(f64) -> bool) -> bool {
        let at = |index: usize| stretch * (arrivals[index] - arrivals[0]);
        let mut free_from = vec![0.0_f64; usize::try_from(self.count.max(1)).unwrap_or(1)];
        let (mut first, full) = (0, usize::try_from(self.batching.most).unwrap_or(usize::MAX));
        while first < arrivals.len() {
            let Some(server) = free_from.iter_mut().min_by(|a, b| a.total_cmp(b)) else { return false };
            let begins = server.max(at(first));
            let waiting = (first..arrivals.len()).take(full).take_while(|&index| at(index) <= begins);
            let last = waiting.last().unwrap_or(first) + 1;
            let items = u32::try_from(last - first).unwrap_or(u32::MAX);
            let longer = self.service * (self.batching.time(items) - 1.0);
            *server = begins + self.service + longer;
            if !(first..last).all(|index| may(begins - at(index) + longer)) {
                return false;
            }
            first = last;
        }
        true
    }
}

/// The requests that were late so far, against how many may be.
struct Tally<'a> {
    slacks: &'a [Slack],
    /// Shortest wait that makes one late at all.
    shortest: f64,
    late: f64,
    most: f64,
}

impl<'a> Tally<'a> {
    /// Nothing if too many of those that `arrived` are late without waiting.
    fn new(arrived: f64, slacks: &'a [Slack], most: f64) -> Option<Self> {
        let (mut late, mut shortest) = (0.0, f64::INFINITY);
        for slack in slacks {
            if slack.seconds < 0.0 {
                late += slack.part * arrived;
            } else {
                shortest = slack.seconds.min(shortest);
            }
        }
        (late <= most).then_some(Self { slacks, shortest, late, most })
    }

    /// Takes in a request's wait; whether there is room for more.
    fn takes(&mut self, wait: f64) -> bool {
        if wait <= self.shortest {
            return true;
        }
        let is_late = |slack: &&Slack| slack.seconds >= 0.0 && wait > slack.seconds;
        self.late += self.slacks.iter().filter(is_late).map(|slack| slack.part).sum::<f64>();
        self.late <= self.most
    }
}

/// Arrivals that a rate alone lets expect: at a mean distance of 1 s, the same ones each time, with squared coefficient of
/// variation `scv` of the times between them, at least 1. For servers that merge requests, of which no formula is known that is
/// good enough.
///
/// Two exponentials with balanced means (Tijms, A First Course in Stochastic Models, appendix B): at 1 they are Poisson's.
pub fn expected(scv: f64) -> Cow<'static, [f64]> {
    static POISSON: OnceLock<Vec<f64>> = OnceLock::new();
    if scv <= 1.0 { Cow::Borrowed(POISSON.get_or_init(|| balanced(1.0))) } else { Cow::Owned(balanced(scv)) }
}

fn balanced(scv: f64) -> Vec<f64> {
    let often = 0.5 * (1.0 + ((scv - 1.0) / (scv + 1.0)).sqrt());
    let mut chances = Chances::default();
    let mut gap = || {
        let part = if chances.next() < often { often } else { 1.0 - often };
        -(1.0 - chances.next()).ln() / (2.0 * part)
    };
    let mut at = 0.0;
    let arrivals = (0..EXPECTED).map(|_| {
        at += gap();
        at
    });
    arrivals.collect()
}

/// Arrivals that are [`expected`]: of these, ten may be late where one in a hundred may.
const EXPECTED: usize = 1_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds that each request waits, by Lindley's recursion: the direct form.
    fn waits(arrivals: &[f64], stretch: f64, servers: usize, service: f64) -> Vec<f64> {
        let mut waits: Vec<f64> = Vec::new();
        for (index, &arrival) in arrivals.iter().enumerate() {
            let before = index.checked_sub(servers).map_or(0.0, |before| {
                // It began after its own wait, and took the service time.
                waits[before] + service - stretch * (arrival - arrivals[before])
            });
            waits.push(before.max(0.0));
        }
        waits
    }

    fn single(count: u32, service: f64) -> Servers {
        Servers { count, service, batching: Batching::NONE }
    }

    fn slack(seconds: f64) -> [Slack; 1] {
        [Slack { seconds, part: 1.0 }]
    }

    #[test]
    fn requests_wait_for_the_first_server_that_is_free() {
        let arrivals = [0.0, 0.1, 0.2, 5.0];
        let part = |stretch, servers, seconds, part| {
            let servers = single(servers, 1.0);
            assert!(servers.keep(&arrivals, stretch, &slack(seconds), part));
            assert!(part <= 0.0 || !servers.keep(&arrivals, stretch, &slack(seconds), part - 0.01));
        };
        // Of one server the four wait 0, 0.9, 1.8 and 0 s.
        part(1.0, 1, 0.0, 0.5);
        part(1.0, 1, 1.0, 0.25);
        part(1.0, 1, 2.0, 0.0);
        // Of two the third waits 0.8 s, or 0.9 if they come twice as fast.
        part(1.0, 2, 0.79, 0.25);
        part(1.0, 2, 0.81, 0.0);
        part(0.5, 2, 0.89, 0.25);
        part(0.5, 2, 0.91, 0.0);
        part(1.0, 1, -1.0, 1.0);
    }

    #[test]
    fn who_is_free_takes_all_that_wait_up_to_a_full_batch() {
        let servers = |count| Servers { count, service: 1.0, batching: Batching { most: 3, marginal: 0.5 } };
        let waits = |count, arrivals: &[f64]| {
            let mut waits = Vec::new();
            servers(count).merged(arrivals, 1.0, |wait| {
                waits.push(wait);
                true
            });
            waits
        };
        // The second to the fourth are one batch, of 2 s; the fifth follows alone.
        assert_eq!(waits(1, &[0.0, 0.25, 0.5, 0.75, 0.9]), [0.0, 1.75, 1.5, 1.25, 2.1]);
        // The third waits for the first server, at 1 s; the fourth is merged with it.
        assert_eq!(waits(2, &[0.0, 0.5, 0.75, 1.0]), [0.0, 0.0, 0.75, 0.5]);
    }

    #[test]
    fn expected_arrivals_are_as_many_and_as_bursty_as_said() {
        for scv in [0.0, 1.0, 4.0] {
            let arrivals = expected(scv);
            assert!(arrivals.is_sorted());
            let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let square = gaps.iter().map(|gap| gap * gap).sum::<f64>() / gaps.len() as f64;
            assert!((mean - 1.0).abs() < 0.1, "{scv}: {mean}");
            let found = square / (mean * mean) - 1.0;
            assert!((found / f64::max(scv, 1.0) - 1.0).abs() < 0.25, "{scv}: {found}");
        }
    }

    proptest! {
        #[test]
        fn batches_of_one_are_single_requests(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), count in 1u32..6, service in 0.0f64..3.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let mut found = Vec::new();
            single(count, service).merged(&arrivals, 1.0, |wait| { found.push(wait); true });
            for (found, wait) in found.iter().zip(waits(&arrivals, 1.0, count as usize, service)) {
                prop_assert!((found - wait).abs() < 1e-9);
            }
        }

        #[test]
        fn merging_that_costs_nothing_makes_nobody_wait_for_longer_than_one_service(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), count in 1u32..6, service in 0.0f64..3.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let servers = Servers { count, service, batching: Batching { most: 1_000, marginal: 0.0 } };
            prop_assert!(servers.keep(&arrivals, 1.0, &slack(service + 1e-9), 0.0));
        }

        #[test]
        fn more_servers_and_longer_gaps_never_make_a_request_wait_longer(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), servers in 1usize..6, service in 0.0f64..3.0,
            stretch in 0.1f64..2.0, more in 1.0f64..2.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let waited = waits(&arrivals, stretch, servers, service);
            for other in [waits(&arrivals, stretch, servers + 1, service), waits(&arrivals, stretch * more, servers, service)] {
                prop_assert!(waited.iter().zip(&other).all(|(wait, other)| *other <= wait + 1e-9));
            }
        }

        #[test]
        fn as_many_are_late_as_by_the_direct_form(
            gaps in prop::collection::vec(0.0f64..2.0, 1..80), servers in 1u32..6, service in 0.0f64..3.0,
            stretch in 0.1f64..2.0, slacks in prop::collection::vec((-0.2f64..3.0, 0.0f64..1.0), 1..4), most in 0.0f64..1.0,
        ) {
            let mut now = 0.0;
            let arrivals: Vec<f64> = gaps.iter().map(|gap| { now += gap; now }).collect();
            let slacks: Vec<_> = slacks.into_iter().map(|(seconds, part)| Slack { seconds, part }).collect();
            let waited = waits(&arrivals, stretch, servers as usize, service);
            let beyond = |seconds| waited.iter().filter(|&&wait| seconds < 0.0 || wait > seconds).count() as f64;
            let late: f64 = slacks.iter().map(|slack| slack.part * beyond(slack.seconds)).sum::<f64>() / arrivals.len() as f64;
            // What is late by rounding alone may go either way.
            let near = |wait: &f64| slacks.iter().any(|slack| (wait - slack.seconds).abs() < 1e-9);
            prop_assume!(!waited.iter().any(near) && (late - most).abs() > 1e-9);
            prop_assert_eq!(single(servers, service).keep(&arrivals, stretch, &slacks, most), late <= most);
        }
    }
}
