//! The preload form of the CUDA hook: whoever opens NVIDIA's libraries by a path gets the proxy that lies beside this file.
//!
//! As `LD_PRELOAD` it stands before `dlopen` and `dlmopen`; as `LD_AUDIT` it is asked by the dynamic loader for each
//! library that anything needs. It watches no function of the driver: that is the proxy's work. In a process that opens no
//! library by itself none of its code runs, so it has no constructor and no need but the C library. It is a C library
//! in all but its syntax: a panic would bring Rust's standard library with it, so nothing here can panic, in debug builds
//! either (see `build.rs`).
#![no_std]
#![allow(unsafe_code)] // Every export takes a C program's pointers, and every call leads into the C library.

// Only so that the language's panic handler has a name; nothing of it is linked.
extern crate std;

#[cfg(not(test))] // A test program must not stand before its own loader.
mod audit;
#[cfg(not(test))]
mod loader;
mod names;
#[cfg(not(test))]
mod preload;
