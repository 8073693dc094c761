//! Which waiting request is next: the one whose deadline is the earliest, and of those the one that came first.
//! Pure: it is told what time it is, and hands out nothing itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What waits for a slot, in a bounded number.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    capacity: usize,
    next: u64,
    waiting: BTreeMap<Ticket, Waiting<T>>,
}

/// The place of one that waits. The order of tickets is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    deadline: Instant,
    number: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    item: T,
}

impl<T> Queue<T> {
    /// An empty queue for at most `capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, next: 0, waiting: BTreeMap::new() }
    }

    /// Whether nothing more can wait.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= self.capacity
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How long the one that came first has waited; zero if none waits.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        let first = self.waiting.values().map(|waiting| waiting.since).min();
        first.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// `item` waits from `now` on, until `deadline`. `None`: there is no room.
    pub(crate) fn push(&mut self, item: T, deadline: Instant, now: Instant) -> Option<Ticket> {
        if self.is_full() {
            return None;
        }
        let ticket = Ticket { deadline, number: self.next };
        self.next += 1;
        self.waiting.insert(ticket, Waiting { since: now, item });
        Some(ticket)
    }

    /// Takes out the next one whose deadline is still to come. Those whose deadline has passed are forgotten.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<T> {
        loop {
            let (ticket, waiting) = self.waiting.pop_first()?;
            if ticket.deadline > now {
                return Some(waiting.item);
            }
        }
    }

    /// Takes one out that no longer wants to wait, if it is still there.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.waiting.remove(&ticket).map(|waiting| waiting.item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What can happen to a queue; times in ms.
    #[derive(Clone, Debug)]
    enum Event {
        Push { patience: u64 },
        Pop,
        Remove { which: usize },
        Pass { millis: u64 },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_u64..50).prop_map(|patience| Event::Push { patience }),
            Just(Event::Pop),
            any::<usize>().prop_map(|which| Event::Remove { which }),
            (0_u64..20).prop_map(|millis| Event::Pass { millis }),
        ]
    }

    proptest! {
        /// Against a list that is searched: the same order, the same bound, nobody lost and nobody served twice.
        #[test]
        fn the_earliest_deadline_is_next_and_nobody_is_lost(
            capacity in 0_usize..8,
            events in prop::collection::vec(event(), 0..200),
        ) {
            let mut queue = Queue::new(capacity);
            let mut now = Instant::now();
            // (deadline, number, since, ticket)
            let mut model: Vec<(Instant, u64, Instant, Ticket)> = Vec::new();
            for (number, event) in (0_u64..).zip(events) {
                match event {
                    Event::Push { patience } => {
                        let deadline = now + Duration::from_millis(patience);
                        let ticket = queue.push(number, deadline, now);
                        prop_assert_eq!(ticket.is_some(), model.len() < capacity);
                        model.extend(ticket.map(|ticket| (deadline, number, now, ticket)));
                    }
                    Event::Pop => {
                        let wanted = model.iter().filter(|entry| entry.0 > now).min().copied();
                        prop_assert_eq!(queue.pop(now), wanted.map(|entry| entry.1));
                        model.retain(|entry| entry.0 > now && Some(entry.1) != wanted.map(|entry| entry.1));
                    }
                    Event::Remove { which } => {
                        if let Some(at) = which.checked_rem(model.len()) {
                            let (_, number, _, ticket) = model.remove(at);
                            prop_assert_eq!(queue.remove(ticket), Some(number));
                            prop_assert_eq!(queue.remove(ticket), None);
                        }
                    }
                    Event::Pass { millis } => now += Duration::from_millis(millis),
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_full(), model.len() >= capacity);
                let age = model.iter().map(|entry| now - entry.2).max().unwrap_or_default();
                prop_assert_eq!(queue.age(now), age);
            }
        }
    }
}
