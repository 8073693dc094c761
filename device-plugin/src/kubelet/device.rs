//! Names of units: what the kubelet calls devices.
//!
//! A device is one unit of one GPU, `<8 hex digits of the GPU>-<unit>of<units per GPU>`, such as `5f0a61c3-07of20`. The name
//! follows from the GPU's UUID and the division alone, so it is the same after every restart; another division has other
//! names, so that no device changes its size while a container holds it. Pure.

use core::borrow::Borrow;
use core::fmt;
use std::collections::HashMap;
use std::sync::Arc;

use gpu_share::binding::GpuId;
use gpu_share::units::Units;

/// Name of a device, cheap to copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub Arc<str>);

impl From<String> for DeviceId {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a device is: quicker to compare than its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Position of its GPU.
    pub gpu: usize,
    /// Which of the GPU's units it is.
    pub unit: usize,
}

/// The kubelet's client takes messages of up to 4 MiB (its default), some 60,000 devices; a third is left for longer names.
pub const MAX_DEVICES: usize = 40_000;

/// Why a node's GPUs can't be told to the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// More than a message can hold.
    #[error("--units is {per_gpu} on {gpus} GPUs, allowed are {MAX_DEVICES} units on a node")]
    TooMany {
        /// Units per GPU.
        per_gpu: u32,
        /// GPUs of the node.
        gpus: usize,
    },
    /// Two GPUs would have the same names.
    #[error("GPUs {0} and {1} have the same short name; give the agent one of them only")]
    SameName(GpuId, GpuId),
}

/// The devices of a node.
#[derive(Clone, Debug)]
pub struct Catalog {
    gpus: Vec<GpuId>,
    /// By GPU, then by unit.
    devices: Vec<Vec<DeviceId>>,
    positions: HashMap<DeviceId, Position>,
}

impl Catalog {
    /// The devices of `gpus`, in the driver's order, each divided into `per_gpu`.
    pub fn new(gpus: Vec<GpuId>, per_gpu: Units) -> Result<Self, CatalogError> {
        let too_many = CatalogError::TooMany { per_gpu: per_gpu.0, gpus: gpus.len() };
        if gpus.len().saturating_mul(per_gpu.0 as usize) > MAX_DEVICES {
            return Err(too_many);
        }
        distinct(&gpus)?;
        let devices: Vec<Vec<_>> =
            gpus.iter().map(|gpu| (0..per_gpu.0).map(|unit| name(gpu, unit, per_gpu)).collect()).collect();
        let mut positions = HashMap::new();
        for (gpu, units) in devices.iter().enumerate() {
            let of_gpu = units.iter().enumerate();
            positions.extend(of_gpu.map(|(unit, device)| (device.clone(), Position { gpu, unit })));
        }
        Ok(Self { gpus, devices, positions })
    }

    /// The GPUs, by position.
    pub fn gpus(&self) -> &[GpuId] {
        &self.gpus
    }

    /// Position of a GPU.
    pub fn position(&self, gpu: &GpuId) -> Option<usize> {
        self.gpus.iter().position(|one| one == gpu)
    }

    /// The devices of each GPU, in order.
    pub fn devices(&self) -> &[Vec<DeviceId>] {
        &self.devices
    }

    /// The device at a position, which has to be of this catalog.
    pub fn device(&self, at: Position) -> &DeviceId {
        &self.devices[at.gpu][at.unit]
    }

    /// Where the device named `name` is; `None` if the node has no such device.
    pub fn find(&self, name: &str) -> Option<Position> {
        self.positions.get(name).copied()
    }

    /// Position of the GPU that a device is a part of; `None` if the node has no such device.
    pub fn gpu_of(&self, device: &DeviceId) -> Option<usize> {
        self.find(&device.0).map(|at| at.gpu)
    }
}

/// Whether the short names of `gpus` tell them apart.
pub(crate) fn distinct(gpus: &[GpuId]) -> Result<(), CatalogError> {
    let mut short_names = HashMap::new();
    for gpu in gpus {
        if let Some(other) = short_names.insert(short_name(gpu), gpu) {
            return Err(CatalogError::SameName(other.clone(), gpu.clone()));
        }
    }
    Ok(())
}

fn name(gpu: &GpuId, unit: u32, per_gpu: Units) -> DeviceId {
    let width = per_gpu.0.saturating_sub(1).to_string().len().max(2);
    DeviceId::from(format!("{}-{unit:0width$}of{}", short_name(gpu), per_gpu.0))
}

/// FNV-1a of the UUID: short, spread out, and the same for ever. A UUID's own first digits need not differ between the
/// GPUs of a node (MIG, simulated ones).
pub(crate) fn short_name(gpu: &GpuId) -> String {
    let hash =
        gpu.0.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(count: usize) -> Vec<GpuId> {
        (0..count).map(|index| GpuId(format!("GPU-{index:012x}"))).collect()
    }

    #[test]
    fn names_are_the_same_after_a_restart_and_in_another_order() {
        let one = Catalog::new(gpus(2), Units(20)).unwrap();
        let other = Catalog::new(gpus(2).into_iter().rev().collect(), Units(20)).unwrap();
        assert_eq!(one.devices()[0], other.devices()[1]);
        assert_eq!(one.gpu_of(&one.devices()[1][7]), Some(1));
        assert_eq!(one.gpu_of(&DeviceId("5f0a61c3-07of20".into())), None);
    }

    #[test]
    fn another_division_has_other_names() {
        let (twenty, fifty) =
            (Catalog::new(gpus(1), Units(20)).unwrap(), Catalog::new(gpus(1), Units(50)).unwrap());
        assert!(twenty.devices()[0].iter().all(|device| fifty.gpu_of(device).is_none()));
        assert!(fifty.devices()[0][0].0.ends_with("-00of50"));
        assert!(fifty.devices()[0].iter().all(|device| device.0.len() <= 63));
    }

    #[test]
    fn more_devices_than_a_message_holds_are_refused() {
        let error = Catalog::new(gpus(41), Units(1000)).unwrap_err().to_string();
        assert_eq!(error, "--units is 1000 on 41 GPUs, allowed are 40000 units on a node");
    }
}
