//! What the library exports: exactly the names of the two lists, under the name that programs ask for.

#![allow(clippy::unwrap_used)] // A test ends where something is wrong with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn library() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("libcuda_hook.so");
    assert!(path.exists(), "{} is missing: run `cargo build -p cuda-hook` first", path.display());
    path
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn names(file: &str, column: usize) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("facts").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split_whitespace().nth(column).unwrap().to_owned()).collect()
}

#[test]
fn the_library_exports_the_listed_names_and_no_others() {
    let text = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let exported = text.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned);
    let wanted = &names("cuda.txt", 3) | &names("nvml.txt", 0);
    assert_eq!(exported.collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn the_library_has_the_drivers_name_stays_loaded_and_has_no_executable_stack() {
    let library = library();
    let dynamic = output(Command::new("readelf").arg("-dW").arg(&library));
    assert!(dynamic.contains("Library soname: [libcuda.so.1]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    let segments = output(Command::new("readelf").arg("-lW").arg(&library));
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap();
    assert!(stack.contains(" RW ") && !stack.contains("RWE"), "{stack}");
}
