//! Wrappers of waiting, of stream capture, and of what ends streams or makes them wait: the places where measuring must be
//! brought up to date. They never hold a call back.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::abi::{DevicePtr, Handle, STREAM_PER_THREAD, Status};
use crate::driver;
use crate::session::session;
use crate::wrappers::wrappers;

/// Captures that have begun and not ended, so that a launch asks about its stream only while there is one.
static CAPTURES: AtomicUsize = AtomicUsize::new(0);

/// Whether any stream of the process captures.
pub(crate) fn is_any_capturing() -> bool {
    CAPTURES.load(Ordering::Relaxed) > 0
}

/// Whether what is launched on `stream` is recorded instead of run.
pub(crate) fn is_capturing(stream: Handle, per_thread: bool) -> bool {
    if !is_any_capturing() {
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
    CAPTURES.fetch_add(1, Ordering::SeqCst);
    // A launch into an open batch does not ask whether its stream captures: nothing may be open there.
    if let Some(session) = session() {
        session.harvester.close_all(session);
    }
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

/// Something that is no work of the GPU, or waits for work of others, is put on `stream`: it must not lie within a batch.
/// The next batch begins after it.
fn stalled(stream: Handle, real: impl FnOnce() -> Status) -> Status {
    if let Some(session) = session() {
        session.harvester.close_stream(session, stream as usize);
    }
    real()
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
    [cuLaunchHostFunc, cuLaunchHostFunc_ptsz](
        stream: Handle, function: Handle, data: Handle
    ) |real, per_thread| { stalled(stream, real) }
    [
        cuLaunchHostFunc_v2, cuLaunchHostFunc_v2_ptsz, cuStreamAddCallback, cuStreamAddCallback_ptsz,
    ](stream: Handle, function: Handle, data: Handle, flags: u32) |real, per_thread| { stalled(stream, real) }
    [cuStreamWaitEvent, cuStreamWaitEvent_ptsz](
        stream: Handle, event: Handle, flags: u32
    ) |real, per_thread| { stalled(stream, real) }
    [
        cuStreamWaitValue32, cuStreamWaitValue32_ptsz, cuStreamWaitValue32_v2, cuStreamWaitValue32_v2_ptsz,
    ](stream: Handle, address: DevicePtr, value: u32, flags: u32) |real, per_thread| { stalled(stream, real) }
    [
        cuStreamWaitValue64, cuStreamWaitValue64_ptsz, cuStreamWaitValue64_v2, cuStreamWaitValue64_v2_ptsz,
    ](stream: Handle, address: DevicePtr, value: u64, flags: u32) |real, per_thread| { stalled(stream, real) }
    [
        cuStreamBatchMemOp, cuStreamBatchMemOp_ptsz, cuStreamBatchMemOp_v2, cuStreamBatchMemOp_v2_ptsz,
    ](stream: Handle, count: u32, operations: Handle, flags: u32) |real, per_thread| { stalled(stream, real) }
    [cuWaitExternalSemaphoresAsync, cuWaitExternalSemaphoresAsync_ptsz](
        semaphores: Handle, parameters: Handle, count: u32, stream: Handle
    ) |real, per_thread| { stalled(stream, real) }
}
