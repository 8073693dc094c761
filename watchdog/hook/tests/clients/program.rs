//! What client programs have in common: a context, a kernel of any length, and how they speak to the test.
// They call the driver as C programs do, whose only promise is that they follow its reference.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};

/// A kernel that the simulated GPU runs for as many microseconds as it is told.
pub(crate) const SPIN: &str = "
.version 7.0
.target sm_70
.address_size 64
.visible .entry spin_us(.param .u32 spin_us_param_0)
{
    ret;
}
";

pub(crate) fn say(text: &str) {
    println!("@{text}");
}

pub(crate) struct Program {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) spin: CudaFunction,
}

impl Program {
    pub(crate) fn start() -> Self {
        let context = CudaContext::new(0).unwrap();
        let module = context.load_module(SPIN.into()).unwrap();
        Self { spin: module.load_function("spin_us").unwrap(), context }
    }

    pub(crate) fn spin(&self, stream: &CudaStream, micros: u32) {
        self.spin_wide(stream, micros, 1);
    }

    pub(crate) fn spin_wide(&self, stream: &CudaStream, micros: u32, blocks: u32) {
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
        unsafe { stream.launch_builder(&self.spin).arg(&micros).launch(config) }.unwrap();
    }
}
