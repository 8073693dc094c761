//! Graphs: made by hand or captured from streams, and launched as the sequence of their operations.
//!
//! Kernels of one process run one after the other anyway, so a graph's branches are not run side by side.

mod memory;
mod update;
mod user_object;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use self::memory::GraphMemory;
pub(super) use self::memory::{capture_allocation, capture_free, free_now, free_operation};
use self::user_object::Kept;
pub(super) use self::user_object::UserObject;
use super::abi::{Copy3D, HostNode, KernelNode, MemsetNode};
use super::copy::{Fill, copy_node};
use super::launch::kernel_node;
use super::state::{Driver, driver, lock, new_handle};
use super::stream::{Operation, Stream, call_later};
use super::{CudaError, DefaultStream, Handle, In, Out, Result, driver};

/// What a node does; the numbers are those of `CUgraphNodeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum NodeKind {
    Kernel = 0,
    Memcpy = 1,
    Memset = 2,
    Host = 3,
    Child = 4,
    Empty = 5,
    EventWait = 6,
    EventRecord = 7,
    MemAlloc = 10,
    MemFree = 11,
}

/// A node of a graph.
#[derive(Debug)]
pub(super) struct Node {
    graph: Handle,
    kind: NodeKind,
    /// One operation, none, or those of a child graph.
    operations: Mutex<Vec<Operation>>,
    dependencies: Mutex<Vec<Handle>>,
    memory: Option<GraphMemory>,
}

/// What a node does: its kind, its operations, and what it does to memory.
type Content = (NodeKind, Vec<Operation>, Option<GraphMemory>);

/// A graph.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// In the order in which they were added.
    nodes: Mutex<Vec<Handle>>,
    kept: Kept,
}

/// A graph that is ready to be launched.
#[derive(Debug)]
pub(super) struct Executable {
    steps: Mutex<Vec<Step>>,
    flags: u64,
    kept: Kept,
}

/// Flag of an executable graph: a launch first frees what the launch before left allocated.
const AUTO_FREE: u64 = 1;

/// A node of an executable graph.
#[derive(Clone, Debug)]
struct Step {
    node: Handle,
    kind: NodeKind,
    operations: Vec<Operation>,
    memory: Option<GraphMemory>,
    enabled: bool,
}

/// A capture of one or more streams into a graph.
#[derive(Debug)]
pub(super) struct Capture {
    id: u64,
    graph: Handle,
    /// The stream that it began on, by its number.
    origin: u32,
    streams: Mutex<Vec<Arc<Stream>>>,
    open: AtomicBool,
}

impl Capture {
    /// Adds an operation as a node. The order of the calls is an order that respects all dependencies.
    pub(super) fn record(&self, driver: &Driver, operation: Operation) {
        self.record_content(driver, (operation.kind, vec![operation], None));
    }

    /// Adds a node that allocates or frees.
    fn record_memory(&self, driver: &Driver, kind: NodeKind, memory: GraphMemory) {
        self.record_content(driver, (kind, Vec::new(), Some(memory)));
    }

    fn record_content(&self, driver: &Driver, content: Content) {
        if let Ok(graph) = driver.graphs.get(self.graph) {
            let last = lock(&graph.nodes).last().copied();
            add(driver, self.graph, &graph, content, last.into_iter().collect());
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Draws another stream into the capture.
    pub(super) fn join(self: &Arc<Self>, stream: &Arc<Stream>) -> Result {
        let mut slot = lock(&stream.capture);
        match &*slot {
            Some(other) if !Arc::ptr_eq(other, self) => Err(CudaError::STREAM_CAPTURE_UNSUPPORTED),
            Some(_) => Ok(()),
            None => {
                *slot = Some(Arc::clone(self));
                lock(&self.streams).push(Arc::clone(stream));
                Ok(())
            }
        }
    }
}

fn add(
    driver: &Driver,
    handle: Handle,
    graph: &Graph,
    (kind, operations, memory): Content,
    dependencies: Vec<Handle>,
) -> Handle {
    let node = Node {
        graph: handle,
        kind,
        operations: Mutex::new(operations),
        dependencies: Mutex::new(dependencies),
        memory,
    };
    let node = driver.nodes.add(node);
    lock(&graph.nodes).push(node);
    node
}

/// Adds a node that the program describes.
fn add_node(
    out: Out<Handle>,
    handle: Handle,
    dependencies: In<Handle>,
    count: usize,
    content: Content,
) -> Result {
    let driver = driver()?;
    let graph = driver.graphs.get(handle)?;
    let dependencies = (0..count).map(|index| dependencies.at(index)).collect::<Result<Vec<_>>>()?;
    if out.is_null() || !dependencies.iter().all(|node| lock(&graph.nodes).contains(node)) {
        return Err(CudaError::INVALID_VALUE);
    }
    out.set(add(driver, handle, &graph, content, dependencies))
}

/// The graph's nodes, each behind those that it depends on.
fn ordered(driver: &Driver, graph: &Graph) -> Result<Vec<(Handle, Arc<Node>)>> {
    let mut rest = Vec::new();
    for &handle in lock(&graph.nodes).iter() {
        rest.push((handle, driver.nodes.get(handle)?));
    }
    let mut done = BTreeSet::new();
    let mut order = Vec::new();
    while !rest.is_empty() {
        let before = rest.len();
        rest.retain(|(handle, node)| {
            let ready = lock(&node.dependencies).iter().all(|dependency| done.contains(dependency));
            if ready {
                done.insert(*handle);
                order.push((*handle, Arc::clone(node)));
            }
            !ready
        });
        if rest.len() == before {
            // A cycle.
            return Err(CudaError::INVALID_VALUE);
        }
    }
    Ok(order)
}

fn steps(driver: &Driver, graph: &Graph) -> Result<Vec<Step>> {
    let step = |(node, content): (Handle, Arc<Node>)| Step {
        node,
        kind: content.kind,
        operations: lock(&content.operations).clone(),
        memory: content.memory.clone(),
        enabled: true,
    };
    Ok(ordered(driver, graph)?.into_iter().map(step).collect())
}

/// The operations of a graph that becomes a node. It has no nodes that allocate, which is not simulated.
fn child(driver: &Driver, graph: Handle) -> Result<Vec<Operation>> {
    let steps = steps(driver, &*driver.graphs.get(graph)?)?;
    if steps.iter().any(|step| step.memory.is_some()) {
        return Err(CudaError::NOT_SUPPORTED);
    }
    Ok(steps.into_iter().flat_map(|step| step.operations).collect())
}

fn instantiate(out: Out<Handle>, graph: Handle, flags: u64) -> Result {
    let driver = driver()?;
    if out.is_null() {
        return Err(CudaError::INVALID_VALUE);
    }
    let graph = driver.graphs.get(graph)?;
    let (steps, kept) = (Mutex::new(steps(driver, &graph)?), Kept::default());
    kept.take_over(&graph.kept)?;
    out.set(driver.executables.add(Executable { steps, flags, kept }))
}

fn begin(stream: Handle, default: DefaultStream, graph: Option<Handle>) -> Result {
    static CAPTURES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let driver = driver()?;
    let stream = driver.stream(stream, default)?;
    if stream.kind() == crate::gpu::StreamKind::Legacy {
        return Err(CudaError::STREAM_CAPTURE_UNSUPPORTED);
    }
    let graph = graph.unwrap_or_else(|| driver.graphs.add(Graph::default()));
    let capture = Arc::new(Capture {
        id: CAPTURES.fetch_add(1, Ordering::Relaxed),
        graph,
        origin: stream.id,
        streams: Mutex::default(),
        open: AtomicBool::new(true),
    });
    if stream.is_capturing() {
        return Err(CudaError::ILLEGAL_STATE);
    }
    capture.join(&stream)
}

fn end(stream: Handle, default: DefaultStream, out: Out<Handle>) -> Result {
    let stream = driver()?.stream(stream, default)?;
    let capture = lock(&stream.capture).clone().ok_or(CudaError::ILLEGAL_STATE)?;
    if capture.origin != stream.id {
        return Err(CudaError::STREAM_CAPTURE_UNSUPPORTED);
    }
    capture.open.store(false, Ordering::Release);
    for joined in lock(&capture.streams).drain(..) {
        *lock(&joined.capture) = None;
    }
    out.set(capture.graph)
}

/// Where the facts about a capture go.
struct CaptureInfo {
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<usize>,
    count: Out<usize>,
}

fn describe(stream: Handle, default: DefaultStream, info: &CaptureInfo) -> Result {
    let capture = lock(&driver()?.stream(stream, default)?.capture).clone();
    info.status.set(u32::from(capture.is_some()))?;
    if let Some(capture) = capture {
        info.id.set_if_wanted(capture.id);
        info.graph.set_if_wanted(capture.graph);
        info.dependencies.set_if_wanted(0);
        info.count.set_if_wanted(0);
    }
    Ok(())
}

fn launch(executable: Handle, stream: Handle, default: DefaultStream) -> Result {
    let driver = driver()?;
    let executable = driver.executables.get(executable)?;
    let stream = driver.stream(stream, default)?;
    let context = driver.context(stream.context)?;
    let steps = lock(&executable.steps).clone();
    let auto_free = executable.flags & AUTO_FREE != 0;
    for step in steps.into_iter().filter(|step| step.enabled) {
        match &step.memory {
            Some(GraphMemory::Take(allocation)) => allocation.take(driver, &context, auto_free)?,
            Some(GraphMemory::Free(allocation)) => stream.enqueue(driver, allocation.free()?)?,
            None => {}
        }
        step.operations.into_iter().try_for_each(|operation| stream.enqueue(driver, operation))?;
    }
    Ok(())
}

fn memset(driver: &Driver, node: &MemsetNode) -> Result<Operation> {
    let (element, value) = (node.element_size as usize, node.value);
    if !matches!(element, 1 | 2 | 4) {
        return Err(CudaError::INVALID_VALUE);
    }
    let (dst, pitch, width, height) = (node.dst, node.pitch, node.width, node.height);
    Fill { dst, pitch, value, element, width, height }.operation(driver)
}

fn host(node: &HostNode) -> Result<Operation> {
    let function = node.function.ok_or(CudaError::INVALID_VALUE)?;
    let argument = std::ptr::with_exposed_provenance_mut(node.argument);
    Ok(Operation::host(call_later(function, argument)))
}

fn destroy(handle: Handle) -> Result {
    let driver = driver()?;
    driver.graphs.remove(handle)?;
    driver.nodes.retain(|node| node.graph != handle);
    Ok(())
}

/// Writes handles to an array, or their number if there is no array.
fn list(handles: &[Handle], out: Out<Handle>, count: Out<usize>) -> Result {
    if out.is_null() {
        return count.set(handles.len());
    }
    let room = count.get()?;
    for index in 0..room {
        out.set_at(index, handles.get(index).copied().unwrap_or(0))?;
    }
    count.set(room.min(handles.len()))
}

driver! {
    fn [cuStreamBeginCapture | cuStreamBeginCapture_ptsz] default (stream: Handle) {
        begin(stream, default, None)
    }
    fn [cuStreamBeginCapture_v2 | cuStreamBeginCapture_v2_ptsz] default (stream: Handle, _mode: u32) {
        begin(stream, default, None)
    }
    fn [cuStreamBeginCaptureToGraph | cuStreamBeginCaptureToGraph_ptsz] default (
        stream: Handle, graph: Handle, _dependencies: In<Handle>, _data: In<u64>, _count: usize, _mode: u32,
    ) {
        driver()?.graphs.get(graph)?;
        begin(stream, default, Some(graph))
    }
    fn [cuStreamEndCapture | cuStreamEndCapture_ptsz] default (stream: Handle, graph: Out<Handle>) {
        end(stream, default, graph)
    }
    fn [cuStreamIsCapturing | cuStreamIsCapturing_ptsz] default (stream: Handle, status: Out<u32>) {
        status.set(u32::from(driver()?.stream(stream, default)?.is_capturing()))
    }
    fn [cuThreadExchangeStreamCaptureMode] (mode: Out<u32>) {
        // Calls that a capture forbids fail in all modes alike: what was set before is always "global".
        mode.set(0)
    }
    fn [cuStreamGetCaptureInfo | cuStreamGetCaptureInfo_ptsz] default
        (stream: Handle, status: Out<u32>, id: Out<u64>) {
        let (graph, dependencies, count) = (Out::nowhere(), Out::nowhere(), Out::nowhere());
        describe(stream, default, &CaptureInfo { status, id, graph, dependencies, count })
    }
    fn [cuStreamGetCaptureInfo_v2 | cuStreamGetCaptureInfo_v2_ptsz] default (
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: Out<usize>,
        count: Out<usize>,
    ) {
        describe(stream, default, &CaptureInfo { status, id, graph, dependencies, count })
    }
    fn [cuStreamGetCaptureInfo_v3 | cuStreamGetCaptureInfo_v3_ptsz] default (
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: Out<usize>,
        edges: Out<usize>, count: Out<usize>,
    ) {
        edges.set_if_wanted(0);
        describe(stream, default, &CaptureInfo { status, id, graph, dependencies, count })
    }
    fn [cuGraphCreate] (out: Out<Handle>, _flags: u32) {
        out.set(driver()?.graphs.add(Graph::default()))
    }
    fn [cuGraphDestroy] (graph: Handle) {
        destroy(graph)
    }
    fn [cuGraphClone] (out: Out<Handle>, graph: Handle) {
        let driver = driver()?;
        let handle = new_handle();
        let (original, clone) = (driver.graphs.get(graph)?, Arc::new(Graph::default()));
        clone.kept.take_over(&original.kept)?;
        for (_, node) in ordered(driver, &original)? {
            let last = lock(&clone.nodes).last().copied();
            let operations = lock(&node.operations).clone();
            let content = (node.kind, operations, node.memory.clone());
            add(driver, handle, &clone, content, last.into_iter().collect());
        }
        driver.graphs.insert(handle, clone);
        out.set(handle)
    }
    fn [cuGraphAddKernelNode cuGraphAddKernelNode_v2]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, node: In<KernelNode>) {
        let operation = kernel_node(driver()?, &node.get()?)?;
        add_node(out, graph, dependencies, count, (NodeKind::Kernel, vec![operation], None))
    }
    fn [cuGraphAddMemcpyNode] (
        out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, copy: In<Copy3D>, _context: Handle,
    ) {
        let operation = copy_node(driver()?, &copy.get()?)?;
        add_node(out, graph, dependencies, count, (NodeKind::Memcpy, vec![operation], None))
    }
    fn [cuGraphAddMemsetNode] (
        out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, fill: In<MemsetNode>,
        _context: Handle,
    ) {
        let operation = memset(driver()?, &fill.get()?)?;
        add_node(out, graph, dependencies, count, (NodeKind::Memset, vec![operation], None))
    }
    fn [cuGraphAddHostNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, node: In<HostNode>) {
        let operation = host(&node.get()?)?;
        add_node(out, graph, dependencies, count, (NodeKind::Host, vec![operation], None))
    }
    fn [cuGraphAddEmptyNode] (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize) {
        add_node(out, graph, dependencies, count, (NodeKind::Empty, Vec::new(), None))
    }
    fn [cuGraphAddEventRecordNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, event: Handle) {
        let operation = driver()?.events.get(event)?.record();
        add_node(out, graph, dependencies, count, (NodeKind::EventRecord, vec![operation], None))
    }
    fn [cuGraphAddEventWaitNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, event: Handle) {
        let operation = driver()?.events.get(event)?.wait();
        add_node(out, graph, dependencies, count, (NodeKind::EventWait, vec![operation], None))
    }
    fn [cuGraphAddChildGraphNode]
        (out: Out<Handle>, graph: Handle, dependencies: In<Handle>, count: usize, child: Handle) {
        let driver = driver()?;
        let operations = self::child(driver, child)?;
        driver.graphs.get(graph)?.kept.take_over(&driver.graphs.get(child)?.kept)?;
        add_node(out, graph, dependencies, count, (NodeKind::Child, operations, None))
    }
    fn [cuGraphDestroyNode] (handle: Handle) {
        let driver = driver()?;
        let node = driver.nodes.remove(handle)?;
        let graph = driver.graphs.get(node.graph)?;
        let mut nodes = lock(&graph.nodes);
        nodes.retain(|&other| other != handle);
        for other in nodes.iter().filter_map(|&other| driver.nodes.get(other).ok()) {
            lock(&other.dependencies).retain(|&dependency| dependency != handle);
        }
        Ok(())
    }
    fn [cuGraphGetNodes] (graph: Handle, out: Out<Handle>, count: Out<usize>) {
        let graph = driver()?.graphs.get(graph)?;
        list(&lock(&graph.nodes), out, count)
    }
    fn [cuGraphGetRootNodes] (graph: Handle, out: Out<Handle>, count: Out<usize>) {
        let driver = driver()?;
        let nodes = ordered(driver, &*driver.graphs.get(graph)?)?;
        let roots: Vec<Handle> = nodes
            .iter()
            .filter(|(_, node)| lock(&node.dependencies).is_empty())
            .map(|(handle, _)| *handle)
            .collect();
        list(&roots, out, count)
    }
    fn [cuGraphNodeGetDependencies] (node: Handle, out: Out<Handle>, count: Out<usize>) {
        let node = driver()?.nodes.get(node)?;
        list(&lock(&node.dependencies), out, count)
    }
    fn [cuGraphNodeGetType] (node: Handle, kind: Out<u32>) {
        kind.set(driver()?.nodes.get(node)?.kind as u32)
    }
    fn [cuGraphInstantiate cuGraphInstantiate_v2]
        (out: Out<Handle>, graph: Handle, _error_node: Out<Handle>, _log: Out<u8>, _log_size: usize) {
        instantiate(out, graph, 0)
    }
    fn [cuGraphInstantiateWithFlags] (out: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }
    fn [cuGraphInstantiateWithParams | cuGraphInstantiateWithParams_ptsz] _default
        (out: Out<Handle>, graph: Handle, parameters: Out<u64>) {
        // The first field of the structure holds the flags.
        instantiate(out, graph, parameters.get()?)?;
        // The third and fourth say what went wrong: nothing.
        parameters.set_at(2, 0)?;
        parameters.set_at(3, 0)
    }
    fn [cuGraphUpload | cuGraphUpload_ptsz] default (executable: Handle, stream: Handle) {
        driver()?.executables.get(executable)?;
        driver()?.stream(stream, default).map(|_| ())
    }
    fn [cuGraphLaunch | cuGraphLaunch_ptsz] default (executable: Handle, stream: Handle) {
        launch(executable, stream, default)
    }
    fn [cuGraphExecGetFlags] (executable: Handle, flags: Out<u64>) {
        flags.set(driver()?.executables.get(executable)?.flags)
    }
    fn [cuGraphExecDestroy] (executable: Handle) {
        driver()?.executables.remove(executable).map(|_| ())
    }
}
