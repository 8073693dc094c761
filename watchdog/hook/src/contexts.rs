//! Wrappers of what makes contexts, makes them current, and ends them.
//!
//! A thread that changes its context has another default stream; a context takes memory while it lives, and with it ends
//! what was taken and measured in it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::abi::{Handle, Status};
use crate::driver;
use crate::harvest::current;
use crate::lane::seat;
use crate::memory::contexts;
use crate::session::session;
use crate::wrappers::wrappers;

/// The thread's context is another one after `real`.
fn switched(real: impl FnOnce() -> Status) -> Status {
    let status = real();
    seat::forget_default();
    status
}

/// # Safety
/// `out` is the driver's own argument.
unsafe fn create(out: *mut Handle, real: impl FnOnce() -> Status) -> Status {
    // SAFETY: the caller's promise.
    switched(|| unsafe { contexts::created(out, real, driver::destroy_context) })
}

fn destroy(context: Handle, real: impl FnOnce() -> Status) -> Status {
    let Some(session) = session() else { return real() };
    let gone = context as usize;
    session.harvester.drain(session, gone);
    let status = switched(real);
    if status.is_ok() {
        session.harvester.forget_context(gone);
        contexts::ended(session, gone);
    }
    status
}

/// The primary context of each device that the program retained.
static PRIMARY: Mutex<Option<HashMap<i32, usize>>> = Mutex::new(None);

fn with_primary<T>(action: impl FnOnce(&mut HashMap<i32, usize>) -> T) -> T {
    action(PRIMARY.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

fn is_active(device: i32) -> Option<bool> {
    let (mut flags, mut active) = (0, 0);
    driver::primary_state(device, &mut flags, &mut active).is_ok().then_some(active != 0)
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
        session.harvester.forget_context(context);
        contexts::ended(session, context);
    }
    status
}

/// The green context's streams end with it. Its memory is that of the primary context.
fn destroy_green(green: Handle, real: impl FnOnce() -> Status) -> Status {
    let mut context = core::ptr::null_mut();
    let known = driver::context_of_green(&mut context, green).is_ok() && !context.is_null();
    let Some(session) = session().filter(|_| known) else { return real() };
    let gone = context as usize;
    session.harvester.drain(session, gone);
    let status = switched(real);
    if status.is_ok() {
        session.harvester.forget_context(gone);
    }
    status
}

wrappers! {
    [cuCtxCreate, cuCtxCreate_v2](out: *mut Handle, flags: u32, device: i32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, real) }
    }
    [cuCtxCreate_v3](
        out: *mut Handle, affinities: Handle, count: i32, flags: u32, device: i32
    ) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, real) }
    }
    [cuCtxCreate_v4](out: *mut Handle, parameters: Handle, flags: u32, device: i32) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { create(out, real) }
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
        unsafe { retain_primary(out, device, real) }
    }
    [cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2](device: i32) |real, per_thread| {
        release_primary(device, false, real)
    }
    [cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2](device: i32) |real, per_thread| {
        release_primary(device, true, real)
    }
}
