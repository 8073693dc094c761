use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::keda::hpa::Hpa;
use crate::traffic::Counters;

/// GPU time of one request in seconds.
const REQUEST: f64 = 0.020;

/// A function in virtual time: requests come at a rate, and each replica shows what it has answered.
struct Function {
    wish: Wish,
    watched: Watched,
    now: Nanos,
    answered: f64,
    chance: StdRng,
    carried: f64,
}

impl Function {
    fn new(annotations: &[(&str, &str)]) -> Self {
        let wish = wish(annotations);
        let watched = Watched::new(Nanos::ZERO, Some(&wish), &Profiles::shipped());
        Self {
            wish,
            watched,
            now: Nanos::ZERO,
            answered: 0.0,
            chance: StdRng::seed_from_u64(1),
            carried: 0.0,
        }
    }

    /// A second in which `rate` requests come by chance; one number says it for all replicas.
    fn second(&mut self, rate: f64) {
        let mut came = 0.0;
        // Poisson arrivals: exponential times between them.
        self.carried -= 1.0;
        while self.carried < 0.0 {
            came += 1.0;
            self.carried += -(1.0 - self.chance.random::<f64>()).ln() / rate.max(1e-9);
        }
        came -= if rate > 0.0 { 0.0 } else { came };
        self.answered += came;
        self.now += Nanos::from_secs(1);
        self.watched.observe(&self.reading(), Nanos::from_secs(5)).unwrap();
    }

    fn reading(&self) -> Reading {
        let quota = self.wish.share.floor;
        let shown = Counters {
            answered: self.answered,
            served: self.answered,
            used: Some(self.answered * REQUEST),
            grant: Some(quota),
            ..Counters::default()
        };
        Reading { at: self.now, expected: 1, replicas: BTreeMap::from([("all".into(), shown)]) }
    }

    fn need(&self, present: u32) -> Need {
        self.watched.need(&self.scene(present), &terms(&[]))
    }

    fn scene(&self, present: u32) -> Scene<'_> {
        scene(self.now, Some(&self.wish), present)
    }
}

fn scene(now: Nanos, wish: Option<&Wish>, present: u32) -> Scene<'_> {
    Scene {
        now,
        wish,
        present,
        is_starting: false,
        held: 0,
        reach: None,
        gpu_memory: Bytes::gib(16),
        window: Nanos::from_millis(10),
    }
}

fn wish(annotations: &[(&str, &str)]) -> Wish {
    let annotations =
        annotations.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), (*value).into())).collect();
    Wish::read(&annotations, Bytes::gib(16), &Profiles::shipped()).unwrap().unwrap()
}

fn terms(pairs: &[(&str, &str)]) -> Terms {
    let pairs = [("function", "f")].iter().chain(pairs);
    let metadata: HashMap<_, _> = pairs.map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Terms::read("fn", &metadata).unwrap()
}

const SHARED: [(&str, &str); 5] =
    [("sm", "50"), ("quota", "40"), ("quota-limit", "40"), ("slo", "p95<250ms"), ("replicas", "1..50")];

#[test]
fn where_grants_follow_the_load_what_they_can_reach_comes_before_replicas() {
    let mut function = Function::new(&SHARED);
    for _ in 0..120 {
        function.second(60.0);
    }
    let still = function.need(2);
    let reach = Quota::from_percent(100).ok();
    let follows = function.watched.need(&Scene { reach, ..function.scene(2) }, &terms(&[]));
    // 60 requests a second of 20 ms keep two replicas busy that may have the whole of the time.
    assert!(still.equivalents > 3.0 && follows.equivalents <= 2.0, "{still:?} {follows:?}");
}

#[test]
fn what_is_idle_needs_nothing_and_is_not_active() {
    let mut function = Function::new(&SHARED);
    for _ in 0..70 {
        function.second(0.0);
    }
    let need = function.need(1);
    assert_eq!((need.value, need.is_active, need.basis), (0.0, false, Basis::Idle), "{}", need.reason);
}

#[test]
fn a_request_now_and_then_keeps_it_active_between_two_questions_of_keda() {
    let mut function = Function::new(&SHARED);
    for _ in 0..61 {
        function.second(0.0);
    }
    function.answered += 1.0;
    function.second(0.0);
    for _ in 0..45 {
        function.second(0.0);
    }
    assert!(function.need(1).is_active);
}

#[test]
fn a_scaler_that_has_just_started_removes_nothing() {
    let mut function = Function::new(&SHARED);
    function.second(0.0);
    let need = function.need(7);
    assert_eq!((need.value, need.is_active), (700.0, true), "{}", need.reason);
}

#[test]
fn replicas_are_as_many_as_the_plan_says_at_the_quota_that_they_have() {
    let mut function = Function::new(&SHARED);
    for _ in 0..120 {
        function.second(60.0);
    }
    // 60 requests a second of 20 ms at a quota of 40 % keep three replicas busy.
    let need = function.need(4);
    assert!((3.0..8.0).contains(&need.equivalents), "{need:?}");
    assert_eq!(need.basis, Basis::Plan);
    let mut double = wish(&SHARED);
    double.share.floor = Quota::from_percent(80).unwrap();
    double.share.ceiling = double.share.floor;
    let fewer = function.watched.need(&Scene { wish: Some(&double), ..function.scene(2) }, &terms(&[]));
    assert!(fewer.equivalents < need.equivalents, "{fewer:?}");
}

#[test]
fn an_objective_of_the_trigger_goes_before_the_function_s_own() {
    let mut function = Function::new(&SHARED);
    for _ in 0..120 {
        function.second(60.0);
    }
    let strict = function.watched.need(&function.scene(1), &terms(&[("slo", "p99<120ms")]));
    let lax = function.watched.need(&function.scene(1), &terms(&[("slo", "p90<5000ms")]));
    assert!(strict.equivalents > lax.equivalents, "{strict:?} {lax:?}");
    assert!(strict.reason.contains("p99<120ms"), "{}", strict.reason);
}

#[test]
fn where_no_time_is_known_it_is_requests_at_hand_over_what_a_replica_takes() {
    let mut watched = Watched::new(Nanos::ZERO, None, &Profiles::default());
    for second in 0..100 {
        let shown = Counters { in_flight: 14.0, ..Counters::default() };
        let reading = Reading {
            at: Nanos::from_secs(second),
            expected: 1,
            replicas: BTreeMap::from([("a".into(), shown)]),
        };
        watched.observe(&reading, Nanos::ZERO).unwrap();
    }
    let need = watched.need(&scene(Nanos::from_secs(99), None, 1), &terms(&[("concurrency", "4")]));
    assert_eq!(need.basis, Basis::AtHand);
    assert!((need.equivalents - 5.0).abs() < 0.01, "14 at hand, 4 at once for 70 %: {need:?}");
}

#[test]
fn requests_that_have_waited_for_a_first_replica_are_no_need_of_more() {
    // Nothing is known of how long requests take, and three came while the first replica started.
    let mut function = Function::new(&[("sm", "50"), ("quota", "20"), ("slo", "p95<1s")]);
    function.now = Nanos::from_secs(300);
    let held = Scene { held: 3, ..function.scene(0) };
    let need = function.watched.need(&held, &terms(&[]));
    assert_eq!((need.basis, need.equivalents), (Basis::AtHand, 1.0), "{}", need.reason);

    let at_hand = |seconds: u64, in_flight: f64| {
        let shown = Counters { in_flight, ..Counters::default() };
        let replicas = BTreeMap::from([("first".into(), shown)]);
        Reading { at: Nanos::from_secs(seconds), expected: 1, replicas }
    };
    for (seconds, in_flight) in [(302, 3.0), (303, 3.0)] {
        function.watched.observe(&at_hand(seconds, in_flight), Nanos::from_secs(2)).unwrap();
        function.now = Nanos::from_secs(seconds);
        let need = function.need(1);
        assert!(need.equivalents <= 1.0, "at {seconds} s {}: {}", need.equivalents, need.reason);
    }
    // They stay: then they are load.
    for seconds in 304..320 {
        function.watched.observe(&at_hand(seconds, 3.0), Nanos::from_secs(2)).unwrap();
    }
    function.now = Nanos::from_secs(320);
    let need = function.need(1);
    assert!(need.equivalents > 3.0, "{}: {}", need.equivalents, need.reason);
}

#[test]
fn requests_that_are_held_for_a_first_replica_make_it_active_at_once() {
    let function = Function::new(&SHARED);
    let held = Scene { held: 1, ..function.scene(0) };
    let need = function.watched.need(&held, &terms(&[]));
    assert!(need.is_active && need.value > 0.0, "{need:?}");
    assert!(!function.need(0).is_active);
}

#[test]
fn a_trickle_below_the_activation_target_wakes_nothing() {
    let mut function = Function::new(&SHARED);
    for _ in 0..120 {
        function.second(0.5);
    }
    let need = function.watched.need(&function.scene(0), &terms(&[("activationTarget", "30")]));
    assert!(!need.is_active && need.value > 0.0, "{need:?}");
    assert!(function.need(0).is_active);
}

#[test]
fn at_a_constant_load_the_autoscaler_changes_at_most_twice_in_ten_minutes() {
    for rate in [3.0, 17.0, 40.0, 90.0, 230.0] {
        let mut function = Function::new(&SHARED);
        let mut hpa = Hpa::new(1, 50);
        let mut changes = Vec::new();
        for second in 0..1_800 {
            function.second(rate);
            if second % 15 == 14 {
                let before = hpa.replicas;
                hpa.sync(Ok(function.need(before).value));
                if hpa.replicas != before {
                    changes.push(second);
                }
            }
        }
        let late = changes.iter().filter(|&&second| second >= 1_200).count();
        assert!(late <= 2, "{rate}/s: changes at {changes:?}");
        let busy = rate * REQUEST / 0.4;
        assert!(f64::from(hpa.replicas) > busy, "{rate}/s: {} for {busy:.1}", hpa.replicas);
        assert!(f64::from(hpa.replicas) < 2.0 * busy + 3.0, "{rate}/s: {} for {busy:.1}", hpa.replicas);
    }
}

#[test]
fn three_scalers_that_started_at_different_times_say_the_same() {
    let mut functions: Vec<_> = (0..3).map(|_| Function::new(&SHARED)).collect();
    for second in 0..420 {
        for (place, function) in functions.iter_mut().enumerate() {
            // The last one starts five minutes later, and reads what the others do.
            if second == 300 && place == 2 {
                function.watched = Watched::new(function.now, Some(&function.wish), &Profiles::shipped());
            }
            function.second(60.0);
        }
    }
    let values: Vec<_> = functions.iter().map(|function| function.need(4).value).collect();
    assert!(values.iter().all(|value| (value - values[0]).abs() <= 0.1 * values[0]), "{values:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_need_is_finite_and_within_its_bounds(
        rates in prop::collection::vec(0.0f64..400.0, 1..40), present in 0u32..60, held in 0u32..50, most in 1u32..40,
    ) {
        let mut function = Function::new(&SHARED);
        for rate in rates {
            function.second(rate);
        }
        let scene = Scene { held, ..function.scene(present) };
        let need = function.watched.need(&scene, &terms(&[("maxReplicas", &most.to_string())]));
        prop_assert!(need.value.is_finite() && need.value >= 0.0);
        prop_assert!(need.equivalents <= f64::from(most.max(present)), "{need:?}");
        prop_assert!(need.is_active == (need.value > 0.0));
    }

    #[test]
    fn the_autoscaler_scales_in_only_to_what_bears_the_load(rate in 1.0f64..200.0, seed in any::<u64>()) {
        let mut function = Function::new(&SHARED);
        function.chance = StdRng::seed_from_u64(seed);
        let mut hpa = Hpa::new(40, 50);
        for second in 0..900 {
            function.second(rate);
            if second % 15 == 14 {
                let before = hpa.replicas;
                let need = function.need(before);
                hpa.sync(Ok(need.value));
                prop_assert!(hpa.replicas >= before || f64::from(hpa.replicas) >= need.equivalents, "{need:?}");
            }
        }
        prop_assert!(f64::from(hpa.replicas) > rate * REQUEST / 0.4, "{}", hpa.replicas);
    }
}
