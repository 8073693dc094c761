//! The gate before every launch: may this process start GPU work now, and how much is under way.
//!
//! What passes is a batch of launches, or one that is measured by itself. It never calls the driver, and its lock is never
//! held while a thread waits.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use gpu_share::accounting::admission::{self, Patience, WINDOW};
use gpu_share::accounting::right::{self, Ask, Right};
use gpu_share::protocol::FromContainer;
use gpu_share::units::{Nanos, Quota};

/// Work in flight in one word: the number of batches above, their estimated nanoseconds below.
const ONE: u64 = 1 << 44;

/// What lies outside the gate: clock, agent and page.
pub(crate) trait Outside {
    /// The time on the monotonic clock.
    fn now(&self) -> Nanos;
    /// Sends `message` to the agent, or drops it if the agent is away.
    fn send(&self, message: &FromContainer);
    /// Waits until the page's word is no longer `seen`, at most `most`.
    fn wait(&self, seen: u32, most: Duration);
    /// The quota now, if the page can be read.
    fn grant(&self) -> Option<Quota>;
}

/// What the gate says of a launch that it let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Estimated GPU time of what was queued before it.
    pub(crate) ahead: Nanos,
}

/// A right to run, and where it shows whether it still counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The page's word, or the gate's own.
    pub(crate) word: &'static AtomicU32,
    /// The right; an even number is none.
    pub(crate) right: u32,
}

/// The gate of one process.
#[derive(Debug)]
pub(crate) struct Gate {
    in_flight: AtomicU64,
    /// The right under which launches pass, 0 for none. Set only under the lock.
    accepted: AtomicU32,
    /// The word that shows the present right: the page's, or `local`.
    word: AtomicPtr<AtomicU32>,
    /// Shows the right while the agent is away.
    local: AtomicU32,
    window: AtomicU64,
    /// Batches that ended so far.
    ended: AtomicU64,
    right: Mutex<Right>,
    changed: Condvar,
}

impl Gate {
    /// A gate that obeys `word`, which must live as long as the process.
    pub(crate) fn new(word: &'static AtomicU32) -> Self {
        Self {
            in_flight: AtomicU64::new(0),
            accepted: AtomicU32::new(0),
            word: AtomicPtr::new(ptr::from_ref(word).cast_mut()),
            local: AtomicU32::new(0),
            window: AtomicU64::new(WINDOW.0),
            ended: AtomicU64::new(0),
            right: Mutex::new(Right::new(word.load(Ordering::Acquire))),
            changed: Condvar::new(),
        }
    }

    fn word(&self) -> u32 {
        // SAFETY: it points to a word of a page that stays mapped (pages are never unmapped here), or into this gate.
        unsafe { &*self.word.load(Ordering::Acquire) }.load(Ordering::Acquire)
    }

    /// The right under which launches pass now.
    pub(crate) fn held(&'static self) -> Held {
        // SAFETY: as above; this gate lives for ever too.
        let word = unsafe { &*self.word.load(Ordering::Acquire) };
        Held { word, right: self.accepted.load(Ordering::SeqCst) }
    }

    /// Keeps `cost` for launches that will join a batch that was let through.
    pub(crate) fn reserve(&self, cost: Nanos) {
        self.in_flight.fetch_add(cost.0, Ordering::SeqCst);
    }

    /// Gives up what was kept for launches that did not come.
    pub(crate) fn give_up(&self, cost: Nanos) {
        self.in_flight.fetch_sub(cost.0, Ordering::SeqCst);
    }

    /// Lets work of estimated length `cost` through now or not at all. The addition comes before the look at the right,
    /// and whoever gives the right back clears it before it looks at what is in flight: one of the two sees the other.
    #[inline]
    pub(crate) fn try_enter(&self, cost: Nanos) -> Option<Admitted> {
        let before = self.in_flight.fetch_add(ONE + cost.0, Ordering::SeqCst);
        let accepted = self.accepted.load(Ordering::SeqCst);
        let ahead = before & (ONE - 1);
        let window = Nanos(self.window.load(Ordering::Relaxed));
        if admission::admits(Nanos(ahead), window, accepted, self.word()) {
            return Some(Admitted { ahead: Nanos(ahead) });
        }
        self.in_flight.fetch_sub(ONE + cost.0, Ordering::SeqCst);
        None
    }

    /// Lets a launch of estimated length `cost` through when the right is held and there is room.
    #[cold]
    pub(crate) fn enter_slowly(&self, cost: Nanos, outside: &impl Outside) -> Admitted {
        let mut right = self.lock();
        let mut patience = Patience::new(self.ended(), outside.now());
        right.waiting += 1;
        let admitted = loop {
            let now = outside.now();
            if patience.is_over(self.ended(), self.is_busy(), now) {
                break self.enter_anyway(cost);
            }
            let page = self.word();
            match right.ask(page, self.is_busy(), now) {
                Ask::Run(held) => {
                    self.accept(&right, held, outside);
                    if let Some(admitted) = self.try_enter(cost) {
                        break admitted;
                    }
                    if !right.is_revoked(self.word()) {
                        right = self.pause(right, right::RECHECK);
                    }
                }
                Ask::Wait(messages, most) => {
                    send_all(&messages, outside);
                    right = self.await_right(right, page, most, outside);
                    right.waited(outside.now().since(now));
                }
            }
        };
        right.waiting -= 1;
        admitted
    }

    fn enter_anyway(&self, cost: Nanos) -> Admitted {
        let before = self.in_flight.fetch_add(ONE + cost.0, Ordering::SeqCst);
        Admitted { ahead: Nanos(before & (ONE - 1)) }
    }

    fn accept(&self, right: &Right, held: u32, outside: &impl Outside) {
        if self.is_local() {
            self.local.store(right.word(0), Ordering::Release);
        }
        self.window.store(admission::window(outside.grant()).0, Ordering::Relaxed);
        self.accepted.store(held, Ordering::SeqCst);
    }

    /// Waits without the lock: on the page's word, or on this process's own events where they decide.
    fn await_right<'a>(
        &'a self,
        right: MutexGuard<'a, Right>,
        page: u32,
        most: Nanos,
        outside: &impl Outside,
    ) -> MutexGuard<'a, Right> {
        if self.is_local() || right.held() != 0 {
            return self.pause(right, most);
        }
        drop(right);
        outside.wait(page, most.into());
        self.lock()
    }

    fn pause<'a>(&'a self, right: MutexGuard<'a, Right>, most: Nanos) -> MutexGuard<'a, Right> {
        self.changed.wait_timeout(right, most.into()).unwrap_or_else(PoisonError::into_inner).0
    }

    /// What was let through for `cost` did not start, or has ended.
    pub(crate) fn leave(&self, cost: Nanos) {
        self.in_flight.fetch_sub(ONE + cost.0, Ordering::SeqCst);
        self.ended.fetch_add(1, Ordering::Relaxed);
        drop(self.lock());
        self.changed.notify_all();
    }

    /// `launches` launches, let through together for `cost`, have ended and occupied the GPU for `used`.
    pub(crate) fn settle(&self, launches: u64, cost: Nanos, used: Nanos, now: Nanos) {
        let mut right = self.lock();
        right.charge(used, launches, now);
        if self.is_local() {
            self.local.store(right.word(0), Ordering::Release);
        }
        drop(right);
        self.leave(cost);
    }

    /// Gives the right back if nothing is in flight and it was taken back or has been idle; else says when to look again.
    pub(crate) fn give_back(&self, outside: &impl Outside) -> Option<Nanos> {
        let mut right = self.lock();
        if self.is_busy() {
            return None;
        }
        let (now, page) = (outside.now(), self.word());
        match right.is_due(page, now) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(then) => return Some(then),
        }
        self.accepted.store(0, Ordering::SeqCst);
        if self.is_busy() {
            // A launch is just passing or asking. Either way it is heard of again: at its end, or under the lock.
            self.accepted.store(right.held(), Ordering::SeqCst);
            return Some(now + right::LINGER);
        }
        send_all(&right.give_back(page, now), outside);
        if self.is_local() {
            self.local.store(right.word(0), Ordering::Release);
        }
        drop(right);
        self.changed.notify_all();
        None
    }

    /// The process ends: gives the right back though it may just have been used, unless something is in flight.
    pub(crate) fn give_back_for_good(&self, outside: &impl Outside) {
        let mut right = self.lock();
        self.accepted.store(0, Ordering::SeqCst);
        if right.held() != 0 && !self.is_busy() {
            send_all(&right.give_back(self.word(), outside.now()), outside);
        }
    }

    /// The agent is gone: this process keeps itself to `floor`.
    pub(crate) fn detach(&self, floor: Quota, window: Nanos, now: Nanos) {
        let mut right = self.lock();
        self.accepted.store(0, Ordering::SeqCst);
        right.detach(floor, window, now);
        self.local.store(right.word(0), Ordering::Release);
        self.word.store(ptr::from_ref(&self.local).cast_mut(), Ordering::Release);
        drop(right);
        self.changed.notify_all();
    }

    /// The agent is back and shows the right in `word`.
    pub(crate) fn attach(&self, word: &'static AtomicU32) {
        let mut right = self.lock();
        self.accepted.store(0, Ordering::SeqCst);
        right.attach(word.load(Ordering::Acquire));
        self.word.store(ptr::from_ref(word).cast_mut(), Ordering::Release);
        drop(right);
        self.changed.notify_all();
    }

    /// Whether a thread waits to launch.
    pub(crate) fn is_awaited(&self) -> bool {
        self.lock().waiting > 0
    }

    fn is_local(&self) -> bool {
        ptr::eq(self.word.load(Ordering::Acquire), &raw const self.local)
    }

    /// Whether the right under which launches pass was taken back.
    pub(crate) fn is_revoked(&self) -> bool {
        let accepted = self.accepted.load(Ordering::SeqCst);
        accepted != 0 && accepted != self.word()
    }

    /// Whether anything is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) >= ONE
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Right> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_all(messages: &[FromContainer], outside: &impl Outside) {
    for message in messages {
        outside.send(message);
    }
}

#[cfg(test)]
mod tests;
