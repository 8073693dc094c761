//! The proxy's exports: each jumps through a table whose entries are found at their first call.
//!
//! An entry ends as the address of a wrapper (names that the hook watches, in a process with a binding) or of the real
//! function. Which call comes first does not matter, and nothing happens while the library is loaded.

use core::arch::naked_asm;
use core::ffi::{c_char, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::abi::Status;
use crate::names::{COUNT, CUDA, NAMES, index};
use crate::{driver, intercept};

/// Where each export jumps to.
static TABLE: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(first_call as *mut c_void) }; COUNT];

/// The real function of each name, once it was looked for.
pub(crate) static REAL: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];

/// The real function of the name at `index`, or one that answers that there is none.
pub(crate) fn real(index: usize) -> *mut c_void {
    let known = REAL[index].load(Ordering::Acquire);
    if known.is_null() { find_real(index) } else { known }
}

/// The real function of a watched name, for its wrapper: [`real`] was called before anybody was given that.
#[allow(clippy::inline_always)] // The fast path is counted in instructions.
#[inline(always)]
pub(crate) fn watched(index: usize) -> *mut c_void {
    // Where another processor may see the wrapper before what was stored first, it is looked at again.
    if cfg!(target_arch = "x86_64") { REAL[index].load(Ordering::Acquire) } else { real(index) }
}

/// The real function of the name at `index`, null if the real library lacks it.
pub(crate) fn real_or_null(index: usize) -> *mut c_void {
    driver::symbol(index >= CUDA, NAMES[index]).unwrap_or(ptr::null_mut())
}

#[cold]
fn find_real(index: usize) -> *mut c_void {
    let found = driver::symbol(index >= CUDA, NAMES[index]);
    let address = found.or_else(|| older_form(index)).unwrap_or_else(|| absent(index));
    REAL[index].store(address, Ordering::Release);
    address
}

/// The older form of a name, for one that a driver of CUDA 12 lacks. Programs take a name with `_v2` if there is one,
/// and call it as they know it (numba up to 0.61): without the hook they would have found the older form. It does not
/// look at the context that is the newer form's only further argument.
fn older_form(index: usize) -> Option<*mut c_void> {
    let older = match index {
        index::cuCtxGetDevice_v2 => index::cuCtxGetDevice,
        index::cuCtxSynchronize_v2 => index::cuCtxSynchronize,
        _ => return None,
    };
    driver::symbol(false, NAMES[older])
}

/// What stands in for a name that the real library lacks, or for all of them where there is no library.
fn absent(index: usize) -> *mut c_void {
    if index == index::nvmlErrorString {
        return no_text as *mut c_void;
    }
    match (index >= CUDA, driver::is_open(index >= CUDA)) {
        (false, true) => not_supported as *mut c_void,
        (false, false) => no_driver as *mut c_void,
        (true, true) => no_function as *mut c_void,
        (true, false) => no_library as *mut c_void,
    }
}

extern "C" fn not_supported() -> Status {
    Status::NOT_SUPPORTED
}

extern "C" fn no_driver() -> Status {
    Status::NO_DEVICE
}

extern "C" fn no_function() -> Status {
    Status::NVML_FUNCTION_NOT_FOUND
}

/// The one function that answers no status.
extern "C" fn no_text() -> *const c_char {
    c"unknown: the NVIDIA management library can't be opened".as_ptr()
}

extern "C" fn no_library() -> Status {
    Status::NVML_LIBRARY_NOT_FOUND
}

/// Finds where the export at `index` goes from now on.
extern "C" fn resolve(index: usize) -> *mut c_void {
    let target = intercept::wrapper(index).unwrap_or_else(|| real(index));
    TABLE[index].store(target, Ordering::Release);
    target
}

/// Keeps every register that can carry an argument, asks [`resolve`], and goes there as if called directly.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn first_call() {
    // At entry the stack is 8 off a 16-byte boundary; seven registers bring it there, as the call needs it.
    naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push rax",
        "sub rsp, 128",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov edi, r11d",
        "call {resolve}",
        "mov r11, rax",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 128",
        "pop rax",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp r11",
        resolve = sym resolve,
    )
}

/// Keeps every register that can carry an argument, asks [`resolve`], and goes there as if called directly.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn first_call() {
    naked_asm!(
        "stp x29, x30, [sp, #-224]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "str x8, [sp, #80]",
        "stp q0, q1, [sp, #96]",
        "stp q2, q3, [sp, #128]",
        "stp q4, q5, [sp, #160]",
        "stp q6, q7, [sp, #192]",
        "mov w0, w17",
        "bl {resolve}",
        "mov x16, x0",
        "ldp q6, q7, [sp, #192]",
        "ldp q4, q5, [sp, #160]",
        "ldp q2, q3, [sp, #128]",
        "ldp q0, q1, [sp, #96]",
        "ldr x8, [sp, #80]",
        "ldp x6, x7, [sp, #64]",
        "ldp x4, x5, [sp, #48]",
        "ldp x2, x3, [sp, #32]",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #224",
        "br x16",
        resolve = sym resolve,
    )
}

#[cfg(target_arch = "x86_64")]
macro_rules! forwarder {
    ($name:ident, $index:expr) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "mov r11d, {index}",
                "jmp qword ptr [rip + {table} + 8 * {index}]",
                index = const $index,
                table = sym TABLE,
            )
        }
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! forwarder {
    ($name:ident, $index:expr) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "mov w17, #{index}",
                "adrp x16, {table} + 8 * {index}",
                "ldr x16, [x16, #:lo12:{table} + 8 * {index}]",
                "br x16",
                index = const $index,
                table = sym TABLE,
            )
        }
    };
}

/// One export for each name; see the build script.
#[allow(non_snake_case)] // The names are the driver's.
mod exports {
    use super::{TABLE, naked_asm};

    include!(concat!(env!("OUT_DIR"), "/forwarders.rs"));
}
