//! Models that were measured, each predicted by a prior that has not seen it: what probes and intervals are chosen by.
//!
//! Pure.

use std::collections::BTreeSet;

use gpu_share::invalid::Invalid;

use super::grid::{Cell, Measured, Point};
use super::posterior::{Surface, Update};
use super::prior::{Example, Prior};

/// Parts that the examples are cut into; each one is predicted from the others.
pub const PARTS: usize = 4;
/// Part of latencies that an interval is to hold.
const HELD: f64 = 0.9;

/// An example and what others let expect of it.
#[derive(Clone, Debug)]
pub struct Rehearsal<'a> {
    prior: std::sync::Arc<Prior>,
    expected: Vec<f64>,
    measured: &'a Measured,
}

impl<'a> Rehearsal<'a> {
    /// Cuts `examples` into [`PARTS`] parts, in turn, and learns a prior without each.
    pub fn all(examples: &[Example<'a>]) -> Result<Vec<Self>, Invalid> {
        Self::cut(examples, |index| index % PARTS)
    }

    /// The same with all models of a family in one part: for models that no relative was measured of.
    pub fn of_families(examples: &[Example<'a>]) -> Result<Vec<Self>, Invalid> {
        let family = |index: usize| examples[index].description.family.as_str();
        let families: BTreeSet<_> = (0..examples.len()).map(family).collect();
        let place = |index| families.iter().position(|other| *other == family(index)).unwrap_or_default();
        Self::cut(examples, |index| place(index) % PARTS)
    }

    fn cut(examples: &[Example<'a>], part_of: impl Fn(usize) -> usize) -> Result<Vec<Self>, Invalid> {
        let mut all = Vec::new();
        for part in 0..PARTS {
            let is_out = |index: usize| part_of(index) == part;
            let others: Vec<_> = pick(examples, |index| !is_out(index));
            let prior = std::sync::Arc::new(Prior::learn(&others)?);
            for example in pick(examples, is_out) {
                let expected = prior.expect(example.description);
                all.push(Self { prior: prior.clone(), expected, measured: example.measured });
            }
        }
        Ok(all)
    }

    /// What was measured.
    pub fn measured(&self) -> &'a Measured {
        self.measured
    }

    pub(super) fn update<'b>(&'b self, probes: &'b [Point]) -> Update<'b> {
        Update::new(&self.prior.spread, &self.expected, probes)
    }

    /// The prediction after probes at those of `cells` that were measured.
    pub fn predict(&self, cells: &[Cell]) -> Surface {
        self.update(&self.measured.among(cells)).surface()
    }
}

/// The factor by which deviations must be widened for intervals to hold what they say, after probes at `cells`.
///
/// Split conformal prediction (Vovk et al.; Lei et al. 2018): the quantile of what the rehearsals needed, which holds
/// for new models as far as they are drawn like these.
pub fn widening(rehearsals: &[Rehearsal<'_>], cells: &[Cell]) -> f64 {
    let mut needed: Vec<f64> = rehearsals
        .iter()
        .flat_map(|rehearsal| {
            let surface = rehearsal.predict(cells);
            let unprobed = rehearsal.measured.points.iter().filter(|point| !cells.contains(&point.cell));
            unprobed.map(|point| surface.widening_to(point.cell, point.ln_ms)).collect::<Vec<_>>()
        })
        .collect();
    needed.sort_by(f64::total_cmp);
    needed.get(rank(needed.len())).copied().unwrap_or(1.0)
}

/// Place of the quantile among `count` sorted values, one of which may still come.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Counts of cells.
fn rank(count: usize) -> usize {
    (((count + 1) as f64 * HELD).ceil() as usize).clamp(1, count.max(1)) - 1
}

fn pick<'a>(examples: &[Example<'a>], is_in: impl Fn(usize) -> bool) -> Vec<Example<'a>> {
    examples.iter().enumerate().filter(|(index, _)| is_in(*index)).map(|(_, example)| *example).collect()
}
