//! Wrappers of everything that starts kernels: wait for the right, launch, measure.
//!
//! A graph is one unit of work, a cooperative launch is never split, and into a capturing stream nothing is added.

pub(crate) mod copies;

use core::cell::Cell;
use core::ffi::c_void;
use core::sync::atomic::Ordering;

use crate::abi::{DeviceLaunch, Handle, LaunchConfig, STREAM_LEGACY, STREAM_PER_THREAD, Status};
use crate::config::config;
use crate::cost::Kind;
use crate::harvest::{LaneKey, Work, current};
use crate::lane::Lane;
use crate::session::{Session, session};
use crate::wrappers::wrappers;
use crate::{driver, sync};

/// Runs `launch` on `stream` when this process may; `kind` says what it is.
fn gated(stream: Handle, per_thread: bool, kind: Kind, launch: impl FnOnce() -> Status) -> Status {
    run(stream, per_thread, kind, false, launch)
}

fn run(
    stream: Handle,
    per_thread: bool,
    kind: Kind,
    blocks: bool,
    launch: impl FnOnce() -> Status,
) -> Status {
    let Some(session) = session() else { return launch() };
    if sync::is_capturing(stream, per_thread) {
        return launch();
    }
    let cost = session.costs.of(kind);
    let expected = cost.estimate();
    let admitted = session.gate.try_enter(expected).unwrap_or_else(|| {
        // The wait is no work: it must not lie within a batch.
        session.harvester.close_current(session);
        session.gate.enter_slowly(expected, session)
    });
    let lane = lane(session, stream as usize, per_thread);
    let work = Work { cost, expected, blocks: blocks || config().launches_block };
    session.harvester.measured(session, lane, &work, admitted, launch)
}

/// A lane, its key, and the generation that it is of.
type Remembered = (LaneKey, u64, &'static Lane);

thread_local! {
    /// The lanes that this thread launched on last.
    static RECENT: [Cell<Option<Remembered>>; 8] = const { [const { Cell::new(None) }; 8] };
    /// Its address tells this thread from others.
    static THREAD: u8 = const { 0 };
}

fn lane(session: &'static Session, stream: usize, per_thread: bool) -> &'static Lane {
    let key = key(stream, per_thread);
    let generation = session.harvester.generation.load(Ordering::Acquire);
    RECENT.with(|recent| {
        let place = &recent[(key.0 ^ key.1 ^ (key.1 >> 6)) / 8 % 8];
        match place.get() {
            Some((known, of, lane)) if known == key && of == generation => lane,
            _ => {
                let lane = session.harvester.lane(full(key));
                place.set(Some((key, generation, lane)));
                lane
            }
        }
    })
}

/// Names the stream as cheaply as possible: a stream that was created is named by itself.
fn key(stream: usize, per_thread: bool) -> LaneKey {
    match stream {
        STREAM_PER_THREAD => {
            (current(), STREAM_PER_THREAD, THREAD.with(|here| core::ptr::from_ref(here) as usize))
        }
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
    let mut context = core::ptr::null_mut();
    let known = driver::stream_context(key.1 as Handle, &mut context).is_ok() && !context.is_null();
    (if known { context as usize } else { current() }, key.1, key.2)
}

fn blocks(grid: [u32; 3]) -> u64 {
    grid.into_iter().fold(1, |blocks: u64, side| blocks.saturating_mul(u64::from(side)))
}

wrappers! {
    [cuLaunchKernel, cuLaunchKernel_ptsz](
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    ) |real, per_thread| {
        gated(stream, per_thread, Kind::new(function as usize, blocks([grid_x, grid_y, grid_z])), real)
    }
    [cuLaunchCooperativeKernel, cuLaunchCooperativeKernel_ptsz](
        function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: Handle, params: *mut *mut c_void
    ) |real, per_thread| {
        gated(stream, per_thread, Kind::new(function as usize, blocks([grid_x, grid_y, grid_z])), real)
    }
    [cuLaunchKernelEx, cuLaunchKernelEx_ptsz](
        config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    ) |real, per_thread| {
        // SAFETY: null, or the caller's configuration, which the driver reads in the same way.
        match unsafe { config.as_ref() } {
            Some(config) => {
                gated(config.stream, per_thread, Kind::new(function as usize, blocks(config.grid)), real)
            }
            None => real(),
        }
    }
    [cuGraphLaunch, cuGraphLaunch_ptsz](graph: Handle, stream: Handle) |real, per_thread| {
        gated(stream, per_thread, Kind::new(graph as usize, 1), real)
    }
    [cuLaunchCooperativeKernelMultiDevice](launches: *mut DeviceLaunch, count: u32, flags: u32) |real, per_thread| {
        // SAFETY: null, or the caller's list, which the driver reads in the same way.
        match unsafe { launches.as_ref() } {
            Some(first) if count > 0 => {
                let kind = Kind::new(first.function as usize, blocks(first.grid));
                gated(first.stream, per_thread, kind, real)
            }
            _ => real(),
        }
    }
    [cuLaunch](function: Handle) |real, per_thread| {
        gated(core::ptr::null_mut(), per_thread, Kind::new(function as usize, 1), real)
    }
    [cuLaunchGrid](function: Handle, width: i32, height: i32) |real, per_thread| {
        let blocks = blocks([width.unsigned_abs(), height.unsigned_abs(), 1]);
        gated(core::ptr::null_mut(), per_thread, Kind::new(function as usize, blocks), real)
    }
    [cuLaunchGridAsync](function: Handle, width: i32, height: i32, stream: Handle) |real, per_thread| {
        let blocks = blocks([width.unsigned_abs(), height.unsigned_abs(), 1]);
        gated(stream, per_thread, Kind::new(function as usize, blocks), real)
    }
}

/// Work that is no kernel: `what` is its place among the names, which no function's handle is. A call that names no
/// stream may wait for its work.
fn operation(
    what: usize,
    stream: Option<Handle>,
    per_thread: bool,
    bytes: u64,
    real: impl FnOnce() -> Status,
) -> Status {
    run(stream.unwrap_or(core::ptr::null_mut()), per_thread, Kind::new(what, bytes), stream.is_none(), real)
}

#[cfg(test)]
mod tests {
    use core::hint::black_box;
    use std::time::Instant;

    use gpu_share::units::Nanos;

    use super::*;
    use crate::cost::Costs;
    use crate::gate::Gate;
    use crate::lane::Entry;

    /// `cargo test --release -p cuda-hook --lib -- --ignored --nocapture fast_path`
    #[test]
    #[ignore = "a measurement: prints what the hook adds to a launch within an open batch"]
    fn the_fast_path_takes_nanoseconds() {
        const LAUNCHES: u32 = 1_000_000;
        let word = Box::leak(Box::new(core::sync::atomic::AtomicU32::new(0)));
        let gate = Gate::new(word);
        gate.detach(gpu_share::units::Quota::WHOLE, Nanos::from_millis(10), Nanos::ZERO);
        gate.hold_for_ever();
        let costs: &'static Costs = Box::leak(Box::default());
        let lane = Lane::new(1, 3, false);
        let one_launch = |function: usize| {
            let cost = costs.of(Kind::new(function, blocks([8, 1, 1])));
            assert!(gate.try_enter(Nanos(1)).is_some());
            match lane.enter(cost, Nanos(1), true) {
                Entry::Opens => lane.opened(1, cost, Nanos(1), Nanos::ZERO),
                Entry::Joined | Entry::Alone => {}
            }
            if lane.leave() {
                gate.leave(lane.filled(Nanos::ZERO).launches, Nanos(64));
            }
        };
        let best = (0..20).map(|_| {
            let start = Instant::now();
            (0..LAUNCHES).for_each(|_| one_launch(black_box(77)));
            start.elapsed() / LAUNCHES
        });
        println!("{:?} per launch", best.min().unwrap());
    }
}
