//! Health of the GPUs: what is seen of them, and which take new bindings.
//!
//! ```text
//!  NVML  ──calls──►  nvml (its own thread, may hang) ──reports──►  watch (its own thread, waits for nobody)
//!  kernel log ──lines──► kernel_log ──────────────────────────────┘   │ state: one machine per GPU (pure)
//!                                                                     ▼
//!                                        owner: ledger, status, events; whoever follows `Handle::health`
//! ```
//!
//! Nothing here touches what runs: a GPU that is unhealthy takes no new bindings, and keeps those that it has. No call to
//! NVML is made anywhere else once the agent has started, so nothing that serves a pod waits for it.

use std::path::PathBuf;

use gpu_share::binding::GpuId;

pub use desk::Desk;
pub use state::Rules;

mod desk;
mod kernel_log;
mod nvml;
mod state;
mod watch;
mod xid;

pub(crate) use nvml::NvmlSource;
pub(crate) use watch::{News, UNSEEN, Watch};
pub(crate) use xid::{Meaning, describe};

/// What decides about the health of GPUs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// When a GPU is unhealthy, and when it is healthy again.
    pub rules: Rules,
    /// Xids that are counted and otherwise ignored.
    pub ignored: Vec<u64>,
    /// The kernel's log, which names the process of an Xid; NVML does not.
    pub kernel_log: Option<PathBuf>,
}

/// Something that was seen of the GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing happened; calls return.
    Alive,
    /// A GPU was asked how it is: sound, or what is wrong.
    Probed(GpuId, Result<(), String>),
    /// The driver reported an Xid.
    Xid {
        /// On which GPU.
        gpu: GpuId,
        /// Its PCI address without the function, in lower case, as the kernel's log has it: `0000:3b:00`.
        bus: String,
        /// Which.
        xid: u64,
    },
    /// No GPU can be asked, and why.
    Closed(Closed),
    /// There will be no more reports.
    End,
}

/// Why no GPU can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// There is no driver: no GPU works.
    NoDriver(String),
    /// The library can't be used, which says nothing of the GPUs.
    Blind(String),
}

/// A source of reports about GPUs.
pub trait Source: Send {
    /// Reports about `gpus` through `desk`, until it can't go on or is told to end.
    fn observe(&mut self, gpus: &[GpuId], desk: &Desk) -> Closed;
}
