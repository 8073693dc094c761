use super::*;
use crate::units::Units;

pub(super) fn gpu(index: u32, sharing: Sharing) -> Gpu {
    let id = GpuId(format!("GPU-{index}"));
    Gpu { id, index, name: "test".into(), memory: Bytes::gib(16), sharing }
}

pub(super) fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

pub(super) fn share(sm: u8, floor: u8, ceiling: u8, memory: Bytes) -> Share {
    Share::new(SmShare::from_percent(sm).unwrap(), quota(floor), quota(ceiling), memory).unwrap()
}

pub(super) fn id(n: u32) -> BindingId {
    format!("b-{n}").try_into().unwrap()
}

fn bind(ledger: &mut Ledger, n: u32, share: Share) -> Result<(Binding, Displaced), Refusal> {
    ledger.bind(id(n), Owner::default(), share)
}

#[test]
fn bindings_get_rows_of_their_own_while_there_is_width_and_share_rows_after() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps)]);
    let shares = [share(60, 60, 100, Bytes::gib(1)), share(30, 20, 100, Bytes::gib(1))];
    let rows: Vec<_> = [0, 1, 0, 1, 1]
        .iter()
        .zip(0..)
        .map(|(&which, n)| bind(&mut ledger, n, shares[which]).map(|(b, _)| b.row))
        .collect();
    // The third fits neither beside the first in time nor into the narrow row; the last two stack in the narrow one.
    assert_eq!(rows[0], Ok(0));
    assert_eq!(rows[1], Ok(1));
    assert!(matches!(rows[2], Err(Refusal::NoRoom { .. })));
    assert_eq!((&rows[3], &rows[4]), (&Ok(1), &Ok(1)));
    ledger.check().unwrap();
}

#[test]
fn without_mps_a_gpu_is_one_row_of_full_width() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    let small = share(10, 60, 100, Bytes::gib(1));
    assert_eq!(bind(&mut ledger, 0, small).unwrap().0.row, 0);
    assert!(bind(&mut ledger, 1, small).is_err());
    assert_eq!(bind(&mut ledger, 2, share(10, 40, 100, Bytes::gib(1))).unwrap().0.row, 0);
}

#[test]
fn a_binding_goes_to_the_gpu_that_it_fills_best() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps), gpu(1, Sharing::Mps)]);
    bind(&mut ledger, 0, share(20, 10, 100, Bytes::gib(10))).unwrap();
    assert_eq!(bind(&mut ledger, 1, share(20, 10, 100, Bytes::gib(4))).unwrap().0.gpu, GpuId("GPU-0".into()));
    assert_eq!(bind(&mut ledger, 2, share(20, 10, 100, Bytes::gib(4))).unwrap().0.gpu, GpuId("GPU-1".into()));
}

#[test]
fn floors_beat_grants() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    bind(&mut ledger, 0, share(100, 20, 100, Bytes::gib(1))).unwrap();
    assert_eq!(ledger.grant(&id(0), quota(90)).unwrap().0, quota(90));
    let (binding, displaced) = bind(&mut ledger, 1, share(100, 30, 100, Bytes::gib(1))).unwrap();
    assert_eq!(binding.grant, quota(30));
    assert_eq!(displaced, Displaced { withdrawn: vec![(id(0), quota(70))], moved: vec![] });
}

#[test]
fn a_grant_stays_between_floor_and_ceiling_and_within_the_row() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    bind(&mut ledger, 0, share(100, 20, 60, Bytes::gib(1))).unwrap();
    bind(&mut ledger, 1, share(100, 30, 100, Bytes::gib(1))).unwrap();
    assert_eq!(ledger.grant(&id(0), quota(1)).unwrap().0, quota(20));
    assert_eq!(ledger.grant(&id(0), quota(100)).unwrap().0, quota(60));
    assert_eq!(ledger.grant(&id(1), quota(100)).unwrap().0, quota(40));
    assert_eq!(ledger.withdraw(&id(1)), Ok(quota(30)));
}

#[test]
fn a_parked_binding_lends_its_time_and_gets_its_floor_back() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    bind(&mut ledger, 0, share(100, 40, 60, Bytes::gib(1))).unwrap();
    bind(&mut ledger, 1, share(100, 30, 100, Bytes::gib(1))).unwrap();
    ledger.park(&id(0)).unwrap();
    assert_eq!(ledger.grant(&id(1), quota(100)).unwrap().0, quota(100));
    let (grant, withdrawn) = ledger.grant(&id(0), quota(40)).unwrap();
    assert_eq!((grant, withdrawn), (quota(40), vec![(id(1), quota(60))]));
}

#[test]
fn release_gives_everything_back() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps)]);
    let whole = Share::whole_gpu(Bytes::gib(16));
    bind(&mut ledger, 0, whole).unwrap();
    assert_eq!(ledger.free_units(ledger.gpus().next().unwrap(), Units::PER_GPU), Units(0));
    assert!(bind(&mut ledger, 1, whole).is_err());
    ledger.release(&id(0)).unwrap();
    assert_eq!(ledger.release(&id(0)), Err(Refusal::Unknown(id(0))));
    assert_eq!(ledger.free_units(ledger.gpus().next().unwrap(), Units::PER_GPU), Units(20));
    bind(&mut ledger, 1, whole).unwrap();
}

#[test]
fn a_checkpoint_is_taken_over_only_where_it_fits() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps)]);
    let (binding, _) = bind(&mut ledger, 0, share(60, 50, 100, Bytes::gib(9))).unwrap();
    let mut after = Ledger::new([gpu(0, Sharing::Mps)]);
    after.restore(binding.clone()).unwrap();
    assert_eq!(after, ledger);
    assert!(matches!(after.restore(binding.clone()), Err(Refusal::Exists(_))));
    assert!(matches!(after.restore(Binding { id: id(1), ..binding }), Err(Refusal::NoRoom { .. })));
}

#[test]
fn rows_are_merged_for_a_share_that_is_wider_than_what_small_ones_left() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps)]);
    for n in 0..10 {
        bind(&mut ledger, n, share(10, 10, 100, Bytes::gib(1))).unwrap();
        ledger.grant(&id(n), quota(100)).unwrap();
    }
    let (wide, displaced) = bind(&mut ledger, 10, share(60, 100, 100, Bytes::gib(1))).unwrap();
    ledger.check().unwrap();
    // Six rows of ten had to go. Who shares a row shares its time: the grants sum to 100 % again.
    assert_eq!(ledger.bindings().filter(|b| b.row == wide.row).count(), 1);
    assert_eq!(displaced.moved.len(), 6);
    assert!(displaced.withdrawn.iter().all(|(id, grant)| ledger.get(id).unwrap().grant == *grant));
    assert!(displaced.withdrawn.iter().all(|(_, grant)| *grant >= quota(10)));
    // What does not fit even then leaves everything as it was.
    let before = ledger.clone();
    assert!(bind(&mut ledger, 11, share(50, 50, 100, Bytes::gib(1))).is_err());
    assert_eq!(ledger, before);
}

#[test]
fn nobody_moves_where_another_gpu_has_room() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps), gpu(1, Sharing::Mps)]);
    for n in 0..2 {
        ledger
            .bind_on(&GpuId("GPU-0".into()), id(n), Owner::default(), share(50, 10, 100, Bytes::gib(4)))
            .unwrap();
    }
    let (wide, displaced) = bind(&mut ledger, 2, share(100, 20, 100, Bytes::gib(1))).unwrap();
    assert_eq!((wide.gpu, displaced), (GpuId("GPU-1".into()), Displaced::default()));
}

#[test]
fn a_share_with_much_memory_goes_where_the_time_is_sold() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive), gpu(1, Sharing::Exclusive)]);
    let on = |gpu: &str| GpuId(gpu.into());
    ledger.bind_on(&on("GPU-0"), id(0), Owner::default(), share(100, 40, 100, Bytes::gib(6))).unwrap();
    ledger.bind_on(&on("GPU-1"), id(1), Owner::default(), share(100, 80, 100, Bytes::gib(2))).unwrap();
    assert_eq!(bind(&mut ledger, 2, share(100, 10, 100, Bytes::gib(8))).unwrap().0.gpu, on("GPU-1"));
}

#[test]
fn equal_gpus_are_filled_in_the_driver_s_order() {
    let mut ledger = Ledger::new([gpu(2, Sharing::Mps), gpu(0, Sharing::Mps), gpu(1, Sharing::Mps)]);
    let whole = Share::whole_gpu(Bytes::gib(16));
    let gpus: Vec<_> = (0..3).map(|n| bind(&mut ledger, n, whole).unwrap().0.gpu.0).collect();
    assert_eq!(gpus, ["GPU-0", "GPU-1", "GPU-2"]);
}

#[test]
fn a_gpu_that_is_not_healthy_takes_nothing_new_and_keeps_what_it_has() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps)]);
    let only = GpuId("GPU-0".into());
    let small = share(20, 20, 100, Bytes::gib(1));
    bind(&mut ledger, 0, small).unwrap();
    ledger.set_healthy(&only, false).unwrap();
    assert!(matches!(bind(&mut ledger, 1, small), Err(Refusal::NoRoom { .. })));
    assert_eq!(
        ledger.bind_on(&only, id(1), Owner::default(), small).unwrap_err().to_string(),
        "GPU GPU-0 is unhealthy, allowed is a healthy one"
    );
    assert_eq!(ledger.grant(&id(0), quota(90)).unwrap().0, quota(90));
    assert_eq!(ledger.max_free_units(Units::PER_GPU), Units(0));
    ledger.set_healthy(&only, true).unwrap();
    bind(&mut ledger, 1, small).unwrap();
    assert!(ledger.set_healthy(&GpuId("GPU-7".into()), false).is_err());
}

#[test]
fn a_resized_binding_stays_where_it_is_and_takes_its_new_floor_from_grants() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    bind(&mut ledger, 0, share(100, 20, 60, Bytes::gib(1))).unwrap();
    bind(&mut ledger, 1, share(100, 20, 100, Bytes::gib(1))).unwrap();
    ledger.grant(&id(1), quota(80)).unwrap();
    let (binding, withdrawn) = ledger.resize(&id(0), share(100, 60, 70, Bytes::gib(2))).unwrap();
    assert_eq!((binding.grant, withdrawn), (quota(60), vec![(id(1), quota(40))]));
    // A smaller ceiling takes from the grant, and a parked binding stays parked.
    ledger.grant(&id(0), quota(70)).unwrap_or_default();
    assert_eq!(ledger.resize(&id(0), share(100, 10, 30, Bytes::gib(2))).unwrap().0.grant, quota(30));
    ledger.park(&id(0)).unwrap();
    assert!(ledger.resize(&id(0), share(100, 50, 50, Bytes::gib(2))).unwrap().0.is_parked());
    let before = ledger.clone();
    for impossible in [share(100, 81, 100, Bytes::gib(1)), share(100, 10, 100, Bytes::gib(16))] {
        assert!(matches!(ledger.resize(&id(0), impossible), Err(Refusal::NoRoom { .. })));
        assert_eq!(ledger, before);
    }
}

#[test]
fn an_offer_shows_what_could_be_bound_and_nothing_else() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Exclusive)]);
    let card = gpu(0, Sharing::Exclusive);
    let offer = |ledger: &Ledger, allocated, smallest| {
        let Offer { allocated, free, withdrawn } =
            ledger.offer(&card, Units::PER_GPU, Units(allocated), Units(smallest));
        [allocated.0, free.0, withdrawn.0]
    };
    assert_eq!(offer(&ledger, 0, 1), [0, 20, 0]);
    // Half an SM share takes all of the time of a GPU that one process uses at a time.
    bind(&mut ledger, 0, share(50, 40, 100, Bytes::gib(1))).unwrap();
    assert_eq!(offer(&ledger, 4, 1), [4, 12, 4]);
    // A grant above the floor is mirrored, and comes back.
    ledger.grant(&id(0), quota(91)).unwrap();
    assert_eq!(offer(&ledger, 4, 1), [4, 1, 15]);
    assert_eq!(offer(&ledger, 4, 2), [4, 0, 16], "a remainder that is too small for anybody");
    ledger.withdraw(&id(0)).unwrap();
    assert_eq!(offer(&ledger, 8, 1), [8, 12, 0]);
    // The kubelet may have given away what was about to be withdrawn.
    ledger.grant(&id(0), quota(100)).unwrap();
    assert_eq!(offer(&ledger, 20, 1), [20, 0, 0]);
    ledger.set_healthy(&card.id, false).unwrap();
    assert_eq!(offer(&ledger, 8, 1), [8, 0, 12]);
}

#[test]
fn the_largest_fit_is_one_hole_not_the_sum_of_all() {
    let mut ledger = Ledger::new([gpu(0, Sharing::Mps), gpu(1, Sharing::Mps)]);
    let on = |index: u32| GpuId(format!("GPU-{index}"));
    for n in 0..2 {
        ledger.bind_on(&on(0), id(n), Owner::default(), share(50, 60, 100, Bytes::gib(1))).unwrap();
    }
    let gpu = |index| ledger.gpu(&on(index)).unwrap();
    // Two rows of half the width with 40 % of their time each: 16 units' worth, never more than 4 for one share.
    assert_eq!(ledger.free_units(gpu(0), Units::PER_GPU), Units(8));
    assert_eq!(ledger.largest_fit(gpu(0), Units::PER_GPU), Units(4));
    assert_eq!(ledger.max_free_units(Units::PER_GPU), Units(20));
}
