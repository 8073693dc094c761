//! The policies that gpufn is compared with, each in what its rule says.

use std::sync::Arc;

use gpu_share::annotations::Replicas;

use super::cluster::{Arrivals, Cluster};
use super::view;
use crate::policy::*;

fn wish() -> Wish {
    Wish { replicas: Replicas { min: 1, max: 6 }, ..super::wish() }
}

fn cluster(name: &str) -> Cluster {
    Cluster::new(by_name(name, Profiles::shipped()).unwrap(), wish(), Arrivals::Poisson)
}

fn after(cluster: &Cluster, seconds: u64) -> f64 {
    cluster.percentile(cluster.now() - Nanos::from_secs(seconds), 0.95)
}

#[test]
fn slices_of_hpa_and_knative_are_never_resized_and_follow_the_load() {
    for name in ["hpa", "knative-kpa"] {
        let mut cluster = cluster(name);
        cluster.run(60, 10.0);
        assert_eq!(cluster.replicas.len(), 1, "{name}");
        assert_eq!(cluster.replicas[0].grant(), Quota::WHOLE, "{name}");
        cluster.run(120, 90.0);
        assert!(cluster.replicas.len() > 2, "{name}: {}", cluster.replicas.len());
        assert_eq!(cluster.grants_changed(Nanos::ZERO), 0, "{name}");
        assert!(after(&cluster, 30) < 100.0, "{name}: {} ms", after(&cluster, 30));
        cluster.run(500, 5.0);
        assert_eq!(cluster.replicas.len(), 1, "{name}");
    }
}

#[test]
fn hpa_keeps_what_was_wanted_in_the_last_five_minutes() {
    let mut cluster = cluster("hpa");
    cluster.run(120, 90.0);
    let most = cluster.replicas.len();
    cluster.run(240, 5.0);
    assert_eq!(cluster.replicas.len(), most);
}

#[test]
fn the_last_slice_of_knative_goes_too_where_none_is_allowed() {
    let wish = Wish { replicas: Replicas { min: 0, max: 4 }, ..wish() };
    let policy = by_name("knative-kpa", Profiles::shipped()).unwrap();
    let mut cluster = Cluster::new(policy, wish, Arrivals::Poisson);
    cluster.run(5, 10.0);
    cluster.run(120, 0.0);
    assert!(cluster.replicas.is_empty());
}

#[test]
fn themis_answers_a_surge_with_quotas_at_once_and_with_replicas_when_these_do_not_reach() {
    let mut cluster = cluster("themis");
    cluster.run(60, 5.0);
    let (start, before) = (cluster.now(), cluster.replicas[0].grant());
    cluster.run(3, 25.0);
    assert!(cluster.replicas[0].grant() > before, "{before}");
    assert!(cluster.scaled(start).is_empty());
    cluster.run(60, 90.0);
    assert!(cluster.replicas.len() > 1);
    assert!(after(&cluster, 20) < 150.0, "{} ms", after(&cluster, 20));
}

#[test]
fn the_oracle_starts_replicas_before_the_load_comes() {
    // 5 requests a second, and 90 from the 60th second on.
    let surge = Nanos::from_secs(60);
    let future: Future = Arc::new(move |_, _, until| if until > surge { 90.0 } else { 5.0 });
    let mut cluster =
        Cluster::new(Box::new(Oracle::new(Profiles::shipped(), future)), wish(), Arrivals::Poisson);
    cluster.run(50, 5.0);
    assert_eq!(cluster.replicas.len(), 1);
    cluster.run(10, 5.0);
    let ready = cluster.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready).count();
    assert!(ready > 1, "{ready} are ready when it comes");
    cluster.run(30, 90.0);
    assert!(after(&cluster, 30) < 100.0, "{} ms", after(&cluster, 30));
}

#[test]
fn fast_gshare_bears_the_load_with_the_best_per_area_and_one_for_the_rest() {
    // 20 ms at any SM share, over the quota: small SM shares bear most per area, whatever the quota.
    let latency: LatencyOf = Arc::new(|_, _, _, quota| Some(Nanos::from_secs_f64(0.02 / quota.fraction())));
    let mut policy = FastGshare::new(2, latency);
    let wish = Wish { replicas: Replicas { min: 1, max: 16 }, ..wish() };
    let view = |arrivals, replicas| view("f", wish.clone(), arrivals, replicas);
    // 900 in 10 s are 90 a second: a pod at the whole quota bears 50 of them.
    let decisions = policy.decide(Nanos::ZERO, &[view(900, Vec::new())]);
    let shares: Vec<_> = decisions
        .iter()
        .map(|decision| match &decision.action {
            Action::Start { share, gpu: 0, .. } => *share,
            action => panic!("{action:?}"),
        })
        .collect();
    let bears: f64 = shares.iter().map(|share| 50.0 * share.floor.fraction()).sum();
    assert!((90.0..=140.0).contains(&bears), "{shares:?}");
    assert!(shares.iter().all(|share| share.sm.percent() == 6 && share.floor == share.ceiling), "{shares:?}");
    // What is too much goes, but never the last pod.
    let pods = |count| {
        (0..count)
            .map(|id| ReplicaView {
                id: format!("r{id}"),
                state: ReplicaState::Ready,
                share: shares[0],
                gpu: 0,
                row: 0,
                grant: shares[0].floor,
                room: Quota::WHOLE,
                in_flight: 0,
                age: Nanos::from_secs(60),
                used: Nanos::ZERO,
            })
            .collect::<Vec<_>>()
    };
    let decisions = policy.decide(Nanos::from_secs(20), &[view(0, pods(3))]);
    let stops = decisions.iter().filter(|decision| matches!(decision.action, Action::Stop { .. })).count();
    assert_eq!((stops, decisions.len()), (2, 2));
}
