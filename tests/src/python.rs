//! Python environments with packages of fixed versions, from the package index that `pip` is configured for, in folders that
//! are kept.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The mark of an environment that was installed to its end: the requirements it was made of.
const MARK: &str = "installed.txt";
/// How often an installation is tried: an index may fail for a moment.
const ATTEMPTS: usize = 3;

/// What an environment is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Its folder's name.
    pub name: &'static str,
    /// Minor versions of Python 3 for which its packages exist, the preferred first.
    pub minors: &'static [u8],
    /// File of its packages and their versions.
    pub requirements: PathBuf,
    /// Whether the file names all that is to be installed, so that nothing else is.
    pub complete: bool,
}

/// The folder that holds the environments.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes the folder, if it is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder: fs::canonicalize(folder)? })
    }

    /// The interpreter of an environment.
    pub fn python(&self, environment: &Environment) -> PathBuf {
        self.folder.join(environment.name).join("bin/python")
    }

    /// The folder of an environment's packages.
    pub fn packages(&self, environment: &Environment) -> Option<PathBuf> {
        let entries = fs::read_dir(self.folder.join(environment.name).join("lib")).ok()?;
        let mut packages = entries.flatten().map(|entry| entry.path().join("site-packages"));
        packages.find(|path| path.is_dir())
    }

    /// Installs an environment, unless it is there.
    pub fn install(&self, environment: &Environment) -> Result<()> {
        let requirements = &environment.requirements;
        let wanted = fs::read_to_string(requirements).with_context(|| requirements.display().to_string())?;
        let folder = self.folder.join(environment.name);
        if fs::read_to_string(folder.join(MARK)).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        let python = find_python(environment.minors)?;
        println!("installing {} with {}", requirements.display(), python.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        ensure!(
            succeeds(Command::new(&python).args(["-m", "venv"]).arg(&folder))?,
            "no venv by {}",
            python.display()
        );
        for attempt in 1.. {
            let mut pip = Command::new(self.python(environment));
            pip.args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]);
            pip.args(environment.complete.then_some("--no-deps"));
            if succeeds(pip.arg("--requirement").arg(requirements))? {
                break;
            }
            ensure!(attempt < ATTEMPTS, "pip failed {ATTEMPTS} times");
        }
        fs::write(folder.join(MARK), wanted).with_context(|| folder.display().to_string())
    }
}

fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.stdin(Stdio::null()).status();
    Ok(status.with_context(|| command.get_program().display().to_string())?.success())
}

/// An interpreter of one of these versions that can make environments.
fn find_python(minors: &[u8]) -> Result<PathBuf> {
    for &minor in minors {
        let candidates = [PathBuf::from(format!("python3.{minor}")), PathBuf::from("python3")];
        let found = candidates.into_iter().chain(managed(minor)).find(|python| is_minor(python, minor));
        if let Some(python) = found {
            return Ok(python);
        }
    }
    let names: Vec<_> = minors.iter().map(|minor| format!("3.{minor}")).collect();
    bail!(
        "no Python is one of {}, with the modules venv and ensurepip: install one, on PATH or by pyenv",
        names.join(", ")
    )
}

/// Interpreters that pyenv or uv keep beside those on `PATH`.
fn managed(minor: u8) -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME").unwrap_or_default();
    let pyenv = variable("PYENV_ROOT").unwrap_or_else(|| home.join(".pyenv")).join("versions");
    let uv = variable("UV_PYTHON_INSTALL_DIR").unwrap_or_else(|| home.join(".local/share/uv/python"));
    let mut found = Vec::new();
    for (folder, prefix) in [(pyenv, format!("3.{minor}.")), (uv, format!("cpython-3.{minor}."))] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let of_minor = |name: &OsString| name.to_string_lossy().starts_with(&prefix);
        let fitting = entries.filter(|entry| of_minor(&entry.file_name()));
        found.extend(fitting.map(|entry| entry.path().join("bin/python3")));
    }
    found
}

fn is_minor(python: &Path, minor: u8) -> bool {
    let check = format!("import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))");
    let mut command = Command::new(python);
    command.arg("-c").arg(check).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
