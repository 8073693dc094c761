//! The real libraries: finding and opening them, and the few functions of the driver that the hook itself calls.
//!
//! A library is opened by its path, so that a library of the same name that is loaded already (this one) is not taken
//! for it. It never opens itself.

use core::ffi::{CStr, c_char, c_void};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::abi::{AllocationNode, DevResource, DevicePtr, Handle, NvmlMemory, NvmlProcess, Status};
use crate::config::{config, say};
use crate::forward;
use crate::names::index;

/// Folders where the driver's libraries lie in images and on hosts.
const FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/usr/lib",
];

/// A handle of the dynamic loader.
struct Library(*mut c_void);

// SAFETY: the loader's handles may be used from any thread, and this one is never closed.
unsafe impl Send for Library {}
// SAFETY: as above; looking a name up takes the loader's own lock.
unsafe impl Sync for Library {}

/// Address of `name` in the real driver, or with `nvml` in the real management library.
pub(crate) fn symbol(nvml: bool, name: &CStr) -> Option<*mut c_void> {
    let library = library(nvml)?;
    // SAFETY: the handle is open for good and the name ends with a zero.
    let address = unsafe { libc::dlsym(library.0, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Whether the real library could be opened.
pub(crate) fn is_open(nvml: bool) -> bool {
    library(nvml).is_some()
}

fn library(nvml: bool) -> Option<&'static Library> {
    static DRIVER: OnceLock<Option<Library>> = OnceLock::new();
    static NVML: OnceLock<Option<Library>> = OnceLock::new();
    if nvml {
        NVML.get_or_init(|| {
            claim_management_name();
            open(config().nvml.as_deref(), "libnvidia-ml.so.1")
        })
        .as_ref()
    } else {
        DRIVER.get_or_init(|| open(config().driver.as_deref(), "libcuda.so.1")).as_ref()
    }
}

fn open(configured: Option<&Path>, name: &str) -> Option<Library> {
    let path = configured.map_or_else(|| search(name), |path| Some(path.to_owned()));
    let Some(path) = path else {
        say(&format!("no {name} in {}", FOLDERS.join(", ")));
        return None;
    };
    if is_self(&path) {
        say(&format!("{} is the hook itself, allowed is the real library", path.display()));
        return None;
    }
    let library = open_at(&path).map_err(|error| say(&error)).ok()?;
    if leads_here(&library) {
        say(&format!("{} leads to the hook itself, allowed is the real library", path.display()));
        return None;
    }
    Some(library)
}

/// Has the loader know a library of the hook as `libnvidia-ml.so.1` before it knows the real one as that: whoever asks for
/// the name later is given the first library that is open under it, without a search.
fn claim_management_name() {
    let beside = own_path().map(|own| own.with_file_name("libnvidia-ml.so.1")).filter(|path| path.exists());
    // One that leads to the real library does what is about to be done anyway.
    for path in beside.iter().map(PathBuf::as_path).chain([Path::new("libnvidia-ml.so.1")]) {
        let _ = open_at(path);
    }
}

/// Whether the functions of `library` are this library's own: it may be a file that only names this one.
fn leads_here(library: &Library) -> bool {
    let base = |address: *const c_void| {
        let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: any address may be asked for, and the answer is written to a place of its size.
        let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
        // SAFETY: it was zeroed, which is a valid value, and filled where the call succeeded.
        (found != 0).then(|| unsafe { info.assume_init() }.dli_fbase)
    };
    let own = base(own_path as *const c_void);
    [c"cuInit", c"nvmlInit_v2"].into_iter().any(|name| {
        // SAFETY: the handle is open for good and the name ends with a zero.
        let address = unsafe { libc::dlsym(library.0, name.as_ptr()) };
        !address.is_null() && base(address) == own
    })
}

fn open_at(path: &Path) -> Result<Library, String> {
    let file =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{} holds a zero", path.display()))?;
    // SAFETY: the path ends with a zero; running the library's constructors is what the program asked for.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(Library(handle));
    }
    // SAFETY: the last call of the loader in this thread failed, so there is a message, and it is copied at once.
    let why = unsafe { text(libc::dlerror()) };
    Err(format!("{} can't be opened: {why}", path.display()))
}

unsafe fn text(message: *const c_char) -> String {
    if message.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: the caller passes a string that ends with a zero.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

fn search(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists() && !is_self(path))
}

/// Whether `path` is the file that this code was loaded from, under whatever name.
fn is_self(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    own_path().and_then(|own| identity(&own)).is_some_and(|own| identity(path) == Some(own))
}

fn own_path() -> Option<PathBuf> {
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is one of this library's, and the answer is written to a place of its size.
    let found = unsafe { libc::dladdr(own_path as *const c_void, info.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a valid value, and filled where the call succeeded.
    let name = unsafe { info.assume_init() }.dli_fname;
    if found == 0 || name.is_null() {
        return None;
    }
    // SAFETY: the loader keeps the name for as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

/// Defines a safe function for one of the driver's, called directly and never through the exports.
macro_rules! call {
    ($(#[$doc:meta])* $name:ident = $symbol:ident($($arg:ident: $kind:ty),*)) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $kind),*) -> Status {
            let address = forward::real(index::$symbol);
            // SAFETY: the name has this signature (CUDA driver API reference), or is a stand-in that reads no argument.
            let function = unsafe {
                core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> Status>(address)
            };
            // SAFETY: references are valid for the call; handles are the driver's own, which it checks.
            unsafe { function($($arg),*) }
        }
    };
}

call!(current_context = cuCtxGetCurrent(context: &mut Handle));
call!(set_current_context = cuCtxSetCurrent(context: Handle));
call!(push_context = cuCtxPushCurrent_v2(context: Handle));
call!(pop_context = cuCtxPopCurrent_v2(context: &mut Handle));
call!(stream_context = cuStreamGetCtx(stream: Handle, context: &mut Handle));
call!(stream_is_capturing = cuStreamIsCapturing(stream: Handle, status: &mut i32));
call!(exchange_capture_mode = cuThreadExchangeStreamCaptureMode(mode: &mut i32));
call!(synchronize = cuCtxSynchronize());
call!(primary_state = cuDevicePrimaryCtxGetState(device: i32, flags: &mut u32, active: &mut i32));
call!(current_device = cuCtxGetDevice(device: &mut i32));
call!(device_pool = cuDeviceGetMemPool(pool: &mut Handle, device: i32));
call!(pool_attribute = cuMemPoolGetAttribute(pool: Handle, attribute: i32, value: &mut u64));
call!(trim_pool = cuMemPoolTrimTo(pool: Handle, keep: usize));
call!(trim_graphs = cuDeviceGraphMemTrim(device: i32));
call!(graph_memory = cuDeviceGetGraphMemAttribute(device: i32, attribute: i32, value: &mut u64));
call!(graph_nodes = cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: &mut usize));
call!(node_kind = cuGraphNodeGetType(node: Handle, kind: &mut i32));
call!(allocation_node = cuGraphMemAllocNodeGetParams(node: Handle, parameters: &mut AllocationNode));
call!(child_graph = cuGraphChildGraphNodeGetGraph(node: Handle, graph: &mut Handle));
call!(stream_green_context = cuStreamGetCtx_v2(stream: Handle, context: &mut Handle, green: &mut Handle));
call!(context_of_green = cuCtxFromGreenCtx(context: &mut Handle, green: Handle));
call!(destroy_context = cuCtxDestroy_v2(context: Handle));
call!(retain_primary = cuDevicePrimaryCtxRetain(context: *mut Handle, device: i32));
call!(release_primary = cuDevicePrimaryCtxRelease_v2(device: i32));
call!(set_primary_flags = cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32));
call!(device_resource = cuDeviceGetDevResource(device: i32, resource: &mut DevResource, kind: u32));
call!(
    split_sms = cuDevSmResourceSplitByCount(
        parts: &mut DevResource, count: &mut u32, whole: &DevResource, rest: *mut DevResource, flags: u32, least: u32
    )
);
call!(
    describe_resource = cuDevResourceGenerateDesc(
        description: &mut Handle, resources: &mut DevResource, count: u32
    )
);
call!(create_green = cuGreenCtxCreate(green: &mut Handle, description: Handle, device: i32, flags: u32));
call!(destroy_green = cuGreenCtxDestroy(green: Handle));
call!(free_memory = cuMemFree_v2(pointer: DevicePtr));
call!(destroy_array = cuArrayDestroy(array: Handle));
call!(destroy_mipmapped_array = cuMipmappedArrayDestroy(array: Handle));
call!(pointer_attribute = cuPointerGetAttribute(value: &mut u64, attribute: i32, pointer: DevicePtr));
call!(create_event = cuEventCreate(event: &mut Handle, flags: u32));
call!(destroy_event = cuEventDestroy_v2(event: Handle));
call!(
    launch_host_function = cuLaunchHostFunc(
        stream: Handle, function: unsafe extern "C" fn(*mut c_void), data: *mut c_void
    )
);
call!(record_event = cuEventRecord(event: Handle, stream: Handle));
call!(query_event = cuEventQuery(event: Handle));
call!(await_event = cuEventSynchronize(event: Handle));
call!(elapsed_millis = cuEventElapsedTime(millis: &mut f32, start: Handle, end: Handle));
call!(nvml_init = nvmlInit_v2());
call!(nvml_device = nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: &mut Handle));
call!(nvml_memory = nvmlDeviceGetMemoryInfo(device: Handle, memory: &mut NvmlMemory));
call!(nvml_processes =
    nvmlDeviceGetComputeRunningProcesses_v3(device: Handle, count: &mut u32, list: *mut NvmlProcess));
call!(nvml_uuid = nvmlDeviceGetUUID(device: Handle, text: *mut c_char, length: u32));
