//! The arbiter on a virtual clock, with clients whose kernels can't be preempted.

use std::collections::VecDeque;

use gpu_share::quota::completion_bound;
use proptest::prelude::*;

use super::*;

const MS: Nanos = Nanos::from_millis(1);
const FOREVER: u64 = u64::MAX;

fn quota(percent: u8) -> Quota {
    Quota::from_percent(percent).unwrap()
}

fn id(index: usize) -> BindingId {
    format!("b-{index}").try_into().unwrap()
}

fn terms(grant: u8, ceiling: u8) -> Terms {
    Terms { floor: quota(grant), ceiling: quota(ceiling), grant: quota(grant) }
}

/// A container with one process that runs kernels of one length, one after the other.
#[derive(Debug)]
struct Client {
    kernel: Nanos,
    /// Kernels that it still wants to run.
    left: u64,
    /// Never yields once it has the right.
    stubborn: bool,
    /// Says that its kernels took no time.
    lying: bool,
    /// Time between its kernels, in which it keeps the right.
    pause: Nanos,
    granted: bool,
    /// End of the kernel that runs.
    running: Option<Nanos>,
    under_this_right: Nanos,
    got: Nanos,
    done_at: Nanos,
}

/// A row of clients on one GPU.
struct Row {
    arbiter: Arbiter,
    clients: Vec<Client>,
    now: Nanos,
}

impl Row {
    fn new() -> Self {
        Self { arbiter: Arbiter::new(Rules::default()), clients: Vec::new(), now: Nanos::ZERO }
    }

    fn client(mut self, terms: Terms, kernel: Nanos, kernels: u64) -> Self {
        let index = self.clients.len();
        self.clients.push(Client {
            kernel,
            left: 0,
            stubborn: false,
            lying: false,
            pause: Nanos::ZERO,
            granted: false,
            running: None,
            under_this_right: Nanos::ZERO,
            got: Nanos::ZERO,
            done_at: Nanos::ZERO,
        });
        self.step(Event::Join(id(index), terms));
        self.submit(index, kernels);
        self
    }

    fn stubborn(mut self) -> Self {
        self.clients.last_mut().unwrap().stubborn = true;
        self
    }

    fn lying(mut self) -> Self {
        self.clients.last_mut().unwrap().lying = true;
        self
    }

    fn pausing(mut self, pause: Nanos) -> Self {
        self.clients.last_mut().unwrap().pause = pause;
        self
    }

    /// More work for a client.
    fn submit(&mut self, index: usize, kernels: u64) {
        let was_idle = self.clients[index].left == 0;
        self.clients[index].left = self.clients[index].left.saturating_add(kernels);
        if was_idle && kernels > 0 {
            self.step(Event::Want(id(index), ProcessId(index as u64)));
        }
    }

    fn step(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            for effect in self.arbiter.step(event, self.now) {
                match effect {
                    Effect::Grant(_, process) => {
                        let client = &mut self.clients[usize::try_from(process.0).unwrap()];
                        client.granted = true;
                        assert!(client.running.is_none());
                        client.running = Some(self.now + client.pause + client.kernel);
                    }
                    Effect::Revoke(_, process) => {
                        self.clients[usize::try_from(process.0).unwrap()].granted = false;
                    }
                    Effect::Used(..) => {}
                }
            }
            let running = self.clients.iter().filter(|c| c.running.is_some() && !c.stubborn).count();
            assert!(running <= 1, "members of a row run one after the other");
        }
    }

    fn kernel_ended(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.got += client.kernel;
        client.under_this_right += client.kernel;
        if client.left != FOREVER {
            client.left -= 1;
        }
        if client.stubborn || client.granted && client.left > 0 {
            client.running = Some(self.now + client.pause + client.kernel);
            return;
        }
        client.running = None;
        client.done_at = self.now;
        let used = core::mem::take(&mut client.under_this_right);
        let (used, more) = (if client.lying { Nanos::ZERO } else { used }, client.left > 0);
        self.step(Event::Yield(id(index), ProcessId(index as u64), used, more));
    }

    fn run_until(&mut self, end: Nanos) {
        loop {
            let kernel = (0..self.clients.len()).filter_map(|i| Some((self.clients[i].running?, i))).min();
            let tick = self.arbiter.deadline(self.now).unwrap_or(Nanos(u64::MAX));
            let next = kernel.map_or(Nanos(u64::MAX), |(at, _)| at).min(tick);
            if next > end {
                self.now = end;
                return;
            }
            assert!(next >= self.now);
            self.now = next;
            match kernel {
                Some((at, index)) if at == next => self.kernel_ended(index),
                _ => self.step(Event::Tick),
            }
        }
    }

    /// Part of the time since `from` that a client got, in percent.
    fn run_and_measure(&mut self, span: Nanos) -> Vec<f64> {
        let before: Vec<_> = self.clients.iter().map(|client| client.got).collect();
        self.run_until(self.now + span);
        let got = self.clients.iter().zip(before).map(|(client, before)| client.got.since(before));
        got.map(|got| 100.0 * got.secs_f64() / span.secs_f64()).collect()
    }
}

#[track_caller]
fn assert_near(got: f64, wanted: f64, tolerance: f64) {
    assert!((got - wanted).abs() <= tolerance, "{got:.2} is not {wanted} ± {tolerance}");
}

#[test]
fn quotas_of_backlogged_clients_hold_whatever_their_kernels() {
    let kernels = [50, 200, 1_000, 5_000, 20_000, 50_000].map(Nanos::from_micros);
    for a in kernels {
        for b in kernels {
            let mut row = Row::new().client(terms(30, 30), a, FOREVER).client(terms(60, 60), b, FOREVER);
            row.run_until(MS);
            let got = row.run_and_measure(Nanos::from_secs(12));
            for (got, wanted) in got.into_iter().zip([30.0, 60.0]) {
                assert!((got - wanted).abs() < 1.0, "{a:?} beside {b:?}: {got:.2} instead of {wanted}");
            }
        }
    }
}

#[test]
fn a_client_alone_gets_its_ceiling_and_no_more() {
    for (ceiling, kernel) in [(50, 1), (50, 20), (80, 1), (100, 7)] {
        let mut row = Row::new().client(terms(20, ceiling), Nanos::from_millis(kernel), FOREVER);
        let got = row.run_and_measure(Nanos::from_secs(10))[0];
        assert_near(got, f64::from(ceiling), 0.6);
    }
}

#[test]
fn a_client_alone_with_a_full_ceiling_is_revoked_only_to_say_what_it_used() {
    let mut row = Row::new().client(terms(20, 100), MS, FOREVER);
    row.run_until(Nanos::from_secs(5));
    let Tally { holds, revocations, .. } = row.arbiter.tally();
    assert!((45..=51).contains(&holds) && revocations <= holds, "{holds} holds, {revocations} revocations");
}

#[test]
fn what_guarantees_leave_is_lent_in_proportion_to_floors() {
    let mut row = Row::new().client(terms(10, 100), MS, FOREVER).client(terms(30, 100), MS, FOREVER);
    let got = row.run_and_measure(Nanos::from_secs(20));
    assert_near(got[0], 25.0, 1.5);
    assert_near(got[1], 75.0, 1.5);
}

#[test]
fn an_hour_of_borrowing_costs_no_guarantee_and_gives_no_claim() {
    let mut row = Row::new().client(terms(30, 100), MS, FOREVER).client(terms(70, 100), MS, 0);
    row.run_until(Nanos::from_secs(3600));
    row.submit(1, FOREVER);
    let got = row.run_and_measure(Nanos::from_millis(500));
    assert_near(got[0], 30.0, 2.0);
    assert_near(got[1], 70.0, 2.0);
}

#[test]
fn an_overrun_is_repaid() {
    let mut row = Row::new().client(terms(10, 10), Nanos::from_millis(100), 1);
    row.run_until(Nanos::from_millis(100));
    row.clients[0].kernel = MS;
    row.submit(0, FOREVER);
    // 100 ms at 10 % are earned by 1 s.
    let got = row.run_and_measure(Nanos::from_millis(880));
    assert_near(got[0], 0.0, 0.0);
    assert_near(row.run_and_measure(Nanos::from_secs(5))[0], 10.0, 0.5);
}

#[test]
fn a_grant_is_followed_in_the_next_window() {
    let mut row = Row::new().client(terms(30, 30), MS, FOREVER).client(terms(30, 30), MS, FOREVER);
    row.run_until(Nanos::from_secs(1));
    row.step(Event::Resize(id(0), Terms { grant: quota(60), ceiling: quota(60), ..terms(30, 30) }));
    let got = row.run_and_measure(Nanos::from_millis(100));
    assert_near(got[0], 60.0, 5.0);
    assert_near(got[1], 30.0, 5.0);
}

#[test]
fn a_parked_client_gets_nothing_until_it_is_resized() {
    let parked = Terms { grant: Quota::ZERO, ..terms(30, 100) };
    let mut row = Row::new().client(parked, MS, FOREVER);
    row.run_until(Nanos::from_secs(1));
    assert_eq!(row.clients[0].got, Nanos::ZERO);
    row.step(Event::Resize(id(0), terms(30, 100)));
    assert_near(row.run_and_measure(Nanos::from_secs(1))[0], 100.0, 1.0);
}

#[test]
fn a_holder_that_is_parked_loses_the_right_at_once() {
    let mut row = Row::new().client(terms(30, 100), MS, FOREVER);
    row.run_until(Nanos::from_millis(50));
    row.step(Event::Resize(id(0), Terms { grant: Quota::ZERO, ..terms(30, 100) }));
    assert!(!row.clients[0].granted);
}

#[test]
fn a_client_that_never_yields_can_not_starve_the_row() {
    let mut row =
        Row::new().client(terms(10, 100), MS, FOREVER).stubborn().client(terms(50, 100), MS, FOREVER);
    row.run_until(Nanos::from_secs(30));
    // Its own tenth of the time is all that it can block: it waits no more, so the row is the other's.
    assert!(row.clients[1].got > Nanos::from_secs(28), "{:?}", row.clients[1].got);
    assert_eq!(row.arbiter.tally().overdue, 1);
}

#[test]
fn a_client_that_says_it_used_nothing_takes_nothing_that_a_neighbour_needs() {
    for kernel in [Nanos::from_micros(100), MS, Nanos::from_millis(20)] {
        let mut row =
            Row::new().client(terms(20, 20), kernel, FOREVER).lying().client(terms(60, 60), MS, FOREVER);
        row.run_until(MS);
        let got = row.run_and_measure(Nanos::from_secs(10));
        assert!(got[0] <= 41.0 && got[1] >= 58.0, "{kernel:?}: {got:?}");
    }
}

#[test]
fn a_client_that_takes_turns_without_end_and_uses_none_pays_for_them() {
    let mut row = Row::new().client(terms(20, 20), MS, 0).client(terms(60, 100), MS, FOREVER);
    row.run_until(MS);
    let (storm, hand_over) = (ProcessId(0), Nanos::from_micros(100));
    let mut turns = 0;
    while row.now < Nanos::from_secs(2) {
        row.step(Event::Want(id(0), storm));
        row.run_until(row.now + hand_over);
        if core::mem::take(&mut row.clients[0].granted) {
            // Its kernel is not simulated: it yields at once.
            row.clients[0].running = None;
            row.step(Event::Yield(id(0), storm, Nanos::ZERO, true));
            turns += 1;
        }
    }
    // A fifth of the time, and the tenth that is free, in turns of 0.3 ms.
    assert!(turns <= 2_100, "{turns} turns in 2 s");
}

#[test]
fn a_client_that_holds_the_right_between_its_kernels_takes_no_guarantee_from_others() {
    let pause = Nanos::from_micros(150);
    let mut row = Row::new().client(terms(30, 100), Nanos::from_micros(10), FOREVER).pausing(pause).client(
        terms(70, 70),
        MS,
        FOREVER,
    );
    row.run_until(MS);
    let got = row.run_and_measure(Nanos::from_secs(10));
    assert!(got[1] >= 59.0, "{got:?}");
    // Alone, or where nobody else can run, its pauses cost nothing.
    let mut row = Row::new().client(terms(30, 30), Nanos::from_micros(50), FOREVER).pausing(pause).client(
        terms(70, 70),
        MS,
        0,
    );
    let got = row.run_and_measure(Nanos::from_secs(10));
    assert_near(got[0], 25.0, 0.5);
}

#[test]
fn time_held_and_left_idle_is_not_saved_up() {
    // It is given the right as soon as it starts, and has nothing to run for a second.
    let (load, kernel) = (Nanos::from_millis(600), MS);
    let mut row = Row::new().client(terms(60, 60), kernel, FOREVER);
    row.clients[0].running = Some(load);
    let got = row.run_and_measure(load + Nanos::from_millis(100));
    let bound = 60.0 + 6.0 + 4.0;
    assert!(7.0 * got[0] <= bound, "{:.1} ms of the 100 ms after it", 7.0 * got[0]);
    // What it earned while another's kernel ran is its own.
    let mut row =
        Row::new().client(terms(10, 10), Nanos::from_millis(100), 1).client(terms(60, 60), MS, FOREVER);
    let got = row.run_and_measure(Nanos::from_secs(1));
    assert_near(got[1], 60.0, 1.0);
}

#[test]
fn a_client_that_never_yields_but_wants_again_keeps_to_its_quota() {
    let mut row = Row::new().client(terms(10, 100), MS, 0).client(terms(50, 100), MS, FOREVER);
    let stubborn = ProcessId(0);
    let mut blocked = Nanos::ZERO;
    row.step(Event::Want(id(0), stubborn));
    while row.now < Nanos::from_secs(60) {
        // It is given the right, and asks again without giving it back; its kernels are not simulated.
        row.clients[0].running = None;
        row.step(Event::Want(id(0), stubborn));
        let (before, got) = (row.now, row.clients[1].got);
        row.clients[0].running = None;
        row.run_until(before + MS);
        if row.clients[1].got == got {
            blocked += MS;
        }
    }
    assert!(blocked < Nanos::from_secs(10), "{blocked:?} of 60 s");
    assert!(row.arbiter.tally().overdue >= 2);
}

#[test]
fn a_process_that_dies_while_holding_frees_the_row_at_once() {
    let mut row = Row::new().client(terms(50, 100), MS, FOREVER).client(terms(50, 100), MS, FOREVER);
    row.clients[0].running = None;
    assert!(!row.clients[1].granted);
    row.step(Event::Gone(id(0), ProcessId(0)));
    assert!(row.clients[1].granted);
}

#[test]
fn a_released_holder_frees_the_row_at_once() {
    let mut row = Row::new().client(terms(50, 100), MS, FOREVER).client(terms(50, 100), MS, FOREVER);
    row.clients[0].running = None;
    row.step(Event::Leave(id(0)));
    assert!(row.clients[1].granted);
}

#[test]
fn who_is_revoked_only_to_say_what_it_used_runs_on_before_a_borrower() {
    let long = Nanos::from_millis(40);
    let mut row = Row::new().client(terms(80, 100), MS, FOREVER).client(terms(10, 100), long, FOREVER);
    row.run_until(Nanos::from_secs(5));
    // In steady state the neighbour starts a kernel where its guarantee allows, or where the client's is used up.
    let got = row.run_and_measure(Nanos::from_secs(5));
    assert!(got[0] >= 79.5, "{got:?}");
}

#[test]
fn processes_of_a_binding_take_turns() {
    let mut arbiter = Arbiter::new(Rules::default());
    arbiter.step(Event::Join(id(0), terms(50, 100)), Nanos::ZERO);
    let (first, second) = (ProcessId(1), ProcessId(2));
    assert_eq!(arbiter.step(Event::Want(id(0), first), MS), [Effect::Grant(id(0), first)]);
    assert_eq!(arbiter.step(Event::Want(id(0), second), MS), []);
    let turn = MS + Rules::default().sibling_quantum;
    while let Some(at) = arbiter.deadline(MS).filter(|&at| at < turn) {
        assert_eq!(arbiter.step(Event::Tick, at), [], "alone on the GPU, it runs on: {at:?}");
    }
    assert_eq!(arbiter.step(Event::Tick, turn), [Effect::Revoke(id(0), first)]);
    let used = Rules::default().sibling_quantum;
    assert_eq!(
        arbiter.step(Event::Yield(id(0), first, used, true), turn),
        [Effect::Used(id(0), used), Effect::Grant(id(0), second)]
    );
    // A process that ends its turn early gives it to the next one at once.
    assert_eq!(
        arbiter.step(Event::Yield(id(0), second, Nanos::from_secs(9), false), turn + MS),
        [Effect::Revoke(id(0), second), Effect::Used(id(0), MS), Effect::Grant(id(0), first)]
    );
    assert!(arbiter.holds(first) && !arbiter.holds(second));
}

#[test]
fn borrowed_time_ends_as_soon_as_somebody_has_a_guarantee() {
    let mut row = Row::new().client(terms(50, 100), Nanos::from_micros(50), FOREVER);
    let mut row = {
        row.run_until(Nanos::from_millis(100));
        row.client(terms(50, 100), MS, 0)
    };
    row.submit(1, 1);
    assert!(!row.clients[0].granted, "revoked at once");
    row.run_until(row.now + Nanos::from_micros(50));
    assert!(row.clients[1].granted);
}

/// Neighbours that share what the client under test leaves: part of it in percent, and their kernels.
fn neighbours() -> impl Strategy<Value = Vec<(u8, u64)>> {
    proptest::collection::vec((1u8..=100, 50_000u64..50_000_000), 1..5)
}

/// How much later than the published bound a client's work ends beside backlogged neighbours whose kernels are known,
/// in their longest kernels; `booked` is what all guarantees sum to, in percent.
fn lateness(
    booked: u32,
    (percent, kernel, kernels): (u8, u64, u64),
    neighbours: &[(u8, u64)],
    lend: bool,
    warm_up: u64,
) -> f64 {
    let ceiling = |grant: u8| if lend { 100 } else { grant };
    let weights: u32 = neighbours.iter().map(|&(weight, _)| u32::from(weight)).sum();
    let mut row = Row::new().client(terms(percent, ceiling(percent)), Nanos(kernel), 0);
    for &(weight, kernel) in neighbours {
        let grant = (booked - u32::from(percent)) * u32::from(weight) / weights;
        let grant = u8::try_from(grant).unwrap().max(1);
        row = row.client(terms(grant, ceiling(grant)), Nanos(kernel), FOREVER);
    }
    row.run_until(Nanos(warm_up));
    let start = row.now;
    row.submit(0, kernels);
    let longest = Nanos(neighbours.iter().map(|&(_, kernel)| kernel).max().unwrap().max(kernel));
    let bound = completion_bound(Nanos(kernel * kernels), quota(percent), WINDOW, longest).unwrap();
    row.run_until(start + bound + Nanos::from_secs(5));
    assert_eq!(row.clients[0].left, 0);
    (row.clients[0].done_at.since(start).secs_f64() - bound.secs_f64()) / longest.secs_f64()
}

/// Percent, length and number of kernels of the client under test.
fn client_under_test() -> impl Strategy<Value = (u8, u64, u64)> {
    (5u8..=85, 10_000u64..5_000_000, 1u64..60)
}

/// Design 5.9: the published bound, with lent time or without, also where all the time is booked.
fn check_the_bound(jobs: u32) {
    let job =
        (90u32..=100, client_under_test(), neighbours(), any::<bool>(), 2_000_000_000u64..5_000_000_000);
    let config = ProptestConfig { cases: jobs, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((booked, client, neighbours, lend, warm_up) in job)| {
        let late = lateness(booked, client, &neighbours, lend, warm_up);
        prop_assert!(late <= 0.0, "{late} longest kernels later");
    });
}

#[test]
fn work_ends_within_the_published_bound() {
    check_the_bound(64);
}

/// `make bench-hook` runs it in release.
#[test]
#[ignore = "takes a minute in release"]
fn a_hundred_thousand_random_jobs_end_within_the_published_bound() {
    check_the_bound(100_000);
}
