//! The book of the card's memory. It counts; it stores nothing.

use std::collections::BTreeMap;

use gpu_share::units::Bytes;

use super::ClientId;

/// Why an amount of memory can't be taken or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The card is full.
    #[error("{asked} asked for, {free} free")]
    OutOfMemory {
        /// What was asked for.
        asked: Bytes,
        /// What is left.
        free: Bytes,
    },
    /// More was given back than is held.
    #[error("{given} given back, {held} held")]
    NotHeld {
        /// What was given back.
        given: Bytes,
        /// What the client holds.
        held: Bytes,
    },
}

#[derive(Debug)]
pub(super) struct Memory {
    total: Bytes,
    used: Bytes,
    held: BTreeMap<ClientId, Bytes>,
}

impl Memory {
    pub(super) fn new(total: Bytes) -> Self {
        Self { total, used: Bytes::ZERO, held: BTreeMap::new() }
    }

    pub(super) fn total(&self) -> Bytes {
        self.total
    }

    pub(super) fn free_bytes(&self) -> Bytes {
        self.total.saturating_sub(self.used)
    }

    pub(super) fn held(&self, client: ClientId) -> Bytes {
        self.held.get(&client).copied().unwrap_or_default()
    }

    pub(super) fn allocate(&mut self, client: ClientId, bytes: Bytes) -> Result<(), MemoryError> {
        let free = self.free_bytes();
        if bytes > free {
            return Err(MemoryError::OutOfMemory { asked: bytes, free });
        }
        self.used += bytes;
        *self.held.entry(client).or_default() += bytes;
        Ok(())
    }

    pub(super) fn free(&mut self, client: ClientId, bytes: Bytes) -> Result<(), MemoryError> {
        let held = self.held(client);
        if bytes > held {
            return Err(MemoryError::NotHeld { given: bytes, held });
        }
        self.held.insert(client, held.saturating_sub(bytes));
        self.used = self.used.saturating_sub(bytes);
        Ok(())
    }

    pub(super) fn release(&mut self, client: ClientId) {
        if let Some(held) = self.held.remove(&client) {
            self.used = self.used.saturating_sub(held);
        }
    }
}
