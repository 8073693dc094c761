//! How bursty arrivals are: the index of dispersion of counts, which for long blocks is the squared coefficient of
//! variation of the times between arrivals (Sriram and Whitt, IEEE JSAC 1986).

use core::ops::RangeInclusive;

/// A block of counts lasts at least so many seconds.
const BLOCK: f64 = 1.0;
/// And so long that so many arrivals are expected in it, if it need not last longer than [`LONGEST`] for that.
const EXPECTED: f64 = 5.0;
/// A block ends after so many seconds.
const LONGEST: f64 = 4.0;
/// Part of the weight that a block keeps when the next comes: about 100 blocks count.
const KEEP: f64 = 0.99;
/// Standard errors by which the estimate must differ from that of Poisson arrivals to be told from it.
const TOLD: f64 = 2.5;
/// Blocks that "arrivals are Poisson" counts as at first.
const PRIOR: f64 = 10.0;
/// Where queue arithmetic is still of use.
const RANGE: RangeInclusive<f64> = 0.5..=20.0;

/// The running estimate.
#[derive(Clone, Debug)]
pub(super) struct Dispersion {
    count: f64,
    seconds: f64,
    expected: f64,
    sum: f64,
    weight: f64,
}

impl Default for Dispersion {
    /// Poisson arrivals, until shown otherwise.
    fn default() -> Self {
        Self { count: 0.0, seconds: 0.0, expected: 0.0, sum: PRIOR, weight: PRIOR }
    }
}

impl Dispersion {
    /// Takes in `count` arrivals in `seconds` where `rate` was expected.
    pub(super) fn add(&mut self, count: f64, seconds: f64, rate: f64) {
        self.count += count;
        self.seconds += seconds;
        self.expected += rate * seconds;
        if self.seconds < BLOCK - 1e-9 || (self.expected < EXPECTED && self.seconds < LONGEST) {
            return;
        }
        if self.expected >= 1.0 {
            // The expected count is an average over about 8 s (twice its span), and has a variance of its own.
            let own = 1.0 + self.seconds / 8.0;
            let sample = (self.count - self.expected).powi(2) / (self.expected * own);
            self.sum = self.sum * KEEP + sample.min(*RANGE.end());
            self.weight = self.weight * KEEP + 1.0;
        }
        (self.count, self.seconds, self.expected) = (0.0, 0.0, 0.0);
    }

    /// The squared coefficient of variation, 1 where the difference from Poisson arrivals may be chance.
    pub(super) fn scv(&self) -> f64 {
        let found = self.sum / self.weight;
        // The index of n Poisson blocks has a variance of about 2/n.
        let chance = TOLD * (2.0 / self.weight).sqrt();
        let beyond =
            if found > 1.0 { (found - 1.0 - chance).max(0.0) } else { (found - 1.0 + chance).min(0.0) };
        (1.0 + beyond).clamp(*RANGE.start(), *RANGE.end())
    }
}
