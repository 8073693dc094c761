//! `cuGetProcAddress`: which exported function a name means at a version of the interface. The table is this
//! library's own; the dynamic linker is never asked, since its answer may be another library's function.

use std::ffi::c_void;

use super::device::DRIVER_VERSION;
use super::{CudaError, Out, Result, Text, driver};

/// One form of a function.
struct Entry {
    name: &'static str,
    /// The first version with this form; 0: not offered by version.
    version: u32,
    per_thread: bool,
    function: unsafe extern "C" fn(),
}

#[allow(clashing_extern_declarations)] // Only the addresses are taken.
mod table {
    //! The generated table.
    use super::Entry;
    include!(concat!(env!("OUT_DIR"), "/cuda_table.rs"));
    pub(super) fn entries() -> &'static [Entry] {
        ENTRIES
    }
}

/// Flag: the form whose default stream is per thread, where there is one.
const PER_THREAD: u64 = 2;

/// Why a name is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Miss {
    Unknown = 1,
    TooOld = 2,
}

fn find(name: &str, version: u32, flags: u64) -> std::result::Result<&'static Entry, Miss> {
    let named: Vec<_> =
        table::entries().iter().filter(|entry| entry.name == name && entry.version > 0).collect();
    if named.is_empty() {
        return Err(Miss::Unknown);
    }
    let newest = |per_thread: bool| {
        let fits =
            |entry: &&&Entry| entry.per_thread == per_thread && entry.version <= version.min(DRIVER_VERSION);
        named.iter().filter(fits).max_by_key(|entry| entry.version).copied()
    };
    let twin = if flags & PER_THREAD != 0 { newest(true) } else { None };
    twin.or_else(|| newest(false)).ok_or(Miss::TooOld)
}

fn answer(
    name: Text,
    function: Out<*const c_void>,
    version: i32,
    flags: u64,
    status: Option<Out<u32>>,
) -> Result {
    let name = name.get()?;
    let found = find(&name, u32::try_from(version).unwrap_or(0), flags);
    function.set(found.map_or(std::ptr::null(), |entry| entry.function as *const c_void))?;
    if let Some(status) = status {
        status.set_if_wanted(found.err().map_or(0, |miss| miss as u32));
    }
    found.map(|_| ()).map_err(|_| CudaError::NOT_FOUND)
}

driver! {
    // The first form has four arguments, the second five: the version asked for decides which one a caller gets.
    fn [cuGetProcAddress] (name: Text, function: Out<*const c_void>, version: i32, flags: u64) {
        answer(name, function, version, flags, None)
    }

    fn [cuGetProcAddress_v2 | cuGetProcAddress_v2_ptsz] default
        (name: Text, function: Out<*const c_void>, version: i32, flags: u64, status: Out<u32>) {
        let flags = if default == super::DefaultStream::PerThread && flags == 0 { PER_THREAD } else { flags };
        answer(name, function, version, flags, Some(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, version: u32, flags: u64) -> std::result::Result<usize, Miss> {
        find(name, version, flags).map(|entry| entry.function as usize)
    }

    fn exported(symbol: &str) -> usize {
        let all = table::entries();
        let versions: Vec<_> = all.iter().filter(|entry| entry.name == symbol).collect();
        versions.first().map(|entry| entry.function as usize).unwrap_or_default()
    }

    #[test]
    fn the_version_decides_the_form() {
        let old = symbol("cuGetProcAddress", 11_030, 0).unwrap();
        let new = symbol("cuGetProcAddress", 12_000, 0).unwrap();
        assert_ne!(old, new);
        assert_eq!(old, symbol("cuGetProcAddress", 11_080, 0).unwrap());
        assert_eq!(exported("cuGetProcAddress"), old);
    }

    #[test]
    fn forms_newer_than_the_driver_are_not_offered() {
        assert_eq!(symbol("cuCtxSynchronize", 13_000, 0), symbol("cuCtxSynchronize", 2_000, 0));
        assert_eq!(symbol("cuCtxGetDevice", 13_050, 0), symbol("cuCtxGetDevice", 12_000, 0));
    }

    #[test]
    fn a_stream_of_its_own_per_thread_is_another_function() {
        let legacy = symbol("cuLaunchKernel", 12_000, 1).unwrap();
        assert_ne!(legacy, symbol("cuLaunchKernel", 12_000, PER_THREAD).unwrap());
        assert_eq!(symbol("cuInit", 12_000, PER_THREAD), symbol("cuInit", 12_000, 0));
    }

    #[test]
    fn a_miss_says_why() {
        assert_eq!(symbol("cuNoSuchThing", 12_000, 0), Err(Miss::Unknown));
        assert_eq!(symbol("cuLaunchKernelEx", 11_000, 0), Err(Miss::TooOld));
    }
}
