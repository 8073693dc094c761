//! What holds on any view.

use gpu_share::annotations::{Priority, Replicas, Scaling, Slo};
use gpu_share::units::SmShare;
use proptest::prelude::*;

use crate::policy::*;

fn quota() -> impl Strategy<Value = Quota> {
    (0u32..=1_000_000).prop_map(|ppm| Quota::from_ppm(ppm).unwrap())
}

fn wish() -> impl Strategy<Value = Wish> {
    let share = (1u8..=100, 1u8..=100, 0u8..=100, 0u64..40).prop_map(|(sm, floor, more, gib)| {
        let [floor, ceiling] =
            [floor, floor.saturating_add(more).min(100)].map(|p| Quota::from_percent(p).unwrap());
        Share::new(SmShare::from_percent(sm).unwrap(), floor, ceiling, Bytes::gib(gib)).unwrap()
    });
    let slo = prop::option::of(
        (0.01f64..0.9999, 0u64..5_000)
            .prop_map(|(percentile, millis)| Slo { percentile, bound: Nanos::from_millis(millis) }),
    );
    let scaling =
        prop::sample::select(vec![Scaling::Hybrid, Scaling::Vertical, Scaling::Horizontal, Scaling::Off]);
    let model = prop::sample::select(vec![None, Some("resnet50".to_string()), Some("unknown".to_string())]);
    let replicas = (0u32..4, 0u32..8).prop_map(|(min, more)| Replicas { min, max: (min + more).max(1) });
    let priority = prop::sample::select(vec![Priority::Low, Priority::Normal, Priority::High]);
    (share, slo, scaling, model, replicas, priority).prop_map(
        |(share, slo, scaling, model, replicas, priority)| Wish {
            share,
            slo,
            scaling,
            model,
            batch: 1,
            replicas,
            priority,
        },
    )
}

fn replica(share: Share) -> impl Strategy<Value = ReplicaView> {
    let states =
        vec![ReplicaState::Starting, ReplicaState::Ready, ReplicaState::Parked, ReplicaState::Draining];
    (0u32..6, prop::sample::select(states), quota(), quota(), 0u32..50, any::<u64>(), any::<u64>()).prop_map(
        move |(id, state, grant, room, in_flight, age, used)| ReplicaView {
            id: format!("r{id}"),
            state,
            share,
            gpu: 0,
            row: 0,
            grant,
            room,
            in_flight,
            age: Nanos(age),
            used: Nanos(used),
        },
    )
}

fn view(wish: Wish) -> impl Strategy<Value = FunctionView> {
    let counts = (prop_oneof![0u64..100, any::<u64>()], 0u32..100, prop_oneof![0u32..100, any::<u32>()]);
    let latencies =
        prop::collection::vec(prop_oneof![0u64..1_000_000_000, any::<u64>()].prop_map(Nanos), 0..20);
    let times =
        (prop_oneof![0u64..20_000_000, any::<u64>()], prop_oneof![0u64..60_000_000_000, any::<u64>()]);
    (prop::collection::vec(replica(wish.share), 0..6), counts, latencies, times, any::<bool>()).prop_map(
        move |(replicas, (arrivals, held, in_flight), latencies, (window, cold_start), no_room)| {
            FunctionView {
                name: "f".into(),
                wish: wish.clone(),
                gpu_memory: Bytes::gib(16),
                window: Nanos(window),
                replicas,
                arrivals,
                held,
                in_flight,
                latencies,
                cold_start: Nanos(cold_start),
                no_room,
            }
        },
    )
}

/// Views of one function, and the time from each to the next in milliseconds.
fn course() -> impl Strategy<Value = Vec<(u64, FunctionView)>> {
    let step = prop_oneof![Just(0u64), 1u64..10_000, any::<u64>()];
    wish().prop_flat_map(move |wish| prop::collection::vec((step.clone(), view(wish)), 1..12))
}

fn decisions(name: &str, course: &[(u64, FunctionView)]) -> Vec<Vec<Decision>> {
    let mut policy = by_name(name, Profiles::shipped()).unwrap();
    let mut now = Nanos::ZERO;
    course
        .iter()
        .map(|(step, view)| {
            now += Nanos(step.saturating_mul(1_000_000));
            policy.decide(now, core::slice::from_ref(view))
        })
        .collect()
}

proptest! {
    #[test]
    fn grants_stay_in_the_share_and_the_room_and_counts_in_their_bounds(course in course()) {
        for (decisions, (_, view)) in decisions("gpufn", &course).iter().zip(&course) {
            let (share, bounds) = (view.wish.share, view.wish.replicas);
            for decision in decisions {
                match &decision.action {
                    Action::Grant { replica, quota } => {
                        prop_assert!((share.floor..=share.ceiling).contains(quota), "{decision:?}");
                        let fits = |r: &ReplicaView| r.id == *replica && *quota <= r.room.max(share.floor);
                        prop_assert!(view.replicas.iter().any(fits), "{decision:?}");
                    }
                    Action::Park { replica } => {
                        let idle = |r: &ReplicaView| r.id == *replica && r.in_flight == 0;
                        prop_assert!(view.replicas.iter().any(idle) && view.arrivals == 0, "{decision:?}");
                    }
                    Action::Scale { replicas, .. } => {
                        prop_assert!((bounds.min..=bounds.max).contains(replicas), "{decision:?}");
                    }
                    Action::Stop { replica } => {
                        let is_staying = |r: &&ReplicaView| r.state != ReplicaState::Draining;
                        let staying: Vec<_> = view.replicas.iter().filter(is_staying).collect();
                        prop_assert!(staying.iter().any(|r| r.id == *replica), "{decision:?}");
                        prop_assert!(staying.len() > bounds.min as usize, "{decision:?}");
                    }
                    Action::Start { .. } => prop_assert!(false, "{decision:?}"),
                }
            }
        }
    }

    #[test]
    fn the_same_views_lead_to_the_same_decisions(course in course()) {
        for name in ["gpufn", "kserve", "knative-kpa", "hpa", "themis"] {
            prop_assert_eq!(decisions(name, &course), decisions(name, &course));
        }
    }
}

#[test]
fn an_unknown_policy_is_refused_with_those_that_exist() {
    let error = by_name("magic", Profiles::default()).err().unwrap().to_string();
    assert_eq!(error, "policy is \"magic\", allowed is one of gpufn, kserve, knative-kpa, hpa, themis");
}
