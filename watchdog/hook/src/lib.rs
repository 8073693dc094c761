//! The CUDA hook: a proxy driver that makes a function keep to its share.
//!
//! It is found before NVIDIA's `libcuda.so.1` and `libnvidia-ml.so.1`, opens the real libraries by their paths, and
//! passes every call on. In a process with a binding it holds launches back until the node agent gives the right to run,
//! measures the GPU time that they occupy, and keeps memory within the limit. It is no security boundary.
#![allow(unsafe_code)] // It is a C library: every export takes a C program's pointers, and every call leads into one.

mod abi;
mod agent;
mod config;
mod contexts;
mod cost;
mod coverage;
mod driver;
mod forward;
mod gate;
mod glibc;
mod green;
mod harvest;
mod intercept;
mod lane;
mod launch;
mod memory;
mod names;
mod nvml;
mod session;
mod sync;
mod unknown;
mod wrappers;
