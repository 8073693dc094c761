//! Values in memory that a stream writes or waits for.

use std::sync::Arc;

use crate::wire::Task;

use super::graph::NodeKind;
use super::link::Condition;
use super::mapping::{keep_mapped, peek, put};
use super::state::{Driver, driver};
use super::stream::{Operation, Stream};
use super::{CudaError, DefaultStream, Handle, In, Result, driver};

/// What a stream waits for, by the low bits of the flags of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Not behind the value, on a circle.
    Reached,
    Equal,
    /// A bit is set in both.
    Common,
    /// A bit is set in neither.
    Missing,
}

impl Relation {
    fn from_flags(flags: u32) -> Result<Self> {
        match flags & 0xf {
            0 => Ok(Self::Reached),
            1 => Ok(Self::Equal),
            2 => Ok(Self::Common),
            3 => Ok(Self::Missing),
            _ => Err(CudaError::INVALID_VALUE),
        }
    }

    fn holds(self, found: u64, wanted: u64, bytes: usize) -> bool {
        let mask = if bytes == 4 { 0xffff_ffff } else { u64::MAX };
        let unused = 64 - bytes * 8;
        match self {
            Self::Reached => (found.wrapping_sub(wanted) << unused).cast_signed() >= 0,
            Self::Equal => found & mask == wanted & mask,
            Self::Common => found & wanted & mask != 0,
            Self::Missing => !(found | wanted) & mask != 0,
        }
    }
}

/// The stream, if the address is memory that a kernel may use.
fn checked(
    driver: &Driver,
    stream: Handle,
    default: DefaultStream,
    address: u64,
    bytes: usize,
) -> Result<Arc<Stream>> {
    if !address.is_multiple_of(bytes as u64) || !driver.memory.is_reachable(address, bytes as u64) {
        return Err(CudaError::INVALID_VALUE);
    }
    driver.stream(stream, default)
}

fn write(stream: Handle, default: DefaultStream, address: u64, value: u64, bytes: usize) -> Result {
    let driver = driver()?;
    let stream = checked(driver, stream, default, address, bytes)?;
    let memory = Arc::clone(&driver.memory);
    let effect = move || {
        let _mapped = keep_mapped();
        if memory.is_reachable(address, bytes as u64) {
            put(address, &value.to_le_bytes()[..bytes]);
        }
    };
    // An operation that takes no time.
    let task = Some(Task::Release(0));
    stream.enqueue(driver, Operation { kind: NodeKind::Memset, task, effect: Some(Arc::new(effect)) })
}

fn wait(
    stream: Handle,
    default: DefaultStream,
    address: u64,
    value: u64,
    bytes: usize,
    flags: u32,
) -> Result {
    let relation = Relation::from_flags(flags)?;
    let driver = driver()?;
    let stream = checked(driver, stream, default, address, bytes)?;
    let memory = Arc::clone(&driver.memory);
    let condition: Condition = Arc::new(move || {
        let _mapped = keep_mapped();
        // Memory that is gone holds nobody up.
        !memory.is_reachable(address, bytes as u64) || relation.holds(peek(address, bytes), value, bytes)
    });
    stream.enqueue_wait(driver, condition)
}

/// `CUstreamBatchMemOpParams`, as far as its waits and writes use it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Step {
    kind: u32,
    address: u64,
    value: u64,
    flags: u32,
    rest: [u64; 2],
}

/// Waits and writes in a row.
fn batch(stream: Handle, default: DefaultStream, count: u32, steps: In<Step>) -> Result {
    for index in 0..count as usize {
        let Step { kind, address, value, flags, .. } = steps.at(index)?;
        match kind {
            1 => wait(stream, default, address, value, 4, flags)?,
            2 => write(stream, default, address, value, 4)?,
            4 => wait(stream, default, address, value, 8, flags)?,
            5 => write(stream, default, address, value, 8)?,
            // Writes are never held back, so there is nothing to flush or to order.
            3 | 6 => {}
            _ => return Err(CudaError::NOT_SUPPORTED),
        }
    }
    Ok(())
}

driver! {
    fn [cuStreamBatchMemOp cuStreamBatchMemOp_v2 | cuStreamBatchMemOp_ptsz cuStreamBatchMemOp_v2_ptsz] default
        (stream: Handle, count: u32, steps: In<Step>, _flags: u32) {
        batch(stream, default, count, steps)
    }

    fn [cuStreamWriteValue32 cuStreamWriteValue32_v2 | cuStreamWriteValue32_ptsz cuStreamWriteValue32_v2_ptsz] default
        (stream: Handle, address: u64, value: u32, _flags: u32) {
        write(stream, default, address, value.into(), 4)
    }

    fn [cuStreamWriteValue64 cuStreamWriteValue64_v2 | cuStreamWriteValue64_ptsz cuStreamWriteValue64_v2_ptsz] default
        (stream: Handle, address: u64, value: u64, _flags: u32) {
        write(stream, default, address, value, 8)
    }

    fn [cuStreamWaitValue32 cuStreamWaitValue32_v2 | cuStreamWaitValue32_ptsz cuStreamWaitValue32_v2_ptsz] default
        (stream: Handle, address: u64, value: u32, flags: u32) {
        wait(stream, default, address, value.into(), 4, flags)
    }

    fn [cuStreamWaitValue64 cuStreamWaitValue64_v2 | cuStreamWaitValue64_ptsz cuStreamWaitValue64_v2_ptsz] default
        (stream: Handle, address: u64, value: u64, flags: u32) {
        wait(stream, default, address, value, 8, flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_laid_out_as_in_the_interface() {
        assert_eq!(size_of::<Step>(), 48);
        assert_eq!(std::mem::offset_of!(Step, flags), 24);
    }

    #[test]
    fn a_value_is_reached_on_a_circle() {
        let reached = Relation::Reached;
        assert!(reached.holds(5, 5, 4) && reached.holds(6, 5, 4) && !reached.holds(4, 5, 4));
        assert!(reached.holds(1, u64::from(u32::MAX), 4));
        assert!(Relation::Missing.holds(0xffff_fffe, 0, 4) && !Relation::Missing.holds(0xffff_ffff, 0, 4));
        assert!(Relation::Common.holds(6, 4, 8) && !Relation::Common.holds(2, 4, 8));
        assert_eq!(Relation::from_flags(1 << 30 | 1), Ok(Relation::Equal));
    }
}
