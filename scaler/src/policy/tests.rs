//! The policies on any view, and on a small simulated cluster.

mod cluster;
mod compared;
mod properties;
mod scenarios;
