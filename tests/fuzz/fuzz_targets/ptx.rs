//! PTX text: whatever it holds, it is read or refused, and kernels that are understood run within their bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simcuda::ptx::{Launch, Memory, Program};

/// Memory of the device; kernels get its address as their parameters and as that of every variable.
struct Device([u8; 256]);

const BASE: u64 = 0x1000;

impl Device {
    fn place(address: u64, size: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = start.checked_add(size)?;
        (end <= 256).then_some(start..end)
    }
}

impl Memory for Device {
    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.0[Self::place(address, size)?]);
        Some(u64::from_le_bytes(value))
    }

    fn store(&mut self, address: u64, size: usize, value: u64) -> Option<()> {
        self.0[Self::place(address, size)?].copy_from_slice(&value.to_le_bytes()[..size]);
        Some(())
    }
}

fuzz_target!(|text: &str| {
    let Ok(program) = Program::parse(text) else { return };
    for kernel in program.kernels().iter().take(4) {
        let Ok(code) = program.code(kernel) else { continue };
        let parameters: Vec<u8> = BASE.to_le_bytes().into_iter().cycle().take(64).collect();
        let variables = vec![BASE; code.variables().len()];
        let launch = Launch {
            grid: [2, 1, 1],
            block: [33, 1, 1],
            shared: 64,
            parameters: &parameters,
            variables: &variables,
            steps: 20_000,
        };
        let _ = code.run(&launch, &mut Device([0; 256]));
    }
});
