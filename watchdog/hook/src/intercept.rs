//! Which names are watched, and how a program that asks the driver for an address gets the wrapper instead.
//!
//! The real driver is always asked first; only an address that it returned is exchanged, and only if it is the address
//! of a watched export. So a name asked with any version and any flag, present or to come, leads to the wrapper that
//! has the signature of what the driver chose. Nothing is guessed from names.

use core::ffi::{CStr, c_char, c_void};
use std::collections::HashMap;
use std::sync::OnceLock;

use crate::abi::{PROC_ADDRESS_PER_THREAD, Status};
use crate::config::config;
use crate::coverage;
use crate::names::{COUNT, CUDA, OFFERS, index};
use crate::wrappers::{Wrapper, wrappers};
use crate::{contexts, forward, launch, memory, nvml, session, sync, unknown};

/// Every wrapper there is.
fn all() -> impl Iterator<Item = &'static Wrapper> {
    let lists = [
        WRAPPERS,
        contexts::WRAPPERS,
        launch::WRAPPERS,
        launch::copies::WRAPPERS,
        launch::kernel::WRAPPERS,
        launch::sets::WRAPPERS,
        launch::shaped::WRAPPERS,
        memory::WRAPPERS,
        memory::arrays::WRAPPERS,
        memory::graphs::WRAPPERS,
        memory::mapped::WRAPPERS,
        memory::pools::WRAPPERS,
        nvml::WRAPPERS,
        session::WRAPPERS,
        sync::WRAPPERS,
        unknown::WRAPPERS,
    ];
    lists.into_iter().flatten()
}

/// Places of the names that are watched.
#[cfg(test)]
pub(crate) fn watched() -> impl Iterator<Item = usize> {
    all().map(|wrapper| wrapper.index)
}

/// The wrapper of the export at `index`, in a process that has a share.
pub(crate) fn wrapper(index: usize) -> Option<*mut c_void> {
    static BY_INDEX: OnceLock<Vec<usize>> = OnceLock::new();
    if !config().wants_share() {
        return None;
    }
    let table = BY_INDEX.get_or_init(|| {
        let mut table = vec![0; COUNT];
        for wrapper in all() {
            table[wrapper.index] = wrapper.address as usize;
        }
        table
    });
    let wrapper = table.get(index).filter(|address| **address != 0)?;
    forward::real(index);
    Some(*wrapper as *mut c_void)
}

/// Real address of every watched export, and its wrapper.
fn by_address() -> &'static HashMap<usize, usize> {
    static MAP: OnceLock<HashMap<usize, usize>> = OnceLock::new();
    MAP.get_or_init(|| {
        let mut map = HashMap::new();
        // Only the driver offers addresses; the management library may not even be there.
        for wrapper in all().filter(|wrapper| wrapper.index < CUDA) {
            if !forward::real_or_null(wrapper.index).is_null() {
                map.entry(forward::real(wrapper.index) as usize).or_insert(wrapper.address as usize);
            }
        }
        add_offered(&mut map);
        map
    })
}

/// A driver may offer a function under an address that is not its export's; each watched form is asked for once.
fn add_offered(map: &mut HashMap<usize, usize>) {
    let watched = OFFERS.iter().filter_map(|offer| Some((offer, wrapper(offer.index)?)));
    for (offer, wrapper) in watched {
        let flags = if offer.per_thread { PROC_ADDRESS_PER_THREAD } else { 0 };
        let mut found = core::ptr::null_mut();
        let status = real_proc_address(offer.asked, &mut found, offer.version, flags);
        if status.is_ok() && !found.is_null() {
            map.entry(found as usize).or_insert(wrapper as usize);
        }
    }
}

fn real_proc_address(name: &CStr, found: &mut *mut c_void, version: i32, flags: u64) -> Status {
    type Ask = unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut i32) -> Status;
    let address = forward::real_or_null(index::cuGetProcAddress_v2);
    if address.is_null() {
        return Status::NOT_SUPPORTED;
    }
    // SAFETY: the export of this name has this signature (CUDA driver API reference, 12.0).
    let ask = unsafe { core::mem::transmute::<*mut c_void, Ask>(address) };
    // SAFETY: the name ends with a zero, the answer goes to a place of its size, and the last argument may be null.
    unsafe { ask(name.as_ptr(), found, version, flags, core::ptr::null_mut()) }
}

/// Exchanges the address that the driver answered, if it is a watched one.
fn exchange(status: Status, asked: *const c_char, answer: *mut *mut c_void) -> Status {
    if !status.is_ok() || answer.is_null() {
        return status;
    }
    // SAFETY: the driver just wrote it.
    let address = unsafe { *answer };
    if let Some(wrapper) = by_address().get(&(address as usize)) {
        // SAFETY: as above.
        unsafe { *answer = *wrapper as *mut c_void };
    } else if !asked.is_null() && !address.is_null() {
        // SAFETY: the driver just read this name.
        let asked = unsafe { CStr::from_ptr(asked) };
        if is_unknown_work(asked) {
            unknown::note(&asked.to_string_lossy());
        }
    }
    status
}

/// Whether an address that the driver gave for `name` and that is none of a watched export starts work all the same: a
/// form of a watched function that came with a newer driver, or a function that nobody has heard of.
fn is_unknown_work(name: &CStr) -> bool {
    let mut known = OFFERS.iter().filter(|offer| offer.asked == name).peekable();
    match known.peek() {
        Some(_) => known.any(|offer| wrapper(offer.index).is_some()),
        None => coverage::looks_like_work(&name.to_string_lossy()),
    }
}

wrappers! {
    [cuGetProcAddress](symbol: *const c_char, answer: *mut *mut c_void, version: i32, flags: u64) |real, per_thread| {
        exchange(real(), symbol, answer)
    }
    [cuGetProcAddress_v2, cuGetProcAddress_v2_ptsz](
        symbol: *const c_char, answer: *mut *mut c_void, version: i32, flags: u64, found: *mut i32
    ) |real, per_thread| {
        exchange(real(), symbol, answer)
    }
}

#[cfg(test)]
mod tests;
