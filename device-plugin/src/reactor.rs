//! What the owner's thread waits for: messages of other threads, lines of processes, and a deadline.
//!
//! Owns the descriptors to wait on. What has arrived is read by the owner.

use core::mem::MaybeUninit;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, SendError, SyncSender};

use gpu_share::units::Nanos;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Messages that may wait for the owner: enough that nobody blocks in vain, few enough that a flood of one container
/// does not delay the others.
const WAITING: usize = 64;
/// Arrivals that are told at once; the others are told the next time.
const AT_ONCE: usize = 64;
/// Names of the reactor's own descriptors; others have the numbers below.
const MAIL: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Messages to the owner.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    queue: SyncSender<T>,
    bell: Arc<OwnedFd>,
}

impl<T> Sender<T> {
    /// Sends `message`, waiting while too many wait; an error once the owner is gone.
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.queue.send(message)?;
        // It can't be full: the counter is reset for each few messages.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// Something has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Messages, for [`Reactor::message`].
    Mail,
    /// Bytes, or the end, on the descriptor that was added with this number.
    Bytes(u64),
}

/// Waits with one `epoll` for everything. The deadline is a timer of its own, since `epoll` before Linux 5.11 knows
/// milliseconds only.
#[derive(Debug)]
pub(crate) struct Reactor<T> {
    epoll: OwnedFd,
    timer: OwnedFd,
    bell: Arc<OwnedFd>,
    queue: mpsc::Receiver<T>,
}

impl<T> Reactor<T> {
    /// A reactor, and how to send to it.
    pub(crate) fn new() -> io::Result<(Self, Sender<T>)> {
        let (sender, queue) = mpsc::sync_channel(WAITING);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*bell, EventData::new_u64(MAIL), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let sender = Sender { queue: sender, bell: Arc::clone(&bell) };
        Ok((Self { epoll, timer, bell, queue }, sender))
    }

    /// From now on tells when `source` has bytes or has ended, as `number`, until it is closed.
    pub(crate) fn add(&self, source: impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(number), EventFlags::IN | EventFlags::RDHUP)?)
    }

    /// Waits until something arrives, at most for `most` if there is a deadline; what has arrived.
    pub(crate) fn wait(&mut self, most: Option<Nanos>) -> io::Result<Vec<Arrival>> {
        // Zero stops the timer.
        let it_value = most.map(|most| {
            Timespec::try_from(std::time::Duration::from(most.max(Nanos(1))))
                .unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
        });
        let it_value = it_value.unwrap_or_default();
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        let mut events = [const { MaybeUninit::uninit() }; AT_ONCE];
        let events = match epoll::wait(&self.epoll, &mut events, None) {
            Ok((events, _)) => &*events,
            Err(Errno::INTR) => &[],
            Err(error) => return Err(error.into()),
        };
        let arrivals = events.iter().filter_map(|event| match event.data.u64() {
            TIMER => None,
            MAIL => Some(Arrival::Mail),
            number => Some(Arrival::Bytes(number)),
        });
        Ok(arrivals.collect())
    }

    /// The messages that wait, as many as there may be at a time.
    pub(crate) fn mail(&mut self) -> Vec<T> {
        let mut count = [0; 8];
        // Who rings from now on is heard the next time.
        let _ = rustix::io::read(&*self.bell, &mut count);
        let mail: Vec<_> = self.queue.try_iter().take(WAITING).collect();
        if mail.len() == WAITING {
            // More may wait, and those that sent it have rung already.
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
        mail
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    const LONG: Nanos = Nanos::from_secs(20);

    #[test]
    fn it_waits_for_the_deadline_and_no_longer() {
        let (mut reactor, _sender) = Reactor::<()>::new().unwrap();
        for most in [Nanos::ZERO, Nanos::from_micros(300), Nanos::from_millis(20)] {
            let start = Instant::now();
            assert_eq!(reactor.wait(Some(most)).unwrap(), []);
            let waited = start.elapsed();
            assert!(
                waited >= most.into() && waited < Duration::from_secs(2),
                "{waited:?} instead of {most:?}"
            );
        }
    }

    #[test]
    fn without_a_deadline_it_waits_for_a_message() {
        let (mut reactor, sender) = Reactor::new().unwrap();
        // The timer of a wait before is not one of this.
        assert_eq!(reactor.wait(Some(Nanos(1))).unwrap(), []);
        let waiting = thread::spawn(move || (reactor.wait(None).unwrap(), reactor.mail()));
        sender.send("news").unwrap();
        assert_eq!(waiting.join().unwrap(), (vec![Arrival::Mail], vec!["news"]));
    }

    #[test]
    fn every_message_of_a_flood_arrives_once_and_in_order() {
        let (mut reactor, sender) = Reactor::new().unwrap();
        let flood = thread::spawn(move || (0..1000).for_each(|number| sender.send(number).unwrap()));
        let mut heard = Vec::new();
        while heard.len() < 1000 {
            assert_eq!(reactor.wait(Some(LONG)).unwrap(), [Arrival::Mail]);
            heard.extend(reactor.mail());
        }
        flood.join().unwrap();
        assert!(heard.into_iter().eq(0..1000));
        reactor.mail();
        assert_eq!(reactor.wait(Some(Nanos::from_millis(1))).unwrap(), []);
    }

    #[test]
    fn bytes_and_ends_arrive_under_their_number_until_the_descriptor_is_closed() {
        let (mut reactor, _sender) = Reactor::<()>::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reactor.add(&ours, 7).unwrap();
        theirs.write_all(b"line\n").unwrap();
        // Until they are read.
        for _ in 0..2 {
            assert_eq!(reactor.wait(Some(LONG)).unwrap(), [Arrival::Bytes(7)]);
        }
        drop(theirs);
        assert_eq!(reactor.wait(Some(LONG)).unwrap(), [Arrival::Bytes(7)]);
        drop(ours);
        assert_eq!(reactor.wait(Some(Nanos::from_millis(1))).unwrap(), []);
    }
}
