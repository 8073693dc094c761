//! How busy something was lately: busy time in sample periods over the last second, and its sum since the start.

use gpu_share::units::Nanos;

/// A sample period: NVIDIA documents a sixth of a second to a second, by product.
pub(crate) const BUCKET: u64 = 170_000_000;

/// Periods that lie in a second from begin to end.
const PERIODS: u64 = 1_000_000_000 / BUCKET;

/// Those, and the one that is not over yet; one more, so that it overwrites none of them.
const BUCKETS: usize = 8;

/// Busy time, in total and over the last second.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    total: Nanos,
    spans: u64,
    latest_end: Nanos,
    /// Busy nanoseconds in bucket `n % BUCKETS`, with the number `n` of the bucket.
    buckets: [(u64, u64); BUCKETS],
}

impl Load {
    /// Adds the busy span from `start` to `end`.
    pub(super) fn add(&mut self, start: Nanos, end: Nanos) {
        self.total += end.since(start);
        self.spans += 1;
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

    /// How many spans were added.
    pub(super) fn spans(&self) -> u64 {
        self.spans
    }

    /// When the latest span ended that was added.
    pub(super) fn latest_end(&self) -> Nanos {
        self.latest_end
    }

    /// Busy time since the start; `running` is when the span began that is not added yet.
    pub(super) fn total(&self, running: Option<Nanos>, now: Nanos) -> Nanos {
        self.total + running.map_or(Nanos::ZERO, |start| now.since(start))
    }

    /// Part of the completed sample periods of the last second that was busy, 0 to 100 %; `running` as in
    /// [`Load::total`].
    pub(super) fn percent(&self, running: Option<Nanos>, now: Nanos) -> u32 {
        let mut load = self.clone();
        if let Some(start) = running {
            load.add(start, now);
        }
        let end = now.0 / BUCKET;
        let completed = end.saturating_sub(PERIODS)..end;
        let busy: u64 =
            load.buckets.iter().filter(|(number, _)| completed.contains(number)).map(|bucket| bucket.1).sum();
        let span = PERIODS * BUCKET;
        u32::try_from(((busy * 100 + span / 2) / span).min(100)).unwrap_or(100)
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
    fn a_period_that_is_not_over_does_not_count_yet() {
        let mut load = Load::default();
        load.add(Nanos(10 * BUCKET), Nanos(11 * BUCKET));
        assert_eq!(load.percent(None, Nanos(11 * BUCKET - 1)), 0);
        assert_eq!(load.percent(None, Nanos(11 * BUCKET)), 20);
        assert_eq!(load.percent(None, Nanos(16 * BUCKET - 1)), 20);
        assert_eq!(load.percent(None, Nanos(16 * BUCKET)), 0);
    }

    #[test]
    fn a_span_that_is_still_running_counts() {
        let load = Load::default();
        assert_eq!(load.percent(Some(Nanos::from_secs(1)), Nanos::from_secs(9)), 100);
        assert_eq!(load.total(Some(Nanos::from_secs(1)), Nanos::from_secs(9)), Nanos::from_secs(8));
    }
}
