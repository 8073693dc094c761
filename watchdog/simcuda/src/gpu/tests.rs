//! The model's promises: unit tests of each rule, and property tests over random programs.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ONE: ClientId = ClientId(1);
const TWO: ClientId = ClientId(2);
const LEGACY: StreamId = StreamId(0);
const BLOCKING: StreamId = StreamId(1);
const FREE: StreamId = StreamId(2);
const CONTEXT: ContextId = ContextId(0);

fn ms(n: u64) -> Nanos {
    Nanos::from_millis(n)
}

fn kernel(milliseconds: u64) -> Work {
    Work::Kernel { time: ms(milliseconds) }
}

fn gpu(mode: Mode) -> Gpu {
    let mut config = Config::of_memory(mode, Bytes::gib(1));
    config.context_time = Nanos::ZERO;
    config.context_memory = Bytes::mib(10);
    Gpu::new(config)
}

/// Connects a client with a context and one stream of each kind.
fn connect(gpu: &mut Gpu, now: Nanos, client: ClientId, percent: u8) {
    let sm = SmShare::from_percent(percent).unwrap();
    gpu.connect(client);
    gpu.create_context(now, client, NewContext { id: CONTEXT, legacy: LEGACY, sm, green: false }, 0).unwrap();
    gpu.create_stream(client, CONTEXT, BLOCKING, StreamKind::Blocking).unwrap();
    gpu.create_stream(client, CONTEXT, FREE, StreamKind::NonBlocking).unwrap();
    gpu.take_notices();
}

fn with_clients(mode: Mode, percents: &[u8]) -> Gpu {
    let mut gpu = gpu(mode);
    for (client, &percent) in (1..).zip(percents) {
        connect(&mut gpu, Nanos::ZERO, ClientId(client), percent);
    }
    gpu
}

fn submit(gpu: &mut Gpu, at: Nanos, client: ClientId, stream: StreamId, work: Work, tag: u64) {
    gpu.submit(at, client, stream, work, tag, true).unwrap();
}

/// Tags and times of all operations that are done by `now`.
fn done(gpu: &mut Gpu, now: Nanos) -> Vec<(u64, Nanos)> {
    gpu.advance(now);
    let completed = |notice| match notice {
        Notice::Completed { tag, at, .. } => Some((tag, at)),
        _ => None,
    };
    gpu.take_notices().into_iter().filter_map(completed).collect()
}

#[test]
fn queued_kernels_follow_each_other_without_a_gap_however_late_the_caller_is() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    for tag in 0..3 {
        submit(&mut gpu, ms(1), ONE, FREE, kernel(2), tag);
    }
    assert_eq!(done(&mut gpu, ms(100)), [(0, ms(3)), (1, ms(5)), (2, ms(7))]);
}

#[test]
fn without_mps_clients_take_turns_of_a_slice() {
    let mut gpu = with_clients(Mode::Exclusive, &[100, 100]);
    for tag in 0..4 {
        submit(&mut gpu, ms(1), ONE, FREE, kernel(1), tag);
        submit(&mut gpu, ms(1), TWO, FREE, kernel(1), 10 + tag);
    }
    let order: Vec<u64> = done(&mut gpu, ms(100)).iter().map(|(tag, _)| *tag).collect();
    assert_eq!(order, [0, 1, 10, 11, 2, 3, 12, 13]);
}

#[test]
fn a_client_that_has_nothing_leaves_its_slice_to_the_next() {
    let mut gpu = with_clients(Mode::Exclusive, &[100, 100]);
    submit(&mut gpu, ms(1), ONE, FREE, kernel(1), 0);
    submit(&mut gpu, ms(1), TWO, FREE, kernel(5), 1);
    assert_eq!(done(&mut gpu, ms(100)), [(0, ms(2)), (1, ms(7))]);
}

#[test]
fn with_mps_kernels_run_at_once_as_far_as_their_shares_fit() {
    let mut gpu = with_clients(Mode::Mps, &[50, 50, 50]);
    for client in 1..=3 {
        submit(&mut gpu, ms(1), ClientId(client), FREE, kernel(4), client.into());
    }
    assert_eq!(gpu.running().len(), 2);
    assert_eq!(done(&mut gpu, ms(100)), [(1, ms(5)), (2, ms(5)), (3, ms(9))]);
    assert_eq!(gpu.busy(), ms(8));
}

#[test]
fn nobody_overtakes_a_large_share_that_waits() {
    let mut gpu = with_clients(Mode::Mps, &[60, 60, 20]);
    for client in 1..=3 {
        submit(&mut gpu, ms(1), ClientId(client), FREE, kernel(4), client.into());
    }
    assert_eq!(done(&mut gpu, ms(100)), [(1, ms(5)), (2, ms(9)), (3, ms(9))]);
}

#[test]
fn the_legacy_stream_is_a_barrier_for_blocking_streams_alone() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    submit(&mut gpu, ms(1), ONE, BLOCKING, Work::CopyIn(Bytes(120_000_000)), 0);
    submit(&mut gpu, ms(1), ONE, LEGACY, kernel(1), 1);
    submit(&mut gpu, ms(1), ONE, BLOCKING, kernel(1), 2);
    submit(&mut gpu, ms(1), ONE, FREE, kernel(1), 3);
    // The copy takes 10 ms; the independent kernel runs meanwhile.
    assert_eq!(done(&mut gpu, ms(100)), [(3, ms(2)), (0, ms(11)), (1, ms(12)), (2, ms(13))]);
}

#[test]
fn copies_in_both_directions_and_a_kernel_run_side_by_side() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    gpu.create_stream(ONE, CONTEXT, StreamId(3), StreamKind::NonBlocking).unwrap();
    gpu.create_stream(ONE, CONTEXT, StreamId(4), StreamKind::NonBlocking).unwrap();
    submit(&mut gpu, ms(0), ONE, FREE, Work::CopyIn(Bytes(24_000_000)), 0);
    submit(&mut gpu, ms(0), ONE, StreamId(3), Work::CopyOut(Bytes(24_000_000)), 1);
    submit(&mut gpu, ms(0), ONE, StreamId(4), kernel(2), 2);
    submit(&mut gpu, ms(0), ONE, StreamId(4), Work::CopyIn(Bytes(12_000_000)), 3);
    let times: BTreeMap<u64, Nanos> = done(&mut gpu, ms(100)).into_iter().collect();
    assert_eq!(times, BTreeMap::from([(0, ms(2)), (1, ms(2)), (2, ms(2)), (3, ms(3))]));
}

#[test]
fn an_event_carries_order_and_time_from_one_stream_to_another() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    let (start, end) = (EventId(1), EventId(2));
    submit(&mut gpu, ms(1), ONE, FREE, Work::Record(start), 0);
    submit(&mut gpu, ms(1), ONE, FREE, Work::CopyIn(Bytes(60_000_000)), 1);
    submit(&mut gpu, ms(1), ONE, FREE, Work::Record(end), 2);
    submit(&mut gpu, ms(1), ONE, BLOCKING, Work::Wait(end), 3);
    submit(&mut gpu, ms(1), ONE, BLOCKING, kernel(1), 4);
    assert_eq!(gpu.event_time(ms(2), ONE, end), Err(GpuError::PendingEvent(end)));
    assert!(!gpu.is_done(ms(2), ONE, Scope::Event(end)).unwrap());
    assert_eq!(done(&mut gpu, ms(100)).last(), Some(&(4, ms(7))));
    assert_eq!(
        gpu.event_time(ms(100), ONE, end).unwrap() - gpu.event_time(ms(100), ONE, start).unwrap(),
        ms(5)
    );
    assert_eq!(gpu.event_time(ms(100), ONE, EventId(9)), Err(GpuError::UnrecordedEvent(EventId(9))));
}

#[test]
fn a_stream_stands_still_until_its_host_function_has_returned() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    submit(&mut gpu, ms(1), ONE, FREE, Work::Host, 0);
    submit(&mut gpu, ms(1), ONE, FREE, kernel(1), 1);
    assert!(gpu.take_notices().contains(&Notice::HostDue { client: ONE, stream: FREE, tag: 0 }));
    assert!(done(&mut gpu, ms(50)).is_empty());
    gpu.host_done(ms(60), ONE, FREE);
    assert_eq!(done(&mut gpu, ms(100)), [(0, ms(60)), (1, ms(61))]);
}

#[test]
fn a_full_queue_refuses_and_says_when_there_is_room() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    for tag in 0..QUEUE_LIMIT {
        submit(&mut gpu, ms(1), ONE, FREE, kernel(1), tag);
    }
    assert_eq!(gpu.submit(ms(1), ONE, FREE, kernel(1), 0, true), Err(GpuError::QueueFull(FREE)));
    gpu.watch(ms(1), ONE, Scope::Room(FREE), 7).unwrap();
    gpu.advance(ms(100));
    let reached = Notice::Reached { client: ONE, token: 7, at: ms(2), retired: 1 };
    assert!(gpu.take_notices().contains(&reached));
    assert!(gpu.submit(ms(100), ONE, FREE, kernel(1), 0, true).is_ok());
}

#[test]
fn the_time_of_a_record_is_told_without_waking_anybody() {
    let mut gpu = with_clients(mode(false), &[100]);
    gpu.submit(ms(0), ONE, FREE, kernel(1), 0, false).unwrap();
    gpu.submit(ms(0), ONE, FREE, Work::Record(EventId(3)), 5, false).unwrap();
    assert_eq!(gpu.next_notice(), None);
    gpu.advance(ms(4));
    assert_eq!(gpu.take_notices(), [Notice::Recorded { client: ONE, event: EventId(3), tag: 5, at: ms(1) }]);
}

#[test]
fn who_disconnects_gives_all_back_but_the_kernel_that_runs() {
    let mut gpu = with_clients(Mode::Exclusive, &[100, 100]);
    gpu.allocate(ms(0), ONE, Bytes::mib(500)).unwrap();
    submit(&mut gpu, ms(1), ONE, FREE, kernel(10), 0);
    submit(&mut gpu, ms(1), ONE, FREE, kernel(10), 1);
    submit(&mut gpu, ms(1), TWO, FREE, kernel(1), 2);
    gpu.disconnect(ms(2), ONE);
    assert_eq!(gpu.memory().0, Bytes::mib(1014));
    assert_eq!(gpu.running()[0].client, ONE);
    assert_eq!(done(&mut gpu, ms(100)), [(2, ms(12))]);
    assert_eq!(gpu.usage(ONE).busy, ms(10));
    gpu.forget(ONE);
    assert_eq!(gpu.usage(ONE).busy, Nanos::ZERO);
}

#[test]
fn memory_is_refused_when_the_card_is_full() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    let refused = gpu.allocate(ms(0), ONE, Bytes::gib(1)).unwrap_err();
    assert!(matches!(refused, GpuError::Memory(MemoryError::OutOfMemory { .. })), "{refused}");
    gpu.allocate(ms(0), ONE, Bytes::mib(1014)).unwrap();
    assert_eq!(gpu.memory().0, Bytes::ZERO);
    assert!(gpu.free(ONE, Bytes::gib(2)).is_err());
    submit(&mut gpu, ms(1), ONE, FREE, kernel(1), 0);
    submit(&mut gpu, ms(1), ONE, FREE, Work::Release(Bytes::mib(1014)), 1);
    gpu.advance(ms(1));
    assert_eq!(gpu.memory().0, Bytes::ZERO);
    gpu.advance(ms(2));
    assert_eq!(gpu.memory().0, Bytes::mib(1014));
}

#[test]
fn a_destroyed_stream_ends_its_work_first_and_a_destroyed_context_drops_it() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    submit(&mut gpu, ms(1), ONE, FREE, kernel(1), 0);
    gpu.destroy_stream(ONE, FREE).unwrap();
    assert_eq!(done(&mut gpu, ms(5)), [(0, ms(2))]);
    assert!(gpu.submit(ms(5), ONE, FREE, kernel(1), 1, true).is_err());
    submit(&mut gpu, ms(5), ONE, BLOCKING, kernel(1), 2);
    submit(&mut gpu, ms(5), ONE, BLOCKING, kernel(1), 3);
    gpu.watch(ms(5), ONE, Scope::Context(CONTEXT), 9).unwrap();
    gpu.destroy_context(ms(5), ONE, CONTEXT).unwrap();
    assert!(gpu.take_notices().iter().any(|notice| matches!(notice, Notice::Reached { token: 9, .. })));
    assert!(done(&mut gpu, ms(50)).is_empty());
    assert_eq!(gpu.memory().0, Bytes::gib(1));
    assert_eq!(gpu.next_notice(), None);
}

#[test]
fn nobody_is_woken_for_work_that_nobody_waits_for() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    gpu.submit(ms(1), ONE, FREE, kernel(5), 0, false).unwrap();
    assert_eq!(gpu.next_event(), Some(ms(6)));
    assert_eq!(gpu.next_notice(), None);
    gpu.watch(ms(2), ONE, Scope::Stream(FREE), 1).unwrap();
    assert_eq!(gpu.next_notice(), Some(ms(6)));
}

#[test]
fn whoever_waits_for_the_last_of_many_is_looked_after_once() {
    let mut gpu = with_clients(Mode::Exclusive, &[100]);
    for tag in 0..1000 {
        gpu.submit(ms(1), ONE, FREE, kernel(1), tag, false).unwrap();
    }
    gpu.watch(ms(1), ONE, Scope::Stream(FREE), 1).unwrap();
    assert_eq!(gpu.next_notice(), Some(ms(1001)));
}

/// One thing that a random program does.
#[derive(Clone, Debug)]
enum Step {
    Submit { client: u32, stream: u32, work: Work },
    Wait { microseconds: u64 },
    Allocate { client: u32, mebibytes: u64 },
    Free { client: u32, mebibytes: u64 },
    Disconnect { client: u32 },
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        4 => (0_u64..3_000).prop_map(|us| Work::Kernel { time: Nanos::from_micros(us) }),
        1 => (0_u64..20_000_000).prop_map(|bytes| Work::CopyIn(Bytes(bytes))),
        1 => (0_u64..20_000_000).prop_map(|bytes| Work::CopyOut(Bytes(bytes))),
        1 => (0_u64..20_000_000).prop_map(|bytes| Work::CopyWithin(Bytes(bytes))),
        1 => (0_u32..3).prop_map(|event| Work::Record(EventId(event))),
        1 => (0_u32..3).prop_map(|event| Work::Wait(EventId(event))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_u32..4, 0_u32..3, work()).prop_map(|(client, stream, work)| Step::Submit { client, stream, work }),
        3 => (0_u64..2_000).prop_map(|microseconds| Step::Wait { microseconds }),
        1 => (1_u32..4, 0_u64..600).prop_map(|(client, mebibytes)| Step::Allocate { client, mebibytes }),
        1 => (1_u32..4, 0_u64..600).prop_map(|(client, mebibytes)| Step::Free { client, mebibytes }),
    ]
}

/// A model that runs a random program, and what it did.
struct Run {
    gpu: Gpu,
    now: Nanos,
    /// Kernel time that each client was given to do.
    asked: BTreeMap<u32, Nanos>,
    /// Number of the latest operation of each stream.
    submitted: BTreeMap<(u32, u32), u64>,
    notices: Vec<Notice>,
}

impl Run {
    fn new(mode: Mode, percents: [u8; 3]) -> Self {
        let gpu = with_clients(mode, &percents);
        Self {
            gpu,
            now: Nanos::ZERO,
            asked: BTreeMap::new(),
            submitted: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// Lets the model work until `until`; stopping at each event if `fine`.
    fn advance(&mut self, until: Nanos, fine: bool) {
        while fine && let Some(at) = self.gpu.next_event().filter(|&at| at <= until) {
            self.gpu.advance(at);
            self.check();
        }
        self.gpu.advance(until);
        self.now = until;
        self.check();
    }

    fn check(&mut self) {
        self.notices.extend(self.gpu.take_notices());
        let running = self.gpu.running();
        let percent: u32 = running.iter().map(|kernel| u32::from(kernel.sm.percent())).sum();
        assert!(percent <= 100, "{running:?}");
        if self.gpu.config().mode == Mode::Exclusive {
            assert!(running.len() <= 1, "{running:?}");
        }
        let (free, total) = self.gpu.memory();
        let held: Bytes = (1..4).map(|client| self.gpu.usage(ClientId(client)).memory).sum();
        assert_eq!(free + held, total);
    }

    fn take(&mut self, step: &Step, fine: bool) {
        match *step {
            Step::Submit { client, stream, work } => {
                let number = self.submitted.entry((client, stream)).or_default();
                *number += 1;
                let tag = u64::from(client) << 40 | u64::from(stream) << 32 | *number;
                if self.gpu.submit(self.now, ClientId(client), StreamId(stream), work, tag, true).is_ok() {
                    let time = self.kernel_time(work);
                    *self.asked.entry(client).or_default() += time;
                }
            }
            Step::Wait { microseconds } => self.advance(self.now + Nanos::from_micros(microseconds), fine),
            Step::Allocate { client, mebibytes } => {
                let _ = self.gpu.allocate(self.now, ClientId(client), Bytes::mib(mebibytes));
            }
            Step::Free { client, mebibytes } => {
                let _ = self.gpu.free(ClientId(client), Bytes::mib(mebibytes));
            }
            Step::Disconnect { client } => self.gpu.disconnect(self.now, ClientId(client)),
        }
        self.check();
    }

    fn kernel_time(&self, work: Work) -> Nanos {
        match work {
            Work::Kernel { time } => time,
            Work::CopyWithin(bytes) => {
                Nanos(bytes.0 * 1_000_000_000 / self.gpu.config().device_bandwidth).max(Nanos::from_micros(1))
            }
            _ => Nanos::ZERO,
        }
    }

    fn completed(&self) -> Vec<(u64, Nanos)> {
        let of = |notice: &Notice| match notice {
            Notice::Completed { tag, at, .. } => Some((*tag, *at)),
            _ => None,
        };
        self.notices.iter().filter_map(of).collect()
    }
}

fn program() -> impl Strategy<Value = (bool, [u8; 3], Vec<Step>)> {
    (any::<bool>(), [1_u8..=100, 1_u8..=100, 1_u8..=100], prop::collection::vec(step(), 1..80))
}

fn mode(mps: bool) -> Mode {
    if mps { Mode::Mps } else { Mode::Exclusive }
}

proptest! {
    #[test]
    fn all_work_is_done_in_stream_order_and_takes_the_time_it_should(
        (mps, percents, steps) in program(),
    ) {
        let mut run = Run::new(mode(mps), percents);
        for step in &steps {
            run.take(step, true);
        }
        run.advance(run.now + Nanos::from_secs(100), true);
        let mut last: BTreeMap<(u32, u32), (u64, Nanos)> = BTreeMap::new();
        for (tag, at) in run.completed() {
            let stream = (u32::try_from(tag >> 40).unwrap(), u32::try_from(tag >> 32 & 0xff).unwrap());
            let (number, time) = last.get(&stream).copied().unwrap_or_default();
            prop_assert_eq!(tag & 0xffff_ffff, number + 1, "an operation overtook another");
            prop_assert!(at >= time);
            last.insert(stream, (number + 1, at));
        }
        for (stream, count) in &run.submitted {
            prop_assert_eq!(last.get(stream).map_or(0, |done| done.0), *count);
        }
        for (&client, &asked) in &run.asked {
            prop_assert_eq!(run.gpu.usage(ClientId(client)).busy, asked);
        }
        let all: Nanos = run.asked.values().copied().sum();
        prop_assert!(run.gpu.busy() <= all);
        if !mps {
            prop_assert_eq!(run.gpu.busy(), all);
        }
    }

    #[test]
    fn how_often_the_caller_looks_changes_nothing((mps, percents, steps) in program()) {
        let (mut fine, mut coarse) = (Run::new(mode(mps), percents), Run::new(mode(mps), percents));
        for step in &steps {
            fine.take(step, true);
            coarse.take(step, false);
        }
        fine.advance(fine.now + Nanos::from_secs(100), true);
        coarse.advance(coarse.now + Nanos::from_secs(100), false);
        prop_assert_eq!(fine.completed(), coarse.completed());
    }

    #[test]
    fn whoever_looks_only_when_told_misses_nothing((mps, percents, steps) in program(), every in 1_u64..5) {
        let mut gpu = with_clients(mode(mps), &percents);
        let mut now = Nanos::ZERO;
        let wake_until = |gpu: &mut Gpu, until: Nanos| {
            while let Some(at) = gpu.next_notice().filter(|&at| at <= until) {
                gpu.advance(at);
                for notice in gpu.take_notices() {
                    let said = match notice {
                        Notice::Completed { at, .. } | Notice::Reached { at, .. } => at,
                        Notice::HostDue { .. } | Notice::Recorded { .. } => continue,
                    };
                    assert_eq!(said, at, "told late");
                }
            }
            gpu.advance(until);
            let late = |notice: &Notice| !matches!(notice, Notice::Recorded { .. });
            assert!(!gpu.take_notices().iter().any(late), "told late");
        };
        for (step, tag) in steps.iter().zip(0_u64..) {
            match *step {
                Step::Submit { client, stream, work } => {
                    let (client, stream, notify) = (ClientId(client), StreamId(stream), tag % every == 0);
                    gpu.submit(now, client, stream, work, tag, notify).unwrap();
                    if tag % 3 == 0 {
                        gpu.watch(now, client, Scope::Stream(stream), tag).unwrap();
                    }
                    gpu.take_notices();
                }
                Step::Wait { microseconds } => {
                    now += Nanos::from_micros(microseconds);
                    wake_until(&mut gpu, now);
                }
                _ => {}
            }
        }
        wake_until(&mut gpu, now + Nanos::from_secs(100));
        prop_assert_eq!(gpu.next_event(), None);
    }

    #[test]
    fn whoever_leaves_at_any_time_leaves_nothing_behind(
        (mps, percents, steps) in program(), leaves_after in 0_usize..80, who in 1_u32..4,
    ) {
        let mut run = Run::new(mode(mps), percents);
        for (index, step) in steps.iter().enumerate() {
            run.take(step, true);
            if index == leaves_after {
                run.take(&Step::Disconnect { client: who }, true);
            }
        }
        run.take(&Step::Disconnect { client: who }, true);
        prop_assert_eq!(run.gpu.usage(ClientId(who)).memory, Bytes::ZERO);
        run.advance(run.now + Nanos::from_secs(100), true);
        prop_assert!(run.gpu.running().is_empty());
        prop_assert_eq!(run.gpu.next_event(), None);
        for client in (1..4).filter(|&client| client != who) {
            prop_assert_eq!(run.gpu.usage(ClientId(client)).pending, 0);
        }
    }
}

#[test]
fn a_green_context_has_its_share_without_mps_too() {
    let mut gpu = with_clients(Mode::Exclusive, &[30]);
    let (client, context, stream) = (ClientId(1), ContextId(90), StreamId(91));
    let sm = SmShare::from_percent(40).unwrap();
    let wanted = NewContext { id: context, legacy: stream, sm, green: true };
    gpu.create_context(Nanos::ZERO, client, wanted, 0).unwrap();
    assert_eq!(gpu.sm_share(client, stream), Ok(sm));
    assert_eq!(gpu.sm_share(client, LEGACY), Ok(SmShare::WHOLE));
}
