//! Random numbers that are the same on every machine and in every version: one stream for each thing that is random, so
//! that a change of one does not shift the others.
//!
//! xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 2021), seeded by
//! `SplitMix64` as its authors advise.

/// One stream.
#[derive(Clone, Debug)]
pub struct Stream([u64; 4]);

/// 2⁻⁵³: the distance of the numbers that [`Stream::unit`] gives.
const UNIT: f64 = 1.0 / 9_007_199_254_740_992.0;

impl Stream {
    /// The stream for `purpose` of number `index` under `seed`.
    pub fn new(seed: u64, purpose: Purpose, index: u32) -> Self {
        let mut state = seed ^ (purpose as u64).rotate_left(56) ^ u64::from(index).rotate_left(24);
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        Self([next(), next(), next(), next()])
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1).
    #[allow(clippy::cast_precision_loss)] // 53 bits, which is what a float holds.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * UNIT
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller; one of the pair).
    pub fn normal(&mut self) -> f64 {
        (2.0 * self.exponential()).sqrt() * (core::f64::consts::TAU * self.unit()).cos()
    }

    /// Below `bound`, 0 if that is 0.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Below a usize.
    #[allow(clippy::cast_precision_loss)] // Positions in short lists.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.unit() * bound as f64) as usize).min(bound.saturating_sub(1))
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Arrivals of a function.
    Arrivals = 1,
    /// Time of its requests beside the GPU.
    Cpu,
    /// How long its replicas take to start.
    ColdStart,
    /// When its replicas fail.
    Failure,
    /// When GPUs are lost.
    Loss,
    /// Which replica a request goes to, where that is left to chance.
    Routing,
}

/// A log-normal distribution of times, by mean and coefficient of variation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean, in any unit.
    pub mean: f64,
    /// Standard deviation over mean; 0 is a constant.
    pub cv: f64,
}

impl Spread {
    /// To be drawn from.
    pub fn law(&self) -> LogNormal {
        if self.cv <= 0.0 || self.mean <= 0.0 {
            return LogNormal { mean: self.mean.max(0.0), sigma: 0.0, variance: 0.0 };
        }
        let variance = (1.0 + self.cv * self.cv).ln();
        LogNormal { mean: self.mean, sigma: variance.sqrt(), variance }
    }

    /// The value that a part of 95 % does not exceed.
    pub fn p95(&self) -> f64 {
        let variance = (1.0 + self.cv * self.cv).ln();
        self.mean.max(0.0) * (1.645 * variance.sqrt() - 0.5 * variance).exp()
    }
}

/// What draws from a [`Spread`] need, worked out once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogNormal {
    mean: f64,
    /// Standard deviation of the logarithm, and its square.
    sigma: f64,
    variance: f64,
}

impl LogNormal {
    /// A draw, in the unit of the mean.
    pub fn draw(&self, random: &mut Stream) -> f64 {
        if self.sigma <= 0.0 {
            return self.mean;
        }
        self.mean * (self.sigma * random.normal() - 0.5 * self.variance).exp()
    }

    /// Whether every draw is 0.
    pub fn is_zero(&self) -> bool {
        self.mean <= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_on_every_machine() {
        let mut stream = Stream::new(1, Purpose::Arrivals, 0);
        let drawn: Vec<_> = (0..3).map(|_| stream.bits()).collect();
        let mut again = Stream::new(1, Purpose::Arrivals, 0);
        assert_eq!(drawn, (0..3).map(|_| again.bits()).collect::<Vec<_>>());
        assert_ne!(drawn[0], Stream::new(1, Purpose::Arrivals, 1).bits());
        assert_ne!(drawn[0], Stream::new(1, Purpose::Cpu, 0).bits());
        assert_ne!(drawn[0], Stream::new(2, Purpose::Arrivals, 0).bits());
    }

    #[test]
    fn draws_have_the_mean_and_the_spread_that_they_should() {
        let mut stream = Stream::new(7, Purpose::Cpu, 3);
        let n = 200_000;
        let moments = |draw: &mut dyn FnMut() -> f64| {
            let (sum, squares) = (0..n).map(|_| draw()).fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
            let mean = sum / f64::from(n);
            (mean, (squares / f64::from(n) - mean * mean).sqrt())
        };
        let (mean, deviation) = moments(&mut || stream.exponential());
        assert!((mean - 1.0).abs() < 0.01 && (deviation - 1.0).abs() < 0.02, "{mean} {deviation}");
        let spread = Spread { mean: 70.0, cv: 0.3 };
        let (mean, deviation) = moments(&mut || spread.law().draw(&mut stream));
        assert!((mean - 70.0).abs() < 0.3 && (deviation / mean - 0.3).abs() < 0.01, "{mean} {deviation}");
        let below = (0..n).filter(|_| spread.law().draw(&mut stream) <= spread.p95()).count();
        assert!((f64::from(u32::try_from(below).unwrap()) / f64::from(n) - 0.95).abs() < 0.003);
    }
}
