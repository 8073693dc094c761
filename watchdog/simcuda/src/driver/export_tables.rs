//! The tables of functions behind `cuGetExportTable` that NVIDIA's runtime up to 11.6 can't start without, and no other.
//!
//! Their layout is not documented; what is known of it comes from watching the runtime 10.2. Programs that ask for
//! another table learn that there is none. One of those lets newer runtimes check that the driver is NVIDIA's: this one
//! is not, and never answers it.

mod local_storage;

use std::ffi::c_void;
use std::sync::atomic::AtomicBool;

use super::context::retain_primary;
use super::module::load_module;
use super::{CudaError, Handle, In, Out, driver, entry, log_unsupported};

pub(super) use self::local_storage::LocalStorage;

/// What the runtime calls a table: a UUID, as the bytes lie in memory.
type Id = [u8; 16];

/// Modules and primary contexts for the runtime.
const RUNTIME: Id = *b"\x6b\xd5\xfb\x6c\x5b\xf4\xe7\x4a\x89\x87\xd9\x39\x12\xfd\x9d\xf9";
/// Room for the hooks of profilers.
const HOOKS: Id = *b"\xa0\x94\x79\x8c\x2e\x74\x2e\x74\x93\xf2\x08\x00\x20\x0c\x0a\x66";
/// Thread-local data of profilers.
const TOOLS: Id = *b"\x42\xd8\x5a\x81\x23\xf6\xcb\x47\x82\x98\xf6\xe7\x8a\x3a\xec\xdc";
/// Values that the runtime keeps with a context.
const LOCAL_STORAGE: Id = *b"\xc6\x93\x33\x6e\x11\x21\xdf\x11\xa8\xc3\x68\xf3\x55\xd8\x95\x93";

/// A function of a table that no program has been seen to call.
type Unknown = extern "C" fn() -> u32;

extern "C" fn unknown() -> u32 {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    log_unsupported("a function of an export table", &LOGGED);
    CudaError::NOT_SUPPORTED.code()
}

#[repr(C)]
struct RuntimeTable {
    bytes: usize,
    load: extern "C" fn(Out<Handle>, In<u8>) -> u32,
    primary: extern "C" fn(Out<Handle>, i32) -> u32,
    unknown: [Unknown; 3],
    load_with_options: extern "C" fn(Out<Handle>, In<u8>, usize, usize, u32) -> u32,
    notice: extern "C" fn(usize) -> u32,
    load_header: extern "C" fn(In<u8>, Out<Handle>, usize, usize, u32) -> u32,
    more: [Unknown; 3],
}

static RUNTIME_TABLE: RuntimeTable = RuntimeTable {
    bytes: size_of::<RuntimeTable>(),
    load: load_wrapper,
    primary: primary_context,
    unknown: [unknown; 3],
    load_with_options: load_wrapper_with_options,
    notice,
    load_header,
    more: [unknown; 3],
};

/// Loads what lies in the wrapper that the compiler puts around a fat binary.
extern "C" fn load_wrapper(out: Out<Handle>, wrapper: In<u8>) -> u32 {
    entry(|| load_module(out, wrapper))
}

extern "C" fn load_wrapper_with_options(
    out: Out<Handle>,
    wrapper: In<u8>,
    _options: usize,
    _values: usize,
    _count: u32,
) -> u32 {
    entry(|| load_module(out, wrapper))
}

/// The same of a fat binary without a wrapper, which comes first here.
extern "C" fn load_header(
    header: In<u8>,
    out: Out<Handle>,
    _options: usize,
    _values: usize,
    _count: u32,
) -> u32 {
    entry(|| load_module(out, header))
}

extern "C" fn primary_context(out: Out<Handle>, device: i32) -> u32 {
    entry(|| retain_primary(out, device))
}

extern "C" fn notice(_argument: usize) -> u32 {
    0
}

#[repr(C)]
struct HooksTable {
    bytes: usize,
    before: Unknown,
    room: extern "C" fn(Out<usize>, Out<usize>) -> u32,
    between: [Unknown; 3],
    more_room: extern "C" fn(Out<usize>, Out<usize>) -> u32,
}

static HOOKS_TABLE: HooksTable = HooksTable {
    bytes: size_of::<HooksTable>(),
    before: unknown,
    room: hooks_room,
    between: [unknown; 3],
    more_room: hooks_room,
};

/// Room for hooks, which stays zero: no profiler is attached.
extern "C" fn hooks_room(address: Out<usize>, bytes: Out<usize>) -> u32 {
    static ROOM: [AtomicBool; ROOM_BYTES] = [const { AtomicBool::new(false) }; ROOM_BYTES];
    const ROOM_BYTES: usize = 4096;
    entry(|| {
        address.set(ROOM.as_ptr().expose_provenance())?;
        bytes.set(ROOM_BYTES)
    })
}

#[repr(C)]
struct ToolsTable {
    bytes: usize,
    unknown: [Unknown; 3],
}

static TOOLS_TABLE: ToolsTable = ToolsTable { bytes: size_of::<ToolsTable>(), unknown: [unknown; 3] };

/// Where a table lies; none is offered for the others.
fn find(id: Id) -> Option<*const c_void> {
    match id {
        RUNTIME => Some((&raw const RUNTIME_TABLE).cast()),
        HOOKS => Some((&raw const HOOKS_TABLE).cast()),
        TOOLS => Some((&raw const TOOLS_TABLE).cast()),
        LOCAL_STORAGE => Some(local_storage::table()),
        _ => None,
    }
}

driver! {
    fn [cuGetExportTable] (table: Out<*const c_void>, id: In<[u8; 16]>) {
        let found = find(id.get()?);
        table.set(found.unwrap_or(std::ptr::null()))?;
        found.map(|_| ()).ok_or(CudaError::NOT_FOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table by which newer runtimes check that the driver is NVIDIA's.
    const CHECK: Id = *b"\xd4\x08\x20\x55\xbd\xe6\x70\x4b\x8d\x34\xba\x12\x3c\x66\xe1\xf2";
    /// One that the run-time compiler asks for, and must not get.
    const COMPILER: Id = *b"\xda\x91\x51\xd3\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

    #[test]
    fn the_check_of_nvidias_driver_is_never_answered() {
        assert_eq!(find(CHECK), None);
        assert_eq!(find(COMPILER), None);
    }

    #[test]
    fn a_table_begins_with_its_size() {
        for (id, words) in [(RUNTIME, 12), (HOOKS, 7), (TOOLS, 4)] {
            let table = find(id).unwrap().cast::<usize>();
            assert_eq!(In::<usize>::from_address(table.expose_provenance()).get(), Ok(8 * words));
        }
    }
}
