//! What a watchdog shows of latencies and of its binding, and the latencies of the requests that came between two readings.
//!
//! Owns that arithmetic. A watchdog counts latencies by bucket, so each is known as far as its bucket is wide; their sum is
//! known exactly. Pure.

use std::collections::BTreeMap;

use gpu_share::units::{Nanos, Quota};

use crate::traffic::exposition::samples;
use crate::traffic::{Counters, Reading};

/// Latencies that are told of one interval at most.
const MOST: usize = 20_000;
/// How much longer than the last bound a request is taken to be that is beyond it, as a factor, where the sum does not say.
const BEYOND: f64 = 1.5;

/// Everything that the control loop reads of one watchdog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// Requests, GPU time, quota.
    pub counters: Counters,
    /// Latencies of the requests that succeeded.
    pub durations: Durations,
    /// The most of the time that its binding gives it.
    pub ceiling: Option<Quota>,
}

/// Latencies so far, by bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    /// Upper bound of each bucket in seconds, rising, and the requests up to it.
    buckets: Vec<(f64, f64)>,
    /// Seconds of all of them together.
    sum: f64,
}

/// What the watchdogs of one function showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Their counters.
    pub counted: Reading,
    /// The rest, of the same replicas.
    pub durations: BTreeMap<String, Durations>,
    /// Ceilings of their bindings.
    pub ceiling: Option<Quota>,
}

impl Readings {
    /// Nothing yet, of so many replicas, asked at `at`.
    pub fn new(at: Nanos, expected: usize) -> Self {
        let counted = Reading { at, expected, replicas: BTreeMap::new() };
        Self { counted, ..Self::default() }
    }

    /// Adds what a replica showed.
    pub fn add(&mut self, replica: String, shown: Shown) {
        self.ceiling = self.ceiling.or(shown.ceiling);
        self.counted.replicas.insert(replica.clone(), shown.counters);
        self.durations.insert(replica, shown.durations);
    }
}

impl Shown {
    /// What a watchdog shows; nothing if it is no watchdog that answers.
    pub fn read(text: &str) -> Option<Self> {
        let counters = Counters::of_watchdog(text)?;
        let (mut durations, mut ceiling) = (Durations::default(), None);
        let is_sound = |value: f64| (0.0..=1e12).contains(&value);
        for sample in samples(text).filter(|sample| is_sound(sample.value)) {
            let is_served = || sample.label("code").is_some_and(|code| code.starts_with('2'));
            match sample.name {
                "http_request_duration_seconds_bucket" if is_served() => {
                    let bound = sample.label("le").and_then(|bound| bound.parse().ok());
                    if let Some(bound) = bound.filter(|bound: &f64| *bound > 0.0) {
                        durations.add(bound, sample.value);
                    }
                }
                "http_request_duration_seconds_sum" if is_served() => durations.sum += sample.value,
                "gpufn_function_quota_ceiling_ratio" => {
                    ceiling = Some(Quota::saturating_from_fraction(sample.value));
                }
                _ => {}
            }
        }
        Some(Self { counters, durations, ceiling })
    }
}

impl Durations {
    /// Adds the requests of one series up to `bound`.
    fn add(&mut self, bound: f64, count: f64) {
        match self.buckets.binary_search_by(|(other, _)| other.total_cmp(&bound)) {
            Ok(place) => self.buckets[place].1 += count,
            Err(place) => self.buckets.insert(place, (bound, count)),
        }
    }

    /// Latencies of the requests that ended since `before`: each within its bucket, and moved there so that together they
    /// take as long as they took. All that there were, if the watchdog has started anew.
    pub fn since(&self, before: &Self) -> Vec<Nanos> {
        let total = |of: &Self| of.buckets.last().map_or(0.0, |&(_, count)| count);
        let is_same = total(before) <= total(self) && before.sum <= self.sum;
        let nothing = Self::default();
        let before = if is_same { before } else { &nothing };
        let (mut placed, mut below, mut lower) = (Vec::new(), 0.0, 0.0);
        for &(bound, count) in &self.buckets {
            let up_to = count - before.count(bound);
            let (number, upper) =
                ((up_to - below).max(0.0), if bound.is_finite() { bound } else { lower * BEYOND });
            if number >= 0.5 {
                placed.push((lower, bound, lower.midpoint(upper.max(lower)), number));
            }
            (below, lower) = (up_to.max(below), if bound.is_finite() { bound } else { lower });
        }
        let guessed: f64 = placed.iter().map(|&(_, _, middle, number)| middle * number).sum();
        let took = self.sum - before.sum;
        let factor = if guessed > 0.0 && took > 0.0 { took / guessed } else { 1.0 };
        let each = |(lower, bound, middle, number): (f64, f64, f64, f64)| {
            let latency = Nanos::from_secs_f64((middle * factor).max(lower).min(bound));
            std::iter::repeat_n(latency, whole(number))
        };
        placed.into_iter().flat_map(each).take(MOST).collect()
    }

    /// Requests up to `bound`.
    fn count(&self, bound: f64) -> f64 {
        let place = self.buckets.binary_search_by(|(other, _)| other.total_cmp(&bound));
        place.ok().and_then(|place| self.buckets.get(place)).map_or(0.0, |&(_, count)| count)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(number: f64) -> usize {
    number.round().min(20_000.0) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(buckets: &[(&str, u64)], sum: f64) -> String {
        let series = |code: u32, le: &str, count: u64| {
            format!(
                "http_request_duration_seconds_bucket{{code=\"{code}\",method=\"post\",le=\"{le}\"}} {count}\n"
            )
        };
        let both = |&(le, count): &(&str, u64)| series(200, le, count) + &series(500, le, 9);
        let text = "http_requests_in_flight 0\ngpufn_function_quota_ceiling_ratio 0.8\n".to_string()
            + &buckets.iter().map(both).collect::<String>();
        text + &format!("http_request_duration_seconds_sum{{code=\"200\",method=\"post\"}} {sum}\n")
    }

    #[test]
    fn latencies_are_those_of_requests_that_succeeded_since() {
        let before = Shown::read(&text(&[("0.1", 3), ("0.25", 4), ("+Inf", 4)], 0.4)).unwrap();
        let now = Shown::read(&text(&[("0.1", 5), ("0.25", 5), ("+Inf", 5)], 0.56)).unwrap();
        assert_eq!(now.ceiling, Quota::from_percent(80).ok());
        let latencies = now.durations.since(&before.durations);
        let millis: Vec<_> = latencies.iter().map(|latency| latency.millis_f64().round()).collect();
        assert_eq!(millis, [80.0, 80.0], "two more took 160 ms together");
        assert_eq!(before.durations.since(&now.durations).len(), 4, "it has started anew");
        assert_eq!(now.durations.since(&now.durations), []);
    }

    #[test]
    fn requests_beyond_the_last_bound_take_what_the_sum_says() {
        let now = Shown::read(&text(&[("10", 0), ("+Inf", 2)], 60.0)).unwrap();
        assert_eq!(now.durations.since(&Durations::default()), [Nanos::from_secs(30); 2]);
    }

    proptest! {
        #[test]
        fn each_latency_is_in_its_bucket_and_none_is_lost(counts in prop::collection::vec(0u64..40, 5), mean in 0.001f64..20.0) {
            let bounds = ["0.05", "0.1", "1", "10", "+Inf"];
            let mut total = 0;
            let buckets: Vec<_> = bounds.iter().zip(&counts).map(|(le, count)| { total += count; (*le, total) }).collect();
            let shown = Shown::read(&text(&buckets, mean * f64::from(u32::try_from(total).unwrap()))).unwrap();
            let latencies = shown.durations.since(&Durations::default());
            prop_assert_eq!(latencies.len() as u64, total);
            for (place, bound) in [0.05, 0.1, 1.0, 10.0].iter().enumerate() {
                let up_to = latencies.iter().filter(|latency| latency.secs_f64() <= *bound).count() as u64;
                // A latency at a bound may count to either side.
                prop_assert!(up_to >= counts[..=place].iter().sum::<u64>(), "{:?}", latencies);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "(http_requests_in_flight 1\n)?(\\PC|\n|\"|\\{|\\}|=|le=\"){0,200}") {
            if let Some(shown) = Shown::read(&text) {
                let _ = shown.durations.since(&Durations::default());
            }
        }
    }
}
