//! What the two forms of the hook export and need: what `nm` and `readelf` say equals the lists in `exports/`.

#![allow(clippy::unwrap_used)] // A test ends where something is wrong with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROXY: &str = "libcuda_hook.so";
const PRELOAD: &str = "libgpufn_preload.so";
const MANAGEMENT: &str = "libgpufn_nvml.so";

/// Oldest C library that both load with: that of RHEL 8. Ubuntu 20.04 and Debian 11 have 2.31.
const GLIBC: [u32; 2] = [2, 28];

fn library(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join(name);
    let how = "run `cargo build -p cuda-hook -p cuda-hook-nvml -p cuda-hook-preload` first";
    assert!(path.exists(), "{} is missing: {how}", path.display());
    path
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A column of a file of names.
fn names(file: &str, column: usize) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split_whitespace().nth(column).unwrap().to_owned()).collect()
}

fn exported(library: &Path) -> BTreeSet<String> {
    let text = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    text.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect()
}

fn dynamic(library: &Path) -> String {
    output(Command::new("readelf").arg("-dW").arg(library))
}

/// What stands in brackets in the lines with `tag`.
fn entries(dynamic: &str, tag: &str) -> BTreeSet<String> {
    let lines = dynamic.lines().filter(|line| line.contains(tag));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

#[test]
fn the_proxy_exports_the_listed_names_and_no_others() {
    let exported = exported(&library(PROXY));
    assert_eq!(exported, names("tests/exports/proxy.txt", 0));
    // The list is that of the facts from which the exports are made.
    assert_eq!(exported, &names("facts/cuda.txt", 3) | &names("facts/nvml.txt", 0));
}

#[test]
fn the_preload_form_exports_the_listed_names_and_no_others() {
    assert_eq!(exported(&library(PRELOAD)), names("tests/exports/preload.txt", 0));
}

#[test]
fn the_management_librarys_name_is_a_file_of_its_own_that_needs_the_proxy_beside_it() {
    let (library, set) = (library(MANAGEMENT), |name: &str| BTreeSet::from([name.to_owned()]));
    let dynamic = dynamic(&library);
    assert_eq!(exported(&library), BTreeSet::new());
    assert_eq!(entries(&dynamic, "(SONAME)"), set("libnvidia-ml.so.1"));
    assert_eq!(entries(&dynamic, "(NEEDED)"), set("libcuda.so.1"));
    assert_eq!(entries(&dynamic, "(RPATH)"), set("$ORIGIN"));
    assert!(!dynamic.contains("INIT"), "{dynamic}");
}

#[test]
fn both_need_the_c_library_and_nothing_else() {
    // The loader is part of the C library, and has what thread-local variables need.
    let loader = |name: &String| name.starts_with("ld-linux-");
    let mut needed = entries(&dynamic(&library(PROXY)), "(NEEDED)");
    needed.retain(|name| !loader(name));
    assert_eq!(needed, BTreeSet::from(["libc.so.6".to_owned()]));
    assert_eq!(entries(&dynamic(&library(PRELOAD)), "(NEEDED)"), BTreeSet::from(["libc.so.6".to_owned()]));
}

#[test]
fn both_load_with_a_c_library_that_is_older_than_the_one_they_were_built_with() {
    for name in [PROXY, PRELOAD] {
        let text = output(Command::new("nm").args(["-D", "--undefined-only"]).arg(library(name)));
        let versions = text.lines().filter_map(|line| {
            let (symbol, version) = line.split_whitespace().next_back()?.split_once("@GLIBC_")?;
            Some((symbol, version.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>()))
        });
        let newer = versions.filter(|(_, version)| version[..] > GLIBC[..]).collect::<Vec<_>>();
        assert!(
            newer.is_empty(),
            "{name}: an older version of these belongs into facts/glibc.txt: {newer:?}"
        );
    }
}

#[test]
fn the_proxy_has_the_drivers_name_and_stays_loaded() {
    let dynamic = dynamic(&library(PROXY));
    assert_eq!(entries(&dynamic, "(SONAME)"), BTreeSet::from(["libcuda.so.1".to_owned()]));
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn nothing_of_the_preload_form_runs_when_it_is_loaded() {
    let dynamic = dynamic(&library(PRELOAD));
    for tag in ["(INIT)", "(INIT_ARRAY)", "(PREINIT_ARRAY)", "(FINI)", "(FINI_ARRAY)"] {
        assert!(!dynamic.contains(tag), "{tag}: {dynamic}");
    }
    // No function is chosen, and no thread-local variable is set up, at its start either.
    let relocations = output(Command::new("readelf").arg("-rW").arg(library(PRELOAD)));
    for kind in ["IRELATIVE", "DTPMOD", "TPOFF"] {
        assert!(!relocations.contains(kind), "{kind}: {relocations}");
    }
}

#[test]
fn neither_has_an_executable_stack_or_writes_to_its_code() {
    for name in [PROXY, PRELOAD] {
        let segments = output(Command::new("readelf").arg("-lW").arg(library(name)));
        let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap();
        assert!(stack.contains(" RW ") && !stack.contains("RWE"), "{name}: {stack}");
        assert!(!dynamic(&library(name)).contains("TEXTREL"), "{name}");
    }
}
