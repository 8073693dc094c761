//! A cudarc program with kernels that NVRTC compiles, for the measurement of real clients: it computes, asks for more
//! memory than it may have, and keeps the GPU busy until it is told to stop. It prints one JSON object a line.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::compile_ptx;

const SOURCE: &str = r#"
extern "C" __global__ void scaled_sum(const float *a, const float *b, float *out, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * a[i] + b[i];
}
extern "C" __global__ void step(int *counter) { if (threadIdx.x == 0) counter[0] += 1; }
"#;
const N: u16 = 1000;
/// Kernels that are queued at a time: enough never to be idle, few enough to end soon.
const QUEUED: usize = 16;

fn main() -> Result<()> {
    let context = CudaContext::new(0).context("GPU 0")?;
    let (_, total) = context.mem_get_info()?;
    say(&format!("{{\"total\": {total}}}"))?;
    let module = context.load_module(compile_ptx(SOURCE).context("NVRTC")?).context("the kernels")?;
    let stream = context.new_stream()?;
    let numbers = numbers(&stream, &module.load_function("scaled_sum")?)?;
    say(&format!("{{\"numbers\": \"{numbers}\"}}"))?;
    let (refused, taken) = take(&stream)?;
    say(&format!("{{\"refused\": {refused}, \"error\": \"CUDA_ERROR_OUT_OF_MEMORY\", \"taken\": {taken}}}"))?;

    let step = module.load_function("step")?;
    let (mut counter, mut queued) = (stream.alloc_zeros::<i32>(1)?, VecDeque::new());
    let told = watch_input();
    say("{\"ready\": true}")?;
    while !told.load(Ordering::Relaxed) {
        launch_step(&stream, &step, &mut counter)?;
        queued.push_back(stream.record_event(None)?);
        if queued.len() >= QUEUED {
            queued.pop_front().context("the queue is not empty")?.synchronize()?;
        }
    }
    stream.synchronize().context("the last kernels")?;
    say("{\"done\": true}")?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Whether a kernel gave the right numbers, left what was there before, or gave others.
#[allow(unsafe_code)] // A launch hands raw arguments to the GPU; there is no safe form of it.
fn numbers(stream: &Arc<CudaStream>, kernel: &CudaFunction) -> Result<&'static str> {
    let a: Vec<f32> = (0..N).map(f32::from).collect();
    let b: Vec<f32> = a.iter().map(|value| value / 2.0).collect();
    let (device_a, device_b) = (stream.clone_htod(&a)?, stream.clone_htod(&b)?);
    let mut out = stream.alloc_zeros::<f32>(N.into())?;
    let (factor, count) = (3.0_f32, i32::from(N));
    let mut launch = stream.launch_builder(kernel);
    launch.arg(&device_a).arg(&device_b).arg(&mut out).arg(&factor).arg(&count);
    // SAFETY: these are the parameters of `scaled_sum` in `SOURCE`, which stays within `count` elements.
    unsafe { launch.launch(LaunchConfig::for_num_elems(N.into())) }?;
    let out = stream.clone_dtoh(&out)?;
    // Halves and small whole numbers: the sums are exact.
    let right = out.iter().zip(&a).all(|(out, a)| out.to_bits() == (3.5 * a).to_bits());
    let untouched = out.iter().all(|out| out.to_bits() == 0);
    Ok(if right {
        "right"
    } else if untouched {
        "time only"
    } else {
        "wrong"
    })
}

/// Asks for more memory than the share has, and for half as much as long as that is refused.
#[allow(unsafe_code)] // Memory that is not set to zero: setting so much would take long.
fn take(stream: &Arc<CudaStream>) -> Result<(u32, usize)> {
    let (mut size, mut refused) = (4_usize << 30, 0);
    loop {
        // SAFETY: nobody reads what was never written.
        match unsafe { stream.alloc::<u8>(size) } {
            Ok(taken) => {
                drop(taken);
                // It goes back in stream order.
                stream.synchronize()?;
                return Ok((refused, size));
            }
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                (size, refused) = (size / 2, refused + 1);
            }
            Err(error) => bail!(error),
        }
    }
}

#[allow(unsafe_code)] // As above.
fn launch_step(stream: &Arc<CudaStream>, step: &CudaFunction, counter: &mut CudaSlice<i32>) -> Result<()> {
    let warp = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(step);
    launch.arg(counter);
    // SAFETY: `step` in `SOURCE` has exactly this parameter, and touches its first element only.
    unsafe { launch.launch(warp) }?;
    Ok(())
}

/// Becomes true when whoever started this program tells it a line, or is gone.
fn watch_input() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&told);
    std::thread::spawn(move || {
        // Any end of the input is an end, an error too.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        flag.store(true, Ordering::Relaxed);
    });
    told
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
