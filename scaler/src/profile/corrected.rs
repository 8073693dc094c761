//! A predicted surface that production corrects.
//!
//! Pure. A latency seen in production at a cell is one more probe there. Of each cell the newest ones count: hosts change.

use std::collections::BTreeMap;

use gpu_share::invalid::Invalid;

use super::description::Description;
use super::grid::{Cell, Point};
use super::posterior::Surface;
use super::prior::Prior;

/// Latencies at one cell that its mean is taken over, about.
const MEMORY: f64 = 50.0;

/// Predictions of one model, and what was seen of it.
#[derive(Debug)]
pub struct Corrected<'a> {
    prior: &'a Prior,
    model: &'a Description,
    seen: BTreeMap<Cell, Seen>,
}

/// What was seen at one cell.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ln_ms: f64,
    count: f64,
}

impl<'a> Corrected<'a> {
    /// What `prior` lets expect of a model, corrected by `probes`.
    pub fn new(prior: &'a Prior, model: &'a Description, probes: &[Point]) -> Self {
        let mut corrected = Self { prior, model, seen: BTreeMap::new() };
        for &probe in probes {
            corrected.take_in(probe);
        }
        corrected
    }

    /// Takes in a latency in milliseconds that a batch took in production at `cell`.
    pub fn observe(&mut self, cell: Cell, ms: f64) -> Result<(), Invalid> {
        self.take_in(Point::new(cell, ms)?);
        Ok(())
    }

    /// What is known now.
    pub fn surface(&self) -> Surface {
        let point = |(&cell, seen): (&Cell, &Seen)| Point { cell, ln_ms: seen.ln_ms };
        self.prior.predict(self.model, &self.seen.iter().map(point).collect::<Vec<_>>())
    }

    fn take_in(&mut self, point: Point) {
        let seen = self.seen.entry(point.cell).or_default();
        seen.count = (seen.count + 1.0).min(MEMORY);
        seen.ln_ms += (point.ln_ms - seen.ln_ms) / seen.count;
    }
}
