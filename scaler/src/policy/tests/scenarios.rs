//! What the policies do over time.

use gpu_share::annotations::{Replicas, Scaling};

use super::cluster::{Arrivals, Cluster};
use super::{percent, wish};
use crate::policy::*;

fn secs(seconds: u64) -> Nanos {
    Nanos::from_secs(seconds)
}

fn cluster(wish: Wish, arrivals: Arrivals) -> Cluster {
    Cluster::new(by_name("gpufn", Profiles::shipped()).unwrap(), wish, arrivals)
}

#[test]
fn ten_requests_a_second_keep_their_objective_on_much_less_than_a_gpu() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.run(120, 10.0);
    let p95 = cluster.percentile(secs(10), 0.95);
    assert!(p95 < 100.0, "p95 is {p95} ms");
    let granted = cluster.granted / 120_000.0;
    assert!(granted < 0.8, "{granted} GPUs on average");
    assert!(cluster.scaled(Nanos::ZERO).is_empty(), "{:?}", cluster.scaled(Nanos::ZERO));
}

#[test]
fn grants_do_not_oscillate_under_a_steady_load() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.run(30, 10.0);
    let start = cluster.now();
    cluster.run(120, 10.0);
    let a_minute = cluster.grants_changed(start) / 2;
    assert!(a_minute <= 40, "{a_minute} grants changed a minute");
}

/// Time from a step of the rate until a grant is raised, and the p95 from half a second after the step on.
fn step(from: f64, to: f64) -> (Nanos, f64) {
    let mut cluster = cluster(wish(), Arrivals::Even);
    cluster.run(60, from);
    let (start, before) = (cluster.now(), cluster.replicas[0].grant());
    cluster.run(20, to);
    let raised = cluster.decisions.iter().find(|(at, decision)| {
        *at > start && matches!(&decision.action, Action::Grant { quota, .. } if *quota > before)
    });
    (
        raised.expect("a grant is raised").0.since(start),
        cluster.percentile(start + Nanos::from_millis(500), 0.95),
    )
}

/// Two decisions see 10 requests where 2 were expected: no chance.
#[test]
fn a_step_to_five_times_the_rate_is_answered_within_two_decisions() {
    let (answered, p95) = step(5.0, 25.0);
    assert!(answered <= Nanos::from_millis(400), "{} ms", answered.millis_f64());
    assert!(p95 < 100.0, "p95 is {p95} ms");
}

/// 6 requests where 2 were expected come by chance once in sixty times: two decisions can't tell, a second can.
#[test]
fn a_step_to_three_times_the_rate_is_answered_within_a_second_and_the_objective_is_kept() {
    let (answered, p95) = step(5.0, 15.0);
    assert!(answered <= secs(1), "{} ms", answered.millis_f64());
    assert!(p95 < 100.0, "p95 is {p95} ms");
}

#[test]
fn what_one_gpu_cannot_bear_starts_a_replica_and_its_end_removes_it() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.run(20, 5.0);
    let start = cluster.now();
    cluster.run(40, 60.0);
    assert!(cluster.replicas.len() > 1, "{:?}", cluster.scaled(start));
    let p95 = cluster.percentile(start + secs(20), 0.95);
    assert!(p95 < 100.0, "p95 is {p95} ms once they are there");
    cluster.run(120, 5.0);
    assert_eq!(cluster.replicas.len(), 1);
}

#[test]
fn no_room_on_its_own_gpu_starts_a_replica_elsewhere() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.room = percent(70);
    cluster.run(30, 14.0);
    assert!(cluster.replicas.len() > 1);
}

#[test]
fn an_idle_function_is_parked_and_a_request_brings_its_grant_back() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.run(20, 10.0);
    cluster.run(6, 0.0);
    // At its floor a first request would be late beside a busy neighbour.
    assert_eq!(cluster.replicas[0].state, ReplicaState::Ready);
    cluster.run(20, 0.0);
    assert_eq!(cluster.replicas[0].state, ReplicaState::Parked);
    assert!(cluster.replicas[0].grant().is_zero());
    let woken = cluster.now();
    cluster.run(3, 10.0);
    assert_eq!(cluster.replicas[0].state, ReplicaState::Ready);
    assert!(cluster.replicas[0].grant() > percent(30), "{}", cluster.replicas[0].grant());
    assert!(cluster.grants_changed(woken) > 0);
}

#[test]
fn in_a_quiet_row_a_replica_needs_no_grant_beyond_its_floor_and_is_parked_soon() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.quiet = true;
    cluster.run(60, 0.5);
    assert_eq!(cluster.replicas.len(), 1);
    assert!(!raised(&cluster), "{:?}", cluster.decisions);
    cluster.run(6, 0.0);
    assert_eq!(cluster.replicas[0].state, ReplicaState::Parked);
}

#[test]
fn alone_in_its_row_a_replica_is_granted_what_it_would_need_beside_others() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    (cluster.quiet, cluster.alone) = (true, true);
    cluster.run(60, 0.5);
    assert!(raised(&cluster), "{:?}", cluster.decisions);
    assert_eq!(cluster.replicas.len(), 1);
}

/// Whether a grant went above the floor after the first second.
fn raised(cluster: &Cluster) -> bool {
    let floor = cluster.wish.share.floor;
    let is_above = |action: &Action| matches!(action, Action::Grant { quota, .. } if *quota > floor);
    cluster.actions(secs(1)).into_iter().any(is_above)
}

#[test]
fn a_function_without_replicas_gets_one_for_its_first_request_and_loses_it_in_the_end() {
    let wish = Wish { replicas: Replicas { min: 0, max: 4 }, ..wish() };
    let mut cluster = cluster(wish, Arrivals::Even);
    cluster.run(10, 0.0);
    assert!(cluster.replicas.is_empty());
    cluster.run(10, 2.0);
    assert_eq!(cluster.replicas.len(), 1);
    assert!(!cluster.served.is_empty());
    cluster.run(330, 0.0);
    assert!(cluster.replicas.is_empty(), "{:?}", cluster.scaled(Nanos::ZERO));
}

#[test]
fn scaling_that_is_not_allowed_does_not_happen() {
    for (scaling, grants, counts) in
        [(Scaling::Off, false, false), (Scaling::Vertical, true, false), (Scaling::Horizontal, false, true)]
    {
        let mut cluster = cluster(Wish { scaling, ..wish() }, Arrivals::Poisson);
        cluster.run(20, 40.0);
        assert_eq!(cluster.grants_changed(Nanos::ZERO) > 0, grants, "{scaling:?}");
        assert_eq!(!cluster.scaled(Nanos::ZERO).is_empty(), counts, "{scaling:?}");
    }
}

#[test]
fn a_function_without_an_objective_uses_most_of_what_it_is_granted() {
    let mut cluster = cluster(Wish { slo: None, ..wish() }, Arrivals::Poisson);
    cluster.run(60, 20.0);
    let granted = cluster.granted / 60_000.0;
    assert!((0.45..0.85).contains(&granted), "{granted} GPUs for 0.4 of work");
}

#[test]
fn a_function_without_a_profile_is_learnt() {
    let mut cluster = cluster(Wish { model: None, ..wish() }, Arrivals::Poisson);
    cluster.run(60, 10.0);
    let start = cluster.now();
    let before = cluster.granted;
    cluster.run(60, 10.0);
    let granted = (cluster.granted - before) / 60_000.0;
    assert!(granted < 0.85, "{granted} GPUs");
    assert!(cluster.percentile(start, 0.95) < 100.0);
}

#[test]
fn a_profile_that_promises_too_much_is_corrected() {
    let text = "model,batch,sm,ms\nresnet50,1,50,8\n";
    let policy = by_name("gpufn", Profiles::parse(text).unwrap()).unwrap();
    let mut cluster = Cluster::new(policy, wish(), Arrivals::Poisson);
    cluster.run(60, 10.0);
    let start = cluster.now();
    cluster.run(60, 10.0);
    let p95 = cluster.percentile(start, 0.95);
    assert!(p95 < 100.0, "p95 is {p95} ms");
}

#[test]
fn kserve_gives_whole_gpus_and_scales_by_concurrency() {
    let policy = by_name("kserve", Profiles::shipped()).unwrap();
    assert_eq!(policy.share(&wish(), Bytes::gib(16)), Share::whole_gpu(Bytes::gib(16)));
    let mut cluster = Cluster::new(policy, wish(), Arrivals::Poisson);
    cluster.run(60, 10.0);
    assert_eq!(cluster.grants_changed(Nanos::ZERO), 0);
    assert!(cluster.scaled(Nanos::ZERO).is_empty());
    assert!(cluster.replicas[0].grant() == Quota::WHOLE);
    cluster.run(30, 120.0);
    assert!(cluster.replicas.len() > 1);
    cluster.run(300, 0.0);
    assert_eq!(cluster.replicas.len(), 1);
}

#[test]
fn every_decision_says_why_in_one_line() {
    let mut cluster = cluster(wish(), Arrivals::Poisson);
    cluster.run(30, 60.0);
    assert!(!cluster.decisions.is_empty());
    for (_, decision) in &cluster.decisions {
        assert!(
            decision.reason.starts_with("resnet: ") && !decision.reason.contains('\n'),
            "{}",
            decision.reason
        );
    }
}
