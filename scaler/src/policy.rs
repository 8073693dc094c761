//! The policies, and what all of them see and say.
//!
//! Owns the vocabulary between whoever runs a policy and the policy itself. It carries nothing out: a decision names
//! what is wanted, and the next view tells what came of it.

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota};

pub use self::gpufn::{Gpufn, Tuning};
pub use self::kserve::{Concurrency, Kserve};

mod gpufn;
mod kserve;

/// What is known of one function when a decision is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionView {
    /// Its name, the same from one view to the next.
    pub name: String,
    /// What it asks for.
    pub wish: Wish,
    /// Memory of the GPU that its replicas run on.
    pub gpu_memory: Bytes,
    /// Π: the window over which quotas are kept on its nodes.
    pub window: Nanos,
    /// Its replicas, in any order.
    pub replicas: Vec<ReplicaView>,
    /// Requests that arrived since the last decision.
    pub arrivals: u64,
    /// Requests that wait at the gateway for a replica now.
    pub held: u32,
    /// Requests that are at replicas now.
    pub in_flight: u32,
    /// Latency of each request that finished since the last decision, as the gateway saw it.
    pub latencies: Vec<Nanos>,
    /// How long a cold start takes: the 95th percentile of recent ones, or a default.
    pub cold_start: Nanos,
}

/// What is known of one replica when a decision is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its id, the same from one view to the next and never used for another replica.
    pub id: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// The quota that it has now.
    pub grant: Quota,
    /// The most that its node could grant it now.
    pub room: Quota,
    /// Requests that it works on or has queued.
    pub in_flight: u32,
    /// Time since it was started.
    pub age: Nanos,
    /// GPU time that it used since the last decision.
    pub used: Nanos,
}

/// What a replica is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaState {
    /// Not ready for requests yet.
    Starting,
    /// Serving requests.
    Ready,
    /// Grant 0, its model still on the GPU; the node wakes it at its floor when a request comes.
    Parked,
    /// Finishing what it has, gets no more requests, then goes away.
    Draining,
}

/// What is wanted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// One line for people: the demand, and why this.
    pub reason: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give a replica this quota; a node that has less room gives less.
    Grant {
        /// Id of the replica.
        replica: String,
        /// Between the floor and the ceiling of its share.
        quota: Quota,
    },
    /// Take all of a replica's time, and leave its model on the GPU.
    Park {
        /// Id of the replica.
        replica: String,
    },
    /// Have this many replicas, parked and starting ones included; what is too many is drained, newest first.
    Scale {
        /// Name of the function.
        function: String,
        /// Within the bounds of its wish.
        replicas: u32,
    },
}

/// Decides for all functions that it is shown.
pub trait Policy: Send {
    /// The name that [`by_name`] knows it by.
    fn name(&self) -> &'static str;

    /// The share that each replica of a function is bound with.
    fn share(&self, wish: &Wish, gpu_memory: Bytes) -> Share;

    /// What to change at `now`, given what was observed since the last call; no decision means no change.
    ///
    /// To be called every 100 to 250 ms with all functions: a function that is not shown is forgotten.
    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision>;
}

/// The policy called `name`: `gpufn` or `kserve`.
pub fn by_name(name: &str, profiles: Profiles) -> Result<Box<dyn Policy>, Invalid> {
    match name {
        "gpufn" => Ok(Box::new(Gpufn::new(profiles, Tuning::default()))),
        "kserve" => Ok(Box::new(Kserve::default())),
        _ => Err(Invalid::new("policy", name, "gpufn or kserve")),
    }
}

#[cfg(test)]
mod tests;
