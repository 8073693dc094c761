//! Latencies of one model on the whole grid, from its description and a few measurements.
//!
//! Pure. The measurements correct what is expected of the model by an iterated Kalman update: with k measurements, one
//! system of size k a step. A measurement in production is one more measurement.

use super::description::Description;
use super::grid::{BATCHES, Cell, Point, QUOTAS, SMS};
use super::kinship::real;
use super::latent::{JOINT, SHARPNESS, Spread, first_part, gate_place, gpu_place, noise, smax};
use super::matrix::{Cholesky, Matrix, dot};
use super::prior::Prior;

/// Steps of the update; over the first ones the maximum sharpens from [`BLUNT`].
const STEPS: usize = 12;
const SHARPENING: usize = 8;
const BLUNT: f64 = 6.0;
/// A probe is a short measurement: its noise variance is so many times that of a long one.
const PROBE_NOISE: f64 = 2.0;
/// Least variance of a probe.
const NOISE_FLOOR: f64 = 1e-5;
/// Measurements that the assumed scale of a model's surprises counts as, against its own.
const ASSUMED_SURPRISES: f64 = 4.0;
/// Width of a normal 90 % interval in standard deviations, to each side.
const NORMAL_90: f64 = 1.645;

/// Predicted latencies of one model.
#[derive(Clone, Debug)]
pub struct Surface {
    /// Logarithm of the latency in milliseconds, by cell.
    ln_ms: Vec<f64>,
    /// Its standard deviation, by cell.
    deviation: Vec<f64>,
}

impl Surface {
    /// Logarithm of the predicted latency in milliseconds at a cell.
    pub fn ln_ms(&self, cell: Cell) -> f64 {
        self.ln_ms[cell.index()]
    }

    /// Standard deviation of [`Surface::ln_ms`], which is about the relative error.
    pub fn deviation(&self, cell: Cell) -> f64 {
        self.deviation[cell.index()]
    }

    /// Predicted milliseconds at any batch, SM share and quota in percent: linear in the logarithms between cells, the
    /// nearest cell's beyond them.
    pub fn latency_ms(&self, batch: f64, sm: f64, quota: f64) -> f64 {
        let (b, s, q) = (between(&BATCHES, batch), between(&SMS, sm), between(&QUOTAS, quota));
        let mut ln_ms = 0.0;
        for (batch, batch_part) in b {
            for (sm, sm_part) in s {
                let row = &self.ln_ms[(batch * SMS.len() + sm) * QUOTAS.len()..][..QUOTAS.len()];
                ln_ms += batch_part * sm_part * (q[0].1 * row[q[0].0] + q[1].1 * row[q[1].0]);
            }
        }
        ln_ms.exp()
    }

    /// Milliseconds between which the latency at a cell lies with 90 %, if [`Surface::deviation`] is to be widened by
    /// `widening`.
    pub fn interval_ms(&self, cell: Cell, widening: f64) -> (f64, f64) {
        let reach = NORMAL_90 * widening * self.deviation(cell);
        ((self.ln_ms(cell) - reach).exp(), (self.ln_ms(cell) + reach).exp())
    }

    /// By how much an interval must be widened to reach `ln_ms` at a cell.
    pub fn widening_to(&self, cell: Cell, ln_ms: f64) -> f64 {
        (ln_ms - self.ln_ms(cell)).abs() / (NORMAL_90 * self.deviation(cell))
    }

    /// Percent by which the prediction misses a measurement.
    pub fn error_percent(&self, point: Point) -> f64 {
        ((self.ln_ms(point.cell) - point.ln_ms).exp() - 1.0).abs() * 100.0
    }
}

/// The two neighbours of `value` on a rising axis, and their parts; equal ones beyond the ends.
fn between(axis: &[u32], value: f64) -> [(usize, f64); 2] {
    let above = axis.iter().position(|&at| f64::from(at) >= value).unwrap_or(axis.len() - 1);
    let below = above.saturating_sub(1);
    let (low, high) = (f64::from(axis[below]).ln(), f64::from(axis[above]).ln());
    let part =
        if below == above { 1.0 } else { ((value.max(1e-9).ln() - low) / (high - low)).clamp(0.0, 1.0) };
    [(below, 1.0 - part), (above, part)]
}

impl Prior {
    /// Latencies of a model that is described and was measured at `probes`, in any number.
    pub fn predict(&self, model: &Description, probes: &[Point]) -> Surface {
        Update::new(&self.spread, &self.expect(model), probes).surface()
    }
}

/// What measurements change.
pub(super) struct Update<'a> {
    spread: &'a Spread,
    probes: &'a [Point],
    /// Part of each probe that GPU time bounds, at the end.
    parts: Vec<f64>,
    /// Factor of the covariance of what was measured.
    factor: Option<Cholesky>,
    /// GPU times and gates.
    joint: Vec<f64>,
    /// By probe: how it pulls what is like it.
    pulls: Vec<f64>,
    /// Scale of the variances, by how surprising the probes were.
    scale: f64,
}

impl<'a> Update<'a> {
    pub(super) fn new(spread: &'a Spread, expected: &[f64], probes: &'a [Point]) -> Self {
        let mut update = Self {
            spread,
            probes,
            parts: vec![0.0; probes.len()],
            factor: None,
            joint: expected.to_vec(),
            pulls: vec![0.0; probes.len()],
            scale: 1.0,
        };
        if !probes.is_empty() {
            update.iterate(expected);
        }
        update
    }

    fn iterate(&mut self, expected: &[f64]) {
        let n = self.probes.len();
        let covariance = Covariance::of(self.spread, self.probes);
        let mean = |place: fn(Cell) -> usize| {
            self.probes.iter().map(|p| expected[place(p.cell)]).collect::<Vec<_>>()
        };
        let (gpu_mean, gate_mean) = (mean(gpu_place), mean(gate_place));
        let (mut gpu, mut gate) = (gpu_mean.clone(), gate_mean.clone());
        for step in 0..STEPS {
            let sharpness = BLUNT + (SHARPNESS - BLUNT) * real(step.min(SHARPENING)) / real(SHARPENING);
            self.parts = gpu.iter().zip(&gate).map(|(&x, &y)| first_part(x, y, sharpness)).collect();
            let parts = &self.parts;
            let factor = Cholesky::new(Matrix::from_fn(n, n, |i, j| {
                let own = if i == j { probe_noise(parts[i], self.probes[i].cell) } else { 0.0 };
                covariance.measured(i, j, parts) + own
            }));
            let misses: Vec<_> = (0..n)
                .map(|i| {
                    let linear =
                        parts[i] * (gpu[i] - gpu_mean[i]) + (1.0 - parts[i]) * (gate[i] - gate_mean[i]);
                    self.probes[i].ln_ms - smax(gpu[i], gate[i], sharpness) + linear
                })
                .collect();
            self.pulls = factor.solve(&misses);
            let by_gpu: Vec<_> = self.pulls.iter().zip(parts).map(|(pull, part)| pull * part).collect();
            let by_gate: Vec<_> =
                self.pulls.iter().zip(parts).map(|(pull, part)| pull * (1.0 - part)).collect();
            for i in 0..n {
                gpu[i] = gpu_mean[i]
                    + dot(covariance.gpu.row(i), &by_gpu)
                    + dot(covariance.gpu_gate.row(i), &by_gate);
                let across: f64 = (0..n).map(|j| covariance.gpu_gate[(j, i)] * by_gpu[j]).sum();
                gate[i] = gate_mean[i] + across + dot(covariance.gate.row(i), &by_gate);
            }
            // Student's t process (Shah, Wilson and Ghahramani, 2014): what surprised widens, what did not narrows.
            let surprise = dot(&misses, &self.pulls);
            self.scale = (ASSUMED_SURPRISES + surprise) / (ASSUMED_SURPRISES + real(n));
            self.factor = Some(factor);
        }
        for place in 0..JOINT {
            self.joint[place] += dot(&self.joint_covariance(place), &self.pulls);
        }
    }

    /// Covariance of a GPU time or gate with each probe.
    fn joint_covariance(&self, place: usize) -> Vec<f64> {
        let row = self.spread.joint.row(place);
        let with = |(point, part): (&Point, &f64)| {
            part * row[gpu_place(point.cell)] + (1.0 - part) * row[gate_place(point.cell)]
        };
        self.probes.iter().zip(&self.parts).map(with).collect()
    }

    /// Covariance of what lies beside a cell's gate with each probe.
    fn beside_covariance(&self, cell: Cell) -> Vec<f64> {
        let with = |(point, part): (&Point, &f64)| (1.0 - part) * self.spread.beside(cell, point.cell);
        self.probes.iter().zip(&self.parts).map(with).collect()
    }

    /// Logarithm of the latency at a cell, and its standard deviation.
    pub(super) fn at(&self, cell: Cell) -> (f64, f64) {
        let (gpu, gate) = (self.joint[gpu_place(cell)], gate_place(cell));
        let beside = self.beside_covariance(cell);
        let side = self.joint[gate] + dot(&beside, &self.pulls);
        let part = first_part(gpu, side, SHARPNESS);
        let gates = self.joint_covariance(gate);
        let with: Vec<_> = self
            .joint_covariance(gpu_place(cell))
            .iter()
            .zip(gates.iter().zip(&beside))
            .map(|(gpu, (gate, beside))| part * gpu + (1.0 - part) * (gate + beside))
            .collect();
        let explained = self.factor.as_ref().map_or(0.0, |factor| {
            let solved = factor.forward(&with);
            dot(&solved, &solved)
        });
        let own = noise(part, cell.quota_place()).powi(2);
        let left = (self.expected_variance(cell, part) - explained).max(0.0) + own;
        (smax(gpu, side, SHARPNESS), (self.scale * left).sqrt())
    }

    /// Logarithms of all latencies, with their standard deviations.
    pub(super) fn surface(&self) -> Surface {
        let (ln_ms, deviation) = Cell::all().map(|cell| self.at(cell)).unzip();
        Surface { ln_ms, deviation }
    }

    /// Variance of a cell before anything was measured, linear about where the measurements have led.
    fn expected_variance(&self, cell: Cell, part: f64) -> f64 {
        let (gpu, gate) = (gpu_place(cell), gate_place(cell));
        let joint = &self.spread.joint;
        let gates = joint[(gate, gate)] + self.spread.beside(cell, cell);
        part * part * joint[(gpu, gpu)]
            + 2.0 * part * (1.0 - part) * joint[(gpu, gate)]
            + (1.0 - part) * (1.0 - part) * gates
    }
}

/// Variance of the noise of a probe of which `gpu` is bound by GPU time.
fn probe_noise(gpu: f64, cell: Cell) -> f64 {
    PROBE_NOISE * noise(gpu, cell.quota_place()).powi(2) + NOISE_FLOOR
}

/// Covariances between the sides of probes.
struct Covariance {
    gpu: Matrix,
    gpu_gate: Matrix,
    gate: Matrix,
}

impl Covariance {
    fn of(spread: &Spread, probes: &[Point]) -> Self {
        let n = probes.len();
        let cell = |i: usize| probes[i].cell;
        Self {
            gpu: Matrix::from_fn(n, n, |i, j| spread.joint[(gpu_place(cell(i)), gpu_place(cell(j)))]),
            gpu_gate: Matrix::from_fn(n, n, |i, j| spread.joint[(gpu_place(cell(i)), gate_place(cell(j)))]),
            gate: Matrix::from_fn(n, n, |i, j| {
                spread.joint[(gate_place(cell(i)), gate_place(cell(j)))] + spread.beside(cell(i), cell(j))
            }),
        }
    }

    /// Covariance of two measurements of which `parts` are bound by GPU time.
    fn measured(&self, i: usize, j: usize, parts: &[f64]) -> f64 {
        let (a, b) = (parts[i], parts[j]);
        a * b * self.gpu[(i, j)]
            + a * (1.0 - b) * self.gpu_gate[(i, j)]
            + (1.0 - a) * b * self.gpu_gate[(j, i)]
            + (1.0 - a) * (1.0 - b) * self.gate[(i, j)]
    }
}
