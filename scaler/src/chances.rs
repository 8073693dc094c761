//! Chance that is the same in every run.

/// Numbers from 0 to 1, by a linear congruential generator (Knuth's MMIX).
#[derive(Clone, Debug)]
pub(crate) struct Chances(u64);

impl Default for Chances {
    fn default() -> Self {
        Self(1)
    }
}

impl Chances {
    /// The next one; 1 is never reached.
    #[allow(clippy::cast_precision_loss)] // 53 bits.
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}
