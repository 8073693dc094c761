//! What happens in small clusters, under policies that do as they are told and under those of production.

use gpu_share::annotations::{Priority, Replicas, Scaling, Slo, Wish};
use gpu_share::ledger::Sharing;
use gpu_share::quota::WINDOW;
use gpu_share::units::{Quota, SmShare};
use scaler::policy::{Decision, by_name};

use super::*;
use crate::arrivals::Segment;
use crate::gpu::Enforcement;
use crate::random::Spread;
use crate::spec::Routing;
use crate::surface::Surfaces;

const METERED: Enforcement = Enforcement::GpuTime { window: WINDOW, lends: false };

fn percent(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn share(sm: u8, floor: u8, memory: Bytes) -> Share {
    Share::new(SmShare::from_percent(sm).unwrap(), percent(floor), Quota::WHOLE, memory).unwrap()
}

/// A model that takes 20 ms on half a GPU or more, and 5 ms more for each item beyond the first.
fn function(load: Load) -> FunctionSpec {
    let lines = "model,batch,sm,quota,latency_ms\nm,1,25,100,40\nm,1,50,100,20\nm,1,100,100,20\n\
                 m,5,25,100,80\nm,5,50,100,40\nm,5,100,100,40\n";
    FunctionSpec {
        name: "f".into(),
        wish: Wish {
            share: share(50, 20, Bytes::gib(2)),
            slo: Some(Slo { percentile: 0.95, bound: Nanos::from_millis(100) }),
            scaling: Scaling::Hybrid,
            model: Some("m".into()),
            batch: 1,
            replicas: Replicas { min: 1, max: 4 },
            priority: Priority::default(),
        },
        surface: Surfaces::parse(lines).unwrap().find("m").unwrap(),
        contention: Contention::default(),
        load,
        cpu: Spread { mean: 0.0, cv: 0.0 },
        workers: 0,
        limit: 0,
        fill: Nanos::ZERO,
    }
}

fn spec(functions: Vec<FunctionSpec>) -> Spec {
    let seconds = functions.iter().map(|function| function.load.seconds()).fold(0.0, f64::max);
    Spec {
        cards: Cards {
            count: 4,
            per_node: 1,
            memory: Bytes::gib(16),
            sharing: Sharing::Mps,
            enforcement: METERED,
        },
        control: Control {
            tick: Nanos::from_millis(200),
            delay: Nanos::from_millis(20),
            cold_start: Spread { mean: 5.0, cv: 0.2 },
            timeout: Nanos::from_secs(30),
            routing: Routing::Least,
        },
        faults: Faults::default(),
        functions,
        seconds,
        seed: 1,
    }
}

fn steady(rate: f64, seconds: f64) -> Load {
    Load::Poisson(vec![Segment { seconds, from: rate, to: rate }])
}

/// Says what it was given, one decision at each look, and nothing afterwards.
struct Scripted(VecDeque<Vec<Action>>);

fn scripted(script: impl IntoIterator<Item = Vec<Action>>) -> Box<dyn Policy> {
    Box::new(Scripted(script.into_iter().collect()))
}

impl Policy for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn decide(&mut self, _: Nanos, _: &[FunctionView]) -> Vec<Decision> {
        let actions = self.0.pop_front().unwrap_or_default();
        actions.into_iter().map(|action| Decision { action, reason: String::new() }).collect()
    }
}

fn nothing() -> Box<dyn Policy> {
    scripted([])
}

fn production(name: &str) -> Box<dyn Policy> {
    let profiles = gpu_share::latency::Profiles::parse(
        "model,batch,sm,ms\nm,1,25,40\nm,1,50,20\nm,1,100,20\nm,5,25,80\nm,5,50,40\nm,5,100,40\n",
    );
    by_name(name, profiles.unwrap()).unwrap()
}

fn run(spec: &Spec, policy: Box<dyn Policy>) -> Report {
    Cluster::new(spec, policy).unwrap().run()
}

#[test]
fn every_request_is_answered_and_costs_are_what_was_granted() {
    let report = run(&spec(vec![function(steady(5.0, 100.0))]), nothing());
    let total = report.total();
    assert_eq!((total.finished, total.failed), (total.arrived, 0));
    assert!((400..=600).contains(&total.arrived), "{}", total.arrived);
    // Half the SMs for a fifth of the time, but an eighth of the memory.
    assert!((total.granted / 100.0 - 0.1).abs() < 1e-6, "{}", total.granted);
    assert!((total.reserved / 100.0 - 0.125).abs() < 0.01, "{}", total.reserved);
    let used = 0.5 * 0.02 * total.arrived as f64;
    assert!((total.used - used).abs() < 1e-6, "{} and {used}", total.used);
}

#[test]
fn a_lone_request_takes_its_gpu_time_over_its_quota() {
    let report = run(&spec(vec![function(steady(0.5, 400.0))]), nothing());
    let p50 = report.total().latency.quantile_ms(0.5).unwrap();
    assert!((85.0..110.0).contains(&p50), "20 ms at 20 % take {p50} ms");
    let mut alone = spec(vec![function(steady(0.5, 400.0))]);
    alone.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
    let p50 = run(&alone, nothing()).total().latency.quantile_ms(0.5).unwrap();
    assert!((p50 - 20.0).abs() < 0.5, "{p50}");
}

#[test]
fn the_queue_of_one_server_is_that_of_the_formula() {
    // M/D/1 at a load of 0.8: Pollaczek and Khinchine's mean wait is 2 service times; the 95 % quantile about 6.3 of them.
    let mut spec = spec(vec![function(steady(40.0, 3000.0))]);
    spec.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
    let queue =
        scaler::queueing::Queue { servers: 1, rate: 40.0, service: 0.02, arrival_scv: 1.0, service_scv: 0.0 };
    let expected = 20.0 + 1e3 * queue.wait_quantile(0.95);
    let p95 = run(&spec, nothing()).total().latency.quantile_ms(0.95).unwrap();
    assert!((p95 / expected - 1.0).abs() < 0.08, "{p95} ms, by the formula {expected} ms");
}

#[test]
fn the_same_spec_gives_the_same_report_to_the_last_bit() {
    let mut spec = spec(vec![function(steady(30.0, 120.0))]);
    spec.functions[0].contention = Contention::new([0.1, 0.1, 0.2]);
    spec.faults.replica_mtbf = Some(40.0);
    spec.faults.node_mtbf = Some(200.0);
    spec.faults.repair = 10.0;
    spec.functions[0].cpu = Spread { mean: 0.01, cv: 0.3 };
    let report = run(&spec, production("gpufn"));
    // As text: what was not answered in a moment is not a number, and differs from itself.
    assert_eq!(format!("{report:?}"), format!("{:?}", run(&spec, production("gpufn"))));
    spec.seed = 2;
    assert_ne!(format!("{report:?}"), format!("{:?}", run(&spec, production("gpufn"))));
}

#[test]
fn what_is_random_in_one_place_does_not_shift_what_is_in_another() {
    let mut spec = spec(vec![function(steady(10.0, 60.0))]);
    let arrived = run(&spec, nothing()).total().arrived;
    spec.functions[0].cpu = Spread { mean: 0.01, cv: 0.5 };
    spec.faults.replica_mtbf = Some(20.0);
    assert_eq!(run(&spec, nothing()).total().arrived, arrived);
}

#[test]
fn batches_are_merged_up_to_their_size_and_wait_to_be_filled() {
    let mut spec = spec(vec![function(steady(60.0, 60.0))]);
    spec.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
    let single = run(&spec, nothing()).total();
    assert!(single.latency.quantile_ms(0.5).unwrap() > 1_000.0, "60 a second are more than 50 at once");
    spec.functions[0].wish.batch = 5;
    let batched = run(&spec, nothing()).total();
    assert!(batched.latency.quantile_ms(0.95).unwrap() < 120.0);
    assert!(batched.used < 0.9 * single.used, "{} and {}", batched.used, single.used);
    spec.functions[0].fill = Nanos::from_millis(50);
    let filled = run(&spec, nothing()).total();
    assert!(filled.used < batched.used);
}

#[test]
fn preparation_takes_its_time_and_as_many_at_once_as_there_are_workers() {
    let mut spec = spec(vec![function(steady(10.0, 60.0))]);
    spec.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
    spec.functions[0].cpu = Spread { mean: 0.08, cv: 0.0 };
    let p50 = run(&spec, nothing()).total().latency.quantile_ms(0.5).unwrap();
    assert!((98.0..112.0).contains(&p50), "{p50}");
    spec.functions[0].workers = 1;
    let queued = run(&spec, nothing()).total().latency.quantile_ms(0.95).unwrap();
    assert!(queued > 250.0, "{queued}");
}

#[test]
fn a_grant_reaches_the_gpu_after_its_delay_and_only_as_far_as_the_row_has_room() {
    let mut wide = function(steady(1.0, 60.0));
    wide.wish.share = share(60, 70, Bytes::gib(1));
    let mut other = function(steady(1.0, 60.0));
    (other.name, other.wish.share) = ("g".into(), share(60, 20, Bytes::gib(1)));
    let mut spec = spec(vec![wide, other]);
    spec.cards.count = 1;
    let raise = |id: &str| Action::Grant { replica: id.into(), quota: Quota::WHOLE };
    let mut cluster = Cluster::new(&spec, scripted([vec![raise("r-1-1")]])).unwrap();
    assert_eq!(cluster.gpus[0].replicas.len(), 2, "60 + 60 % of the SMs are one row");
    cluster.advance(Nanos::from_millis(215));
    assert_eq!(cluster.replicas[1].engine.grant(), percent(20));
    cluster.advance(Nanos::from_secs(1));
    assert_eq!(cluster.replicas[1].engine.grant(), percent(30));
}

#[test]
fn lent_time_makes_requests_faster_than_the_grant_and_is_paid_for() {
    let mut spec = spec(vec![function(steady(5.0, 200.0))]);
    let kept = run(&spec, nothing()).total();
    spec.cards.enforcement = Enforcement::GpuTime { window: WINDOW, lends: true };
    let lent = run(&spec, nothing()).total();
    assert!(lent.latency.quantile_ms(0.5).unwrap() < 0.4 * kept.latency.quantile_ms(0.5).unwrap());
    assert_eq!(lent.granted.to_bits(), kept.granted.to_bits());
}

#[test]
fn scaling_starts_and_drains_replicas_and_a_cold_start_takes_its_time() {
    let to = |replicas| vec![Action::Scale { function: "f".into(), replicas }];
    let mut spec = spec(vec![function(steady(2.0, 60.0))]);
    spec.control.cold_start = Spread { mean: 5.0, cv: 0.0 };
    let mut script = vec![to(3)];
    script.extend(std::iter::repeat_n(Vec::new(), 100));
    script.push(to(1));
    let mut cluster = Cluster::new(&spec, scripted(script)).unwrap();
    let ready = |cluster: &Cluster| {
        cluster
            .replicas
            .iter()
            .filter(|replica| replica.exists && replica.state == ReplicaState::Ready)
            .count()
    };
    cluster.advance(Nanos::from_secs(5));
    assert_eq!((cluster.functions[0].replicas.len(), ready(&cluster)), (3, 1));
    cluster.advance(Nanos::from_millis(5_300));
    assert_eq!(ready(&cluster), 3);
    cluster.advance(Nanos::from_secs(30));
    assert_eq!(cluster.functions[0].replicas.len(), 1);
    assert_eq!(cluster.functions[0].outcome.cold_starts, 2);
    while cluster.advance(Nanos(u64::MAX)) {}
    assert_eq!(cluster.finish().total().failed, 0);
}

#[test]
fn a_function_without_replicas_gets_one_for_its_first_request() {
    let mut sleeper = function(Load::Minutes(vec![0, 3]));
    sleeper.wish.replicas.min = 0;
    let report = run(&spec(vec![sleeper]), nothing());
    let total = report.total();
    assert_eq!((total.finished, total.cold_starts), (3, 1));
    assert!(total.latency.quantile_ms(1.0).unwrap() > 3_000.0);
}

#[test]
fn a_parked_replica_wakes_at_its_floor_and_is_not_parked_while_it_has_a_request() {
    let park = || vec![Action::Park { replica: "r-1-0".into() }];
    let mut cluster = Cluster::new(&spec(vec![function(steady(1.0, 60.0))]), scripted([park()])).unwrap();
    cluster.advance(Nanos::from_millis(230));
    assert_eq!(cluster.replicas[0].state, ReplicaState::Parked);
    while cluster.advance(Nanos(u64::MAX)) {}
    assert_eq!(cluster.replicas[0].engine.grant(), percent(20));
    let total = cluster.finish().total();
    assert_eq!((total.parks, total.wakes, total.failed), (1, 1, 0));
}

#[test]
fn a_lost_node_fails_what_it_has_and_others_take_over() {
    let mut spec = spec(vec![function(steady(20.0, 120.0))]);
    spec.functions[0].wish.share = share(50, 90, Bytes::gib(2));
    spec.functions[0].cpu = Spread { mean: 0.05, cv: 0.1 };
    (spec.faults.losses, spec.faults.repair) = (vec![(30.0, 0)], 20.0);
    let total = run(&spec, nothing()).total();
    assert_eq!(total.cold_starts, 1);
    assert!((1..=10).contains(&total.failed), "{}", total.failed);
    assert_eq!(total.finished + total.failed, total.arrived);
}

#[test]
fn clients_that_wait_too_long_give_up() {
    let mut spec = spec(vec![function(steady(20.0, 60.0))]);
    spec.control.timeout = Nanos::from_secs(2);
    let total = run(&spec, nothing()).total();
    assert_eq!(total.finished + total.failed, total.arrived);
    assert!(total.failed > total.arrived / 4, "{} of {}", total.failed, total.arrived);
    assert!(total.latency.quantile_ms(1.0).unwrap() < 2_200.0);
}

#[test]
fn a_replica_that_keeps_its_own_books_goes_where_it_is_told() {
    let start = |gpu| Action::Start { function: "f".into(), share: share(10, 30, Bytes::gib(10)), gpu };
    let mut spec = spec(vec![function(steady(5.0, 60.0))]);
    spec.functions[0].wish.replicas.min = 0;
    spec.control.cold_start = Spread { mean: 1.0, cv: 0.0 };
    // The third finds no memory, and the fifth GPU is not there.
    let starts = vec![start(2), start(1), start(2), start(4)];
    let mut cluster = Cluster::new(&spec, scripted([starts])).unwrap();
    cluster.advance(Nanos::from_secs(10));
    let gpus: Vec<_> =
        cluster.functions[0].replicas.iter().map(|&p| cluster.replicas[p as usize].gpu).collect();
    assert_eq!(gpus[gpus.len() - 2..], [2, 1]);
}

#[test]
fn under_every_policy_as_many_are_ready_at_the_beginning_as_a_function_allows_at_least() {
    for (min, ready) in [(0, 0), (1, 1)] {
        let mut spec = spec(vec![function(steady(5.0, 60.0))]);
        spec.functions[0].wish.replicas.min = min;
        let cluster = Cluster::new(&spec, Box::new(FromTheStart)).unwrap();
        let states = cluster.replicas.iter().filter(|replica| replica.state == ReplicaState::Ready).count();
        assert_eq!((cluster.replicas.len(), states), (2, ready));
    }
}

/// Two replicas of its own at the first look.
struct FromTheStart;

impl Policy for FromTheStart {
    fn name(&self) -> &'static str {
        "from-the-start"
    }

    fn share(&self, wish: &Wish, _: Bytes) -> Share {
        wish.share
    }

    fn places(&self) -> bool {
        true
    }

    fn decide(&mut self, now: Nanos, functions: &[FunctionView]) -> Vec<Decision> {
        let start = |view: &FunctionView| Decision {
            action: Action::Start { function: view.name.clone(), share: view.wish.share, gpu: 0 },
            reason: String::new(),
        };
        if now > Nanos::ZERO {
            Vec::new()
        } else {
            functions.iter().flat_map(|view| [start(view), start(view)]).collect()
        }
    }
}

#[test]
fn many_functions_with_few_requests_share_rows_and_keep_their_objectives() {
    // Six replicas of 55 % of the SMs are three rows' worth on one GPU that has width for one; each is idle nearly always.
    let functions = (0..6).map(|index| {
        let mut few = function(steady(0.3, 300.0));
        few.name = format!("f{index}");
        few.wish.share = share(55, 15, Bytes::gib(2));
        few.wish.slo = Some(Slo { percentile: 0.95, bound: Nanos::from_millis(60) });
        few
    });
    let mut spec = spec(functions.collect());
    spec.cards.count = 1;
    spec.cards.enforcement = Enforcement::GpuTime { window: WINDOW, lends: true };
    let total = run(&spec, production("gpufn")).total();
    assert!(total.violations_percent() <= 5.0, "{} %", total.violations_percent());
    // One replica each; now and then a second one is started for a while.
    assert!(total.reserved / 300.0 < 1.2 * 6.0 * 0.125, "{} GPUs", total.reserved / 300.0);
}

#[test]
fn no_schedule_costs_less_than_the_bound() {
    for (load, min) in [
        (steady(20.0, 120.0), 1),
        (steady(20.0, 120.0), 0),
        (Load::Minutes(vec![3, 0, 0, 40, 0, 1]), 0),
        (Load::Mmpp { rate: 10.0, dispersion: 4.0, seconds: 120.0 }, 0),
    ] {
        let mut spec = spec(vec![function(load)]);
        spec.functions[0].wish.replicas.min = min;
        spec.control.cold_start.cv = 0.0;
        let least = crate::bound::least_gpus(&spec);
        assert!(least > 0.0);
        for name in ["gpufn", "hpa", "kserve", "themis"] {
            let cost = run(&spec, production(name)).mean_reserved();
            assert!(cost >= least * (1.0 - 1e-6), "{name}: {cost} of {least}");
        }
    }
}

#[test]
fn the_bound_is_memory_while_a_replica_is_kept_or_started_and_work_where_that_is_more() {
    let mut spec = spec(vec![function(Load::Minutes(vec![0, 1, 0, 0]))]);
    spec.functions[0].wish.replicas.min = 0;
    // One start of 5 s, for an eighth of the card's memory, in 240 s.
    assert!((crate::bound::least_gpus(&spec) - 0.125 * 5.0 / 240.0).abs() < 1e-9);
    spec.functions[0].wish.replicas.min = 1;
    assert!((crate::bound::least_gpus(&spec) - 0.125).abs() < 1e-9);
    // 40 ms each on a quarter of the SMs or less, of which the memory is an eighth.
    let busy = self::spec(vec![function(steady(400.0, 100.0))]);
    let requests = run_count(&busy);
    assert!((crate::bound::least_gpus(&busy) - requests * 0.005 / 100.0).abs() < 1e-6);
}

/// Requests that arrive in a run.
fn run_count(spec: &Spec) -> f64 {
    run(spec, nothing()).total().arrived as f64
}

#[test]
fn a_client_that_waits_for_its_answers_gets_all_of_them() {
    let step = |rate| Segment { seconds: 5.0, from: rate, to: rate };
    for rate in [10.0, 200.0] {
        let mut spec = spec(vec![function(Load::Client(vec![step(rate), step(5.0)]))]);
        spec.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
        let report = run(&spec, nothing());
        let total = report.total();
        assert_eq!((total.arrived, total.finished), (5 * rate as u64 + 25, 5 * rate as u64 + 25));
        // 1,000 requests of 20 ms take 20 s, and the second step begins when the last is answered.
        let expected = if rate > 50.0 { 24.8 } else { 9.8 };
        assert!((report.ended - expected).abs() < 0.3, "{}", report.ended);
    }
}

#[test]
fn places_of_what_is_gone_are_used_again() {
    let mut spec = spec(vec![function(steady(100.0, 50.0))]);
    spec.functions[0].wish.share = Share::whole_gpu(Bytes::gib(16));
    spec.functions[0].wish.batch = 5;
    let mut cluster = Cluster::new(&spec, nothing()).unwrap();
    while cluster.advance(Nanos(u64::MAX)) {}
    assert!(cluster.requests.len() <= cluster.report.most_alive as usize);
    assert!(cluster.report.most_alive < 1_000, "{}", cluster.report.most_alive);
    assert_eq!(cluster.free_requests.len(), cluster.requests.len());
}

#[test]
fn gpufn_keeps_its_objective_on_less_than_kserve_takes() {
    let mut spec = spec(vec![function(steady(10.0, 200.0))]);
    // As nodes do, and as the policy counts on.
    spec.cards.enforcement = Enforcement::GpuTime { window: WINDOW, lends: true };
    let (ours, theirs) = (run(&spec, production("gpufn")), run(&spec, production("kserve")));
    assert!(ours.total().violations_percent() <= 5.0, "{} %", ours.total().violations_percent());
    assert!(ours.mean_reserved() < 0.6 * theirs.mean_reserved(), "{}", ours.mean_reserved());
    assert!((theirs.mean_reserved() - 1.0).abs() < 1e-6);
}

/// Two functions that want more than two GPUs have: one takes all, then requests come to the other, too. Part of the last
/// moments in which the other keeps its objective, and the first one's outcome.
fn shortage(first: Priority, other: Priority) -> (f64, Outcome) {
    let segment = |seconds, from, to| Segment { seconds, from, to };
    let fills = Load::Poisson(vec![segment(100.0, 5.0, 220.0), segment(200.0, 220.0, 220.0)]);
    let comes =
        Load::Poisson(vec![segment(100.0, 2.0, 2.0), segment(50.0, 2.0, 60.0), segment(150.0, 60.0, 60.0)]);
    let named = |name: &str, load, priority| {
        let mut function = function(load);
        function.name = name.into();
        (function.wish.share, function.wish.priority) = (share(25, 50, Bytes::gib(1)), priority);
        function.wish.replicas = Replicas { min: 1, max: 32 };
        function.wish.slo = Some(Slo { percentile: 0.95, bound: Nanos::from_millis(250) });
        function
    };
    let mut spec = spec(vec![named("first", fills, first), named("other", comes, other)]);
    spec.cards.count = 2;
    spec.cards.enforcement = Enforcement::GpuTime { window: WINDOW, lends: true };
    let mut report = run(&spec, production("gpufn"));
    let last: Vec<_> = report.functions[1].timeline.iter().filter(|moment| moment.at > 200.0).collect();
    let kept = last.iter().filter(|moment| moment.p95_ms <= 250.0).count();
    (kept as f64 / last.len() as f64, report.functions.swap_remove(0))
}

#[test]
fn under_shortage_the_higher_class_keeps_its_objective_and_the_lower_goes_on() {
    let (kept, lower) = shortage(Priority::Low, Priority::High);
    assert!(kept >= 0.9, "{kept}");
    assert!(lower.timeline.iter().all(|moment| moment.replicas > 0));
    assert!(lower.finished > lower.arrived / 2, "{} of {}", lower.finished, lower.arrived);
    let (kept, _) = shortage(Priority::Normal, Priority::Normal);
    assert!(kept < 0.5, "equals share what there is: {kept}");
}

#[test]
fn an_objective_that_nothing_keeps_is_refused() {
    let mut spec = spec(vec![function(steady(1.0, 1.0))]);
    spec.functions[0].wish.slo = Some(Slo { percentile: 0.95, bound: Nanos::from_millis(19) });
    let error = Cluster::new(&spec, nothing()).unwrap_err().to_string();
    assert_eq!(
        error,
        "function f, slo is \"p95<19ms\", allowed is a longer one: cannot be met: fastest is 20.0 ms on a whole GPU"
    );
    spec.functions[0].wish.slo = None;
    spec.cards.count = 0;
    assert!(
        Cluster::new(&spec, nothing()).unwrap_err().to_string().starts_with("gpus is \"0\", allowed is 1 to")
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_fails_no_request_is_lost_or_counted_twice(
        rate in 1.0f64..60.0, mtbf in 2.0f64..60.0, node in 5.0f64..100.0, seed: u64, cpu in 0.0f64..0.1,
        batch in 1u32..6, workers in 0u32..3,
    ) {
        let mut spec = spec(vec![function(steady(rate, 40.0)), function(Load::Minutes(vec![20]))]);
        (spec.functions[1].name, spec.functions[1].wish.replicas.min) = ("g".into(), 0);
        (spec.faults.replica_mtbf, spec.faults.node_mtbf, spec.faults.repair) = (Some(mtbf), Some(node), 5.0);
        (spec.seed, spec.functions[0].wish.batch, spec.functions[0].workers) = (seed, batch, workers);
        spec.functions[0].cpu = Spread { mean: cpu, cv: 0.5 };
        spec.functions[0].wish.slo = None;
        let mut cluster = Cluster::new(&spec, production("gpufn")).unwrap();
        let mut until = Nanos::ZERO;
        loop {
            until += Nanos::from_millis(700);
            let goes_on = cluster.advance(until);
            for card in &cluster.gpus {
                proptest::prop_assert_eq!(card.ledger.check(), Ok(()));
                proptest::prop_assert_eq!(card.ledger.bindings().count(), card.replicas.len());
            }
            if !goes_on { break; }
        }
        proptest::prop_assert_eq!(cluster.alive, 0);
        let total = cluster.finish().total();
        proptest::prop_assert_eq!(total.finished + total.failed, total.arrived);
    }
}
