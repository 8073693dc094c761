//! What a function has and how it does, in a few numbers: for the status of its profile.

/// One function at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Replicas that are ready.
    pub ready: usize,
    /// Requests a second.
    pub rate: f64,
    /// Requests a second that its grants are to bear.
    pub forecast: f64,
    /// The quota that each replica that serves needs, in percent, if it is known.
    pub planned: Option<f64>,
    /// Requests of the last minute that were late, and all of them; older ones faded.
    pub late: f64,
    /// All of them.
    pub ended: f64,
    /// The objective.
    pub slo: Option<String>,
    /// Its pods, and the quota of each in percent.
    pub grants: Vec<(String, f64)>,
}
