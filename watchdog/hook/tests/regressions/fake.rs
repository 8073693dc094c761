//! The driver that does nothing, built for the test, and programs that run on it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::agent::NodeAgent;
use crate::node::{Starter, built, install};

/// A folder with the driver and, under the names that programs ask for, the hook.
pub(crate) struct Fake {
    folder: &'static TempDir,
}

impl Fake {
    /// Built once for all tests.
    pub(crate) fn build() -> Self {
        static BUILT: OnceLock<TempDir> = OnceLock::new();
        let folder = BUILT.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            compile("driver.c", &folder.path().join("driver.so"), &["-shared", "-fPIC", "-pthread"]);
            compile("launcher.c", &folder.path().join("launcher"), &[]);
            install(&folder.path().join("lib"));
            folder
        });
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn client(&self, role: &str) -> Starter {
        Starter::role(role)
            .env("LD_LIBRARY_PATH", self.path("lib"))
            .env("GPUFN_DRIVER", self.path("driver.so"))
            .env("GPUFN_NVML", self.path("driver.so"))
    }

    /// A small program that launches a thousand and `times` kernels.
    pub(crate) fn launcher(&self, agent: &NodeAgent, times: u32) -> Child {
        let mut command = Command::new(self.path("launcher"));
        self.hooked(&mut command, agent, &self.path("lib/libcuda.so.1"), times);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn hooked(&self, command: &mut Command, agent: &NodeAgent, library: &Path, times: u32) {
        command
            .arg(library)
            .arg(times.to_string())
            .envs(agent.environment())
            .env("GPUFN_DRIVER", self.path("driver.so"))
            .env("GPUFN_NVML", "/none");
    }

    fn launching(&self, command: &mut Command, agent: Option<&NodeAgent>, times: u32) {
        match agent {
            Some(agent) => self.hooked(command, agent, &released(), times),
            None => drop(command.arg(self.path("driver.so")).arg(times.to_string())),
        }
    }

    /// Instructions of each of `times` launches, by callgrind, behind the release build of the hook or directly: those of the
    /// functions that a launch into an open batch passes, the driver's own among them.
    pub(crate) fn instructions(&self, agent: Option<&NodeAgent>, times: u32) -> f64 {
        let counts = self.path("counts");
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "-q", &format!("--callgrind-out-file={}", counts.display())]);
        command.arg(self.path("launcher"));
        self.launching(&mut command, agent, times);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let output = Command::new("callgrind_annotate").arg("--threshold=100").arg(counts).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let passed = ["cuLaunchKernel", "launch_at_once"];
        let lines = text.lines().filter(|line| {
            let name = line.split(" [").next().and_then(|line| line.rsplit(':').next());
            name.is_some_and(|name| passed.contains(&name))
        });
        let counted = lines
            .map(|line| line.split_whitespace().next().unwrap().replace(',', "").parse::<f64>().unwrap());
        counted.sum::<f64>() / f64::from(times + 1_000)
    }

    /// CPU time of a launch, behind the release build of the hook or directly, ns.
    pub(crate) fn nanos(&self, agent: Option<&NodeAgent>, times: u32) -> f64 {
        let mut command = Command::new(self.path("launcher"));
        self.launching(&mut command, agent, times);
        said(&mut command)
    }

    /// How long `times` kernels of `kernel` take from the first launch to the end of the last, launched as fast as it goes.
    pub(crate) fn storm(&self, agent: Option<&NodeAgent>, times: u32, kernel: Duration) -> Duration {
        let mut command = Command::new(self.path("launcher"));
        self.launching(&mut command, agent, times);
        command.arg("storm").env("FAKE_KERNEL_NS", kernel.as_nanos().to_string());
        Duration::from_secs_f64(said(&mut command) / 1e9)
    }
}

/// The number that a program prints.
fn said(command: &mut Command) -> f64 {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn released() -> PathBuf {
    let path =
        built("libcuda_hook.so").parent().and_then(Path::parent).unwrap().join("release/libcuda_hook.so");
    assert!(path.exists(), "{} is missing: run `cargo build --release -p cuda-hook` first", path.display());
    path
}

fn compile(source: &str, into: &Path, options: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(source);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output =
        Command::new(&compiler).args(["-O2", "-o"]).arg(into).args(options).arg(source).arg("-ldl").output();
    let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
