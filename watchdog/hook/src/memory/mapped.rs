//! Wrappers of memory that is made, mapped and given back apart from its addresses (virtual memory management).
//!
//! What lies on the host passes uncounted; what was imported counts where it was made.

use gpu_share::units::Bytes;

use super::take;
use crate::abi::{AllocationProperties, DevicePtr, LOCATION_DEVICE, Status};
use crate::session::session;
use crate::wrappers::wrappers;

/// Takes memory that a handle stands for.
///
/// # Safety
/// Both pointers are the driver's own arguments.
unsafe fn create(
    out: *mut u64,
    bytes: usize,
    properties: *const AllocationProperties,
    real: impl FnOnce() -> Status,
) -> Status {
    // SAFETY: null, or what the driver reads too.
    let on_device =
        unsafe { properties.as_ref() }.is_some_and(|found| found.location_kind == LOCATION_DEVICE);
    if !on_device {
        return real();
    }
    take(bytes as u64, real, |holdings| {
        // SAFETY: the driver succeeded, so it wrote to a valid place.
        holdings.create(unsafe { *out }, Bytes(bytes as u64));
        None
    })
}

fn release(handle: u64, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        session.memory.change(session, |holdings| holdings.release(handle).unwrap_or_default());
    }
    status
}

fn map(address: DevicePtr, bytes: usize, handle: u64, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        session.memory.change(session, |holdings| {
            holdings.map(address, bytes as u64, handle);
            Bytes::ZERO
        });
    }
    status
}

fn unmap(address: DevicePtr, bytes: usize, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        session.memory.change(session, |holdings| holdings.unmap(address, bytes as u64));
    }
    status
}

/// Another reference to memory that is mapped somewhere.
///
/// # Safety
/// `out` is the driver's own argument.
unsafe fn retain(out: *mut u64, address: DevicePtr, real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if let Some(session) = session().filter(|_| status.is_ok()) {
        // SAFETY: the driver succeeded, so it wrote to a valid place.
        let handle = unsafe { *out };
        session.memory.change(session, |holdings| {
            holdings.retain(handle, address);
            Bytes::ZERO
        });
    }
    status
}

wrappers! {
    [cuMemCreate](
        out: *mut u64, bytes: usize, properties: *const AllocationProperties, flags: u64
    ) |real, per_thread| {
        // SAFETY: they are the driver's own arguments.
        unsafe { create(out, bytes, properties, real) }
    }
    [cuMemRelease](handle: u64) |real, per_thread| { release(handle, real) }
    [cuMemMap](address: DevicePtr, bytes: usize, offset: usize, handle: u64, flags: u64) |real, per_thread| {
        map(address, bytes, handle, real)
    }
    [cuMemUnmap](address: DevicePtr, bytes: usize) |real, per_thread| { unmap(address, bytes, real) }
    [cuMemRetainAllocationHandle](out: *mut u64, address: DevicePtr) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { retain(out, address, real) }
    }
}
