//! Writes the proxy's exports: a forwarder for each name of `facts/`, the list of names, and what is offered by version.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

#[path = "build/glibc.rs"]
mod glibc;

/// One line of `facts/cuda.txt`.
struct Offer {
    asked: String,
    version: u32,
    per_thread: bool,
    symbol: String,
}

fn main() -> io::Result<()> {
    let offers = read_offers(Path::new("facts/cuda.txt"))?;
    let cuda = offers.iter().map(|offer| offer.symbol.clone()).collect::<BTreeSet<_>>();
    let nvml = lines(&fs::read_to_string("facts/nvml.txt")?).map(str::to_owned).collect::<BTreeSet<_>>();
    let names = cuda.iter().chain(&nvml).cloned().collect::<Vec<_>>();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    fs::write(out.join("names.rs"), names_module(&names, cuda.len(), &offers))?;
    fs::write(out.join("forwarders.rs"), forwarders(&names))?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=facts");
    // Programs ask for this name; threads of ours run in it, so it must not be unloaded under them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build");
    glibc::use_older_versions(Path::new("facts/glibc.txt"), &out)?;
    glibc::need_no_libgcc(&out)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn read_offers(path: &Path) -> io::Result<Vec<Offer>> {
    let text = fs::read_to_string(path)?;
    lines(&text)
        .map(|line| offer(line).ok_or_else(|| io::Error::other(format!("{}: {line}", path.display()))))
        .collect()
}

fn offer(line: &str) -> Option<Offer> {
    let mut fields = line.split_whitespace();
    let asked = fields.next()?.to_owned();
    let version = fields.next()?.parse().ok()?;
    let per_thread = fields.next()? == "pt";
    Some(Offer { asked, version, per_thread, symbol: fields.next()?.to_owned() })
}

fn names_module(names: &[String], cuda: usize, offers: &[Offer]) -> String {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{args}");
    };
    line(format_args!("/// Number of exported names.\npub(crate) const COUNT: usize = {};", names.len()));
    line(format_args!("/// The first so many are the CUDA driver's, the rest the management library's."));
    line(format_args!("pub(crate) const CUDA: usize = {cuda};"));
    line(format_args!(
        "/// Every exported name, with a zero at its end.\npub(crate) static NAMES: [&CStr; COUNT] = ["
    ));
    for name in names {
        line(format_args!("    c\"{name}\","));
    }
    line(format_args!(
        "];\n/// Place of each name in the tables.\n#[allow(non_upper_case_globals, dead_code)] // The names are the driver's; few are used."
    ));
    line(format_args!("pub(crate) mod index {{"));
    for (index, name) in names.iter().enumerate() {
        line(format_args!("    pub(crate) const {name}: usize = {index};"));
    }
    line(format_args!(
        "}}\n/// Which export answers to which name from which version on.\npub(crate) static OFFERS: &[Offer] = &["
    ));
    for Offer { asked, version, per_thread, symbol } in offers.iter().filter(|offer| offer.version > 0) {
        line(format_args!(
            "    Offer {{ asked: c\"{asked}\", version: {version}, per_thread: {per_thread}, index: index::{symbol} }},"
        ));
    }
    line(format_args!("];"));
    text
}

/// Each forwarder leaves its index in a register that no argument uses, and jumps through the table.
fn forwarders(names: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        // Writing to a String does not fail.
        let _ = writeln!(text, "forwarder!({name}, {index});");
    }
    text
}
