//! What is known of each kind of work that this process launches.
//!
//! Kept by function and order of magnitude of its size, since one kernel serves many batch sizes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

pub(crate) use gpu_share::accounting::cost::Cost;

/// Kinds of work that are kept; beyond that all others share one.
const MOST_KINDS: usize = 1 << 16;

/// Names a kind of work: a function or operation, and the order of magnitude of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    what: usize,
    magnitude: u32,
}

impl Kind {
    /// `what` at `size` (blocks or bytes).
    pub(crate) fn new(what: usize, size: u64) -> Self {
        Self { what, magnitude: size.max(1).ilog2() }
    }
}

/// What is known of all kinds of work.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    kinds: Mutex<HashMap<Kind, &'static Cost>>,
    others: Cost,
}

impl Costs {
    /// The cost of `kind`.
    pub(crate) fn of(&'static self, kind: Kind) -> &'static Cost {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&kind) {
            return &self.others;
        }
        kinds.entry(kind).or_insert_with(|| Box::leak(Box::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_one_magnitude_share_an_estimate_and_others_do_not() {
        let costs: &'static Costs = Box::leak(Box::default());
        let at = |blocks| core::ptr::from_ref(costs.of(Kind::new(7, blocks)));
        assert_eq!(at(64), at(100));
        assert_ne!(at(64), at(128));
        assert_eq!(at(0), at(1));
    }
}
