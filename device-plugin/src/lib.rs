//! The node agent: which container gets which part of which GPU, and when it may run.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`arbiter`] | who of a row holds the right to run, from when and how long (pure) |
//! | [`node`] | ledger, arbiters and processes as one state (pure) |
//! | [`inventory`] | which GPUs there are |
//! | [`health`] | which of them can be trusted with new bindings |
//! | [`pci`] | where in the machine they are |
//! | [`checkpoint`] | the ledger on the disk |
//! | [`pages`] | the bindings' pages |
//! | [`environment`] | the variables of a container |
//! | [`cdi`] | the same and the mounts, as container runtimes read them |
//! | [`mps`] | NVIDIA's multi-process service: its daemon's life |
//! | [`fit`] | the form of a share that fits where the one asked for does not (pure) |
//! | [`kubelet`] | the front end for the kubelet as a device plugin: devices, registration, pods |
//! | [`dra`] | the front end for dynamic resource allocation: claims |
//! | [`control`] | the control API, and the handle that it calls |
//! | [`metrics`] | what is exported |
//! | [`standalone`] | start, restore and stop without Kubernetes |
//! | [`cli`], [`table`] | the command line |
//!
//! One thread owns all state (`owner`) and waits for everything at once (`reactor`); who connects and has not attached
//! has a thread of its own (`containers`). Start reading at [`node`], then [`arbiter`].

pub mod arbiter;
pub mod cdi;
pub mod checkpoint;
pub mod cli;
mod clock;
mod containers;
pub mod control;
pub mod dra;
pub mod environment;
pub mod fit;
pub mod health;
pub mod inventory;
pub mod kubelet;
pub mod metrics;
pub mod mps;
pub mod node;
mod owner;
pub mod pages;
pub mod pci;
mod precedence;
mod reactor;
mod refused;
pub mod standalone;
pub mod table;

pub use owner::{ControlError, Observation, Reshape};
