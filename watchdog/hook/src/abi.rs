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
    pub(crate) const INVALID_RESOURCE_CONFIGURATION: Self = Self(915);
    pub(crate) const NVML_INVALID_ARGUMENT: Self = Self(2);
    pub(crate) const NVML_INSUFFICIENT_SIZE: Self = Self(7);
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
/// What graphs of a device keep of the card for their memory nodes (`CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT`).
pub(crate) const GRAPH_RESERVED: i32 = 2;
/// What of it is in use (`CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT`).
pub(crate) const GRAPH_USED: i32 = 0;
/// A node that is a graph.
pub(crate) const NODE_GRAPH: i32 = 4;
/// A node that takes memory.
pub(crate) const NODE_MEM_ALLOC: i32 = 10;
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

/// Where a pointer leads (`CU_POINTER_ATTRIBUTE_MEMORY_TYPE`).
pub(crate) const POINTER_MEMORY_TYPE: i32 = 2;
pub(crate) const MEMORY_DEVICE: u32 = 2;
pub(crate) const MEMORY_ARRAY: u32 = 3;
pub(crate) const MEMORY_UNIFIED: u32 = 4;

/// One end of a copy of a rectangle.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct End2d {
    place: [usize; 2],
    pub(crate) kind: u32,
    host: *const c_void,
    pub(crate) device: DevicePtr,
    array: Handle,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Copy2d {
    pub(crate) from: End2d,
    pub(crate) to: End2d,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

const _: () = assert!(size_of::<Copy2d>() == 128);

/// One end of a copy of a box.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct End3d {
    place: [usize; 4],
    pub(crate) kind: u32,
    host: *const c_void,
    pub(crate) device: DevicePtr,
    array: Handle,
    context: Handle,
    pitch: [usize; 2],
}

/// `CUDA_MEMCPY3D`, and `CUDA_MEMCPY3D_PEER`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Copy3d {
    pub(crate) from: End3d,
    pub(crate) to: End3d,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
}

const _: () = assert!(size_of::<Copy3d>() == 200);

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

/// `CUDA_MEM_ALLOC_NODE_PARAMS`, both versions.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct AllocationNode {
    pub(crate) properties: AllocationProperties,
    rest: [u64; 9],
    access: *const c_void,
    access_count: usize,
    pub(crate) bytes: usize,
    address: DevicePtr,
}

impl AllocationNode {
    pub(crate) const fn zeroed() -> Self {
        let properties = AllocationProperties { kind: 0, handle_kinds: 0, location_kind: 0, location: 0 };
        Self { properties, rest: [0; 9], access: core::ptr::null(), access_count: 0, bytes: 0, address: 0 }
    }
}

const _: () =
    assert!(core::mem::offset_of!(AllocationNode, bytes) == 104 && size_of::<AllocationNode>() == 120);

/// Multiprocessors (`CU_DEV_RESOURCE_TYPE_SM`).
pub(crate) const RESOURCE_SM: u32 = 1;
/// A green context has a default stream of its own (`CU_GREEN_CTX_DEFAULT_STREAM`).
pub(crate) const GREEN_DEFAULT_STREAM: u32 = 1;

/// `CUdevResource` of multiprocessors: the driver's own words, and how many they are.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DevResource {
    kind: u32,
    internal: [u32; 23],
    pub(crate) sms: u32,
    smallest: u32,
    rest: [u64; 5],
}

impl DevResource {
    pub(crate) const fn zeroed() -> Self {
        Self { kind: 0, internal: [0; 23], sms: 0, smallest: 0, rest: [0; 5] }
    }

    /// One of so many, for tests of what is decided by that.
    #[cfg(test)]
    pub(crate) const fn of(sms: u32) -> Self {
        Self { kind: RESOURCE_SM, sms, ..Self::zeroed() }
    }
}

const _: () = assert!(core::mem::offset_of!(DevResource, sms) == 96 && size_of::<DevResource>() == 144);

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

/// `nvmlProcessInfo_v2_t`, which the third form of its list has too.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NvmlProcess {
    pub(crate) pid: u32,
    pub(crate) used: u64,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
}

/// `nvmlProcessInfo_v1_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NvmlProcessV1 {
    pub(crate) pid: u32,
    pub(crate) used: u64,
}

/// `nvmlUtilization_t`, in percent.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NvmlUtilization {
    pub(crate) gpu: u32,
    pub(crate) memory: u32,
}

/// `nvmlProcessUtilizationSample_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NvmlSample {
    pub(crate) pid: u32,
    pub(crate) time: u64,
    pub(crate) percent: [u32; 4],
}

/// Bytes of one element of an array of `format`; what is unknown counts as the largest.
pub(crate) fn format_bytes(format: u32) -> u64 {
    match format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        _ => 4,
    }
}
