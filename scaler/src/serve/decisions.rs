//! What was decided and why, for the web page: `GET /v1/decisions`, as `gpufn up` tells it. The last thousand entries, numbered.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use gpu_share::units::Nanos;
use serde::Serialize;

use super::fleet::FunctionName;

/// Entries kept.
const KEPT: usize = 1000;

/// The record.
#[derive(Debug, Default)]
pub(super) struct Decisions(Mutex<(u64, VecDeque<Decision>)>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Decision {
    /// Number, rising by one.
    seq: u64,
    /// Seconds since the scaler started.
    at_s: f64,
    function: String,
    namespace: String,
    /// `need`: KEDA is told another number of replicas.
    action: &'static str,
    /// Replicas before.
    from: Option<f64>,
    /// Replicas after.
    to: Option<f64>,
    reason: String,
}

impl Decisions {
    /// A function needs another number of replicas.
    pub(super) fn needs(
        &self,
        now: Nanos,
        function: &FunctionName,
        from: Option<f64>,
        to: f64,
        reason: &str,
    ) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, records) = &mut *inner;
        *last += 1;
        records.push_back(Decision {
            seq: *last,
            at_s: now.secs_f64(),
            function: function.name.clone(),
            namespace: function.namespace.clone(),
            action: "need",
            from,
            to: Some(to),
            reason: reason.into(),
        });
        if records.len() > KEPT {
            records.pop_front();
        }
    }

    /// Those with a number above `after`, the newest `last` of them, oldest first.
    pub(super) fn after(&self, after: u64, last: usize) -> Vec<Decision> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.1.partition_point(|record| record.seq <= after);
        inner.1.range(known.max(inner.1.len().saturating_sub(last))..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_the_newest_are_told() {
        let (decisions, name) =
            (Decisions::default(), FunctionName { namespace: "fn".into(), name: "resnet".into() });
        for _ in 0..KEPT + 3 {
            decisions.needs(Nanos::ZERO, &name, None, 1.0, "why");
        }
        let seqs = |after, last| decisions.after(after, last).iter().map(|one| one.seq).collect::<Vec<_>>();
        assert_eq!((seqs(0, KEPT).len(), seqs(0, KEPT)[0]), (KEPT, 4));
        assert_eq!(seqs(0, 2), [1002, 1003]);
        assert_eq!(seqs(1002, 5), [1003]);
    }
}
