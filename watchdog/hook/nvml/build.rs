//! Tells the linker what the library is named, what it needs, and that nothing of Rust's standard library belongs into it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let (proxy, folder) = (stand_in()?, env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    for argument in [
        "-Wl,-soname,libnvidia-ml.so.1",
        // The older of the two tags goes before the program's library path: the proxy is the one in the same folder.
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN",
        &format!("-Wl,--no-as-needed,{}", proxy.display()),
        // As for the preload form, whose build script says why.
        "-Wl,--defsym=rust_eh_personality=0",
        &format!("-Wl,-T,{folder}/../preload/no-start-routines.ld"),
        "-nostartfiles",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    Ok(())
}

/// An empty library with the proxy's name, which the linker only asks for that.
fn stand_in() -> io::Result<PathBuf> {
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let path = PathBuf::from(out).join("libcuda.so.1");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command
        .args(["-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o"])
        .arg(&path);
    let status = command.status()?;
    if status.success() { Ok(path) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
