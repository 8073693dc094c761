//! The dynamic loader's own functions, and what is asked of them: where this file lies, and whose code an address is in.
//!
//! They are found when they are needed, through the one name that this library asks of the C library's loader, in its
//! oldest version, so that it loads into images that are older than the machine it was built on. Nothing is kept: to open
//! a library costs far more than to find a function.

use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::{MaybeUninit, transmute};
use core::ptr;

use crate::names::Library;

/// Longest path of the proxy, with its zero (Linux's `PATH_MAX`).
const PATH: usize = 4096;

/// A path in memory of the caller's.
pub(crate) type Path = MaybeUninit<[c_char; PATH]>;

// Before glibc 2.34 `dlsym` is in a library that a program without `dlopen` need not have: the reference is weak.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".symver gpufn_dlsym, dlsym@GLIBC_2.2.5",
    ".weak gpufn_dlsym",
    ".hidden gpufn_preload_dlsym",
    ".globl gpufn_preload_dlsym",
    ".type gpufn_preload_dlsym, @function",
    "gpufn_preload_dlsym:",
    "mov rax, qword ptr [rip + gpufn_dlsym@GOTPCREL]",
    "ret",
    ".size gpufn_preload_dlsym, . - gpufn_preload_dlsym",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".symver gpufn_dlsym, dlsym@GLIBC_2.17",
    ".weak gpufn_dlsym",
    ".hidden gpufn_preload_dlsym",
    ".globl gpufn_preload_dlsym",
    ".type gpufn_preload_dlsym, %function",
    "gpufn_preload_dlsym:",
    "adrp x0, :got:gpufn_dlsym",
    "ldr x0, [x0, :got_lo12:gpufn_dlsym]",
    "ret",
    ".size gpufn_preload_dlsym, . - gpufn_preload_dlsym",
);

unsafe extern "C" {
    /// Address of the loader's `dlsym`, null if it is not loaded.
    fn gpufn_preload_dlsym() -> *mut c_void;
}

/// The function `name` of whatever comes after this library, null if there is none.
pub(crate) fn next(name: &CStr) -> *mut c_void {
    type Find = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: it only reads an address.
    let find = unsafe { gpufn_preload_dlsym() };
    if find.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: `dlsym` has this signature, and the name ends with a zero.
    unsafe { transmute::<*mut c_void, Find>(find)(libc::RTLD_NEXT, name.as_ptr()) }
}

/// Path of the file that the code or data at `address` came from, null if there is none.
pub(crate) fn file_of(address: *const c_void) -> *const c_char {
    type Find = unsafe extern "C" fn(*const c_void, *mut libc::Dl_info) -> c_int;
    let find = next(c"dladdr");
    if find.is_null() {
        return ptr::null();
    }
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: `dladdr` has this signature, takes any address, and writes to a place of its size.
    let found = unsafe { transmute::<*mut c_void, Find>(find)(address, info.as_mut_ptr()) };
    // SAFETY: it was filled where the call succeeded.
    if found == 0 { ptr::null() } else { unsafe { info.assume_init() }.dli_fname }
}

/// Writes the path of the proxy for `library`, beside this file, to `path`; whether there was room.
///
/// # Safety
/// `path` may be written to.
pub(crate) unsafe fn write_proxy(path: *mut Path, library: Library) -> bool {
    let own = file_of(file_of as *const c_void);
    if own.is_null() {
        return false;
    }
    // SAFETY: the loader's name of a file ends with a zero.
    let slash = unsafe { libc::strrchr(own, c_int::from(b'/')) };
    // A name without a folder was found in the folder that the process runs in.
    let (folder, length) =
        if slash.is_null() { (c".".as_ptr(), 1) } else { (own, (slash as usize).wrapping_sub(own as usize)) };
    if length >= PATH {
        return false;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // It is less than a path's longest.
    let length = length as c_int;
    // SAFETY: the place has this size; the texts end with a zero, or are cut where the precision says.
    let written = unsafe {
        libc::snprintf(path.cast(), PATH, c"%.*s/%s".as_ptr(), length, folder, library.proxy().as_ptr())
    };
    #[allow(clippy::cast_sign_loss)] // It was found not to be below zero.
    let fits = written >= 0 && (written as usize) < PATH;
    fits
}
