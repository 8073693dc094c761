//! Where the built programs and libraries lie, and the turn that a test takes to have the machine for itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `target/<profile>`, found from the running test in its `deps` folder.
pub fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    let folder = test.parent().expect("a program lies in a folder");
    let is_deps = folder.file_name().is_some_and(|name| name == "deps");
    if is_deps { folder.parent().expect("deps lies in a folder").into() } else { folder.into() }
}

/// A built program or library.
pub fn built(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// Absolute paths of the libraries that `program` is linked with, the loader included; none for a static one.
pub fn linked(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// The right to use the machine: while one test holds it, no other that takes one runs, in this process or another.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] File); // Held for its lock, which ends when it is dropped.

impl Turn {
    /// Waits for the turn.
    pub fn take() -> Self {
        let path = folder().join("tests.lock");
        let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(file)
    }
}
