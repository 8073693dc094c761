//! The bound on concurrent requests: `max_inflight`. Counts, and never queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hands out as many slots as there may be requests at once.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: usize,
    taken: AtomicUsize,
}

/// The right to be one of the concurrent requests; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Option<Arc<Limiter>>);

impl Limiter {
    /// At most `limit` slots at once; 0 for any number.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    /// The most slots at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A slot, if one is left.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        if self.limit == 0 {
            return Some(Slot(None));
        }
        let more = |taken: usize| (taken < self.limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Slot(Some(Arc::clone(self))))
    }

    /// Whether no slot is left.
    pub(crate) fn is_full(&self) -> bool {
        self.limit != 0 && self.taken.load(Ordering::Acquire) >= self.limit
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(limiter) = &self.0 {
            limiter.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_given_back_can_be_taken_again() {
        let limiter = Limiter::new(2);
        let (first, second) = (limiter.take().unwrap(), limiter.take().unwrap());
        assert!(limiter.is_full() && limiter.take().is_none());
        drop(first);
        assert!(!limiter.is_full());
        let third = limiter.take();
        assert!(third.is_some() && limiter.take().is_none());
        drop((second, third));
        assert!(!limiter.is_full());
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let limiter = Limiter::new(0);
        let slots: Vec<_> = (0..1000).map(|_| limiter.take()).collect();
        assert!(slots.iter().all(Option::is_some) && !limiter.is_full());
    }

    #[test]
    fn threads_never_hold_more_slots_than_there_are() {
        let limiter = Limiter::new(3);
        let held = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        if let Some(_slot) = limiter.take() {
                            assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                            held.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(!limiter.is_full());
    }
}
