//! What names mean within a body: registers, variables and labels, and which registers the hardware sets.

use std::collections::HashMap;

use super::instruction::{Operand, Special};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Register(u32),
    /// A place in the local memory of the thread.
    Local(u64),
    /// A parameter of the kernel.
    Parameter(u64),
    /// A place in the memory of the block.
    Shared(u64),
    /// Shared memory whose size the launch gives.
    Dynamic,
}

/// Names in braces, the innermost last.
#[derive(Debug)]
pub(super) struct Scopes<'a> {
    levels: Vec<HashMap<&'a str, Name>>,
}

impl<'a> Scopes<'a> {
    pub(super) fn new() -> Self {
        Self { levels: vec![HashMap::new()] }
    }

    pub(super) fn open(&mut self) {
        self.levels.push(HashMap::new());
    }

    /// Says whether there was one to close beside the outermost.
    pub(super) fn close(&mut self) -> bool {
        self.levels.len() > 1 && self.levels.pop().is_some()
    }

    pub(super) fn declare(&mut self, name: &'a str, meaning: Name) {
        if let Some(level) = self.levels.last_mut() {
            level.insert(name, meaning);
        }
    }

    /// Declares a name of the whole body.
    pub(super) fn declare_outermost(&mut self, name: &'a str, meaning: Name) {
        self.levels[0].insert(name, meaning);
    }

    pub(super) fn find(&self, name: &str) -> Option<Name> {
        self.levels.iter().rev().find_map(|level| level.get(name).copied())
    }
}

/// The value of a register that the hardware sets.
pub(super) fn special(name: &str) -> Option<Operand> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        Some(_) => return None,
        None => (name, 3),
    };
    let special = match (base, axis) {
        ("%tid", 0..=2) => Special::Thread(axis),
        ("%ntid", 0..=2) => Special::BlockSize(axis),
        ("%ctaid" | "%clusterid", 0..=2) => Special::Block(axis),
        ("%nctaid" | "%nclusterid", 0..=2) => Special::GridSize(axis),
        ("%laneid", 3) => Special::Lane,
        ("%warpid", 3) => Special::Warp,
        ("%nwarpid", 3) => Special::Warps,
        ("%lanemask_eq", 3) => Special::MaskEqual,
        ("%lanemask_lt", 3) => Special::MaskLess,
        ("%lanemask_le", 3) => Special::MaskLessEqual,
        ("%lanemask_gt", 3) => Special::MaskGreater,
        ("%lanemask_ge", 3) => Special::MaskGreaterEqual,
        ("%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo", 3) => Special::Clock,
        ("%dynamic_smem_size", 3) => Special::DynamicShared,
        ("%total_smem_size", 3) => Special::TotalShared,
        // Blocks form no clusters, and all run on the same multiprocessor.
        ("%cluster_ctaid", 0..=2)
        | (
            "%cluster_ctarank"
            | "%is_explicit_cluster"
            | "%smid"
            | "%gridid"
            | "%clock_hi"
            | "%globaltimer_hi",
            3,
        ) => return Some(Operand::Bits(0)),
        ("%cluster_nctaid", 0..=2) | ("%cluster_nctarank" | "%nsmid", 3) => return Some(Operand::Bits(1)),
        ("WARP_SZ", 3) => return Some(Operand::Bits(32)),
        _ => return None,
    };
    Some(Operand::Special(special))
}
