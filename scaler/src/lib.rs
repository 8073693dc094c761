//! How large each replica of a function should be, and how many replicas there should be.
//!
//! Owns decisions only, as pure functions of (state, observation, now). It never reads a clock, opens a file or talks
//! to a network: whoever runs it passes what was observed, and carries out what is decided.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`demand`] | the request rate to be ready for, as a quantile with tracked coverage |
//! | [`queueing`] | how long requests wait, in closed form |
//! | [`profile`] | how long one request takes on a replica at a grant, corrected by what is observed |
//! | [`plan`] | which grants and how many replicas keep the objective, and the cheapest of them |
//! | [`cost`] | what a load costs here and on other platforms, from a price file |
//! | [`policy`] | when to change what: the policies, by name |
//!
//! Start reading at [`policy`], then [`plan`].

// Tests cast small numbers whose values they choose themselves.
#![cfg_attr(
    test,
    allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

pub mod cost;
pub mod demand;
pub mod plan;
pub mod policy;
pub mod profile;
pub mod queueing;
