//! The policies, and what all of them see and say.
//!
//! Owns the vocabulary between whoever runs a policy and the policy itself. It carries nothing out: a decision names
//! what is wanted, and the next view tells what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};

pub use self::explained::{Candidate, Explained, Request};
pub use self::fast_gshare::FastGshare;
pub use self::gpufn::{Gpufn, Tuning};
pub use self::has_gpu::{Faults, HasGpu};
pub use self::hpa::Hpa;
pub use self::knative_kpa::KnativeKpa;
pub use self::kserve::{Concurrency, Kserve};
pub use self::oracle::{Future, Oracle};
pub use self::themis::Themis;

mod explained;
mod fast_gshare;
mod gpufn;
mod has_gpu;
mod hpa;
mod knative_kpa;
mod kserve;
mod oracle;
mod rows;
mod themis;

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
    /// The last replica that was to start has found no room on any GPU.
    pub no_room: bool,
}

/// What is known of one replica when a decision is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its id, the same from one view to the next and never used for another replica.
    pub id: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// What it is bound with.
    pub share: Share,
    /// Position of its GPU among all.
    pub gpu: u32,
    /// Number of its row there: who is in one row runs one after the other, and is lent the time that others leave.
    pub row: u32,
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
    /// Start one more replica with a share of its own, at its floor: what policies say that keep their own books of GPUs.
    Start {
        /// Name of the function.
        function: String,
        /// What it is bound with.
        share: Share,
        /// Position of the GPU among all.
        gpu: u32,
    },
    /// Drain this replica, and have one less: what the same policies say, and one that has replaced it in a better place.
    Stop {
        /// Id of the replica.
        replica: String,
    },
}

/// Decides for all functions that it is shown.
pub trait Policy: Send {
    /// The name that [`by_name`] knows it by.
    fn name(&self) -> &'static str;

    /// The share that each replica of a function is bound with.
    fn share(&self, wish: &Wish, gpu_memory: Bytes) -> Share;

    /// Whether it keeps its own books of GPUs, and says by [`Action::Start`] and [`Action::Stop`] which replicas there are
    /// and where; others say how many by [`Action::Scale`], and the ledger finds them a place.
    fn places(&self) -> bool {
        false
    }

    /// What to change at `now`, given what was observed since the last call; no decision means no change.
    ///
    /// To be called every 100 to 250 ms with all functions: a function that is not shown is forgotten.
    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision>;

    /// What it knows of a function and which plans it weighs, as of the last decision; nothing where it knows nothing, or
    /// can't say.
    fn explain(&self, function: &FunctionView) -> Option<Explained> {
        let _ = function;
        None
    }
}

/// What a policy believes of latencies: of a model's batch at an SM share and quota; `None` where it knows nothing.
pub type LatencyOf = Arc<dyn Fn(&str, u32, SmShare, Quota) -> Option<Nanos> + Send + Sync>;

/// Policies that [`by_name`] makes.
const BY_NAME: [&str; 5] = ["gpufn", "kserve", "knative-kpa", "hpa", "themis"];

/// The policy called `name`: `gpufn`, `kserve`, `knative-kpa`, `hpa` or `themis`. Those that need more than profiles are made
/// by who compares them.
pub fn by_name(name: &str, profiles: Profiles) -> Result<Box<dyn Policy>, Invalid> {
    match name {
        "gpufn" => Ok(Box::new(Gpufn::new(profiles, Tuning::default()))),
        "kserve" => Ok(Box::new(Kserve::default())),
        "knative-kpa" => Ok(Box::new(KnativeKpa::default())),
        "hpa" => Ok(Box::new(Hpa::default())),
        "themis" => Ok(Box::new(Themis::new(profiles))),
        _ => Err(Invalid::new("policy", name, format!("one of {}", BY_NAME.join(", ")))),
    }
}

/// Forgets what is known of functions that are not shown any more.
fn forget<T>(known: &mut BTreeMap<String, T>, shown: &[FunctionView]) {
    let is_shown: BTreeSet<_> = shown.iter().map(|view| view.name.as_str()).collect();
    known.retain(|name, _| is_shown.contains(name.as_str()));
}

/// The share of replicas that are never resized: the SM share that was asked for, all of its time.
fn fixed_slice(wish: &Wish) -> Share {
    Share { floor: wish.share.ceiling, ..wish.share }
}

#[cfg(test)]
mod tests;
