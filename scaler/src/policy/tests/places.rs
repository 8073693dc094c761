//! What is done about a replica whose row others keep busy.

use gpu_share::annotations::{Replicas, Scaling};

use super::{percent, view, wish};
use crate::policy::*;

const STEP: Nanos = Nanos::from_millis(200);

/// One replica of a function in row 0 of GPU 0, where another one takes most of the time for good, and perhaps a second in a row
/// of its own.
struct Crowd {
    policy: Gpufn,
    now: Nanos,
    second: Option<ReplicaState>,
}

impl Crowd {
    fn new() -> Self {
        let policy = Gpufn::new(Profiles::shipped(), Tuning::default());
        Self { policy, now: Nanos::ZERO, second: None }
    }

    fn replica(id: &str, row: u32, state: ReplicaState) -> ReplicaView {
        let share = wish().share;
        // Beside the other one there is room for the floor only.
        let room = if row == 0 { share.floor } else { Quota::WHOLE };
        ReplicaView {
            id: id.into(),
            state,
            share,
            gpu: 0,
            row,
            grant: share.floor,
            room,
            in_flight: 0,
            age: Nanos::from_secs(60),
            used: Nanos::ZERO,
        }
    }

    fn views(&self) -> [FunctionView; 2] {
        let view = |name, scaling, arrivals, replicas| {
            let wish = Wish { scaling, replicas: Replicas { min: 1, max: 4 }, ..wish() };
            view(name, wish, arrivals, replicas)
        };
        let mut own = vec![Self::replica("crowded", 0, ReplicaState::Ready)];
        own.extend(self.second.map(|state| Self::replica("second", 1, state)));
        let busy = ReplicaView {
            used: STEP,
            grant: percent(80),
            room: percent(80),
            ..Self::replica("busy", 0, ReplicaState::Ready)
        };
        // One request a second.
        let arrivals = u64::from((self.now.0 / STEP.0).is_multiple_of(5));
        [view("few", Scaling::Hybrid, arrivals, own), view("many", Scaling::Off, 0, vec![busy])]
    }

    /// What is decided about the number of replicas in so many seconds.
    fn run(&mut self, seconds: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..5 * seconds {
            self.now += STEP;
            let decisions = self.policy.decide(self.now, &self.views());
            let counts = decisions.into_iter().map(|decision| decision.action);
            actions
                .extend(counts.filter(|action| matches!(action, Action::Scale { .. } | Action::Stop { .. })));
        }
        actions
    }
}

#[test]
fn a_replica_whose_row_is_taken_is_replaced_by_one_elsewhere_and_not_by_many() {
    let mut crowd = Crowd::new();
    assert_eq!(crowd.run(20), [Action::Scale { function: "few".into(), replicas: 2 }]);
    crowd.second = Some(ReplicaState::Starting);
    assert_eq!(crowd.run(8), []);
    crowd.second = Some(ReplicaState::Ready);
    assert_eq!(crowd.run(1)[0], Action::Stop { replica: "crowded".into() });
}

#[test]
fn from_one_gpu_a_replica_is_moved_once_a_minute_at_most() {
    let mut crowd = Crowd::new();
    // What is wanted does not come about: there is no room anywhere.
    let moves = crowd.run(170).len();
    assert!((2..=3).contains(&moves), "{moves} in 170 s");
}
