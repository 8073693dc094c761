//! Changing a graph that is ready to be launched, and nodes that are described in one structure for all kinds.

use super::super::abi::{Copy3D, HostNode, KernelNode, MemsetNode};
use super::super::copy::copy_node;
use super::super::launch::kernel_node;
use super::super::state::{Driver, driver, lock};
use super::super::stream::Operation;
use super::super::{CudaError, Handle, In, Out, Result, driver};
use super::memory::{allocation_node, free_node};
use super::{Content, NodeKind, add_node, child, host, memset, ordered, steps};

/// Why a graph can't be taken over, by the numbers of `CUgraphExecUpdateResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Difference {
    Topology = 2,
    NodeKind = 3,
    NotSupported = 6,
}

/// Takes over what the nodes of a graph do. The node that does not fit, and why.
fn update(driver: &Driver, executable: Handle, graph: Handle) -> Result<Option<(Difference, Handle)>> {
    let executable = driver.executables.get(executable)?;
    let graph = driver.graphs.get(graph)?;
    let fresh = steps(driver, &graph)?;
    let mut old = lock(&executable.steps);
    if old.len() != fresh.len() {
        return Ok(Some((Difference::Topology, 0)));
    }
    for (old, fresh) in old.iter().zip(&fresh) {
        if old.kind != fresh.kind {
            return Ok(Some((Difference::NodeKind, fresh.node)));
        }
        if old.memory.is_some() || fresh.memory.is_some() {
            return Ok(Some((Difference::NotSupported, fresh.node)));
        }
    }
    for (old, fresh) in old.iter_mut().zip(fresh) {
        old.operations = fresh.operations;
    }
    executable.kept.take_over(&graph.kept)?;
    Ok(None)
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct UpdateResult {
    result: u32,
    node: Handle,
    from: Handle,
}

fn replace(executable: Handle, node: Handle, operations: Vec<Operation>) -> Result {
    let executable = driver()?.executables.get(executable)?;
    let mut steps = lock(&executable.steps);
    let step = steps.iter_mut().find(|step| step.node == node).ok_or(CudaError::INVALID_VALUE)?;
    step.operations = operations;
    Ok(())
}

fn set_node(node: Handle, operation: Operation) -> Result {
    let node = driver()?.nodes.get(node)?;
    if node.kind != operation.kind {
        return Err(CudaError::INVALID_VALUE);
    }
    *lock(&node.operations) = vec![operation];
    Ok(())
}

/// What a node does that `CUgraphNodeParams` describes: its kind in front, the rest from byte 16 on.
fn content(driver: &Driver, parameters: usize) -> Result<Content> {
    const UNION: usize = 16;
    let at = parameters.checked_add(UNION).ok_or(CudaError::INVALID_VALUE)?;
    let one = |kind, operation| (kind, vec![operation], None);
    let event = || driver.events.get(In::<Handle>::from_address(at).get()?);
    Ok(match In::<u32>::from_address(parameters).get()? {
        0 => one(NodeKind::Kernel, kernel_node(driver, &In::<KernelNode>::from_address(at).get()?)?),
        // Flags and a context stand in front of the copy itself.
        1 => one(NodeKind::Memcpy, copy_node(driver, &In::<Copy3D>::from_address(at + 16).get()?)?),
        2 => one(NodeKind::Memset, memset(driver, &In::<MemsetNode>::from_address(at).get()?)?),
        3 => one(NodeKind::Host, host(&In::<HostNode>::from_address(at).get()?)?),
        4 => (NodeKind::Child, child(driver, In::<Handle>::from_address(at).get()?)?, None),
        5 => (NodeKind::Empty, Vec::new(), None),
        6 => one(NodeKind::EventWait, event()?.wait()),
        7 => one(NodeKind::EventRecord, event()?.record()),
        10 => (NodeKind::MemAlloc, Vec::new(), Some(allocation_node(driver, Out::from_address(at))?)),
        11 => (NodeKind::MemFree, Vec::new(), Some(free_node(In::<u64>::from_address(at).get()?)?)),
        _ => return Err(CudaError::NOT_SUPPORTED),
    })
}

/// All pairs of a node and one that it depends on, or what is asked of them.
fn edges(driver: &Driver, graph: Handle) -> Result<Vec<(Handle, Handle)>> {
    let mut all = Vec::new();
    for (handle, node) in ordered(driver, &*driver.graphs.get(graph)?)? {
        all.extend(lock(&node.dependencies).iter().map(|&from| (from, handle)));
    }
    Ok(all)
}

fn list_edges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) -> Result {
    let all = edges(driver()?, graph)?;
    if from.is_null() && to.is_null() {
        return count.set(all.len());
    }
    let room = count.get()?;
    for index in 0..room {
        let (first, second) = all.get(index).copied().unwrap_or_default();
        from.set_at(index, first)?;
        to.set_at(index, second)?;
    }
    count.set(room.min(all.len()))
}

fn dependents(node: Handle, out: Out<Handle>, count: Out<usize>) -> Result {
    let driver = driver()?;
    let graph = driver.nodes.get(node)?.graph;
    let all = edges(driver, graph)?;
    let mine: Vec<Handle> = all.into_iter().filter(|&(from, _)| from == node).map(|(_, to)| to).collect();
    super::list(&mine, out, count)
}

fn connect(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Result {
    let driver = driver()?;
    driver.graphs.get(graph)?;
    for index in 0..count {
        driver.nodes.get(from.at(index)?)?;
        lock(&driver.nodes.get(to.at(index)?)?.dependencies).push(from.at(index)?);
    }
    Ok(())
}

fn disconnect(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Result {
    let driver = driver()?;
    driver.graphs.get(graph)?;
    for index in 0..count {
        let first = from.at(index)?;
        lock(&driver.nodes.get(to.at(index)?)?.dependencies).retain(|&other| other != first);
    }
    Ok(())
}

driver! {
    fn [cuGraphExecUpdate]
        (executable: Handle, graph: Handle, node: Out<Handle>, result: Out<u32>) {
        let difference = update(driver()?, executable, graph)?;
        let (reason, at) = difference.map_or((0, 0), |(reason, at)| (reason as u32, at));
        node.set_if_wanted(at);
        result.set_if_wanted(reason);
        if reason == 0 { Ok(()) } else { Err(CudaError::GRAPH_EXEC_UPDATE_FAILURE) }
    }
    fn [cuGraphExecUpdate_v2] (executable: Handle, graph: Handle, info: Out<UpdateResult>) {
        let difference = update(driver()?, executable, graph)?;
        let (result, node) = difference.map_or((0, 0), |(reason, at)| (reason as u32, at));
        info.set_if_wanted(UpdateResult { result, node, from: 0 });
        if result == 0 { Ok(()) } else { Err(CudaError::GRAPH_EXEC_UPDATE_FAILURE) }
    }
    fn [cuGraphExecKernelNodeSetParams cuGraphExecKernelNodeSetParams_v2]
        (executable: Handle, node: Handle, parameters: In<KernelNode>) {
        replace(executable, node, vec![kernel_node(driver()?, &parameters.get()?)?])
    }
    fn [cuGraphExecMemcpyNodeSetParams]
        (executable: Handle, node: Handle, copy: In<Copy3D>, _context: Handle) {
        replace(executable, node, vec![copy_node(driver()?, &copy.get()?)?])
    }
    fn [cuGraphExecMemsetNodeSetParams]
        (executable: Handle, node: Handle, fill: In<MemsetNode>, _context: Handle) {
        replace(executable, node, vec![memset(driver()?, &fill.get()?)?])
    }
    fn [cuGraphExecHostNodeSetParams] (executable: Handle, node: Handle, parameters: In<HostNode>) {
        replace(executable, node, vec![host(&parameters.get()?)?])
    }
    fn [cuGraphExecChildGraphNodeSetParams] (executable: Handle, node: Handle, graph: Handle) {
        replace(executable, node, child(driver()?, graph)?)
    }
    fn [cuGraphExecEventRecordNodeSetEvent] (executable: Handle, node: Handle, event: Handle) {
        replace(executable, node, vec![driver()?.events.get(event)?.record()])
    }
    fn [cuGraphExecEventWaitNodeSetEvent] (executable: Handle, node: Handle, event: Handle) {
        replace(executable, node, vec![driver()?.events.get(event)?.wait()])
    }
    fn [cuGraphExecNodeSetParams] (executable: Handle, node: Handle, parameters: usize) {
        let (_, operations, memory) = content(driver()?, parameters)?;
        if memory.is_some() { Err(CudaError::NOT_SUPPORTED) } else { replace(executable, node, operations) }
    }
    fn [cuGraphKernelNodeSetParams cuGraphKernelNodeSetParams_v2] (node: Handle, parameters: In<KernelNode>) {
        set_node(node, kernel_node(driver()?, &parameters.get()?)?)
    }
    fn [cuGraphMemcpyNodeSetParams] (node: Handle, copy: In<Copy3D>) {
        set_node(node, copy_node(driver()?, &copy.get()?)?)
    }
    fn [cuGraphMemsetNodeSetParams] (node: Handle, fill: In<MemsetNode>) {
        set_node(node, memset(driver()?, &fill.get()?)?)
    }
    fn [cuGraphHostNodeSetParams] (node: Handle, parameters: In<HostNode>) {
        set_node(node, host(&parameters.get()?)?)
    }
    fn [cuGraphEventRecordNodeSetEvent] (node: Handle, event: Handle) {
        set_node(node, driver()?.events.get(event)?.record())
    }
    fn [cuGraphEventWaitNodeSetEvent] (node: Handle, event: Handle) {
        set_node(node, driver()?.events.get(event)?.wait())
    }
    fn [cuGraphNodeSetParams] (node: Handle, parameters: usize) {
        let (_, mut operations, _) = content(driver()?, parameters)?;
        set_node(node, operations.pop().ok_or(CudaError::NOT_SUPPORTED)?)
    }
    fn [cuGraphNodeSetEnabled] (executable: Handle, node: Handle, enabled: u32) {
        let executable = driver()?.executables.get(executable)?;
        let mut steps = lock(&executable.steps);
        let step = steps.iter_mut().find(|step| step.node == node).ok_or(CudaError::INVALID_VALUE)?;
        // Only these can be left out, as with the real driver.
        if !matches!(step.kind, NodeKind::Kernel | NodeKind::Memcpy | NodeKind::Memset) {
            return Err(CudaError::INVALID_VALUE);
        }
        step.enabled = enabled != 0;
        Ok(())
    }
    fn [cuGraphNodeGetEnabled] (executable: Handle, node: Handle, enabled: Out<u32>) {
        let executable = driver()?.executables.get(executable)?;
        let steps = lock(&executable.steps);
        let step = steps.iter().find(|step| step.node == node).ok_or(CudaError::INVALID_VALUE)?;
        enabled.set(step.enabled.into())
    }
    fn [cuGraphAddNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, parameters: usize) {
        add_node(out, graph, dependencies, count, content(driver()?, parameters)?)
    }
    fn [cuGraphAddNode_v2] (
        out: Out<Handle>, graph: Handle, dependencies: In<Handle>, _edges: In<u64>, count: usize, parameters: usize,
    ) {
        add_node(out, graph, dependencies, count, content(driver()?, parameters)?)
    }
    fn [cuGraphAddDependencies] (graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        connect(graph, from, to, count)
    }
    fn [cuGraphAddDependencies_v2]
        (graph: Handle, from: In<Handle>, to: In<Handle>, _edges: In<u64>, count: usize) {
        connect(graph, from, to, count)
    }
    fn [cuGraphRemoveDependencies] (graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) {
        disconnect(graph, from, to, count)
    }
    fn [cuGraphRemoveDependencies_v2]
        (graph: Handle, from: In<Handle>, to: In<Handle>, _edges: In<u64>, count: usize) {
        disconnect(graph, from, to, count)
    }
    fn [cuGraphGetEdges] (graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) {
        list_edges(graph, from, to, count)
    }
    fn [cuGraphGetEdges_v2]
        (graph: Handle, from: Out<Handle>, to: Out<Handle>, data: Out<u64>, count: Out<usize>) {
        // Plain edges all of them.
        if !data.is_null() {
            (0..count.get()?).try_for_each(|index| data.set_at(index, 0))?;
        }
        list_edges(graph, from, to, count)
    }
    fn [cuGraphNodeGetDependentNodes] (node: Handle, out: Out<Handle>, count: Out<usize>) {
        dependents(node, out, count)
    }
}
