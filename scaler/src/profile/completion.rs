//! The cells that a model lacks, where most of its grid was measured.
//!
//! Pure. What lies beside the parts of the model (GPU time, gate, host) at a cell is like what lies beside them at the
//! cells around it. How much like is learnt from the cells that were measured: some are hidden in turn, and the trees
//! are fitted to what the others say of them.

use gpu_share::invalid::Invalid;

use super::grid::{BATCHES, CELLS, Cell, Measured, Point, QUOTAS, SMS};
use super::kinship::real;
use super::latent::{Parts, Precision, SHARPNESS, first_part, smax};
use super::prior::{Example, Prior};
use super::trees::{Row, Trees};

/// Steps of the search for a model's parts.
const STEPS: usize = 8;
/// Each of so many times, one cell in [`HIDDEN`] is hidden.
const TIMES: usize = 5;
const HIDDEN: usize = 10;
/// Number of features of a cell.
const FEATURES: usize = 27;

/// Predicts the cells that models lack.
#[derive(Debug)]
pub struct Completion {
    precision: Precision,
    trees: Trees<FEATURES>,
}

impl Completion {
    /// Learns from models of which each was measured at most cells.
    pub fn learn(prior: &Prior, examples: &[Example<'_>]) -> Result<Self, Invalid> {
        let precision = Precision::of(&prior.spread);
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        for (index, example) in examples.iter().enumerate() {
            let expected = prior.expect_left_out(index);
            for time in 0..TIMES {
                let hidden =
                    |point: &Point| scattered(point.cell.index() + CELLS * (time + TIMES * index)) == 0;
                let points: Vec<_> = example.measured.points.iter().filter(|p| !hidden(p)).copied().collect();
                let known = Measured { model: example.measured.model.clone(), points };
                let around = Around::of(expected, &known, &precision);
                for point in example.measured.points.iter().filter(|point| hidden(point)) {
                    rows.push(around.features(point.cell));
                    wanted.push(point.ln_ms - around.ln_ms(point.cell));
                }
            }
        }
        if rows.is_empty() {
            return Err(Invalid::new("points", 0, "models that were measured at most cells"));
        }
        Ok(Self { precision, trees: Trees::fit(&rows, &wanted) })
    }

    /// Logarithms of the latencies in milliseconds at `cells` of the example at `index`, by what was measured of it.
    pub fn predict(&self, prior: &Prior, index: usize, known: &Measured, cells: &[Cell]) -> Vec<f64> {
        let around = Around::of(prior.expect_left_out(index), known, &self.precision);
        cells.iter().map(|&cell| around.ln_ms(cell) + self.trees.predict(&around.features(cell))).collect()
    }
}

/// A number from 0 to [`HIDDEN`] - 1 that is as good as drawn (the finaliser of `SplitMix64`, Steele et al. 2014).
fn scattered(number: usize) -> usize {
    let mut x = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((x ^ (x >> 31)) % HIDDEN as u64).unwrap_or_default()
}

/// What is known of a model around each of its cells.
struct Around {
    parts: Parts,
    /// By cell: how far a measurement lies beside the parts, and its logarithm; NaN where there is none.
    beside: Vec<f64>,
    ln_ms: Vec<f64>,
}

impl Around {
    fn of(expected: &[f64], known: &Measured, precision: &Precision) -> Self {
        let mut parts = Parts::start(expected, known);
        parts.settle(expected, &known.points, precision, STEPS);
        let mut around = Self { parts, beside: vec![f64::NAN; CELLS], ln_ms: vec![f64::NAN; CELLS] };
        for point in &known.points {
            around.beside[point.cell.index()] = point.ln_ms - around.ln_ms(point.cell);
            around.ln_ms[point.cell.index()] = point.ln_ms;
        }
        around
    }

    fn ln_ms(&self, cell: Cell) -> f64 {
        let (gpu, gate) = self.parts.sides(cell);
        smax(gpu, gate, SHARPNESS)
    }

    fn features(&self, cell: Cell) -> Row<FEATURES> {
        let (b, s, q) = (signed(cell.batch_place()), signed(cell.sm_place()), signed(cell.quota_place()));
        let (gpu, gate) = self.parts.sides(cell);
        let fitted = smax(gpu, gate, SHARPNESS);
        let beside = |b, s, q| place(b, s, q).map_or(f64::NAN, |place| self.beside[place]);
        let level = |b, s, q| place(b, s, q).map_or(f64::NAN, |place| self.ln_ms[place] - fitted);
        let others = |count: usize, at: &dyn Fn(isize) -> f64| mean((0..signed(count)).map(at));
        [
            real(cell.batch_place()),
            real(cell.sm_place()),
            real(cell.quota_place()),
            first_part(gpu, gate, SHARPNESS),
            gate - gpu,
            fitted,
            beside(b, s - 1, q),
            beside(b, s + 1, q),
            beside(b, s - 2, q),
            beside(b, s + 2, q),
            beside(b, s, q - 1),
            beside(b, s, q + 1),
            beside(b, s, q - 2),
            beside(b, s, q + 2),
            beside(b - 1, s, q),
            beside(b + 1, s, q),
            level(b, s - 1, q),
            level(b, s + 1, q),
            level(b, s, q - 1),
            level(b, s, q + 1),
            level(b - 1, s, q),
            level(b + 1, s, q),
            others(BATCHES.len(), &|other| beside(other, s, q)),
            others(QUOTAS.len(), &|other| beside(b, s, other)),
            mean((s - 3..=s + 3).map(|other| beside(b, other, q))),
            others(SMS.len(), &|other| beside(b, other, q)),
            self.parts.host(cell.sm_place(), cell.quota_place()),
        ]
    }
}

/// The mean of what is known of `values`, NaN if nothing is.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let known: Vec<_> = values.filter(|value| !value.is_nan()).collect();
    if known.is_empty() { f64::NAN } else { known.iter().sum::<f64>() / real(known.len()) }
}

/// Place of a cell in the grid, `None` beyond its ends.
fn place(batch: isize, sm: isize, quota: isize) -> Option<usize> {
    let within = |value: isize, count: usize| usize::try_from(value).ok().filter(|&value| value < count);
    let (batch, sm) = (within(batch, BATCHES.len())?, within(sm, SMS.len())?);
    Some((batch * SMS.len() + sm) * QUOTAS.len() + within(quota, QUOTAS.len())?)
}

#[allow(clippy::cast_possible_wrap)] // Places on axes of at most 20.
fn signed(place: usize) -> isize {
    place as isize
}
