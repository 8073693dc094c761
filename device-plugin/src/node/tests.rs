//! The node without clock, files and sockets.

use gpu_share::binding::Owner;
use gpu_share::ledger::Sharing;
use gpu_share::share::Share;
use gpu_share::units::SmShare;
use proptest::prelude::*;

use super::*;

const MS: Nanos = Nanos::from_millis(1);

fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn id(name: &str) -> BindingId {
    name.to_string().try_into().unwrap()
}

fn node() -> Node {
    let gpu = Gpu {
        id: GpuId("GPU-1".into()),
        index: 0,
        name: "simulated".into(),
        memory: Bytes::gib(16),
        sharing: Sharing::Exclusive,
    };
    Node::new([gpu], Units::PER_GPU, Rules::default())
}

fn share(floor: u8, ceiling: u8, memory: Bytes) -> Share {
    Share::new(SmShare::WHOLE, quota(floor), quota(ceiling), memory).unwrap()
}

fn with(mut node: Node, name: &str, floor: u8) -> Node {
    let bind = Bind { owner: Owner::default(), share: share(floor, 100, Bytes::gib(2)) };
    node.bind(id(name), bind, MS).unwrap();
    node
}

#[test]
fn a_right_is_an_odd_word_and_its_end_an_even_one() {
    let mut node = with(node(), "a", 50);
    let (slot, _) = node.attach(ProcessId(1), &id("a"), 7, Bytes::ZERO).unwrap();
    assert_eq!(node.want(ProcessId(1), MS), [Effect::Right { binding: id("a"), slot, right: 1 }]);
    let report = Report { right: 1, used: MS, launches: 3, throttled: MS, more: false, unknown: 2 };
    let now = Nanos::from_millis(3);
    assert_eq!(
        node.give_back(ProcessId(1), &report, now),
        [Effect::Right { binding: id("a"), slot, right: 2 }]
    );
    let status = node.status("0", 1);
    let binding = &status.gpus[0].bindings[0];
    assert_eq!((binding.used, binding.throttled, binding.launches, binding.unknown), (MS, MS, 3, 2));
    assert_eq!(binding.processes, [7]);
}

#[test]
fn a_report_about_an_old_right_ends_no_new_one() {
    let mut node = with(node(), "a", 50);
    node.attach(ProcessId(1), &id("a"), 7, Bytes::ZERO).unwrap();
    node.want(ProcessId(1), MS);
    node.give_back(ProcessId(1), &Report { right: 1, ..Report::default() }, MS);
    node.want(ProcessId(1), MS);
    for right in [0, 1, 2, 4, u32::MAX] {
        assert_eq!(node.give_back(ProcessId(1), &Report { right, ..Report::default() }, MS), [], "{right}");
    }
    assert_eq!(node.give_back(ProcessId(1), &Report { right: 3, ..Report::default() }, MS).len(), 1);
}

#[test]
fn a_parked_binding_wakes_when_its_process_wants_and_others_give_way() {
    let mut node = with(with(node(), "a", 40), "b", 40);
    node.set_grant(&id("a"), Quota::ZERO, MS).unwrap();
    assert_eq!(node.set_grant(&id("b"), Quota::WHOLE, MS).unwrap().0, Quota::WHOLE);
    node.attach(ProcessId(1), &id("a"), 7, Bytes::ZERO).unwrap();
    let effects = node.want(ProcessId(1), Nanos::from_millis(20));
    assert!(effects.contains(&Effect::Announce(Event::Woken { binding: id("a"), grant: quota(40) })));
    assert!(effects.contains(&Effect::Announce(Event::Withdrawn { binding: id("b"), grant: quota(60) })));
    assert!(effects.contains(&Effect::Limits(id("a"))) && effects.contains(&Effect::Limits(id("b"))));
    let right = Effect::Right { binding: id("a"), slot: 0, right: 1 };
    let place = |wanted| effects.iter().position(|effect| *effect == wanted).unwrap();
    assert!(place(Effect::Limits(id("a"))) < place(right), "the right rests on a grant that is on the page");
}

#[test]
fn a_binding_whose_process_waits_can_not_be_parked() {
    let mut node = with(with(node(), "a", 40), "b", 40);
    for (process, name) in [(1, "a"), (2, "b")] {
        node.attach(ProcessId(process), &id(name), 7, Bytes::ZERO).unwrap();
        node.want(ProcessId(process), MS);
    }
    // The first holds the right, the second waits.
    assert_eq!(node.set_grant(&id("b"), Quota::ZERO, MS).unwrap().0, quota(40));
    assert_eq!(node.set_grant(&id("a"), Quota::ZERO, MS).unwrap().0, Quota::ZERO);
}

#[test]
fn memory_is_one_account_of_all_processes() {
    let mut node = with(node(), "a", 50);
    node.attach(ProcessId(1), &id("a"), 1, Bytes::ZERO).unwrap();
    node.attach(ProcessId(2), &id("a"), 2, Bytes::mib(512)).unwrap();
    assert!(node.reserve(ProcessId(1), Bytes::gib(1)).unwrap().granted);
    let refused = node.reserve(ProcessId(1), Bytes::gib(1)).unwrap();
    let (used, limit) = (Bytes::mib(1536), Bytes::gib(2));
    assert_eq!(refused, Reservation { granted: false, used, limit });
    assert!(!node.reserve(ProcessId(1), Bytes(u64::MAX)).unwrap().granted);
    node.free(ProcessId(1), Bytes(u64::MAX));
    node.gone(ProcessId(2), MS);
    assert_eq!(node.counters(&id("a")).memory, Bytes::ZERO);
    assert_eq!(node.reserve(ProcessId(2), Bytes(1)), None);
}

#[test]
fn what_a_hold_used_is_counted_when_it_ends_and_not_how_long_it_was() {
    let mut node = with(node(), "a", 50);
    node.attach(ProcessId(1), &id("a"), 1, Bytes::ZERO).unwrap();
    node.want(ProcessId(1), Nanos::ZERO);
    // The machine held the process up: of a second it used a millisecond.
    let second = Nanos::from_secs(1);
    assert_eq!(node.counters(&id("a")).used, Nanos::ZERO);
    node.give_back(ProcessId(1), &Report { right: 1, used: MS, ..Report::default() }, second);
    assert_eq!(node.counters(&id("a")).used, MS);
    // From then on each hold's use is seen.
    for hold in 1_u32..=10 {
        let began = second + Nanos::from_millis(10 * u64::from(hold));
        node.want(ProcessId(1), began);
        let report = Report { right: 1 + 2 * hold, used: MS, ..Report::default() };
        node.give_back(ProcessId(1), &report, began + MS + MS);
        assert_eq!(node.counters(&id("a")).used, Nanos::from_millis(1 + u64::from(hold)));
    }
}

#[test]
fn a_container_has_a_slot_for_each_process_and_no_more() {
    let mut node = with(node(), "a", 50);
    for process in 0..SLOTS {
        assert_eq!(node.attach(ProcessId(process as u64), &id("a"), 1, Bytes::ZERO).unwrap().0, process);
    }
    let error = node.attach(ProcessId(99), &id("a"), 1, Bytes::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "binding a has 32 processes, allowed are 32");
    node.gone(ProcessId(5), MS);
    assert_eq!(node.attach(ProcessId(99), &id("a"), 1, Bytes::ZERO).unwrap().0, 5);
}

#[test]
fn a_released_binding_closes_its_connections() {
    let mut node = with(node(), "a", 50);
    node.attach(ProcessId(1), &id("a"), 1, Bytes::ZERO).unwrap();
    assert!(node.release(&id("a"), MS).unwrap().1.contains(&Effect::Close(ProcessId(1))));
    assert!(node.release(&id("a"), MS).is_err());
    assert_eq!(node.want(ProcessId(1), MS), []);
}

#[test]
fn a_binding_whose_row_is_merged_ends_its_hold_and_waits_for_its_turn_in_the_other() {
    let gpu = Gpu {
        id: GpuId("GPU-1".into()),
        index: 0,
        name: "simulated".into(),
        memory: Bytes::gib(16),
        sharing: Sharing::Mps,
    };
    let mut node = Node::new([gpu], Units::PER_GPU, Rules::default());
    let share =
        |sm| Share::new(SmShare::from_percent(sm).unwrap(), quota(30), quota(100), Bytes::gib(1)).unwrap();
    for (process, name) in [(1, "a"), (2, "b")] {
        node.bind(id(name), Bind { owner: Owner::default(), share: share(50) }, MS).unwrap();
        node.attach(ProcessId(process), &id(name), 7, Bytes::ZERO).unwrap();
        node.want(ProcessId(process), MS);
    }
    let holds = |node: &Node, name| node.accounts[&id(name)].rights[0] % 2 == 1;
    assert!(holds(&node, "a") && holds(&node, "b"), "each has a row of its own");

    let (wide, effects) =
        node.bind(id("c"), Bind { owner: Owner::default(), share: share(100) }, MS + MS).unwrap();
    assert_eq!(node.ledger().check(), Ok(()));
    let row = |node: &Node, name| node.ledger().get(&id(name)).unwrap().row;
    assert_eq!([row(&node, "a"), row(&node, "b")], [wide.row, wide.row]);
    let (kept, moved, process) = if holds(&node, "a") { ("a", "b", 2) } else { ("b", "a", 1) };
    assert!(!holds(&node, moved), "{effects:?}");
    assert!(effects.contains(&Effect::Right { binding: id(moved), slot: 0, right: 2 }));

    // It ends what it runs, and says that it has more: its turn comes when the other's is over.
    let report = Report { right: 1, used: MS, more: true, ..Report::default() };
    node.give_back(ProcessId(process), &report, MS + MS);
    assert!(!holds(&node, moved) && holds(&node, kept));
    node.give_back(ProcessId(3 - process), &Report { right: 1, used: MS, ..Report::default() }, MS + MS + MS);
    assert!(holds(&node, moved) && !holds(&node, kept));
}

/// What containers and controllers may do, in any order.
#[derive(Clone, Debug)]
enum Act {
    Attach(u64, bool),
    Want(u64),
    Yield(u64, u32, u64, bool),
    Reserve(u64, u64),
    Free(u64, u64),
    Gone(u64),
    Grant(bool, u8),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u64..6, any::<bool>()).prop_map(|(p, b)| Act::Attach(p, b)),
        (0u64..6).prop_map(Act::Want),
        (0u64..6, 0u32..9, any::<u64>(), any::<bool>()).prop_map(|(p, r, u, m)| Act::Yield(p, r, u, m)),
        (0u64..6, any::<u64>()).prop_map(|(p, m)| Act::Reserve(p, m)),
        (0u64..6, any::<u64>()).prop_map(|(p, m)| Act::Free(p, m)),
        (0u64..6).prop_map(Act::Gone),
        (any::<bool>(), 0u8..=100).prop_map(|(b, q)| Act::Grant(b, q)),
        (0u64..3_000_000_000).prop_map(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_containers_do_the_ledger_is_sound_and_one_binding_holds_at_a_time(acts in proptest::collection::vec(act(), 1..80)) {
        let mut node = with(with(node(), "a", 30), "b", 40);
        let name = |first: bool| id(if first { "a" } else { "b" });
        let mut now = MS;
        for act in acts {
            match act {
                Act::Attach(p, b) => drop(node.attach(ProcessId(p), &name(b), 1, Bytes::ZERO)),
                Act::Want(p) => drop(node.want(ProcessId(p), now)),
                Act::Yield(p, right, used, more) => {
                    let (time, count) = (Nanos(used), used);
                    let report =
                        Report { right, used: time, launches: count, throttled: time, more, unknown: count };
                    drop(node.give_back(ProcessId(p), &report, now));
                }
                Act::Reserve(p, m) => drop(node.reserve(ProcessId(p), Bytes(m))),
                Act::Free(p, m) => node.free(ProcessId(p), Bytes(m)),
                Act::Gone(p) => drop(node.gone(ProcessId(p), now)),
                Act::Grant(b, q) => drop(node.set_grant(&name(b), quota(q), now)),
                Act::Wait(ns) => {
                    let end = now + Nanos(ns);
                    // Ticks are due in the future and few: no busy loop.
                    let mut ticks = 0;
                    while let Some(at) = node.deadline(now).filter(|&at| at <= end) {
                        now = now.max(at);
                        node.tick(now);
                        ticks += 1;
                        prop_assert!(ticks < 10_000);
                    }
                    now = end;
                }
            }
            prop_assert_eq!(node.ledger().check(), Ok(()));
            let holds = |name| node.accounts[&id(name)].rights.iter().any(|&right| Slot::is_held(right));
            prop_assert!(!(holds("a") && holds("b")));
            for name in ["a", "b"] {
                prop_assert!(node.memory(&id(name)) <= Bytes::gib(2));
            }
        }
    }
}
