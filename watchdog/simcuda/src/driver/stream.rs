//! Streams: queueing, waiting, and the bound on how much may be queued.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::gpu::{QUEUE_LIMIT, StreamKind};
use crate::wire::{Request, Target, Task};

use super::abi::{HostFunction, Opaque};
use super::graph::{Capture, NodeKind};
use super::link::{Condition, Effect};
use super::state::{Context, Driver, driver, lock};
use super::{CudaError, Handle, Out, Result, driver};

/// Flag of a stream that does not wait for the legacy default stream.
pub(super) const NON_BLOCKING: u32 = 1;

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// The handle of its context.
    pub(super) context: Handle,
    pub(super) gpu: u8,
    /// Its number at the daemon.
    pub(super) id: u32,
    kind: StreamKind,
    priority: i32,
    flow: Mutex<Flow>,
    pub(super) capture: Mutex<Option<Arc<Capture>>>,
}

/// How much is queued, as far as this process knows.
#[derive(Debug, Default)]
struct Flow {
    submitted: u64,
    retired: u64,
}

/// One operation for a stream or a node for a graph.
#[derive(Clone)]
pub(super) struct Operation {
    pub(super) kind: NodeKind,
    /// What the GPU does; nothing for an empty node.
    pub(super) task: Option<Task>,
    /// What happens in this process when it is done.
    pub(super) effect: Option<Effect>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation")
            .field("kind", &self.kind)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

impl Operation {
    pub(super) fn host(effect: Effect) -> Self {
        Self { kind: NodeKind::Host, task: Some(Task::Host), effect: Some(effect) }
    }
}

impl Stream {
    pub(super) fn new(context: Handle, gpu: u8, id: u32, kind: StreamKind, priority: i32) -> Self {
        Self { context, gpu, id, kind, priority, flow: Mutex::default(), capture: Mutex::default() }
    }

    pub(super) fn create(
        driver: &Driver,
        context: &Context,
        kind: StreamKind,
        priority: i32,
    ) -> Result<Self> {
        let (gpu, stream) = (context.gpu, driver.number());
        let wire_kind = u8::from(kind == StreamKind::NonBlocking);
        driver.link.send(&Request::CreateStream { gpu, context: context.id, stream, kind: wire_kind })?;
        Ok(Self::new(context.handle, gpu, stream, kind, priority))
    }

    /// The default stream of the calling thread in `context`.
    pub(super) fn of_this_thread(driver: &Driver, context: &Context) -> Result<Arc<Self>> {
        let mut streams = lock(&context.per_thread);
        let thread = std::thread::current().id();
        if let Some(stream) = streams.get(&thread) {
            return Ok(Arc::clone(stream));
        }
        let stream = Arc::new(Self::create(driver, context, StreamKind::Blocking, 0)?);
        streams.insert(thread, Arc::clone(&stream));
        Ok(stream)
    }

    /// Queues an operation, or adds it to the graph that is being captured. Waits while the queue is full.
    pub(super) fn enqueue(&self, driver: &Driver, operation: Operation) -> Result {
        if let Some(capture) = &*lock(&self.capture) {
            capture.record(driver, operation);
            return Ok(());
        }
        let Some(task) = operation.task else { return Ok(()) };
        let mut flow = self.make_room(driver)?;
        driver.link.submit(self.gpu, self.id, task, operation.effect)?;
        flow.submitted += 1;
        Ok(())
    }

    /// Queues a wait for a condition.
    pub(super) fn enqueue_wait(&self, driver: &Driver, condition: Condition) -> Result {
        self.refuse_capture()?;
        let mut flow = self.make_room(driver)?;
        driver.link.submit_wait(self.gpu, self.id, condition)?;
        flow.submitted += 1;
        Ok(())
    }

    /// Waits while the queue is full. The lock is held meanwhile: other threads that queue on this stream have to wait
    /// too.
    fn make_room(&self, driver: &Driver) -> Result<MutexGuard<'_, Flow>> {
        driver.contexts.get(self.context).map_err(|_| CudaError::INVALID_CONTEXT)?.check()?;
        let mut flow = lock(&self.flow);
        if flow.submitted - flow.retired >= QUEUE_LIMIT {
            let (gpu, scope) = (self.gpu, Target::Room(self.id));
            let [_, retired] = driver.link.call(|token| Request::Watch { token, gpu, scope })?;
            flow.retired = retired;
        }
        Ok(flow)
    }

    pub(super) fn kind(&self) -> StreamKind {
        self.kind
    }

    pub(super) fn is_capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    /// Fails if the stream is being captured, when it can be neither waited for nor asked.
    pub(super) fn refuse_capture(&self) -> Result {
        if self.is_capturing() { Err(CudaError::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Waits for all that is queued.
    pub(super) fn synchronize(&self, driver: &Driver) -> Result {
        self.refuse_capture()?;
        let (gpu, scope) = (self.gpu, Target::Stream(self.id));
        driver.link.call(|token| Request::Watch { token, gpu, scope })?;
        driver.contexts.get(self.context).map_err(|_| CudaError::INVALID_CONTEXT)?.check()
    }
}

fn create(out: Out<Handle>, flags: u32, priority: i32) -> Result {
    if out.is_null() || flags > NON_BLOCKING {
        return Err(CudaError::INVALID_VALUE);
    }
    let driver = driver()?;
    let kind = if flags == NON_BLOCKING { StreamKind::NonBlocking } else { StreamKind::Blocking };
    let stream = Stream::create(driver, &*driver.current()?, kind, priority.clamp(-5, 0))?;
    out.set(driver.streams.add(stream))
}

driver! {
    fn [cuStreamCreate] (out: Out<Handle>, flags: u32) {
        create(out, flags, 0)
    }

    fn [cuStreamCreateWithPriority] (out: Out<Handle>, flags: u32, priority: i32) {
        create(out, flags, priority)
    }

    fn [cuStreamDestroy cuStreamDestroy_v2] (handle: Handle) {
        let driver = driver()?;
        let stream = driver.streams.remove(handle)?;
        driver.link.send(&Request::DestroyStream { gpu: stream.gpu, stream: stream.id })
    }

    fn [cuStreamSynchronize | cuStreamSynchronize_ptsz] default (stream: Handle) {
        let driver = driver()?;
        driver.stream(stream, default)?.synchronize(driver)
    }

    fn [cuStreamQuery | cuStreamQuery_ptsz] default (stream: Handle) {
        let driver = driver()?;
        let stream = driver.stream(stream, default)?;
        stream.refuse_capture()?;
        let (gpu, scope) = (stream.gpu, Target::Stream(stream.id));
        driver.link.call(|token| Request::Query { token, gpu, scope }).map(|_| ())
    }

    fn [cuStreamGetFlags | cuStreamGetFlags_ptsz] default (stream: Handle, flags: Out<u32>) {
        let stream = driver()?.stream(stream, default)?;
        flags.set(if stream.kind == StreamKind::NonBlocking { NON_BLOCKING } else { 0 })
    }

    fn [cuStreamGetPriority | cuStreamGetPriority_ptsz] default (stream: Handle, priority: Out<i32>) {
        priority.set(driver()?.stream(stream, default)?.priority)
    }

    fn [cuStreamGetCtx | cuStreamGetCtx_ptsz] default (stream: Handle, context: Out<Handle>) {
        context.set(driver()?.stream(stream, default)?.context)
    }

    fn [cuStreamGetCtx_v2 | cuStreamGetCtx_v2_ptsz] default
        (stream: Handle, context: Out<Handle>, green: Out<Handle>) {
        context.set(driver()?.stream(stream, default)?.context)?;
        green.set_if_wanted(0);
        Ok(())
    }

    fn [cuStreamGetDevice | cuStreamGetDevice_ptsz] default (stream: Handle, device: Out<i32>) {
        let driver = driver()?;
        device.set(driver.context(driver.stream(stream, default)?.context)?.ordinal)
    }

    fn [cuStreamGetId | cuStreamGetId_ptsz] default (stream: Handle, id: Out<u64>) {
        id.set(driver()?.stream(stream, default)?.id.into())
    }

    // Attributes change nothing that is simulated.
    fn [cuStreamSetAttribute | cuStreamSetAttribute_ptsz] default (stream: Handle, _kind: u32, _value: usize) {
        driver()?.stream(stream, default).map(|_| ())
    }

    fn [cuStreamGetAttribute | cuStreamGetAttribute_ptsz] default
        (stream: Handle, _kind: u32, value: Out<[u64; 8]>) {
        driver()?.stream(stream, default)?;
        value.set([0; 8])
    }

    fn [cuStreamCopyAttributes | cuStreamCopyAttributes_ptsz] default (dst: Handle, src: Handle) {
        driver()?.stream(dst, default)?;
        driver()?.stream(src, default).map(|_| ())
    }

    fn [cuStreamAttachMemAsync | cuStreamAttachMemAsync_ptsz] default
        (stream: Handle, _pointer: u64, _length: usize, _flags: u32) {
        driver()?.stream(stream, default).map(|_| ())
    }

    fn [cuLaunchHostFunc | cuLaunchHostFunc_ptsz] default
        (stream: Handle, function: Option<HostFunction>, argument: Opaque) {
        let driver = driver()?;
        let function = function.ok_or(CudaError::INVALID_VALUE)?;
        driver.stream(stream, default)?.enqueue(driver, Operation::host(call_later(function, argument)))
    }

    fn [cuLaunchHostFunc_v2 | cuLaunchHostFunc_v2_ptsz] default
        (stream: Handle, function: Option<HostFunction>, argument: Opaque, _mode: u32) {
        let driver = driver()?;
        let function = function.ok_or(CudaError::INVALID_VALUE)?;
        driver.stream(stream, default)?.enqueue(driver, Operation::host(call_later(function, argument)))
    }

    fn [cuStreamAddCallback | cuStreamAddCallback_ptsz] default
        (stream: Handle, callback: Option<StreamCallback>, argument: Opaque, _flags: u32) {
        let driver = driver()?;
        let callback = callback.ok_or(CudaError::INVALID_VALUE)?;
        let argument = argument.expose_provenance();
        let effect: Effect = Arc::new(move || callback(stream, 0, std::ptr::with_exposed_provenance_mut(argument)));
        driver.stream(stream, default)?.enqueue(driver, Operation::host(effect))
    }
}

/// `CUstreamCallback`.
type StreamCallback = extern "C" fn(Handle, u32, Opaque);

/// The call of a host function, for later.
pub(super) fn call_later(function: HostFunction, argument: Opaque) -> Effect {
    let argument = argument.expose_provenance();
    Arc::new(move || function(std::ptr::with_exposed_provenance_mut(argument)))
}
