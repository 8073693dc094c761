//! What a GPU is like: its size, its speed, and how clients share it.

use gpu_share::units::{Bytes, Nanos};

/// How the kernels of several clients share the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One client's kernels at a time, in turns; SM shares are ignored, as without MPS.
    Exclusive,
    /// Kernels of several clients at once while their SM shares sum to at most 100 %, as with MPS.
    Mps,
}

/// What kind of card this is, and how it is shared.
#[derive(Clone, Debug)]
pub struct Config {
    /// How clients share it.
    pub mode: Mode,
    /// Memory of the card.
    pub memory: Bytes,
    /// Memory that each context takes.
    pub context_memory: Bytes,
    /// How long the creation of a context takes.
    pub context_time: Nanos,
    /// How long a client may keep the GPU while others wait, in exclusive mode. Kernels are not preempted.
    pub slice: Nanos,
    /// Bytes per second that each copy engine moves between host and device.
    pub copy_bandwidth: u64,
    /// Bytes per second of a copy within the device.
    pub device_bandwidth: u64,
}

impl Config {
    /// A card with `memory`, with defaults near to those of a real one for all the rest.
    pub fn of_memory(mode: Mode, memory: Bytes) -> Self {
        Self {
            mode,
            memory,
            context_memory: Bytes::mib(300),
            context_time: Nanos::from_millis(150),
            slice: Nanos::from_millis(2),
            copy_bandwidth: 12_000_000_000,
            device_bandwidth: 400_000_000_000,
        }
    }
}
