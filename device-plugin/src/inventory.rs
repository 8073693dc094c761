//! Which GPUs this node has, asked of NVML by the path of its library.
//!
//! A simulated driver brings an NVML of its own, so real and simulated nodes take the same way. Decides nothing.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gpu_share::binding::GpuId;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::units::Bytes;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::health::{NvmlSource, Source};
use crate::mps::Mps;

/// Why the GPUs are not known.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The library can't be used.
    #[error("--nvml is {path}, allowed is the path of an NVML library that finds a GPU: {reason}")]
    Nvml {
        /// Path of the library.
        path: PathBuf,
        /// What NVML or the loader says.
        reason: NvmlError,
    },
    /// The library works, but there is no GPU.
    #[error("{0} finds no GPU")]
    Empty(PathBuf),
    /// It does not answer.
    #[error("--nvml is {path}, allowed is the path of an NVML library that answers within {} s", patience.as_secs())]
    Silent {
        /// Path of the library.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// How it is decided whether processes use a GPU beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SharingChoice {
    /// `mps` if there is a daemon of NVIDIA's multi-process service, else `exclusive`.
    #[default]
    Auto,
    /// Beside each other, each on its SM share.
    Mps,
    /// One at a time.
    Exclusive,
}

impl SharingChoice {
    /// What it comes to with the daemon that there is.
    pub fn resolve(self, mps: &Mps) -> Sharing {
        match self {
            Self::Exclusive => Sharing::Exclusive,
            Self::Auto if *mps == Mps::Off => Sharing::Exclusive,
            Self::Mps | Self::Auto => Sharing::Mps,
        }
    }
}

/// A source of GPUs.
pub trait Inventory {
    /// All GPUs of this node, used as `sharing` says; waits no longer than `patience` for whoever knows.
    fn gpus(&self, sharing: Sharing, patience: Duration) -> Result<Vec<Gpu>, InventoryError>;

    /// What reports how they are from then on, if anything does.
    fn source(&self) -> Option<Box<dyn Source>> {
        None
    }
}

/// The GPUs that an NVML library finds.
#[derive(Clone, Debug)]
pub struct NvmlInventory {
    path: PathBuf,
}

impl NvmlInventory {
    /// Asks the library at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn read(&self, sharing: Sharing) -> Result<Vec<Gpu>, NvmlError> {
        let nvml = Nvml::builder().lib_path(self.path.as_os_str()).init()?;
        let gpus = (0..nvml.device_count()?).filter_map(|index| {
            describe(&nvml, index, sharing)
                .inspect_err(|error| tracing::error!(index, %error, "GPU does not answer and is left out."))
                .ok()
        });
        Ok(gpus.collect())
    }
}

fn describe(nvml: &Nvml, index: u32, sharing: Sharing) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = Bytes(device.memory_info()?.total);
    Ok(Gpu { id: GpuId(device.uuid()?), index, name: device.name()?, memory, sharing })
}

impl Inventory for NvmlInventory {
    fn gpus(&self, sharing: Sharing, patience: Duration) -> Result<Vec<Gpu>, InventoryError> {
        let path = self.path.clone();
        // On a thread of its own, since no call to NVML is sure to return.
        let (answer, answered) = mpsc::channel();
        let reader = self.clone();
        let asking = thread::Builder::new().name("inventory".into()).spawn(move || {
            // Who has stopped waiting needs no answer.
            let _ = answer.send(reader.read(sharing));
        });
        let read = asking.map_err(|_| ()).and_then(|_| answered.recv_timeout(patience).map_err(|_| ()));
        let gpus = match read {
            Ok(Ok(gpus)) => gpus,
            Ok(Err(reason)) => return Err(InventoryError::Nvml { path, reason }),
            Err(()) => return Err(InventoryError::Silent { path, patience }),
        };
        if gpus.is_empty() { Err(InventoryError::Empty(path)) } else { Ok(gpus) }
    }

    fn source(&self) -> Option<Box<dyn Source>> {
        Some(Box::new(NvmlSource::new(self.path.clone())))
    }
}
