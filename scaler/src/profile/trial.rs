//! How well models are predicted that were not seen: cross-validation on measured models.
//!
//! Pure. Whatever is learnt or chosen for a model (prior, probes, widening) is so without it.

use std::collections::BTreeSet;

use gpu_share::invalid::Invalid;

use super::completion::Completion;
use super::design::{Terms, choose};
use super::grid::{Cell, Measured};
use super::kinship::real;
use super::prior::{Example, Prior};
use super::rehearsal::{Rehearsal, widening};

/// How well one model was predicted, at the cells that were not probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The model.
    pub model: String,
    /// Mean absolute percentage error.
    pub mape: f64,
    /// Part of the latencies that the 90 % intervals held.
    pub held: f64,
}

/// A way to predict a model that was not seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// Cells that are probed, first those worth most.
    pub probes: Vec<Cell>,
    /// Factor of the intervals.
    pub widening: f64,
}

/// Ways that are tried, each with its own probes.
#[derive(Clone, Debug)]
pub struct Trial {
    prior: Prior,
    /// As asked for, in order.
    pub ways: Vec<Way>,
}

impl Trial {
    /// Learns from `examples` and chooses probes for each number in `terms`; a number of probes that is smaller than
    /// another of the same terms is the first of these.
    pub fn prepare(examples: &[Example<'_>], terms: &[Terms]) -> Result<Self, Invalid> {
        let rehearsals = Rehearsal::all(examples)?;
        let shares: BTreeSet<_> = terms.iter().map(|terms| terms.sm_shares).collect();
        let longest = |sm_shares| terms.iter().filter(|t| t.sm_shares == sm_shares).map(|t| t.probes).max();
        let chosen: Vec<_> = shares
            .iter()
            .map(|&sm_shares| {
                let probes = longest(sm_shares).unwrap_or_default();
                (sm_shares, choose(&rehearsals, Terms { probes, sm_shares }))
            })
            .collect();
        let way = |terms: &Terms| {
            let all = chosen.iter().find(|(shares, _)| *shares == terms.sm_shares);
            let probes: Vec<_> =
                all.map(|(_, all)| all.iter().take(terms.probes).copied()).into_iter().flatten().collect();
            Way { widening: widening(&rehearsals, &probes), probes }
        };
        Ok(Self { prior: Prior::learn(examples)?, ways: terms.iter().map(way).collect() })
    }

    /// How well `example`, which was not among the examples, is predicted in each way.
    pub fn of(&self, example: Example<'_>) -> Vec<Outcome> {
        self.ways.iter().map(|way| self.outcome(example, way)).collect()
    }

    fn outcome(&self, example: Example<'_>, way: &Way) -> Outcome {
        let measured = example.measured;
        let surface = self.prior.predict(example.description, &measured.among(&way.probes));
        let unprobed: Vec<_> =
            measured.points.iter().filter(|point| !way.probes.contains(&point.cell)).collect();
        let errors: f64 = unprobed.iter().map(|&&point| surface.error_percent(point)).sum();
        let is_held = |ln_ms, cell| surface.widening_to(cell, ln_ms) <= way.widening;
        let held = unprobed.iter().filter(|point| is_held(point.ln_ms, point.cell)).count();
        let count = real(unprobed.len().max(1));
        Outcome { model: measured.model.clone(), mape: errors / count, held: real(held) / count }
    }
}

/// Mean absolute percentage error at cells that were hidden, of models that were else measured: by model.
///
/// `hidden` says of an example and a cell whether it is hidden.
pub fn hidden_cells(
    examples: &[Example<'_>],
    hidden: impl Fn(usize, Cell) -> bool,
) -> Result<Vec<(String, f64)>, Invalid> {
    let known: Vec<_> = examples
        .iter()
        .enumerate()
        .map(|(index, example)| {
            let points = example.measured.points.iter().filter(|point| !hidden(index, point.cell));
            Measured { model: example.measured.model.clone(), points: points.copied().collect() }
        })
        .collect();
    let left: Vec<_> = examples
        .iter()
        .zip(&known)
        .map(|(example, measured)| Example { measured, description: example.description })
        .collect();
    let prior = Prior::learn(&left)?;
    let completion = Completion::learn(&prior, &left)?;
    let error = |(index, example): (usize, &Example<'_>)| {
        let points: Vec<_> =
            example.measured.points.iter().filter(|point| hidden(index, point.cell)).copied().collect();
        let cells: Vec<_> = points.iter().map(|point| point.cell).collect();
        let found = completion.predict(&prior, index, &known[index], &cells);
        let errors =
            found.iter().zip(&points).map(|(ln_ms, point)| ((ln_ms - point.ln_ms).exp() - 1.0).abs());
        (example.measured.model.clone(), 100.0 * errors.sum::<f64>() / real(points.len().max(1)))
    };
    Ok(examples.iter().enumerate().map(error).collect())
}
