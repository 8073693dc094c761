//! What a simulated GPU tells those who look from outside: the answer to a `stats` request, one JSON line.

use serde::{Deserialize, Serialize};

use crate::card::Device;

/// The line that asks for [`Stats`].
pub const REQUEST: &str = "{\"request\":\"stats\"}\n";

/// All GPUs of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// `exclusive` or `mps`.
    pub mode: String,
    /// The daemon's monotonic clock.
    pub now_ns: u64,
    /// Calls of the management library hang, because somebody ordered so.
    #[serde(default)]
    pub hung: bool,
    /// Number of the last Xid event.
    #[serde(default)]
    pub events: u64,
    /// The GPUs, by index.
    pub gpus: Vec<GpuStats>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuStats {
    /// Which one.
    #[serde(flatten)]
    pub device: Device,
    /// Memory in use, in bytes.
    pub memory_used: u64,
    /// Time during which at least one kernel ran, up to now.
    pub busy_ns: u64,
    /// Part of the last second during which a kernel ran, in percent.
    pub utilization: u32,
    /// It fell off the bus, because somebody ordered so.
    #[serde(default)]
    pub lost: bool,
    /// What the driver says is to be done for it, 0 for nothing (`nvmlDeviceGpuRecoveryAction_t`).
    #[serde(default)]
    pub recovery: u32,
    /// Processes, those that ended lately included.
    pub clients: Vec<ClientStats>,
}

/// One process on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStats {
    /// Process, as the daemon sees it.
    pub pid: u32,
    /// Whether it is still connected.
    pub alive: bool,
    /// GPU time of its kernels, the running one up to now included.
    pub busy_ns: u64,
    /// Memory it holds, in bytes.
    pub memory: u64,
    /// Kernels that ran to their end, copies and fills on the SMs included.
    pub kernels: u64,
    /// Kernels that run now.
    pub running: usize,
    /// Operations queued or running.
    pub pending: u64,
    /// Contexts it has.
    pub contexts: usize,
    /// Part of the last second that its kernels took, in percent.
    pub utilization: u32,
}
