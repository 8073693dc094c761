//! Which clients there are, what each is made of, and how it is started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tests::programs;
use tests::python::{Cache, Environment};

/// A real CUDA program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Client {
    /// Rust on the driver, kernels by NVRTC.
    Cudarc,
    /// NVIDIA's Python bindings, kernels by NVRTC.
    CudaPython,
    /// NVIDIA's Python programs, streams, memory and graphs, kernels by NVRTC.
    CudaCore,
    /// Python compiled to kernels.
    NumbaCuda,
    /// Python compiled to kernels, by LLVM.
    Taichi,
    /// Traced array code, compiled to PTX by itself.
    Drjit,
    /// A framework on the driver alone.
    Tinygrad,
    /// C on NVIDIA's runtime 10.2: streams, events, graphs.
    #[value(name = "cudart-10.2")]
    Cudart,
    /// `PyTorch` 1.12.1 with CUDA 10.2: cuBLAS, cuDNN.
    #[value(name = "pytorch-1.12.1")]
    Pytorch,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Where the clients' sources lie.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// What runs on Python's own bindings to the driver.
fn python() -> Environment {
    environment("python", &[11, 12, 13])
}

fn pytorch() -> Environment {
    environment("pytorch", &[10, 9, 8])
}

fn environment(name: &'static str, minors: &'static [u8]) -> Environment {
    let requirements = sources().join(name).with_extension("txt");
    Environment { name, minors, requirements, complete: false }
}

/// The environments that these clients need, each once.
pub(crate) fn needed(clients: &[Client]) -> Vec<Environment> {
    let needs = |environment: &Environment| clients.iter().any(|client| client.environment() == *environment);
    [python(), pytorch()].into_iter().filter(needs).collect()
}

impl Client {
    pub(crate) const ALL: [Self; 9] = [
        Self::Cudarc,
        Self::CudaPython,
        Self::CudaCore,
        Self::NumbaCuda,
        Self::Taichi,
        Self::Drjit,
        Self::Tinygrad,
        Self::Cudart,
        Self::Pytorch,
    ];

    /// Where what it is made of is installed.
    pub(crate) fn environment(self) -> Environment {
        match self {
            Self::Cudart | Self::Pytorch => pytorch(),
            _ => python(),
        }
    }

    /// The simulated GPU that it runs on: Dr.Jit asks for capability 7.5.
    pub(crate) fn model(self) -> &'static str {
        if self == Self::Drjit { "t4" } else { "v100" }
    }

    /// Whether its kernels are text that the simulated GPU can compute. Others are machine code, which takes time only.
    pub(crate) fn computes(self) -> bool {
        self != Self::Pytorch
    }

    /// Folders of libraries that it needs beside the driver.
    pub(crate) fn libraries(self, cache: &Cache) -> Vec<PathBuf> {
        let nvrtc = || cache.packages(&python()).map(|path| path.join("nvidia/cuda_nvrtc/lib"));
        match self {
            Self::Cudarc | Self::Tinygrad => nvrtc().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The command that starts it, but for the environment of its binding; `scratch` is for what it writes.
    pub(crate) fn command(self, cache: &Cache, scratch: &Path) -> Result<Command> {
        let python = |script: &str| {
            let mut command = Command::new(cache.python(&self.environment()));
            command.arg(sources().join(script));
            command
        };
        let mut command = match self {
            Self::Cudarc => Command::new(programs::built("cudarc-client")),
            Self::CudaPython => python("cuda_python_client.py"),
            Self::CudaCore => python("cuda_core_client.py"),
            Self::NumbaCuda => python("numba_client.py"),
            Self::Taichi => python("taichi_client.py"),
            Self::Drjit => python("drjit_client.py"),
            Self::Tinygrad => python("tinygrad_client.py"),
            Self::Pytorch => python("pytorch_client.py"),
            Self::Cudart => {
                let mut command = Command::new(compile(scratch)?);
                command.arg(runtime(cache)?);
                command
            }
        };
        command
            .env("DEV", "CUDA")
            .env("XDG_CACHE_HOME", scratch)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("RUST_BACKTRACE", "0");
        for variable in ["PYTHONPATH", "PYTHONHOME", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH"] {
            command.env_remove(variable);
        }
        Ok(command)
    }
}

/// Compiles the C client with the machine's C compiler.
fn compile(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (sources().join("cudart.c"), folder.join("cudart"));
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-O1", "-Wall", "-o"]).arg(&program).arg(source).args(["-ldl", "-lpthread"]);
    let status = command.status().with_context(|| format!("the C compiler {}", compiler.display()))?;
    ensure!(status.success(), "the C compiler ended with {status}");
    Ok(program)
}

/// NVIDIA's runtime 10.2, which comes with `PyTorch`.
fn runtime(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.packages(&pytorch()).context("PyTorch is not installed")?.join("torch/lib");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let is_runtime = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libcudart") && name.ends_with(".so.10.2")
    };
    let found = entries.flatten().map(|entry| entry.path()).find(is_runtime);
    found.with_context(|| format!("{} has no libcudart…so.10.2", folder.display()))
}
