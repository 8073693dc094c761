//! Which GPUs this node has, asked of NVML by the path of its library.
//!
//! A simulated driver brings an NVML of its own, so real and simulated nodes take the same way. Decides nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
use crate::pci;

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

/// What a GPU is and where, for those who choose among GPUs; what is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Streaming multiprocessors.
    pub multiprocessors: Option<u32>,
    /// CUDA compute capability, major and minor.
    pub capability: Option<(u32, u32)>,
    /// Version of the driver, as the driver says it.
    pub driver: Option<String>,
    /// PCI address, as Linux writes it.
    pub address: Option<String>,
    /// The NUMA node that it is near.
    pub numa: Option<u32>,
}

/// A source of GPUs.
pub trait Inventory {
    /// All GPUs of this node, used as `sharing` says; waits no longer than `patience` for whoever knows.
    fn gpus(&self, sharing: Sharing, patience: Duration) -> Result<Vec<Gpu>, InventoryError>;

    /// What and where they are; waits no longer than `patience`, and says nothing of those that do not answer.
    fn traits(&self, _patience: Duration) -> BTreeMap<GpuId, Traits> {
        BTreeMap::new()
    }

    /// What reports how they are from then on, if anything does.
    fn source(&self) -> Option<Box<dyn Source>> {
        None
    }
}

/// The GPUs that an NVML library finds.
#[derive(Clone, Debug)]
pub struct NvmlInventory {
    path: PathBuf,
    /// PCI devices as Linux shows them.
    devices: PathBuf,
}

impl NvmlInventory {
    /// Asks the library at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), devices: pci::DEVICES.into() }
    }

    /// Looks for the GPUs among the PCI devices in `folder`.
    #[must_use]
    pub fn pci_devices(self, folder: impl Into<PathBuf>) -> Self {
        Self { devices: folder.into(), ..self }
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

fn traits(path: &Path, devices: &Path) -> Result<BTreeMap<GpuId, Traits>, NvmlError> {
    let nvml = Nvml::builder().lib_path(path.as_os_str()).init()?;
    let driver = nvml.sys_driver_version().ok();
    let one = |index| {
        let device = nvml.device_by_index(index).ok()?;
        let capability = device.cuda_compute_capability().ok();
        let capability =
            capability.and_then(|one| Some((one.major.try_into().ok()?, one.minor.try_into().ok()?)));
        let cores = device.num_cores().ok();
        let multiprocessors = cores.zip(capability.and_then(cores_of)).map(|(cores, each)| cores / each);
        let address = device.pci_info().ok().map(|info| pci::address(&info.bus_id));
        let numa = address.as_ref().and_then(|address| pci::numa_node(devices, address));
        let traits = Traits { multiprocessors, capability, driver: driver.clone(), address, numa };
        Some((GpuId(device.uuid().ok()?), traits))
    };
    Ok((0..nvml.device_count()?).filter_map(one).collect())
}

/// CUDA cores of one streaming multiprocessor; NVML says how many a GPU has in all. Source: CUDA C++ Programming Guide, "Compute
/// Capabilities" (results per clock cycle and multiprocessor for 32-bit floating-point addition).
fn cores_of((major, minor): (u32, u32)) -> Option<u32> {
    match (major, minor) {
        (6 | 8, 0) | (7, _) => Some(64),
        (5 | 6 | 8 | 9 | 10 | 12, _) => Some(128),
        _ => None,
    }
}

/// What `ask` says on a thread of its own, since no call to NVML is sure to return; `None` after `patience`.
fn in_time<T: Send + 'static>(patience: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    let asking = thread::Builder::new().name("inventory".into()).spawn(move || {
        // Who has stopped waiting needs no answer.
        let _ = answer.send(ask());
    });
    asking.ok().and_then(|_| answered.recv_timeout(patience).ok())
}

fn describe(nvml: &Nvml, index: u32, sharing: Sharing) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = Bytes(device.memory_info()?.total);
    Ok(Gpu { id: GpuId(device.uuid()?), index, name: device.name()?, memory, sharing })
}

impl Inventory for NvmlInventory {
    fn gpus(&self, sharing: Sharing, patience: Duration) -> Result<Vec<Gpu>, InventoryError> {
        let (path, reader) = (self.path.clone(), self.clone());
        let gpus = match in_time(patience, move || reader.read(sharing)) {
            Some(Ok(gpus)) => gpus,
            Some(Err(reason)) => return Err(InventoryError::Nvml { path, reason }),
            None => return Err(InventoryError::Silent { path, patience }),
        };
        if gpus.is_empty() { Err(InventoryError::Empty(path)) } else { Ok(gpus) }
    }

    fn traits(&self, patience: Duration) -> BTreeMap<GpuId, Traits> {
        let Self { path, devices } = self.clone();
        let known = in_time(patience, move || traits(&path, &devices).map_err(|error| error.to_string()));
        known.unwrap_or_else(|| Err(format!("no answer in {patience:?}"))).unwrap_or_else(|error| {
            tracing::warn!(error, "What and where GPUs are is not known: they are described without it.");
            BTreeMap::new()
        })
    }

    fn source(&self) -> Option<Box<dyn Source>> {
        Some(Box::new(NvmlSource::new(self.path.clone())))
    }
}
