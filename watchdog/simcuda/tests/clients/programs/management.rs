//! What the management library says, and how names are resolved.

use std::ffi::{CString, c_void};

use libloading::{Library, Symbol};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

pub(crate) fn describe() -> String {
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
    let device = nvml.device_by_index(0).unwrap();
    let memory = device.memory_info().unwrap();
    let process = &device.running_compute_processes().unwrap()[0];
    let UsedGpuMemory::Used(held) = process.used_gpu_memory else { panic!("no memory known") };
    assert_eq!(memory.used, held);
    assert_eq!(memory.free + memory.used, memory.total);
    let uuid = device.uuid().unwrap();
    assert!(uuid.starts_with("GPU-5151"));
    assert_eq!(nvml.device_by_uuid(uuid).unwrap().index().unwrap(), 0);
    let capability = device.cuda_compute_capability().unwrap();
    assert!(device.utilization_rates().unwrap().gpu <= 100);
    assert!(device.mig_mode().is_err());
    assert!(device.pci_info().unwrap().bus_id.ends_with("0000:51:00.0"));
    let idle = nvml.device_by_index(1).unwrap();
    format!(
        "{} GPUs, {}, {} B, {} with {held} B, capability {}.{}, driver {}, idle GPU {} processes",
        nvml.device_count().unwrap(),
        device.name().unwrap(),
        memory.total,
        process.pid,
        capability.major,
        capability.minor,
        nvml.sys_driver_version().unwrap(),
        idle.running_compute_processes_count().unwrap(),
    )
}

/// Busy percents of the only process with a context, which takes about half of the time.
pub(crate) fn utilization() -> String {
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
    let device = nvml.device_by_index(0).unwrap();
    let none = device.process_utilization_stats(0).is_err()
        || device.process_utilization_stats(0).unwrap().is_empty();
    let gpu = super::gpu::Gpu::new();
    let stream = gpu.stream(1);
    // As many kernels as fill two seconds by half, each behind a pause as long as itself.
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(1500);
    while std::time::Instant::now() < deadline {
        let began = std::time::Instant::now();
        gpu.spin_on(stream, 20_000);
        gpu.context.synchronize().unwrap();
        let pause = std::time::Instant::now() + began.elapsed();
        while let Some(rest) =
            pause.checked_duration_since(std::time::Instant::now()).filter(|rest| !rest.is_zero())
        {
            std::thread::park_timeout(rest);
        }
    }
    let samples = device.process_utilization_stats(0).unwrap();
    let own = samples.iter().find(|sample| sample.pid == std::process::id()).unwrap();
    format!("{none} {} {}", samples.len(), own.sm_util)
}

/// Listens to the first GPU, and says what happens to it, in turn.
pub(crate) fn events() {
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().unwrap();
    let device = nvml.device_by_index(0).unwrap();
    let kinds = device.supported_event_types().unwrap();
    assert_eq!(kinds, EventTypes::CRITICAL_XID_ERROR);
    let set = device.register_events(kinds, nvml.create_event_set().unwrap()).unwrap();
    assert!(matches!(set.wait(1), Err(NvmlError::Timeout)), "nothing happened yet");
    super::answer("ready");
    loop {
        match set.wait(50_000) {
            Ok(event) => {
                let xid = match event.event_data {
                    Some(XidError::Value(xid)) => xid,
                    other => panic!("{other:?}"),
                };
                super::answer(&format!("{xid} {}", event.device.uuid().is_ok()));
            }
            Err(error) => {
                let handle = nvml.device_by_uuid(nvml.device_by_index(1).unwrap().uuid().unwrap());
                super::answer(&format!("{error}; the other {}", handle.is_ok()));
                break;
            }
        }
    }
    super::wait_for_the_end();
}

type Resolve = unsafe extern "C" fn(*const i8, *mut *mut c_void, i32, u64, *mut u32) -> u32;

struct Driver(Library);

impl Driver {
    fn symbol(&self, name: &str) -> *mut c_void {
        let symbol: Symbol<'_, *mut c_void> = unsafe { self.0.get(name.as_bytes()) }.unwrap();
        *symbol
    }

    /// The address and the status that `cuGetProcAddress_v2` gives.
    fn resolve(&self, name: &str, version: i32, flags: u64) -> (*mut c_void, u32) {
        let resolve: Symbol<'_, Resolve> = unsafe { self.0.get(b"cuGetProcAddress_v2") }.unwrap();
        let (mut address, mut status) = (std::ptr::null_mut(), 99);
        let name = CString::new(name).unwrap();
        unsafe { resolve(name.as_ptr(), &raw mut address, version, flags, &raw mut status) };
        (address, status)
    }
}

pub(crate) fn resolve() -> String {
    let driver = Driver(unsafe { Library::new("libcuda.so.1") }.unwrap());
    let same = |asked: (&str, i32, u64), symbol: &str, word: &'static str| {
        let (address, status) = driver.resolve(asked.0, asked.1, asked.2);
        if status == 0 && address == driver.symbol(symbol) { word } else { "wrong" }
    };
    let missing = |asked: (&str, i32), word: &'static str, expected: u32| {
        let (address, status) = driver.resolve(asked.0, asked.1, 0);
        if address.is_null() && status == expected { word } else { "wrong" }
    };
    let table: Symbol<'_, unsafe extern "C" fn(*mut *const c_void, *const [u8; 16]) -> u32> =
        unsafe { driver.0.get(b"cuGetExportTable") }.unwrap();
    let mut found = std::ptr::null();
    let denied = unsafe { table(&raw mut found, &[0x6b; 16]) } == 500;
    let stub: Symbol<'_, unsafe extern "C" fn() -> u32> =
        unsafe { driver.0.get(b"cuGraphicsEGLRegisterImage") }.unwrap();
    let unsupported = unsafe { stub() } == 801;
    [
        same(("cuGetProcAddress", 11_080, 0), "cuGetProcAddress", "v1"),
        same(("cuGetProcAddress", 12_000, 0), "cuGetProcAddress_v2", "v2"),
        same(("cuMemcpyHtoD", 12_000, 2), "cuMemcpyHtoD_v2_ptds", "twin"),
        same(("cuCtxSynchronize", 13_000, 0), "cuCtxSynchronize", "sync-v1"),
        same(("cuProfilerStart", 12_000, 0), "cuProfilerStart", "profiler"),
        same(("cuGLGetDevices", 12_000, 0), "cuGLGetDevices_v2", "graphics"),
        missing(("cuNoSuchName", 12_000), "unknown", 1),
        missing(("cuLaunchKernelEx", 11_000), "too-old", 2),
        if denied { "no-table" } else { "wrong" },
        if unsupported { "unsupported" } else { "wrong" },
    ]
    .join(" ")
}
