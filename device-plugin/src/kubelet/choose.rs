//! Which devices a container should get, and which GPU it goes to.
//!
//! Pure, and from what is in memory: the kubelet waits for these answers while it admits a pod, without a time limit.

use core::cmp::Reverse;
use std::collections::BTreeSet;

use super::device::{Catalog, DeviceId, Position};

/// What the kubelet asks for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Devices that it may choose from.
    pub available: BTreeSet<Position>,
    /// Those that have to be among the chosen.
    pub included: BTreeSet<Position>,
    /// How many.
    pub size: usize,
}

/// The devices to prefer: all on one GPU wherever one has enough, on the one that they leave the least on, lowest first.
///
/// `room` is what each GPU of the node has for new containers, in units. Containers that had to go to another GPU than their devices
/// make it less than what is available; a GPU with enough of both comes first. Where no GPU has enough, the fewest GPUs
/// possible are used: the kubelet has decided to admit the pod, and would else choose at random.
pub fn prefer(room: &[usize], wanted: &Wanted) -> Vec<Position> {
    let mut chosen: Vec<_> = wanted.included.iter().take(wanted.size).copied().collect();
    let mut free = vec![Vec::new(); room.len()];
    wanted.available.difference(&wanted.included).for_each(|device| free[device.gpu].push(*device));
    let included = counts(room.len(), wanted.included.iter().map(|device| device.gpu));
    let spread = included.iter().filter(|&&count| count > 0).count();
    let missing = wanted.size - chosen.len();
    let single = (0..free.len()).filter(|&gpu| spread == 0 || (spread == 1 && included[gpu] > 0));
    let best = single
        .filter(|&gpu| free[gpu].len() >= missing)
        .min_by_key(|&gpu| (room[gpu] < wanted.size, free[gpu].len(), gpu));
    let mut order: Vec<_> = (0..free.len()).collect();
    order.sort_by_key(|&gpu| (Some(gpu) != best, Reverse(included[gpu]), Reverse(free[gpu].len()), gpu));
    for gpu in order {
        let take = (wanted.size - chosen.len()).min(free[gpu].len());
        chosen.extend(&free[gpu][..take]);
    }
    chosen
}

/// The GPUs that a container with these devices could go to, the best first: where all of its devices are if there is room,
/// else where there is room, and among those where most of its devices are and least is left. Last come GPUs without
/// enough room, the largest first; one without any is left out.
pub fn homes(catalog: &Catalog, room: &[usize], devices: &BTreeSet<DeviceId>) -> Vec<usize> {
    let own = counts(catalog.gpus().len(), devices.iter().filter_map(|device| catalog.gpu_of(device)));
    let room = |gpu: usize| room.get(gpu).copied().unwrap_or_default();
    let mut homes: Vec<_> = (0..own.len()).filter(|&gpu| room(gpu) > 0).collect();
    homes.sort_by_key(|&gpu| {
        if room(gpu) >= devices.len() {
            (0, Reverse(own[gpu]), room(gpu), gpu)
        } else {
            (1, Reverse(room(gpu)), usize::MAX - own[gpu], gpu)
        }
    });
    homes
}

/// How often each of so many GPUs comes among `positions`.
fn counts(gpus: usize, positions: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut counts = vec![0; gpus];
    positions.for_each(|gpu| counts[gpu] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::GpuId;
    use gpu_share::units::Units;
    use proptest::prelude::*;

    use super::*;

    const GPUS: usize = 3;
    const UNITS: u32 = 6;

    fn catalog() -> Catalog {
        let gpus = (0..GPUS).map(|index| GpuId(format!("GPU-{index}"))).collect();
        Catalog::new(gpus, Units(UNITS)).unwrap()
    }

    /// The positions that `picked` is true for, counted over all GPUs.
    fn positions(picked: &[bool]) -> BTreeSet<Position> {
        let all = (0..GPUS).flat_map(|gpu| (0..UNITS as usize).map(move |unit| Position { gpu, unit }));
        all.zip(picked).filter(|(_, picked)| **picked).map(|(device, _)| device).collect()
    }

    fn gpus_of<'a>(devices: impl IntoIterator<Item = &'a Position>) -> BTreeSet<usize> {
        devices.into_iter().map(|device| device.gpu).collect()
    }

    proptest! {
        #[test]
        fn whenever_one_gpu_can_hold_them_they_are_on_the_one_that_they_fill_most(
            available in prop::collection::vec(any::<bool>(), GPUS * UNITS as usize),
            included in prop::collection::vec(prop::bool::weighted(0.1), GPUS * UNITS as usize),
            more in 0usize..7,
        ) {
            let available = positions(&available);
            let included: BTreeSet<_> = positions(&included).intersection(&available).copied().collect();
            let size = (included.len() + more).min(available.len());
            let wanted = Wanted { available: available.clone(), included: included.clone(), size };
            let chosen = prefer(&[UNITS as usize; GPUS], &wanted);

            prop_assert_eq!(chosen.len(), size);
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), size, "none comes twice");
            prop_assert!(chosen.iter().all(|device| available.contains(device)));
            prop_assert!(included.iter().all(|device| chosen.contains(device)));
            // Brute force: each GPU alone.
            let on = |gpu: usize| available.iter().filter(|device| device.gpu == gpu).count();
            let holds = |gpu: usize| on(gpu) >= size && included.iter().all(|device| device.gpu == gpu);
            let least = (0..GPUS).filter(|&gpu| holds(gpu)).map(on).min();
            if let (Some(least), 1..) = (least, size) {
                let used = gpus_of(&chosen);
                prop_assert_eq!(used.len(), 1);
                prop_assert_eq!(used.first().map(|&gpu| on(gpu)), Some(least));
            }
        }

        #[test]
        fn a_container_goes_where_its_devices_are_whenever_there_is_room(
            picked in prop::collection::vec(any::<bool>(), GPUS * UNITS as usize),
            room in prop::collection::vec(0usize..=6, GPUS),
        ) {
            let catalog = catalog();
            let picked = positions(&picked);
            let devices: BTreeSet<_> = picked.iter().map(|&at| catalog.device(at).clone()).collect();
            let homes = homes(&catalog, &room, &devices);
            prop_assert!(homes.iter().all(|&gpu| room[gpu] > 0));
            let Some(&first) = homes.first() else { return Ok(()) };
            let enough: Vec<_> = (0..GPUS).filter(|&gpu| room[gpu] >= devices.len().max(1)).collect();
            prop_assert!(enough.is_empty() || enough.contains(&first), "one with room comes first");
            let owner = gpus_of(&picked);
            if let (1, Some(only)) = (owner.len(), owner.first()) && enough.contains(only) {
                prop_assert_eq!(first, *only);
            }
            if enough.is_empty() {
                prop_assert_eq!(room[first], room.iter().copied().max().unwrap_or_default());
            }
        }
    }

    #[test]
    fn a_gpu_whose_room_went_to_others_is_passed_over() {
        let wanted = Wanted { available: positions(&[true; 18]), included: BTreeSet::new(), size: 4 };
        let lowest_of_the_next = [0, 1, 2, 3].map(|unit| Position { gpu: 1, unit });
        assert_eq!(prefer(&[2, 6, 6], &wanted), lowest_of_the_next);
    }

    #[test]
    fn what_no_gpu_holds_is_spread_over_as_few_as_possible() {
        let mut picked = [true; 18];
        picked[..2].fill(false);
        let wanted = Wanted { available: positions(&picked), included: BTreeSet::new(), size: 9 };
        assert_eq!(gpus_of(&prefer(&[4, 6, 6], &wanted)), BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_size_beyond_what_there_is_gets_what_there_is() {
        let wanted = Wanted { available: positions(&[true; 2]), included: BTreeSet::new(), size: 5 };
        assert_eq!(prefer(&[6; 3], &wanted).len(), 2);
    }
}
