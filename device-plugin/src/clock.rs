//! The monotonic clock, which agent, hook and watchdog share on one machine.

use gpu_share::units::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// Who looks at the clock ten times a second and then for so long not at all was halted.
const HALTED: Nanos = Nanos::from_secs(1);

/// Time that stands still while the agent is halted (a frozen machine, a debugger): for what happened meanwhile nobody is
/// charged, and nobody has earned anything.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Nanos,
    halted: Nanos,
}

impl Clock {
    /// A clock that was not halted yet.
    pub(crate) fn new() -> Self {
        Self { last: monotonic(), halted: Nanos::ZERO }
    }

    /// Now.
    pub(crate) fn now(&mut self) -> Nanos {
        self.at(monotonic())
    }

    /// Nobody looked for a while, since there was nothing to do: that was no halt.
    pub(crate) fn rested(&mut self) {
        self.last = monotonic();
    }

    fn at(&mut self, now: Nanos) -> Nanos {
        let passed = now.since(self.last);
        if passed >= HALTED {
            tracing::warn!(seconds = passed.secs_f64(), "the agent was halted");
            self.halted += passed;
        }
        self.last = now;
        now.since(self.halted)
    }
}

/// Now.
pub(crate) fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Nanos::from_secs(seconds) + Nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_while_nobody_looks() {
        let second = Nanos::from_secs(1);
        let mut clock = Clock { last: second, halted: Nanos::ZERO };
        let soon = second + Nanos::from_millis(100);
        assert_eq!(clock.at(soon), soon);
        assert_eq!(clock.at(soon + Nanos::from_secs(60)), soon);
        assert_eq!(clock.at(soon + Nanos::from_secs(60) + Nanos(7)), soon + Nanos(7));
    }
}
