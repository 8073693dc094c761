//! Devices: how many, what they are called, and what they can do.

use crate::card::Device;

use super::state::{driver, initialise};
use super::{CudaError, In, Out, Result, Text, driver};

/// The version of the interface that is simulated: CUDA 12.9.
pub(crate) const DRIVER_VERSION: u32 = 12_090;

/// Attributes that are the same for all cards, by the numbers of `CUdevice_attribute`; those that are missing are 0.
/// The values are those of compute capability 7.0 in the CUDA programming guide.
const ATTRIBUTES: &[(u32, u32)] = &[
    (1, 1024),         // threads per block
    (2, 1024),         // block size in x
    (3, 1024),         // block size in y
    (4, 64),           // block size in z
    (5, 0x7fff_ffff),  // grid size in x
    (6, 65_535),       // grid size in y
    (7, 65_535),       // grid size in z
    (8, 49_152),       // shared memory per block
    (9, 65_536),       // constant memory
    (10, 32),          // warp size
    (11, 0x7fff_ffff), // largest pitch
    (12, 65_536),      // registers per block
    (13, 1_530_000),   // clock in kHz
    (14, 512),         // texture alignment
    (15, 1),           // copies overlap with kernels
    (19, 1),           // host memory can be mapped
    (21, 131_072),     // 1D texture width
    (22, 131_072),     // 2D texture width
    (23, 65_536),      // 2D texture height
    (30, 512),         // surface alignment
    (31, 1),           // concurrent kernels
    (36, 877_000),     // memory clock in kHz
    (37, 4096),        // bus width in bits
    (38, 6 << 20),     // L2 cache
    (39, 2048),        // threads per SM
    (40, 2),           // copy engines
    (41, 1),           // unified addressing
    (51, 32),          // texture pitch alignment
    (78, 1),           // stream priorities
    (79, 1),           // global L1 cache
    (80, 1),           // local L1 cache
    (81, 98_304),      // shared memory per SM
    (82, 65_536),      // registers per SM
    (83, 1),           // managed memory
    (87, 2),           // single to double precision
    (89, 1),           // concurrent managed access
    (90, 1),           // compute preemption
    (91, 1),           // registered host memory at its own address
    (92, 1),           // streams wait for values and write them
    (93, 1),           // of 64 bits
    (94, 1),           // until a bit is missing
    (95, 1),           // cooperative launch
    (97, 98_304),      // shared memory per block, opt-in
    (99, 1),           // host memory can be registered
    (102, 1),          // virtual memory management
    (103, 1),          // memory is exported as a file descriptor
    (106, 32),         // blocks per SM
    (115, 1),          // memory pools
    (122, 1),          // streams wait for values of 64 bits and write them
    (123, 1),          // until a bit is missing
    (125, 1),          // events are shared between processes
];

/// What differs in compute capability 7.5.
const ATTRIBUTES_OF_7_5: &[(u32, u32)] = &[
    (13, 1_590_000), // clock in kHz
    (36, 5_001_000), // memory clock in kHz
    (37, 256),       // bus width in bits
    (38, 4 << 20),   // L2 cache
    (39, 1024),      // threads per SM
    (81, 65_536),    // shared memory per SM
    (87, 32),        // single to double precision
    (97, 65_536),    // shared memory per block, opt-in
    (106, 16),       // blocks per SM
];

/// The largest number of an attribute, up to CUDA 13.5.
const LAST_ATTRIBUTE: u32 = 161;

fn attribute(device: &Device, number: u32) -> Result<u32> {
    Ok(match number {
        16 => device.sms,
        33 => device.pci_bus,
        75 => device.capability.0,
        76 => device.capability.1,
        85 => device.index,
        1..=LAST_ATTRIBUTE => {
            let own = if device.capability >= (7, 5) { ATTRIBUTES_OF_7_5 } else { &[] };
            own.iter().chain(ATTRIBUTES).find(|(known, _)| *known == number).map_or(0, |(_, value)| *value)
        }
        _ => return Err(CudaError::INVALID_VALUE),
    })
}

driver! {
    fn [cuInit] (flags: u32) {
        if flags != 0 {
            return Err(CudaError::INVALID_VALUE);
        }
        initialise()
    }

    fn [cuDriverGetVersion] (version: Out<u32>) {
        version.set(DRIVER_VERSION)
    }

    fn [cuDeviceGetCount] (count: Out<i32>) {
        count.set(i32::try_from(driver()?.devices.len()).unwrap_or(i32::MAX))
    }

    fn [cuDeviceGet] (device: Out<i32>, ordinal: i32) {
        driver()?.device(ordinal)?;
        device.set(ordinal)
    }

    fn [cuDeviceGetName] (name: Out<u8>, length: i32, device: i32) {
        let device = driver()?.device(device)?;
        name.set_text(&device.name, usize::try_from(length).unwrap_or(0))
    }

    fn [cuDeviceGetUuid cuDeviceGetUuid_v2] (uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(driver()?.device(device)?.uuid_bytes())
    }

    fn [cuDeviceGetLuid] (_luid: Out<u8>, _mask: Out<u32>, _device: i32) {
        // Local identifiers exist on Windows alone.
        Err(CudaError::NOT_SUPPORTED)
    }

    fn [cuDeviceTotalMem_v2] (bytes: Out<usize>, device: i32) {
        bytes.set(usize::try_from(driver()?.device(device)?.memory).unwrap_or(usize::MAX))
    }

    fn [cuDeviceGetAttribute] (value: Out<u32>, number: u32, device: i32) {
        value.set(attribute(driver()?.device(device)?, number)?)
    }

    fn [cuDeviceComputeCapability] (major: Out<u32>, minor: Out<u32>, device: i32) {
        let device = driver()?.device(device)?;
        major.set(device.capability.0)?;
        minor.set(device.capability.1)
    }

    fn [cuDeviceGetProperties] (properties: Out<[u32; 14]>, device: i32) {
        let device = driver()?.device(device)?;
        let mut values = [0; 14];
        // The fields of CUdevprop, in their order.
        for (value, number) in values.iter_mut().zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]) {
            *value = attribute(device, number)?;
        }
        properties.set(values)
    }

    fn [cuDeviceGetPCIBusId] (text: Out<u8>, length: i32, device: i32) {
        let device = driver()?.device(device)?;
        text.set_text(&device.pci_address(), usize::try_from(length).unwrap_or(0))
    }

    fn [cuDeviceGetByPCIBusId] (device: Out<i32>, address: Text) {
        let address = address.get()?.to_lowercase();
        let known = driver()?.devices.iter().position(|device| {
            let own = device.pci_address();
            // The domain may be left out.
            own == address || own.trim_start_matches("0000:") == address
        });
        let ordinal = known.ok_or(CudaError::INVALID_DEVICE)?;
        device.set(i32::try_from(ordinal).unwrap_or(i32::MAX))
    }

    fn [cuDeviceGetExecAffinitySupport] (supported: Out<i32>, kind: u32, device: i32) {
        driver()?.device(device)?;
        supported.set(i32::from(kind == 0))
    }

    fn [cuDeviceCanAccessPeer] (can: Out<i32>, device: i32, peer: i32) {
        driver()?.device(device)?;
        driver()?.device(peer)?;
        can.set(i32::from(device != peer))
    }

    fn [cuDeviceGetP2PAttribute] (value: Out<i32>, kind: u32, device: i32, peer: i32) {
        driver()?.device(device)?;
        driver()?.device(peer)?;
        // Access is supported (2); atomics and arrays are not.
        value.set(i32::from(kind == 2))
    }

    fn [cuProfilerStart cuProfilerStop] () {
        driver().map(|_| ())
    }

    fn [cuDeviceGetHostAtomicCapabilities] (out: Out<u32>, _operations: In<u32>, count: u32, device: i32) {
        driver()?.device(device)?;
        (0..count as usize).try_for_each(|index| out.set_at(index, 0))
    }
}
