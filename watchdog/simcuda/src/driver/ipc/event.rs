//! Events that processes share: two counters in memory that all of them map, of records begun and of records done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::backing::{map_file, open_of_process, store};
use super::super::event::Event;
use super::super::link::Condition;
use super::super::mapping::unmap;
use super::super::state::driver;
use super::super::{CudaError, Handle, Out, Result, driver};

/// How often a thread that waits looks at the counters.
const LOOK: Duration = Duration::from_micros(100);

/// Bytes of the page that holds the counters.
const PAGE: u64 = 4096;

/// `simcuda2`.
const MAGIC: u64 = u64::from_le_bytes(*b"simcuda2");

/// `CUipcEventHandle`: 64 bytes, of which these are used.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EventHandle {
    magic: u64,
    process: u32,
    descriptor: u32,
    place: u64,
    rest: [u64; 5],
}

/// The counters of an event that processes share.
#[derive(Debug)]
pub(in super::super) struct SharedEvent {
    /// Where this process has mapped them.
    address: u64,
    /// The process that made the event, and where in the file behind its memory they are.
    process: u32,
    place: u64,
}

impl Drop for SharedEvent {
    fn drop(&mut self) {
        unmap(self.address, PAGE);
        if self.process == std::process::id()
            && let Ok(store) = store()
        {
            store.give_back(self.place, PAGE);
        }
    }
}

impl SharedEvent {
    /// A new event of this process.
    pub(in super::super) fn create() -> Result<Arc<Self>> {
        let store = store()?;
        let place = store.take(PAGE);
        let address = store.map(place, PAGE)?;
        Ok(Arc::new(Self { address, process: std::process::id(), place }))
    }

    fn open(handle: &EventHandle) -> Result<Arc<Self>> {
        let &EventHandle { magic, process, descriptor, place, .. } = handle;
        if magic != MAGIC || !place.is_multiple_of(PAGE) {
            return Err(CudaError::INVALID_VALUE);
        }
        if process == std::process::id() {
            return Err(CudaError::INVALID_CONTEXT);
        }
        let address = map_file(&open_of_process(process, descriptor)?, place, PAGE, None)?;
        Ok(Arc::new(Self { address, process, place }))
    }

    fn counter(&self, index: usize) -> &AtomicU64 {
        let address = usize::try_from(self.address).unwrap_or_default() + index * size_of::<u64>();
        // SAFETY: the page is mapped as long as this exists, and all processes use it through atomics alone.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(address)) }
    }

    /// A record is queued. Returns its number.
    pub(in super::super) fn begin(&self) -> u64 {
        self.counter(0).fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Record `number` is done.
    pub(in super::super) fn finish(&self, number: u64) {
        self.counter(1).fetch_max(number, Ordering::AcqRel);
    }

    /// Whether all records that were queued by now are done. Those of a process that is gone never will be.
    fn condition(self: &Arc<Self>) -> Condition {
        let (event, wanted) = (Arc::clone(self), self.counter(0).load(Ordering::Acquire));
        let home = format!("/proc/{}", self.process);
        Arc::new(move || {
            event.counter(1).load(Ordering::Acquire) >= wanted || !std::path::Path::new(&home).exists()
        })
    }

    pub(in super::super) fn is_done(self: &Arc<Self>) -> bool {
        self.condition()()
    }

    pub(in super::super) fn wait(self: &Arc<Self>) {
        let condition = self.condition();
        while !condition() {
            std::thread::park_timeout(LOOK);
        }
    }

    /// What a stream waits for that waits for the event.
    pub(in super::super) fn reached(self: &Arc<Self>) -> Condition {
        self.condition()
    }

    fn handle(&self) -> Result<EventHandle> {
        // Only the process that made it knows the number of the descriptor.
        if self.process != std::process::id() {
            return Err(CudaError::INVALID_VALUE);
        }
        let descriptor = u32::try_from(store()?.descriptor()).map_err(|_| CudaError::INVALID_VALUE)?;
        Ok(EventHandle { magic: MAGIC, process: self.process, descriptor, place: self.place, rest: [0; 5] })
    }
}

driver! {
    fn [cuIpcGetEventHandle] (out: Out<EventHandle>, event: Handle) {
        let event = driver()?.events.get(event)?;
        out.set(event.shared.as_ref().ok_or(CudaError::INVALID_VALUE)?.handle()?)
    }

    fn [cuIpcOpenEventHandle] (out: Out<Handle>, handle: EventHandle) {
        if out.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        let driver = driver()?;
        let gpu = driver.current()?.gpu;
        out.set(driver.events.add(Event::imported(gpu, driver.number(), SharedEvent::open(&handle)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_reached_once_the_latest_record_is_done() {
        assert_eq!(size_of::<EventHandle>(), 64);
        let event = SharedEvent::create().unwrap();
        assert!(event.is_done());
        let (first, second) = (event.begin(), event.begin());
        let reached = event.reached();
        event.finish(first);
        assert!(!event.is_done() && !reached());
        event.finish(second);
        event.wait();
        assert!(reached());
    }
}
