//! GPU time of a model as the sum of what its operators cost: a first guess from a description alone.
//!
//! Pure. One set of costs holds for all models, batches and SM shares: so much for a multiply-accumulate on one SM
//! share, for an element moved, for a launch. Costs are never negative.

use super::description::{Description, WORKS};
use super::grid::{BATCHES, SMS};
use super::matrix::{Matrix, dot};

/// Number of costs: work on its SM share, traffic and weights on theirs or on the memory that all SMs share, launches.
const COSTS: usize = WORKS + 6;
/// Passes over the costs; the last ones change the sixth digit.
const PASSES: usize = 150;
/// Part of a cost's own weight that pulls it to zero, so that costs which no model tells apart stay finite.
const RIDGE: f64 = 1e-3;
/// Least GPU time in milliseconds, for a model of which every cost is zero.
const LEAST: f64 = 1e-6;

/// What operators cost.
#[derive(Clone, Debug)]
pub(super) struct Roofline([f64; COSTS]);

/// What the models that costs are learnt from say together: the normal equations of relative errors.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    products: Matrix,
    sums: [f64; COSTS],
}

impl Evidence {
    /// What one model says whose GPU time at every batch and SM share has the logarithms `ln_ms`.
    pub(super) fn of(model: &Description, ln_ms: &[f64]) -> Self {
        let rows: Vec<_> =
            places().zip(ln_ms).map(|((b, s), ln)| counts(model, b, s).map(|c| c / ln.exp())).collect();
        let products = Matrix::from_fn(COSTS, COSTS, |i, j| rows.iter().map(|row| row[i] * row[j]).sum());
        let sums = core::array::from_fn(|i| rows.iter().map(|row| row[i]).sum());
        Self { products, sums }
    }

    /// The sum of what models say, each times its factor.
    pub(super) fn sum<'a>(parts: impl Iterator<Item = (f64, &'a Self)>) -> Self {
        let mut sum = Self { products: Matrix::zero(COSTS, COSTS), sums: [0.0; COSTS] };
        for (factor, part) in parts {
            for i in 0..COSTS {
                sum.sums[i] += factor * part.sums[i];
                for j in 0..COSTS {
                    sum.products[(i, j)] += factor * part.products[(i, j)];
                }
            }
        }
        sum
    }

    /// The costs that make the sum of squared relative errors least: coordinate descent, exact in each coordinate.
    pub(super) fn solve(&self) -> Roofline {
        let mut costs = [0.0; COSTS];
        for _ in 0..PASSES {
            for i in 0..COSTS {
                let weight = self.products[(i, i)].max(1e-12);
                let gradient = self.sums[i] - dot(self.products.row(i), &costs) - RIDGE * weight * costs[i];
                costs[i] = (costs[i] + gradient / (weight * (1.0 + RIDGE))).max(0.0);
            }
        }
        Roofline(costs)
    }
}

impl Roofline {
    /// Logarithm of the GPU time in milliseconds at every batch and SM share, SM share fastest.
    pub(super) fn ln_ms(&self, model: &Description) -> Vec<f64> {
        places().map(|(batch, sm)| dot(&counts(model, batch, sm), &self.0).max(LEAST).ln()).collect()
    }
}

fn places() -> impl Iterator<Item = (u32, u32)> {
    BATCHES.into_iter().flat_map(|batch| SMS.into_iter().map(move |sm| (batch, sm)))
}

/// How often each cost is to be paid. What runs on a share of the SMs takes the longer the smaller the share is.
fn counts(model: &Description, batch: u32, sm: u32) -> [f64; COSTS] {
    let (batch, stretch) = (f64::from(batch), 100.0 / f64::from(sm));
    let rest = [
        batch * stretch * model.traffic,
        batch * model.traffic,
        model.weights,
        stretch * model.weights,
        model.operators / 100.0,
        stretch * model.operators / 1000.0,
    ];
    core::array::from_fn(|i| model.work.get(i).map_or_else(|| rest[i - WORKS], |work| batch * stretch * work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(conv: f64, linear: f64, operators: f64) -> Description {
        Description {
            family: "net".into(),
            work: [conv, 0.0, 0.0, 0.0, linear],
            traffic: 10.0,
            weights: 20.0,
            operators,
        }
    }

    #[test]
    fn costs_that_made_the_times_are_found_again() {
        let mut costs = [0.0; COSTS];
        (costs[0], costs[4], costs[WORKS + 4]) = (0.2, 0.1, 3.0);
        let truth = Roofline(costs);
        let models =
            [model(1.0, 0.1, 50.0), model(4.0, 2.0, 300.0), model(10.0, 0.5, 120.0), model(0.3, 6.0, 20.0)];
        let evidence: Vec<_> = models.iter().map(|model| Evidence::of(model, &truth.ln_ms(model))).collect();
        let found = Evidence::sum(evidence.iter().map(|part| (1.0, part))).solve();
        let unseen = model(2.0, 2.0, 80.0);
        for (a, b) in truth.ln_ms(&unseen).iter().zip(found.ln_ms(&unseen)) {
            assert!((a - b).abs() < 0.05, "{a} {b}");
        }
        assert!(found.0.iter().all(|&cost| cost >= 0.0));
    }
}
