//! What the end-to-end tests need to start the real programs and to look at them from outside: processes, the gateway
//! API, the node agent's control API, a kubelet and an API server for it, KEDA and watchdogs for the scaler, load, and the
//! recorded calls of `faas-cli`.
//!
//! It knows the programs by their files, sockets and JSON only, never by their crates, so that it fails when what
//! others see changes. The web page alone is served from the scaler's crate, before figures that are made up.
// A harness reports by panicking: its caller is always a test or a measurement.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

pub mod apiserver;
pub mod browser;
pub mod cluster;
pub mod command;
pub mod control;
pub mod delivery;
pub mod device_manager;
pub mod driver;
pub mod echo;
pub mod faas_cli;
pub mod function;
pub mod function_cluster;
pub mod gateway;
pub mod go;
pub mod hash;
pub mod helm;
pub mod http;
pub mod judge;
pub mod keda;
pub mod kubelet;
pub mod load;
pub mod local;
pub mod markdown;
pub mod node;
pub mod overview;
pub mod peer;
pub mod plugin;
pub mod port;
pub mod process;
pub mod processors;
pub mod programs;
pub mod provider;
pub mod python;
pub mod recorded;
pub mod relay;
pub mod scaler;
pub mod server;
pub mod showcase;
pub mod transcripts;
pub mod wait;
pub mod wakes;
pub mod watchdogs;
pub mod wire;
