//! What lies behind device memory: stretches of a file without a name, so that another process can map them too.
//! Pages exist once they are touched, and are gone when the memory is given back.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use super::{CudaError, Result};

/// Length of the file: places in it are never used twice, and this many are never used up.
const ENDLESS: u64 = 1 << 60;

/// Pages of the host.
const PAGE: u64 = 4096;

/// The file behind the device memory of this process.
#[derive(Debug)]
pub(super) struct Store {
    file: OwnedFd,
    next: AtomicU64,
}

/// The file behind the device memory of this process, made when it is first needed.
pub(super) fn store() -> Result<&'static Store> {
    static STORE: OnceLock<Option<Store>> = OnceLock::new();
    let made = STORE.get_or_init(|| {
        let file = memory_file("simcuda", ENDLESS)?;
        Some(Store { file, next: AtomicU64::new(0) })
    });
    made.as_ref().ok_or(CudaError::OUT_OF_MEMORY)
}

/// A file without a name in a file system, of `size` bytes that take no room until they are touched.
pub(super) fn memory_file(name: &str, size: u64) -> Option<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&file, size).ok()?;
    Some(file)
}

impl Store {
    /// A place for `size` bytes.
    pub(super) fn take(&self, size: u64) -> u64 {
        self.next.fetch_add(size.next_multiple_of(PAGE), Ordering::Relaxed)
    }

    /// Gives the pages back.
    pub(super) fn give_back(&self, place: u64, size: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // If that is refused, the pages stay until the process ends.
        let _ = fallocate(&self.file, flags, place, size.next_multiple_of(PAGE));
    }

    /// The number of its descriptor.
    pub(super) fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Maps the `size` bytes at `place` somewhere.
    pub(super) fn map(&self, place: u64, size: u64) -> Result<u64> {
        map_file(&self.file, place, size, None)
    }

    /// Maps the `size` bytes at `place` to an address range that is this driver's own.
    pub(super) fn map_at(&self, place: u64, size: u64, address: u64) -> Result {
        map_file(&self.file, place, size, Some(address)).map(|_| ())
    }
}

/// Maps a part of a file, to a range of addresses that is the driver's own or to a new one.
pub(super) fn map_file(file: &impl AsRawFd, place: u64, size: u64, address: Option<u64>) -> Result<u64> {
    let length = usize::try_from(size).map_err(|_| CudaError::OUT_OF_MEMORY)?;
    let offset = libc::off_t::try_from(place).map_err(|_| CudaError::INVALID_VALUE)?;
    let wanted = usize::try_from(address.unwrap_or_default()).map_err(|_| CudaError::INVALID_VALUE)?;
    let fixed = if address.is_some() { libc::MAP_FIXED } else { 0 };
    // SAFETY: either the kernel chooses the address, so that no memory is replaced, or the range was reserved by this
    // driver for this purpose.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(wanted),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE | fixed,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(CudaError::OUT_OF_MEMORY);
    }
    Ok(mapped.expose_provenance() as u64)
}

/// Opens the memory of another process by the number that its descriptor has there.
pub(super) fn open_of_process(pid: u32, descriptor: u32) -> Result<File> {
    let path = format!("/proc/{pid}/fd/{descriptor}");
    let link = std::fs::read_link(&path).map_err(|_| CudaError::INVALID_VALUE)?;
    // Another kind of file: the process that gave the number has ended, and another one has its place.
    if !link.to_string_lossy().starts_with("/memfd:simcuda") {
        return Err(CudaError::INVALID_VALUE);
    }
    File::options().read(true).write(true).open(path).map_err(|_| CudaError::INVALID_VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn memory_that_is_given_back_is_zero_for_the_next_one_and_takes_no_room() {
        let store = store().unwrap();
        let place = store.take(10_000);
        assert_eq!(store.take(1) - place, 12_288);
        let file = File::from(store.file.try_clone().unwrap());
        file.write_all_at(&[7; 10_000], place).unwrap();
        store.give_back(place, 10_000);
        let mut bytes = [1; 10_000];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn only_memory_of_this_driver_is_opened_in_another_process() {
        let own = std::process::id();
        let descriptor = u32::try_from(store().unwrap().descriptor()).unwrap();
        assert!(open_of_process(own, descriptor).is_ok());
        assert!(open_of_process(own, 0).is_err());
        assert!(open_of_process(u32::MAX, 3).is_err());
    }
}
