//! Control periods over a function whose watchdogs are played.

use gpu_share::annotations::{Replicas, Slo};
use proptest::prelude::*;

use super::super::owners;
use super::super::reading::Shown;
use super::*;

const TICK: Nanos = Nanos::from_millis(250);
const SETTINGS: Settings = Settings { gpu_memory: Bytes::gib(16), window: Nanos::from_millis(10) };

fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

/// One function with one replica, as the API server and its watchdog show it.
struct Play {
    controller: Controller,
    now: Nanos,
    seen: Seen,
    grant: Quota,
    ceiling: Quota,
    /// What the node's agent gives of what is asked for.
    given: f64,
    answered: f64,
    rate: f64,
    in_flight: u32,
    is_silent: bool,
}

impl Play {
    fn new(sm: u8) -> Self {
        let share = Share {
            sm: SmShare::from_percent(sm).unwrap(),
            floor: quota(20),
            ceiling: quota(80),
            memory: Bytes::gib(2),
        };
        let slo = Slo { percentile: 0.95, bound: Nanos::from_millis(250) };
        let wish = Wish {
            share,
            slo: Some(slo),
            scaling: Scaling::Hybrid,
            model: None,
            batch: 1,
            replicas: Replicas::default(),
            priority: gpu_share::annotations::Priority::Normal,
        };
        let replica = Replica {
            pod: "f-0".into(),
            state: ReplicaState::Ready,
            asked: Some(20),
            grant: Some(quota(20)),
            place: Some(("GPU-1".into(), 0)),
            age: Nanos::ZERO,
            is_unschedulable: false,
            written_by: None,
        };
        let seen = Seen {
            name: "fn/f".into(),
            left: owners::left(wish.scaling, false, &[]),
            wish,
            replicas: vec![replica],
            held: 0,
            cold_start: Nanos::from_secs(5),
        };
        Self {
            controller: Controller::new(Profiles::default(), SETTINGS),
            now: Nanos::ZERO,
            seen,
            grant: quota(20),
            ceiling: quota(80),
            given: 1.0,
            answered: 0.0,
            rate: 4.0,
            in_flight: 0,
            is_silent: false,
        }
    }

    /// One period; what is changed is granted at once where it is `obeyed`.
    fn tick(&mut self, obeyed: bool) -> Vec<Change> {
        self.now += TICK;
        self.answered += self.rate * TICK.secs_f64();
        let mut readings = Readings::new(self.now, 1);
        if !self.is_silent {
            let counted = self.answered.floor();
            let text = format!(
                "http_requests_in_flight {}\nhttp_requests_total{{code=\"200\"}} {counted}\n\
                 gpufn_function_gpu_used_seconds_total {}\ngpufn_function_quota_grant_ratio {}\n\
                 gpufn_function_quota_ceiling_ratio {}\n\
                 http_request_duration_seconds_bucket{{code=\"200\",le=\"0.1\"}} {counted}\n\
                 http_request_duration_seconds_sum{{code=\"200\"}} {}\n",
                self.in_flight,
                counted * 0.02,
                self.grant.fraction(),
                self.ceiling.fraction(),
                counted * 0.09,
            );
            readings.add("f-0".into(), Shown::read(&text).unwrap());
        }
        let readings = HashMap::from([("fn/f".to_string(), readings)]);
        let changes = self.controller.decide(self.now, std::slice::from_ref(&self.seen), &readings);
        for change in changes.iter().filter(|_| obeyed) {
            self.seen.replicas[0].asked = Some(change.percent);
            self.grant = Quota::saturating_from_fraction(self.given * f64::from(change.percent) / 100.0);
        }
        changes
    }

    fn run(&mut self, span: Nanos) -> Vec<Change> {
        (0..span.0 / TICK.0).flat_map(|_| self.tick(true)).collect()
    }
}

#[test]
fn nothing_changes_before_a_function_was_watched_for_long_enough() {
    let mut play = Play::new(100);
    (play.in_flight, play.grant) = (40, quota(40));
    play.seen.replicas[0].asked = Some(40);
    assert_eq!(play.run(WATCHED.since(TICK)), [], "a new leader leaves what is there");
    let raised = play.run(Nanos::from_secs(1));
    assert_eq!((raised[0].percent, raised[0].direction), (80, Direction::Raise), "{raised:?}");
    // What is too much goes only when it is known to be.
    let mut play = Play::new(100);
    (play.rate, play.grant) = (1.0, quota(80));
    play.seen.replicas[0].asked = Some(80);
    assert_eq!(play.run(KNOWN.since(TICK)), []);
    let lowered = play.run(Nanos::from_secs(5));
    assert_eq!(lowered[0].direction, Direction::Lower, "{lowered:?}");
}

#[test]
fn a_change_is_said_until_it_is_written_and_no_longer() {
    let mut play = Play::new(100);
    play.run(KNOWN);
    play.in_flight = 40;
    assert_eq!(play.tick(false).len(), 1);
    assert_eq!(play.tick(false).len(), 1, "it is not written yet");
    play.seen.replicas[0].asked = Some(80);
    assert_eq!(play.tick(false), [], "the node's agent has not granted it yet");
}

#[test]
fn an_idle_replica_goes_to_its_floor_and_not_below() {
    let mut play = Play::new(100);
    play.run(KNOWN);
    play.in_flight = 40;
    play.run(Nanos::from_secs(1));
    (play.in_flight, play.rate) = (0, 0.0);
    let parked = play.run(Nanos::from_secs(30));
    assert_eq!(parked.last().map(|change| change.percent), Some(20), "{parked:?}");
}

#[test]
fn no_news_changes_nothing() {
    let mut play = Play::new(100);
    play.run(KNOWN);
    play.in_flight = 40;
    play.run(Nanos::from_secs(2));
    play.is_silent = true;
    assert_eq!(play.run(Nanos::from_secs(60)), []);
}

#[test]
fn what_is_held_still_stays_in_that_direction() {
    let mut play = Play::new(100);
    play.seen.left.raise = Err("paused".into());
    play.run(KNOWN);
    play.in_flight = 40;
    assert_eq!(play.run(Nanos::from_secs(3)), []);
}

#[test]
fn where_a_gpu_is_used_in_turns_the_annotation_still_speaks_of_the_sms_that_were_asked_for() {
    let mut play = Play::new(50);
    // The node's agent gives half of the time for half of the SMs.
    (play.grant, play.ceiling, play.given) = (quota(10), quota(40), 0.5);
    play.run(KNOWN);
    play.in_flight = 60;
    let raised = play.tick(true);
    assert_eq!(raised[0].percent, 80, "40 % of the time is 80 % on half of the SMs: {raised:?}");
    assert!(raised[0].from < quota(40) && play.grant == quota(40), "{raised:?}");
    assert_eq!(play.tick(true), [], "it has what it asked for");
}

#[test]
fn a_replica_without_a_binding_or_with_another_writer_is_left_alone() {
    let cases: [fn(&mut Replica); 3] = [
        |replica| replica.place = None,
        |replica| replica.written_by = Some("kubectl".into()),
        |replica| replica.state = ReplicaState::Draining,
    ];
    for change in cases {
        let mut play = Play::new(100);
        play.run(KNOWN);
        change(&mut play.seen.replicas[0]);
        play.in_flight = 40;
        assert_eq!(play.run(Nanos::from_secs(3)), [], "{:?}", play.seen.replicas[0]);
    }
}

proptest! {
    #[test]
    fn what_is_written_is_between_floor_and_ceiling(
        load in prop::collection::vec((0.0f64..60.0, 0u32..50), 1..12), sm in 20u8..=100, in_turns: bool,
    ) {
        let mut play = Play::new(sm);
        if in_turns && sm < 100 {
            play.ceiling = super::in_turns(&play.seen.wish.share).ceiling;
            play.given = f64::from(sm) / 100.0;
        }
        for (rate, in_flight) in load {
            (play.rate, play.in_flight) = (rate, in_flight);
            for change in play.run(Nanos::from_secs(4)) {
                prop_assert!((20..=80).contains(&change.percent), "{change:?}");
                prop_assert!(!change.reason.contains('\n'));
            }
        }
    }
}
