//! What happens when: the queue of events.
//!
//! A heap of four children to a node: half as deep as a binary one, and the children of a node lie in one or two lines
//! of the processor's cache. What happens mostly brings about something else, so the place of an event that was taken out
//! is left open for the next that is put in: one way down the heap, where closing it first would be one down and one up.
//! Events at the same time come out in the order in which they were put in, or a run would depend on the heap's shape.

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
    /// As one number, so that the comparison, which is as often true as not, is no branch.
    fn key(&self) -> u128 {
        u128::from(self.at) << u64::BITS | u128::from(self.order)
    }

    fn before(&self, other: &Self) -> bool {
        self.key() < other.key()
    }
}

/// Events by time.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    heap: Vec<Entry>,
    /// The first of the heap has been taken out.
    is_open: bool,
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
        if core::mem::take(&mut self.is_open) {
            self.sink(entry);
        } else {
            self.heap.push(entry);
            self.rise(self.heap.len() - 1, entry);
        }
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(Nanos, Event)> {
        self.pop_until(Nanos(u64::MAX))
    }

    /// The next event and its time, if it is not after `until`.
    pub fn pop_until(&mut self, until: Nanos) -> Option<(Nanos, Event)> {
        self.close();
        let first = self.heap.first().filter(|first| first.at <= until.0)?;
        self.is_open = true;
        Some((Nanos(first.at), first.event))
    }

    /// Events that are to come.
    pub fn len(&self) -> usize {
        self.heap.len() - usize::from(self.is_open)
    }

    /// Whether none is to come.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the last entry where the first one was taken out.
    fn close(&mut self) {
        if core::mem::take(&mut self.is_open)
            && let Some(last) = self.heap.pop()
            && !self.heap.is_empty()
        {
            self.sink(last);
        }
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

    /// Puts `entry` where the first one was taken out.
    fn sink(&mut self, entry: Entry) {
        let mut place = 0;
        while let Some((key, least)) = self.least_child(place)
            && key < entry.key()
        {
            self.heap[place] = self.heap[least];
            place = least;
        }
        self.heap[place] = entry;
    }

    /// Key and place of the first of the children of `place`.
    fn least_child(&self, place: usize) -> Option<(u128, usize)> {
        let start = place * CHILDREN + 1;
        let children = self.heap.get(start..)?;
        let Some([a, b, c, d]) = children.first_chunk::<CHILDREN>() else {
            let children = children.iter().zip(start..);
            return children.map(|(child, place)| (child.key(), place)).min();
        };
        let first = |left: (u128, usize), right: (u128, usize)| if right.0 < left.0 { right } else { left };
        let left = first((a.key(), start), (b.key(), start + 1));
        Some(first(left, first((c.key(), start + 2), (d.key(), start + 3))))
    }

    /// Counts the events anew, in their order; after four thousand million of them.
    fn renumber(&mut self) {
        self.close();
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
