//! What a description lets expect of a model, by what was measured of models like it.
//!
//! Pure. Kriging over descriptions: GPU time is the roofline's plus what related models lie beside it; the launch gate
//! follows the number of launches. Models that no relative explains (a slower host, say) count less: their weights are
//! those of Student's t.

use super::description::Description;
use super::latent::{GATE, GPU, JOINT};
use super::matrix::{Cholesky, Matrix, dot};
use super::roofline::{Evidence, Roofline};

/// Variance of a model about what its relatives say, as a part of the variance between models.
const GPU_NUGGET: f64 = 0.3;
const GATE_NUGGET: f64 = 0.1;
/// Degrees of freedom of the spread of gates between models.
const FREEDOM: f64 = 6.0;
/// Rounds of reweighting.
const ROUNDS: usize = 6;

/// Expectations by description.
#[derive(Clone, Debug)]
pub(super) struct Kinship {
    models: Vec<Description>,
    roofline: Roofline,
    /// By model: how it pulls those like it, for each GPU time.
    gpu: Matrix,
    /// The gate of a model with the mean number of launches.
    middle: [f64; GATE],
    launches: f64,
    /// By model: how it pulls those like it, for each quota.
    gate: Matrix,
    /// For each model, what the others let expect of it.
    pub(super) left_out: Vec<Vec<f64>>,
}

impl Kinship {
    /// Learns from models whose GPU times and gates (logarithms, in the order of [`super::latent`]) are known.
    pub(super) fn learn(models: &[&Description], known: &[Vec<f64>]) -> Self {
        let evidence: Vec<_> =
            models.iter().zip(known).map(|(model, known)| Evidence::of(model, &known[..GPU])).collect();
        let all = Evidence::sum(evidence.iter().map(|part| (1.0, part)));
        // What the others say of a model: the costs must not have seen it.
        let bases: Vec<_> = models
            .iter()
            .zip(&evidence)
            .map(|(model, own)| Evidence::sum([(1.0, &all), (-1.0, own)].into_iter()).solve().ln_ms(model))
            .collect();
        let launches = models.iter().map(|model| model.size()[2]).sum::<f64>() / real(models.len());
        let beside = Matrix::from_fn(models.len(), GPU, |m, g| known[m][g] - bases[m][g]);
        let gates = Matrix::from_fn(models.len(), GATE, |m, q| known[m][GPU + q]);
        let gpu = Krige::new(models, &beside, GPU_NUGGET, None, like_gpu);
        let gate = Krige::new(models, &gates, GATE_NUGGET, Some(FREEDOM), |a, b| like_gate(a, b, launches));
        let left_out = (0..models.len())
            .map(|m| {
                let gpu = (0..GPU).map(|g| known[m][g] - gpu.misses[(m, g)]);
                gpu.chain((0..GATE).map(|q| known[m][GPU + q] - gate.misses[(m, q)])).collect()
            })
            .collect();
        Self {
            models: models.iter().map(|&model| model.clone()).collect(),
            roofline: all.solve(),
            gpu: gpu.pulls,
            middle: core::array::from_fn(|q| gate.middle[q]),
            launches,
            gate: gate.pulls,
            left_out,
        }
    }

    /// What is to be expected of `model`: GPU times and gates, logarithms.
    pub(super) fn expect(&self, model: &Description) -> Vec<f64> {
        let mut expected = self.roofline.ln_ms(model);
        expected.extend(self.middle);
        debug_assert_eq!(expected.len(), JOINT);
        for (index, other) in self.models.iter().enumerate() {
            let (gpu, gate) = (like_gpu(model, other), like_gate(model, other, self.launches));
            let pulls = self.gpu.row(index).iter().map(|pull| gpu * pull);
            let pulls = pulls.chain(self.gate.row(index).iter().map(|pull| gate * pull));
            expected.iter_mut().zip(pulls).for_each(|(value, pull)| *value += pull);
        }
        expected
    }
}

/// One kriging: several values for each model, with one covariance between models.
struct Krige {
    middle: Vec<f64>,
    pulls: Matrix,
    /// By how much each model misses what the others let expect.
    misses: Matrix,
}

impl Krige {
    /// With `freedom`, models that miss by more than the others count less, and the middle is that of the rest.
    fn new(
        models: &[&Description],
        values: &Matrix,
        nugget: f64,
        freedom: Option<f64>,
        like: impl Fn(&Description, &Description) -> f64,
    ) -> Self {
        let (count, columns) = (models.len(), values.row(0).len());
        let covariance = Matrix::from_fn(count, count, |a, b| like(models[a], models[b]));
        let mut weights = vec![1.0; count];
        let mut round = 0;
        loop {
            let middle = middle(values, freedom.map(|_| weights.as_slice()));
            let mut with_nugget = covariance.clone();
            for (m, weight) in weights.iter().enumerate() {
                with_nugget[(m, m)] += nugget / weight;
            }
            let inverse = Cholesky::new(with_nugget).inverse();
            let column = |c: usize| (0..count).map(|m| values[(m, c)] - middle[c]).collect::<Vec<_>>();
            let solved: Vec<_> = (0..columns).map(|c| inverse.times(&column(c))).collect();
            let pulls = Matrix::from_fn(count, columns, |m, c| solved[c][m]);
            // Leaving one out costs nothing more (Rasmussen and Williams, Gaussian Processes, 5.12).
            let misses = Matrix::from_fn(count, columns, |m, c| pulls[(m, c)] / inverse[(m, m)]);
            round += 1;
            let Some(freedom) = freedom.filter(|_| round < ROUNDS) else {
                return Self { middle, pulls, misses };
            };
            let squares: Vec<_> =
                (0..count).map(|m| dot(misses.row(m), misses.row(m)) / real(columns)).collect();
            let typical = 1.5 * median(&squares);
            weights = squares.iter().map(|square| (freedom + 1.0) / (freedom + square / typical)).collect();
        }
    }
}

/// The weighted mean of each column; zero without weights.
fn middle(values: &Matrix, weights: Option<&[f64]>) -> Vec<f64> {
    let Some(weights) = weights else { return vec![0.0; values.row(0).len()] };
    let total: f64 = weights.iter().sum();
    let sum = |c| weights.iter().enumerate().map(|(m, weight)| weight * values[(m, c)]).sum::<f64>();
    (0..values.row(0).len()).map(|c| sum(c) / total).collect()
}

/// The middle one of `values`, at least a little above zero.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default().max(1e-9)
}

/// Covariance of what two models' GPU times lie beside the roofline.
fn like_gpu(a: &Description, b: &Description) -> f64 {
    let distance = squared(&a.size(), &b.size()) + squared(&a.mix(), &b.mix());
    0.1 * (-0.5 * distance).exp() + 0.3 * indicator(a.family == b.family)
}

/// Covariance of two models' gates: along the number of launches, and by descent.
fn like_gate(a: &Description, b: &Description, middle: f64) -> f64 {
    let (x, y) = (a.size()[2], b.size()[2]);
    let near = 0.1 * (-0.5 * (x - y) * (x - y)).exp();
    let descent = 0.2 * indicator(a.family == b.family) + 0.6 * indicator(a.kin() == b.kin());
    1.0 + 0.8 * (x - middle) * (y - middle) + near + descent
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn indicator(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// A count as a number that can be divided.
#[allow(clippy::cast_precision_loss)] // Counts of models and columns.
pub(super) fn real(count: usize) -> f64 {
    count as f64
}
