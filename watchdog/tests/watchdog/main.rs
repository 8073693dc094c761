//! Black-box tests of `fwatchdog`: each starts the real program in front of a small function and looks at it from
//! outside, as a gateway, a kubelet and Prometheus would.

// The whole crate is tests; clippy only sees that of functions with #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod action;
mod batching;
mod documents;
mod fixture;
mod fork;
mod function;
mod gpu;
mod hostile;
mod http2;
mod integrity;
mod jwt;
mod lifecycle;
mod limits;
mod logging;
mod metrics;
mod probes;
mod proxy;
mod queue;
mod rolling;
