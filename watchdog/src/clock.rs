//! A time that is cheap to read, for what need not be exact: it is that of the kernel's last tick, some milliseconds ago
//! (`CLOCK_MONOTONIC_COARSE` of `clock_gettime(2)`).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How far it is behind at most: the longest tick of Linux (100 Hz).
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Time since some start that is the same for the whole process.
pub(crate) fn coarse() -> Duration {
    // Since the machine's start, so never negative.
    Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_on_with_the_exact_time() {
        let (start, exact) = (coarse(), Instant::now());
        while exact.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let (passed, exact) = (coarse().saturating_sub(start), exact.elapsed());
        assert!(passed.abs_diff(exact) < Duration::from_millis(40), "{passed:?} of {exact:?}");
    }
}
