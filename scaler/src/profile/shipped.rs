//! The models that are shipped: measured latencies, and descriptions.
//!
//! Sources and licences are at the head of each file.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;

use super::description::{self, Description};
use super::grid::{self, Measured};

/// Latencies of the 46 open models of HAS-GPU on a V100 whose launches are gated, as [`grid::read`] reads them.
pub const LATENCIES: &str = include_str!("../../profiles/has-gpu-latency.csv");
/// The convolutional networks of torchvision, as [`description::read`] reads them.
const OPERATORS: &str = include_str!("../../profiles/operators.csv");

/// What was measured.
pub fn measured() -> Result<Vec<Measured>, Invalid> {
    grid::read(LATENCIES)
}

/// Descriptions by name: of all models that were measured, and of others.
pub fn descriptions() -> Result<BTreeMap<String, Description>, Invalid> {
    description::read(OPERATORS)
}
