//! In which form a share fits into the rows of a GPU where the form that was asked for does not.
//!
//! A container has paid for an area of SMs and time. Beside certain neighbours its rectangle finds no place although the
//! area is free: 100 % × 30 % beside a row of 30 % width. Then another rectangle of the same area is better than no
//! container. Pure; the ledger still decides whether one fits.

use core::cmp::Reverse;
use std::collections::BTreeMap;

use gpu_share::binding::Binding;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Quota, SmShare};

const WHOLE: u64 = 1_000_000;

/// Forms of `wanted` to try on `gpu` beside `others`, the best first: as it is, then with the same area and as nearly the same
/// width as possible, then with as much area as there is. None has more memory than is free.
pub fn forms<'a>(gpu: &Gpu, others: impl Iterator<Item = &'a Binding>, wanted: &Share) -> Vec<Share> {
    let mut rows = BTreeMap::<u32, (u64, u64)>::new();
    let mut memory = gpu.memory;
    for other in others {
        let (width, floors) = rows.entry(other.row).or_default();
        *width = (*width).max(width_of(gpu, &other.share));
        *floors += u64::from(other.share.floor.ppm());
        memory = memory.saturating_sub(other.share.memory);
    }
    let wanted = Share { memory: wanted.memory.min(memory), ..*wanted };
    let slack = 100_u64.saturating_sub(rows.values().map(|(width, _)| width).sum());
    let in_rows = rows.values().map(|(width, floors)| (width + slack, WHOLE.saturating_sub(*floors)));
    let mut others: Vec<_> =
        in_rows.chain([(slack, WHOLE)]).filter_map(|(width, left)| form(&wanted, width, left)).collect();
    let area = |share: &Share| Area::of_time(share.sm, share.floor);
    others.sort_by_key(|share| {
        let is_less = area(share) < area(&wanted);
        (is_less, is_less.then(|| Reverse(area(share))), share.sm.percent().abs_diff(wanted.sm.percent()))
    });
    [wanted].into_iter().chain(others).collect()
}

/// The best form of `wanted` in a hole of `width` percent and `left` millionths of the time.
fn form(wanted: &Share, width: u64, left: u64) -> Option<Share> {
    if width == 0 || left == 0 {
        return None;
    }
    // Percent of SMs times millionths of the time.
    let area = u64::from(wanted.sm.percent()) * u64::from(wanted.floor.ppm());
    let (sm, floor) = match area.div_ceil(left) {
        narrowest if narrowest <= width => {
            let sm = u64::from(wanted.sm.percent()).clamp(narrowest, width);
            // Rounded up, or the form would count as less; at most what is left, since `narrowest` is at most `sm`.
            (sm, area.div_ceil(sm))
        }
        _ => (width, left),
    };
    let ceiling = (u64::from(wanted.ceiling.ppm()) * u64::from(wanted.sm.percent()) / sm).clamp(floor, WHOLE);
    let quota = |ppm: u64| u32::try_from(ppm).ok().and_then(|ppm| Quota::from_ppm(ppm).ok());
    let sm = u8::try_from(sm).ok().and_then(|sm| SmShare::from_percent(sm).ok())?;
    Share::new(sm, quota(floor)?, quota(ceiling)?, wanted.memory).ok()
}

fn width_of(gpu: &Gpu, share: &Share) -> u64 {
    match gpu.sharing {
        Sharing::Mps => share.sm.percent().into(),
        Sharing::Exclusive => 100,
    }
}

/// What a new binding has while nobody knows what its container asks for: memory, and next to no time.
///
/// The form follows when the container starts. Until then any other would stand in the way of those that have one.
pub fn placeholder(memory: Bytes) -> Option<Share> {
    let least = Quota::from_ppm(1).ok()?;
    Share::new(SmShare::from_percent(1).ok()?, least, Quota::WHOLE, memory).ok()
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{BindingId, GpuId, Owner};
    use gpu_share::ledger::Ledger;
    use proptest::prelude::*;

    use super::*;

    fn gpu() -> Gpu {
        Gpu {
            id: GpuId("GPU-1".into()),
            index: 0,
            name: "a".into(),
            memory: Bytes::gib(16),
            sharing: Sharing::Mps,
        }
    }

    fn share(sm: u8, floor: u32, gib: u64) -> Share {
        let (sm, floor) = (SmShare::from_percent(sm).unwrap(), Quota::from_ppm(floor).unwrap());
        Share::new(sm, floor, Quota::WHOLE, Bytes::gib(gib)).unwrap()
    }

    fn id(name: &str) -> BindingId {
        BindingId::try_from(name.to_string()).unwrap()
    }

    #[test]
    fn what_fits_comes_as_it_is() {
        assert_eq!(forms(&gpu(), [].into_iter(), &share(30, 200_000, 2))[0], share(30, 200_000, 2));
    }

    #[test]
    fn beside_a_row_that_leaves_no_width_the_same_area_is_narrower_and_longer() {
        let mut ledger = Ledger::new([gpu()]);
        ledger.bind(id("a"), Owner::default(), share(30, 1_000_000, 1)).unwrap();
        let forms = forms(&gpu(), ledger.bindings(), &share(100, 300_000, 1));
        let (sm, floor) = (forms[1].sm.percent(), forms[1].floor.ppm());
        assert_eq!((sm, floor), (70, 428_572));
        assert!(ledger.bind(id("b"), Owner::default(), forms[1]).is_ok());
    }

    #[test]
    fn what_is_left_is_given_where_the_area_is_not_there() {
        let mut ledger = Ledger::new([gpu()]);
        ledger.bind(id("a"), Owner::default(), share(100, 900_000, 15)).unwrap();
        let forms = forms(&gpu(), ledger.bindings(), &share(50, 400_000, 4));
        assert_eq!(
            (forms[1].sm.percent(), forms[1].floor.ppm(), forms[1].memory),
            (100, 100_000, Bytes::gib(1))
        );
    }

    proptest! {
        #[test]
        fn while_area_and_memory_are_left_some_form_fits_and_none_is_larger_than_wanted(
            bound in prop::collection::vec((1u8..=100, 1u32..=1_000_000, 1u64..=4), 0..6),
            sm in 1u8..=100,
            floor in 1u32..=1_000_000,
        ) {
            let mut ledger = Ledger::new([gpu()]);
            for (index, (sm, floor, gib)) in bound.into_iter().enumerate() {
                // What does not fit stays away.
                let _ = ledger.bind(id(&format!("b{index}")), Owner::default(), share(sm, floor, gib));
            }
            let wanted = share(sm, floor, 1);
            let forms = forms(&gpu(), ledger.bindings(), &wanted);
            let most = u64::from(sm) * u64::from(floor);
            for form in &forms {
                // Rounded up to the next millionth of the time.
                let area = u64::from(form.sm.percent()) * u64::from(form.floor.ppm());
                prop_assert!(area < most + u64::from(form.sm.percent()), "{form:?}");
            }
            let fits = forms.iter().any(|form| ledger.clone().bind(id("new"), Owner::default(), *form).is_ok());
            prop_assert_eq!(fits, forms.len() > 1, "{:?}", forms);
        }
    }
}
