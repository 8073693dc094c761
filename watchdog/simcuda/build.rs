//! Writes the names that the shared library exports: the table behind `cuGetProcAddress`, and a stub for each name
//! that no source file of the crate defines.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const CUDA: &str = "../hook/facts/cuda.txt";
const NVML: &str = "../hook/facts/nvml.txt";
/// The version of CUDA that the driver answers as (`driver/device.rs`). It does not have what is newer and not simulated:
/// programs look for newer forms of a name first.
const NEWEST: u32 = 12_090;

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed={CUDA}");
    println!("cargo:rerun-if-changed={NVML}");
    // Programs look for these names. Own symbols bind to this library even when another libcuda was loaded before.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    let mut defined = BTreeSet::new();
    find_definitions(Path::new("src"), &mut defined)?;
    let mut cuda = Entry::parse_all(&fs::read_to_string(CUDA)?)?;
    cuda.retain(|entry| entry.version <= NEWEST || defined.contains(&entry.symbol));
    let symbols: BTreeSet<&str> = cuda.iter().map(|entry| entry.symbol.as_str()).collect();
    fs::write(out.join("cuda_stubs.rs"), stubs(&symbols, &defined))?;
    fs::write(out.join("cuda_table.rs"), table(&cuda))?;
    let nvml = fs::read_to_string(NVML)?;
    let symbols =
        nvml.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    fs::write(out.join("nvml_stubs.rs"), stubs(&symbols, &defined))
}

/// A line of the table of driver names.
struct Entry {
    name: String,
    version: u32,
    per_thread: bool,
    symbol: String,
}

impl Entry {
    fn parse_all(text: &str) -> io::Result<Vec<Self>> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| Self::parse(line).ok_or_else(|| io::Error::other(format!("{CUDA}: {line}"))))
            .collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, version, stream, symbol] = words[..] else { return None };
        let version = version.parse().ok()?;
        Some(Self { name: name.into(), version, per_thread: stream == "pt", symbol: symbol.into() })
    }
}

/// Collects the names in the brackets of `fn [name name | twin]`, the form in which most are defined, and those of
/// plain C functions.
fn find_definitions(folder: &Path, defined: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_definitions(&path, defined)?;
            continue;
        }
        let source = fs::read_to_string(&path)?;
        for names in source.split("fn [").skip(1).filter_map(|rest| rest.split(']').next()) {
            defined.extend(names.split_whitespace().filter(|name| *name != "|").map(String::from));
        }
        for name in source.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            defined.insert(name.into());
        }
    }
    Ok(())
}

fn stubs(symbols: &BTreeSet<&str>, defined: &BTreeSet<String>) -> String {
    let missing: Vec<_> = symbols.iter().filter(|symbol| !defined.contains(**symbol)).collect();
    let mut code = String::new();
    for symbol in missing {
        // A caller's arguments are left alone: in the C calling convention they are the caller's to remove.
        let _ = writeln!(code, "stub!({symbol});");
    }
    code
}

fn table(entries: &[Entry]) -> String {
    let symbols: BTreeSet<&str> = entries.iter().map(|entry| entry.symbol.as_str()).collect();
    let mut code = String::from("unsafe extern \"C\" {\n");
    for symbol in &symbols {
        let _ = writeln!(code, "    fn {symbol}();");
    }
    code.push_str("}\n\nstatic ENTRIES: &[Entry] = &[\n");
    for Entry { name, version, per_thread, symbol } in entries {
        let _ = writeln!(
            code,
            "    Entry {{ name: {name:?}, version: {version}, per_thread: {per_thread}, function: {symbol} }},"
        );
    }
    code.push_str("];\n");
    code
}
