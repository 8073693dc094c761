//! Maps the page's file into memory: writable for the node agent, read-only for everyone else.
#![allow(unsafe_code)] // A shared mapping can't be expressed without it; the blocks are in this file.
#![allow(clippy::cast_ptr_alignment)] // A mapping begins at a boundary of 4096 bytes, a Page wants 64.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use memmap2::{Mmap, MmapMut};
use rustix::thread::futex;

use super::{Identity, Limits, Page, SIZE, SLOTS};

/// The node agent's side of a page.
#[derive(Debug)]
pub struct PageWriter(MmapMut);

impl PageWriter {
    /// Makes the file at `path` and maps it. It is complete before anyone can open it, and readable only for its user
    /// and group.
    pub fn create(path: &Path, identity: &Identity, limits: &Limits) -> io::Result<Self> {
        let unfinished = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(true).mode(0o640).open(&unfinished)?;
        file.write_all(&[0; SIZE])?;
        let mut map = map_mut(&file)?;
        // SAFETY: the mapping is SIZE bytes (just written) at a page boundary, which is enough room and alignment for
        // a Page, and nobody else can have opened the file under its temporary name.
        unsafe { map.as_mut_ptr().cast::<Page>().write(Page::new(identity, limits)) };
        std::fs::rename(&unfinished, path)?;
        Ok(Self(map))
    }

    /// Maps a page that an earlier agent made, with its slots as they are.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let writer = Self(map_mut(&file)?);
        writer.identity().map_err(io::Error::other)?;
        Ok(writer)
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
        page(&self.0)
    }
}

/// A container's side of a page: it can look and wait.
#[derive(Debug)]
pub struct PageReader(Mmap);

impl PageReader {
    /// Maps the page at `path`, if it is one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        check_length(&file)?;
        // SAFETY: the file is a page of SIZE bytes that its only writer never shortens. What others write to it shows
        // up as other values of the atomics, which every reader checks.
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

fn map_mut(file: &File) -> io::Result<MmapMut> {
    check_length(file)?;
    // SAFETY: the file is a page of SIZE bytes, its only writer is this agent (the folder is the agent's), and all that
    // changes after its making is atomic.
    unsafe { MmapMut::map_mut(file) }
}

fn check_length(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length == SIZE as u64 {
        Ok(())
    } else {
        Err(io::Error::other(format!("page length is {length}, allowed is {SIZE} bytes")))
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
        let reader = PageReader::open(&path).unwrap();
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
    fn a_restarted_agent_goes_on_with_the_page_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        PageWriter::create(&path, &identity(), &limits()).unwrap().slots[0].right.store(5, Ordering::Release);
        assert_eq!(PageWriter::open(&path).unwrap().slots[0].right.load(Ordering::Acquire), 5);
    }

    #[test]
    fn a_file_that_is_no_page_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        std::fs::write(&path, [7; SIZE]).unwrap();
        assert!(PageReader::open(&path).unwrap_err().to_string().starts_with("page magic is"));
        std::fs::write(&path, "short").unwrap();
        assert!(PageReader::open(&path).is_err());
    }
}
