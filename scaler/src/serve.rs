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
//! | `lead` | the Lease: which of several scalers writes |
//! | `owner` | objects that scale Deployments too (pure) |
//! | `control` | the control loop |
//! | `outbox` | carrying out what it decides |
//! | `statuses` | what functions have, written into their profiles |
//! | `grpc`, `streams` | KEDA's protocol |
//! | `web` | health, metrics, explanations, the web page |
//! | `overview`, `decisions` | what the web page shows |
//! | `tls` | who may connect |
//! | `metrics` | what is exported |
//! | `admission` | the webhook, over HTTPS |
//!
//! Start reading at `board`, then `grpc` for what KEDA is told, `control` for what is changed.

mod admission;
mod board;
pub mod cli;
mod clock;
mod cluster;
mod control;
mod decisions;
mod fleet;
mod grpc;
mod lead;
pub(crate) mod metrics;
mod outbox;
mod overview;
mod owner;
mod sampler;
mod source;
mod start;
mod statuses;
mod streams;
mod tls;
mod web;
