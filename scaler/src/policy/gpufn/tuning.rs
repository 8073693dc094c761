//! The numbers of the policy `gpufn` that may be tuned, each with its default and the reason for it.

use gpu_share::units::{Nanos, Quota};

/// What may be tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// How far ahead a grant must suffice: until the decision after the next has reached the GPU. 300 ms.
    pub vertical: Nanos,
    /// A grant is not lowered by less than this: small steps cost writes and bring nothing. 5 %.
    pub dead_band: Quota,
    /// A grant is not lowered below what was needed in this time: bursts come in groups. 1.5 s.
    pub hold: Nanos,
    /// Without a request for so long, a function's replicas are parked. 3 s.
    pub park_after: Nanos,
    /// The same where a request that wakes a replica at its floor would be late, because others in its row are at work: the
    /// time that is kept up is lent to them meanwhile. 20 s.
    pub park_late_after: Nanos,
    /// More replicas are started when the grants have been too little for so long: two decisions, so that one
    /// estimate off the mark starts nothing. 400 ms.
    pub confirm: Nanos,
    /// A replica is removed when it has not been needed for so long, or for a cold start if that is longer: what it
    /// cost idle is then what starting it again would cost, so the sum is at most twice the least possible (ski
    /// rental). 20 s.
    pub keep: Nanos,
    /// A function that allows no replica at all loses its last, parked one after so long: it holds memory only, and a
    /// first request would wait for a cold start. 300 s.
    pub keep_last: Nanos,
    /// A replica counts as not needed if the others bear the demand times this: what is removed at the limit comes
    /// back at once. 1.1.
    pub removal_margin: f64,
    /// Part of the objective's bound beyond which waiting or latency sets off the safety net. 0.7.
    pub alarm: f64,
    /// What one request late adds to the margin on the demand; one in time takes off so much that the margin settles
    /// where as many are late as are planned to be. 0.02.
    pub margin_gain: f64,
    /// Smallest margin on the demand, as a factor. For the number of replicas it is at least 1. 0.75.
    pub margin_least: f64,
    /// Largest margin on the demand, as a factor. 1.5.
    pub margin_most: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            vertical: Nanos::from_millis(300),
            dead_band: Quota::saturating_from_fraction(0.05),
            hold: Nanos::from_millis(1_500),
            park_after: Nanos::from_secs(3),
            park_late_after: Nanos::from_secs(20),
            confirm: Nanos::from_millis(400),
            keep: Nanos::from_secs(20),
            keep_last: Nanos::from_secs(300),
            removal_margin: 1.1,
            alarm: 0.7,
            margin_gain: 0.02,
            margin_least: 0.75,
            margin_most: 1.5,
        }
    }
}
