//! Wrappers of the management library: it shows the same memory as the driver does, that of the share.
//!
//! A program may use this library without the driver, so the page alone must do; it never joins the binding.

use core::ffi::CStr;
use std::sync::OnceLock;

use gpu_share::page::PageReader;

use crate::abi::{Handle, NvmlMemory, NvmlMemoryV2};
use crate::config::{Share, config};
use crate::driver;
use crate::memory::Usage;
use crate::session::session;
use crate::wrappers::wrappers;

/// Longest UUID that the library writes, with its zero (`NVML_DEVICE_UUID_V2_BUFFER_SIZE`).
const UUID: usize = 96;

/// The page of the binding, for as long as no session has one.
fn page() -> Option<&'static PageReader> {
    static PAGE: OnceLock<Option<PageReader>> = OnceLock::new();
    if let Some(session) = session() {
        return Some(session.page());
    }
    let open = || match &config().share {
        Share::Bound(place) => PageReader::open(&place.page).ok(),
        _ => None,
    };
    PAGE.get_or_init(open).as_ref()
}

/// What the binding holds and may hold of `device`, if that is its GPU.
fn usage(device: Handle) -> Option<Usage> {
    let page = page()?;
    if uuid(device)? != page.identity().ok()?.gpu {
        return None;
    }
    match session() {
        Some(session) => session.memory.usage(session),
        None => Some(Usage { used: page.counters().memory, limit: page.limits().ok()?.memory }),
    }
}

fn uuid(device: Handle) -> Option<String> {
    let mut text = [0; UUID];
    let status = driver::nvml_uuid(device, text.as_mut_ptr(), u32::try_from(UUID).unwrap_or(0));
    if !status.is_ok() {
        return None;
    }
    let bytes = text.map(core::ffi::c_char::cast_unsigned);
    Some(CStr::from_bytes_until_nul(&bytes).ok()?.to_string_lossy().into_owned())
}

wrappers! {
    [nvmlDeviceGetMemoryInfo](device: Handle, memory: *mut NvmlMemory) |real, per_thread| {
        let status = real();
        if let Some(usage) = usage(device).filter(|_| status.is_ok()) {
            // SAFETY: the library succeeded, so it wrote to a valid place.
            let memory = unsafe { &mut *memory };
            memory.free = usage.free(memory.free);
            memory.total = usage.limit.0;
            memory.used = memory.total.saturating_sub(memory.free);
        }
        status
    }
    [nvmlDeviceGetMemoryInfo_v2](device: Handle, memory: *mut NvmlMemoryV2) |real, per_thread| {
        let status = real();
        if let Some(usage) = usage(device).filter(|_| status.is_ok()) {
            // SAFETY: the library succeeded, so it wrote to a valid place.
            let memory = unsafe { &mut *memory };
            memory.free = usage.free(memory.free);
            memory.total = usage.limit.0;
            memory.reserved = 0;
            memory.used = memory.total.saturating_sub(memory.free);
        }
        status
    }
}
