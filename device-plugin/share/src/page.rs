//! The page: the small file through which the node agent tells one container what it has.
//!
//! Only the node agent writes it; hook and watchdog map or read it and can change nothing that others see. What a
//! container tells the agent goes over the socket ([`crate::protocol`]), and over the same socket a process gets the
//! page: sealed memory. The file is a copy for those who only look. Every value is checked when it is read, since
//! whoever owns the file could have written anything.
//!
//! ```text
//! 0    magic, version, size, binding, GPU, checksum of all these     fixed while the page lives
//! 128  generation, SM share, floor, ceiling, grant, memory limit, window, agent's heartbeat
//! 176  GPU time used, time throttled, memory held                    for the watchdog's metrics
//! 256  slots: one for each process of the container, with its right to run (a futex word)
//! ```

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::binding::BindingId;
use crate::invalid::Invalid;
use crate::units::{Bytes, Nanos, Quota, SmShare};

#[cfg(feature = "mapping")]
pub mod handover;
#[cfg(feature = "mapping")]
mod mapping;
#[cfg(feature = "mapping")]
pub use mapping::{PageReader, PageWriter};

/// Length of the file in bytes.
pub const SIZE: usize = 4096;
/// First bytes of every page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"gpufn/pg");
/// Version of the layout. A reader refuses another one.
pub const VERSION: u32 = 1;
/// Most processes of one container that can hold the right to run.
pub const SLOTS: usize = 32;

/// A right to run: odd while held. Each grant and each revocation adds one, so that a right is never mistaken for the
/// one before it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// The futex word.
    pub right: AtomicU32,
}

impl Slot {
    /// Whether `right` is a held right.
    pub fn is_held(right: u32) -> bool {
        right & 1 == 1
    }
}

/// The page as it lies in memory.
#[derive(Debug)]
#[repr(C)]
pub struct Page {
    magic: u64,
    version: u32,
    size: u32,
    binding: [u8; 32],
    gpu: [u8; 64],
    checksum: u64,
    unused: u64,
    /// Adds one whenever the grant or a limit changes.
    pub generation: AtomicU32,
    sm: AtomicU32,
    floor: AtomicU32,
    ceiling: AtomicU32,
    grant: AtomicU32,
    unused_too: u32,
    memory_limit: AtomicU64,
    window: AtomicU64,
    /// When the agent last showed that it lives, on the monotonic clock.
    pub heartbeat: AtomicU64,
    /// GPU time used by all processes of the binding so far, ns.
    pub used: AtomicU64,
    /// Time that its processes waited for the right to run so far, ns.
    pub throttled: AtomicU64,
    /// GPU memory held by its processes, bytes.
    pub memory_used: AtomicU64,
    unused_last: [u64; 7],
    /// One for each process.
    pub slots: [Slot; SLOTS],
}

const _: () = assert!(offset_of!(Page, generation) == 128 && offset_of!(Page, slots) == 256);
const _: () = assert!(size_of::<Page>() <= SIZE);

/// What does not change while a page lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The binding that the page belongs to.
    pub binding: BindingId,
    /// UUID of its GPU, at most 64 bytes.
    pub gpu: String,
}

/// What a container may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// SM share.
    pub sm: SmShare,
    /// Quota that it is guaranteed.
    pub floor: Quota,
    /// Quota that it can get at most.
    pub ceiling: Quota,
    /// Quota that it has now, zero while parked.
    pub grant: Quota,
    /// Memory that its processes may hold together.
    pub memory: Bytes,
    /// Window Π over which the quota is kept.
    pub window: Nanos,
}

/// What the agent has counted for a binding so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// GPU time used.
    pub used: Nanos,
    /// Time waited for the right to run.
    pub throttled: Nanos,
    /// GPU memory held.
    pub memory: Bytes,
}

impl Page {
    /// A page for `identity` with `limits`, nobody holding a right.
    pub fn new(identity: &Identity, limits: &Limits) -> Self {
        let page = Self {
            magic: MAGIC,
            version: VERSION,
            size: 4096,
            binding: padded(identity.binding.as_str()),
            gpu: padded(&identity.gpu),
            checksum: 0,
            unused: 0,
            generation: AtomicU32::new(0),
            sm: AtomicU32::new(0),
            floor: AtomicU32::new(0),
            ceiling: AtomicU32::new(0),
            grant: AtomicU32::new(0),
            unused_too: 0,
            memory_limit: AtomicU64::new(0),
            window: AtomicU64::new(0),
            heartbeat: AtomicU64::new(0),
            used: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            memory_used: AtomicU64::new(0),
            unused_last: [0; 7],
            slots: Default::default(),
        };
        page.set_limits(limits);
        Self { checksum: page.checksum(), ..page }
    }

    /// Writes new limits and announces them.
    pub fn set_limits(&self, limits: &Limits) {
        self.sm.store(limits.sm.percent().into(), Ordering::Relaxed);
        self.floor.store(limits.floor.ppm(), Ordering::Relaxed);
        self.ceiling.store(limits.ceiling.ppm(), Ordering::Relaxed);
        self.grant.store(limits.grant.ppm(), Ordering::Relaxed);
        self.memory_limit.store(limits.memory.0, Ordering::Relaxed);
        self.window.store(limits.window.0, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Writes what was counted so far.
    pub fn set_counters(&self, counters: &Counters) {
        self.used.store(counters.used.0, Ordering::Relaxed);
        self.throttled.store(counters.throttled.0, Ordering::Relaxed);
        self.memory_used.store(counters.memory.0, Ordering::Relaxed);
    }

    /// The limits now, if they are sound.
    pub fn limits(&self) -> Result<Limits, Invalid> {
        let sm = self.sm.load(Ordering::Acquire);
        let quota = |field: &AtomicU32| Quota::from_ppm(field.load(Ordering::Acquire));
        let limits = Limits {
            sm: SmShare::from_percent(u8::try_from(sm).unwrap_or(u8::MAX))?,
            floor: quota(&self.floor)?,
            ceiling: quota(&self.ceiling)?,
            grant: quota(&self.grant)?,
            memory: Bytes(self.memory_limit.load(Ordering::Acquire)),
            window: Nanos(self.window.load(Ordering::Acquire)),
        };
        if limits.window.0 == 0 || limits.window > Nanos::from_secs(1) {
            return Err(Invalid::new("page window", limits.window.0, "1 ns to 1 s"));
        }
        Ok(limits)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        Counters {
            used: Nanos(self.used.load(Ordering::Relaxed)),
            throttled: Nanos(self.throttled.load(Ordering::Relaxed)),
            memory: Bytes(self.memory_used.load(Ordering::Relaxed)),
        }
    }

    /// Whom the page is for, if it is a page of this version that nobody damaged.
    pub fn identity(&self) -> Result<Identity, Invalid> {
        if self.magic != MAGIC {
            return Err(Invalid::new("page magic", format!("{:#x}", self.magic), format!("{MAGIC:#x}")));
        }
        if self.version != VERSION || self.size != 4096 {
            let found = format!("version {} of {} bytes", self.version, self.size);
            return Err(Invalid::new("page", found, format!("version {VERSION} of {SIZE} bytes")));
        }
        if self.checksum != self.checksum() {
            return Err(Invalid::new("page checksum", self.checksum, self.checksum().to_string()));
        }
        Ok(Identity { binding: unpadded(&self.binding).try_into()?, gpu: unpadded(&self.gpu) })
    }

    /// FNV-1a over what does not change.
    fn checksum(&self) -> u64 {
        let fixed = self
            .magic
            .to_le_bytes()
            .into_iter()
            .chain(self.version.to_le_bytes())
            .chain(self.size.to_le_bytes());
        fixed
            .chain(self.binding)
            .chain(self.gpu)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// A copy of the page's values, for readers that don't map it (the watchdog).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whom it is for.
    pub identity: Identity,
    /// What it may do.
    pub limits: Limits,
    /// What was counted.
    pub counters: Counters,
    /// When the agent last showed that it lives, on the monotonic clock.
    pub heartbeat: Nanos,
}

impl Snapshot {
    /// Reads the values from the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() < SIZE {
            return Err(Invalid::new("page length", bytes.len(), format!("{SIZE} bytes")));
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let mut page = Page {
            magic: long(offset_of!(Page, magic)),
            version: word(offset_of!(Page, version)),
            size: word(offset_of!(Page, size)),
            binding: [0; 32],
            gpu: [0; 64],
            checksum: long(offset_of!(Page, checksum)),
            unused: 0,
            generation: AtomicU32::new(word(offset_of!(Page, generation))),
            sm: AtomicU32::new(word(offset_of!(Page, sm))),
            floor: AtomicU32::new(word(offset_of!(Page, floor))),
            ceiling: AtomicU32::new(word(offset_of!(Page, ceiling))),
            grant: AtomicU32::new(word(offset_of!(Page, grant))),
            unused_too: 0,
            memory_limit: AtomicU64::new(long(offset_of!(Page, memory_limit))),
            window: AtomicU64::new(long(offset_of!(Page, window))),
            heartbeat: AtomicU64::new(long(offset_of!(Page, heartbeat))),
            used: AtomicU64::new(long(offset_of!(Page, used))),
            throttled: AtomicU64::new(long(offset_of!(Page, throttled))),
            memory_used: AtomicU64::new(long(offset_of!(Page, memory_used))),
            unused_last: [0; 7],
            slots: Default::default(),
        };
        let at = offset_of!(Page, binding);
        page.binding.copy_from_slice(&bytes[at..at + 32]);
        let at = offset_of!(Page, gpu);
        page.gpu.copy_from_slice(&bytes[at..at + 64]);
        Ok(Self {
            identity: page.identity()?,
            limits: page.limits()?,
            counters: page.counters(),
            heartbeat: Nanos(page.heartbeat.load(Ordering::Relaxed)),
        })
    }
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

fn unpadded(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { binding: "b-7".to_string().try_into().unwrap(), gpu: "GPU-1234".into() }
    }

    fn limits() -> Limits {
        Limits {
            sm: SmShare::from_percent(30).unwrap(),
            floor: Quota::from_percent(20).unwrap(),
            ceiling: Quota::WHOLE,
            grant: Quota::from_percent(45).unwrap(),
            memory: Bytes::gib(2),
            window: Nanos::from_millis(10),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let page = Page::new(&identity(), &limits());
        assert_eq!(page.identity(), Ok(identity()));
        assert_eq!(page.limits(), Ok(limits()));
        let before = page.generation.load(Ordering::Relaxed);
        let parked = Limits { grant: Quota::ZERO, ..limits() };
        page.set_limits(&parked);
        assert_eq!(page.limits(), Ok(parked));
        assert_eq!(page.generation.load(Ordering::Relaxed), before + 1);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_as_sound_limits(bytes in proptest::collection::vec(proptest::num::u8::ANY, SIZE)) {
            proptest::prop_assert!(Snapshot::parse(&bytes).is_err());
        }
    }

    #[test]
    fn a_short_file_is_refused() {
        assert!(Snapshot::parse(&[0; 100]).is_err());
    }
}
