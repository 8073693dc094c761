//! The memory that a kernel sees: that of the device behind a trait, and its own.

use super::block::Fault;
use super::types::{Space, Type};

/// Memory of the device, by its addresses.
pub trait Memory {
    /// The little-endian value of `size` bytes (1, 2, 4 or 8) at `address`; none if a kernel may not read there.
    fn load(&mut self, address: u64, size: usize) -> Option<u64>;
    /// Writes the low `size` bytes of `value` to `address`; none if a kernel may not write there.
    fn store(&mut self, address: u64, size: usize, value: u64) -> Option<()>;
}

/// The top byte of a generic address tells the space. Addresses of memory have zero there.
const TAG: u32 = 56;
const SHARED: u64 = 1;
const LOCAL: u64 = 2;
const PARAM: u64 = 3;

/// Addresses within a space that only the kernel sees are offsets of 32 bits.
const OFFSET: u64 = 0xffff_ffff;

fn tag(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        Space::Generic | Space::Global => 0,
    }
}

/// An address of a space as a generic one.
pub(super) fn to_generic(space: Space, address: u64) -> u64 {
    match tag(space) {
        0 => address,
        tag => tag << TAG | address & OFFSET,
    }
}

/// The reverse.
pub(super) fn from_generic(space: Space, address: u64) -> u64 {
    if tag(space) == 0 { address } else { address & OFFSET }
}

/// Whether a generic address lies in a space.
pub(super) fn is_in(space: Space, address: u64) -> bool {
    address >> TAG == tag(space)
}

/// All memory of one block.
#[derive(Debug)]
pub(super) struct Spaces<'a, M> {
    pub(super) memory: &'a mut M,
    pub(super) shared: Vec<u8>,
    pub(super) parameters: &'a [u8],
}

/// An address with the space that it really lies in.
fn locate(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic => match address >> TAG {
            SHARED => (Space::Shared, address & OFFSET),
            LOCAL => (Space::Local, address & OFFSET),
            PARAM => (Space::Param, address & OFFSET),
            _ => (Space::Global, address),
        },
        Space::Global => (space, address),
        _ => (space, address & OFFSET),
    }
}

impl<M: Memory> Spaces<'_, M> {
    /// A value, with its sign if its type has one.
    pub(super) fn load(
        &mut self,
        local: &[u8],
        space: Space,
        address: u64,
        kind: Type,
    ) -> Result<u64, Fault> {
        let size = kind.size();
        let (space, place) = aligned(space, address, size)?;
        let value = match space {
            Space::Shared => read(&self.shared, place, size),
            Space::Local => read(local, place, size),
            Space::Param => read(self.parameters, place, size),
            Space::Global | Space::Generic => self.memory.load(place, size),
        };
        let value = value.ok_or(Fault::IllegalAddress { address })?;
        Ok(if kind.is_signed() { extend(value, size) } else { value })
    }

    pub(super) fn store(
        &mut self,
        local: &mut [u8],
        space: Space,
        address: u64,
        size: usize,
        value: u64,
    ) -> Result<(), Fault> {
        let (space, place) = aligned(space, address, size)?;
        let stored = match space {
            Space::Shared => write(&mut self.shared, place, size, value),
            Space::Local => write(local, place, size, value),
            // Parameters of a kernel can't be written.
            Space::Param => None,
            Space::Global | Space::Generic => self.memory.store(place, size, value),
        };
        stored.ok_or(Fault::IllegalAddress { address })
    }
}

fn aligned(space: Space, address: u64, size: usize) -> Result<(Space, u64), Fault> {
    if address.is_multiple_of(size as u64) {
        Ok(locate(space, address))
    } else {
        Err(Fault::Misaligned { address })
    }
}

fn read(bytes: &[u8], place: u64, size: usize) -> Option<u64> {
    let place = usize::try_from(place).ok()?;
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes.get(place..place.checked_add(size)?)?);
    Some(u64::from_le_bytes(value))
}

fn write(bytes: &mut [u8], place: u64, size: usize, value: u64) -> Option<()> {
    let place = usize::try_from(place).ok()?;
    bytes.get_mut(place..place.checked_add(size)?)?.copy_from_slice(&value.to_le_bytes()[..size]);
    Some(())
}

fn extend(value: u64, size: usize) -> u64 {
    let unused = 64 - size * 8;
    (value.cast_signed() << unused >> unused).cast_unsigned()
}
