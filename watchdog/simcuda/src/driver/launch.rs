//! Kernel launches: checks, and the arguments of those kernels that need them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ptx::Parameter;
use crate::wire::Task;

use super::abi::{KernelNode, LaunchConfig};
use super::functional::Routine;
use super::graph::NodeKind;
use super::interpret::{Shape, interpreted};
use super::link::Effect;
use super::module::Function;

use super::state::{Context, Driver, driver};
use super::stream::Operation;
use super::{CudaError, DefaultStream, Handle, In, Result, driver};

/// Grid, block and arguments of a launch.
#[derive(Clone, Copy, Debug)]
struct Launch {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    shared: u32,
    arguments: Arguments,
}

/// Where the arguments lie: one pointer for each, or all of them in one buffer.
#[derive(Clone, Copy, Debug)]
struct Arguments {
    pointers: usize,
    extra: usize,
}

impl Arguments {
    /// Where the argument at `index` begins.
    fn start(self, index: usize, place: Parameter) -> Result<In<u8>> {
        Ok(if self.pointers != 0 {
            In::from_address(In::<usize>::from_address(self.pointers).at(index)?)
        } else {
            In::from_address(self.buffer()? + place.offset)
        })
    }

    /// The argument at `index`, widened with zeros.
    fn read(self, index: usize, place: Parameter) -> Result<u64> {
        let start = self.start(index, place)?;
        let mut bytes = [0; 8];
        for (at, byte) in bytes.iter_mut().take(place.size).enumerate() {
            *byte = start.at(at)?;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// All arguments, each at its place.
    fn read_all(self, places: &[Parameter]) -> Result<Vec<u8>> {
        let end = places.last().map_or(0, |last| last.offset + last.size);
        let mut bytes = vec![0; end];
        for (index, &place) in places.iter().enumerate() {
            let start = self.start(index, place)?;
            for (at, byte) in bytes[place.offset..place.offset + place.size].iter_mut().enumerate() {
                *byte = start.at(at)?;
            }
        }
        Ok(bytes)
    }

    /// The buffer in the list of extra options: pairs of a key and a value, ended by zero.
    fn buffer(self) -> Result<usize> {
        const END: usize = 0;
        const BUFFER: usize = 1;
        let extra = In::<usize>::from_address(self.extra);
        let mut at = 0;
        loop {
            match extra.at(at)? {
                END => return Err(CudaError::INVALID_VALUE),
                BUFFER => return extra.at(at + 1),
                _ => at += 2,
            }
        }
    }
}

/// `CUDA_LAUNCH_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct DeviceLaunch {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    pointers: usize,
}

/// Places of parameters of these sizes, each aligned to its size.
fn places(sizes: [usize; 4]) -> Vec<Parameter> {
    let mut next = 0_usize;
    let place = |size: usize| {
        let offset = next.next_multiple_of(size);
        next = offset + size;
        Parameter { offset, size }
    };
    sizes.into_iter().map(place).collect()
}

/// The arguments of a kernel that computes; none if its parameters are not those it should have.
fn routine_arguments(
    routine: Routine,
    function: &Function,
    arguments: Arguments,
) -> Result<Option<[u64; 4]>> {
    let expected = routine.parameter_sizes();
    let places = function.parameters().map_or_else(|| places(expected), <[Parameter]>::to_vec);
    let fits = places.len() == expected.len()
        && places.iter().zip(expected).enumerate().all(|(index, (place, size))| {
            place.size == size || (index == routine.count_index() && place.size == 8)
        });
    if !fits {
        return Ok(None);
    }
    let mut values = [0; 4];
    for (index, (value, place)) in values.iter_mut().zip(places).enumerate() {
        *value = arguments.read(index, place)?;
    }
    Ok(Some(values))
}

fn computing(routine: Routine, values: [u64; 4], driver: &Driver, context: &Arc<Context>) -> Effect {
    let (memory, context) = (Arc::clone(&driver.memory), Arc::clone(context));
    Arc::new(move || {
        if routine.run(values, &memory).is_err() {
            context.broken.store(CudaError::ILLEGAL_ADDRESS.code(), Ordering::Relaxed);
        }
    })
}

impl Launch {
    fn check(&self) -> Result {
        let limits = [0x7fff_ffff, 65_535, 65_535];
        let grid = self.grid.iter().zip(limits).all(|(&n, limit)| n > 0 && n <= limit);
        let threads = self.block.iter().try_fold(1_u32, |threads, &n| threads.checked_mul(n));
        let block = threads.is_some_and(|threads| (1..=1024).contains(&threads));
        if grid && block { Ok(()) } else { Err(CudaError::INVALID_VALUE) }
    }

    /// The operation that does the launch in `context`.
    fn operation(&self, driver: &Driver, context: &Arc<Context>) -> Result<Operation> {
        self.check()?;
        let function = driver.functions.get(self.function)?;
        let mut argument = 0;
        let mut effect = None;
        if function.is_spin {
            let first = self.arguments.read(0, Parameter { offset: 0, size: 4 })?;
            argument = u32::try_from(first).unwrap_or(u32::MAX);
        }
        // `spin_us` is known to take time alone; its text waits for a real GPU's clock.
        if let (Some((program, kernel)), false) = (function.text(), function.is_spin) {
            let (grid, block, shared) = (self.grid, self.block, self.shared);
            let read = || self.arguments.read_all(kernel.parameters());
            effect = interpreted(
                driver,
                context,
                &function,
                program.code(kernel),
                Shape { grid, block, shared },
                read,
            )?;
        }
        if let (Some(routine), None) = (function.routine, &effect) {
            let values = routine_arguments(routine, &function, self.arguments)?;
            effect = values.map(|values| computing(routine, values, driver, context));
        }
        let task = Some(Task::Launch { kernel: function.number, grid: self.grid, argument });
        Ok(Operation { kind: NodeKind::Kernel, task, effect })
    }

    fn enqueue(&self, stream: Handle, default: DefaultStream) -> Result {
        let driver = driver()?;
        let stream = driver.stream(stream, default)?;
        let context = driver.context(stream.context)?;
        stream.enqueue(driver, self.operation(driver, &context)?)
    }
}

/// The node of a graph that launches a kernel.
pub(super) fn kernel_node(driver: &Driver, node: &KernelNode) -> Result<Operation> {
    let arguments = Arguments { pointers: node.parameters, extra: node.extra };
    let KernelNode { function, grid, block, shared_bytes: shared, .. } = *node;
    let launch = Launch { function, grid, block, shared, arguments };
    launch.operation(driver, &driver.current()?)
}

driver! {
    fn [cuLaunchKernel | cuLaunchKernel_ptsz] default (
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: Handle, pointers: usize, extra: usize,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        Launch { function, grid, block, shared, arguments: Arguments { pointers, extra } }.enqueue(stream, default)
    }

    fn [cuLaunchCooperativeKernel | cuLaunchCooperativeKernel_ptsz] default (
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: Handle, pointers: usize,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        Launch { function, grid, block, shared, arguments: Arguments { pointers, extra: 0 } }.enqueue(stream, default)
    }

    fn [cuLaunchCooperativeKernelMultiDevice] (launches: In<DeviceLaunch>, count: u32, _flags: u32) {
        for index in 0..count as usize {
            let DeviceLaunch { function, grid, block, shared, stream, pointers } = launches.at(index)?;
            let launch = Launch { function, grid, block, shared, arguments: Arguments { pointers, extra: 0 } };
            launch.enqueue(stream, DefaultStream::Legacy)?;
        }
        Ok(())
    }

    fn [cuLaunchKernelEx | cuLaunchKernelEx_ptsz] default
        (config: In<LaunchConfig>, function: Handle, pointers: usize, extra: usize) {
        let LaunchConfig { grid, block, shared_bytes: shared, stream, .. } = config.get()?;
        Launch { function, grid, block, shared, arguments: Arguments { pointers, extra } }.enqueue(stream, default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_in_one_buffer_are_aligned_like_a_c_structure() {
        let offsets: Vec<_> = places([4, 4, 8, 8]).iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [0, 4, 8, 16]);
        let offsets: Vec<_> = places([8, 8, 8, 4]).iter().map(|place| place.offset).collect();
        assert_eq!(offsets, [0, 8, 16, 24]);
    }

    #[test]
    fn arguments_are_read_by_pointer_or_from_a_buffer() {
        let values = [7_u64, 9];
        let pointers = [&raw const values[0], &raw const values[1]];
        let arguments = Arguments { pointers: pointers.as_ptr().expose_provenance(), extra: 0 };
        let _ = values.as_ptr().expose_provenance();
        assert_eq!(arguments.read(1, Parameter { offset: 8, size: 8 }), Ok(9));
        let extra = [2, 0, 1, values.as_ptr().expose_provenance(), 0];
        let arguments = Arguments { pointers: 0, extra: extra.as_ptr().expose_provenance() };
        assert_eq!(arguments.read(1, Parameter { offset: 8, size: 4 }), Ok(9));
    }
}
