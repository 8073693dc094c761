//! Measuring: events around batches of launches, and the thread that waits for them and charges GPU time.
//!
//! No lock of this module is held while the driver is called or anything is waited for.

mod hold_up;
mod thread;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpu_share::accounting::batch;
use gpu_share::page::Slot;
use gpu_share::units::Nanos;

use crate::abi::{
    CAPTURE_MODE_RELAXED, EVENT_BLOCKING_SYNC, Handle, STREAM_LEGACY, STREAM_PER_THREAD, Status,
};
use crate::cost::Cost;
use crate::driver;
use crate::gate::{Admitted, Outside};
use crate::lane::seat::{self, Job, Seat};
use crate::lane::{Filled, Lane, Opening};
use crate::session::Session;

use hold_up::HoldUp;
use thread::Harvest;

/// Longest wait for measured work before its context is destroyed.
const DRAIN: Duration = Duration::from_secs(10);

/// A launch as the hook sees it.
#[derive(Debug)]
pub(crate) struct Work {
    /// The stream as the program names it.
    pub(crate) asked: usize,
    pub(crate) job: Job,
    pub(crate) cost: &'static Cost,
    /// The call returns when the work has ended.
    pub(crate) blocks: bool,
}

/// Measures the time between a recorded start and the launch, during which the GPU may have idled; the events cannot tell
/// that from work.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// Of a call that waits for its work nothing is known, and where the stream is held up nothing is waited for.
    Stopped,
    /// Of work that was never measured only the thread's own time counts: a thread that was put aside may have launched
    /// before.
    Thread,
    /// Work that was measured is charged what it is known to take, at least.
    Wall,
}

impl Clock {
    fn of(work: &Work) -> Self {
        match (work.blocks, work.cost.is_known()) {
            (true, _) => Self::Stopped,
            (false, false) => Self::Thread,
            (false, true) => Self::Wall,
        }
    }

    fn now(self, session: &Session) -> Nanos {
        match self {
            Self::Stopped => Nanos::ZERO,
            Self::Thread => thread_time(),
            Self::Wall => session.now(),
        }
    }
}

/// Time for which this thread has run.
fn thread_time() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the answer goes to a place of its type; the clock exists in every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    Nanos::from_secs(seconds.unwrap_or(0)) + Nanos(nanos.unwrap_or(0))
}

/// Launches between two events.
#[derive(Debug)]
struct Batch {
    context: usize,
    stream: usize,
    filled: Filled,
    end: usize,
}

/// What waits for the harvester's thread.
#[derive(Debug, Default)]
struct Inbox {
    batches: VecDeque<Batch>,
    retired: Vec<usize>,
    /// There is something to look at.
    kicked: bool,
    /// The thread sleeps.
    sleeping: bool,
}

/// Lanes, events and finished batches of one process.
#[derive(Debug, Default)]
pub(crate) struct Harvester {
    lanes: Mutex<HashMap<LaneKey, &'static Lane>>,
    events: Mutex<HashMap<usize, Vec<usize>>>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Batches that are open on a lane.
    open: AtomicUsize,
    /// Batches that are closed and not charged.
    outstanding: AtomicUsize,
    drained: Condvar,
}

/// Names a lane: context, stream, and the thread where the stream is the thread's own.
pub(crate) type LaneKey = (usize, usize, usize);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle as it is kept and compared.
fn handle(number: usize) -> Handle {
    number as Handle
}

impl Harvester {
    /// The lane of `key`, made where it is missing.
    pub(crate) fn lane(&self, key: LaneKey) -> &'static Lane {
        let (context, stream, _) = key;
        let new = || &*Box::leak(Box::new(Lane::new(context, stream, stream == STREAM_PER_THREAD)));
        lock(&self.lanes).entry(key).or_insert_with(new)
    }

    /// Runs `launch` on the lane: within the thread's open batch, or between events of its own. Waits for the right first
    /// where that is not held.
    pub(crate) fn launch(
        &self,
        session: &'static Session,
        lane: &'static Lane,
        work: &Work,
        launch: &mut dyn FnMut() -> Status,
    ) -> Status {
        let seat = seat_for(lane, work);
        if let Some(seat) = seat {
            lane.prepare(seat, work.job, work.cost);
            seat::publish(seat);
            if let Some(seat) = seat::join(work.asked, work.job) {
                let status = launch();
                if seat.leave() {
                    self.end(session, lane);
                }
                return status;
            }
        }
        // What is open has no room for it. A wait is no work, and must not lie within a batch.
        self.close(session, &[lane]);
        let expected = work.cost.estimate();
        let admitted = session.gate.try_enter(expected).unwrap_or_else(|| {
            self.close_current(session);
            session.gate.enter_slowly(expected, session)
        });
        match seat.filter(|_| may_share(session, lane, work, admitted)) {
            Some(seat) => self.opening(session, lane, seat, (work, expected, admitted), launch),
            None => self.alone(session, lane, work, expected, launch),
        }
    }

    fn opening(
        &self,
        session: &'static Session,
        lane: &'static Lane,
        seat: &'static Seat,
        (work, expected, admitted): (&Work, Nanos, Admitted),
        launch: &mut dyn FnMut() -> Status,
    ) -> Status {
        let (held, since) = (session.gate.held(), session.now());
        if !Slot::is_held(held.right) {
            return self.alone(session, lane, work, expected, launch);
        }
        let Some(start) = self.record(lane) else { return self.unmeasured(session, expected, launch) };
        let opening = Opening { start, since, ahead: admitted.ahead, held };
        // The harvester counts it before anybody can end it.
        self.open.fetch_add(1, Ordering::SeqCst);
        let Some(more) = lane.open(seat, (work.job, work.cost), expected, &opening) else {
            self.open.fetch_sub(1, Ordering::SeqCst);
            self.recycle(lane.context, start);
            return self.alone(session, lane, work, expected, launch);
        };
        session.gate.reserve(more);
        self.kick();
        let status = launch();
        if seat.leave() {
            self.end(session, lane);
        }
        status
    }

    /// No event could be recorded (the stream may be gone): the launch counts with what is expected of it.
    fn unmeasured(&self, session: &Session, expected: Nanos, launch: &mut dyn FnMut() -> Status) -> Status {
        let status = launch();
        session.gate.settle(1, expected, if status.is_ok() { expected } else { Nanos::ZERO }, session.now());
        self.kick();
        status
    }

    fn alone(
        &self,
        session: &Session,
        lane: &'static Lane,
        work: &Work,
        expected: Nanos,
        launch: &mut dyn FnMut() -> Status,
    ) -> Status {
        let exact = work.cost.wants_exactness() && !work.blocks;
        let held_up = exact.then(|| HoldUp::of(lane.stream)).flatten();
        let clock = if held_up.is_some() { Clock::Stopped } else { Clock::of(work) };
        let before = clock.now(session);
        let Some(start) = self.record(lane) else { return self.unmeasured(session, expected, launch) };
        let status = launch();
        if !status.is_ok() {
            self.recycle(lane.context, start);
            session.gate.leave(expected);
            self.kick();
            return status;
        }
        let launched = clock.now(session);
        let end = self.record(lane);
        if exact {
            // Also where the driver can't hold a stream up: there is no use in trying again at once.
            work.cost.is_measured_exactly();
        }
        drop(held_up);
        let (gap, tail) = (launched.since(before), clock.now(session).since(launched));
        let (unspent, costs) = (Nanos::ZERO, vec![(work.cost, 1)]);
        let filled = Filled { start, launches: 1, expected, unspent, gap, tail, costs };
        lane.sampled(session.now());
        self.hand_over(session, lane, filled, end);
        status
    }

    /// Ends the batch of `lane` that somebody closed, unless its thread is just launching.
    pub(crate) fn end(&self, session: &Session, lane: &'static Lane) {
        self.finish(session, lane, Nanos::ZERO);
    }

    /// Ends the closed batch of `lane`, after whose last launch nothing came for `idle`.
    fn finish(&self, session: &Session, lane: &'static Lane, idle: Nanos) {
        let before = session.now();
        let Some(mut filled) = lane.take(before, idle) else { return };
        let end = self.record(lane);
        filled.tail = idle + session.now().since(before);
        session.gate.give_up(filled.unspent);
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.hand_over(session, lane, filled, end);
    }

    fn hand_over(&self, session: &Session, lane: &'static Lane, filled: Filled, end: Option<usize>) {
        let Some(end) = end else {
            self.recycle(lane.context, filled.start);
            session.gate.settle(filled.launches, filled.expected, filled.expected, session.now());
            self.kick();
            return;
        };
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        let mut inbox = lock(&self.inbox);
        inbox.batches.push_back(Batch { context: lane.context, stream: lane.stream, filled, end });
        self.notify(&mut inbox);
    }

    /// Makes the thread look again.
    pub(crate) fn kick(&self) {
        self.notify(&mut lock(&self.inbox));
    }

    fn notify(&self, inbox: &mut Inbox) {
        inbox.kicked = true;
        if inbox.sleeping {
            self.wake.notify_one();
        }
    }

    /// An event of the lane's context, recorded on its stream now.
    fn record(&self, lane: &Lane) -> Option<usize> {
        let event = self.event(lane.context)?;
        if driver::record_event(handle(event), handle(lane.stream)).is_ok() {
            return Some(event);
        }
        self.recycle(lane.context, event);
        None
    }

    fn event(&self, context: usize) -> Option<usize> {
        let pooled = lock(&self.events).get_mut(&context).and_then(Vec::pop);
        pooled.or_else(|| {
            in_context(context, || {
                let mut event = core::ptr::null_mut();
                driver::create_event(&mut event, EVENT_BLOCKING_SYNC).is_ok().then_some(event as usize)
            })
        })
    }

    fn recycle(&self, context: usize, event: usize) {
        lock(&self.events).entry(context).or_default().push(event);
    }

    /// A stream's or context's work is about to be waited for: close the open batches of the present context, so that
    /// their ends are measured without a gap.
    pub(crate) fn close_current(&self, session: &Session) {
        if self.is_any_open() {
            let context = current();
            self.close(session, &self.lanes_where(|lane| lane.context == context && !lane.own));
        }
    }

    /// Something that is no work of the GPU is about to be put on `stream`: what is measured there ends before it.
    pub(crate) fn close_stream(&self, session: &Session, stream: usize) {
        if self.is_any_open() {
            let context = current();
            let legacy = stream <= STREAM_LEGACY;
            let here = |lane: &Lane| if legacy { lane.context == context } else { lane.stream == stream };
            self.close(session, &self.lanes_where(|lane| here(lane) && !lane.own));
        }
    }

    /// Closes all that is open.
    pub(crate) fn close_all(&self, session: &Session) {
        if self.is_any_open() {
            for lane in self.lanes_where(|lane| !lane.own) {
                in_context(lane.context, || self.close(session, &[lane]));
            }
        }
    }

    fn is_any_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    fn lanes_where(&self, wanted: impl Fn(&Lane) -> bool) -> Vec<&'static Lane> {
        lock(&self.lanes).values().copied().filter(|lane| wanted(lane)).collect()
    }

    fn close(&self, session: &Session, lanes: &[&'static Lane]) {
        let thread = seat::thread();
        let mut foreign = false;
        for lane in lanes {
            foreign |= lane.mark_closed(thread).unwrap_or(false);
        }
        if foreign {
            seat::barrier();
        }
        for lane in lanes {
            self.finish(session, lane, Nanos::ZERO);
        }
    }

    /// No launch has joined the open batches of `lanes` for `idle`.
    fn close_idle(&self, session: &Session, lanes: &[&'static Lane], idle: Nanos) {
        for lane in lanes {
            lane.mark_stale();
        }
        seat::barrier();
        for lane in lanes {
            self.finish(session, lane, idle);
        }
    }

    /// The stream is about to be destroyed.
    pub(crate) fn forget_stream(&self, session: &Session, stream: usize) {
        let lanes = self.lanes_where(|lane| lane.stream == stream);
        self.close(session, &lanes);
        lock(&self.lanes).retain(|(_, known, _), _| *known != stream);
        seat::forget_all();
    }

    /// The context (0: which one is not known) is about to be destroyed: waits for what is measured in it.
    pub(crate) fn drain(&self, session: &Session, context: usize) {
        self.drain_within(session, context, DRAIN);
    }

    /// The same, but waits no longer than `most`.
    pub(crate) fn drain_within(&self, session: &Session, context: usize, most: Duration) {
        let lanes = self.lanes_where(|lane| (context == 0 || lane.context == context) && !lane.own);
        for lane in lanes {
            in_context(lane.context, || self.close(session, &[lane]));
        }
        let deadline = Instant::now() + most;
        let mut inbox = lock(&self.inbox);
        while self.outstanding.load(Ordering::SeqCst) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inbox = self.drained.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The context, whose events are another one's and would outlive it, is about to end.
    pub(crate) fn destroy_events(&self, context: usize) {
        let Some(events) = lock(&self.events).remove(&context) else { return };
        in_context(context, || {
            for event in events {
                driver::destroy_event(handle(event));
            }
        });
    }

    /// The context is gone, and its streams and events with it.
    pub(crate) fn forget_context(&self, context: usize) {
        lock(&self.lanes).retain(|(known, ..), _| *known != context);
        lock(&self.events).remove(&context);
        seat::forget_all();
        let mut inbox = lock(&self.inbox);
        inbox.retired.push(context);
        self.notify(&mut inbox);
    }

    /// The harvester's thread. Ends when the driver does.
    pub(crate) fn run(&self, session: &Session) {
        // Without this a look at an event would invalidate a capture that another thread has begun.
        let mut mode = CAPTURE_MODE_RELAXED;
        driver::exchange_capture_mode(&mut mode);
        let mut harvest = Harvest::new(self, session);
        while harvest.step() {}
    }
}

/// The seat from which the thread may open batches on `lane`.
fn seat_for(lane: &'static Lane, work: &Work) -> Option<&'static Seat> {
    let shares = work.cost.is_known() && !work.blocks && !lane.own && seat::has_barrier();
    shares.then(|| lane.seat(work.asked, seat::thread()))
}

fn may_share(session: &Session, lane: &Lane, work: &Work, admitted: Admitted) -> bool {
    work.cost.estimate() < batch::ENOUGH
        && !work.cost.wants_exactness()
        && (batch::is_dense(admitted.ahead, work.cost.is_known(), work.blocks)
            || lane.is_brisk(work.cost, session.now()))
}

/// The context that is current in this thread, 0 for none.
pub(crate) fn current() -> usize {
    let mut context = core::ptr::null_mut();
    if driver::current_context(&mut context).is_ok() { context as usize } else { 0 }
}

/// Runs `action` with `context` current.
pub(crate) fn in_context<T>(context: usize, action: impl FnOnce() -> T) -> T {
    let pushed = current() != context && driver::push_context(handle(context)).is_ok();
    let result = action();
    if pushed {
        let mut popped = core::ptr::null_mut();
        driver::pop_context(&mut popped);
    }
    result
}
