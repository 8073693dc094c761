//! Wrappers of graphs that take memory. A graph's memory nodes take nothing until it is launched; then its device's graph
//! memory, which is like a pool, grows by what is missing.
//!
//! Before a launch as much is reserved as the nodes could need, which is more than graphs need that free within
//! themselves; after it what the device really keeps.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gpu_share::units::Bytes;

use super::pools::{Pool, settled};
use crate::abi::{AllocationNode, Handle, LOCATION_DEVICE, NODE_GRAPH, NODE_MEM_ALLOC, Status};
use crate::driver;
use crate::session::session;
use crate::wrappers::wrappers;

/// Graphs within graphs that are looked into.
const DEEPEST: u32 = 8;

/// What the nodes of an executable graph take, by device.
type Needs = Vec<(i32, Bytes)>;

/// Executable graphs that take memory.
#[derive(Debug, Default)]
pub(crate) struct Graphs {
    needs: Mutex<HashMap<usize, Needs>>,
}

impl Graphs {
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<usize, Needs>) -> T) -> T {
        let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut needs);
        COUNT.store(needs.len(), Ordering::Release);
        result
    }

    fn needs(&self, graph: Handle) -> Option<Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner).get(&(graph as usize)).cloned()
    }
}

/// Executable graphs that take memory, in this process.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether there is any executable graph that takes memory.
#[inline]
pub(crate) fn is_any() -> bool {
    COUNT.load(Ordering::Acquire) > 0
}

/// Adds up what the nodes of `graph` take on each device.
fn add_needs(graph: Handle, depth: u32, needs: &mut Needs) {
    let mut count = 0;
    if !driver::graph_nodes(graph, core::ptr::null_mut(), &mut count).is_ok() || depth > DEEPEST {
        return;
    }
    let mut nodes = vec![core::ptr::null_mut(); count];
    if !driver::graph_nodes(graph, nodes.as_mut_ptr(), &mut count).is_ok() {
        return;
    }
    for node in nodes.into_iter().take(count) {
        let (mut kind, mut child, mut taken) = (0, core::ptr::null_mut(), AllocationNode::zeroed());
        if !driver::node_kind(node, &mut kind).is_ok() {
            continue;
        }
        match kind {
            NODE_GRAPH if driver::child_graph(node, &mut child).is_ok() => add_needs(child, depth + 1, needs),
            NODE_MEM_ALLOC if driver::allocation_node(node, &mut taken).is_ok() => add(needs, &taken),
            _ => {}
        }
    }
}

fn add(needs: &mut Needs, node: &AllocationNode) {
    let (device, bytes) = (node.properties.location, Bytes(node.bytes as u64));
    if node.properties.location_kind != LOCATION_DEVICE {
        return;
    }
    match needs.iter_mut().find(|(known, _)| *known == device) {
        Some((_, sum)) => *sum = Bytes(sum.0.saturating_add(bytes.0)),
        None => needs.push((device, bytes)),
    }
}

/// A graph was made executable.
///
/// # Safety
/// `out` is the driver's own argument.
unsafe fn instantiated(out: *mut Handle, graph: Handle, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    let Some(session) = session().filter(|_| status.is_ok() && !out.is_null()) else { return status };
    let mut needs = Needs::new();
    add_needs(graph, 0, &mut needs);
    if !needs.is_empty() {
        // SAFETY: the driver succeeded, so it wrote to a valid place.
        let executable = unsafe { *out } as usize;
        session.memory.graphs.change(|known| known.insert(executable, needs));
    }
    status
}

/// Lets `launch` start the executable graph, if the share has room for what its nodes take.
pub(crate) fn launched(graph: Handle, launch: impl FnOnce() -> Status) -> Status {
    let Some((session, needs)) =
        session().and_then(|session| Some((session, session.memory.graphs.needs(graph)?)))
    else {
        return launch();
    };
    let mut launch = Some(launch);
    let mut status = Status::SUCCESS;
    // Graphs take memory of one device; were there more, each is charged, and the last one's turn starts it.
    let last = needs.len().saturating_sub(1);
    for (turn, (device, bytes)) in needs.into_iter().enumerate() {
        let start = || if turn == last { launch.take().map_or(status, |launch| launch()) } else { status };
        status = session.memory.within_pool(session, Pool::Graphs(device), bytes, start);
        if !status.is_ok() {
            return status;
        }
    }
    session.memory.freed.store(true, Ordering::Release);
    status
}

fn destroyed(graph: Handle, real: impl FnOnce() -> Status) -> Status {
    if let Some(session) = session() {
        session.memory.graphs.change(|known| known.remove(&(graph as usize)));
    }
    settled(real)
}

wrappers! {
    [cuGraphInstantiate, cuGraphInstantiate_v2](
        out: *mut Handle, graph: Handle, node: *mut Handle, log: Handle, length: usize
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { instantiated(out, graph, real) }
    }
    [cuGraphInstantiateWithFlags](out: *mut Handle, graph: Handle, flags: u64) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { instantiated(out, graph, real) }
    }
    [cuGraphInstantiateWithParams, cuGraphInstantiateWithParams_ptsz](
        out: *mut Handle, graph: Handle, parameters: Handle
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { instantiated(out, graph, real) }
    }
    [cuGraphUpload, cuGraphUpload_ptsz](graph: Handle, stream: Handle) |real, per_thread| { launched(graph, real) }
    [cuGraphExecDestroy](graph: Handle) |real, per_thread| { destroyed(graph, real) }
    [cuDeviceGraphMemTrim](device: i32) |real, per_thread| { settled(real) }
}
