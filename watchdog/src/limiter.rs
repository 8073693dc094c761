//! The bound on concurrent requests, `max_inflight`, and the queue in front of it, `max_queue`. Which of those that
//! wait is next is decided in `queue`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::queue::{Queue, Ticket};

/// Hands out as many slots as there may be requests at once.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: usize,
    has_queue: bool,
    /// Never locked without a limit.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken: usize,
    queue: Queue<oneshot::Sender<Slot>>,
}

/// The right to be one of the concurrent requests. Given back when dropped: to whoever is next in the queue.
#[derive(Debug)]
pub(crate) struct Slot(Option<Arc<Limiter>>);

/// The queue as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Requests that wait.
    pub(crate) length: usize,
    /// How long the one that came first has waited.
    pub(crate) age: Duration,
}

impl Limiter {
    /// At most `limit` slots at once, 0 for any number; where none is left, up to `queue` requests wait.
    pub(crate) fn new(limit: usize, queue: usize) -> Arc<Self> {
        let state = Mutex::new(State { taken: 0, queue: Queue::new(queue) });
        Arc::new(Self { limit, has_queue: limit != 0 && queue != 0, state })
    }

    /// The most slots at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether requests may wait here.
    pub(crate) fn has_queue(&self) -> bool {
        self.has_queue
    }

    /// Whether a request that came now would be refused.
    pub(crate) fn is_full(&self) -> bool {
        if self.limit == 0 {
            return false;
        }
        let state = self.lock();
        state.taken >= self.limit && state.queue.is_full()
    }

    /// How many wait, and for how long.
    pub(crate) fn backlog(&self) -> Backlog {
        let state = self.lock();
        Backlog { length: state.queue.len(), age: state.queue.age(Instant::now()) }
    }

    /// A slot as soon as one is left and it is this request's turn; `None` if the queue is full or `deadline` passes.
    pub(crate) async fn take(self: &Arc<Self>, deadline: Instant) -> Option<Slot> {
        if self.limit == 0 {
            return Some(Slot(None));
        }
        let (slot, place) = {
            let mut state = self.lock();
            if state.taken < self.limit {
                state.taken += 1;
                return Some(Slot(Some(Arc::clone(self))));
            }
            let (sender, slot) = oneshot::channel();
            let ticket = state.queue.push(sender, deadline, Instant::now())?;
            (slot, Place { limiter: Arc::clone(self), ticket })
        };
        let slot = timeout_at(deadline.into(), slot).await;
        drop(place);
        // One that came just when the deadline passed was dropped with its receiver, and went on to the next.
        slot.ok()?.ok()
    }

    /// A slot has become free.
    fn give_back(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.queue.pop(Instant::now());
                if next.is_none() {
                    state.taken -= 1;
                    return;
                }
                next
            };
            let slot = Slot(Some(Arc::clone(self)));
            match next.map(|sender| sender.send(slot)) {
                // It no longer waits; the slot must not come back to here through its drop.
                Some(Err(mut slot)) => drop(slot.0.take()),
                _ => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single number or a single entry.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, which is given up when dropped.
struct Place {
    limiter: Arc<Limiter>,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiting = self.limiter.lock().queue.remove(self.ticket);
        // Outside the lock.
        drop(waiting);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(limiter) = self.0.take() {
            limiter.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_slot_that_is_given_back_can_be_taken_again() {
        let limiter = Limiter::new(2, 0);
        let (first, second) = (limiter.take(soon()).await.unwrap(), limiter.take(soon()).await.unwrap());
        assert!(limiter.is_full() && limiter.take(soon()).await.is_none());
        drop(first);
        assert!(!limiter.is_full());
        let third = limiter.take(soon()).await;
        assert!(third.is_some() && limiter.take(soon()).await.is_none());
        drop((second, third));
        assert!(!limiter.is_full());
    }

    #[tokio::test]
    async fn a_limit_of_zero_is_none() {
        let limiter = Limiter::new(0, 5);
        for _ in 0..1000 {
            std::mem::forget(limiter.take(soon()).await.unwrap());
        }
        assert!(!limiter.is_full() && !limiter.has_queue());
    }

    #[tokio::test]
    async fn a_slot_goes_to_the_earliest_deadline_and_then_to_the_next() {
        let limiter = Limiter::new(1, 2);
        let slot = limiter.take(soon()).await.unwrap();
        let now = Instant::now();
        let served = AtomicUsize::new(0);
        let wait = |seconds: u64| {
            let (limiter, served) = (&limiter, &served);
            async move {
                let slot = limiter.take(now + Duration::from_secs(seconds)).await.unwrap();
                let turn = served.fetch_add(1, Ordering::SeqCst);
                drop(slot);
                turn
            }
        };
        let end = async {
            while limiter.backlog().length < 2 {
                tokio::task::yield_now().await;
            }
            assert!(limiter.is_full() && limiter.take(soon()).await.is_none());
            drop(slot);
        };
        assert_eq!(tokio::join!(wait(60), wait(30), end), (1, 0, ()));
        assert_eq!(limiter.lock().taken, 0);
    }

    #[tokio::test]
    async fn one_that_stops_waiting_takes_nothing_with_it() {
        let limiter = Limiter::new(1, 2);
        let slot = limiter.take(soon()).await.unwrap();
        assert!(limiter.take(Instant::now() + Duration::from_millis(5)).await.is_none());
        let mut waiting = Box::pin(limiter.take(soon()));
        assert!(polled(&mut waiting).await.is_none());
        assert_eq!(limiter.backlog().length, 1);
        drop(waiting);
        assert_eq!(limiter.backlog(), Backlog { length: 0, age: Duration::ZERO });
        // A slot that was handed over and not picked up is free again.
        let mut waiting = Box::pin(limiter.take(soon()));
        assert!(polled(&mut waiting).await.is_none());
        drop(slot);
        assert_eq!(limiter.lock().taken, 1);
        drop(waiting);
        assert_eq!(limiter.lock().taken, 0);
    }

    /// The future's output if it is ready when polled once.
    async fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut future = std::pin::Pin::new(future);
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[test]
    fn threads_never_hold_more_slots_than_there_are() {
        let limiter = Limiter::new(3, 2);
        let held = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    for _ in 0..2_000 {
                        if let Some(_slot) = runtime.block_on(limiter.take(soon())) {
                            assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                            held.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(limiter.lock().taken, 0);
        assert_eq!(limiter.backlog().length, 0);
    }
}
