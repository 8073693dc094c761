//! The arrivals of the last minute, to be replayed, and the highest rate among them.
//!
//! Only counts are known; within an interval, arrivals are spread by chance, always the same way for the same counts.

use std::collections::VecDeque;

use crate::chances::Chances;

/// Seconds that are remembered.
const WINDOW: f64 = 60.0;
/// Arrivals that are remembered at most: of a high rate fewer seconds tell as much.
const MOST: usize = 3_000;
/// Arrivals from which on they tell something.
const FEW: usize = 100;

/// The last minute.
#[derive(Clone, Debug)]
pub struct Recent {
    /// Times of arrivals in seconds since the first observation, rising; those before `first` are past.
    arrivals: Vec<f64>,
    first: usize,
    /// Ends of intervals since the oldest of them, and the steady rate there, if no later one was higher.
    rates: VecDeque<(f64, f64)>,
    now: f64,
    chances: Chances,
}

impl Default for Recent {
    fn default() -> Self {
        Self { arrivals: Vec::new(), first: 0, rates: VecDeque::new(), now: 0.0, chances: Chances::default() }
    }
}

impl Recent {
    /// `count` requests came in `seconds`, at the end of which the steady rate is `rate`.
    pub(super) fn add(&mut self, count: u64, seconds: f64, rate: f64) {
        let start = self.arrivals.len();
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(MOST);
        for _ in 0..count {
            let at = self.now + seconds * self.chances.next();
            self.arrivals.push(at);
        }
        self.arrivals[start..].sort_unstable_by(f64::total_cmp);
        self.now += seconds;
        let fresh = self.arrivals[self.first..].partition_point(|&at| at < self.now - WINDOW);
        self.first = (self.first + fresh).max(self.arrivals.len().saturating_sub(MOST));
        if self.first > 2 * MOST {
            self.arrivals.drain(..core::mem::take(&mut self.first));
        }
        while self.rates.pop_back_if(|&mut (_, before)| before <= rate).is_some() {}
        self.rates.push_back((self.now, rate));
        let since = self.arrivals.get(self.first).copied().unwrap_or(self.now);
        while self.rates.pop_front_if(|&mut (at, _)| at < since).is_some() {}
    }

    /// Times of the arrivals in seconds, rising; nothing if there are too few to tell anything.
    pub fn arrivals(&self) -> Option<&[f64]> {
        Some(&self.arrivals[self.first..]).filter(|arrivals| arrivals.len() >= FEW)
    }

    /// The highest steady rate in their time, requests a second.
    pub fn peak(&self) -> f64 {
        self.rates.front().map_or(0.0, |&(_, rate)| rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered_as_it_was_counted() {
        let mut recent = Recent::default();
        assert_eq!(recent.arrivals(), None);
        for second in 0..200_u64 {
            recent.add(second % 7, 1.0, (second % 7) as f64);
        }
        let arrivals = recent.arrivals().unwrap();
        assert!(arrivals.is_sorted());
        assert!(arrivals.iter().all(|at| (140.0..=200.0).contains(at)));
        for second in 141..200 {
            let from = second as f64;
            let count = arrivals.iter().filter(|&&at| at >= from && at < from + 1.0).count();
            assert_eq!(count as u64, second % 7, "second {second}");
        }
        assert!((recent.peak() - 6.0).abs() < 1e-9);
    }

    #[test]
    fn it_does_not_grow_with_time_or_rate() {
        let mut recent = Recent::default();
        for _ in 0..1_000 {
            recent.add(u64::MAX, 0.2, 1e9);
        }
        assert!(recent.arrivals.len() <= 4 * MOST && recent.rates.len() <= 302, "{}", recent.arrivals.len());
        assert_eq!(recent.arrivals().unwrap().len(), MOST);
    }
}
