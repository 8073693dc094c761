//! Folders of the real driver, the hook, and the programs, and what a program says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Names that programs ask for, and the file of the hook's folder for each.
pub(crate) const NAMES: [(&str, &str); 4] = [
    ("libcuda.so.1", "libcuda_hook.so"),
    ("libcuda.so", "libcuda_hook.so"),
    ("libnvidia-ml.so.1", "libgpufn_nvml.so"),
    ("libnvidia-ml.so", "libgpufn_nvml.so"),
];

/// A file that `cargo build` puts beside the tests' folder.
pub(crate) fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join(name);
    let how = "run `cargo build -p cuda-hook -p cuda-hook-nvml -p cuda-hook-preload -p simcuda` first";
    assert!(path.exists(), "{} is missing: {how}", path.display());
    path
}

/// A folder with all that a test needs.
pub(crate) struct Rig(TempDir);

impl Rig {
    pub(crate) fn new() -> Self {
        let rig = Self(tempfile::tempdir().unwrap());
        for folder in ["real", "hook", "covered", "host"] {
            fs::create_dir(rig.at(folder)).unwrap();
        }
        // As the container toolkit mounts them: the file with the driver's version, and links to it.
        for library in ["libcuda", "libnvidia-ml"] {
            let file = format!("{library}.so.550.54.15");
            fs::copy(built("libsimcuda.so"), rig.at(&format!("real/{file}"))).unwrap();
            symlink(&file, rig.at(&format!("real/{library}.so.1"))).unwrap();
            symlink(format!("{library}.so.1"), rig.at(&format!("real/{library}.so"))).unwrap();
        }
        for (name, file) in NAMES {
            symlink(built(file), rig.at(&format!("hook/{name}"))).unwrap();
            symlink(built(file), rig.at(&format!("covered/{name}"))).unwrap();
        }
        fs::copy(built("libgpufn_preload.so"), rig.at("hook/libgpufn_preload.so")).unwrap();
        rig.compile_programs();
        rig
    }

    fn compile_programs(&self) {
        let client = source("client.c");
        self.compile(&[&client, "-o", "client"]);
        let rpath = |folder: &str| format!("-Wl,--disable-new-dtags,-rpath,{}", self.at(folder));
        for (program, folder) in [("linked-by-rpath", "real"), ("linked-with-covered", "covered")] {
            let driver = self.at("real/libcuda.so.1");
            // The proxy leaves no name of the driver's own files in the program: what counts is its name, `libcuda.so.1`.
            self.compile(&[&client, "-DLINKED", &driver, &rpath(folder), "-o", program]);
        }
        let module = source("module.c");
        self.compile(&[&module, "-shared", "-fPIC", "-o", "host/libplugin.so"]);
        self.compile(&[&module, "-shared", "-fPIC", "-Wl,-rpath,$ORIGIN", "-o", "host/libhost.so"]);
        fs::write(
            self.at("static.c"),
            "int puts(const char *);\nint main(void) { return puts(\"as before\") < 0; }\n",
        )
        .unwrap();
        self.compile(&["static.c", "-static", "-o", "static"]);
    }

    fn compile(&self, arguments: &[&str]) {
        let output = Command::new("cc").args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "cc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Path of `name` in the folder.
    pub(crate) fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// One of the programs here.
    pub(crate) fn client(&self, program: &str) -> Starter<'_> {
        self.command(&self.at(program))
    }

    pub(crate) fn command(&self, program: &str) -> Starter<'_> {
        let mut command = Command::new(program);
        command
            .current_dir(self.0.path())
            .env_remove("LD_LIBRARY_PATH") // Cargo's.
            .env("GPUFN_DRIVER", self.at("real/libcuda.so.550.54.15"))
            .env("GPUFN_NVML", self.at("real/libnvidia-ml.so.550.54.15"));
        Starter { rig: self, command }
    }
}

fn source(name: &str) -> String {
    format!("{}/tests/preload/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A program that is about to start.
pub(crate) struct Starter<'r> {
    rig: &'r Rig,
    command: Command,
}

impl Starter<'_> {
    pub(crate) fn preload(self) -> Self {
        self.form("LD_PRELOAD")
    }

    /// `LD_PRELOAD` or `LD_AUDIT`, or nothing.
    pub(crate) fn form(mut self, variable: &str) -> Self {
        if !variable.is_empty() {
            self.command.env(variable, self.rig.at("hook/libgpufn_preload.so"));
        }
        self
    }

    /// With a share, so that the proxy watches; the program never uses the GPU, so nobody is asked for it.
    pub(crate) fn bound(self) -> Self {
        self.env("GPUFN_BINDING", "b-1").env("GPUFN_PAGE", "page").env("GPUFN_SOCKET", "node.sock")
    }

    /// Sets `name` to the path of `file`.
    pub(crate) fn env(mut self, name: &str, file: &str) -> Self {
        let value = if name == "GPUFN_BINDING" { file.to_owned() } else { self.rig.at(file) };
        self.command.env(name, value);
        self
    }

    pub(crate) fn run(mut self, arguments: &[&str]) -> Said {
        let output = self.command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        Said(text.lines().map(str::to_owned).collect())
    }
}

/// The lines that a program printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said(Vec<String>);

impl Said {
    pub(crate) fn has(&self, beginning: &str) -> bool {
        self.0.iter().any(|line| line.starts_with(beginning))
    }

    /// What is said of `subject`.
    pub(crate) fn value(&self, subject: &str) -> String {
        let split = |line: &str| line.strip_prefix(subject)?.strip_prefix(' ').map(str::to_owned);
        self.0
            .iter()
            .find_map(|line| split(line))
            .unwrap_or_else(|| panic!("nothing of {subject} in {self:?}"))
    }

    /// The files of NVIDIA's names that are loaded, in the order in which they were.
    pub(crate) fn loaded(&self) -> Vec<String> {
        self.0.iter().filter_map(|line| line.strip_prefix("loaded ")).map(str::to_owned).collect()
    }
}
