use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn gpu(index: u32, sharing: Sharing) -> Gpu {
    let id = GpuId(format!("GPU-{index}"));
    Gpu { id, index, name: "test".into(), memory: Bytes::gib(16), sharing }
}

fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn share(sm: u8, floor: u8, ceiling: u8, memory: Bytes) -> Share {
    Share::new(SmShare::from_percent(sm).unwrap(), quota(floor), quota(ceiling), memory).unwrap()
}

fn id(n: u32) -> BindingId {
    format!("b-{n}").try_into().unwrap()
}

fn bind(ledger: &mut Ledger, n: u32, share: Share) -> Result<(Binding, Withdrawn), Refusal> {
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
    let (binding, withdrawn) = bind(&mut ledger, 1, share(100, 30, 100, Bytes::gib(1))).unwrap();
    assert_eq!(binding.grant, quota(30));
    assert_eq!(withdrawn, [(id(0), quota(70))]);
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

/// 10^6 random operations on three GPUs: what the module's head states holds after each.
#[test]
fn a_million_random_operations_break_no_invariant() {
    let mut rng = StdRng::seed_from_u64(3);
    let (mut bound, mut refused) = (0u32, 0u32);
    for _ in 0..100 {
        let gpus = [gpu(0, Sharing::Mps), gpu(1, Sharing::Mps), gpu(2, Sharing::Exclusive)];
        let mut ledger = Ledger::new(gpus);
        for _ in 0..10_000 {
            let which = id(rng.random_range(0..40));
            match rng.random_range(0..10) {
                0..=2 => match ledger.bind(which, Owner::default(), random_share(&mut rng)) {
                    Ok(_) => bound += 1,
                    Err(_) => refused += 1,
                },
                3 | 4 => drop(ledger.release(&which)),
                5..=7 => {
                    let wanted = quota(rng.random_range(0..=100));
                    if let Ok((grant, _)) = ledger.grant(&which, wanted) {
                        let share = ledger.get(&which).unwrap().share;
                        assert!(share.floor <= grant && grant <= share.ceiling);
                    }
                }
                8 => drop(ledger.park(&which)),
                _ => drop(ledger.withdraw(&which)),
            }
            ledger.check().unwrap();
        }
    }
    assert!(
        bound > 10_000 && refused > 10_000,
        "{bound} bound, {refused} refused: the test exercises too little"
    );
}

fn random_share(rng: &mut StdRng) -> Share {
    let floor = rng.random_range(1..=60);
    let ceiling = rng.random_range(floor..=100);
    share(rng.random_range(1..=100), floor, ceiling, Bytes::mib(rng.random_range(0..6_000)))
}
