//! What `GET /v1/overview` and `GET /v1/decisions` say, as far as the tests look at it.

use serde::Deserialize;

/// Everything at one moment.
#[derive(Clone, Debug, Deserialize)]
pub struct Overview {
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// The functions.
    pub functions: Vec<Function>,
}

impl Overview {
    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }
}

/// One GPU.
#[derive(Clone, Debug, Deserialize)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Part of the GPU that is reserved.
    pub reserved_ratio: f64,
}

/// One function.
#[derive(Clone, Debug, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Times a replica's quota was changed while it ran.
    pub vertical_changes: u64,
    /// Times a replica was parked.
    pub parks: u64,
    /// Times a parked replica was woken.
    pub wakes: u64,
    /// Replicas started while requests could have used them.
    pub cold_starts: u64,
    /// Its replicas.
    pub replicas: Vec<Replica>,
}

impl Function {
    /// Replicas that take requests.
    pub fn serving(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|replica| matches!(replica.state.as_str(), "ready" | "parked"))
    }
}

/// One replica.
#[derive(Clone, Debug, Deserialize)]
pub struct Replica {
    /// Its name.
    pub instance: String,
    /// `starting`, `ready`, `parked` or `draining`.
    pub state: String,
    /// Its binding.
    pub binding: Option<String>,
    /// Quota floor, percent.
    pub floor_percent: f64,
    /// Quota now, percent.
    pub grant_percent: f64,
    /// Quota ceiling, percent.
    pub ceiling_percent: f64,
    /// Its watchdog's process.
    pub watchdog_pid: Option<u32>,
    /// The function's own process.
    pub pid: Option<u32>,
    /// GPU memory held, bytes.
    pub memory_used_bytes: u64,
    /// GPU memory that it may hold, bytes.
    pub memory_limit_bytes: u64,
}

/// One thing that was done, and why.
#[derive(Clone, Debug, Deserialize)]
pub struct Decision {
    /// Number, rising by one.
    pub seq: u64,
    /// The function.
    pub function: String,
    /// What was done.
    pub action: String,
    /// Quota percent or replica count before.
    pub from: Option<f64>,
    /// Quota percent or replica count after.
    pub to: Option<f64>,
    /// Why.
    pub reason: String,
}
