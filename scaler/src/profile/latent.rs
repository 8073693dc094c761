//! What a model's latencies are made of, and the most likely parts of latencies that were measured.
//!
//! Pure. A quota that gates launches, not GPU time (as in HAS-GPU), makes a latency the larger of two times:
//!
//! ```text
//! ln latency(batch, sm, quota) = smax( G[batch, sm],  h[quota] + u[sm, quota] + v[batch] )
//!                                      GPU time       gate       host         launches
//! ```
//!
//! `u` is the state of the host while one SM share was measured, `v` what more launches a larger batch needs than 1.
//! The softened maximum is `smax(x, y) = ln(e^px + e^py) / p`.

use super::grid::{BATCHES, Cell, Measured, Point, QUOTAS, SMS};
use super::kinship::real;
use super::matrix::{Cholesky, Matrix};

/// GPU times: one for each batch and SM share.
pub(super) const GPU: usize = BATCHES.len() * SMS.len();
/// Gates: one for each quota.
pub(super) const GATE: usize = QUOTAS.len();
/// What has one prior covariance: GPU times, then gates.
pub(super) const JOINT: usize = GPU + GATE;
const HOST: usize = SMS.len() * QUOTAS.len();
/// Launches of the batches above 1.
pub(super) const LAUNCHES: usize = BATCHES.len() - 1;
const ALL: usize = JOINT + HOST + LAUNCHES;

/// How sharp the maximum is.
pub(super) const SHARPNESS: f64 = 12.0;
/// Steps of 5 % of the SMs over which the state of the host is forgotten to 1/e.
const HOST_MEMORY: f64 = 4.0;
/// Standard deviation of the logarithm of a latency that GPU time bounds; and of one that the gate does, by quota.
const GPU_NOISE: f64 = 0.004;
const GATE_NOISE: [f64; GATE] = [0.012, 0.013, 0.012, 0.016, 0.019, 0.018, 0.023, 0.022, 0.016, 0.016];
/// Least variance of a measurement.
const NOISE_FLOOR: f64 = 1e-5;
/// Degrees of freedom of the noise: now and then a measurement is far off.
const FREEDOM: f64 = 4.0;
/// Longest step of a part: beyond it the maximum may have changed sides.
const STEP: f64 = 0.7;
/// A step that is so short changes nothing that matters.
const SETTLED: f64 = 1e-3;

pub(super) fn smax(x: f64, y: f64, sharpness: f64) -> f64 {
    x.max(y) + (-sharpness * (x - y).abs()).exp().ln_1p() / sharpness
}

/// How much of the maximum is the first of the two: its derivative.
pub(super) fn first_part(x: f64, y: f64, sharpness: f64) -> f64 {
    1.0 / (1.0 + (-sharpness * (x - y)).exp())
}

/// Standard deviation of a measurement of which `gpu` is bound by GPU time.
pub(super) fn noise(gpu: f64, quota: usize) -> f64 {
    gpu * GPU_NOISE + (1.0 - gpu) * GATE_NOISE[quota]
}

/// Correlation of the state of the host at two SM shares, by the steps between them.
fn host_correlations() -> [f64; SMS.len()] {
    core::array::from_fn(|steps| (-real(steps) / HOST_MEMORY).exp())
}

/// Place of a cell's GPU time.
pub(super) fn gpu_place(cell: Cell) -> usize {
    cell.batch_place() * SMS.len() + cell.sm_place()
}

/// Place of a cell's gate.
pub(super) fn gate_place(cell: Cell) -> usize {
    GPU + cell.quota_place()
}

/// Covariances of the parts between models.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    /// Of GPU times and gates, about what is expected of the model.
    pub joint: Matrix,
    /// Of the state of the host between quotas.
    pub host: Matrix,
    /// Of the launches between batches above 1.
    pub launches: Matrix,
    /// Correlation of the state of the host, by the steps between SM shares.
    correlations: [f64; SMS.len()],
}

impl Spread {
    pub(super) fn new(joint: Matrix, host: Matrix, launches: Matrix) -> Self {
        Self { joint, host, launches, correlations: host_correlations() }
    }

    fn host_correlation(&self, a: usize, b: usize) -> f64 {
        self.correlations[a.abs_diff(b)]
    }

    /// Covariance of what hosts and launches add to the gates of two cells.
    pub(super) fn beside(&self, a: Cell, b: Cell) -> f64 {
        let host =
            self.host_correlation(a.sm_place(), b.sm_place()) * self.host[(a.quota_place(), b.quota_place())];
        let launches = match (a.batch_place().checked_sub(1), b.batch_place().checked_sub(1)) {
            (Some(a), Some(b)) => self.launches[(a, b)],
            _ => 0.0,
        };
        host + launches
    }
}

/// The inverse of a [`Spread`], as far as all models share it.
#[derive(Debug)]
pub(super) struct Precision {
    joint: Matrix,
    host: Matrix,
    launches: Matrix,
}

impl Precision {
    pub(super) fn of(spread: &Spread) -> Self {
        let host = Matrix::from_fn(HOST, HOST, |a, b| {
            let correlation = spread.host_correlation(a / GATE, b / GATE);
            correlation * spread.host[(a % GATE, b % GATE)] + if a == b { 1e-7 } else { 0.0 }
        });
        let inverse = |matrix: &Matrix| Cholesky::new(matrix.clone()).inverse();
        Self {
            joint: inverse(&spread.joint),
            host: Cholesky::new(host).inverse(),
            launches: inverse(&spread.launches),
        }
    }

    /// The precision of all parts, and nothing between the three kinds.
    fn all(&self) -> Matrix {
        let blocks = [(0, &self.joint), (JOINT, &self.host), (JOINT + HOST, &self.launches)];
        let mut all = Matrix::zero(ALL, ALL);
        for (start, block) in blocks {
            for i in 0..block.rows() {
                for j in 0..block.rows() {
                    all[(start + i, start + j)] = block[(i, j)];
                }
            }
        }
        all
    }
}

/// The parts of one model.
#[derive(Clone, Debug)]
pub(super) struct Parts(Vec<f64>);

/// How far the parts of one model are known.
#[derive(Debug)]
pub(super) struct Uncertainty {
    /// Covariance of GPU times and gates.
    pub joint: Matrix,
    /// Covariance between quotas of the host's state, mean over SM shares.
    pub host: Matrix,
    /// Covariance between batches of the launches.
    pub launches: Matrix,
}

impl Parts {
    /// A start for the search: what was measured at the largest quota, and at the shortest of each quota.
    pub(super) fn start(expected: &[f64], measured: &Measured) -> Self {
        let mut parts = vec![0.0; ALL];
        parts[..JOINT].copy_from_slice(expected);
        let mut least = [f64::INFINITY; GATE];
        for point in &measured.points {
            let quota = point.cell.quota_place();
            least[quota] = least[quota].min(point.ln_ms);
            if quota + 1 == GATE {
                parts[gpu_place(point.cell)] = point.ln_ms;
            }
        }
        for (quota, least) in least.into_iter().enumerate().filter(|(_, least)| least.is_finite()) {
            parts[GPU + quota] = least;
        }
        Self(parts)
    }

    /// GPU times and gates.
    pub(super) fn joint(&self) -> &[f64] {
        &self.0[..JOINT]
    }

    /// State of the host at an SM share and a quota.
    pub(super) fn host(&self, sm: usize, quota: usize) -> f64 {
        self.0[JOINT + sm * GATE + quota]
    }

    /// What a batch above 1 adds.
    pub(super) fn launches(&self, above_one: usize) -> f64 {
        self.0[JOINT + HOST + above_one]
    }

    /// GPU time and gate of a cell.
    pub(super) fn sides(&self, cell: Cell) -> (f64, f64) {
        let gate = self.0[gate_place(cell)] + self.host(cell.sm_place(), cell.quota_place());
        let launches = cell.batch_place().checked_sub(1).map_or(0.0, |above| self.launches(above));
        (self.0[gpu_place(cell)], gate + launches)
    }

    /// Moves to the most likely parts by Gauss and Newton's steps, at most `rounds`; the noise is Student's t.
    pub(super) fn settle(
        &mut self,
        expected: &[f64],
        points: &[Point],
        precision: &Precision,
        rounds: usize,
    ) -> Settled {
        let prior = precision.all();
        let mut middle = vec![0.0; ALL];
        middle[..JOINT].copy_from_slice(expected);
        let mut round = 0;
        loop {
            let off: Vec<_> = middle.iter().zip(&self.0).map(|(middle, part)| middle - part).collect();
            let (mut system, mut gradient) = (prior.clone(), prior.times(&off));
            for point in points {
                self.add(point, &mut system, &mut gradient);
            }
            let factor = Cholesky::new(system);
            let step = factor.solve(&gradient);
            let longest = step.iter().fold(0.0_f64, |longest, part| longest.max(part.abs()));
            let scale = (STEP / longest.max(f64::MIN_POSITIVE)).min(1.0);
            self.0.iter_mut().zip(&step).for_each(|(part, step)| *part += scale * step);
            round += 1;
            if round >= rounds || longest < SETTLED {
                return Settled(factor);
            }
        }
    }

    /// What one measurement says, linear about the parts as they are.
    fn add(&self, point: &Point, system: &mut Matrix, gradient: &mut [f64]) {
        let cell = point.cell;
        let (gpu, gate) = self.sides(cell);
        let part = first_part(gpu, gate, SHARPNESS);
        let miss = point.ln_ms - smax(gpu, gate, SHARPNESS);
        let variance = noise(part, cell.quota_place()).powi(2) + NOISE_FLOOR;
        let weight = (FREEDOM + 1.0) / (FREEDOM + miss * miss / variance) / variance;
        let host = JOINT + cell.sm_place() * GATE + cell.quota_place();
        let launches = cell.batch_place().checked_sub(1).map(|above| JOINT + HOST + above);
        let places = [Some(gpu_place(cell)), Some(gate_place(cell)), Some(host), launches];
        let slopes = [part, 1.0 - part, 1.0 - part, 1.0 - part];
        for (place, slope) in
            places.iter().zip(slopes).filter_map(|(place, slope)| place.map(|place| (place, slope)))
        {
            gradient[place] += weight * slope * miss;
            for (other, other_slope) in
                places.iter().zip(slopes).filter_map(|(o, slope)| o.map(|o| (o, slope)))
            {
                system[(place, other)] += weight * slope * other_slope;
            }
        }
    }
}

/// Where a search ended: how sharply the parts are determined there.
#[derive(Debug)]
pub(super) struct Settled(Cholesky);

impl Settled {
    pub(super) fn uncertainty(&self) -> Uncertainty {
        let factor = self.0.inverse_factor();
        let entry = |a: usize, b: usize| {
            let from = a.max(b);
            super::matrix::dot(&factor.row(a)[from..], &factor.row(b)[from..])
        };
        let at = |sm: usize, quota: usize| JOINT + sm * GATE + quota;
        Uncertainty {
            joint: Matrix::from_fn(JOINT, JOINT, entry),
            host: Matrix::from_fn(GATE, GATE, |a, b| {
                (0..SMS.len()).map(|sm| entry(at(sm, a), at(sm, b))).sum::<f64>() / real(SMS.len())
            }),
            launches: Matrix::from_fn(LAUNCHES, LAUNCHES, |a, b| entry(JOINT + HOST + a, JOINT + HOST + b)),
        }
    }
}
