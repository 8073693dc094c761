//! Older versions of the C library's functions, and what stands in for functions that it did not have in 2.28.
//!
//! Made by the build script from `facts/glibc.txt`. Only the proxy itself is linked with them.

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::ptr;

/// What the C library answers about the file that an address lies in (`struct dl_find_object`, glibc 2.35).
#[repr(C)]
#[derive(Debug)]
struct FoundObject {
    flags: u64,
    start: *const c_void,
    end: *const c_void,
    map: *const c_void,
    eh_frame: *const c_void,
}

/// An address, and the file that it lies in.
struct Search {
    address: usize,
    found: Option<FoundObject>,
}

/// The C library's `_dl_find_object`, by which a panic's way through this library is found: 0 if there is such a file.
///
/// # Safety
/// `found` may be written to.
unsafe extern "C" fn find_object(address: *const c_void, found: *mut FoundObject) -> c_int {
    let mut search = Search { address: address as usize, found: None };
    // SAFETY: the search lives as long as the call, which hands it to `visit` and to nobody else.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    let Some(object) = search.found else { return -1 };
    // SAFETY: as said above.
    unsafe { found.write(object) };
    0
}

/// Looks at one file; not 0 if the address lies in it.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: the C library passes a valid description, and what it was given with the function.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    // SAFETY: the description says how many headers there are.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    #[allow(clippy::cast_possible_truncation)] // Addresses of this process.
    let place = |header: &libc::Elf64_Phdr| (info.dlpi_addr.wrapping_add(header.p_vaddr)) as usize;
    #[allow(clippy::cast_possible_truncation)] // As above.
    let end = |header: &libc::Elf64_Phdr| place(header).saturating_add(header.p_memsz as usize);
    let loaded = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    if !loaded().any(|header| (place(header)..end(header)).contains(&search.address)) {
        return 0;
    }
    let frames = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME);
    search.found = frames.map(|frames| FoundObject {
        flags: 0,
        start: loaded().map(place).min().unwrap_or(0) as *const c_void,
        end: loaded().map(end).max().unwrap_or(0) as *const c_void,
        map: ptr::null(),
        eh_frame: place(frames) as *const c_void,
    });
    1
}

include!(concat!(env!("OUT_DIR"), "/glibc.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    type Find = unsafe extern "C" fn(*const c_void, *mut FoundObject) -> c_int;

    fn ask(find: Find, address: *const c_void) -> Option<(usize, usize)> {
        let mut found = core::mem::MaybeUninit::<[FoundObject; 4]>::zeroed();
        // SAFETY: the place is larger than what is written, and all zeros are a valid value.
        let (status, found) = unsafe { (find(address, found.as_mut_ptr().cast()), found.assume_init()) };
        (status == 0).then_some((found[0].eh_frame as usize, found[0].start as usize))
    }

    #[test]
    fn an_address_is_found_in_the_file_that_the_c_library_finds_it_in() {
        // SAFETY: the name ends with a zero.
        let theirs = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
        let own = find_object as *const c_void;
        assert_eq!(ask(find_object, ptr::null()), None);
        assert_ne!(ask(find_object, own), None);
        assert_ne!(ask(find_object, own), ask(find_object, libc::getpid as *const c_void));
        if theirs.is_null() {
            return; // Before glibc 2.35 there is nothing to compare with.
        }
        // SAFETY: it has this signature, with a larger structure.
        let theirs = unsafe { core::mem::transmute::<*mut c_void, Find>(theirs) };
        for address in [own, libc::getpid as *const c_void, libc::dlsym as *const c_void] {
            assert_eq!(ask(find_object, address), ask(theirs, address), "{address:?}");
        }
    }
}
