//! Wrappers of everything that starts kernels: wait for the right, launch, measure.
//!
//! A graph is one unit of work, a cooperative launch is never split, and into a capturing stream nothing is added.
#![allow(clippy::inline_always)] // The fast path is counted in instructions.

pub(crate) mod copies;
pub(crate) mod kernel;
pub(crate) mod sets;
pub(crate) mod shaped;

use core::ffi::c_void;

use crate::abi::{DeviceLaunch, Handle, LaunchConfig, STREAM_LEGACY, STREAM_PER_THREAD, Status};
use crate::config::config;
use crate::cost::Kind;
use crate::harvest::{LaneKey, Work, current};
use crate::lane::seat::{self, Job, Seat};
use crate::session::session;
use crate::wrappers::wrappers;
use crate::{driver, memory, sync};

/// A launch as the fast path sees it. Into a batch of this thread that is open it goes at once: not while a stream captures
/// (nothing is open then), nor in a process without a share (nothing is ever open). Nothing can be open on a thread's own
/// stream.
#[inline(always)]
fn joining(stream: Handle, per_thread: bool, job: Job) -> Option<(usize, Job)> {
    (!per_thread || !stream.is_null()).then_some((stream as usize, job))
}

/// Runs `launch` when this process may.
fn gated(stream: Handle, per_thread: bool, job: Job, mut launch: impl FnMut() -> Status) -> Status {
    run(stream, per_thread, (job, blocks(job.grid)), false, &mut launch)
}

/// The batch was closed while this thread launched into it.
#[cold]
#[inline(never)]
pub(crate) fn ended(seat: &Seat, status: Status) -> Status {
    if let Some((session, lane)) = session().zip(seat.lane()) {
        session.harvester.end(session, lane);
    }
    status
}

fn run(
    stream: Handle,
    per_thread: bool,
    (job, size): (Job, u64),
    blocks: bool,
    launch: &mut dyn FnMut() -> Status,
) -> Status {
    let Some(session) = session() else { return launch() };
    if sync::is_capturing(stream, per_thread) {
        return launch();
    }
    let cost = session.costs.of(Kind::new(job.what, size));
    let asked = stream as usize;
    let lane = session.harvester.lane(full(key(asked, per_thread)));
    let blocks = blocks || config().launches_block;
    session.harvester.launch(session, lane, &Work { asked, job, cost, blocks }, launch)
}

/// Names the stream as cheaply as possible: a stream that was created is named by itself.
fn key(stream: usize, per_thread: bool) -> LaneKey {
    match stream {
        STREAM_PER_THREAD => (current(), STREAM_PER_THREAD, seat::thread()),
        0 if per_thread => key(STREAM_PER_THREAD, true),
        0 | STREAM_LEGACY => (current(), STREAM_LEGACY, 0),
        _ => (0, stream, 0),
    }
}

/// The same with the context of a stream that was created.
fn full(key: LaneKey) -> LaneKey {
    if key.0 != 0 {
        return key;
    }
    let context = context_of(key.1 as Handle).unwrap_or_else(current);
    (context, key.1, key.2)
}

/// The context of a stream; that of a green context is the one that stands for it.
fn context_of(stream: Handle) -> Option<usize> {
    let (mut context, mut green) = (core::ptr::null_mut(), core::ptr::null_mut());
    if driver::stream_context(stream, &mut context).is_ok() && !context.is_null() {
        return Some(context as usize);
    }
    let is_green = driver::stream_green_context(stream, &mut context, &mut green).is_ok() && !green.is_null();
    (is_green && driver::context_of_green(&mut context, green).is_ok()).then_some(context as usize)
}

/// One launch of `function`.
#[inline(always)]
fn job(function: Handle, grid: [u32; 3]) -> Job {
    Job { what: function as usize, grid }
}

/// Blocks of a grid; one that is beyond the count is refused by the driver anyway.
fn blocks([x, y, z]: [u32; 3]) -> u64 {
    u64::from(x).wrapping_mul(u64::from(y)).wrapping_mul(u64::from(z))
}

wrappers! {
    [cuLaunchCooperativeKernel, cuLaunchCooperativeKernel_ptsz](
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: Handle, params: *mut *mut c_void
    ) |real, per_thread| try {
        joining(stream, per_thread, job(function, [grid_x, grid_y, grid_z]))
    } {
        gated(stream, per_thread, job(function, [grid_x, grid_y, grid_z]), real)
    }
    [cuLaunchKernelEx, cuLaunchKernelEx_ptsz](
        config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    ) |real, per_thread| try {
        // SAFETY: null, or the caller's configuration, which the driver reads in the same way.
        unsafe { config.as_ref() }
            .and_then(|config| joining(config.stream, per_thread, job(function, config.grid)))
    } {
        // SAFETY: as above.
        match unsafe { config.as_ref() } {
            Some(config) => gated(config.stream, per_thread, job(function, config.grid), real),
            None => real(),
        }
    }
    [cuGraphLaunch, cuGraphLaunch_ptsz](graph: Handle, stream: Handle) |real, per_thread| try {
        joining(stream, per_thread, job(graph, [1; 3])).filter(|_| !memory::graphs::is_any())
    } {
        if memory::graphs::is_any() && !sync::is_capturing(stream, per_thread) {
            return memory::graphs::launched(graph, || gated(stream, per_thread, job(graph, [1; 3]), real));
        }
        gated(stream, per_thread, job(graph, [1; 3]), real)
    }
    [cuLaunchCooperativeKernelMultiDevice](launches: *mut DeviceLaunch, count: u32, flags: u32) |real, per_thread| {
        // SAFETY: null, or the caller's list, which the driver reads in the same way.
        match unsafe { launches.as_ref() } {
            Some(first) if count > 0 => {
                gated(first.stream, per_thread, job(first.function, first.grid), real)
            }
            _ => real(),
        }
    }
    [cuLaunch](function: Handle) |real, per_thread| {
        gated(core::ptr::null_mut(), per_thread, job(function, [1; 3]), real)
    }
    [cuLaunchGrid](function: Handle, width: i32, height: i32) |real, per_thread| {
        let grid = [width.unsigned_abs(), height.unsigned_abs(), 1];
        gated(core::ptr::null_mut(), per_thread, job(function, grid), real)
    }
    [cuLaunchGridAsync](function: Handle, width: i32, height: i32, stream: Handle) |real, per_thread| {
        let grid = [width.unsigned_abs(), height.unsigned_abs(), 1];
        gated(stream, per_thread, job(function, grid), real)
    }
}

/// Work that is no kernel: `what` is its place among the names, which no function's handle is. A call that names no
/// stream may wait for its work.
fn operation(
    what: usize,
    stream: Option<Handle>,
    per_thread: bool,
    bytes: u64,
    mut real: impl FnMut() -> Status,
) -> Status {
    let job = Job::on_bytes(what, bytes);
    run(stream.unwrap_or(core::ptr::null_mut()), per_thread, (job, bytes), stream.is_none(), &mut real)
}
