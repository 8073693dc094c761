//! Memory that nodes of a graph allocate and free. Its address is fixed when the node is made; it is counted from a
//! launch to the free, and what is free stays with the device's graphs until it is trimmed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use crate::wire::Task;

use super::super::memory::{Kind, allocate_address, drop_pages};
use super::super::pool::Pool;
use super::super::state::{Context, Driver, driver, lock};
use super::super::stream::{Operation, Stream};
use super::super::{CudaError, Handle, In, Out, Result, driver};
use super::{NodeKind, add_node};

/// What a node does to memory.
#[derive(Clone, Debug)]
pub(super) enum GraphMemory {
    Take(Arc<GraphAllocation>),
    Free(Arc<GraphAllocation>),
}

/// Memory of a graph.
#[derive(Debug)]
pub(super) struct GraphAllocation {
    address: u64,
    size: u64,
    ordinal: i32,
    pool: Arc<Pool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// It was allocated by a launch and nothing that frees it is queued.
    held: bool,
    /// Frees that are queued. The next launch takes the memory over from one of them: it comes behind.
    returning: u32,
}

/// All memory of graphs, by address.
static KNOWN: Mutex<BTreeMap<u64, Weak<GraphAllocation>>> = Mutex::new(BTreeMap::new());
/// What is held outlives its graph.
static HELD: Mutex<BTreeMap<u64, Arc<GraphAllocation>>> = Mutex::new(BTreeMap::new());

impl Drop for GraphAllocation {
    fn drop(&mut self) {
        lock(&KNOWN).remove(&self.address);
        let Ok(driver) = driver() else { return };
        if let Some(gone) = driver.memory.remove(self.address, |found| found.kind == Kind::Graph) {
            drop_pages(&gone);
        }
    }
}

impl GraphAllocation {
    /// An address for memory that a node will allocate.
    fn reserve(driver: &Driver, context: &Context, size: u64) -> Result<Arc<Self>> {
        if size == 0 {
            return Err(CudaError::INVALID_VALUE);
        }
        let pool = Arc::clone(driver.pools.of_graphs(context.ordinal)?);
        let address = allocate_address(driver, context, size, Kind::Graph)?;
        let ordinal = context.ordinal;
        let allocation = Arc::new(Self { address, size, ordinal, pool, state: Mutex::default() });
        lock(&KNOWN).insert(address, Arc::downgrade(&allocation));
        Ok(allocation)
    }

    fn parameters(&self) -> AllocationNode {
        let (location, size) = ([1, self.ordinal], self.size.try_into().unwrap_or(usize::MAX));
        // Pinned memory on the device.
        AllocationNode {
            kind: 1,
            handle_types: 0,
            location,
            pool_rest: [0; 9],
            access: [0; 2],
            size,
            address: self.address,
        }
    }

    fn find(address: u64) -> Result<Arc<Self>> {
        let found = lock(&KNOWN).get(&address).and_then(Weak::upgrade);
        found.ok_or(CudaError::INVALID_VALUE)
    }

    /// Counts it, for a launch.
    pub(super) fn take(self: &Arc<Self>, driver: &Driver, context: &Context, auto_free: bool) -> Result {
        let mut state = lock(&self.state);
        if state.held {
            return if auto_free { Ok(()) } else { Err(CudaError::INVALID_VALUE) };
        }
        if let Some(rest) = state.returning.checked_sub(1) {
            state.returning = rest;
        } else {
            // The card may be full until queued frees are done, which take this lock.
            drop(state);
            self.pool.take(driver, context, self.size)?;
            state = lock(&self.state);
        }
        state.held = true;
        drop(state);
        lock(&HELD).insert(self.address, Arc::clone(self));
        Ok(())
    }

    /// From now on it is on its way back.
    fn let_go(&self) -> Result {
        let mut state = lock(&self.state);
        if !std::mem::take(&mut state.held) {
            return Err(CudaError::INVALID_VALUE);
        }
        state.returning += 1;
        drop(state);
        // Not dropped under the lock: its end takes another one.
        let kept = lock(&HELD).remove(&self.address);
        drop(kept);
        Ok(())
    }

    /// A free is done, unless a launch has taken the memory over.
    fn settle(&self) {
        let mut state = lock(&self.state);
        let Some(rest) = state.returning.checked_sub(1) else { return };
        state.returning = rest;
        let leaves = self.pool.plan(self.size);
        self.pool.settle(self.size, leaves);
    }

    /// The operation that frees it.
    pub(super) fn free(self: &Arc<Self>) -> Result<Operation> {
        self.let_go()?;
        let freed = Arc::clone(self);
        let effect = Arc::new(move || freed.settle());
        // Nothing goes back to the card before a trim.
        Ok(Operation { kind: NodeKind::MemFree, task: Some(Task::Release(0)), effect: Some(effect) })
    }
}

/// The operation that frees memory of a graph in stream order.
pub(in super::super) fn free_operation(_driver: &Driver, address: u64) -> Result<Operation> {
    GraphAllocation::find(address)?.free()
}

/// Frees memory of a graph that nothing uses any more.
pub(in super::super) fn free_now(address: u64) -> Result {
    let allocation = GraphAllocation::find(address)?;
    allocation.let_go()?;
    allocation.settle();
    Ok(())
}

/// An allocation in stream order on a stream that is captured becomes a node.
pub(in super::super) fn capture_allocation(
    driver: &Driver,
    stream: &Stream,
    context: &Context,
    size: u64,
) -> Result<u64> {
    let allocation = GraphAllocation::reserve(driver, context, size)?;
    let address = allocation.address;
    let capture = lock(&stream.capture).clone().ok_or(CudaError::ILLEGAL_STATE)?;
    capture.record_memory(driver, NodeKind::MemAlloc, GraphMemory::Take(allocation));
    Ok(address)
}

/// So does a free, of memory that is a graph's.
pub(in super::super) fn capture_free(driver: &Driver, stream: &Stream, address: u64) -> Result {
    let allocation = GraphAllocation::find(address).map_err(|_| CudaError::STREAM_CAPTURE_UNSUPPORTED)?;
    let capture = lock(&stream.capture).clone().ok_or(CudaError::ILLEGAL_STATE)?;
    capture.record_memory(driver, NodeKind::MemFree, GraphMemory::Free(allocation));
    Ok(())
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AllocationNode {
    kind: u32,
    handle_types: u32,
    location: [i32; 2],
    pool_rest: [u64; 9],
    access: [usize; 2],
    size: usize,
    address: u64,
}

/// What a node does that allocates; its address is written into the parameters.
pub(super) fn allocation_node(driver: &Driver, parameters: Out<AllocationNode>) -> Result<GraphMemory> {
    let mut node = parameters.get()?;
    let context = driver.current()?;
    if driver.device(node.location[1])?.index != u32::from(context.gpu) {
        return Err(CudaError::NOT_SUPPORTED);
    }
    let allocation = GraphAllocation::reserve(driver, &context, node.size as u64)?;
    node.address = allocation.address;
    parameters.set(node)?;
    Ok(GraphMemory::Take(allocation))
}

pub(super) fn free_node(address: u64) -> Result<GraphMemory> {
    GraphAllocation::find(address).map(GraphMemory::Free)
}

driver! {
    fn [cuGraphAddMemAllocNode] (
        out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: Out<AllocationNode>,
    ) {
        let memory = allocation_node(driver()?, parameters)?;
        add_node(out, graph, dependencies, count, (NodeKind::MemAlloc, Vec::new(), Some(memory)))
    }

    fn [cuGraphAddMemFreeNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, pointer: u64) {
        let memory = free_node(pointer)?;
        add_node(out, graph, dependencies, count, (NodeKind::MemFree, Vec::new(), Some(memory)))
    }

    fn [cuGraphMemAllocNodeGetParams] (node: Handle, parameters: Out<AllocationNode>) {
        match &driver()?.nodes.get(node)?.memory {
            Some(GraphMemory::Take(allocation)) => parameters.set(allocation.parameters()),
            _ => Err(CudaError::INVALID_VALUE),
        }
    }

    fn [cuGraphMemFreeNodeGetParams] (node: Handle, pointer: Out<u64>) {
        match &driver()?.nodes.get(node)?.memory {
            Some(GraphMemory::Free(allocation)) => pointer.set(allocation.address),
            _ => Err(CudaError::INVALID_VALUE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_of_an_allocation_node_are_laid_out_as_in_the_interface() {
        assert_eq!(std::mem::offset_of!(AllocationNode, size), 104);
        assert_eq!(std::mem::offset_of!(AllocationNode, address), 112);
        assert_eq!(size_of::<AllocationNode>(), 120);
    }
}
