//! A simulated GPU that several processes share: a daemon that keeps its timeline, and the CUDA driver and NVML
//! interfaces that programs reach it through.
//!
//! The model ([`gpu`]) and the cost of kernels ([`cost`]) are pure. The shared library of this crate exports every
//! name of the CUDA driver and of NVML; what is not simulated answers "not supported". It never claims to be
//! NVIDIA's driver.
// A C interface takes and gives raw pointers; each use says why it is sound.
#![allow(unsafe_code)]

pub mod card;
pub mod cost;
pub mod daemon;
mod driver;
pub mod fault;
pub mod gpu;
mod nvml;
pub mod ptx;
pub mod signals;
mod socket;
pub mod stats;
pub mod wire;
