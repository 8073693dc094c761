//! Waiting for a condition of another process, never longer than a deadline.

use std::time::{Duration, Instant};

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(20);

/// Looks until `look` gives something; fails the test after `patience`, naming `what` was waited for.
pub async fn until<T>(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < patience, "waited {patience:?} in vain for {what}");
        tokio::time::sleep(PERIOD).await;
    }
}

/// A moment between two looks that have a deadline, or a time that is part of what is measured.
#[allow(clippy::disallowed_methods)] // There is nothing to wait for that could be told.
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}
