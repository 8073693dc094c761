//! A probe: a CUDA program that launches kernels of a given length without an end, and tells how many were done.
//!
//! The kernel waits on the GPU's own clock, so it takes as long on every card; the simulated driver knows it by its name.
//! It knows nothing of shares: it is an ordinary program that happens to run behind the hook.
#![allow(unsafe_code)] // A launch hands raw arguments to the driver.

use core::ffi::c_void;
use core::ptr;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum as _;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaStream, result, sys};
use cudarc::nvrtc::Ptx;

use super::cell::{BATCH_MICROS, Launch, Load, Wait};

/// `spin_us(microseconds)`.
const PTX: &str = include_str!("spin_us.ptx");
/// Time between two lines about what is done.
const REPORT: Duration = Duration::from_millis(10);
/// Launches whose time is taken to learn how long a kernel really is.
const CALIBRATION: u32 = 20;

/// Arguments of the hidden command `gpufn audit-probe`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Lengths of the kernels in turn, microseconds.
    #[arg(long, value_delimiter = ',', required = true)]
    kernels: Vec<u32>,
    /// How to launch them.
    #[arg(long, value_enum, default_value = "kernel")]
    launch: Launch,
    /// When to wait for them.
    #[arg(long, value_enum, default_value = "batch")]
    wait: Wait,
    /// Blocks of each launch.
    #[arg(long, default_value_t = 1)]
    blocks: u32,
    /// Only measure how long each kernel is.
    #[arg(long)]
    calibrate: bool,
}

/// The words that start a probe with `load`.
pub fn arguments(load: &Load) -> Vec<String> {
    let lengths = load.kernels.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_string())
    };
    let launch = name(load.launch.to_possible_value());
    let wait = name(load.wait.to_possible_value());
    let words = ["audit-probe", "--kernels", &lengths, "--launch", &launch, "--wait", &wait, "--blocks"];
    words.iter().map(ToString::to_string).chain([load.blocks.to_string()]).collect()
}

/// Runs a probe until its input ends.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(args.kernels.iter().all(|&micros| micros > 0), "--kernels has a 0, allowed is 1 µs and more");
    let Args { kernels, launch, wait, blocks, .. } = args;
    let mut probe = Probe::new(Load { kernels, launch, wait, blocks })?;
    if args.calibrate {
        return probe.calibrate();
    }
    say("ready")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    probe.run()?;
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The program.
struct Probe {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    function: CudaFunction,
    /// One for each length, where graphs are launched.
    graphs: Vec<CudaGraph>,
    load: Load,
    launched: usize,
    unsynced: u32,
}

impl Probe {
    fn new(load: Load) -> anyhow::Result<Self> {
        let context = CudaContext::new(0).context("GPU 0")?;
        let module = context.load_module(Ptx::from_src(PTX)).context("the kernel spin_us")?;
        let function = module.load_function("spin_us")?;
        let stream = context.new_stream()?;
        let mut probe =
            Self { context, stream, function, graphs: Vec::new(), load, launched: 0, unsynced: 0 };
        if probe.load.launch == Launch::Cooperative {
            // All of its blocks must be on the GPU at once.
            let most = probe.context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            probe.load.blocks = probe.load.blocks.min(u32::try_from(most).unwrap_or(1).max(1));
        }
        if probe.load.launch == Launch::Graph {
            probe.graphs = probe
                .load
                .kernels
                .clone()
                .into_iter()
                .map(|micros| probe.capture(micros))
                .collect::<Result<_, _>>()?;
        }
        Ok(probe)
    }

    fn capture(&self, micros: u32) -> anyhow::Result<CudaGraph> {
        self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        for _ in 0..Load::kernels_per_launch(Launch::Graph, micros) {
            self.start(micros, Launch::Kernel)?;
        }
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        self.stream.end_capture(flags)?.context("the capture made no graph")
    }

    /// One launch.
    fn start(&self, mut micros: u32, launch: Launch) -> anyhow::Result<()> {
        let (function, stream) = (self.function.cu_function(), self.stream.cu_stream());
        let mut parameters = [(&raw mut micros).cast::<c_void>()];
        let (grid, block) = ((self.load.blocks, 1, 1), (1, 1, 1));
        // SAFETY: `spin_us` has exactly one parameter, a 32-bit number, and touches no memory; parameter and
        // configuration live until the call returns, and the driver keeps a copy.
        unsafe {
            if launch == Launch::Cooperative {
                result::launch_cooperative_kernel(function, grid, block, 0, stream, &mut parameters)?;
            } else if launch == Launch::Extended {
                let config = sys::CUlaunchConfig {
                    gridDimX: self.load.blocks,
                    gridDimY: 1,
                    gridDimZ: 1,
                    blockDimX: 1,
                    blockDimY: 1,
                    blockDimZ: 1,
                    sharedMemBytes: 0,
                    hStream: stream,
                    attrs: ptr::null_mut(),
                    numAttrs: 0,
                };
                sys::cuLaunchKernelEx(&raw const config, function, parameters.as_mut_ptr(), ptr::null_mut())
                    .result()?;
            } else {
                result::launch_kernel(function, grid, block, 0, stream, &mut parameters)?;
            }
        }
        Ok(())
    }

    /// The next launch, of the next length.
    fn next(&mut self) -> anyhow::Result<()> {
        let kind = self.launched % self.load.kernels.len();
        match self.graphs.get(kind) {
            Some(graph) => graph.launch()?,
            None => self.start(self.load.kernels[kind], self.load.launch)?,
        }
        self.launched += 1;
        let micros = self.load.kernels[kind];
        self.unsynced += micros * Load::kernels_per_launch(self.load.launch, micros);
        Ok(())
    }

    /// Launches until the input ends.
    fn run(&mut self) -> anyhow::Result<()> {
        let mut reported = Instant::now();
        let waits = self.load.wait;
        loop {
            self.next()?;
            let due = match waits {
                Wait::Each => true,
                Wait::Batch => self.unsynced >= BATCH_MICROS,
                Wait::Never => false,
            };
            if due {
                self.stream.synchronize()?;
                self.unsynced = 0;
                if reported.elapsed() >= REPORT {
                    reported = Instant::now();
                    say(&format!("done {} {}", monotonic_ns(), self.launched))?;
                }
            }
        }
    }

    fn calibrate(&self) -> anyhow::Result<ExitCode> {
        for &micros in &self.load.kernels {
            self.start(micros, Launch::Kernel)?;
            let start = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
            (0..CALIBRATION).try_for_each(|_| self.start(micros, Launch::Kernel))?;
            let end = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
            end.synchronize()?;
            let each = f64::from(start.elapsed_ms(&end)?) * 1e3 / f64::from(CALIBRATION);
            say(&format!("kernel {micros} {each}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
