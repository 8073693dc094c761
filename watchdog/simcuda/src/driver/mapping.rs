//! Mappings of this process, and the bytes in them. Nothing is unmapped while a kernel computes.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::{CudaError, Result};

/// Held for reading while a kernel computes, so that memory stays mapped that a program gives back too early.
static COMPUTING: RwLock<()> = RwLock::new(());

/// Keeps all memory mapped until the guard is dropped.
pub(super) fn keep_mapped() -> RwLockReadGuard<'static, ()> {
    COMPUTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no kernel computes.
pub(super) fn wait_for_kernels() {
    drop(COMPUTING.write().unwrap_or_else(PoisonError::into_inner));
}

/// Writes `bytes` to memory that the caller has just allocated, or found in the table and keeps mapped.
pub(super) fn put(address: u64, bytes: &[u8]) {
    let Ok(address) = usize::try_from(address) else { return };
    let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the caller vouches that so many bytes are mapped there. A program that uses them at the same time races
    // with itself, as on a real device.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
}

/// The value of `bytes` bytes at an address that the caller has checked.
pub(super) fn peek(address: u64, bytes: usize) -> u64 {
    let Ok(address) = usize::try_from(address) else { return 0 };
    if bytes == 4 {
        // SAFETY: the caller found the address in the table of allocations, aligned, and keeps it mapped.
        return unsafe { std::ptr::with_exposed_provenance::<u32>(address).read_volatile() }.into();
    }
    // SAFETY: as above.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

/// Replaces a mapping within a reserved range by one that nothing can be read from.
pub(super) fn map_blank(base: u64, size: u64) -> Result {
    let address = usize::try_from(base).map_err(|_| CudaError::INVALID_VALUE)?;
    let length = usize::try_from(size).map_err(|_| CudaError::INVALID_VALUE)?;
    wait_for_kernels();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the range is one that this driver reserved, and no kernel computes on it.
    let mapped = unsafe { libc::mmap(address, length, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(CudaError::OUT_OF_MEMORY) } else { Ok(()) }
}

/// Maps fresh memory; its pages exist once they are touched.
pub(super) fn map(size: u64) -> Result<u64> {
    let length = usize::try_from(size).map_err(|_| CudaError::OUT_OF_MEMORY)?;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(CudaError::OUT_OF_MEMORY);
    }
    Ok(address.expose_provenance() as u64)
}

/// Unmaps memory that [`map`] made.
pub(super) fn unmap(base: u64, size: u64) {
    let Ok(address) = usize::try_from(base) else { return };
    let Ok(length) = usize::try_from(size) else { return };
    wait_for_kernels();
    // SAFETY: only called with what `map` returned and was taken out of the table, so nobody else unmaps it.
    unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(address), length) };
}
