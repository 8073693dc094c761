//! The policy `knative-kpa`: Knative's concurrency autoscaler on slices of a fixed size; the last one goes too, where a
//! function allows it.
//!
//! Rule: that of `kserve`, with a target of one request at once: a slice works on one after the other.

use gpu_share::annotations::Wish;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};

use super::{Concurrency, Decision, FunctionView, Kserve, Policy, fixed_slice};

/// The policy `knative-kpa`.
#[derive(Debug)]
pub struct KnativeKpa(Kserve);

impl Default for KnativeKpa {
    fn default() -> Self {
        Self(Kserve::new(Concurrency { target: 1.0, to_zero: true, ..Concurrency::default() }))
    }
}

impl Policy for KnativeKpa {
    fn name(&self) -> &'static str {
        "knative-kpa"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        fixed_slice(wish)
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        self.0.decide(now, functions)
    }
}
