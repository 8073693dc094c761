//! How large each replica of a function should be, and how many replicas there should be.
//!
//! Owns decisions, as pure functions of (state, observation, now). They never read a clock, open a file or talk to a network:
//! whoever runs them passes what was observed, and carries out what is decided. The one part that does is `serve`, behind the
//! feature of that name: the program `gpufn-scaler`.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`demand`] | the request rate to be ready for, as a quantile with tracked coverage |
//! | [`queueing`] | how long requests wait, in closed form and replayed |
//! | [`profile`] | how long one request takes on a replica at a grant, corrected by what is observed |
//! | [`plan`] | which grants and how many replicas keep the objective, and the cheapest of them |
//! | [`cost`] | what a load costs here and on other platforms, from a price file |
//! | [`policy`] | when to change what: the policies, by name |
//! | [`traffic`] | what replicas show over HTTP, as intervals |
//! | [`need`] | how many replicas a function needs by that |
//! | [`control`] | grants in a cluster: what is seen becomes views, decisions become changes |
//! | [`keda`] | what KEDA asks, and how it is told |
//! | `kind` | the kind `GPUFunctionProfile`: what it says, and its status |
//! | `chances` | chance that is the same in every run |
//! | `webhook` | what a pod that opts in gets before it is created |
//! | `page` | the web page, for all servers that show functions |
//! | `provider` | functions of OpenFaaS on Kubernetes: the API that its gateway and faas-cli speak |
//! | `serve` | the service: sources of load, Kubernetes, gRPC, HTTP, the command line |
//!
//! Start reading at [`policy`], then [`plan`].

// Tests cast small numbers whose values they choose themselves.
#![cfg_attr(
    test,
    allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

mod chances;
pub mod control;
pub mod cost;
pub mod demand;
pub mod keda;
#[cfg(feature = "serve")]
pub mod kind;
pub mod need;
#[cfg(feature = "page")]
pub mod page;
pub mod plan;
pub mod policy;
pub mod profile;
#[cfg(feature = "serve")]
mod provider;
pub mod queueing;
#[cfg(feature = "serve")]
pub mod serve;
pub mod traffic;
#[cfg(feature = "serve")]
pub mod webhook;
