//! `PyTorch` as a probe, where the Python at hand has it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::Command;

use super::cell::{Container, Launch, Load};
use super::measure::Bench;
use super::stand::Stand;

const PROGRAM: &str = include_str!("torch_probe.py");

/// What stands for the length of its kernels: it is measured.
const UNKNOWN: u32 = 0;

/// The Python that can use the GPU of the stand through `PyTorch`.
#[derive(Debug)]
pub(crate) struct Torch {
    python: PathBuf,
    /// GPU time of one round of its program, microseconds.
    round: f64,
}

impl Torch {
    /// Tries `python`; none if it has no `PyTorch`, or that cannot use this GPU.
    pub(crate) async fn find(stand: &Stand, python: &Path) -> Option<Self> {
        let mut command = stand.unhooked(python);
        let output = words(&mut command).arg("--calibrate").stderr(Stdio::null()).output().await.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let round = text.lines().find_map(|line| line.strip_prefix("kernel 0 ")?.trim().parse().ok())?;
        Some(Self { python: python.into(), round })
    }

    /// Part of each second that it got under each of `quotas`, percent, all at once.
    pub(crate) async fn run(
        &self,
        stand: &Stand,
        bench: &mut Bench<'_>,
        quotas: &[u8],
        seconds: u32,
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        bench.learn(UNKNOWN, self.round);
        let container = |&quota| Container::new(quota, Load::new(UNKNOWN, Launch::Kernel));
        let containers: Vec<_> = quotas.iter().map(container).collect();
        let program = |_: &Container, bound: &_| {
            let mut command = stand.command(&self.python, bound);
            words(&mut command);
            command
        };
        bench.run_programs(&containers, seconds, program).await.context("PyTorch")
    }
}

fn words(command: &mut Command) -> &mut Command {
    command.args(["-c", PROGRAM])
}
