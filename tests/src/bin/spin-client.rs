//! A CUDA program for the tests: it keeps the GPU as busy as it is allowed to, or takes memory, and tells how that went.
//!
//! `spin-client spin MICROSECONDS [HOW] [STREAMS]` launches kernels of that length until its standard input ends, on one
//! stream or several; HOW is `launch`, `ex`, `cooperative` or `graph` (four kernels each). Meanwhile it obeys lines of its
//! input: `take MIB` takes memory and keeps it.
//! `spin-client burst MICROSECONDS KERNELS` launches so many for each line of its input, and says how long they took.
//! `spin-client infer MODEL BATCH LAYERS COUNT` runs inferences of a model, and says how long each took.
//! `spin-client memory MIB…` takes each amount in turn, keeps what it gets, runs a kernel, and waits for its input to end.

use core::ffi::c_void;
use std::collections::VecDeque;
use std::io::{BufRead, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaSlice, CudaStream, DriverError, result, sys,
};
use cudarc::nvrtc::Ptx;

/// Kernels that are queued at a time: enough never to be idle, few enough to end soon.
const QUEUED: usize = 16;
/// Kernels in a graph.
const GRAPH: usize = 4;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["spin", microseconds] => spin(microseconds.parse()?, "launch", 1),
        ["spin", microseconds, how] => spin(microseconds.parse()?, how, 1),
        ["spin", microseconds, how, streams] => spin(microseconds.parse()?, how, streams.parse()?),
        ["burst", microseconds, kernels] => burst(microseconds.parse()?, kernels.parse()?),
        ["infer", model, batch, layers, count] => {
            infer(model, batch.parse()?, layers.parse()?, count.parse()?)
        }
        ["memory", ref mib @ ..] => memory(mib),
        _ => bail!("usage: spin-client spin|burst|infer|memory …, as its source says"),
    }
}

/// A kernel and its only parameter.
#[derive(Clone, Debug)]
struct Kernel {
    function: CudaFunction,
    grid: [u32; 3],
    parameter: u32,
}

impl Kernel {
    /// One that lasts so many microseconds.
    fn of(context: &Arc<CudaContext>, microseconds: u32) -> Result<Self> {
        Ok(Self { function: load(context, "spin_us")?, grid: [1, 1, 1], parameter: microseconds })
    }
}

fn load(context: &Arc<CudaContext>, name: &str) -> Result<CudaFunction> {
    let ptx = format!(
        ".version 6.0\n.target sm_60\n.address_size 64\n.visible .entry {name}(.param .u32 number)\n{{\nret;\n}}\n"
    );
    Ok(context.load_module(Ptx::from_src(ptx)).context("the kernel")?.load_function(name)?)
}

/// A stream with what is queued on it.
struct Lane {
    stream: Arc<CudaStream>,
    graph: Option<CudaGraph>,
    queued: VecDeque<CudaEvent>,
}

impl Lane {
    fn new(context: &Arc<CudaContext>, kernel: &Kernel, how: &str) -> Result<Self> {
        let stream = context.new_stream()?;
        let graph = (how == "graph").then(|| capture(&stream, kernel)).transpose()?;
        Ok(Self { stream, graph, queued: VecDeque::new() })
    }

    fn launch(&self, kernel: &Kernel, how: &str) -> Result<()> {
        match &self.graph {
            Some(graph) => Ok(graph.launch()?),
            None => launch(&self.stream, kernel, how),
        }
    }

    /// Launches once more, and waits until there is room for the next.
    fn step(&mut self, kernel: &Kernel, how: &str) -> Result<()> {
        self.launch(kernel, how)?;
        self.queued.push_back(self.stream.record_event(None)?);
        let most = if self.graph.is_some() { QUEUED / GRAPH } else { QUEUED };
        if self.queued.len() >= most {
            self.queued.pop_front().context("the queue is not empty")?.synchronize()?;
        }
        Ok(())
    }
}

fn capture(stream: &Arc<CudaStream>, kernel: &Kernel) -> Result<CudaGraph> {
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    for _ in 0..GRAPH {
        launch(stream, kernel, "launch")?;
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    stream.end_capture(flags)?.context("a capture makes a graph")
}

fn spin(microseconds: u32, how: &str, streams: usize) -> Result<()> {
    ensure!((1..=64).contains(&streams), "STREAMS is {streams}, allowed is 1 to 64");
    let context = CudaContext::new(0).context("GPU 0")?;
    let kernel = Kernel::of(&context, microseconds)?;
    let lanes = (0..streams).map(|_| Lane::new(&context, &kernel, how)).collect::<Result<Vec<_>>>();
    let (mut lanes, orders) = (lanes?, read_input());
    lanes[0].launch(&kernel, how)?;
    lanes[0].stream.synchronize()?;
    say("ready")?;
    let mut kept = Vec::new();
    loop {
        match orders.try_recv() {
            Ok(order) => obey(&order, &lanes[0].stream, &mut kept)?,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {}
        }
        lanes.iter_mut().try_for_each(|lane| lane.step(&kernel, how))?;
    }
    lanes.iter().try_for_each(|lane| lane.stream.synchronize()).context("the last kernels")
}

fn obey(order: &str, stream: &Arc<CudaStream>, kept: &mut Vec<CudaSlice<u8>>) -> Result<()> {
    match order.split_whitespace().collect::<Vec<_>>()[..] {
        ["take", mib] => {
            let start = Instant::now();
            take(stream, mib, kept)?;
            say(&format!("after {} µs", start.elapsed().as_micros()))
        }
        _ => bail!("{order:?} is no order"),
    }
}

fn burst(microseconds: u32, kernels: u32) -> Result<()> {
    let context = CudaContext::new(0).context("GPU 0")?;
    let kernel = Kernel::of(&context, microseconds)?;
    let stream = context.new_stream()?;
    launch(&stream, &kernel, "launch")?;
    stream.synchronize()?;
    say("ready")?;
    for _ in read_input() {
        let start = Instant::now();
        (0..kernels).try_for_each(|_| launch(&stream, &kernel, "launch"))?;
        stream.synchronize()?;
        say(&format!("burst {}", start.elapsed().as_micros()))?;
    }
    Ok(())
}

fn infer(model: &str, batch: u32, layers: u32, count: u32) -> Result<()> {
    let context = CudaContext::new(0).context("GPU 0")?;
    let function = load(&context, &format!("{model}_layer"))?;
    let kernel = Kernel { function, grid: [layers, 1, batch], parameter: 0 };
    let stream = context.new_stream()?;
    for _ in 0..count {
        let start = Instant::now();
        (0..layers).try_for_each(|_| launch(&stream, &kernel, "launch"))?;
        stream.synchronize()?;
        say(&format!("inference {}", start.elapsed().as_micros()))?;
    }
    say("done")
}

fn memory(amounts: &[&str]) -> Result<()> {
    let context = CudaContext::new(0).context("GPU 0")?;
    let kernel = Kernel::of(&context, 100)?;
    let stream = context.new_stream()?;
    let (free, total) = context.mem_get_info()?;
    say(&format!("free {free} total {total}"))?;
    let mut kept = Vec::new();
    for amount in amounts {
        take(&stream, amount, &mut kept)?;
    }
    launch(&stream, &kernel, "launch")?;
    stream.synchronize().context("a kernel after the last amount")?;
    say("ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn take(stream: &Arc<CudaStream>, amount: &str, kept: &mut Vec<CudaSlice<u8>>) -> Result<()> {
    let bytes = amount.parse::<usize>().context("MIB")? << 20;
    match stream.alloc_zeros::<u8>(bytes) {
        Ok(slice) => {
            kept.push(slice);
            say(&format!("took {amount}"))
        }
        Err(DriverError(code)) => say(&format!("refused {amount} error {}", code as u32)),
    }
}

/// The lines of the input; it ends when whoever started this program wants it to end.
fn read_input() -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        // Any end of the input is the end, an error too.
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

#[allow(unsafe_code)] // A launch hands raw arguments to the GPU; there is no safe form of it.
fn launch(stream: &Arc<CudaStream>, kernel: &Kernel, how: &str) -> Result<()> {
    stream.context().bind_to_thread()?;
    let Kernel { ref function, grid: [x, y, z], mut parameter } = *kernel;
    let (function, stream, one) = (function.cu_function(), stream.cu_stream(), (1, 1, 1));
    let mut parameters = [(&raw mut parameter).cast::<c_void>()];
    // SAFETY: the kernels that `load` makes have exactly one parameter, a 32-bit number, and touch no memory; the
    // parameter and the configuration live until the call returns, and the driver keeps a copy.
    let launched = unsafe {
        match how {
            "launch" => result::launch_kernel(function, (x, y, z), one, 0, stream, &mut parameters),
            "cooperative" => {
                result::launch_cooperative_kernel(function, (x, y, z), one, 0, stream, &mut parameters)
            }
            "ex" => {
                let config = sys::CUlaunchConfig {
                    gridDimX: x,
                    gridDimY: y,
                    gridDimZ: z,
                    blockDimX: 1,
                    blockDimY: 1,
                    blockDimZ: 1,
                    sharedMemBytes: 0,
                    hStream: stream,
                    attrs: core::ptr::null_mut(),
                    numAttrs: 0,
                };
                let extra = core::ptr::null_mut();
                sys::cuLaunchKernelEx(&raw const config, function, parameters.as_mut_ptr(), extra).result()
            }
            _ => bail!("HOW is {how:?}, allowed is launch, ex, cooperative or graph"),
        }
    };
    Ok(launched?)
}
