//! The monotonic clock, which agent, hook and watchdog share on one machine.

use gpu_share::units::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// Now.
pub(crate) fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Nanos::from_secs(seconds) + Nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
}
