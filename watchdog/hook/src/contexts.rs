//! Wrappers of what makes contexts, makes them current, and ends them.
//!
//! A thread that changes its context has another default stream; a context takes memory while it lives, and with it ends
//! what was taken and measured in it. Where green contexts keep the SM share, one of those is made in its place.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::abi::{DevResource, Handle, Status};
use crate::driver;
use crate::green::{self, Gap, Part};
use crate::harvest::{current, in_context};
use crate::lane::seat;
use crate::memory::contexts;
use crate::session::{Session, session};
use crate::wrappers::wrappers;

/// The thread's context is another one after `real`.
fn switched(real: impl FnOnce() -> Status) -> Status {
    let status = real();
    seat::forget_default();
    status
}

/// A context that the program asks for.
#[derive(Clone, Copy)]
struct Wish {
    device: i32,
    flags: u32,
    /// It has limits of its own.
    limited: bool,
}

/// # Safety
/// `out` is the driver's own argument.
unsafe fn create(out: *mut Handle, wish: Wish, real: impl FnOnce() -> Status) -> Status {
    // SAFETY: the caller's promise.
    let plain = || switched(|| unsafe { contexts::created(out, real, driver::destroy_context) });
    let share = session().filter(|_| !out.is_null()).and_then(green::share);
    let Some(share) = share else { return plain() };
    let part = if wish.limited { Err(Gap::OwnLimits) } else { green::part(wish.device, share) };
    let made = match part {
        Ok(None) => return plain(),
        // SAFETY: the caller's promise.
        Ok(Some(part)) => unsafe { create_part(out, wish, part) },
        Err(gap) => Err(gap),
    };
    made.unwrap_or_else(|gap| {
        let status = plain();
        if status.is_ok() {
            // SAFETY: the driver just wrote it.
            gap.note(unsafe { *out } as usize);
        }
        status
    })
}

/// Makes a context on `part` of the device. Its memory is the primary context's, which is held and charged meanwhile.
///
/// # Safety
/// `out` is the driver's own argument, and not null.
unsafe fn create_part(out: *mut Handle, wish: Wish, mut part: DevResource) -> Result<Status, Gap> {
    let device = wish.device;
    // How threads wait is the primary context's to say.
    if is_active(device) == Some(false) {
        let status = driver::set_primary_flags(device, wish.flags);
        if !status.is_ok() {
            return Ok(status);
        }
    }
    let held = hold_primary(device);
    if let Err(status) = held {
        return Ok(status);
    }
    let mut gap = None;
    let make = || match green::create(device, &mut part) {
        Ok(context) => {
            // SAFETY: the caller's promise.
            unsafe { *out = context };
            Status::SUCCESS
        }
        Err(why) => {
            gap = Some(why);
            Status::NOT_SUPPORTED
        }
    };
    let undo = |context: Handle| match green::take(context as usize) {
        Some(part) => green::end(context as usize, part),
        None => Status::SUCCESS,
    };
    // SAFETY: the caller's promise.
    let status = switched(|| unsafe { contexts::created(out, make, undo) });
    if !status.is_ok() {
        let_primary_go(device);
    }
    gap.map_or(Ok(status), Err)
}

fn destroy(context: Handle, real: impl FnOnce() -> Status) -> Status {
    let Some(session) = session() else { return real() };
    let gone = context as usize;
    if let Some(part) = green::take(gone) {
        return destroy_part(session, gone, part);
    }
    session.harvester.drain(session, gone);
    let status = switched(real);
    if status.is_ok() {
        session.harvester.forget_context(gone);
        contexts::ended(session, gone);
    }
    status
}

/// With a context ends what was taken in it, which a green one leaves to the primary context.
fn destroy_part(session: &'static Session, context: usize, part: Part) -> Status {
    session.harvester.drain(session, context);
    session.harvester.destroy_events(context);
    let status = switched(|| green::end(context, part));
    if !status.is_ok() {
        return status;
    }
    session.harvester.forget_context(context);
    if let Some(primary) = with_primary(|primary| primary.get(&part.device).copied()) {
        contexts::empty(session, context, primary);
    }
    contexts::ended(session, context);
    let_primary_go(part.device);
    status
}

/// The primary context of each device that was retained.
static PRIMARY: Mutex<Option<HashMap<i32, usize>>> = Mutex::new(None);

fn with_primary<T>(action: impl FnOnce(&mut HashMap<i32, usize>) -> T) -> T {
    action(PRIMARY.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

fn is_active(device: i32) -> Option<bool> {
    let (mut flags, mut active) = (0, 0);
    driver::primary_state(device, &mut flags, &mut active).is_ok().then_some(active != 0)
}

/// Holds a device's primary context as a program does.
fn hold_primary(device: i32) -> Result<usize, Status> {
    let mut context = core::ptr::null_mut();
    let out = &raw mut context;
    // SAFETY: it is a place for a handle.
    let status = unsafe { retain_primary(out, device, || driver::retain_primary(out, device)) };
    if status.is_ok() { Ok(context as usize) } else { Err(status) }
}

fn let_primary_go(device: i32) {
    release_primary(device, false, || driver::release_primary(device));
}

/// # Safety
/// `out` is the driver's own argument.
unsafe fn retain_primary(out: *mut Handle, device: i32, real: impl FnOnce() -> Status) -> Status {
    let new = session().is_some() && is_active(device) == Some(false);
    let status = if new {
        // SAFETY: the caller's promise.
        unsafe { contexts::created(out, real, |_| driver::release_primary(device)) }
    } else {
        real()
    };
    if status.is_ok() && !out.is_null() {
        // SAFETY: the driver just wrote it.
        let context = unsafe { *out } as usize;
        with_primary(|primary| primary.insert(device, context));
    }
    status
}

/// The last release destroys the context; a reset destroys what is in it.
fn release_primary(device: i32, reset: bool, real: impl FnOnce() -> Status) -> Status {
    let known = with_primary(|primary| primary.get(&device).copied());
    let Some((session, context)) = session().zip(known) else { return real() };
    session.harvester.drain(session, context);
    let status = switched(real);
    if status.is_ok() && (reset || is_active(device) == Some(false)) {
        let parts = if reset { green::take_all(device) } else { Vec::new() };
        for context in parts.into_iter().chain([context]) {
            session.harvester.forget_context(context);
            contexts::ended(session, context);
        }
    }
    status
}

/// The program retains a primary context, in which all multiprocessors are its own.
///
/// # Safety
/// `out` is the driver's own argument.
unsafe fn retain(out: *mut Handle, device: i32, real: impl FnOnce() -> Status) -> Status {
    // SAFETY: the caller's promise.
    let status = unsafe { retain_primary(out, device, real) };
    if status.is_ok() && !out.is_null() && session().and_then(green::share).is_some() {
        // SAFETY: the driver just wrote it.
        Gap::Primary.note(unsafe { *out } as usize);
    }
    status
}

/// A green context of the program's: its streams are of no use after it, its memory stays with the primary context.
fn destroy_green(green: Handle, real: impl FnOnce() -> Status) -> Status {
    let mut context = core::ptr::null_mut();
    let known = driver::context_of_green(&mut context, green).is_ok() && !context.is_null();
    let Some(session) = session().filter(|_| known) else { return real() };
    let gone = context as usize;
    session.harvester.drain(session, gone);
    session.harvester.destroy_events(gone);
    let held = device_of(gone).and_then(|device| Some((device, hold_primary(device).ok()?)));
    let status = switched(real);
    if status.is_ok() {
        session.harvester.forget_context(gone);
        if let Some((_, primary)) = held {
            contexts::handed_over(session, gone, primary);
        }
    }
    if let Some((device, _)) = held {
        let_primary_go(device);
    }
    status
}

fn device_of(context: usize) -> Option<i32> {
    let mut device = 0;
    in_context(context, || driver::current_device(&mut device)).is_ok().then_some(device)
}

wrappers! {
    [cuCtxCreate, cuCtxCreate_v2](out: *mut Handle, flags: u32, device: i32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, Wish { device, flags, limited: false }, real) }
    }
    [cuCtxCreate_v3](
        out: *mut Handle, affinities: Handle, count: i32, flags: u32, device: i32
    ) |real, per_thread| {
        let limited = !affinities.is_null() && count > 0;
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, Wish { device, flags, limited }, real) }
    }
    [cuCtxCreate_v4](out: *mut Handle, parameters: Handle, flags: u32, device: i32) |real, per_thread| {
        let limited = !parameters.is_null();
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, Wish { device, flags, limited }, real) }
    }
    [cuCtxDestroy, cuCtxDestroy_v2](context: Handle) |real, per_thread| { destroy(context, real) }
    [cuCtxDetach](context: Handle) |real, per_thread| {
        // The driver lets nobody attach more than once since CUDA 4: this ends the context.
        destroy(if context.is_null() { current() as Handle } else { context }, real)
    }
    [cuCtxSetCurrent, cuCtxPushCurrent, cuCtxPushCurrent_v2](context: Handle) |real, per_thread| { switched(real) }
    [cuCtxPopCurrent, cuCtxPopCurrent_v2](context: *mut Handle) |real, per_thread| { switched(real) }
    [cuGreenCtxDestroy](green: Handle) |real, per_thread| { destroy_green(green, real) }
    [cuDevicePrimaryCtxRetain](out: *mut Handle, device: i32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { retain(out, device, real) }
    }
    [cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2](device: i32) |real, per_thread| {
        release_primary(device, false, real)
    }
    [cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2](device: i32) |real, per_thread| {
        release_primary(device, true, real)
    }
}
