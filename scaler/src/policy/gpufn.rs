//! The policy `gpufn`: vertical first, horizontal where that does not reach, park when idle.
//!
//! Owns when grants and replica counts change. What they must be is [`crate::plan`]'s, what comes is
//! [`crate::demand`]'s.

use std::collections::BTreeMap;

use gpu_share::annotations::{Scaling, Wish};
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos};

use self::counts::Moves;
use self::function::Function;
use self::shortage::Shortage;
pub use self::tuning::Tuning;
use super::rows::Rows;
use super::{Decision, Explained, FunctionView, Policy};

mod counts;
mod explain;
mod function;
mod grants;
mod observed;
mod shortage;
mod tuning;

/// The policy `gpufn`.
#[derive(Debug)]
pub struct Gpufn {
    profiles: Profiles,
    tuning: Tuning,
    functions: BTreeMap<String, Known>,
    rows: Rows,
    moves: Moves,
    shortage: Shortage,
}

/// A function that was seen before, and the wish that what is known of it holds for.
#[derive(Debug)]
struct Known {
    wish: Wish,
    function: Function,
}

impl Gpufn {
    /// From now on it also knows these profiles. Of functions that it has seen before, what was learnt stays.
    pub fn learn(&mut self, profiles: Profiles) {
        let known = core::mem::take(&mut self.profiles);
        self.profiles = known.with(profiles);
    }

    /// The policy with these profiles and numbers.
    pub fn new(profiles: Profiles, tuning: Tuning) -> Self {
        Self {
            profiles,
            tuning,
            functions: BTreeMap::new(),
            rows: Rows::default(),
            moves: Moves::default(),
            shortage: Shortage::default(),
        }
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
        super::forget(&mut self.functions, functions);
        self.rows.look(now, functions);
        let mut decisions = Vec::new();
        for view in functions {
            let others: Vec<_> = view.replicas.iter().map(|replica| self.rows.beside(replica)).collect();
            // It starts anew when the wish changes, for that is another model or share.
            let is_known = self.functions.get(&view.name).is_some_and(|known| known.wish == view.wish);
            if !is_known {
                let function = Function::new(now, view, &self.profiles, &self.tuning);
                self.functions.insert(view.name.clone(), Known { wish: view.wish.clone(), function });
            }
            let Some(known) = self.functions.get_mut(&view.name) else { continue };
            if view.wish.scaling != Scaling::Off {
                decisions.extend(known.function.decide(now, view, &others, &self.tuning, &mut self.moves));
            }
        }
        self.shortage.look(now, functions, &mut self.functions);
        decisions
    }

    fn explain(&self, view: &FunctionView) -> Option<Explained> {
        let known = self.functions.get(&view.name)?;
        let others: Vec<_> = view.replicas.iter().map(|replica| self.rows.beside(replica)).collect();
        Some(known.function.explain(view, &others))
    }
}
