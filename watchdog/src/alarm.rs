//! Timers that are used again: whoever is done in time leaves a timer that is still registered, and the next one only
//! moves it, which takes no lock. It sets no deadline by itself.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep as HyperSleep, Timer};
use tokio::time::{Instant, Sleep, sleep_until};

/// The most timers that a thread keeps.
const MOST_SPARE: usize = 256;

thread_local! {
    /// Timers of this thread's runtime that nobody waits for; `None` where the thread has no runtime of its own.
    static SPARE: RefCell<Option<Vec<Pin<Box<Sleep>>>>> = const { RefCell::new(None) };
}

/// From now on this thread keeps timers. It must have one runtime until it ends.
pub(crate) fn keep_spare() {
    SPARE.with_borrow_mut(|spare| {
        spare.get_or_insert_default();
    });
}

/// Ends at an instant.
#[derive(Debug)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ends at `deadline`. Inside a runtime only.
    pub(crate) fn at(deadline: Instant) -> Self {
        let spare = SPARE.with_borrow_mut(|spare| spare.as_mut().and_then(Vec::pop));
        let Some(mut timer) = spare else { return Self(Some(Box::pin(sleep_until(deadline)))) };
        timer.as_mut().reset(deadline);
        Self(Some(timer))
    }

    /// Ends at `deadline` instead.
    pub(crate) fn reset(&mut self, deadline: Instant) {
        if let Some(timer) = &mut self.0 {
            timer.as_mut().reset(deadline);
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Ready(()), |timer| timer.as_mut().poll(cx))
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Some(timer) = self.0.take().filter(|timer| !timer.is_elapsed()) else { return };
        // A thread that ends has nothing to keep.
        let _ = SPARE.try_with(|spare| {
            if let Some(spare) = spare.borrow_mut().as_mut().filter(|spare| spare.len() < MOST_SPARE) {
                spare.push(timer);
            }
        });
    }
}

/// [`Alarm`]s for hyper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alarms;

impl Timer for Alarms {
    fn sleep(&self, span: Duration) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Alarm::at(Instant::now() + span))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Alarm::at(deadline.into()))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn HyperSleep>>, deadline: std::time::Instant) {
        match sleep.as_mut().downcast_mut_pin::<Alarm>() {
            Some(mut alarm) => alarm.reset(deadline.into()),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

impl HyperSleep for Alarm {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_that_is_used_again_ends_at_its_new_deadline_and_not_before() {
        keep_spare();
        let start = Instant::now();
        let mut early = Alarm::at(start + Duration::from_millis(5));
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut early).poll(cx).is_pending())).await;
        drop(early);
        let late = start + Duration::from_millis(60);
        Alarm::at(late).await;
        assert!(Instant::now() >= late);
        drop(Alarm::at(start + Duration::from_secs(1000)));
        Alarm::at(Instant::now() + Duration::from_millis(5)).await;
        assert!(start.elapsed() < Duration::from_secs(100));
        SPARE.take();
    }
}
