//! The driver's types and numbers that the hook looks into, as the CUDA driver API reference states them.
//!
//! Only what a wrapper reads or writes is here; everything else passes by untouched.

use core::ffi::c_void;

/// What a function of the driver or of the management library returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Status(pub(crate) i32);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const OUT_OF_MEMORY: Self = Self(2);
    pub(crate) const NOT_INITIALIZED: Self = Self(3);
    pub(crate) const DEINITIALIZED: Self = Self(4);
    pub(crate) const NO_DEVICE: Self = Self(100);
    pub(crate) const NOT_READY: Self = Self(600);
    pub(crate) const NOT_PERMITTED: Self = Self(800);
    pub(crate) const NOT_SUPPORTED: Self = Self(801);
    pub(crate) const NVML_LIBRARY_NOT_FOUND: Self = Self(12);
    pub(crate) const NVML_FUNCTION_NOT_FOUND: Self = Self(13);

    pub(crate) fn is_ok(self) -> bool {
        self == Self::SUCCESS
    }
}

/// A driver's handle: opaque, compared and passed on, never followed.
pub(crate) type Handle = *mut c_void;
/// Address in GPU memory.
pub(crate) type DevicePtr = u64;
/// Address in GPU memory of the first API (before CUDA 3.2).
pub(crate) type DevicePtr32 = u32;

/// The context's default stream, which waits for the others.
pub(crate) const STREAM_LEGACY: usize = 1;
/// The thread's own default stream.
pub(crate) const STREAM_PER_THREAD: usize = 2;
/// A thread that waits for the event sleeps.
pub(crate) const EVENT_BLOCKING_SYNC: u32 = 1;
/// Calls of this thread do not disturb captures of others.
pub(crate) const CAPTURE_MODE_RELAXED: i32 = 2;
/// Ask for the forms whose default stream is the thread's own.
pub(crate) const PROC_ADDRESS_PER_THREAD: u64 = 2;
/// What a memory pool keeps of the card (`CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT`).
pub(crate) const POOL_RESERVED: i32 = 5;
/// What of it is given out (`CU_MEMPOOL_ATTR_USED_MEM_CURRENT`).
pub(crate) const POOL_USED: i32 = 7;
/// Memory that lies on a GPU.
pub(crate) const LOCATION_DEVICE: i32 = 1;

/// What `cuLaunchKernelEx` reads first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut c_void,
    pub(crate) attribute_count: u32,
}

/// One GPU's part of a cooperative launch on several.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct DeviceLaunch {
    pub(crate) function: Handle,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: Handle,
    pub(crate) params: *mut *mut c_void,
}

/// Shape of an array.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ArrayShape {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
}

/// Shape of an array with depth.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ArrayShape3d {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
    pub(crate) flags: u32,
}

/// Where and how `cuMemCreate` makes memory.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct AllocationProperties {
    pub(crate) kind: i32,
    pub(crate) handle_kinds: i32,
    pub(crate) location_kind: i32,
    pub(crate) location: i32,
}

/// `nvmlMemory_t`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct NvmlMemory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// `nvmlMemory_v2_t`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct NvmlMemoryV2 {
    pub(crate) version: u32,
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// Bytes of one element of an array of `format`; what is unknown counts as the largest.
pub(crate) fn format_bytes(format: u32) -> u64 {
    match format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        _ => 4,
    }
}
