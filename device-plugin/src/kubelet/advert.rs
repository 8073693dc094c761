//! What the kubelet is told: every device of the node, and which of them containers may get.
//!
//! The list mirrors the ledger. A device is withdrawn (told as unhealthy, which takes it from what the scheduler counts) if
//! its GPU takes no new containers, or if it is with nobody and what it stands for is not free: a grant above a floor covers
//! it, or a container whose devices are of another GPU. What a container holds is never withdrawn for a grant, since the
//! kubelet would show the pod as broken. Pure.

use std::collections::BTreeSet;

use super::device::{Catalog, DeviceId};

/// How one GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Whether it takes new containers.
    pub is_healthy: bool,
    /// Units that new containers could get.
    pub free: usize,
    /// The most that one new container could get: what is free may be in several rows.
    pub largest: usize,
    /// The NUMA node that it is near, by which the kubelet aligns a container's processors and devices.
    pub numa: Option<u32>,
}

/// What the kubelet is told of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub device: DeviceId,
    /// Whether containers may get it.
    pub is_offered: bool,
    /// The NUMA node of its GPU.
    pub numa: Option<u32>,
}

/// Every device of the node.
pub type Advert = Vec<Told>;

/// What to tell the kubelet, where `taken` are the devices that containers hold. Of those that nobody holds the lowest are on
/// offer, as many as are free, so that the same ones stay on offer while numbers change.
pub fn advert(catalog: &Catalog, gpus: &[Gpu], taken: &BTreeSet<DeviceId>) -> Advert {
    let mut advert = Vec::new();
    for (units, gpu) in catalog.devices().iter().zip(gpus) {
        let mut free = gpu.free;
        for device in units {
            let is_offered = if taken.contains(device) {
                true
            } else {
                let is_free = free > 0;
                free = free.saturating_sub(1);
                is_free
            };
            let is_offered = gpu.is_healthy && is_offered;
            advert.push(Told { device: device.clone(), is_offered, numa: gpu.numa });
        }
    }
    advert
}

/// The most units that one new container could have on one GPU: the node's label for the scheduler.
pub fn max_free(gpus: &[Gpu]) -> usize {
    gpus.iter().filter(|gpu| gpu.is_healthy).map(|gpu| gpu.largest).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::GpuId;
    use gpu_share::units::Units;
    use proptest::prelude::*;

    use super::*;

    const UNITS: usize = 5;

    fn catalog() -> Catalog {
        Catalog::new(vec![GpuId("GPU-a".into()), GpuId("GPU-b".into())], Units(5)).unwrap()
    }

    proptest! {
        #[test]
        fn free_devices_are_on_offer_and_only_those_of_nobody_are_withdrawn(
            held in prop::collection::vec(any::<bool>(), 2 * UNITS),
            free in prop::collection::vec(0..=UNITS, 2),
            healthy in prop::collection::vec(any::<bool>(), 2),
        ) {
            let catalog = catalog();
            let taken: BTreeSet<_> = catalog.devices().iter().flatten().zip(held)
                .filter(|(_, held)| *held).map(|(device, _)| device.clone()).collect();
            let gpus: Vec<_> = free.iter().zip(&healthy).map(|(&free, &is_healthy)| Gpu { is_healthy, free, largest: free, numa: None }).collect();
            let advert = advert(&catalog, &gpus, &taken);

            let names: Vec<_> = advert.iter().map(|told| told.device.clone()).collect();
            prop_assert_eq!(names, catalog.devices().concat(), "each device once, whatever happens");
            for gpu in 0..2 {
                let own = || advert.iter().filter(|told| catalog.gpu_of(&told.device) == Some(gpu));
                if !healthy[gpu] {
                    prop_assert!(own().all(|told| !told.is_offered));
                    continue;
                }
                prop_assert!(own().all(|told| told.is_offered || !taken.contains(&told.device)));
                let untaken = own().filter(|told| !taken.contains(&told.device)).count();
                let offered = own().filter(|told| told.is_offered && !taken.contains(&told.device)).count();
                prop_assert_eq!(offered, untaken.min(free[gpu]));
            }
        }
    }

    #[test]
    fn the_label_is_the_largest_hole_of_a_healthy_gpu() {
        let gpu = |is_healthy, largest| Gpu { is_healthy, free: 20, largest, numa: None };
        assert_eq!(max_free(&[gpu(true, 3), gpu(false, 20), gpu(true, 7)]), 7);
        assert_eq!(max_free(&[]), 0);
    }
}
