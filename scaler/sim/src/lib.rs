//! A discrete-event cluster that drives the scaler's policies unchanged: the views that they see and the decisions that
//! they make are those of production.
//!
//! Pure: the same [`spec::Spec`] and policy give the same [`report::Report`] to the last bit. Memory grows with what is
//! alive, not with time.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`spec`] | what is simulated |
//! | [`cluster`] | GPUs, replicas, requests, and what happens to them |
//! | [`arrivals`] | when requests arrive |
//! | [`bound`] | the least that any schedule costs |
//! | [`gpu`] | how long work takes on a share: enforcement, neighbours |
//! | [`surface`] | how long a model takes, as measured |
//! | [`report`] | what came of it |
//! | [`event`] | the queue of events |
//! | [`random`] | streams of random numbers |
//!
//! Start reading at [`spec`], then [`cluster`].

// Tests cast small numbers whose values they choose themselves.
#![cfg_attr(
    test,
    allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

pub mod arrivals;
pub mod bound;
mod client;
pub mod cluster;
pub mod event;
pub mod gpu;
pub mod random;
pub mod report;
pub mod spec;
pub mod surface;
