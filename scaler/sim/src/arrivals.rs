//! When requests arrive, one after the other: nothing is made in advance.

use std::collections::BTreeMap;

use gpu_share::units::Nanos;

use crate::random::{Purpose, Stream};

/// A part of a load in which the rate goes linearly from one value to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// Its length in seconds, above 0.
    pub seconds: f64,
    /// Requests a second at its start.
    pub from: f64,
    /// Requests a second at its end.
    pub to: f64,
}

/// How requests arrive, whatever becomes of those before them.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// A Poisson process whose rate changes.
    Poisson(Vec<Segment>),
    /// As many requests in each minute as were counted, independent of each other within it.
    Minutes(Vec<u32>),
    /// A Poisson process whose rate jumps between two values, so that counts have a given index of dispersion (1 for a
    /// plain Poisson process).
    Mmpp {
        /// Mean rate, requests a second.
        rate: f64,
        /// Limit of variance over mean of the count in a long time.
        dispersion: f64,
        /// Length in seconds.
        seconds: f64,
    },
    /// At times that were recorded, in rising order.
    Times(Vec<Nanos>),
    /// The published client of HAS-GPU: each step's requests go through twice as many workers as it has requests a
    /// second, and the next step begins when all of them are answered.
    Client(Vec<Segment>),
}

impl Load {
    /// Its length in seconds, if all are answered at once.
    #[allow(clippy::cast_precision_loss)] // Minutes of days.
    pub fn seconds(&self) -> f64 {
        match self {
            Self::Poisson(segments) | Self::Client(segments) => segments.iter().map(|s| s.seconds).sum(),
            Self::Minutes(minutes) => 60.0 * minutes.len() as f64,
            Self::Mmpp { seconds, .. } => *seconds,
            Self::Times(times) => times.last().map_or(0.0, |last| last.secs_f64()),
        }
    }

    /// Expected number of requests.
    #[allow(clippy::cast_precision_loss)] // Requests of days.
    pub fn requests(&self) -> f64 {
        match self {
            Self::Poisson(segments) | Self::Client(segments) => {
                segments.iter().map(|s| s.seconds * f64::midpoint(s.from, s.to)).sum()
            }
            Self::Minutes(minutes) => minutes.iter().copied().map(f64::from).sum(),
            Self::Mmpp { rate, seconds, .. } => rate * seconds,
            Self::Times(times) => times.len() as f64,
        }
    }
}

/// The rate that a load has at each time: what somebody knows who knows the future, but not chance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intensity {
    /// From when on, in seconds, and requests a second.
    steps: Vec<(f64, f64)>,
}

impl Intensity {
    /// Of the load of function number `index` under `seed`.
    #[allow(clippy::cast_precision_loss)] // Minutes of days.
    pub fn of(load: &Load, seed: u64, index: u32) -> Self {
        let mut steps = match load {
            Load::Poisson(segments) | Load::Client(segments) => stairs(segments),
            Load::Minutes(minutes) => {
                let minute = |(at, &count): (usize, &u32)| (60.0 * at as f64, f64::from(count) / 60.0);
                minutes.iter().enumerate().map(minute).collect()
            }
            Load::Times(times) => counted(times),
            Load::Mmpp { .. } => {
                let mut arrivals = Arrivals::new(load.clone(), Stream::new(seed, Purpose::Arrivals, index));
                let mut steps = Vec::new();
                while let Some(at) = arrivals.next() {
                    steps.push((at.secs_f64(), arrivals.rate_of_state()));
                }
                steps
            }
        };
        steps.push((load.seconds(), 0.0));
        steps.dedup_by(|next, before| next.1.to_bits() == before.1.to_bits());
        Self { steps }
    }

    /// The largest rate between two times.
    pub fn most(&self, from: Nanos, to: Nanos) -> f64 {
        let first = self.steps.partition_point(|&(at, _)| at <= from.secs_f64()).saturating_sub(1);
        let here = self.steps.iter().skip(first).take_while(|&&(at, _)| at < to.secs_f64());
        here.map(|&(_, rate)| rate).fold(0.0, f64::max)
    }
}

/// Segments in steps of a second, each at the larger rate of its ends.
fn stairs(segments: &[Segment]) -> Vec<(f64, f64)> {
    let (mut steps, mut start) = (Vec::new(), 0.0);
    for segment in segments {
        let slope = (segment.to - segment.from) / segment.seconds;
        let ends =
            std::iter::successors(Some(0.0_f64), |at| Some(at + 1.0)).take_while(|at| *at < segment.seconds);
        steps.extend(ends.map(|at| {
            let end = (at + 1.0).min(segment.seconds);
            (start + at, (segment.from + slope * at).max(segment.from + slope * end))
        }));
        start += segment.seconds;
    }
    steps
}

/// Requests that were recorded, as rates of the seconds in which there were any and of the first ones after them.
#[allow(clippy::cast_precision_loss)] // Seconds of days.
fn counted(times: &[Nanos]) -> Vec<(f64, f64)> {
    let mut counts = BTreeMap::from([(0, 0.0)]);
    for at in times {
        let second = at.0 / Nanos::from_secs(1).0;
        counts.entry(second + 1).or_insert(0.0);
        *counts.entry(second).or_default() += 1.0;
    }
    counts.into_iter().map(|(second, count)| (second as f64, count)).collect()
}

/// Part by which the two rates of an MMPP are above and below its mean.
const SWING: f64 = 0.9;

/// The arrivals of one function.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    load: Load,
    random: Stream,
    /// The present segment or minute, and when it starts.
    place: usize,
    start: f64,
    /// Expected requests of the present segment, and how fast its rate rises.
    expected: f64,
    slope: f64,
    /// Expected requests from the segment's start to the next arrival; requests of the minute that are to come; or the
    /// end of the MMPP's present state.
    progress: f64,
    last: f64,
    high: bool,
}

impl Arrivals {
    pub(crate) fn new(load: Load, mut random: Stream) -> Self {
        let (mut progress, mut high) = (0.0, false);
        match &load {
            Load::Poisson(_) => progress = random.exponential(),
            Load::Minutes(minutes) => progress = minutes.first().copied().map_or(0.0, f64::from),
            Load::Mmpp { .. } => high = random.unit() < 0.5,
            Load::Client(_) | Load::Times(_) => {}
        }
        let (expected, slope) = (0.0, 0.0);
        let mut arrivals =
            Self { load, random, place: 0, start: 0.0, expected, slope, progress, last: 0.0, high };
        arrivals.enter_segment();
        if let Load::Mmpp { rate, dispersion, .. } = arrivals.load {
            arrivals.progress = arrivals.stay(rate, dispersion);
        }
        arrivals
    }

    /// Time of the next arrival.
    pub(crate) fn next(&mut self) -> Option<Nanos> {
        let seconds = match self.load {
            Load::Poisson(_) => self.next_poisson()?,
            Load::Minutes(_) => self.next_of_minute()?,
            Load::Mmpp { rate, dispersion, seconds } => self.next_mmpp(rate, dispersion, seconds)?,
            Load::Times(_) => return self.next_recorded(),
            Load::Client(_) => return None,
        };
        self.last = seconds;
        Some(Nanos::from_secs_f64(seconds))
    }

    fn next_recorded(&mut self) -> Option<Nanos> {
        let Load::Times(times) = &self.load else { return None };
        let next = times.get(self.place).copied();
        self.place += 1;
        next
    }

    /// A process with a changing rate is one of rate 1 whose clock is the expected number of requests so far.
    fn next_poisson(&mut self) -> Option<f64> {
        loop {
            let Load::Poisson(segments) = &self.load else { return None };
            let segment = *segments.get(self.place)?;
            if self.progress < self.expected {
                // The root of rate·t + slope·t²/2 = progress, in the form that is exact for a small slope.
                let root = (segment.from * segment.from + 2.0 * self.slope * self.progress).max(0.0).sqrt();
                let after = 2.0 * self.progress / (segment.from + root).max(f64::MIN_POSITIVE);
                self.progress += self.random.exponential();
                return Some(self.start + after.clamp(0.0, segment.seconds));
            }
            self.progress -= self.expected;
            self.start += segment.seconds;
            self.place += 1;
            self.enter_segment();
        }
    }

    /// Works out what every arrival of the present segment needs.
    fn enter_segment(&mut self) {
        let Load::Poisson(segments) = &self.load else { return };
        if let Some(segment) = segments.get(self.place) {
            self.expected = segment.seconds * f64::midpoint(segment.from, segment.to);
            self.slope = (segment.to - segment.from) / segment.seconds;
        }
    }

    /// The least of k independent times is as far as `1 − u^(1/k)` of what is left of the minute.
    fn next_of_minute(&mut self) -> Option<f64> {
        let Load::Minutes(minutes) = &self.load else { return None };
        while self.progress < 0.5 {
            self.place += 1;
            self.start += 60.0;
            self.progress = minutes.get(self.place).copied().map(f64::from)?;
        }
        let from = self.last.max(self.start);
        let part = 1.0 - (-self.random.exponential() / self.progress).exp();
        self.progress -= 1.0;
        Some(from + part * (self.start + 60.0 - from))
    }

    fn next_mmpp(&mut self, rate: f64, dispersion: f64, seconds: f64) -> Option<f64> {
        let mut at = self.last;
        loop {
            let next = at + self.random.exponential() / self.rate_of_state().max(f64::MIN_POSITIVE);
            if next < self.progress {
                return Some(next).filter(|&next| next < seconds);
            }
            if self.progress >= seconds {
                return None;
            }
            at = self.progress;
            self.high = !self.high;
            self.progress = at + self.stay(rate, dispersion);
        }
    }

    /// Rate of the MMPP's present state.
    fn rate_of_state(&self) -> f64 {
        match self.load {
            Load::Mmpp { rate, dispersion, .. } if dispersion <= 1.0 => rate,
            Load::Mmpp { rate, .. } => rate * if self.high { 1.0 + SWING } else { 1.0 - SWING },
            _ => 0.0,
        }
    }

    /// How long it stays in a state. Two states with rates λ(1 ± a) that are left at rate r give an index of dispersion of
    /// `1 + a²λ/r` (Fischer and Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993).
    fn stay(&mut self, rate: f64, dispersion: f64) -> f64 {
        if dispersion <= 1.0 {
            return f64::INFINITY;
        }
        self.random.exponential() * (dispersion - 1.0) / (SWING * SWING * rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(load: Load, seed: u64) -> Vec<f64> {
        let mut arrivals = Arrivals::new(load, Stream::new(seed, Purpose::Arrivals, 0));
        std::iter::from_fn(|| arrivals.next()).map(Nanos::secs_f64).collect()
    }

    #[test]
    fn what_was_recorded_comes_again_and_has_the_rate_of_each_second() {
        let recorded: Vec<_> = [100, 900, 2_500, 2_600, 2_700].map(Nanos::from_millis).into();
        let load = Load::Times(recorded.clone());
        let again: Vec<_> = times(load.clone(), 1).into_iter().map(Nanos::from_secs_f64).collect();
        assert_eq!(again, recorded);
        assert!((load.seconds() - 2.7).abs() < 1e-9 && (load.requests() - 5.0).abs() < 1e-9);
        let rates = Intensity::of(&load, 1, 0);
        let second = |at| rates.most(Nanos::from_secs(at), Nanos::from_secs(at + 1));
        let expected = [2.0, 0.0, 3.0, 0.0];
        assert!((0..).zip(expected).all(|(at, rate)| (second(at) - rate).abs() < 1e-9));
    }

    #[test]
    fn a_minute_has_as_many_requests_as_were_counted() {
        let counts = vec![0, 3, 100, 0, 7];
        let times = times(Load::Minutes(counts.clone()), 1);
        assert!(times.is_sorted());
        for (minute, count) in (0u32..).zip(counts) {
            let from = 60.0 * f64::from(minute);
            let found = times.iter().filter(|&&at| at >= from && at < from + 60.0).count();
            assert_eq!(found, count as usize, "minute {minute}");
        }
    }

    #[test]
    fn a_poisson_process_follows_its_rate() {
        let segment = |seconds, from, to| Segment { seconds, from, to };
        let load = Load::Poisson(vec![
            segment(100.0, 0.0, 40.0),
            segment(50.0, 0.0, 0.0),
            segment(100.0, 10.0, 10.0),
        ]);
        let times = times(load.clone(), 3);
        assert!(times.is_sorted());
        let between = |a: f64, b: f64| times.iter().filter(|&&at| at >= a && at < b).count() as f64;
        assert!((between(0.0, 100.0) - 2000.0).abs() < 150.0);
        assert!((between(50.0, 100.0) / between(0.0, 100.0) - 0.75).abs() < 0.04);
        assert_eq!(times.iter().filter(|&&at| (100.0..150.0).contains(&at)).count(), 0);
        assert!((load.requests() - 3000.0).abs() < 1e-9);
    }

    #[test]
    fn what_will_come_is_known_as_a_rate() {
        let segment = |seconds, from, to| Segment { seconds, from, to };
        let secs = Nanos::from_secs;
        let ramp =
            Intensity::of(&Load::Poisson(vec![segment(10.0, 0.0, 10.0), segment(5.0, 2.0, 2.0)]), 1, 0);
        assert!((ramp.most(secs(2), secs(4)) - 4.0).abs() < 1e-9);
        assert!((ramp.most(secs(9), secs(12)) - 10.0).abs() < 1e-9);
        assert!((ramp.most(secs(11), secs(20)) - 2.0).abs() < 1e-9);
        assert!(ramp.most(secs(15), secs(99)).abs() < 1e-9);
        let minutes = Intensity::of(&Load::Minutes(vec![60, 0, 120]), 1, 0);
        assert!((minutes.most(secs(0), secs(60)) - 1.0).abs() < 1e-9);
        assert!((minutes.most(secs(0), secs(130)) - 2.0).abs() < 1e-9);
        let bursts = |dispersion| Intensity::of(&Load::Mmpp { rate: 20.0, dispersion, seconds: 100.0 }, 1, 0);
        assert!((bursts(1.0).most(secs(10), secs(90)) - 20.0).abs() < 1e-9);
        assert!((bursts(16.0).most(secs(0), secs(100)) - 38.0).abs() < 1e-9);
    }

    #[test]
    fn an_mmpp_has_the_dispersion_that_was_asked_for() {
        for dispersion in [1.0, 4.0, 16.0] {
            let times = times(Load::Mmpp { rate: 20.0, dispersion, seconds: 40_000.0 }, 5);
            let mut counts = vec![0.0; 800];
            for at in times {
                counts[(at / 50.0) as usize] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / 800.0;
            let variance = counts.iter().map(|count| (count - mean) * (count - mean)).sum::<f64>() / 799.0;
            assert!((mean / 50.0 - 20.0).abs() < 0.8, "{mean}");
            assert!((variance / mean / dispersion - 1.0).abs() < 0.15, "{} of {dispersion}", variance / mean);
        }
    }
}
