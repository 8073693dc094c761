//! Kernels in text form that are computed: their arguments are taken at the launch, their effect comes at its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ptx::{Code, Fault, Launch, Memory, Unsupported};

use super::Result;
use super::error::CudaError;
use super::link::Effect;
use super::mapping::keep_mapped;
use super::memory::Allocations;
use super::module::Function;
use super::state::{Context, Driver};

/// The most steps of a launch that are computed: some seconds. Beyond it a kernel takes time alone.
const STEPS: u64 = 1 << 28;

/// Grid, block, and the bytes of shared memory that the launch adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared: u32,
}

impl Shape {
    fn threads(&self) -> u64 {
        self.grid.iter().chain(&self.block).fold(1_u64, |all, &n| all.saturating_mul(n.into()))
    }
}

/// What a kernel does to the memory; nothing if it is empty or can't be computed, which is said once.
pub(super) fn interpreted(
    driver: &Driver,
    context: &Arc<Context>,
    function: &Arc<Function>,
    code: std::result::Result<&Code, &Unsupported>,
    shape: Shape,
    arguments: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Option<Effect>> {
    let code = match code {
        Ok(code) if code.is_empty() => return Ok(None),
        Ok(code) => code,
        Err(reason) => {
            give_up(function, 0, reason);
            return Ok(None);
        }
    };
    if shape.threads() >= function.too_long.load(Ordering::Relaxed).min(STEPS) {
        give_up(function, shape.threads(), &Fault::TooLong);
        return Ok(None);
    }
    let parameters = arguments()?;
    let variables = function.variables(driver, code.variables())?;
    let (memory, context, function) = (Arc::clone(&driver.memory), Arc::clone(context), Arc::clone(function));
    Ok(Some(Arc::new(move || run(&function, shape, &parameters, &variables, &memory, &context))))
}

fn run(
    function: &Function,
    shape: Shape,
    parameters: &[u8],
    variables: &[u64],
    memory: &Allocations,
    context: &Context,
) {
    let Some((program, kernel)) = function.text() else { return };
    let Ok(code) = program.code(kernel) else { return };
    let Shape { grid, block, shared } = shape;
    let launch = Launch { grid, block, shared, parameters, variables, steps: STEPS };
    let _mapped = keep_mapped();
    let broken = match code.run(&launch, &mut Ranges { all: memory.ranges(), latest: (0, 0) }) {
        Ok(()) => return,
        Err(Fault::IllegalAddress { .. }) => CudaError::ILLEGAL_ADDRESS,
        Err(Fault::Misaligned { .. }) => CudaError::MISALIGNED_ADDRESS,
        Err(Fault::Trap) => CudaError::LAUNCH_FAILED,
        Err(reason @ (Fault::TooLong | Fault::Stuck | Fault::Unsupported(_))) => {
            return give_up(function, shape.threads(), &reason);
        }
    };
    context.broken.store(broken.code(), Ordering::Relaxed);
}

/// Says once that a kernel takes time alone, from as many threads on.
fn give_up(function: &Function, threads: u64, reason: &dyn std::error::Error) {
    use std::io::Write;
    let before = function.too_long.fetch_min(threads, Ordering::Relaxed);
    if before == u64::MAX {
        let name = function.name();
        let _ =
            writeln!(std::io::stderr(), "simcuda: kernel {name} takes time and computes nothing: {reason}");
    }
}

/// The memory that a kernel may use. All of it stays mapped while this exists.
struct Ranges {
    /// By address.
    all: Vec<(u64, u64)>,
    /// Where the latest access was.
    latest: (u64, u64),
}

impl Ranges {
    /// The address as one of this process.
    fn place(&mut self, address: u64, size: usize) -> Option<usize> {
        let end = address.checked_add(size as u64)?;
        if address < self.latest.0 || end > self.latest.1 {
            let after = self.all.partition_point(|&(base, _)| base <= address);
            self.latest = *self.all.get(after.checked_sub(1)?)?;
        }
        if end <= self.latest.1 { usize::try_from(address).ok() } else { None }
    }
}

macro_rules! by_size {
    ($size:expr, $do:ident) => {
        match $size {
            1 => $do!(u8),
            2 => $do!(u16),
            4 => $do!(u32),
            _ => $do!(u64),
        }
    };
}

impl Memory for Ranges {
    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        let place = self.place(address, size)?;
        macro_rules! read {
            ($type:ty) => {
                // SAFETY: the range is in the table of allocations, so it is mapped, and stays so while a kernel
                // computes; the interpreter passes aligned addresses alone.
                u64::from(unsafe { std::ptr::with_exposed_provenance::<$type>(place).read_volatile() })
            };
        }
        Some(by_size!(size, read))
    }

    #[allow(clippy::cast_possible_truncation)] // The low bytes are what is to be written.
    fn store(&mut self, address: u64, size: usize, value: u64) -> Option<()> {
        let place = self.place(address, size)?;
        macro_rules! write {
            ($type:ty) => {
                // SAFETY: as for reading.
                unsafe {
                    std::ptr::with_exposed_provenance_mut::<$type>(place).write_volatile(value as $type)
                }
            };
        }
        by_size!(size, write);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_within_one_allocation_can_be_reached() {
        let mut ranges = Ranges { all: vec![(0x1000, 0x1010), (0x1010, 0x1014)], latest: (0, 0) };
        assert_eq!(ranges.place(0x100c, 4), Some(0x100c));
        assert_eq!(ranges.place(0x100e, 4), None);
        assert_eq!(ranges.place(0x1010, 4), Some(0x1010));
        assert_eq!(ranges.place(0xfff, 1), None);
        assert_eq!(ranges.place(0x1014, 1), None);
        assert_eq!(ranges.place(u64::MAX, 8), None);
    }
}
