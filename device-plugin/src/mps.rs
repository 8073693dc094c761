//! NVIDIA's multi-process service (MPS), through which processes use a GPU beside each other: which daemon there is, and
//! what a container must be told of it.
//!
//! Owns the daemon's life where the agent started it: start, watch, restart, end. What an SM share is worth is the
//! driver's business, and what may run when is the arbiter's.

use std::env;
use std::path::{Path, PathBuf};

use gpu_share::share::Share;

mod control;
pub(crate) mod keeper;
mod lifecycle;
#[cfg(test)]
mod tests;

/// Folder of the daemon's sockets, for daemon and clients.
pub(crate) const PIPES: &str = "CUDA_MPS_PIPE_DIRECTORY";
/// Folder of the daemon's logs.
const LOGS: &str = "CUDA_MPS_LOG_DIRECTORY";
/// Most memory of a client on each device, in the order that the client sees them.
const MEMORY_LIMIT: &str = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT";
/// Whether a client may read its SM share anew for each context.
const PER_CONTEXT: &str = "CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING";

/// Where clients look for the daemon if nobody says otherwise (MPS documentation).
const DEFAULT_PIPES: &str = "/tmp/nvidia-mps";

/// What the agent has to do with the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MpsChoice {
    /// Start the control daemon, and keep it running.
    Start,
    /// Use one that somebody else keeps running.
    Use,
    /// Nothing.
    Off,
}

/// Which control daemon there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mps {
    /// None that the agent knows of.
    #[default]
    Off,
    /// Somebody else's, with its sockets in this folder.
    Use(PathBuf),
    /// The agent's own, started with this program, with its folders in the state folder.
    Start(PathBuf),
}

impl Mps {
    /// What `choice` comes to on this machine; without one, a daemon is used if the environment names its folder.
    pub fn resolve(choice: Option<MpsChoice>, program: PathBuf) -> Self {
        let named = env::var_os(PIPES).map(PathBuf::from);
        match choice {
            Some(MpsChoice::Start) => Self::Start(program),
            Some(MpsChoice::Use) => Self::Use(named.unwrap_or_else(|| DEFAULT_PIPES.into())),
            Some(MpsChoice::Off) => Self::Off,
            None => named.filter(|folder| folder.is_dir()).map_or(Self::Off, Self::Use),
        }
    }

    /// Folder of the daemon's sockets, if there is a daemon; `state` is the agent's folder.
    pub fn pipes(&self, state: &Path) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::Use(folder) => Some(folder.clone()),
            Self::Start(_) => Some(state.join("mps").join("pipe")),
        }
    }
}

/// What the processes of a container with `share` need beside their SM share, with the daemon's sockets in `pipes`.
///
/// All of it is read when a process starts to use the GPU, and never again.
pub(crate) fn client_variables(pipes: &Path, share: &Share) -> [(&'static str, String); 3] {
    let mebibytes = share.memory.0.div_ceil(1 << 20);
    [
        (PIPES, pipes.to_string_lossy().into_owned()),
        // A container sees one GPU, which is device 0 for it.
        (MEMORY_LIMIT, format!("0={mebibytes}M")),
        (PER_CONTEXT, "0".into()),
    ]
}
