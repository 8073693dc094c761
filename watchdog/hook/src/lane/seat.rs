//! The seat of one thread on a lane: what a launch into the thread's own open batch looks at and changes.
//!
//! Only that thread writes here while the batch is open, so a launch costs loads and stores. Whoever ends the batch from
//! outside first marks it closed, then makes every thread of the process pass a barrier, and only then looks whether the
//! thread is launching: either that thread sees the mark, or it is seen.
#![allow(clippy::inline_always)] // The fast path is counted in instructions.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::sync::OnceLock;

use gpu_share::units::Nanos;

use super::Lane;
use crate::cost::Cost;
use crate::gate::Held;

/// Kinds of work that a seat has at hand.
const SITES: usize = 32;
/// Bytes of one.
const SITE: usize = 32;
/// Seats that are found without a lock.
const RECENT: usize = 1024;

/// One kind of work with one grid. All but the count is written by the seat's thread only, under the lane's lock, and read
/// by that thread or under that lock.
#[derive(Debug)]
#[repr(C, align(32))]
struct Site {
    what: Cell<usize>,
    grid: Cell<[u32; 3]>,
    /// Launches in the open batch.
    count: AtomicU32,
    cost: Cell<*const Cost>,
}

const _: () = assert!(size_of::<Site>() == SITE);

/// What is launched: a function or an operation, and the blocks of its grid (or what stands for its size).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) what: usize,
    pub(crate) grid: [u32; 3],
}

impl Job {
    /// An operation on so many bytes.
    #[allow(clippy::cast_possible_truncation)] // It is split into its halves.
    pub(crate) fn on_bytes(what: usize, bytes: u64) -> Self {
        Self { what, grid: [bytes as u32, (bytes >> 32) as u32, 0] }
    }
}

/// One thread on one lane.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Seat {
    sites: [Site; SITES],
    /// The stream as the thread names it.
    asked: usize,
    thread: usize,
    /// Nobody may join, and `word` shows no right: 0 only while a batch of this thread is open.
    closed: AtomicU32,
    /// The thread is just launching.
    inside: AtomicU32,
    /// What is reserved and not used up, ns.
    left: AtomicU64,
    /// Shows the right that counts.
    word: AtomicPtr<AtomicU32>,
    /// That right when the batch was opened; like the sites.
    right: Cell<u32>,
    lane: Option<&'static Lane>,
}

/// Shows no right ever.
static NEVER: AtomicU32 = AtomicU32::new(0);
// SAFETY: cells are written by the seat's own thread under the lane's lock, and others read them only under that lock.
unsafe impl Sync for Seat {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Seat {}

/// Stands where no seat is known: no thread has this number.
static NOBODY: Seat = Seat::vacant(0, usize::MAX, None);
/// The seats that threads used last. A seat lives for ever.
pub(crate) static SEATS: [AtomicPtr<Seat>; RECENT] =
    [const { AtomicPtr::new((&raw const NOBODY).cast_mut()) }; RECENT];

/// Half of a stream's handle, cut with this, is where in [`SEATS`] its seat is looked for, in bytes.
#[cfg(target_arch = "x86_64")]
pub(crate) const MASK: usize = (RECENT - 1) * size_of::<usize>();

/// Where the fields lie, for the fast path that is written in assembly.
#[cfg(target_arch = "x86_64")]
pub(crate) mod offsets {
    use core::mem::offset_of;

    use super::{SITE, SITES, Seat, Site};

    const _: () = assert!(offset_of!(Seat, sites) == 0, "a site is found by adding its place to the seat");
    pub(crate) const ASKED: usize = offset_of!(Seat, asked);
    pub(crate) const THREAD: usize = offset_of!(Seat, thread);
    pub(crate) const PLACES: usize = SITE * (SITES - 1);
    pub(crate) const WHAT: usize = offset_of!(Site, what);
    pub(crate) const GRID: usize = offset_of!(Site, grid);
    pub(crate) const COST: usize = offset_of!(Site, cost);
    pub(crate) const COUNT: usize = offset_of!(Site, count);
    pub(crate) const LEFT: usize = offset_of!(Seat, left);
    pub(crate) const INSIDE: usize = offset_of!(Seat, inside);
    pub(crate) const CLOSED: usize = offset_of!(Seat, closed);
    pub(crate) const WORD: usize = offset_of!(Seat, word);
    pub(crate) const RIGHT: usize = offset_of!(Seat, right);
}

/// Tells this thread from others that live.
#[inline(always)]
pub(crate) fn thread() -> usize {
    let thread: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the first word of a thread's control block is its own address (System V ABI for AMD64, thread-local storage).
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, pure, readonly, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it reads a register that user programs may read.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) thread, options(nostack, pure, nomem, preserves_flags));
    }
    thread
}

/// Where the seat on this stream is looked for. Threads that share a stream have one place; they hinder each other anyway.
#[inline(always)]
fn place(asked: usize) -> &'static AtomicPtr<Seat> {
    &SEATS[(asked >> 4) % RECENT]
}

/// The thread's seat on the stream that it names `asked`, for one launch of `job` into its open batch; `None` if that
/// can't be without more ado. Afterwards call [`Seat::leave`].
#[inline(always)]
pub(crate) fn join(asked: usize, job: Job) -> Option<&'static Seat> {
    // SAFETY: only seats that live for ever are stored.
    let seat = unsafe { &*place(asked).load(Ordering::Acquire) };
    (seat.asked == asked && seat.thread == thread() && seat.enter(job)).then_some(seat)
}

/// The thread will find this seat.
pub(crate) fn publish(seat: &'static Seat) {
    place(seat.asked).store(ptr::from_ref(seat).cast_mut(), Ordering::Release);
}

/// The context of this thread has changed: its default stream is another one.
pub(crate) fn forget_default() {
    for asked in [0, crate::abi::STREAM_LEGACY] {
        let seat = place(asked);
        // SAFETY: only seats that live for ever are stored.
        if unsafe { &*seat.load(Ordering::Acquire) }.asked <= crate::abi::STREAM_PER_THREAD {
            seat.store((&raw const NOBODY).cast_mut(), Ordering::Release);
        }
    }
}

/// Seats are looked for anew. Only stores, so that a forked child may do it.
pub(crate) fn forget_all() {
    for seat in &SEATS {
        seat.store((&raw const NOBODY).cast_mut(), Ordering::Release);
    }
}

/// Every other thread of this process is past whatever it had begun to read or write.
pub(crate) fn barrier() {
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    // SAFETY: the call takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) };
}

/// Whether the kernel offers [`barrier`]; without it no batch is left open to launches.
pub(crate) fn has_barrier() -> bool {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    static HAS: OnceLock<bool> = OnceLock::new();
    // SAFETY: the call takes no pointers.
    *HAS.get_or_init(|| unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) } == 0)
}

impl Seat {
    const fn vacant(asked: usize, thread: usize, lane: Option<&'static Lane>) -> Self {
        Self {
            asked,
            thread,
            closed: AtomicU32::new(1),
            inside: AtomicU32::new(0),
            left: AtomicU64::new(0),
            word: AtomicPtr::new((&raw const NEVER).cast_mut()),
            right: Cell::new(1),
            lane,
            sites: [const {
                Site {
                    what: Cell::new(usize::MAX),
                    grid: Cell::new([0; 3]),
                    count: AtomicU32::new(0),
                    cost: Cell::new(ptr::null()),
                }
            }; SITES],
        }
    }

    pub(crate) fn new(asked: usize, thread: usize, lane: &'static Lane) -> Self {
        Self::vacant(asked, thread, Some(lane))
    }

    pub(super) fn is_of(&self, asked: usize, thread: usize) -> bool {
        self.asked == asked && self.thread == thread
    }

    pub(super) fn is_by(&self, thread: usize) -> bool {
        self.thread == thread
    }

    /// The lane that it is on.
    pub(crate) fn lane(&self) -> Option<&'static Lane> {
        self.lane
    }

    #[inline(always)]
    fn site(&self, job: Job) -> &Site {
        const { assert!(SITE == 32 && SITES.is_power_of_two()) };
        // Handles lie at multiples of 16: what tells them apart is moved to where it counts sites.
        let offset = ((job.what << 1) ^ ((job.grid[0] as usize) << 5)) % (SITE * SITES);
        // SAFETY: the offset is within the sites, and the place of one of them: bits below 5 are taken out.
        unsafe { &*self.sites.as_ptr().byte_add(offset & !(SITE - 1)) }
    }

    #[inline(always)]
    fn enter(&self, job: Job) -> bool {
        let site = self.site(job);
        let [x, y, z] = site.grid.get();
        if site.what.get() != job.what || x != job.grid[0] || y != job.grid[1] || z != job.grid[2] {
            return false;
        }
        // SAFETY: the site is in use, and only costs that live for ever are stored.
        let cost = unsafe { &*site.cost.get() };
        let Some(left) = self.left.load(Ordering::Relaxed).checked_sub(cost.known_nanos()) else {
            return false;
        };
        self.inside.store(1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: it points to a word of a page that stays mapped, into a gate that lives for ever, or to no right.
        let word = unsafe { &*self.word.load(Ordering::Relaxed) };
        if word.load(Ordering::Relaxed) != self.right.get() {
            self.inside.store(0, Ordering::Release);
            return false;
        }
        self.left.store(left, Ordering::Relaxed);
        site.count.store(site.count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        true
    }

    /// The launch is on the stream. If this says so, the batch was closed meanwhile: take it out of the lane.
    #[inline(always)]
    #[must_use]
    pub(crate) fn leave(&self) -> bool {
        self.inside.store(0, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        self.closed.load(Ordering::Relaxed) != 0
    }

    /// Puts a kind of work into its site; under the lane's lock. What was there in the open batch is returned.
    pub(super) fn install(&self, job: Job, cost: &'static Cost) -> Option<(&'static Cost, u64)> {
        let site = self.site(job);
        let new = ptr::from_ref(cost);
        let old = site.cost.replace(new);
        site.what.set(job.what);
        site.grid.set(job.grid);
        let count = if old == new { 0 } else { site.count.swap(0, Ordering::Relaxed) };
        // SAFETY: only costs that live for ever are stored, and where something was counted there is one.
        (count > 0).then(|| (unsafe { &*old }, count.into()))
    }

    /// Lets launches in; the first one is inside already.
    pub(super) fn open(&self, job: Job, left: Nanos, held: Held) {
        self.left.store(left.0, Ordering::Relaxed);
        self.right.set(held.right);
        self.site(job).count.store(1, Ordering::Relaxed);
        self.inside.store(1, Ordering::Relaxed);
        self.closed.store(0, Ordering::Relaxed);
        self.word.store(ptr::from_ref(held.word).cast_mut(), Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.closed.store(1, Ordering::SeqCst);
        self.word.store((&raw const NEVER).cast_mut(), Ordering::SeqCst);
    }

    /// Whether it is closed and the thread is not launching.
    pub(super) fn is_left(&self) -> bool {
        self.closed.load(Ordering::SeqCst) != 0 && self.inside.load(Ordering::SeqCst) == 0
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Launches in the open batch.
    pub(super) fn launches(&self) -> u64 {
        self.sites.iter().map(|site| u64::from(site.count.load(Ordering::Relaxed))).sum()
    }

    /// Takes out the launches of a batch that is closed and left; says what is left of its reservation.
    pub(super) fn empty(&self, counts: &mut Vec<(&'static Cost, u64)>) -> Nanos {
        for site in &self.sites {
            let count = site.count.swap(0, Ordering::Acquire);
            if count > 0 {
                // SAFETY: only costs that live for ever are stored.
                counts.push((unsafe { &*site.cost.get() }, count.into()));
            }
        }
        Nanos(self.left.swap(0, Ordering::Relaxed))
    }
}
