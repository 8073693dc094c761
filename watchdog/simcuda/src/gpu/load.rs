//! How busy something was lately: busy time in buckets over the last second, and its sum since the start.

use gpu_share::units::Nanos;

const BUCKETS: usize = 20;
const BUCKET: u64 = 50_000_000;

/// Busy time, in total and over the last second.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    total: Nanos,
    latest_end: Nanos,
    /// Busy nanoseconds in bucket `n % BUCKETS`, with the number `n` of the bucket.
    buckets: [(u64, u64); BUCKETS],
}

impl Load {
    /// Adds the busy span from `start` to `end`.
    pub(super) fn add(&mut self, start: Nanos, end: Nanos) {
        self.total += end.since(start);
        self.latest_end = self.latest_end.max(end);
        // What lies further back than the buckets reach would be overwritten anyway.
        let mut from = start.0.max(end.0.saturating_sub(BUCKET * (BUCKETS as u64 - 1)));
        while from < end.0 {
            let number = from / BUCKET;
            let until = end.0.min((number + 1) * BUCKET);
            let slot = &mut self.buckets[slot(number)];
            if slot.0 != number {
                *slot = (number, 0);
            }
            slot.1 += until - from;
            from = until;
        }
    }

    /// When the latest span ended that was added.
    pub(super) fn latest_end(&self) -> Nanos {
        self.latest_end
    }

    /// Busy time since the start; `running` is when the span began that is not added yet.
    pub(super) fn total(&self, running: Option<Nanos>, now: Nanos) -> Nanos {
        self.total + running.map_or(Nanos::ZERO, |start| now.since(start))
    }

    /// Part of the last second that was busy, 0 to 100 %; `running` as in [`Load::total`].
    pub(super) fn percent(&self, running: Option<Nanos>, now: Nanos) -> u32 {
        let mut load = self.clone();
        if let Some(start) = running {
            load.add(start, now);
        }
        let newest = now.0 / BUCKET;
        let oldest = newest.saturating_sub(BUCKETS as u64 - 1);
        let busy: u64 =
            load.buckets.iter().filter(|(number, _)| (oldest..=newest).contains(number)).map(|b| b.1).sum();
        let span = now.0.saturating_sub(oldest * BUCKET).max(1);
        u32::try_from((busy * 100 / span).min(100)).unwrap_or(100)
    }
}

#[allow(clippy::cast_possible_truncation)] // Less than BUCKETS.
fn slot(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_last_second_is_fifty_percent() {
        let mut load = Load::default();
        for ms in (0..3000).step_by(2) {
            load.add(Nanos::from_millis(ms), Nanos::from_millis(ms + 1));
        }
        assert_eq!(load.percent(None, Nanos::from_secs(3)), 50);
        assert_eq!(load.percent(None, Nanos::from_secs(5)), 0);
        assert_eq!(load.total(None, Nanos::from_secs(5)), Nanos::from_millis(1500));
    }

    #[test]
    fn a_span_that_is_still_running_counts() {
        let load = Load::default();
        assert_eq!(load.percent(Some(Nanos::from_secs(1)), Nanos::from_secs(9)), 100);
        assert_eq!(load.total(Some(Nanos::from_secs(1)), Nanos::from_secs(9)), Nanos::from_secs(8));
    }
}
