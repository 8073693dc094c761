//! The monotonic clock, counted from the start of `up`. Decisions never read it; they are told the time.

use std::time::{Duration, Instant};

use gpu_share::units::Nanos;

/// Time since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Nanos {
        self.start.elapsed().into()
    }

    /// The instant at which this clock shows `at`.
    pub(crate) fn instant(self, at: Nanos) -> Instant {
        self.start + Duration::from(at)
    }
}
