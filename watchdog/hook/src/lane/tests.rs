//! Lanes and seats, with threads that launch nothing.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::*;
use crate::lane::seat::{Job, barrier, has_barrier, join, publish, thread};

const US: Nanos = Nanos::from_micros(1);

/// A kind of work that takes `span`.
fn cost(span: Nanos) -> &'static Cost {
    let cost: &'static Cost = Box::leak(Box::default());
    (0..4).for_each(|_| cost.learn(span, span));
    cost
}

fn job(what: usize, blocks: u32) -> Job {
    Job { what, grid: [blocks, 1, 1] }
}

fn lane() -> &'static Lane {
    Box::leak(Box::new(Lane::new(1, 0x10170, false)))
}

fn word() -> &'static AtomicU32 {
    Box::leak(Box::new(AtomicU32::new(3)))
}

fn opening(word: &'static AtomicU32) -> Opening {
    Opening { start: 9, since: US, ahead: Nanos::ZERO, held: Held { word, right: 3 } }
}

/// Opens a batch of `cost` for this thread, and launches the first.
fn open(lane: &'static Lane, asked: usize, what: usize, cost: &'static Cost) -> &'static Seat {
    let seat = lane.seat(asked, thread());
    publish(seat);
    assert!(lane.open(seat, (job(what, 1), cost), cost.estimate(), &opening(word())).is_some());
    assert!(!seat.leave());
    seat
}

#[test]
fn launches_of_the_thread_join_until_what_is_reserved_is_used_up() {
    let (lane, cost) = (lane(), cost(Nanos::from_micros(200)));
    open(lane, 0x10170, 7, cost);
    let seat = join(0x10170, job(7, 1)).unwrap();
    assert!(!seat.leave());
    assert!(join(0x10170, job(7, 1)).is_none(), "600 µs are more than a batch holds");
    assert!(join(0x10170, job(8, 1)).is_none(), "another kind");
    assert!(join(0x10170, job(7, 2)).is_none(), "another size");
    assert!(join(0x1010, job(7, 1)).is_none(), "another stream");
    assert_eq!(lane.mark_closed(thread()), Some(false));
    let filled = lane.take(US + US, Nanos::ZERO).unwrap();
    assert_eq!((filled.start, filled.launches, filled.expected), (9, 2, Nanos::from_micros(400)));
    assert_eq!((filled.gap, filled.unspent), (US, Nanos::from_micros(100)));
    assert_eq!(filled.costs.iter().map(|(_, times)| *times).sum::<u64>(), 2);
    assert!(lane.progress().is_none());
}

#[test]
fn kinds_that_share_a_site_are_all_counted() {
    let (lane, one, other) = (lane(), cost(US), cost(US + US));
    let seat = open(lane, 0x102e0, 0x10, one);
    // The same site: they differ above what tells sites apart.
    lane.prepare(seat, job(0x10 + (64 << 4), 1), other);
    assert!(!join(0x102e0, job(0x10 + (64 << 4), 1)).unwrap().leave());
    lane.prepare(seat, job(0x10, 1), one);
    assert!(!join(0x102e0, job(0x10, 1)).unwrap().leave());
    lane.mark_closed(thread());
    let filled = lane.take(US, Nanos::ZERO).unwrap();
    assert_eq!((filled.launches, filled.expected), (3, Nanos::from_micros(4)));
}

#[test]
fn a_right_that_was_taken_back_stops_the_very_next_launch() {
    let (lane, cost, word) = (lane(), cost(US), word());
    let seat = lane.seat(0x10450, thread());
    publish(seat);
    lane.open(seat, (job(7, 1), cost), US, &opening(word));
    assert!(!seat.leave());
    assert!(!join(0x10450, job(7, 1)).unwrap().leave());
    word.store(4, Ordering::SeqCst);
    assert!(join(0x10450, job(7, 1)).is_none());
}

#[test]
fn a_batch_is_ended_by_its_thread_if_that_is_just_launching() {
    let (lane, cost) = (lane(), cost(US));
    let seat = lane.seat(0x105c0, thread());
    publish(seat);
    lane.open(seat, (job(7, 1), cost), US, &opening(word()));
    assert_eq!(lane.mark_closed(0), Some(true));
    assert!(lane.take(US, Nanos::ZERO).is_none());
    assert!(seat.leave());
    assert!(lane.take(US, Nanos::ZERO).is_some());
    assert!(lane.take(US, Nanos::ZERO).is_none());
}

#[test]
fn time_in_which_work_was_still_queued_is_no_gap() {
    let (lane, cost) = (lane(), cost(US));
    let seat = lane.seat(0x10730, thread());
    let opening = Opening { ahead: Nanos::from_micros(300), ..opening(word()) };
    lane.open(seat, (job(7, 1), cost), US, &opening);
    assert!(!seat.leave());
    lane.mark_closed(thread());
    assert_eq!(lane.take(Nanos::from_micros(251), Nanos::ZERO).unwrap().gap, Nanos::ZERO);
}

#[test]
fn threads_that_take_the_stream_from_each_other_all_the_time_share_no_batches() {
    let (lane, cost) = (lane(), cost(US));
    for _ in 0..QUARRELS {
        open(lane, 0x108a0, 7, cost);
        assert_eq!(lane.mark_closed(0), Some(true));
        lane.take(US, Nanos::ZERO).unwrap();
    }
    let seat = lane.seat(0x108a0, thread());
    assert!(lane.open(seat, (job(7, 1), cost), US, &opening(word())).is_none());
}

#[test]
fn short_work_that_comes_fast_is_batched_and_sampled_now_and_then() {
    let (lane, short, long) = (lane(), cost(US), cost(Nanos::from_millis(1)));
    lane.sampled(US);
    assert!(lane.is_brisk(short, US + US));
    assert!(!lane.is_brisk(long, US + US));
    assert!(!lane.is_brisk(short, Nanos::from_millis(1)));
    for _ in 0..SAMPLED {
        open(lane, 0x10a10, 7, short);
        lane.mark_closed(thread());
        lane.take(US, Nanos::ZERO).unwrap();
    }
    assert!(!lane.is_brisk(short, US + US));
    lane.sampled(US);
    assert!(lane.is_brisk(short, US + US));
}

#[test]
fn batches_that_are_ended_from_outside_lose_no_launch() {
    assert!(has_barrier(), "this kernel has no membarrier");
    let (lane, cost) = (lane(), cost(US));
    let (measured, done) = (AtomicU64::new(0), AtomicU32::new(0));
    let launches = 40_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let seat = lane.seat(0x10b80, thread());
            publish(seat);
            let (word, mut count) = (word(), 0);
            while count < launches {
                let joined = join(0x10b80, job(7, 1));
                if joined.is_none() {
                    lane.mark_closed(thread());
                    if let Some(filled) = lane.take(US, Nanos::ZERO) {
                        measured.fetch_add(filled.launches, Ordering::SeqCst);
                    }
                    if lane.open(seat, (job(7, 1), cost), US, &opening(word)).is_none() {
                        continue;
                    }
                }
                count += 1;
                if seat.leave()
                    && let Some(filled) = lane.take(US, Nanos::ZERO)
                {
                    measured.fetch_add(filled.launches, Ordering::SeqCst);
                }
            }
            done.store(1, Ordering::SeqCst);
        });
        while done.load(Ordering::SeqCst) == 0 {
            lane.mark_stale();
            barrier();
            if let Some(filled) = lane.take(US, Nanos::ZERO) {
                measured.fetch_add(filled.launches, Ordering::SeqCst);
            }
        }
    });
    lane.mark_stale();
    let rest = lane.take(US, Nanos::ZERO).map_or(0, |filled| filled.launches);
    assert_eq!(measured.into_inner() + rest, launches);
}
