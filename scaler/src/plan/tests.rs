//! Plans against what they promise.

use gpu_share::units::SmShare;
use proptest::prelude::*;

use super::*;
use crate::profile::ServiceTime;

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn share(floor: u8, ceiling: u8) -> Share {
    Share::new(SmShare::from_percent(50).unwrap(), percent(floor), percent(ceiling), Bytes::gib(2)).unwrap()
}

fn slo(millis: u64) -> Slo {
    Slo { percentile: 0.95, bound: Nanos::from_millis(millis) }
}

fn problem<'a>(estimate: &'a Estimate, share: &'a Share, slo: impl Into<Option<Slo>>) -> Problem<'a> {
    Problem { estimate, share, slo: slo.into(), window: Nanos::from_millis(10), gpu_memory: Bytes::gib(16) }
}

fn poisson(rate: f64) -> Load {
    Load { rate, arrival_scv: 1.0 }
}

fn estimate(millis: u64) -> Estimate {
    ServiceTime::new(Some(Nanos::from_millis(millis))).estimate().unwrap()
}

#[test]
fn ten_requests_a_second_of_20_ms_need_much_less_than_a_gpu_and_more_than_their_mean() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let level = problem(&estimate, &share, slo(100)).level(&[percent(100)], poisson(10.0)).unwrap();
    assert!((percent(50)..=percent(80)).contains(&level), "{level}");
}

#[test]
fn an_objective_out_of_reach_is_planned_by_utilisation() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(15));
    assert_eq!(problem.cheapest(&[], 1..=100, poisson(30.0)).unwrap().replicas, 1);
    assert_eq!(problem.level(&[percent(100)], poisson(20.0)), Some(percent(60)));
}

/// Requests a second that replicas granted `quotas` sustain, by bisection.
fn capacity(problem: &Problem<'_>, quotas: &[Quota]) -> f64 {
    let (mut least, mut most) = (0.0, 1e4);
    for _ in 0..40 {
        let middle = 0.5 * (least + most);
        if problem.feasible(quotas, poisson(middle)) { least = middle } else { most = middle }
    }
    least
}

#[test]
fn what_one_replica_cannot_bear_takes_the_fewest_that_can() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(100));
    let one = capacity(&problem, &[percent(100)]);
    assert!((20.0..45.0).contains(&one), "20 ms each, at most 90 % busy: {one}/s");
    assert_eq!(problem.cheapest(&[], 1..=8, poisson(one * 0.99)).unwrap().replicas, 1);
    assert_eq!(problem.cheapest(&[], 1..=8, poisson(one * 1.1)).unwrap().replicas, 2);
    assert_eq!(problem.cheapest(&[], 1..=1, poisson(one * 1.1)), None);
}

#[test]
fn a_replica_without_room_is_made_up_for_by_the_others() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, None);
    let level = problem.level(&[percent(20), percent(100)], poisson(30.0)).unwrap();
    assert_eq!(level, percent(70));
    assert_eq!(problem.grants(level, &[percent(20), percent(100)]), [percent(20), percent(70)]);
}

proptest! {
    #[test]
    fn the_cheapest_plan_is_feasible_and_no_other_is_cheaper(
        millis in 1u64..80, bound in 20u64..500, rate in 0.0f64..120.0, floor in 1u8..60, more in 0u8..40, most in 1u32..6,
    ) {
        let (estimate, share) = (estimate(millis), share(floor, floor + more));
        let problem = problem(&estimate, &share, slo(bound));
        let load = poisson(rate);
        let best = problem.cheapest(&[], 1..=most, load);
        for replicas in 1..=most {
            for quota in problem.grid() {
                let grants = vec![quota; replicas as usize];
                if problem.feasible(&grants, load) {
                    let cost = grants.iter().map(|&q| share.dominant_at(q, Bytes::gib(16))).sum();
                    prop_assert!(best.is_some_and(|best| best.cost <= cost), "{replicas} at {quota}: {best:?}");
                }
            }
        }
        if let Some(plan) = best {
            prop_assert!(problem.feasible(&vec![plan.quota; plan.replicas as usize], load));
        }
    }
}
