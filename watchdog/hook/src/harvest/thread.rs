//! The harvester's thread: waits for events, charges the time between them, and gives the right back.
//!
//! It alone asks events about themselves: other threads may be capturing, and would spoil that.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gpu_share::accounting::batch;
use gpu_share::accounting::timeline::{Span, Timeline};
use gpu_share::units::Nanos;

use super::{Batch, Harvester, handle, lock};
use crate::abi::Status;
use crate::driver;
use crate::gate::Outside;
use crate::lane::Lane;
use crate::session::Session;

/// An open batch that no launch joined for so long is closed.
const STALE: Duration = Duration::from_nanos(batch::STALE.0);
/// Pause between looks at events of several streams.
const POLL: Duration = Duration::from_micros(50);

/// What the harvester's thread keeps.
pub(super) struct Harvest<'a> {
    harvester: &'a Harvester,
    session: &'a Session,
    pending: VecDeque<Batch>,
    timelines: HashMap<usize, Timeline>,
    current: usize,
    looked: Instant,
    progress: Vec<(&'static Lane, u64)>,
}

impl<'a> Harvest<'a> {
    pub(super) fn new(harvester: &'a Harvester, session: &'a Session) -> Self {
        Self {
            harvester,
            session,
            pending: VecDeque::new(),
            timelines: HashMap::new(),
            current: 0,
            looked: Instant::now(),
            progress: Vec::new(),
        }
    }

    /// Whether there is more to come.
    pub(super) fn step(&mut self) -> bool {
        self.collect();
        self.close_stale();
        if self.pending.is_empty() {
            let due = self.session.gate.give_back(self.session);
            self.sleep(due.map(|due| due.since(self.session.now()).into()));
            return true;
        }
        let alive = if self.is_one_stream() { self.await_front() } else { self.poll() };
        self.session.gate.give_back(self.session);
        alive
    }

    fn collect(&mut self) {
        let mut inbox = lock(&self.harvester.inbox);
        inbox.kicked = false;
        self.pending.append(&mut inbox.batches);
        let retired = core::mem::take(&mut inbox.retired);
        drop(inbox);
        for context in retired {
            self.timelines.remove(&context);
            self.progress.retain(|(lane, _)| lane.context != context);
            self.current = 0;
        }
    }

    fn is_one_stream(&self) -> bool {
        let mut streams = self.pending.iter().map(|batch| (batch.context, batch.stream));
        let first = streams.next();
        streams.all(|stream| Some(stream) == first)
    }

    /// Sleeps until there is something to do: a batch, an open batch that may go stale, or the right to give back.
    fn sleep(&mut self, most: Option<Duration>) {
        let open = self.harvester.open.load(Ordering::Relaxed) > 0;
        let most = if open { Some(most.map_or(STALE, |most| most.min(STALE))) } else { most };
        self.pause(most);
    }

    fn pause(&self, most: Option<Duration>) {
        let mut inbox = lock(&self.harvester.inbox);
        if inbox.kicked {
            return;
        }
        inbox.sleeping = true;
        let wake = &self.harvester.wake;
        let mut inbox = match most {
            Some(most) => wake.wait_timeout(inbox, most).unwrap_or_else(PoisonError::into_inner).0,
            None => wake.wait_while(inbox, |inbox| !inbox.kicked).unwrap_or_else(PoisonError::into_inner),
        };
        inbox.sleeping = false;
    }

    /// Closes batches that no launch joined since the last look, and all of them once the right was taken back: nothing can
    /// join then, and the right goes back when they have ended.
    fn close_stale(&mut self) {
        let revoked = self.session.gate.is_revoked();
        if self.harvester.open.load(Ordering::Relaxed) == 0 || (self.looked.elapsed() < STALE && !revoked) {
            return;
        }
        let idle = if revoked { Nanos::ZERO } else { self.looked.elapsed().into() };
        self.looked = Instant::now();
        let before = core::mem::take(&mut self.progress);
        for lane in self.harvester.lanes_where(|lane| !lane.own) {
            let Some(progress) = lane.progress() else { continue };
            if revoked || before.iter().any(|(known, seen)| core::ptr::eq(*known, lane) && *seen == progress)
            {
                self.enter_context(lane.context);
                self.harvester.close_idle(self.session, &[lane], idle);
            } else {
                self.progress.push((lane, progress));
            }
        }
    }

    fn enter_context(&mut self, context: usize) {
        if self.current != context && driver::set_current_context(handle(context)).is_ok() {
            self.current = context;
        }
    }

    /// All that is pending ends in order: sleeps until the first has ended.
    fn await_front(&mut self) -> bool {
        let Some((context, end)) = self.pending.front().map(|batch| (batch.context, batch.end)) else {
            return true;
        };
        self.enter_context(context);
        let status = driver::await_event(handle(end));
        let ended = self.pending.pop_front().map(|batch| (batch, status));
        let mut done = Vec::from_iter(ended);
        self.take_ended(&mut done, true);
        self.charge(done);
        status != Status::DEINITIALIZED
    }

    /// Several streams: looks at all of them, or sleeps for a moment.
    fn poll(&mut self) -> bool {
        let mut done = Vec::new();
        self.take_ended(&mut done, false);
        if done.is_empty() {
            self.pause(Some(POLL));
            return true;
        }
        let alive = done.iter().all(|(_, status)| *status != Status::DEINITIALIZED);
        self.charge(done);
        alive
    }

    /// Moves what has ended to `done`; with `in_order` the first that has not ended stops the search.
    fn take_ended(&mut self, done: &mut Vec<(Batch, Status)>, in_order: bool) {
        let mut left = VecDeque::with_capacity(self.pending.len());
        let mut stopped = false;
        for batch in core::mem::take(&mut self.pending) {
            self.enter_context(batch.context);
            let status = if stopped { Status::NOT_READY } else { driver::query_event(handle(batch.end)) };
            if status == Status::NOT_READY {
                stopped = in_order;
                left.push_back(batch);
            } else {
                done.push((batch, status));
            }
        }
        self.pending = left;
    }

    /// Charges what has ended, in the order of its ends, overlaps once.
    fn charge(&mut self, done: Vec<(Batch, Status)>) {
        let mut measured = done
            .into_iter()
            .map(|(batch, status)| {
                let timeline = self.timelines.entry(batch.context).or_default();
                let span = status
                    .is_ok()
                    .then(|| timeline.span(batch.filled.start, batch.end, elapsed_millis))
                    .flatten();
                (batch, span)
            })
            .collect::<Vec<_>>();
        measured.sort_by_key(|(_, span)| span.map(|span| span.end));
        for (batch, span) in measured {
            self.settle(&batch, span);
            self.recycle(&batch, span);
        }
    }

    fn settle(&mut self, batch: &Batch, span: Option<Span>) {
        let used = match span {
            Some(span) => {
                let measured = batch.filled.measured();
                let used = measured.without_gaps(span);
                measured.doubt(span.length());
                measured.learn(span.length(), used.length());
                self.timelines.entry(batch.context).or_default().occupy(used)
            }
            // Lost with its context, or the program broke it: what was expected stands in.
            None => batch.filled.expected,
        };
        self.session.gate.settle(batch.filled.launches, batch.filled.expected, used, self.session.now());
        if self.harvester.outstanding.fetch_sub(1, Ordering::SeqCst) == 1 {
            drop(lock(&self.harvester.inbox));
            self.harvester.drained.notify_all();
        }
    }

    fn recycle(&mut self, batch: &Batch, span: Option<Span>) {
        let timeline = self.timelines.entry(batch.context).or_default();
        let mut events = lock(&self.harvester.events);
        let pool = events.entry(batch.context).or_default();
        pool.extend(timeline.release(batch.filled.start, batch.end, span));
    }
}

fn elapsed_millis(from: usize, to: usize) -> Option<f64> {
    let mut millis = 0.0;
    driver::elapsed_millis(&mut millis, handle(from), handle(to)).is_ok().then_some(f64::from(millis))
}
