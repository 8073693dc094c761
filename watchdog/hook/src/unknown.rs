//! Counts the ways to the GPU that this hook does not know: what goes there is neither held back nor charged.
//!
//! It says so once, and tells the node agent; it stops nothing. Contexts that do not keep to the SM share are counted with
//! them.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gpu_share::protocol::FromContainer;
use gpu_share::units::Nanos;

use crate::abi::Status;
use crate::config::say;
use crate::session::session;
use crate::wrappers::wrappers;

/// First bytes of the private tables that NVIDIA's runtime (10.2 to 13.5) asks for when it starts; none was seen to launch.
const TABLES: [[u8; 4]; 8] = [
    [0x6b, 0xd5, 0xfb, 0x6c], // runtime interface
    [0xa0, 0x94, 0x79, 0x8c], // hooks for tools
    [0x42, 0xd8, 0x5a, 0x81], // storage for tools
    [0xc6, 0x93, 0x33, 0x6e], // storage by context
    [0x21, 0x31, 0x8c, 0x60],
    [0x26, 0x3e, 0x88, 0x60], // checks of a context
    [0xf8, 0xcf, 0xf9, 0x51],
    [0xd4, 0x08, 0x20, 0x55], // check of the driver
];

/// What was not told to the agent yet.
static UNTOLD: AtomicU64 = AtomicU64::new(0);

/// The program was given `way`, by which work can reach the GPU.
pub(crate) fn note(way: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        say(&format!("work that goes through {way} is not counted: this hook does not know it"));
    }
    count();
}

/// There is one more way by which the share is not kept.
pub(crate) fn count() {
    UNTOLD.fetch_add(1, Ordering::Relaxed);
    tell();
}

/// Tells the agent at once: a process that launches by such ways alone never has a right to give back.
fn tell() {
    let Some(session) = session() else { return };
    let unknown = UNTOLD.swap(0, Ordering::Relaxed);
    if unknown > 0 {
        let (used, throttled) = (Nanos::ZERO, Nanos::ZERO);
        session.agent.send(&FromContainer::Yield {
            right: 0,
            used,
            launches: 0,
            throttled,
            more: false,
            unknown,
        });
    }
}

/// # Safety
/// It is the driver's own argument.
unsafe fn handed_out(name: *const [u8; 16], real: impl FnOnce() -> Status) -> Status {
    let status = real();
    if status.is_ok() && !name.is_null() {
        // SAFETY: the driver just read it.
        let [a, b, c, d, ..] = unsafe { *name };
        if !TABLES.contains(&[a, b, c, d]) {
            note(&format!("private table {a:02x}{b:02x}{c:02x}{d:02x}"));
        }
    }
    status
}

wrappers! {
    [cuGetExportTable](table: *mut *const c_void, name: *const [u8; 16]) |real, per_thread| {
        // SAFETY: it is the driver's own argument.
        unsafe { handed_out(name, real) }
    }
}
