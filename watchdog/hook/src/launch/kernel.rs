//! The wrapper of `cuLaunchKernel`, which most programs launch everything with.
//!
//! On x86-64 its fast path is written in assembly: a compiler saves six registers and reads all arguments before it looks
//! at anything. It does what [`seat::join`] and [`Seat::leave`] do, with the same fields, and leaves everything else to
//! the wrapper that is written as all others are.

#[cfg(target_arch = "x86_64")]
use core::arch::naked_asm;
#[cfg(target_arch = "x86_64")]
use core::ffi::c_void;

#[cfg(target_arch = "x86_64")]
use super::ended;
#[cfg(target_arch = "x86_64")]
use crate::forward::REAL;
#[cfg(target_arch = "x86_64")]
use crate::lane::seat::{MASK, SEATS, Seat, offsets};
#[cfg(target_arch = "x86_64")]
use crate::names::index;
#[cfg(target_arch = "x86_64")]
use crate::wrappers::Wrapper;

/// The wrappers as all others are written.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))] // Of their list: those in assembly stand for them.
mod plain {
    use core::ffi::c_void;

    use crate::abi::Handle;
    use crate::launch::{gated, job, joining};
    use crate::wrappers::wrappers;

    wrappers! {
        [cuLaunchKernel, cuLaunchKernel_ptsz](
            function: Handle, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
            shared: u32, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
        ) |real, per_thread| try {
            joining(stream, per_thread, job(function, [grid_x, grid_y, grid_z]))
        } {
            gated(stream, per_thread, job(function, [grid_x, grid_y, grid_z]), real)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use plain::WRAPPERS;

/// Both forms.
#[cfg(target_arch = "x86_64")]
pub(crate) static WRAPPERS: &[Wrapper] = &[
    Wrapper { index: index::cuLaunchKernel, address: launch_at_once as *const c_void },
    Wrapper { index: index::cuLaunchKernel_ptsz, address: launch_at_once_per_thread as *const c_void },
];

// At entry: function, grid, and two sides of a block in registers; above the return address the third side, the shared
// memory, the stream (at 24), the parameters, and what else there is. rax, r10 and r11 are free.
#[cfg(target_arch = "x86_64")]
macro_rules! at_once {
    ($(#[$doc:meta])* $name:ident, $index:ident, [$($first:literal),*]) => {
        $(#[$doc])*
        #[allow(clippy::too_many_lines)] // One path, an instruction a line.
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "mov r10, [rsp + 24]",
                $($first,)*
                // The thread's seat on the stream.
                "mov r11d, r10d",
                "shr r11d, 1",
                "and r11d, {mask}",
                "lea rax, [rip + {seats}]",
                "mov rax, [rax + r11]",
                "cmp [rax + {asked}], r10",
                "jne 2f",
                "mov r11, fs:0",
                "cmp [rax + {thread}], r11",
                "jne 2f",
                // The site of this function and grid.
                "lea r11d, [rdi + rdi]",
                "mov r10d, esi",
                "shl r10d, 5",
                "xor r11d, r10d",
                "and r11d, {places}",
                "add r11, rax",
                "cmp [r11 + {what}], rdi",
                "jne 2f",
                "cmp [r11 + {grid}], esi",
                "jne 2f",
                "cmp [r11 + {grid} + 4], edx",
                "jne 2f",
                "cmp [r11 + {grid} + 8], ecx",
                "jne 2f",
                "push rbx",
                ".cfi_adjust_cfa_offset 8",
                ".cfi_rel_offset rbx, 0",
                // Is enough left of what is reserved?
                "mov rbx, [r11 + {cost}]",
                "mov r10, [rax + {left}]",
                "sub r10, [rbx + {nanos}]",
                "jb 3f",
                // Inside; is the batch open, and the right held?
                "mov dword ptr [rax + {inside}], 1",
                "mov rbx, [rax + {word}]",
                "mov ebx, [rbx]",
                "cmp ebx, [rax + {right}]",
                "jne 4f",
                "mov [rax + {left}], r10",
                "inc dword ptr [r11 + {count}]",
                // The same call with the same arguments.
                "mov rbx, rax",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "push qword ptr [rsp + 56]",
                ".cfi_adjust_cfa_offset 8",
                "push qword ptr [rsp + 56]",
                ".cfi_adjust_cfa_offset 8",
                "push qword ptr [rsp + 56]",
                ".cfi_adjust_cfa_offset 8",
                "push qword ptr [rsp + 56]",
                ".cfi_adjust_cfa_offset 8",
                "push qword ptr [rsp + 56]",
                ".cfi_adjust_cfa_offset 8",
                "call qword ptr [rip + {real} + 8 * {index}]",
                "mov dword ptr [rbx + {inside}], 0",
                "cmp dword ptr [rbx + {closed}], 0",
                "jne 5f",
                "add rsp, 48",
                ".cfi_remember_state",
                ".cfi_adjust_cfa_offset -48",
                "pop rbx",
                ".cfi_adjust_cfa_offset -8",
                ".cfi_restore rbx",
                "ret",
                // Somebody closed the batch meanwhile.
                ".cfi_restore_state",
                "5:",
                "mov rdi, rbx",
                "mov esi, eax",
                "call {ended}",
                "add rsp, 48",
                ".cfi_adjust_cfa_offset -48",
                "pop rbx",
                ".cfi_adjust_cfa_offset -8",
                ".cfi_restore rbx",
                "ret",
                "4:",
                ".cfi_adjust_cfa_offset 8",
                ".cfi_rel_offset rbx, 0",
                "mov dword ptr [rax + {inside}], 0",
                "3:",
                "pop rbx",
                ".cfi_adjust_cfa_offset -8",
                ".cfi_restore rbx",
                "2:",
                "jmp {otherwise}",
                ".cfi_endproc",
                mask = const MASK,
                seats = sym SEATS,
                asked = const offsets::ASKED,
                thread = const offsets::THREAD,
                places = const offsets::PLACES,
                what = const offsets::WHAT,
                grid = const offsets::GRID,
                cost = const offsets::COST,
                left = const offsets::LEFT,
                nanos = const gpu_share::accounting::cost::NANOS,
                inside = const offsets::INSIDE,
                word = const offsets::WORD,
                right = const offsets::RIGHT,
                count = const offsets::COUNT,
                closed = const offsets::CLOSED,
                real = sym REAL,
                index = const index::$index,
                ended = sym ended_at_once,
                otherwise = sym plain::$index,
            )
        }
    };
}

#[cfg(target_arch = "x86_64")]
at_once! {
    /// `cuLaunchKernel`.
    launch_at_once, cuLaunchKernel, []
}

#[cfg(target_arch = "x86_64")]
at_once! {
    /// `cuLaunchKernel_ptsz`: nothing can be open on the thread's own stream, which is what no stream means there.
    launch_at_once_per_thread, cuLaunchKernel_ptsz, ["test r10, r10", "jz 2f"]
}

/// The batch was closed while this thread launched into it.
#[cfg(target_arch = "x86_64")]
extern "C" fn ended_at_once(seat: &Seat, status: crate::abi::Status) -> crate::abi::Status {
    ended(seat, status)
}
