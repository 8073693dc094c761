//! What a share of a GPU is. The bottom of gpufn: node agent, hook, watchdog, scaler and simulator all build on it.
//!
//! Pure: no clock, no file, no network, no async. Callers pass `now` and act on what they are told. The one
//! exception is the feature `mapping`, which maps the page into memory.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`units`] | SM share, quota, area, units, bytes, nanoseconds as types |
//! | [`share`] | the part of one GPU that a container may use |
//! | [`binding`] | a share bound to one container on one GPU |
//! | [`ledger`] | a node's book of bindings, the only place that decides what fits |
//! | [`accounting`] | what one process does about GPU time: when it may launch, what its work is charged |
//! | [`quota`] | the periodic server: who may run now, and when work is done |
//! | [`latency`] | latency of a model over SM share and batch |
//! | [`annotations`] | what a function asks for, read from its annotations |
//! | [`invalid`] | what a wrong value from outside is refused with |
//! | [`protocol`] | messages between containers, node agent and whoever controls it |
//! | [`page`] | layout of the file through which arbiter, watchdog and hook talk |
//! | [`names`] | names that others see |
//!
//! Start reading at [`binding`], then [`ledger`], then [`quota`].

pub mod accounting;
pub mod annotations;
pub mod binding;
pub mod invalid;
pub mod latency;
pub mod ledger;
pub mod names;
pub mod page;
pub mod protocol;
pub mod quota;
pub mod share;
pub mod units;
