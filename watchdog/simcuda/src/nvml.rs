//! NVIDIA's management interface over the simulated GPUs. It needs no context: each answer is asked of the daemon.
//!
//! It shows all GPUs, and processes as the daemon sees them. What a simulation does not have (temperature, power,
//! clocks) is not supported, as on cards without such sensors.

mod events;
mod query;

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::card::Device;
use crate::driver::{Handle, Out, Text};
use crate::stats::{ClientStats, GpuStats};

use self::events::EventData;
use self::query::stats;

/// A result other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NvmlError(u32);

type Result<T = ()> = std::result::Result<T, NvmlError>;

impl NvmlError {
    const UNINITIALIZED: Self = Self(1);
    const INVALID_ARGUMENT: Self = Self(2);
    const NOT_SUPPORTED: Self = Self(3);
    const NOT_FOUND: Self = Self(6);
    const INSUFFICIENT_SIZE: Self = Self(7);
    const DRIVER_NOT_LOADED: Self = Self(9);
    const TIMEOUT: Self = Self(10);
    const GPU_IS_LOST: Self = Self(15);
    const UNKNOWN: Self = Self(999);
}

impl From<crate::driver::CudaError> for NvmlError {
    fn from(_: crate::driver::CudaError) -> Self {
        Self::INVALID_ARGUMENT
    }
}

/// Calls of `nvmlInit` that `nvmlShutdown` has not undone.
static USERS: AtomicU32 = AtomicU32::new(0);

fn entry(body: impl FnOnce() -> Result) -> u32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.0,
        Err(_) => NvmlError::UNKNOWN.0,
    }
}

/// Defines exported functions; all names in the bracket have the same arguments.
macro_rules! nvml {
    () => {};
    (fn [$($name:ident)+] $args:tt $body:block $($rest:tt)*) => {
        $( define!($name $args $body); )+
        nvml!($($rest)*);
    };
}

macro_rules! define {
    ($name:ident ($($arg:ident : $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            entry(|| $body)
        }
    };
}

/// Handles of devices are their indices above this.
const FIRST_DEVICE: Handle = 0x5151_1000;

fn gpus() -> Result<Vec<GpuStats>> {
    if USERS.load(Ordering::Relaxed) == 0 {
        return Err(NvmlError::UNINITIALIZED);
    }
    Ok(stats()?.gpus)
}

fn gpu(handle: Handle) -> Result<GpuStats> {
    let index = handle.checked_sub(FIRST_DEVICE).ok_or(NvmlError::INVALID_ARGUMENT)?;
    let gpu = gpus()?.into_iter().nth(index).ok_or(NvmlError::INVALID_ARGUMENT)?;
    if gpu.lost { Err(NvmlError::GPU_IS_LOST) } else { Ok(gpu) }
}

fn handle_of(out: Out<Handle>, wanted: impl Fn(&Device) -> bool) -> Result {
    let gpus = gpus()?;
    let index = gpus.iter().position(|gpu| wanted(&gpu.device)).ok_or(NvmlError::NOT_FOUND)?;
    if gpus[index].lost {
        return Err(NvmlError::GPU_IS_LOST);
    }
    Ok(out.set(FIRST_DEVICE + index)?)
}

fn initialise() -> Result {
    query::reach()?;
    USERS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Writes a text, unless the buffer is too small for it.
fn set_text(out: Out<u8>, text: &str, length: u32) -> Result {
    if (length as usize) <= text.len() {
        return Err(NvmlError::INSUFFICIENT_SIZE);
    }
    Ok(out.set_text(text, length as usize)?)
}

/// `nvmlPciInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct PciInfo {
    short_address: [u8; 16],
    domain: u32,
    bus: u32,
    device: u32,
    device_id: u32,
    subsystem_id: u32,
    address: [u8; 32],
}

impl PciInfo {
    fn of(device: &Device) -> Self {
        let mut info = Self {
            short_address: [0; 16],
            domain: 0,
            bus: device.pci_bus,
            device: 0,
            device_id: 0,
            subsystem_id: 0,
            address: [0; 32],
        };
        let short = device.pci_address();
        info.short_address[..short.len()].copy_from_slice(short.as_bytes());
        // The long form has a domain of eight digits.
        let long = format!("0000{short}");
        info.address[..long.len()].copy_from_slice(long.as_bytes());
        info
    }
}

/// `nvmlMemory_t`: total, free and used bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct MemoryV2 {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

fn memory(gpu: &GpuStats) -> Memory {
    let (total, used) = (gpu.device.memory, gpu.memory_used);
    Memory { total, free: total.saturating_sub(used), used }
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ProcessV1 {
    pid: u32,
    memory: u64,
}

/// `nvmlProcessInfo_t`; the instances are those of MIG, which is off.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u32,
    memory: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct UtilizationSample {
    pid: u32,
    microseconds: u64,
    sm: u32,
    memory: u32,
    encoder: u32,
    decoder: u32,
}

fn processes(gpu: &GpuStats) -> Vec<&ClientStats> {
    gpu.clients.iter().filter(|client| client.alive && client.contexts > 0).collect()
}

/// Writes a list; if it does not fit, only its length.
fn list<T>(items: &[T], out: Out<T>, count: Out<u32>) -> Result
where
    T: Copy,
{
    let room = count.get()? as usize;
    count.set(u32::try_from(items.len()).unwrap_or(u32::MAX))?;
    if items.len() > room || (out.is_null() && !items.is_empty()) {
        return Err(NvmlError::INSUFFICIENT_SIZE);
    }
    for (index, &item) in items.iter().enumerate() {
        out.set_at(index, item)?;
    }
    Ok(())
}

fn list_processes<T: Copy>(
    device: Handle,
    count: Out<u32>,
    out: Out<T>,
    of: impl Fn(&ClientStats) -> T,
) -> Result {
    let gpu = gpu(device)?;
    let items: Vec<T> = processes(&gpu).into_iter().map(of).collect();
    list(&items, out, count)
}

/// The end of the latest completed sample period, in microseconds of the wall clock.
fn latest_sample() -> u64 {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let age = crate::daemon::monotonic().0 % crate::gpu::load::BUCKET;
    u64::try_from(wall.as_micros()).unwrap_or_default().saturating_sub(age / 1000)
}

/// `nvmlUtilization_t`: percent of the time, of the GPU and of its memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Utilization {
    gpu: u32,
    memory: u32,
}

/// `nvmlFieldValue_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FieldValue {
    field: u32,
    scope: u32,
    timestamp: i64,
    latency: i64,
    kind: u32,
    result: u32,
    value: u64,
}

/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, the only field that is simulated.
const RECOVERY_ACTION: u32 = 230;
/// `NVML_VALUE_TYPE_UNSIGNED_INT`.
const UNSIGNED_INT: u32 = 1;

fn field(asked: FieldValue, gpu: &GpuStats) -> FieldValue {
    if asked.field == RECOVERY_ACTION {
        FieldValue { kind: UNSIGNED_INT, result: 0, value: gpu.recovery.into(), ..asked }
    } else {
        FieldValue { result: NvmlError::NOT_SUPPORTED.0, ..asked }
    }
}

nvml! {
    fn [nvmlInit nvmlInit_v2] () {
        initialise()
    }
    fn [nvmlInitWithFlags] (_flags: u32) {
        initialise()
    }
    fn [nvmlShutdown] () {
        let left = USERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |users| users.checked_sub(1));
        left.map(|_| ()).map_err(|_| NvmlError::UNINITIALIZED)
    }
    fn [nvmlSystemGetDriverVersion] (text: Out<u8>, length: u32) {
        set_text(text, "simulated", length)
    }
    fn [nvmlSystemGetNVMLVersion] (text: Out<u8>, length: u32) {
        set_text(text, concat!("simulated-", env!("CARGO_PKG_VERSION")), length)
    }
    fn [nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2] (version: Out<u32>) {
        Ok(version.set(crate::driver::DRIVER_VERSION)?)
    }
    fn [nvmlSystemGetProcessName] (pid: u32, name: Out<u8>, length: u32) {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|_| NvmlError::NOT_FOUND)?;
        Ok(name.set_text(&path.to_string_lossy(), length as usize)?)
    }
    fn [nvmlDeviceGetCount nvmlDeviceGetCount_v2] (count: Out<u32>) {
        Ok(count.set(u32::try_from(gpus()?.len()).unwrap_or(u32::MAX))?)
    }
    fn [nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByIndex_v2] (index: u32, device: Out<Handle>) {
        handle_of(device, |known| known.index == index).map_err(|error| {
            if error == NvmlError::NOT_FOUND { NvmlError::INVALID_ARGUMENT } else { error }
        })
    }
    fn [nvmlDeviceGetHandleByUUID] (uuid: Text, device: Out<Handle>) {
        let uuid = uuid.get()?;
        handle_of(device, |known| known.uuid == uuid)
    }
    fn [nvmlDeviceGetHandleByPciBusId nvmlDeviceGetHandleByPciBusId_v2] (address: Text, device: Out<Handle>) {
        let address = address.get()?.to_lowercase();
        handle_of(device, |known| {
            let own = known.pci_address();
            address.ends_with(&own) || address == own.trim_start_matches("0000:")
        })
    }
    fn [nvmlDeviceGetName] (device: Handle, name: Out<u8>, length: u32) {
        set_text(name, &gpu(device)?.device.name, length)
    }
    fn [nvmlDeviceGetUUID] (device: Handle, uuid: Out<u8>, length: u32) {
        set_text(uuid, &gpu(device)?.device.uuid, length)
    }
    fn [nvmlDeviceGetIndex nvmlDeviceGetMinorNumber] (device: Handle, index: Out<u32>) {
        Ok(index.set(gpu(device)?.device.index)?)
    }
    fn [nvmlDeviceGetPciInfo_v3] (device: Handle, info: Out<PciInfo>) {
        Ok(info.set(PciInfo::of(&gpu(device)?.device))?)
    }
    fn [nvmlDeviceGetMemoryInfo] (device: Handle, out: Out<Memory>) {
        Ok(out.set(memory(&gpu(device)?))?)
    }
    fn [nvmlDeviceGetMemoryInfo_v2] (device: Handle, out: Out<MemoryV2>) {
        let Memory { total, free, used } = memory(&gpu(device)?);
        let version = out.get()?.version;
        Ok(out.set(MemoryV2 { version, total, reserved: 0, free, used })?)
    }
    fn [nvmlDeviceGetUtilizationRates] (device: Handle, out: Out<Utilization>) {
        Ok(out.set(Utilization { gpu: gpu(device)?.utilization, memory: 0 })?)
    }
    fn [nvmlDeviceGetComputeRunningProcesses] (device: Handle, count: Out<u32>, out: Out<ProcessV1>) {
        list_processes(device, count, out, |client| ProcessV1 { pid: client.pid, memory: client.memory })
    }
    fn [nvmlDeviceGetComputeRunningProcesses_v2 nvmlDeviceGetComputeRunningProcesses_v3]
        (device: Handle, count: Out<u32>, out: Out<Process>) {
        list_processes(device, count, out, |client| Process {
            pid: client.pid,
            memory: client.memory,
            gpu_instance: u32::MAX,
            compute_instance: u32::MAX,
        })
    }
    fn [
        nvmlDeviceGetGraphicsRunningProcesses nvmlDeviceGetGraphicsRunningProcesses_v2
        nvmlDeviceGetGraphicsRunningProcesses_v3
    ] (device: Handle, count: Out<u32>, _out: Out<Process>) {
        gpu(device)?;
        Ok(count.set(0)?)
    }
    fn [nvmlDeviceGetProcessUtilization]
        (device: Handle, out: Out<UtilizationSample>, count: Out<u32>, since: u64) {
        let microseconds = latest_sample();
        // Nothing new, or nobody to tell of.
        if microseconds <= since || processes(&gpu(device)?).is_empty() {
            return Err(NvmlError::NOT_FOUND);
        }
        list_processes(device, count, out, |client| UtilizationSample {
            pid: client.pid,
            microseconds,
            sm: client.utilization,
            memory: 0,
            encoder: 0,
            decoder: 0,
        })
    }
    fn [nvmlDeviceGetComputeMode nvmlDeviceGetPersistenceMode nvmlDeviceGetDisplayMode nvmlDeviceGetDisplayActive]
        (device: Handle, mode: Out<u32>) {
        gpu(device)?;
        Ok(mode.set(0)?)
    }
    fn [nvmlDeviceGetCudaComputeCapability] (device: Handle, major: Out<u32>, minor: Out<u32>) {
        let (first, second) = gpu(device)?.device.capability;
        major.set(first)?;
        Ok(minor.set(second)?)
    }
    fn [nvmlDeviceGetNumGpuCores] (device: Handle, cores: Out<u32>) {
        // 64 cores on each SM, as in compute capability 7.0.
        Ok(cores.set(gpu(device)?.device.sms * 64)?)
    }
    fn [nvmlDeviceIsMigDeviceHandle] (device: Handle, mig: Out<u32>) {
        gpu(device)?;
        Ok(mig.set(0)?)
    }
    fn [nvmlDeviceGetMigMode] (device: Handle, _current: Out<u32>, _pending: Out<u32>) {
        gpu(device)?;
        Err(NvmlError::NOT_SUPPORTED)
    }
    fn [nvmlDeviceGetTemperature nvmlDeviceGetClockInfo] (device: Handle, _kind: u32, _value: Out<u32>) {
        gpu(device)?;
        Err(NvmlError::NOT_SUPPORTED)
    }
    fn [
        nvmlDeviceGetPowerUsage nvmlDeviceGetPowerManagementLimit nvmlDeviceGetEnforcedPowerLimit
        nvmlDeviceGetFanSpeed nvmlDeviceGetPerformanceState nvmlDeviceGetBrand nvmlDeviceGetArchitecture
    ] (device: Handle, _value: Out<u32>) {
        gpu(device)?;
        Err(NvmlError::NOT_SUPPORTED)
    }
    fn [nvmlDeviceGetFieldValues] (device: Handle, count: i32, values: Out<FieldValue>) {
        let gpu = gpu(device)?;
        for index in 0..usize::try_from(count).map_err(|_| NvmlError::INVALID_ARGUMENT)? {
            let value = field(values.get_at(index)?, &gpu);
            values.set_at(index, value)?;
        }
        Ok(())
    }
    fn [nvmlDeviceGetSupportedEventTypes] (device: Handle, kinds: Out<u64>) {
        gpu(device)?;
        Ok(kinds.set(events::XID)?)
    }
    fn [nvmlEventSetCreate] (set: Out<Handle>) {
        gpus()?;
        events::create(set)
    }
    fn [nvmlDeviceRegisterEvents] (device: Handle, kinds: u64, set: Handle) {
        events::register(device, kinds, set)
    }
    fn [nvmlEventSetWait nvmlEventSetWait_v2] (set: Handle, data: Out<EventData>, milliseconds: u32) {
        gpus()?;
        events::wait(set, data, milliseconds)
    }
    fn [nvmlEventSetFree] (set: Handle) {
        events::free(set)
    }
    fn [nvmlDeviceGetSerial] (device: Handle, _text: Out<u8>, _length: u32) {
        gpu(device)?;
        Err(NvmlError::NOT_SUPPORTED)
    }
}

/// The text of a result.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: u32) -> *const c_char {
    let text: &'static CStr = match result {
        0 => c"success",
        1 => c"not initialised",
        2 => c"invalid argument",
        3 => c"not supported",
        4 => c"no permission",
        6 => c"not found",
        7 => c"insufficient size",
        9 => c"driver not loaded: no simulated GPU answers",
        10 => c"timeout",
        15 => c"the simulated GPU is lost",
        _ => c"unknown error",
    };
    text.as_ptr()
}

mod stubs {
    //! Names that are not simulated.

    macro_rules! stub {
        ($name:ident) => {
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> u32 {
                static LOGGED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
                crate::driver::log_unsupported(stringify!($name), &LOGGED);
                super::NvmlError::NOT_SUPPORTED.0
            }
        };
    }

    include!(concat!(env!("OUT_DIR"), "/nvml_stubs.rs"));
}
