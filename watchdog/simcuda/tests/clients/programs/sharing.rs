//! Memory that one process makes and another one uses.

use cudarc::driver::sys;

use super::gpu::{Gpu, code};
use super::{answer, wait_for_the_end};

const SIZE: usize = 64 << 20;
const PIECE: usize = 2 << 20;

fn ok(result: sys::CUresult) {
    assert_eq!(code(result), 0);
}

fn properties() -> sys::CUmemAllocationProp {
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.requestedHandleTypes =
        sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties
}

fn map(handle: u64) -> u64 {
    let mut address = 0;
    ok(unsafe { sys::cuMemAddressReserve(&raw mut address, PIECE, 0, 0, 0) });
    ok(unsafe { sys::cuMemMap(address, PIECE, 0, handle, 0) });
    address
}

fn hex(bytes: &[std::ffi::c_char]) -> String {
    let digits = |byte: &std::ffi::c_char| format!("{:02x}", byte.cast_unsigned());
    bytes.iter().map(digits).collect::<Vec<_>>().concat()
}

fn parse(hex: &str, bytes: &mut [std::ffi::c_char]) {
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap().cast_signed();
    }
}

/// Says the handle of one allocation, and the path of the descriptor of another.
pub(crate) fn export() {
    let gpu = Gpu::new();
    let (mut pointer, mut handle) = (0, unsafe { std::mem::zeroed::<sys::CUipcMemHandle>() });
    ok(unsafe { sys::cuMemAlloc_v2(&raw mut pointer, SIZE) });
    ok(unsafe { sys::cuMemsetD32_v2(pointer, 7.0_f32.to_bits(), 16) });
    ok(unsafe { sys::cuIpcGetMemHandle(&raw mut handle, pointer) });
    let (mut physical, mut descriptor, properties) = (0, -1_i32, properties());
    ok(unsafe { sys::cuMemCreate(&raw mut physical, PIECE, &raw const properties, 0) });
    let mapped = map(physical);
    ok(unsafe { sys::cuMemsetD32_v2(mapped, 9.0_f32.to_bits(), 16) });
    ok(unsafe { sys::cuCtxSynchronize() });
    let kind = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    ok(unsafe { sys::cuMemExportToShareableHandle((&raw mut descriptor).cast(), physical, kind, 0) });
    // An event behind a value that the other process will write.
    let (stream, mut event) = (gpu.stream(1), std::ptr::null_mut());
    let mut shared = unsafe { std::mem::zeroed::<sys::CUipcEventHandle>() };
    ok(unsafe { sys::cuEventCreate(&raw mut event, 2 | 4) });
    ok(unsafe { sys::cuStreamWaitValue32_v2(stream, pointer + 64, 1, 1) });
    ok(unsafe { sys::cuEventRecord(event, stream) });
    ok(unsafe { sys::cuIpcGetEventHandle(&raw mut shared, event) });
    let (memory, event) = (hex(&handle.reserved), hex(&shared.reserved));
    answer(&format!("{memory} /proc/{}/fd/{descriptor} {event}", std::process::id()));
    wait_for_the_end();
}

/// What lies in both, what this process holds for them, and what opening one's own or twice gives.
pub(crate) fn import() -> String {
    let gpu = Gpu::new();
    let handles = std::env::var("SIMCUDA_TEST_HANDLES").unwrap();
    let [memory, path, event] = handles.split(' ').collect::<Vec<_>>()[..] else { panic!("{handles}") };
    let mut handle = unsafe { std::mem::zeroed::<sys::CUipcMemHandle>() };
    parse(memory, &mut handle.reserved);
    let before = gpu.context.mem_get_info().unwrap().0;
    let (mut pointer, mut again) = (0, 0);
    ok(unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut pointer, handle, 1) });
    ok(unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut again, handle, 1) });
    assert_eq!(pointer, again);
    // A program gets the descriptor through a socket; opening it by its path has the same effect.
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let descriptor = usize::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let mut physical = 0;
    let kind = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    let shareable = std::ptr::without_provenance_mut(descriptor);
    ok(unsafe { sys::cuMemImportFromShareableHandle(&raw mut physical, shareable, kind) });
    let mapped = map(physical);
    let (first, second) = (gpu.peek(pointer, 16)[15], gpu.peek(mapped, 16)[15]);
    let held = (before - gpu.context.mem_get_info().unwrap().0) >> 20;
    let event = wait_for_event(&gpu, event, pointer);
    let mut own = unsafe { std::mem::zeroed::<sys::CUipcMemHandle>() };
    let mine = gpu.zeros(4);
    ok(unsafe { sys::cuIpcGetMemHandle(&raw mut own, mine) });
    let own = code(unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut again, own, 1) });
    ok(unsafe { sys::cuIpcCloseMemHandle(pointer) });
    assert!((gpu.peek(pointer, 1)[0] - 7.0).abs() < f32::EPSILON);
    let last = code(unsafe { sys::cuIpcCloseMemHandle(pointer) });
    assert_eq!(code(unsafe { sys::cuIpcCloseMemHandle(pointer) }), 1);
    format!("{first} {second}, event {event}, held {held} MiB, own {}, again {last}", own / 201)
}

/// The other process's event before and after this one writes the value that it waits for.
fn wait_for_event(gpu: &Gpu, hex: &str, memory: u64) -> String {
    let (mut handle, mut event) =
        (unsafe { std::mem::zeroed::<sys::CUipcEventHandle>() }, std::ptr::null_mut());
    parse(hex, &mut handle.reserved);
    ok(unsafe { sys::cuIpcOpenEventHandle(&raw mut event, handle) });
    let before = code(unsafe { sys::cuEventQuery(event) });
    let stream = gpu.stream(1);
    ok(unsafe { sys::cuStreamWaitEvent(stream, event, 0) });
    ok(unsafe { sys::cuMemsetD32_v2(memory + 64, 1, 1) });
    ok(unsafe { sys::cuStreamSynchronize(stream) });
    format!("{before} {}", code(unsafe { sys::cuEventQuery(event) }))
}
