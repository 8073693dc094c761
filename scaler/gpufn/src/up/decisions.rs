//! The record of what was done to functions, and why: the last ten thousand entries, numbered.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use gpu_share::units::Nanos;

use crate::view::DecisionRecord;

/// Entries kept.
const KEPT: usize = 10_000;

/// The record.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    inner: Mutex<(u64, VecDeque<DecisionRecord>)>,
}

impl Decisions {
    /// Adds an entry; its number and time are filled in.
    pub(crate) fn add(&self, now: Nanos, record: DecisionRecord) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, records) = &mut *inner;
        *last += 1;
        let record = DecisionRecord { seq: *last, at_s: now.secs_f64(), ..record };
        tracing::info!(
            function = record.function,
            instance = record.instance.as_deref().unwrap_or("-"),
            action = record.action,
            from = record.from,
            to = record.to,
            reason = record.reason,
            "Decision carried out."
        );
        records.push_back(record);
        if records.len() > KEPT {
            records.pop_front();
        }
    }

    /// Entries with a number above `after`, the newest `last` of them, oldest first.
    pub(crate) fn after(&self, after: u64, last: usize) -> Vec<DecisionRecord> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let first =
            inner.1.partition_point(|record| record.seq <= after).max(inner.1.len().saturating_sub(last));
        inner.1.range(first..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_by_one_and_the_oldest_go() {
        let decisions = Decisions::default();
        for _ in 0..KEPT + 3 {
            decisions.add(Nanos::ZERO, DecisionRecord::default());
        }
        let all = decisions.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].seq), (KEPT, 4));
        assert_eq!(decisions.after(KEPT as u64 + 2, 5).len(), 1);
        assert_eq!(decisions.after(0, 2)[0].seq, KEPT as u64 + 2);
    }
}
