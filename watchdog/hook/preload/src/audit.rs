//! As `LD_AUDIT` (see rtld-audit(7)): the loader asks before it looks for any library, whoever needs it.
//!
//! So it also sees what a preloaded `dlopen` does not: libraries that a program was linked with and finds by its own
//! `RPATH`, and modules that were bound to the C library directly (`RTLD_DEEPBIND`).

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_uint};
use core::mem::MaybeUninit;
use core::ptr;

use crate::loader::{Path, write_proxy};
use crate::names::{Library, library};

/// `LA_SER_ORIG`: the name as it was asked for, before any search.
const AS_ASKED: c_uint = 1;

/// The path that the loader is given. It copies it before it asks again.
struct Answer(UnsafeCell<Path>);

// SAFETY: the loader calls an auditor with its own lock held.
unsafe impl Sync for Answer {}

static ANSWER: Answer = Answer(UnsafeCell::new(Path::uninit()));

/// The beginning of the loader's `struct link_map`, whose address is an object's cookie unless an auditor changes it.
#[repr(C)]
struct LinkMap {
    _base: usize,
    name: *const c_char,
}

/// The loader's version of the interface; the one function used here is the same in all.
#[unsafe(no_mangle)]
extern "C" fn la_version(version: c_uint) -> c_uint {
    version
}

/// Answers which file to look for in the place of `name`.
///
/// # Safety
/// Called by the loader: `name` ends with a zero, and `cookie` is that of the object which needs it.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn la_objsearch(
    name: *const c_char,
    cookie: *const usize,
    flag: c_uint,
) -> *const c_char {
    // SAFETY: as said above.
    let asked = if flag == AS_ASKED { unsafe { library(name) } } else { Library::Other };
    // SAFETY: as said above. The proxy, which bears one of the names itself, opens the real library in earnest.
    if asked == Library::Other || unsafe { library(file_of(cookie)) } != Library::Other {
        return name;
    }
    // SAFETY: the loader's lock is held, so nobody else is here, and the answer before this one was copied.
    let written = unsafe { write_proxy(ANSWER.0.get(), asked) };
    if written { ANSWER.0.get().cast_const().cast() } else { ptr::null() }
}

/// Path of the file of the object that has `cookie`, empty for the program itself.
unsafe fn file_of(cookie: *const usize) -> *const c_char {
    let mut map = MaybeUninit::<LinkMap>::uninit();
    let mut object = ptr::null::<LinkMap>();
    // SAFETY: no auditor of this process changes cookies, so this one holds the address of the object's map. They are
    // copied by the C library because a debug build's checks of pointers can panic.
    unsafe {
        libc::memcpy((&raw mut object).cast(), cookie.cast(), size_of::<usize>());
        libc::memcpy(map.as_mut_ptr().cast(), object.cast(), size_of::<LinkMap>());
        map.assume_init().name
    }
}
