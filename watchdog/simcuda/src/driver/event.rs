//! Events. Their times are those of the simulated timeline.

use std::sync::{Arc, Mutex};

use crate::wire::{Request, Target, Task};

use super::graph::{Capture, NodeKind};
use super::ipc::SharedEvent;
use super::link::Effect;
use super::state::{driver, lock};
use super::stream::Operation;
use super::{CudaError, DefaultStream, Handle, Out, Result, driver};

/// Flag of an event that takes no time.
const NO_TIMING: u32 = 2;

/// Flag of an event that other processes may open.
const INTERPROCESS: u32 = 4;

/// An event.
#[derive(Debug)]
pub(super) struct Event {
    gpu: u8,
    /// Its number at the daemon.
    id: u32,
    timing: bool,
    /// Whether it was ever recorded outside of a capture.
    recorded: std::sync::atomic::AtomicBool,
    /// The capture in which it was recorded last.
    captured: Mutex<Option<Arc<Capture>>>,
    /// For events that processes share.
    pub(super) shared: Option<Arc<SharedEvent>>,
}

impl Event {
    fn new(gpu: u8, id: u32, timing: bool, shared: Option<Arc<SharedEvent>>) -> Self {
        Self { gpu, id, timing, recorded: false.into(), captured: Mutex::default(), shared }
    }

    /// An event that another process made.
    pub(super) fn imported(gpu: u8, id: u32, shared: Arc<SharedEvent>) -> Self {
        Self::new(gpu, id, false, Some(shared))
    }

    fn scope(&self) -> Target {
        Target::Event(self.id)
    }

    fn is_recorded(&self) -> bool {
        self.recorded.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The operation that takes the event's time.
    pub(super) fn record(&self) -> Operation {
        self.recorded.store(true, std::sync::atomic::Ordering::Release);
        let effect = self.shared.as_ref().map(|shared| {
            let (shared, number) = (Arc::clone(shared), shared.begin());
            Arc::new(move || shared.finish(number)) as Effect
        });
        Operation { kind: NodeKind::EventRecord, task: Some(Task::Record(self.id)), effect }
    }

    /// The operation that waits for the event.
    pub(super) fn wait(&self) -> Operation {
        Operation { kind: NodeKind::EventWait, task: Some(Task::Wait(self.id)), effect: None }
    }
}

fn record(event: Handle, stream: Handle, default: DefaultStream) -> Result {
    let driver = driver()?;
    let (event, stream) = (driver.events.get(event)?, driver.stream(stream, default)?);
    if event.gpu != stream.gpu {
        return Err(CudaError::INVALID_HANDLE);
    }
    let capture = lock(&stream.capture).clone();
    let capturing = capture.is_some();
    *lock(&event.captured) = capture;
    // Work in a capture keeps its order by itself: the event only carries the capture to other streams.
    if capturing { Ok(()) } else { stream.enqueue(driver, event.record()) }
}

fn wait(stream: Handle, event: Handle, default: DefaultStream) -> Result {
    let driver = driver()?;
    let (event, stream) = (driver.events.get(event)?, driver.stream(stream, default)?);
    if let Some(capture) = lock(&event.captured).clone().filter(|capture| capture.is_open()) {
        return capture.join(&stream);
    }
    if let Some(shared) = &event.shared {
        return stream.enqueue_wait(driver, shared.reached());
    }
    if event.gpu == stream.gpu {
        return if event.is_recorded() { stream.enqueue(driver, event.wait()) } else { Ok(()) };
    }
    // Timelines of different GPUs meet in this process alone: wait here.
    synchronize(&event)
}

fn synchronize(event: &Event) -> Result {
    if let Some(shared) = &event.shared {
        shared.wait();
        return Ok(());
    }
    let driver = driver()?;
    if !event.is_recorded() || driver.link.recorded_at(event.id).is_some() {
        return Ok(());
    }
    let (gpu, scope) = (event.gpu, event.scope());
    driver.link.call(|token| Request::Watch { token, gpu, scope }).map(|_| ())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // The interface's type.
fn elapsed(out: Out<f32>, start: Handle, end: Handle) -> Result {
    let driver = driver()?;
    let (start, end) = (driver.events.get(start)?, driver.events.get(end)?);
    if !start.timing || !end.timing || !start.is_recorded() || !end.is_recorded() || start.gpu != end.gpu {
        return Err(CudaError::INVALID_HANDLE);
    }
    let time = |of: &Event| {
        let (gpu, event) = (of.gpu, of.id);
        if let Some(at) = driver.link.recorded_at(event) {
            return Ok(at.0);
        }
        driver.link.call(|token| Request::EventTime { token, gpu, event }).map(|[at, _]| at)
    };
    let (from, to) = (time(&start)?, time(&end)?);
    let nanos = to.abs_diff(from) as f64 * if to < from { -1.0 } else { 1.0 };
    out.set((nanos / 1e6) as f32)
}

driver! {
    fn [cuEventCreate] (out: Out<Handle>, flags: u32) {
        let driver = driver()?;
        let gpu = driver.current()?.gpu;
        let timing = flags & NO_TIMING == 0;
        let shared = match (flags & INTERPROCESS != 0, timing) {
            (true, true) => return Err(CudaError::INVALID_VALUE),
            (true, false) => Some(SharedEvent::create()?),
            (false, _) => None,
        };
        out.set(driver.events.add(Event::new(gpu, driver.number(), timing, shared)))
    }

    fn [cuEventDestroy cuEventDestroy_v2] (event: Handle) {
        let driver = driver()?;
        let event = driver.events.remove(event)?;
        driver.link.forget_event(event.gpu, event.id)
    }

    fn [cuEventRecord | cuEventRecord_ptsz] default (event: Handle, stream: Handle) {
        record(event, stream, default)
    }

    fn [cuEventRecordWithFlags | cuEventRecordWithFlags_ptsz] default (event: Handle, stream: Handle, _flags: u32) {
        record(event, stream, default)
    }

    fn [cuStreamWaitEvent | cuStreamWaitEvent_ptsz] default (stream: Handle, event: Handle, _flags: u32) {
        wait(stream, event, default)
    }

    fn [cuEventSynchronize] (event: Handle) {
        synchronize(&*driver()?.events.get(event)?)
    }

    fn [cuEventQuery] (event: Handle) {
        let driver = driver()?;
        let event = driver.events.get(event)?;
        if let Some(shared) = &event.shared {
            return if shared.is_done() { Ok(()) } else { Err(CudaError::NOT_READY) };
        }
        if !event.is_recorded() || driver.link.recorded_at(event.id).is_some() {
            return Ok(());
        }
        let (gpu, scope) = (event.gpu, event.scope());
        driver.link.call(|token| Request::Query { token, gpu, scope }).map(|_| ())
    }

    fn [cuEventElapsedTime cuEventElapsedTime_v2] (milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
