//! The page in memory: writable for the node agent, read-only for everyone else, and of a size that nobody can change.
#![allow(unsafe_code)] // A shared mapping can't be expressed without it; the blocks are in this file.
#![allow(clippy::cast_ptr_alignment)] // A mapping begins at a boundary of 4096 bytes, a Page wants 64.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memmap2::{Mmap, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::thread::futex;

use super::{Identity, Limits, Page, SIZE, SLOTS};

/// Without these a page could be shortened, and whoever looks at it then is killed (SIGBUS).
const FIXED_SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// The node agent's side of a page.
///
/// The page itself is sealed memory: once the agent has mapped it, nobody else can write to it or change its size,
/// not even a process of the agent's own user. Processes get its descriptor when they attach. The file is a copy for
/// those who only look (the watchdog) and for the next agent; what happens to it harms nobody who runs.
#[derive(Debug)]
pub struct PageWriter {
    map: MmapMut,
    readable: File,
    copy: File,
}

impl PageWriter {
    /// Makes a page, and its copy at `path`: complete before anyone can open it, and readable only for its user and
    /// group.
    pub fn create(path: &Path, identity: &Identity, limits: &Limits) -> io::Result<Self> {
        let (map, readable) = sealed(Page::new(identity, limits))?;
        let unfinished = path.with_extension("new");
        let mut options = OpenOptions::new();
        let copy = options.write(true).create(true).truncate(true).mode(0o640).open(&unfinished)?;
        let writer = Self { map, readable, copy };
        writer.publish()?;
        fs::rename(&unfinished, path)?;
        Ok(writer)
    }

    /// Brings the copy up to date.
    pub fn publish(&self) -> io::Result<()> {
        self.copy.write_all_at(&self.map, 0)
    }

    /// What a process needs to map the page ([`PageReader::map`]).
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// Wakes whoever waits for the right of slot `slot`.
    pub fn wake(&self, slot: usize) {
        if let Some(slot) = self.slots.get(slot) {
            // Waking fails only for a word that is not mapped, and this one is.
            let _ = futex::wake(&slot.right, futex::Flags::empty(), u32::MAX);
        }
    }
}

impl Deref for PageWriter {
    type Target = Page;

    fn deref(&self) -> &Page {
        page(&self.map)
    }
}

/// Memory that holds `page`, mapped for its only writer, and a descriptor to read it by.
fn sealed(page: Page) -> io::Result<(MmapMut, File)> {
    let memory = File::from(memfd_create("gpufn-page", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    memory.set_len(SIZE as u64)?;
    // SAFETY: the memory is SIZE bytes, its size is sealed below before anyone else has it, its only writer is this
    // process, and all that changes after its making is atomic.
    let mut map = unsafe { MmapMut::map_mut(&memory) }?;
    // SAFETY: the mapping is SIZE bytes at a page boundary, which is enough room and alignment for a Page, and nobody
    // else has it yet.
    unsafe { map.as_mut_ptr().cast::<Page>().write(page) };
    fcntl_add_seals(&memory, FIXED_SIZE | SealFlags::FUTURE_WRITE | SealFlags::SEAL)
        // Linux before 5.1 does not know how to seal against writing only; the descriptor is read-only all the same.
        .or_else(|_| fcntl_add_seals(&memory, FIXED_SIZE | SealFlags::SEAL))?;
    let readable = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    Ok((map, readable))
}

/// A container's side of a page: it can look and wait.
#[derive(Debug)]
pub struct PageReader(Mmap);

impl PageReader {
    /// Maps the page that the agent handed out, if it is one.
    pub fn map(page: OwnedFd) -> io::Result<Self> {
        let file = File::from(page);
        let length = file.metadata()?.len();
        if length != SIZE as u64 {
            return Err(io::Error::other(format!("page length is {length}, allowed is {SIZE} bytes")));
        }
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(FIXED_SIZE)) {
            return Err(io::Error::other("page can be shortened, allowed is memory whose size is sealed"));
        }
        // SAFETY: the file is SIZE bytes, for good. What its writer changes shows up as other values of the atomics,
        // which every reader checks.
        let map = unsafe { Mmap::map(&file) }?;
        let reader = Self(map);
        reader.identity().map_err(io::Error::other)?;
        Ok(reader)
    }

    /// Waits until the right of slot `slot` is no longer `seen`, or until `timeout`; may return early.
    pub fn wait(&self, slot: usize, seen: u32, timeout: core::time::Duration) {
        let slot = &self.slots[slot.min(SLOTS - 1)];
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // Whatever ends the wait (wake, change, time, signal), the caller looks at the word again.
        let _ = futex::wait(&slot.right, futex::Flags::empty(), seen, Some(&timeout));
    }
}

impl Deref for PageReader {
    type Target = Page;

    fn deref(&self) -> &Page {
        page(&self.0)
    }
}

fn page(map: &[u8]) -> &Page {
    debug_assert!(map.len() == SIZE);
    // SAFETY: every mapping here is SIZE bytes at a page boundary (checked when it was made), any bits are a Page, and
    // what changes under it is atomic.
    unsafe { &*map.as_ptr().cast::<Page>() }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;
    use core::time::Duration;
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::units::{Bytes, Nanos, Quota, SmShare};

    fn limits() -> Limits {
        let whole = Quota::WHOLE;
        let (memory, window) = (Bytes::gib(1), Nanos::from_millis(10));
        Limits { sm: SmShare::WHOLE, floor: whole, ceiling: whole, grant: whole, memory, window }
    }

    fn identity() -> Identity {
        Identity { binding: "b-1".to_string().try_into().unwrap(), gpu: "GPU-1".into() }
    }

    #[test]
    fn a_reader_sees_what_the_agent_writes_and_is_woken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let writer = PageWriter::create(&path, &identity(), &limits()).unwrap();
        let reader = PageReader::map(writer.descriptor().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(reader.identity(), Ok(identity()));
        let waiter = thread::spawn(move || {
            let start = Instant::now();
            while !super::super::Slot::is_held(reader.slots[3].right.load(Ordering::Acquire)) {
                reader.wait(3, 0, Duration::from_secs(5));
            }
            start.elapsed()
        });
        writer.slots[3].right.store(1, Ordering::Release);
        writer.wake(3);
        assert!(waiter.join().unwrap() < Duration::from_secs(5));
    }

    #[test]
    fn nobody_else_can_write_or_shorten_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let writer = PageWriter::create(&folder.path().join("page"), &identity(), &limits()).unwrap();
        let descriptor = writer.descriptor().try_clone_to_owned().unwrap();
        let again = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
            .unwrap();
        assert!(again.set_len(0).is_err());
        assert!(again.set_len(2 * SIZE as u64).is_err());
        assert!(again.write_all_at(&[1; 8], 256).is_err());
        // SAFETY: it must not come to a mapping; if it does, the test fails and looks at nothing.
        assert!(unsafe { MmapMut::map_mut(&again) }.is_err());
        assert!(PageReader::map(descriptor).is_ok());
    }

    #[test]
    fn what_becomes_of_the_copy_harms_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let writer = PageWriter::create(&path, &identity(), &limits()).unwrap();
        let reader = PageReader::map(writer.descriptor().try_clone_to_owned().unwrap()).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert_eq!(reader.limits(), Ok(limits()));
        writer.publish().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(super::super::Snapshot::parse(&bytes).unwrap().identity, identity());
        fs::remove_file(&path).unwrap();
        writer.publish().unwrap();
        assert_eq!(reader.limits(), Ok(limits()));
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let refusal = |file: File| PageReader::map(file.into()).unwrap_err().to_string();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; SIZE], 0).unwrap();
        assert!(refusal(file).starts_with("page can be shortened"));
        let memory = File::from(memfd_create("page", MemfdFlags::ALLOW_SEALING).unwrap());
        memory.write_all_at(&[7; SIZE], 0).unwrap();
        fcntl_add_seals(&memory, FIXED_SIZE).unwrap();
        assert!(refusal(memory).starts_with("page magic is"));
        let short = File::from(memfd_create("page", MemfdFlags::ALLOW_SEALING).unwrap());
        assert!(refusal(short).starts_with("page length is 0"));
    }
}
