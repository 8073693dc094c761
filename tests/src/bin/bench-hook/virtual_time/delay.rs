//! How long what is not modelled takes: calls of the driver, messages, wake-ups.
//!
//! Values of the real parts on a small machine, with a spread, so that no two runs of a cell are alike and none depends
//! on a lucky phase.

use gpu_share::units::Nanos;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A launch, in the driver.
pub(super) const LAUNCH: Nanos = Nanos::from_micros(3);
/// A record of an event, in the driver.
pub(super) const RECORD: Nanos = Nanos::from_micros(2);
/// From the end of the last work to the return of a synchronisation.
pub(super) const SYNC: Nanos = Nanos::from_micros(20);
/// From an event to the harvester's look at it.
pub(super) const EVENT: Nanos = Nanos::from_micros(25);
/// From one thread of a process to another.
pub(super) const NOTIFY: Nanos = Nanos::from_micros(10);
/// From the agent's write to a page to the thread that waited for it.
pub(super) const FUTEX: Nanos = Nanos::from_micros(20);
/// From a process to the agent.
pub(super) const MESSAGE: Nanos = Nanos::from_micros(25);
/// From the agent's deadline to its decision.
pub(super) const TIMER: Nanos = Nanos::from_micros(60);
/// Between the starts of processes.
pub(super) const START: Nanos = Nanos::from_micros(300);

/// One in so many waits is long, since something else has the processor.
const LONG_ONE_IN: u32 = 500;
/// A long wait is so many times as long.
const LONG: f64 = 20.0;

/// Draws delays.
#[derive(Debug)]
pub(super) struct Delay(StdRng);

impl Delay {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Half to one and a half times `mean`, and now and then much more.
    pub(super) fn of(&mut self, mean: Nanos) -> Nanos {
        let spread = 0.5 + self.0.random::<f64>();
        // Only waits of other threads are disturbed: a call of the driver goes through.
        let disturbed = mean > LAUNCH && self.0.random_ratio(1, LONG_ONE_IN);
        Nanos::from_secs_f64(mean.secs_f64() * if disturbed { LONG } else { spread })
    }
}
