//! What a policy says of one function when it is asked why. Only the shapes, in units that people read.

use serde::{Deserialize, Serialize};

/// What is known of a function, and what was weighed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Requests a second now.
    pub rate: f64,
    /// Requests a second that grants are to bear: the forecast until a grant could change, with the margin.
    pub ready_for: f64,
    /// Requests a second that replicas are to bear: the forecast until another one could serve, with the margin.
    pub ready_for_cold: f64,
    /// Squared coefficient of variation of the times between arrivals: 1 for chance, more for bursts.
    pub burstiness: f64,
    /// Factor on the demand that late requests have raised or others lowered.
    pub margin: f64,
    /// What is known of one request; nothing before enough have finished.
    pub request: Option<Request>,
    /// Mean latency of the last two seconds in milliseconds, if a request ended in them.
    pub latency_ms: Option<f64>,
    /// Plans, in the order of replicas and quota.
    pub candidates: Vec<Candidate>,
}

/// What one request takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// GPU time on the function's SM share, in milliseconds.
    pub gpu_ms: f64,
    /// How far that may be off, as a part.
    pub uncertainty: f64,
    /// Time beside the GPU in milliseconds.
    pub beside_ms: f64,
}

/// One plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Replicas that serve.
    pub replicas: u32,
    /// Quota of each, in percent.
    pub quota_percent: f64,
    /// What it takes of GPUs.
    pub gpus: f64,
    /// The latency that the objective's percentile keeps to, in milliseconds; nothing if none.
    pub latency_ms: Option<f64>,
    /// Why it does not do; nothing if it does.
    pub refused: Option<String>,
    /// It is what is wanted now.
    pub is_chosen: bool,
}
