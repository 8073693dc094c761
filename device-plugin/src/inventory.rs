//! Which GPUs this node has, asked of NVML by the path of its library.
//!
//! A simulated driver brings an NVML of its own, so real and simulated nodes take the same way. Decides nothing.

use std::path::PathBuf;

use gpu_share::binding::GpuId;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::units::Bytes;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

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
    /// All GPUs of this node, used as `sharing` says.
    fn gpus(&self, sharing: Sharing) -> Result<Vec<Gpu>, InventoryError>;
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
        let gpus = (0..nvml.device_count()?).map(|index| {
            let device = nvml.device_by_index(index)?;
            let memory = Bytes(device.memory_info()?.total);
            Ok(Gpu { id: GpuId(device.uuid()?), index, name: device.name()?, memory, sharing })
        });
        gpus.collect()
    }
}

impl Inventory for NvmlInventory {
    fn gpus(&self, sharing: Sharing) -> Result<Vec<Gpu>, InventoryError> {
        let gpus =
            self.read(sharing).map_err(|reason| InventoryError::Nvml { path: self.path.clone(), reason })?;
        if gpus.is_empty() { Err(InventoryError::Empty(self.path.clone())) } else { Ok(gpus) }
    }
}
