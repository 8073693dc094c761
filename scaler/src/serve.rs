//! The service: reads load, follows Kubernetes, and tells KEDA what is needed.
//!
//! Owns everything that waits: sockets, watches, clocks. What is decided from it is [`crate::need`]'s. No call is ever answered
//! by asking somebody else: what was read last is told, or, if that is too old, that nothing is known.
//!
//! | module | what it owns |
//! |---|---|
//! | [`cli`] | the command line |
//! | `start` | start and end of everything |
//! | `board` | what is known of each function now, and its need |
//! | `fleet` | Deployments and pods, as far as they matter (pure) |
//! | `cluster` | following them at the API server |
//! | `source` | where load is read: watchdogs, Prometheus, a gateway |
//! | `sampler` | reading it in time |
//! | `grpc`, `streams` | KEDA's protocol |
//! | `web` | health, metrics, explanations, the web page |
//! | `overview`, `decisions` | what the web page shows |
//! | `tls` | who may connect |
//! | `metrics` | what is exported |
//! | `admission` | the webhook, over HTTPS |
//!
//! Start reading at `board`, then `grpc`.

mod admission;
mod board;
pub mod cli;
mod clock;
mod cluster;
mod decisions;
mod fleet;
mod grpc;
mod metrics;
mod overview;
mod sampler;
mod source;
mod start;
mod streams;
mod tls;
mod web;
