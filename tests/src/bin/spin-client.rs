//! A CUDA program for the tests: it keeps the GPU as busy as it is allowed to, or takes memory, and tells how that went.
//!
//! `spin-client spin MICROSECONDS` launches kernels of that length until its standard input ends.
//! `spin-client memory MIB…` takes each amount in turn, keeps what it gets, runs a kernel, and waits for its input to end.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

/// A kernel of the simulated GPU that lasts as many microseconds as it is told.
const PTX: &str = ".version 6.0\n.target sm_60\n.address_size 64\n\
                   .visible .entry spin_us(.param .u32 microseconds)\n{\nret;\n}\n";
/// Kernels that are queued at a time: enough never to be idle, few enough to end soon.
const QUEUED: usize = 16;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["spin", microseconds] => spin(microseconds.parse().context("MICROSECONDS")?),
        ["memory", ref mib @ ..] => memory(mib),
        _ => bail!("usage: spin-client spin MICROSECONDS | spin-client memory MIB…"),
    }
}

fn spin(microseconds: u32) -> Result<()> {
    let (stream, kernel) = open()?;
    let input_ended = watch_input();
    launch(&stream, &kernel, microseconds)?;
    stream.synchronize()?;
    say("ready")?;
    let mut queued = VecDeque::new();
    while !input_ended.load(Ordering::Relaxed) {
        launch(&stream, &kernel, microseconds)?;
        queued.push_back(stream.record_event(None)?);
        if queued.len() >= QUEUED {
            queued.pop_front().context("the queue is not empty")?.synchronize()?;
        }
    }
    stream.synchronize().context("the last kernels")
}

fn memory(amounts: &[&str]) -> Result<()> {
    let (stream, kernel) = open()?;
    let (free, total) = stream.context().mem_get_info()?;
    say(&format!("free {free} total {total}"))?;
    let mut kept = Vec::new();
    for amount in amounts {
        let bytes = amount.parse::<usize>().context("MIB")? << 20;
        match stream.alloc_zeros::<u8>(bytes) {
            Ok(slice) => {
                kept.push(slice);
                say(&format!("took {amount}"))?;
            }
            Err(DriverError(code)) => say(&format!("refused {amount} error {}", code as u32))?,
        }
    }
    launch(&stream, &kernel, 100)?;
    stream.synchronize().context("a kernel after the last amount")?;
    say("ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn open() -> Result<(Arc<CudaStream>, CudaFunction)> {
    let context = CudaContext::new(0).context("GPU 0")?;
    let module = context.load_module(Ptx::from_src(PTX)).context("the kernel")?;
    Ok((context.new_stream()?, module.load_function("spin_us")?))
}

/// Becomes true when whoever started this program wants it to end.
fn watch_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        // Any end of the input is the end, an error too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    ended
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

#[allow(unsafe_code)] // A launch hands raw arguments to the GPU; there is no safe form of it.
fn launch(stream: &Arc<CudaStream>, kernel: &CudaFunction, microseconds: u32) -> Result<(), DriverError> {
    let mut launch = stream.launch_builder(kernel);
    launch.arg(&microseconds);
    let one = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: `spin_us` in `PTX` has exactly one parameter, a 32-bit number, and touches no memory.
    unsafe { launch.launch(one) }.map(drop)
}
