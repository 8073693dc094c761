//! What happens when: the queue of events.
//!
//! A heap of four children to a node: half as deep as a binary one, and the children of a node lie in one or two lines
//! of the processor's cache. Events at the same time come out in the order in which they were put in, or a run would
//! depend on the heap's shape.

use gpu_share::units::Nanos;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request of this function arrives.
    Arrival(u32),
    /// This request has done what it does before its GPU work.
    Prepared(u32),
    /// What this replica has on the GPU ends, if it is still the work that it had then.
    Done {
        /// The replica.
        replica: u32,
        /// Number of the work.
        version: u32,
    },
    /// This replica has waited long enough for its batch to fill.
    Filled {
        /// The replica.
        replica: u32,
        /// Number of the work that it had before.
        version: u32,
    },
    /// This replica is ready, if it is still the one that was started then.
    Ready {
        /// The replica.
        replica: u32,
        /// Its generation.
        generation: u32,
    },
    /// This replica fails, if it is still the one that was started then.
    Failure {
        /// The replica.
        replica: u32,
        /// Its generation.
        generation: u32,
    },
    /// The oldest decisions that are on their way arrive.
    Decided,
    /// The policy looks.
    Tick,
    /// GPUs of this node are lost.
    Lost(u32),
    /// They are back.
    Repaired(u32),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    /// Rises with each event; compared as a distance, so that it may run over.
    order: u32,
    event: Event,
}

impl Entry {
    fn before(&self, other: &Self) -> bool {
        (self.at, self.order) < (other.at, other.order)
    }
}

/// Events by time.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    heap: Vec<Entry>,
    order: u32,
}

/// Children of a node of the heap.
const CHILDREN: usize = 4;

impl Queue {
    /// Puts in an event.
    pub fn push(&mut self, at: Nanos, event: Event) {
        if self.order == u32::MAX {
            self.renumber();
        }
        let entry = Entry { at: at.0, order: self.order, event };
        self.order += 1;
        self.heap.push(entry);
        self.rise(self.heap.len() - 1, entry);
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(Nanos, Event)> {
        let last = self.heap.pop()?;
        let Some(&first) = self.heap.first() else { return Some((Nanos(last.at), last.event)) };
        self.sink(last);
        Some((Nanos(first.at), first.event))
    }

    /// The next event and its time, if it is not after `until`.
    pub fn pop_until(&mut self, until: Nanos) -> Option<(Nanos, Event)> {
        if self.heap.first()?.at > until.0 { None } else { self.pop() }
    }

    /// Events that are to come.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is to come.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    fn rise(&mut self, mut place: usize, entry: Entry) {
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            if !entry.before(&self.heap[parent]) {
                break;
            }
            self.heap[place] = self.heap[parent];
            place = parent;
        }
        self.heap[place] = entry;
    }

    /// Puts `entry` where the first one was taken away.
    fn sink(&mut self, entry: Entry) {
        let mut place = 0;
        loop {
            let start = place * CHILDREN + 1;
            let end = (start + CHILDREN).min(self.heap.len());
            if start >= end {
                break;
            }
            let mut least = start;
            for child in start + 1..end {
                if self.heap[child].before(&self.heap[least]) {
                    least = child;
                }
            }
            if !self.heap[least].before(&entry) {
                break;
            }
            self.heap[place] = self.heap[least];
            place = least;
        }
        self.heap[place] = entry;
    }

    /// Counts the events anew, in their order; after four thousand million of them.
    fn renumber(&mut self) {
        self.heap.sort_unstable_by_key(|entry| (entry.at, entry.order));
        self.order = 0;
        for entry in &mut self.heap {
            entry.order = self.order;
            self.order += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_run_out_are_given_anew_and_the_order_stays() {
        let mut queue = Queue { order: u32::MAX - 2, ..Queue::default() };
        for function in 0..6 {
            queue.push(Nanos(5), Event::Arrival(function));
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, event)| event).collect();
        assert_eq!(order, (0..6).map(Event::Arrival).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn events_come_by_time_and_then_in_the_order_in_which_they_were_put_in(
            times in proptest::collection::vec((0u64..50, any::<bool>()), 0..200)
        ) {
            let mut queue = Queue::default();
            let mut model: Vec<(u64, u32)> = Vec::new();
            for (number, (at, pops)) in (0..).zip(times) {
                queue.push(Nanos(at), Event::Arrival(number));
                model.push((at, number));
                if pops {
                    model.sort_unstable();
                    let (at, number) = model.remove(0);
                    prop_assert_eq!(queue.pop(), Some((Nanos(at), Event::Arrival(number))));
                }
                prop_assert_eq!(queue.len(), model.len());
            }
            model.sort_unstable();
            for (at, number) in model {
                prop_assert_eq!(queue.pop(), Some((Nanos(at), Event::Arrival(number))));
            }
            prop_assert!(queue.is_empty());
        }
    }
}
