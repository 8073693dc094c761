//! The commands behind `gpufn`.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`up`] | functions on this machine: provider and gateway API, replicas as processes, the control loop |
//! | [`view`] | what `up` tells others about itself, as JSON |
//! | [`top`] | the live table |
//! | [`explain`] | why a function in a cluster has what it has |
//! | [`load`] | open-loop load from a trace |
//! | [`demo`] | one GPU for four functions, against a GPU for each; the report |
//! | [`profile`] | how long a deployed function takes by SM share and quota; how well unseen models are predicted |
//! | [`sim`] | a simulated cluster under the policies: run, compare, sweep; its figures |
//! | [`plan`] | what a load costs on other platforms, from a price file; the cost model against a study's bills |
//! | [`audit`] | which share programs get, against what they were set: the matrix, measured |
//! | [`stack`] | reads a `stack.yaml` as faas-cli does |
//! | [`figures`] | measured figures with their bars, as every measuring command writes them |
//!
//! Start reading at [`up`].

pub mod audit;
pub mod demo;
pub mod explain;
pub mod figures;
pub mod load;
pub mod plan;
pub mod profile;
pub mod sim;
pub mod stack;
pub mod top;
pub mod up;
pub mod view;
