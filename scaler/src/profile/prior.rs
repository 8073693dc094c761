//! What many measured models let expect of one that was not measured, and how sure that is.
//!
//! Pure. Learnt by expectation maximisation: the most likely parts of each model given the spread between models, then
//! the spread given the parts. A model is always held against what the *other* models let expect of it.

use gpu_share::invalid::Invalid;

use super::description::Description;
use super::grid::{Measured, SMS};
use super::kinship::{Kinship, real};
use super::latent::{GATE, GPU, JOINT, LAUNCHES, Parts, Precision, Spread, Uncertainty};
use super::matrix::Matrix;

/// Rounds of expectation maximisation, and steps of each search in the first and the later ones.
const ROUNDS: usize = 5;
const FIRST_STEPS: usize = 8;
const STEPS: usize = 3;
/// Models that the assumed spread counts as, against those measured.
const ASSUMED: f64 = 25.0;
/// Part of the assumed spread that is left once descriptions explain the rest.
const UNEXPLAINED: f64 = 0.3;
/// Part kept of what GPU times and gates seem to have in common: between few models most of it is chance.
const COMMON: f64 = 0.5;
/// Standard deviations assumed of the host's state and of the launches of each batch above 1.
const HOST_SPREAD: f64 = 0.05;
const LAUNCH_SPREAD: [f64; LAUNCHES] = [0.042, 0.058, 0.063];
/// Models that these count as.
const ASSUMED_BESIDE: f64 = 2.0;
/// Fewest models that anything can be learnt from.
const FEWEST: usize = 8;

/// A model that was measured, and its description.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// What was measured.
    pub measured: &'a Measured,
    /// What is known without measuring.
    pub description: &'a Description,
}

/// What is expected of models.
#[derive(Clone, Debug)]
pub struct Prior {
    kinship: Kinship,
    pub(super) spread: Spread,
}

impl Prior {
    /// Learns from models that were measured at most of the grid; refused if there are too few of them.
    pub fn learn(examples: &[Example<'_>]) -> Result<Self, Invalid> {
        if examples.len() < FEWEST {
            return Err(Invalid::new("models", examples.len(), format!("{FEWEST} measured models or more")));
        }
        let descriptions: Vec<_> = examples.iter().map(|example| example.description).collect();
        let mut spread = assumed();
        let mut expected = vec![average(examples); examples.len()];
        let mut parts: Vec<_> = examples
            .iter()
            .zip(&expected)
            .map(|(example, expected)| Parts::start(expected, example.measured))
            .collect();
        let mut round = 0;
        loop {
            let precision = Precision::of(&spread);
            let steps = if round == 0 { FIRST_STEPS } else { STEPS };
            let uncertain: Vec<_> = examples
                .iter()
                .zip(&mut parts)
                .zip(&expected)
                .map(|((example, parts), expected)| {
                    parts.settle(expected, &example.measured.points, &precision, steps).uncertainty()
                })
                .collect();
            let known: Vec<_> = parts.iter().map(|parts| parts.joint().to_vec()).collect();
            let kinship = Kinship::learn(&descriptions, &known);
            spread = estimate(&parts, &kinship.left_out, &uncertain);
            round += 1;
            if round == ROUNDS {
                return Ok(Self { kinship, spread });
            }
            expected.clone_from(&kinship.left_out);
        }
    }

    /// What is expected of a model by its description: logarithms of GPU times and gates.
    pub(super) fn expect(&self, model: &Description) -> Vec<f64> {
        self.kinship.expect(model)
    }

    /// What the other examples let expect of the one at `index`.
    pub(super) fn expect_left_out(&self, index: usize) -> &[f64] {
        &self.kinship.left_out[index]
    }
}

/// Mean over the models of what was measured at the largest quota, and of the shortest at each quota.
fn average(examples: &[Example<'_>]) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; JOINT], vec![0.0; JOINT]);
    let unknown = [f64::NAN; JOINT];
    for example in examples {
        let start = Parts::start(&unknown, example.measured);
        for (index, &value) in start.joint().iter().enumerate().filter(|(_, value)| !value.is_nan()) {
            sums[index] += value;
            counts[index] += 1.0;
        }
    }
    let all = sums.iter().sum::<f64>() / counts.iter().sum::<f64>().max(1.0);
    sums.iter().zip(&counts).map(|(sum, &count)| if count > 0.0 { sum / count } else { all }).collect()
}

/// The spread that is assumed before anything is known: models differ by a factor, batches and SM shares that are near
/// are alike, and so are near quotas.
fn assumed() -> Spread {
    let host = Matrix::from_fn(GATE, GATE, |a, b| {
        HOST_SPREAD.powi(2) * (0.3 * f64::from(u8::from(a == b)) + 0.7 * (-real(a.abs_diff(b)) / 3.0).exp())
    });
    let launches = Matrix::from_fn(LAUNCHES, LAUNCHES, |a, b| {
        LAUNCH_SPREAD[a] * LAUNCH_SPREAD[b] * if a == b { 1.0 } else { 0.4 }
    });
    Spread::new(assumed_joint(), host, launches)
}

fn assumed_joint() -> Matrix {
    let ln_sm = |place: usize| (f64::from(SMS[place]) / 100.0).ln();
    let mut joint = Matrix::from_fn(JOINT, JOINT, |a, b| {
        let own = if a < GPU && b < GPU {
            let (batch_a, batch_b) = (a / SMS.len(), b / SMS.len());
            let apart = ln_sm(a % SMS.len()) - ln_sm(b % SMS.len());
            let batches = (-real(batch_a.abs_diff(batch_b)) * core::f64::consts::LN_2 / 3.0).exp();
            let rough = if batch_a == batch_b { 0.01 * (-apart.abs() / 0.5).exp() } else { 0.0 };
            0.25 * batches * (-0.5 * apart * apart).exp() + rough
        } else if a >= GPU && b >= GPU {
            0.1 * (-real(a.abs_diff(b)) / 4.0).exp()
        } else {
            0.0
        };
        own + 0.2
    });
    joint.add_to_diagonal(1e-4);
    joint
}

/// The spread between models, given their parts and how sure these are.
fn estimate(parts: &[Parts], expected: &[Vec<f64>], uncertain: &[Uncertainty]) -> Spread {
    let models = real(parts.len());
    let assumed = assumed();
    let sum = |value: &dyn Fn(usize) -> f64| (0..parts.len()).map(value).sum::<f64>();
    let beside = |m: usize, a: usize| parts[m].joint()[a] - expected[m][a];
    let mut joint = Matrix::from_fn(JOINT, JOINT, |a, b| {
        let common = if (a < GPU) == (b < GPU) { 1.0 } else { COMMON };
        let seen = sum(&|m| beside(m, a) * beside(m, b) + uncertain[m].joint[(a, b)]);
        (common * seen + ASSUMED * UNEXPLAINED * assumed.joint[(a, b)]) / (models + ASSUMED)
    });
    joint.add_to_diagonal(1e-4);
    let host = Matrix::from_fn(GATE, GATE, |a, b| {
        let seen = sum(&|m| {
            let products = (0..SMS.len()).map(|sm| parts[m].host(sm, a) * parts[m].host(sm, b));
            products.sum::<f64>() / real(SMS.len()) + uncertain[m].host[(a, b)]
        });
        let own = if a == b { ASSUMED_BESIDE * HOST_SPREAD.powi(2) } else { 0.0 };
        (seen + own) / (models + ASSUMED_BESIDE)
    });
    let launches = Matrix::from_fn(LAUNCHES, LAUNCHES, |a, b| {
        let seen = sum(&|m| parts[m].launches(a) * parts[m].launches(b) + uncertain[m].launches[(a, b)]);
        let own = if a == b { ASSUMED_BESIDE * LAUNCH_SPREAD[a].powi(2) } else { 0.0 };
        (seen + own) / (models + ASSUMED_BESIDE)
    });
    Spread::new(joint, host, launches)
}
