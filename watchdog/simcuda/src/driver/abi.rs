//! What crosses the C border: pointers that the caller vouches for, and the structures of `cuda.h` in use here.

use std::ffi::{CStr, c_char, c_void};

use super::{CudaError, Result};

/// An opaque handle, as wide as a pointer.
pub(crate) type Handle = usize;

/// Where a result goes. By the interface's contract null, or valid for one write (or for as many as the
/// function documents).
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// A place for a result that nobody wants.
    pub(crate) fn nowhere() -> Self {
        Self(std::ptr::null_mut())
    }

    /// Writes the result; null is an invalid value.
    pub(crate) fn set(self, value: T) -> Result {
        if self.0.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        // SAFETY: not null, so valid for a write by the caller's contract.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes the result unless the caller does not want it.
    pub(crate) fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, so valid for a write by the caller's contract.
            unsafe { self.0.write(value) };
        }
    }

    /// Writes element `index` of an array that the caller says is long enough.
    pub(crate) fn set_at(self, index: usize, value: T) -> Result {
        if self.0.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        // SAFETY: the caller vouches for the array's length, which the function was given.
        unsafe { self.0.add(index).write(value) };
        Ok(())
    }

    /// Reads what the caller put there.
    pub(crate) fn get(self) -> Result<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).get()
    }

    /// Reads element `index` of an array that the caller says is long enough.
    pub(crate) fn get_at(self, index: usize) -> Result<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).at(index)
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// A place in this library.
    pub(crate) fn to(place: &mut T) -> Self {
        Self(std::ptr::from_mut(place))
    }

    /// The place at `address`, which the caller vouches for.
    pub(crate) fn from_address(address: usize) -> Self {
        Self(std::ptr::with_exposed_provenance_mut(address))
    }

    /// The same place for a result of another type; the caller's contract depends on a selector argument.
    pub(crate) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<u8> {
    /// Writes `text` and a zero into a buffer of `capacity` bytes, cut off if it is too long.
    pub(crate) fn set_text(self, text: &str, capacity: usize) -> Result {
        let Some(room) = capacity.checked_sub(1) else { return Err(CudaError::INVALID_VALUE) };
        let text = &text.as_bytes()[..text.len().min(room)];
        for (index, &byte) in text.iter().chain(&[0]).enumerate() {
            self.set_at(index, byte)?;
        }
        Ok(())
    }
}

/// An argument given by pointer. By the interface's contract null or valid for reads.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The value; null is an invalid value.
    pub(crate) fn get(self) -> Result<T> {
        self.at(0)
    }

    /// Element `index` of an array that the caller says is long enough.
    pub(crate) fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        // SAFETY: not null, so by contract readable as far as the caller said. Programs may pass it unaligned.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The pointer as one to another type.
    pub(crate) fn cast<U>(self) -> In<U> {
        In(self.0.cast())
    }

    /// What lies at `address`, which the caller vouches for.
    pub(crate) fn from_address(address: usize) -> Self {
        Self(std::ptr::with_exposed_provenance(address))
    }
}

impl In<c_char> {
    /// The pointer as one to a C string.
    pub(crate) fn text(self) -> Text {
        Text(self.0)
    }
}

/// A C string. By the interface's contract null or ended by a zero.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text(*const c_char);

impl Text {
    /// The text; null and what is not UTF-8 are invalid values.
    pub(crate) fn get(self) -> Result<String> {
        if self.0.is_null() {
            return Err(CudaError::INVALID_VALUE);
        }
        // SAFETY: not null, so ended by a zero by contract.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(String::from).map_err(|_| CudaError::INVALID_VALUE)
    }
}

/// A function that runs on the host in stream order.
pub(crate) type HostFunction = extern "C" fn(*mut c_void);

/// An opaque pointer of the program.
pub(crate) type Opaque = *mut c_void;

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy2D {
    pub(crate) src_x: usize,
    pub(crate) src_y: usize,
    pub(crate) src_type: u32,
    pub(crate) src_host: usize,
    pub(crate) src_device: u64,
    pub(crate) src_array: Handle,
    pub(crate) src_pitch: usize,
    pub(crate) dst_x: usize,
    pub(crate) dst_y: usize,
    pub(crate) dst_type: u32,
    pub(crate) dst_host: usize,
    pub(crate) dst_device: u64,
    pub(crate) dst_array: Handle,
    pub(crate) dst_pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy3D {
    pub(crate) src_x: usize,
    pub(crate) src_y: usize,
    pub(crate) src_z: usize,
    pub(crate) src_lod: usize,
    pub(crate) src_type: u32,
    pub(crate) src_host: usize,
    pub(crate) src_device: u64,
    pub(crate) src_array: Handle,
    pub(crate) src_reserved: usize,
    pub(crate) src_pitch: usize,
    pub(crate) src_height: usize,
    pub(crate) dst_x: usize,
    pub(crate) dst_y: usize,
    pub(crate) dst_z: usize,
    pub(crate) dst_lod: usize,
    pub(crate) dst_type: u32,
    pub(crate) dst_host: usize,
    pub(crate) dst_device: u64,
    pub(crate) dst_array: Handle,
    pub(crate) dst_reserved: usize,
    pub(crate) dst_pitch: usize,
    pub(crate) dst_height: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
}

/// `CUlaunchConfig`; the attributes do not change what is simulated.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: Handle,
    pub(crate) attributes: usize,
    pub(crate) attribute_count: u32,
}

/// `CUDA_KERNEL_NODE_PARAMS`, whose second version has two more fields behind these.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelNode {
    pub(crate) function: Handle,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) parameters: usize,
    pub(crate) extra: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemsetNode {
    pub(crate) dst: u64,
    pub(crate) pitch: usize,
    pub(crate) value: u32,
    pub(crate) element_size: u32,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostNode {
    pub(crate) function: Option<HostFunction>,
    pub(crate) argument: usize,
}

/// `CUmemLocation`: kind (1 is a device) and number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) kind: u32,
    pub(crate) id: i32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhysicalProperties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
    pub(crate) metadata: usize,
    pub(crate) flags: [u8; 8],
}

/// The head of `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolProperties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
}

/// `CUexecAffinityParam` of the only kind there is, a number of SMs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecAffinity {
    pub(crate) kind: u32,
    pub(crate) sms: u32,
}

/// The head of `CUctxCreateParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContextParameters {
    pub(crate) affinities: In<ExecAffinity>,
    pub(crate) affinity_count: i32,
}
