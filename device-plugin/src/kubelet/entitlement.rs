//! What a container may use: the units that it has say how much, its pod's annotations say in which form.
//!
//! Units back what is guaranteed: floor and memory never exceed what they pay for, whatever the annotations say. A quota
//! beyond that is a grant, given while nobody needs the time. What annotations leave out follows from the units; what can't
//! be read is left out altogether. Pure.

use std::collections::BTreeMap;

use gpu_share::annotations::Shape;
use gpu_share::invalid::Invalid;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Quota, SmShare, Units};

/// What a container may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Entitlement {
    /// Its share: what is guaranteed, and the ceiling.
    pub share: Share,
    /// The quota that it should have now if there is room; at least the floor.
    pub quota: Quota,
    /// Whether the annotations name an amount of memory, without which the container can't do.
    pub needs_memory: bool,
    /// What is wrong with the annotations.
    pub complaint: Option<Complaint>,
}

/// What is wrong with a pod's annotations.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Complaint {
    /// One can't be read.
    #[error("{0}; the container has what its units stand for")]
    Invalid(Invalid),
    /// They ask for more than the units pay for.
    #[error("its annotations come to {asked} units, allowed are the {units} that it has: guaranteed are a quota of {} and {}", share.floor, share.memory)]
    TooMuch {
        /// Units that the annotations come to.
        asked: u32,
        /// Units that the container has.
        units: u32,
        /// What it is given.
        share: Share,
    },
    /// They ask for less, so that the rest of the units is of no use to anybody.
    #[error(
        "its annotations come to {asked} units, but it has {units}: what the rest stands for is of use to nobody"
    )]
    TooLittle {
        /// Units that the annotations come to.
        asked: u32,
        /// Units that the container has.
        units: u32,
    },
}

/// What a container with `units` of the `per_gpu` of `gpu` may use, whose pod has `annotations`.
pub fn entitlement(
    units: usize,
    per_gpu: Units,
    gpu: &Gpu,
    annotations: &BTreeMap<String, String>,
) -> Entitlement {
    let units = u32::try_from(units).unwrap_or(u32::MAX).clamp(1, per_gpu.0);
    let (shape, complaint) = match Shape::read(annotations, gpu.memory) {
        Ok(shape) => (shape, None),
        Err(invalid) => (Shape::default(), Some(Complaint::Invalid(invalid))),
    };
    let entitled = entitle(units, per_gpu, gpu, &shape);
    Entitlement { complaint: complaint.or(entitled.complaint), ..entitled }
}

fn entitle(units: u32, per_gpu: Units, gpu: &Gpu, asked: &Shape) -> Entitlement {
    let sm = asked.sm.unwrap_or(SmShare::WHOLE);
    let paid = part(Quota::WHOLE.ppm().into(), units, per_gpu);
    let paid_memory = Bytes(part(gpu.memory.0, units, per_gpu));
    let backed = backed(paid, sm);
    let limit = asked.limit.unwrap_or(Quota::WHOLE);
    let quota = asked.quota.unwrap_or_else(|| backed.min(limit));
    let memory = asked.memory.unwrap_or(paid_memory);

    let floor = quota.min(backed);
    let share = Share { sm, floor, ceiling: limit.max(floor), memory: memory.min(paid_memory) };
    let cost = Area::of_time(sm, quota).max(Area::of_memory(memory, gpu.memory)).units(per_gpu).0;
    let (share, quota) = match gpu.sharing {
        Sharing::Mps => (share, quota),
        Sharing::Exclusive => (in_turns(&share), in_time(sm, quota)),
    };
    let complaint = match cost {
        asked if asked > units => Some(Complaint::TooMuch { asked, units, share }),
        asked if asked < units => Some(Complaint::TooLittle { asked, units }),
        _ => None,
    };
    Entitlement {
        share,
        quota: quota.clamp(share.floor, share.ceiling),
        needs_memory: asked.memory.is_some(),
        complaint,
    }
}

/// The quota that `paid` millionths of a GPU are on a part of its SMs; at most all of the time.
pub(crate) fn backed(paid: u64, sm: SmShare) -> Quota {
    ppm(paid * 100 / u64::from(sm.percent()))
}

/// Where containers use a GPU in turns, nobody can be kept to a part of its SMs. Who has 30 % of them for half of the time
/// has paid for 15 % of the GPU, and gets all of it for 15 % of the time.
pub(crate) fn in_turns(share: &Share) -> Share {
    let (floor, ceiling) = (in_time(share.sm, share.floor), in_time(share.sm, share.ceiling));
    Share { sm: SmShare::WHOLE, floor, ceiling, ..*share }
}

fn in_time(sm: SmShare, quota: Quota) -> Quota {
    ppm(u64::from(quota.ppm()) * u64::from(sm.percent()) / 100)
}

/// The part of `whole` that `units` of `per_gpu` stand for, rounded down: the parts of all units fit into the whole.
fn part(whole: u64, units: u32, per_gpu: Units) -> u64 {
    let part = u128::from(whole) * u128::from(units) / u128::from(per_gpu.0.max(1));
    u64::try_from(part).unwrap_or(whole)
}

/// A quota, moved into what a floor may be.
fn ppm(ppm: u64) -> Quota {
    u32::try_from(ppm.clamp(1, Quota::WHOLE.ppm().into()))
        .ok()
        .and_then(|ppm| Quota::from_ppm(ppm).ok())
        .unwrap_or(Quota::WHOLE)
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::GpuId;
    use proptest::prelude::*;

    use super::*;

    fn gpu(sharing: Sharing) -> Gpu {
        Gpu { id: GpuId("GPU-1".into()), index: 0, name: "a".into(), memory: Bytes::gib(16), sharing }
    }

    fn of(units: usize, sharing: Sharing, pairs: &[(&str, &str)]) -> Entitlement {
        let annotations =
            pairs.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), (*value).to_string())).collect();
        entitlement(units, Units::PER_GPU, &gpu(sharing), &annotations)
    }

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    #[test]
    fn without_annotations_a_container_has_what_its_units_stand_for() {
        let Entitlement { share, quota, complaint, .. } = of(5, Sharing::Mps, &[]);
        assert_eq!((share.sm, share.floor, share.ceiling), (SmShare::WHOLE, percent(25), Quota::WHOLE));
        assert_eq!((share.memory, quota, complaint), (Bytes::gib(4), percent(25), None));
    }

    #[test]
    fn annotations_that_come_to_the_units_are_given_as_they_are() {
        let annotations = [("sm", "50"), ("quota", "40"), ("quota-limit", "80"), ("memory", "3Gi")];
        let Entitlement { share, quota, needs_memory, complaint } = of(4, Sharing::Mps, &annotations);
        assert_eq!((share.sm.percent(), share.floor, share.ceiling), (50, percent(40), percent(80)));
        assert_eq!((share.memory, quota), (Bytes::gib(3), percent(40)));
        assert!(needs_memory);
        assert_eq!(complaint, None);
    }

    #[test]
    fn what_annotations_leave_out_follows_from_the_units() {
        let Entitlement { share, complaint, .. } = of(6, Sharing::Mps, &[("sm", "60")]);
        assert_eq!((share.floor, share.memory), (percent(50), Bytes(Bytes::gib(16).0 * 6 / 20)));
        assert_eq!(complaint, None);
    }

    #[test]
    fn a_quota_beyond_the_units_is_a_grant_and_no_floor() {
        let Entitlement { share, quota, complaint, .. } = of(4, Sharing::Mps, &[("quota", "60")]);
        assert_eq!((share.floor, quota), (percent(20), percent(60)));
        let text = complaint.unwrap().to_string();
        assert_eq!(
            text,
            "its annotations come to 12 units, allowed are the 4 that it has: guaranteed are a quota of 20 % and 3.2 GiB"
        );
    }

    #[test]
    fn memory_beyond_the_units_is_not_given() {
        let entitled = of(4, Sharing::Mps, &[("quota", "20"), ("memory", "8Gi")]);
        assert_eq!(entitled.share.memory, Bytes(Bytes::gib(16).0 / 5));
        assert!(matches!(entitled.complaint, Some(Complaint::TooMuch { asked: 10, units: 4, .. })));
    }

    #[test]
    fn annotations_that_leave_units_unused_are_given_and_told() {
        let annotations = [("quota", "10"), ("memory", "1Gi")];
        let entitled = of(4, Sharing::Mps, &annotations);
        assert_eq!(entitled.share.floor, percent(10));
        assert_eq!(entitled.complaint, Some(Complaint::TooLittle { asked: 2, units: 4 }));
    }

    #[test]
    fn an_annotation_of_every_wrong_form_is_told_and_the_units_count() {
        for (key, value) in
            [("sm", "0"), ("sm", "x"), ("quota", "101"), ("quota-limit", "-1"), ("memory", "2Ti")]
        {
            let entitled = of(5, Sharing::Mps, &[("quota", "20"), (key, value)]);
            let plain = of(5, Sharing::Mps, &[]);
            assert_eq!((entitled.share, entitled.quota), (plain.share, plain.quota), "{key} {value}");
            let text = entitled.complaint.unwrap().to_string();
            assert!(text.starts_with(&format!("gpufn.dev/{key} is {value:?}, allowed is ")), "{text}");
        }
    }

    #[test]
    fn in_turns_a_part_of_the_multiprocessors_is_a_part_of_the_time() {
        let Entitlement { share, quota, complaint, .. } =
            of(3, Sharing::Exclusive, &[("sm", "30"), ("quota", "50")]);
        assert_eq!((share.sm, share.floor, quota), (SmShare::WHOLE, percent(15), percent(15)));
        assert_eq!((share.ceiling, complaint), (percent(30), None));
    }

    proptest! {
        #[test]
        fn what_is_guaranteed_never_exceeds_what_the_units_pay_for(
            units in 1usize..=20, sm in 1u8..=100, quota in 1u8..=100, gib in 1u64..=16, exclusive: bool,
        ) {
            let sharing = if exclusive { Sharing::Exclusive } else { Sharing::Mps };
            let (sm, quota, memory) = (sm.to_string(), quota.to_string(), format!("{gib}Gi"));
            let Entitlement { share, quota, .. } =
                of(units, sharing, &[("sm", &sm), ("quota", &quota), ("memory", &memory)]);
            prop_assert!(Share::new(share.sm, share.floor, share.ceiling, share.memory).is_ok());
            prop_assert!((share.floor..=share.ceiling).contains(&quota));
            let least = Quota::from_ppm(1).unwrap();
            prop_assert!(share.floor == least || share.units(Units::PER_GPU, Bytes::gib(16)).0 as usize <= units);
        }
    }
}
