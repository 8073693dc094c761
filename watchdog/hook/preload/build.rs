//! Tells the linker that nothing of Rust's standard library belongs into this one, and that nothing runs when it is loaded.
//!
//! The language links its library to every shared library. Of that the linker keeps what is used: nothing, but for a start
//! routine that reads the program's arguments, and the routine that unwinds panics, of which this library has none.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-start-routines.ld");
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-Wl,-soname,libgpufn_preload.so",
        "-Wl,--defsym=rust_eh_personality=0",
        &format!("-Wl,-T,{folder}/no-start-routines.ld"),
        // Without the compiler's start files there is neither a constructor nor a destructor.
        "-nostartfiles",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
