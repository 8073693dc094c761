//! Where to measure: the cells that, probed on a model not seen before, leave the least error.
//!
//! Pure. Chosen greedily on rehearsals: measured models that a prior has not seen. What is chosen from is few, for luck
//! at one cell of a few dozen models says little of the next model: cells that show the gate (batch 1, where launches
//! bound) and cells that show GPU time (large batches at the whole quota), and some that show both.

use std::collections::BTreeSet;

use super::grid::{Cell, QUOTAS};
use super::kinship::real;
use super::rehearsal::Rehearsal;

/// Cells that are chosen from, as batches, SM shares and quotas: the gate, GPU time, and where one becomes the other.
const GATES: ([u32; 1], [u32; 4], [u32; 7]) = ([1], [20, 40, 60, 100], [10, 20, 30, 40, 50, 70, 100]);
const GPU_TIMES: ([u32; 2], [u32; 6], [u32; 1]) = ([4, 8], [5, 10, 20, 40, 60, 100], [100]);
const BETWEEN: ([u32; 1], [u32; 3], [u32; 3]) = ([8], [40, 60, 100], [20, 40, 60]);
/// Cells at which the error of a choice is taken: enough to tell choices apart.
const JUDGED: ([u32; 4], [u32; 6], [u32; 6]) =
    ([1, 2, 4, 8], [5, 15, 30, 50, 70, 90], [10, 30, 50, 70, 90, 100]);
/// A model's error counts at most so much: some can't be predicted, wherever they are probed.
const MOST: f64 = 1.0;
/// Mean of the absolute value of a normal variable of deviation 1.
const MEAN_ABSOLUTE: f64 = 0.798;

/// What may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Number of probes.
    pub probes: usize,
    /// Most SM shares that they may be at: each one costs a restart where MPS sets it.
    pub sm_shares: usize,
}

/// The cells to probe, in the order of their worth.
pub fn choose(rehearsals: &[Rehearsal<'_>], terms: Terms) -> Vec<Cell> {
    let candidates: BTreeSet<_> =
        [cells(GATES), cells(GPU_TIMES), cells(BETWEEN)].concat().into_iter().collect();
    let judged = cells(JUDGED);
    let mut chosen: Vec<Cell> = Vec::new();
    while chosen.len() < terms.probes {
        let used: BTreeSet<_> = chosen.iter().map(|cell| cell.sm()).collect();
        let allowed = |cell: &&Cell| {
            !chosen.contains(cell) && (used.len() < terms.sm_shares || used.contains(&cell.sm()))
        };
        let best = candidates
            .iter()
            .filter(allowed)
            .map(|&cell| (error(rehearsals, &chosen, cell, &judged), cell))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, cell)) = best else { return chosen };
        chosen.push(cell);
    }
    chosen
}

fn cells<const B: usize, const S: usize, const Q: usize>(axes: ([u32; B], [u32; S], [u32; Q])) -> Vec<Cell> {
    let (batches, sms, quotas) = axes;
    let is_on = |cell: &Cell| {
        batches.contains(&cell.batch()) && sms.contains(&cell.sm()) && quotas.contains(&cell.quota())
    };
    debug_assert!(quotas.iter().all(|quota| QUOTAS.contains(quota)));
    Cell::all().filter(is_on).collect()
}

/// Mean error over the rehearsals with one cell more: half what it was, half what it was to be expected to be. The
/// second has no luck in it, the first no assumptions.
fn error(rehearsals: &[Rehearsal<'_>], chosen: &[Cell], cell: Cell, judged: &[Cell]) -> f64 {
    let with: Vec<_> = chosen.iter().copied().chain([cell]).collect();
    let error = |rehearsal: &Rehearsal<'_>| {
        let measured = rehearsal.measured();
        measured.at(cell)?;
        let probes = measured.among(&with);
        let update = rehearsal.update(&probes);
        let misses: Vec<_> = judged
            .iter()
            .filter_map(|&cell| measured.at(cell))
            .map(|point| {
                let (ln_ms, deviation) = update.at(point.cell);
                0.5 * (((ln_ms - point.ln_ms).exp() - 1.0).abs() + MEAN_ABSOLUTE * deviation)
            })
            .collect();
        Some((misses.iter().sum::<f64>() / real(misses.len().max(1))).min(MOST))
    };
    let errors: Vec<_> = rehearsals.iter().filter_map(error).collect();
    errors.iter().sum::<f64>() / real(errors.len().max(1))
}
