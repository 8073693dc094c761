//! What one process holds of GPU memory, by what it will be given back with.
//!
//! Pure bookkeeping: it asks nobody. Whatever a program frees twice or frees without having it changes nothing.

use std::collections::{BTreeMap, HashMap};

use gpu_share::units::Bytes;

/// What memory is given back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// An address.
    Pointer(u64),
    /// An array.
    Array(usize),
    /// One with mipmaps.
    Mipmapped(usize),
    /// A context, for what it takes by itself.
    Context(usize),
}

/// What one key gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) bytes: Bytes,
    /// The context with which it ends, 0 if none is known.
    pub(crate) context: usize,
}

/// Memory that a handle stands for: it lives while it is referred to or mapped.
#[derive(Debug)]
struct Physical {
    bytes: Bytes,
    references: u32,
    mappings: u32,
}

/// Everything that one process holds.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    by_key: HashMap<Key, Holding>,
    physical: HashMap<u64, Physical>,
    /// Address and length of each mapping, and the handle that is mapped there.
    mapped: BTreeMap<u64, (u64, u64)>,
    /// Handles that the driver gave out for memory which has another one.
    aliases: HashMap<u64, u64>,
}

impl Holdings {
    /// `holding` will be given back with `key`. Says what was known under it before, which can only have been lost.
    pub(crate) fn insert(&mut self, key: Key, holding: Holding) -> Option<Bytes> {
        self.by_key.insert(key, holding).map(|lost| lost.bytes)
    }

    /// What `key` gives back.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Holding> {
        self.by_key.remove(&key)
    }

    /// Whether anything is given back with `key`.
    pub(crate) fn contains(&self, key: Key) -> bool {
        self.by_key.contains_key(&key)
    }

    /// The context is gone, and all that was taken in it; says what is free now. What a handle stands for stays.
    pub(crate) fn end_context(&mut self, context: usize) -> Bytes {
        let ends =
            |key: &Key, holding: &mut Holding| holding.context == context || *key == Key::Context(context);
        self.by_key.extract_if(|key, holding| ends(key, holding)).map(|(_, holding)| holding.bytes).sum()
    }

    /// With what is given back that was taken in `context`, itself not among it.
    pub(crate) fn taken_in(&self, context: usize) -> Vec<Key> {
        self.by_key.iter().filter(|(_, holding)| holding.context == context).map(|(key, _)| *key).collect()
    }

    /// What was taken in `context`, and by it, ends with the context `to` from now on.
    pub(crate) fn hand_over(&mut self, context: usize, to: usize) {
        for (key, holding) in &mut self.by_key {
            if holding.context == context || *key == Key::Context(context) {
                holding.context = to;
            }
        }
    }

    /// A new handle stands for `bytes`.
    pub(crate) fn create(&mut self, handle: u64, bytes: Bytes) {
        self.physical.insert(handle, Physical { bytes, references: 1, mappings: 0 });
    }

    /// The driver handed out `handle` for what is mapped at `address`.
    pub(crate) fn retain(&mut self, handle: u64, address: u64) {
        let mapping = self.mapped.range(..=address).next_back();
        let known =
            mapping.filter(|(from, (length, _))| address - **from < *length).map(|(_, (_, known))| *known);
        let Some(known) = known else { return };
        if known != handle && !self.physical.contains_key(&handle) {
            self.aliases.insert(handle, known);
        }
        self.refer(known);
    }

    fn refer(&mut self, handle: u64) {
        if let Some(physical) = self.physical.get_mut(&handle) {
            physical.references = physical.references.saturating_add(1);
        }
    }

    /// The handle was given back once; says what is free now.
    pub(crate) fn release(&mut self, handle: u64) -> Option<Bytes> {
        let handle = self.aliases.get(&handle).copied().unwrap_or(handle);
        self.change(handle, |physical| physical.references = physical.references.saturating_sub(1))
    }

    /// `length` bytes of the handle's memory are mapped at `address`.
    pub(crate) fn map(&mut self, address: u64, length: u64, handle: u64) {
        let handle = self.aliases.get(&handle).copied().unwrap_or(handle);
        if let Some(physical) = self.physical.get_mut(&handle) {
            physical.mappings = physical.mappings.saturating_add(1);
            self.mapped.insert(address, (length, handle));
        }
    }

    /// All mappings in `length` bytes from `address` are gone; says what is free now.
    pub(crate) fn unmap(&mut self, address: u64, length: u64) -> Bytes {
        let range = address..address.saturating_add(length);
        let gone =
            self.mapped.range(range).map(|(address, (_, handle))| (*address, *handle)).collect::<Vec<_>>();
        gone.into_iter()
            .filter_map(|(address, handle)| {
                self.mapped.remove(&address);
                self.change(handle, |physical| physical.mappings = physical.mappings.saturating_sub(1))
            })
            .sum()
    }

    fn change(&mut self, handle: u64, change: impl FnOnce(&mut Physical)) -> Option<Bytes> {
        let physical = self.physical.get_mut(&handle)?;
        change(physical);
        if physical.references > 0 || physical.mappings > 0 {
            return None;
        }
        self.aliases.retain(|_, known| *known != handle);
        self.physical.remove(&handle).map(|physical| physical.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_gives_back_what_it_took_once() {
        let mut holdings = Holdings::default();
        let holding = Holding { bytes: Bytes(100), context: 0 };
        holdings.insert(Key::Pointer(512), holding);
        assert_eq!(holdings.remove(Key::Array(512)), None);
        assert_eq!(holdings.remove(Key::Pointer(512)), Some(holding));
        assert_eq!(holdings.remove(Key::Pointer(512)), None);
    }

    #[test]
    fn a_released_handle_keeps_its_memory_while_it_is_mapped() {
        let mut holdings = Holdings::default();
        holdings.create(7, Bytes::mib(2));
        holdings.map(0x1000, 0x1000, 7);
        holdings.map(0x9000, 0x1000, 7);
        assert_eq!(holdings.release(7), None);
        assert_eq!(holdings.unmap(0x1000, 0x1000), Bytes::ZERO);
        assert_eq!(holdings.unmap(0x0, 0x10000), Bytes::mib(2));
        assert_eq!(holdings.release(7), None);
    }

    #[test]
    fn a_retained_handle_is_released_as_often() {
        let mut holdings = Holdings::default();
        holdings.create(7, Bytes(1));
        holdings.map(0x1000, 0x1000, 7);
        holdings.retain(7, 0x1800);
        holdings.retain(7, 0x2000);
        assert_eq!(holdings.unmap(0x1000, 0x1000), Bytes::ZERO);
        assert_eq!(holdings.release(7), None);
        assert_eq!(holdings.release(7), Some(Bytes(1)));
    }

    #[test]
    fn a_handle_that_the_driver_names_anew_is_the_same_memory() {
        let mut holdings = Holdings::default();
        holdings.create(7, Bytes(1));
        holdings.map(0x1000, 0x1000, 7);
        holdings.retain(9, 0x1000);
        assert_eq!(holdings.release(7), None);
        assert_eq!(holdings.unmap(0x1000, 0x1000), Bytes::ZERO);
        assert_eq!(holdings.release(9), Some(Bytes(1)));
        assert_eq!(holdings.release(9), None);
    }

    #[test]
    fn what_was_taken_in_a_context_ends_with_it() {
        let mut holdings = Holdings::default();
        let holding = |bytes, context| Holding { bytes: Bytes(bytes), context };
        holdings.insert(Key::Pointer(512), holding(1, 5));
        holdings.insert(Key::Array(512), holding(2, 5));
        holdings.insert(Key::Pointer(1024), holding(4, 6));
        holdings.insert(Key::Context(5), holding(8, 0));
        holdings.create(7, Bytes(16));
        assert_eq!(holdings.end_context(5), Bytes(11));
        assert_eq!(holdings.end_context(5), Bytes::ZERO);
        assert!(holdings.contains(Key::Pointer(1024)));
    }

    #[test]
    fn what_is_handed_over_ends_with_the_other_context() {
        let mut holdings = Holdings::default();
        let holding = |bytes, context| Holding { bytes: Bytes(bytes), context };
        holdings.insert(Key::Pointer(512), holding(1, 5));
        holdings.insert(Key::Context(5), holding(2, 0));
        holdings.insert(Key::Pointer(1024), holding(4, 6));
        assert_eq!(holdings.taken_in(5), [Key::Pointer(512)]);
        holdings.hand_over(5, 7);
        assert!(holdings.taken_in(5).is_empty());
        assert_eq!([holdings.end_context(7), holdings.end_context(6)], [Bytes(3), Bytes(4)]);
    }

    proptest::proptest! {
        #[test]
        fn never_more_is_given_back_than_was_taken(
            steps in proptest::collection::vec((0u8..6, 0u64..4, 0u64..6, 1u64..9), 0..200),
        ) {
            let mut holdings = Holdings::default();
            let (mut taken, mut given) = (0, 0);
            for (step, handle, address, bytes) in steps {
                match step {
                    0 if !holdings.physical.contains_key(&handle) => {
                        holdings.create(handle, Bytes(bytes));
                        taken += bytes;
                    }
                    1 => holdings.retain(handle, address),
                    2 => given += holdings.release(handle).unwrap_or_default().0,
                    3 if !holdings.mapped.contains_key(&address) => holdings.map(address, 1, handle),
                    4 => given += holdings.unmap(address, bytes).0,
                    _ => {}
                }
                proptest::prop_assert!(given <= taken, "{given} of {taken}");
            }
        }
    }
}
