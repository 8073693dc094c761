//! Kernel time of one container, added up in slots of time. Kernels that run at once count each: on an SM share of a half,
//! two of them are the whole GPU.

use gpu_share::units::Nanos;
use gpufn::figures::number;

/// Length of a slot.
const SLOT: Nanos = Nanos::from_millis(10);

/// Kernel time.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy {
    slots: Vec<u64>,
    running: u64,
    since: Nanos,
    total: Nanos,
}

impl Busy {
    pub(super) fn begin(&mut self, now: Nanos) {
        self.count(now);
        self.running += 1;
    }

    pub(super) fn end(&mut self, now: Nanos) {
        self.count(now);
        self.running -= 1;
    }

    /// Adds what ran since the last look.
    fn count(&mut self, now: Nanos) {
        if self.running > 0 {
            self.total += Nanos(self.running * now.since(self.since).0);
            self.add(self.since, now);
        }
        self.since = now;
    }

    fn add(&mut self, mut from: Nanos, to: Nanos) {
        while from < to {
            let slot = from.0 / SLOT.0;
            let end = to.min(Nanos((slot + 1) * SLOT.0));
            let slot = usize::try_from(slot).unwrap_or(usize::MAX);
            if slot >= self.slots.len() {
                self.slots.resize(slot + 1, 0);
            }
            self.slots[slot] += self.running * end.since(from).0;
            from = end;
        }
    }

    /// Up to `now`, what runs included.
    pub(super) fn total(&self, now: Nanos) -> Nanos {
        self.total + Nanos(self.running * now.since(self.since).0)
    }

    /// Part of each whole `window` up to `now`, percent.
    pub(super) fn percent(&self, now: Nanos, window: Nanos) -> Vec<f64> {
        let mut whole = self.clone();
        whole.count(now);
        let slots = usize::try_from(window.0 / SLOT.0).unwrap_or(1).max(1);
        let windows = usize::try_from(now.0 / window.0).unwrap_or(0);
        whole.slots.resize(windows * slots, 0);
        let sums = whole.slots.chunks(slots).map(|chunk| chunk.iter().sum::<u64>());
        sums.map(|busy| 100.0 * number(busy) / number(window.0)).collect()
    }
}
