//! Reads the source in time.
//!
//! At whole multiples of the period of the wall clock: so several scalers read at the same moments, and see the same.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::board::Board;
use super::clock::Clock;
use super::metrics::Metrics;
use super::source::{Readings, Source};

/// Reads `source` every `period`, until dropped.
pub(super) async fn run<S: Source>(
    source: S,
    period: Duration,
    board: Arc<Board>,
    clock: Clock,
    metrics: Arc<Metrics>,
) {
    let mut is_failing = false;
    loop {
        tokio::time::sleep(until_next(SystemTime::now(), period)).await;
        let roster = board.roster();
        let timer = metrics.reads();
        let read = source.read(clock.now(), &roster).await;
        drop(timer);
        match (&read, is_failing) {
            (Err(error), false) => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::warn!(%error, cause, "load can't be read; what is needed is not told once it is too old");
            }
            (Ok(_), true) => tracing::info!("load is read again"),
            _ => {}
        }
        is_failing = read.is_err();
        let readings = read.unwrap_or_else(|_| {
            metrics.read_failed();
            Readings::new()
        });
        board.observe(&roster, &readings);
    }
}

/// Time from `now` until the next whole multiple of `period` since the epoch.
fn until_next(now: SystemTime, period: Duration) -> Duration {
    let passed = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let period = period.as_nanos().max(1);
    let left = period - passed % period;
    Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_at_whole_multiples_of_the_period() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let second = Duration::from_secs(1);
        assert_eq!(until_next(at(5_250), second), Duration::from_millis(750));
        assert_eq!(until_next(at(5_000), second), second, "not twice at the same moment");
    }
}
