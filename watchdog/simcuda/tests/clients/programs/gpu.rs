//! The GPU of a client program, through cudarc.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, result, sys};

const PTX: &str = "
.version 7.0
.target sm_70
.address_size 64
.visible .entry vector_add(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u32 p3) { ret; }
.visible .entry saxpy(.param .u32 p0, .param .f32 p1, .param .u64 p2, .param .u64 p3) { ret; }
.visible .entry matmul(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u32 p3) { ret; }
.visible .entry spin_us(.param .u32 p0) { ret; }
.visible .entry vgg16_layer() { ret; }
";

pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    functions: HashMap<&'static str, sys::CUfunction>,
}

/// A pointer to an argument of a kernel.
pub(crate) fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

pub(crate) fn code(result: sys::CUresult) -> u32 {
    result as u32
}

impl Gpu {
    pub(crate) fn new() -> Self {
        let context = CudaContext::new(0).unwrap();
        let text = CString::new(PTX).unwrap();
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        let names = ["vector_add", "saxpy", "matmul", "spin_us", "vgg16_layer"];
        let find = |name| {
            (name, unsafe { result::module::get_function(module, CString::new(name).unwrap()) }.unwrap())
        };
        Self { context, functions: names.into_iter().map(find).collect() }
    }

    pub(crate) fn function(&self, name: &str) -> sys::CUfunction {
        self.functions[name]
    }

    /// A kernel of another text.
    pub(crate) fn load(&self, text: &str, name: &str) -> sys::CUfunction {
        self.context.bind_to_thread().unwrap();
        let text = CString::new(text).unwrap();
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        unsafe { result::module::get_function(module, CString::new(name).unwrap()) }.unwrap()
    }

    pub(crate) fn launch(&self, name: &str, arguments: &mut [*mut c_void]) {
        self.launch_on(std::ptr::null_mut(), name, [1, 1, 1], arguments);
    }

    pub(crate) fn launch_on(
        &self,
        stream: sys::CUstream,
        name: &str,
        grid: [u32; 3],
        arguments: &mut [*mut c_void],
    ) {
        let [x, y, z] = grid;
        unsafe { result::launch_kernel(self.functions[name], (x, y, z), (256, 1, 1), 0, stream, arguments) }
            .unwrap();
    }

    /// The code that a launch on the default stream gives.
    pub(crate) fn try_launch(&self, name: &str, arguments: &mut [*mut c_void]) -> u32 {
        let (function, stream) = (self.functions[name], std::ptr::null_mut());
        let launched = unsafe { result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, stream, arguments) };
        launched.map_or_else(|error| code(error.0), |()| 0)
    }

    pub(crate) fn spin_on(&self, stream: sys::CUstream, microseconds: u32) {
        self.launch_on(stream, "spin_us", [1, 1, 1], &mut [arg(&microseconds)]);
    }

    pub(crate) fn zeros(&self, n: usize) -> sys::CUdeviceptr {
        self.upload(&vec![0.0; n])
    }

    pub(crate) fn upload(&self, values: &[f32]) -> sys::CUdeviceptr {
        self.context.bind_to_thread().unwrap();
        let pointer = unsafe { result::malloc_sync(size_of_val(values)) }.unwrap();
        unsafe { result::memcpy_htod_sync(pointer, values) }.unwrap();
        pointer
    }

    pub(crate) fn peek(&self, pointer: sys::CUdeviceptr, n: usize) -> Vec<f32> {
        self.context.bind_to_thread().unwrap();
        let mut values = vec![0.0; n];
        unsafe { result::memcpy_dtoh_sync(&mut values, pointer) }.unwrap();
        values
    }

    pub(crate) fn download(&self, pointer: sys::CUdeviceptr, n: usize) -> Vec<f32> {
        let values = self.peek(pointer, n);
        unsafe { result::free_sync(pointer) }.unwrap();
        values
    }

    /// An event, recorded.
    pub(crate) fn event_on(&self, stream: sys::CUstream) -> sys::CUevent {
        self.context.bind_to_thread().unwrap();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
        unsafe { result::event::record(event, stream) }.unwrap();
        event
    }

    /// Milliseconds between two events, once they have happened.
    pub(crate) fn elapsed(&self, start: sys::CUevent, end: sys::CUevent) -> f32 {
        self.context.synchronize().unwrap();
        unsafe { result::event::elapsed(start, end) }.unwrap()
    }

    /// A stream: flag 0 waits for the legacy default stream, 1 does not.
    pub(crate) fn stream(&self, flags: u32) -> sys::CUstream {
        self.context.bind_to_thread().unwrap();
        let mut stream = std::ptr::null_mut();
        assert_eq!(code(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }), 0);
        stream
    }
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Sync for Gpu {}

type Note = (Arc<Mutex<Vec<&'static str>>>, &'static str);

unsafe extern "C" fn write_note(argument: *mut c_void) {
    let (log, text) = *unsafe { Box::from_raw(argument.cast::<Note>()) };
    log.lock().unwrap().push(text);
}

/// Writes `text` to the log in stream order.
pub(crate) fn call_on(stream: sys::CUstream, log: &Arc<Mutex<Vec<&'static str>>>, text: &'static str) {
    let note: *mut Note = Box::into_raw(Box::new((Arc::clone(log), text)));
    assert_eq!(code(unsafe { sys::cuLaunchHostFunc(stream, Some(write_note), note.cast()) }), 0);
}
