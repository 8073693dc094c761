//! Who gives replicas back where there are not enough GPUs.

use gpu_share::annotations::Priority;

use super::*;

/// Ready replicas of a function in one row of each GPU.
fn ready(name: &str, row: u32, count: u32) -> Vec<ReplicaView> {
    let replica = |number| ReplicaView {
        id: format!("{name}-{number}"),
        state: ReplicaState::Ready,
        share: wish().share,
        gpu: number,
        row,
        grant: percent(100),
        room: percent(100),
        in_flight: 1,
        age: Nanos::from_secs(60),
        used: Nanos::from_millis(150),
    };
    (0..count).map(replica).collect()
}

/// What is said of numbers in ten seconds in which one function has four replicas and needs them, and another has one,
/// needs more, and finds no room, if so.
fn said(has: Priority, lacks: Priority, no_room: bool) -> Vec<(String, u32)> {
    let mut policy = by_name("gpufn", Profiles::shipped()).unwrap();
    let function = |name: &str, priority, replicas: Vec<ReplicaView>, no_room| {
        let wish = Wish { priority, ..wish() };
        FunctionView { no_room, in_flight: replicas.len() as u32, ..view(name, wish, 20, replicas) }
    };
    let views = [
        function("has", has, ready("has", 0, 4), false),
        function("lacks", lacks, ready("lacks", 1, 1), no_room),
    ];
    let rounds = (1..=50).map(|round| Nanos::from_millis(200 * round));
    let decisions = rounds.flat_map(|now| policy.decide(now, &views)).collect::<Vec<_>>();
    let scaled = decisions.into_iter().filter_map(|decision| match decision.action {
        Action::Scale { function, replicas } => Some((function, replicas)),
        _ => None,
    });
    scaled.collect()
}

fn gives(said: &[(String, u32)]) -> bool {
    said.iter().any(|(name, replicas)| name == "has" && *replicas < 4)
}

#[test]
fn who_has_more_than_its_part_gives_it_back_for_a_class_that_is_not_lower() {
    for (has, lacks) in [
        (Priority::Low, Priority::High),
        (Priority::Normal, Priority::High),
        (Priority::Normal, Priority::Normal),
    ] {
        assert!(gives(&said(has, lacks, true)), "{has:?} for {lacks:?}");
    }
}

#[test]
fn a_higher_class_gives_nothing_for_a_lower_one_that_has_a_replica() {
    assert!(!gives(&said(Priority::High, Priority::Low, true)));
}

#[test]
fn nobody_gives_where_it_is_not_room_that_lacks() {
    let said = said(Priority::Low, Priority::High, false);
    assert!(!gives(&said), "{said:?}");
    assert!(said.iter().any(|(name, replicas)| name == "lacks" && *replicas > 1), "{said:?}");
}
