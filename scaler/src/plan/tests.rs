//! Plans against what they promise.

use gpu_share::units::SmShare;
use proptest::prelude::*;

use super::*;
use crate::demand::Demand;
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

fn poisson(rate: f64) -> Load<'static> {
    Load { rate, arrival_scv: 1.0, recent: None }
}

fn estimate(millis: u64) -> Estimate {
    ServiceTime::new(Some(Nanos::from_millis(millis)), Batching::NONE).estimate().unwrap()
}

#[test]
fn ten_requests_a_second_of_20_ms_need_much_less_than_a_gpu_and_more_than_their_mean() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let level = problem(&estimate, &share, slo(100)).level(&guaranteed(&[100]), poisson(10.0), None).unwrap();
    assert!((percent(50)..=percent(80)).contains(&level), "{level}");
}

#[test]
fn an_objective_out_of_reach_is_planned_by_utilisation() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(15));
    assert_eq!(problem.cheapest(&[], 1..=100, poisson(30.0), None).unwrap().replicas, 1);
    assert_eq!(problem.level(&guaranteed(&[100]), poisson(20.0), None), Some(percent(60)));
}

fn guaranteed(percents: &[u8]) -> Vec<Place> {
    percents.iter().map(|&cap| Place::guaranteed(percent(cap))).collect()
}

/// Requests a second that replicas in `places` at their most sustain, by bisection.
fn capacity(problem: &Problem<'_>, places: &[Place]) -> f64 {
    let (mut least, mut most) = (0.0, 1e4);
    for _ in 0..40 {
        let middle = 0.5 * (least + most);
        if problem.feasible(places, Quota::WHOLE, poisson(middle)) { least = middle } else { most = middle }
    }
    least
}

#[test]
fn what_one_replica_cannot_bear_takes_the_fewest_that_can() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(100));
    let one = capacity(&problem, &guaranteed(&[100]));
    assert!((20.0..45.0).contains(&one), "20 ms each, at most 90 % busy: {one}/s");
    assert_eq!(problem.cheapest(&[], 1..=8, poisson(one * 0.99), None).unwrap().replicas, 1);
    assert_eq!(problem.cheapest(&[], 1..=8, poisson(one * 1.1), None).unwrap().replicas, 2);
    assert_eq!(problem.cheapest(&[], 1..=1, poisson(one * 1.1), None), None);
}

#[test]
fn a_replica_without_room_is_made_up_for_by_the_others() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, None);
    let places = guaranteed(&[20, 100]);
    let level = problem.level(&places, poisson(30.0), None).unwrap();
    assert_eq!(level, percent(70));
    let granted: Vec<_> = places.iter().map(|place| problem.granted(place, level)).collect();
    assert_eq!(granted, [percent(20), percent(70)]);
}

#[test]
fn time_beside_the_gpu_takes_none_of_a_replicas() {
    let share = share(10, 100);
    let beside = Nanos::from_millis(70);
    let estimate = Estimate { overhead: beside, deviation: Nanos::from_millis(2), ..estimate(10) };
    let problem = problem(&estimate, &share, slo(150));
    // 40 a second of 10 ms keep it busy for 40 % of the time; 80 ms each would be more than three.
    assert_eq!(problem.cheapest(&[], 1..=8, poisson(40.0), None).unwrap().replicas, 1);
}

#[test]
fn a_grant_counts_only_while_others_in_the_row_are_at_work() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(100));
    let level = |contended| {
        let place = Place { cap: percent(100), alone: percent(100), contended };
        problem.level(&[place], poisson(5.0), None).unwrap()
    };
    assert_eq!(level(0.0), percent(10));
    assert_eq!(level(0.005), percent(10));
    assert!(level(0.5) > percent(40), "{}", level(0.5));
    assert!(level(0.5) <= level(1.0));
    let cramped = |contended| Place { cap: percent(10), alone: percent(100), contended };
    assert!(problem.serves(&cramped(0.005)) && !problem.serves(&cramped(0.5)));
}

/// A minute of 20 requests a second: as chance has it, or four times as many in every fourth second.
fn minute(demand: &mut Demand, counts: impl Fn(u64) -> u64) {
    for step in 1..=300_u64 {
        demand.observe(Nanos::from_millis(200 * step), counts(step), Nanos::from_secs(5));
    }
}

#[test]
fn bursts_that_came_take_as_much_as_they_need_and_no_more() {
    let (estimate, share) = (estimate(20), share(10, 100));
    let problem = problem(&estimate, &share, slo(100));
    let needs = |counts: fn(u64) -> u64| {
        let mut demand = Demand::new(0.01, Nanos::from_millis(300), 0.01);
        minute(&mut demand, counts);
        let recent = demand.recent();
        let load = Load { rate: recent.peak(), arrival_scv: 8.0, recent: Some(recent) };
        (
            problem.cheapest(&[], 1..=8, load, None).unwrap().replicas,
            problem.cheapest(&[], 1..=8, Load { recent: None, ..load }, None).unwrap().replicas,
        )
    };
    let (even, by_moments) = needs(|_| 4);
    assert!(even < by_moments, "{even} for what came, {by_moments} for what its moments allow");
    let (bursts, _) = needs(|step| if step % 20 < 5 { 16 } else { 0 });
    assert!(bursts > even, "{bursts} and {even}");
}

#[test]
fn merged_requests_need_less_of_a_gpu_and_single_ones_as_much_as_before() {
    let share = share(10, 100);
    let cost = |most, marginal, rate| {
        let estimate = Estimate { batching: Batching { most, marginal }, ..estimate(20) };
        problem(&estimate, &share, slo(100)).cheapest(&[], 1..=16, poisson(rate), None).unwrap().cost
    };
    let single = cost(1, 1.0, 100.0);
    // By the formula and by arrivals that are expected.
    assert!(cost(2, 1.0, 100.0).gpus() < 1.25 * single.gpus());
    assert!(cost(8, 0.1, 100.0).gpus() < 0.5 * single.gpus());
    assert!(cost(8, 0.1, 1.0).gpus() > 0.8 * cost(1, 1.0, 1.0).gpus());
}

proptest! {
    #[test]
    fn the_cheapest_plan_is_feasible_and_no_other_is_cheaper(
        millis in 1u64..80, bound in 20u64..500, rate in 0.0f64..120.0, floor in 1u8..60, more in 0u8..40, most in 1u32..6,
    ) {
        let (estimate, share) = (estimate(millis), share(floor, floor + more));
        let problem = problem(&estimate, &share, slo(bound));
        let load = poisson(rate);
        let best = problem.cheapest(&[], 1..=most, load, None);
        for replicas in 1..=most {
            for quota in problem.grid() {
                let places = problem.extended(&[], replicas);
                if problem.feasible(&places, quota, load) {
                    let grants = places.iter().map(|place| problem.granted(place, quota));
                    let cost = grants.map(|grant| share.dominant_at(grant, Bytes::gib(16))).sum();
                    prop_assert!(best.is_some_and(|best| best.cost <= cost), "{replicas} at {quota}: {best:?}");
                }
            }
        }
        if let Some(plan) = best {
            prop_assert!(problem.feasible(&problem.extended(&[], plan.replicas), plan.quota, load));
        }
    }

    #[test]
    fn where_a_plan_is_looked_for_first_changes_nothing(
        millis in 1u64..60, bound in 40u64..400, floor in 1u8..60, more in 0u8..40, near in 1u8..=100, near_replicas in 1u32..6,
        counts in prop::collection::vec(0u64..16, 300), contended in 0.0f64..1.0, most in 1u32..6, factor in 0.5f64..2.0,
    ) {
        let (estimate, share) = (estimate(millis), share(floor, floor + more));
        let problem = problem(&estimate, &share, slo(bound));
        let mut demand = Demand::new(0.01, Nanos::from_millis(300), 0.01);
        minute(&mut demand, |step| counts[step as usize - 1]);
        let recent = demand.recent();
        let load = Load { rate: recent.peak() * factor, arrival_scv: 2.0, recent: Some(recent) };
        let places = [Place { cap: percent(100), alone: percent(100), contended }, Place::guaranteed(percent(60))];
        let level = problem.level(&places, load, None);
        prop_assert_eq!(level, problem.grid().into_iter().find(|&quota| problem.feasible(&places, quota, load)));
        prop_assert_eq!(level, problem.level(&places, load, Some(percent(near))));
        let cheapest = problem.cheapest(&places, 1..=most, load, None);
        let near = Plan { replicas: near_replicas, quota: percent(near), cost: Area::ZERO };
        prop_assert_eq!(cheapest, problem.cheapest(&places, 1..=most, load, Some(near)));
    }
}
