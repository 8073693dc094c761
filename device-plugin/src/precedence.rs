//! Precedence of the thread between a container's message and its consequence.
//!
//! A right that turns late leaves the GPU idle, so this thread comes before other work of the machine. It sleeps nearly
//! all the time.

use core::num::NonZeroU64;

/// Nice value of the thread that turns rights.
const NICE: i32 = -10;
/// How much later than asked a timer may fire, in nanoseconds; the system's default is 50 µs.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::MIN;

/// Gives the calling thread precedence, as far as the system allows: without `CAP_SYS_NICE` only exact timers.
pub(crate) fn take() {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
        tracing::debug!(%error, "no precedence for the arbiter");
    }
    if let Err(error) = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK)) {
        tracing::debug!(%error, "timers of the arbiter may be late");
    }
}
