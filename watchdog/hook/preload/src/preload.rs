//! As `LD_PRELOAD`: `dlopen` and `dlmopen`, which change the path of NVIDIA's libraries and nothing else.
//!
//! What a name means depends on who asks (its `RUNPATH`, `$ORIGIN`, and namespace), which the loader takes from the return
//! address. So all other calls are jumped on to the loader, with every register as it was.
//!
//! Functions are of the kind that may unwind, because in all others a debug build puts a call of the panic handler.

use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::transmute;
use core::ptr;

use crate::loader::{Path, file_of, next, write_proxy};
use crate::names::{Library, library};

/// Where a call goes.
#[repr(C)]
struct Way {
    /// What is opened in the place of what was asked for.
    library: Library,
    /// Who carries the call out: the loader, or [`open`] and [`open_in`] here.
    target: *mut c_void,
}

/// Where to go with a `dlopen` of `file` that returns to `caller`.
unsafe extern "C-unwind" fn way(file: *const c_char, caller: *const c_void) -> Way {
    // SAFETY: as the caller of `dlopen` promised.
    let library = unsafe { exchange(file, caller) };
    let target = if library == Library::Other {
        loaders(c"dlopen", absent as *mut c_void)
    } else {
        open as *mut c_void
    };
    Way { library, target }
}

/// Where to go with a `dlmopen` of `file` that returns to `caller`.
unsafe extern "C-unwind" fn way_in(file: *const c_char, caller: *const c_void) -> Way {
    // SAFETY: as the caller of `dlmopen` promised.
    let library = unsafe { exchange(file, caller) };
    let target = if library == Library::Other {
        loaders(c"dlmopen", absent as *mut c_void)
    } else {
        open_in as *mut c_void
    };
    Way { library, target }
}

/// What `file` is exchanged for. The proxy, which bears one of the names itself, opens the real library in earnest.
unsafe fn exchange(file: *const c_char, caller: *const c_void) -> Library {
    // SAFETY: the program's file ends with a zero or is null, and so does the loader's name of a file.
    unsafe {
        let asked = library(file);
        if asked == Library::Other || library(file_of(caller)) == Library::Other {
            asked
        } else {
            Library::Other
        }
    }
}

fn loaders(name: &CStr, without: *mut c_void) -> *mut c_void {
    let found = next(name);
    if found.is_null() { without } else { found }
}

/// Stands in for a loader that is not there; then nothing could have called.
extern "C" fn absent() -> *mut c_void {
    ptr::null_mut()
}

/// Opens the proxy for `library`. An absolute path means the same whoever asks for it.
unsafe extern "C-unwind" fn open(library: Library, mode: c_int) -> *mut c_void {
    type Open = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
    let (mut path, real) = (Path::uninit(), next(c"dlopen"));
    // SAFETY: it is a place of this size.
    if real.is_null() || !unsafe { write_proxy(&raw mut path, library) } {
        return ptr::null_mut();
    }
    // SAFETY: the loader's function has this signature; the path was written, with a zero at its end.
    unsafe { transmute::<*mut c_void, Open>(real)(path.as_ptr().cast(), mode) }
}

/// Opens the proxy for `library` in a namespace.
unsafe extern "C-unwind" fn open_in(namespace: c_long, library: Library, mode: c_int) -> *mut c_void {
    type Open = unsafe extern "C" fn(c_long, *const c_char, c_int) -> *mut c_void;
    let (mut path, real) = (Path::uninit(), next(c"dlmopen"));
    // SAFETY: it is a place of this size.
    if real.is_null() || !unsafe { write_proxy(&raw mut path, library) } {
        return ptr::null_mut();
    }
    // SAFETY: the loader's function has this signature; the path was written, with a zero at its end.
    unsafe { transmute::<*mut c_void, Open>(real)(namespace, path.as_ptr().cast(), mode) }
}

/// The C library's `dlopen(file, mode)`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn dlopen() {
    // The stack is 8 off a 16-byte boundary at entry; three words bring it there.
    naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "mov rsi, qword ptr [rsp + 24]",
        "call {way}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "cmovne rdi, rax",
        "jmp rdx",
        way = sym way,
    )
}

/// The C library's `dlmopen(namespace, file, mode)`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn dlmopen() {
    naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "mov rdi, rsi",
        "mov rsi, qword ptr [rsp + 24]",
        "call {way_in}",
        "mov rcx, rdx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "cmovne rsi, rax",
        "jmp rcx",
        way_in = sym way_in,
    )
}

/// The C library's `dlopen(file, mode)`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn dlopen() {
    naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "mov x1, x30",
        "bl {way}",
        "mov x16, x1",
        "mov x17, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cmp x17, #0",
        "csel x0, x17, x0, ne",
        "br x16",
        way = sym way,
    )
}

/// The C library's `dlmopen(namespace, file, mode)`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn dlmopen() {
    naked_asm!(
        "stp x29, x30, [sp, #-48]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "str x2, [sp, #32]",
        "mov x0, x1",
        "mov x1, x30",
        "bl {way_in}",
        "mov x16, x1",
        "mov x17, x0",
        "ldp x0, x1, [sp, #16]",
        "ldr x2, [sp, #32]",
        "ldp x29, x30, [sp], #48",
        "cmp x17, #0",
        "csel x1, x17, x1, ne",
        "br x16",
        way_in = sym way_in,
    )
}
