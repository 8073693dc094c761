//! Wrappers of waiting, of stream capture, and of what ends streams and contexts: the places where measuring must be
//! brought up to date. They never hold a call back.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::abi::{Handle, STREAM_PER_THREAD, Status};
use crate::driver;
use crate::session::session;
use crate::wrappers::wrappers;

/// Captures that have begun and not ended, so that a launch asks about its stream only while there is one.
static CAPTURES: AtomicUsize = AtomicUsize::new(0);

/// Whether what is launched on `stream` is recorded instead of run.
pub(crate) fn is_capturing(stream: Handle, per_thread: bool) -> bool {
    if CAPTURES.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let stream = if stream.is_null() && per_thread { STREAM_PER_THREAD as Handle } else { stream };
    let mut status = 0;
    // What can't be asked (the default stream while another one captures) can't be launched on either.
    !driver::stream_is_capturing(stream, &mut status).is_ok() || status != 0
}

/// Batches end before the wait, so that the gap until the next launch is not measured as work.
fn harvested(real: impl FnOnce() -> Status) -> Status {
    let Some(session) = session() else { return real() };
    session.harvester.close_current(session);
    let status = real();
    session.memory.settle_freed(session);
    status
}

fn begin_capture(real: impl FnOnce() -> Status) -> Status {
    if let Some(session) = session() {
        session.harvester.close_current(session);
    }
    CAPTURES.fetch_add(1, Ordering::SeqCst);
    let status = real();
    if !status.is_ok() {
        CAPTURES.fetch_sub(1, Ordering::SeqCst);
    }
    status
}

fn end_capture(real: impl FnOnce() -> Status) -> Status {
    let status = real();
    // One that became invalid ends with an error, and ends all the same; one that never began does not count below 0.
    let _ = CAPTURES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |captures| captures.checked_sub(1));
    status
}

fn destroy_stream(stream: Handle, real: impl FnOnce() -> Status) -> Status {
    if let Some(session) = session().filter(|_| !stream.is_null()) {
        session.harvester.forget_stream(session, stream as usize);
    }
    real()
}

fn destroy_context(context: Handle, real: impl FnOnce() -> Status) -> Status {
    if let Some(session) = session() {
        session.harvester.drain(session, context as usize);
        session.harvester.forget_context(context as usize);
    }
    real()
}

/// The primary context of each device that the program retained.
static PRIMARY: Mutex<Option<HashMap<i32, usize>>> = Mutex::new(None);

fn retain_primary(context: *mut Handle, device: i32, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if status.is_ok() && !context.is_null() {
        // SAFETY: the driver just wrote it.
        let context = unsafe { *context } as usize;
        let mut primary = PRIMARY.lock().unwrap_or_else(PoisonError::into_inner);
        primary.get_or_insert_default().insert(device, context);
    }
    status
}

/// The last release destroys the context, a reset does so at once.
fn release_primary(device: i32, real: impl FnOnce() -> Status) -> Status {
    let known = PRIMARY
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .and_then(|all| all.get(&device).copied());
    let Some((session, context)) = session().zip(known) else { return real() };
    session.harvester.drain(session, context);
    let status = real();
    let (mut flags, mut active) = (0, 0);
    if status.is_ok() && driver::primary_state(device, &mut flags, &mut active).is_ok() && active == 0 {
        session.harvester.forget_context(context);
    }
    status
}

wrappers! {
    [cuCtxSynchronize]() |real, per_thread| { harvested(real) }
    [cuCtxSynchronize_v2](context: Handle) |real, per_thread| { harvested(real) }
    [cuStreamSynchronize, cuStreamSynchronize_ptsz, cuStreamQuery, cuStreamQuery_ptsz](
        stream: Handle
    ) |real, per_thread| { harvested(real) }
    [cuEventSynchronize, cuEventQuery](event: Handle) |real, per_thread| { harvested(real) }
    [cuStreamBeginCapture, cuStreamBeginCapture_ptsz](stream: Handle) |real, per_thread| { begin_capture(real) }
    [cuStreamBeginCapture_v2, cuStreamBeginCapture_v2_ptsz](
        stream: Handle, mode: i32
    ) |real, per_thread| { begin_capture(real) }
    [cuStreamBeginCaptureToGraph, cuStreamBeginCaptureToGraph_ptsz](
        stream: Handle, graph: Handle, dependencies: Handle, edges: Handle, count: usize, mode: i32
    ) |real, per_thread| { begin_capture(real) }
    // Forms of CUDA 13 that the hook looks into no further: as many words as calls carry in registers pass them on.
    [
        cuStreamBeginCaptureToCig, cuStreamBeginCaptureToCig_ptsz,
        cuStreamBeginRecaptureToGraph, cuStreamBeginRecaptureToGraph_ptsz,
    ](a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) |real, per_thread| { begin_capture(real) }
    [
        cuStreamEndCapture, cuStreamEndCapture_ptsz, cuStreamEndCaptureToCig, cuStreamEndCaptureToCig_ptsz,
    ](stream: Handle, b: usize, c: usize, d: usize, e: usize, f: usize) |real, per_thread| { end_capture(real) }
    [cuStreamDestroy, cuStreamDestroy_v2](stream: Handle) |real, per_thread| { destroy_stream(stream, real) }
    [cuCtxDestroy, cuCtxDestroy_v2](context: Handle) |real, per_thread| { destroy_context(context, real) }
    [cuDevicePrimaryCtxRetain](context: *mut Handle, device: i32) |real, per_thread| {
        retain_primary(context, device, real)
    }
    [
        cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2
    ](device: i32) |real, per_thread| { release_primary(device, real) }
}
