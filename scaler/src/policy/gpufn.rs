//! The policy `gpufn`: vertical first, horizontal where that does not reach, park when idle.
//!
//! Owns when grants and replica counts change. What they must be is [`crate::plan`]'s, what comes is
//! [`crate::demand`]'s.

use std::collections::BTreeMap;

use gpu_share::annotations::{Scaling, Wish};
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};

use self::function::Function;
pub use self::tuning::Tuning;
use super::{Decision, FunctionView, Policy};

mod function;
mod observed;
mod tuning;

/// The policy `gpufn`.
#[derive(Debug)]
pub struct Gpufn {
    profiles: Profiles,
    tuning: Tuning,
    functions: BTreeMap<String, Known>,
}

/// A function that was seen before, and the wish that what is known of it holds for.
#[derive(Debug)]
struct Known {
    wish: Wish,
    function: Function,
}

impl Gpufn {
    /// The policy with these profiles and numbers.
    pub fn new(profiles: Profiles, tuning: Tuning) -> Self {
        Self { profiles, tuning, functions: BTreeMap::new() }
    }

    /// The state of a function; it starts anew when the wish changes, for that is another model or share.
    fn known(&mut self, now: Nanos, view: &FunctionView) -> &mut Function {
        let fresh = || Known {
            wish: view.wish.clone(),
            function: Function::new(now, view, &self.profiles, &self.tuning),
        };
        let known = self.functions.entry(view.name.clone()).or_insert_with(fresh);
        if known.wish != view.wish {
            *known = Known {
                wish: view.wish.clone(),
                function: Function::new(now, view, &self.profiles, &self.tuning),
            };
        }
        &mut known.function
    }
}

impl Policy for Gpufn {
    fn name(&self) -> &'static str {
        "gpufn"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        self.functions.retain(|name, _| functions.iter().any(|view| view.name == *name));
        let mut decisions = Vec::new();
        for view in functions {
            let tuning = self.tuning;
            let function = self.known(now, view);
            if view.wish.scaling == Scaling::Off {
                continue;
            }
            decisions.extend(function.decide(now, view, &tuning));
        }
        decisions
    }
}
