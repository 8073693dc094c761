//! The gate against a fake clock, page and agent.

use core::cell::{Cell, RefCell};

use super::*;

const MS: Nanos = Nanos::from_millis(1);

impl Gate {
    fn enter(&self, cost: Nanos, outside: &impl Outside) -> Admitted {
        self.try_enter(cost).unwrap_or_else(|| self.enter_slowly(cost, outside))
    }
}

/// A page's word and an agent that answers `want` by turning it odd, if it is willing.
struct World {
    now: Cell<Nanos>,
    word: &'static AtomicU32,
    willing: Cell<bool>,
    sent: RefCell<Vec<FromContainer>>,
}

impl World {
    fn new(willing: bool) -> (Self, Gate) {
        let shown = Box::leak(Box::new(AtomicU32::new(0)));
        let world =
            Self { now: Cell::new(MS), word: shown, willing: Cell::new(willing), sent: RefCell::default() };
        (world, Gate::new(shown))
    }

    fn revoke(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
    }

    fn wants(&self) -> usize {
        let wants = |message: &&FromContainer| {
            matches!(message, FromContainer::Want | FromContainer::Yield { more: true, .. })
        };
        self.sent.borrow().iter().filter(wants).count()
    }

    fn rights_given_back(&self) -> Vec<u32> {
        let right = |message: &FromContainer| match message {
            FromContainer::Yield { right, .. } => Some(*right),
            _ => None,
        };
        self.sent.borrow().iter().filter_map(right).collect()
    }
}

impl Outside for World {
    fn now(&self) -> Nanos {
        self.now.get()
    }

    fn send(&self, message: &FromContainer) {
        if matches!(message, FromContainer::Yield { .. }) && self.word.load(Ordering::SeqCst) & 1 == 1 {
            self.revoke();
        }
        self.sent.borrow_mut().push(message.clone());
    }

    fn wait(&self, _: u32, most: Duration) {
        self.now.set(self.now.get() + most.into());
        if self.willing.get() {
            self.word.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn grant(&self) -> Option<Quota> {
        Quota::from_percent(30).ok()
    }
}

#[test]
fn the_first_launch_asks_for_the_right_and_the_next_ones_ask_nobody() {
    let (world, gate) = World::new(true);
    for _ in 0..10 {
        gate.enter(Nanos::from_micros(10), &world);
    }
    assert_eq!(world.wants(), 1);
    assert_eq!(world.sent.borrow().len(), 1);
}

#[test]
fn no_more_than_the_window_is_queued_before_a_launch() {
    let (world, gate) = World::new(true);
    gate.enter(Nanos::from_millis(50), &world);
    assert_eq!(gate.try_enter(Nanos::from_micros(1)), None);
    gate.settle(1, Nanos::from_millis(50), Nanos::from_millis(50), MS);
    let window = admission::WINDOW;
    assert_eq!(gate.try_enter(window), Some(Admitted { ahead: Nanos::ZERO }));
    assert_eq!(gate.try_enter(Nanos(1)), Some(Admitted { ahead: window }));
    assert_eq!(gate.try_enter(Nanos::from_micros(1)), None);
}

#[test]
fn a_revoked_right_stops_the_very_next_launch_and_goes_back_when_all_is_done() {
    let (world, gate) = World::new(true);
    gate.enter(MS, &world);
    world.revoke();
    assert_eq!(gate.try_enter(Nanos(1)), None);
    assert_eq!(gate.give_back(&world), None);
    assert!(world.rights_given_back().is_empty());
    gate.settle(1, MS, MS, MS);
    assert_eq!(gate.give_back(&world), None);
    assert_eq!(world.rights_given_back(), [1]);
}

#[test]
fn an_idle_right_goes_back_after_the_linger_and_not_before() {
    let (world, gate) = World::new(true);
    gate.enter(MS, &world);
    gate.settle(1, MS, MS, world.now());
    let then = gate.give_back(&world).unwrap();
    assert!(world.rights_given_back().is_empty());
    world.now.set(then);
    assert_eq!(gate.give_back(&world), None);
    assert_eq!(world.rights_given_back(), [1]);
    assert_eq!(gate.try_enter(Nanos(1)), None);
}

#[test]
fn a_launch_that_failed_leaves_nothing_in_flight() {
    let (world, gate) = World::new(true);
    gate.enter(MS, &world);
    gate.leave(MS);
    assert!(!gate.is_busy());
}

#[test]
fn without_an_agent_launches_pass_at_the_floor_and_messages_stop() {
    let (world, gate) = World::new(false);
    gate.detach(Quota::from_percent(50).unwrap(), Nanos::from_millis(10), MS);
    gate.enter(MS, &world);
    gate.settle(1, MS, Nanos::from_millis(20), MS + Nanos::from_millis(20));
    world.now.set(MS + Nanos::from_millis(20));
    assert_eq!(gate.try_enter(MS), None);
    assert_eq!(gate.give_back(&world), None);
    assert_eq!(world.sent.borrow().len(), 0);
}

#[test]
fn work_that_waits_for_this_launch_does_not_stop_it_for_ever() {
    let (world, gate) = World::new(true);
    gate.enter(Nanos::from_millis(50), &world);
    world.revoke();
    world.willing.set(false);
    let mut patience = Patience::new(gate.ended(), world.now());
    assert!(!patience.is_over(gate.ended(), true, world.now() + MS));
    assert!(patience.is_over(gate.ended(), true, world.now() + admission::STALL));
    assert!(!patience.is_over(gate.ended() + 1, true, world.now() + admission::STALL + admission::STALL));
}

#[test]
fn threads_that_race_with_giving_back_never_run_without_the_right() {
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let agent = Agent { word, held: AtomicU32::new(0) };
    let gate = Gate::new(word);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    gate.enter(Nanos(1_000), &agent);
                    assert_eq!(agent.held.load(Ordering::SeqCst) & 1, 1, "launched while nothing was held");
                    gate.settle(1, Nanos(1_000), Nanos(1_000), Nanos(1));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..2_000 {
                gate.give_back(&agent);
                std::thread::yield_now();
            }
        });
    });
}

/// Gives the right at once, and takes it back when it is yielded.
struct Agent {
    word: &'static AtomicU32,
    held: AtomicU32,
}

impl Outside for Agent {
    fn now(&self) -> Nanos {
        // Long ago it was touched: always due.
        Nanos::from_secs(1)
    }

    fn send(&self, message: &FromContainer) {
        match message {
            FromContainer::Want => {
                let right = self.word.load(Ordering::SeqCst) + 1;
                self.held.store(right, Ordering::SeqCst);
                self.word.store(right, Ordering::SeqCst);
            }
            FromContainer::Yield { right, more, .. } => {
                let next = right + 1 + u32::from(*more);
                self.held.store(next, Ordering::SeqCst);
                self.word.store(next, Ordering::SeqCst);
            }
            _ => {}
        }
    }

    fn wait(&self, _: u32, _: Duration) {
        std::thread::yield_now();
    }

    fn grant(&self) -> Option<Quota> {
        None
    }
}
