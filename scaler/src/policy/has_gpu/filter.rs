//! The scalar Kalman filter of the rate: A = H = 1, Q = 1, R = 10.

/// State and variance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    rate: f64,
    variance: f64,
}

impl Default for Filter {
    fn default() -> Self {
        Self { rate: 0.0, variance: 1.0 }
    }
}

impl Filter {
    /// As published: a standard error on top and 5 requests a second more than measured at least, both kept in the state.
    pub(super) fn biased(&mut self, measured: f64) -> f64 {
        self.update(measured);
        self.rate = (self.rate + self.variance.sqrt()).max(measured + 5.0);
        self.rate
    }

    /// A standard error on top, which the state does not keep.
    pub(super) fn mended(&mut self, measured: f64) -> f64 {
        self.update(measured);
        self.rate + self.variance.sqrt()
    }

    fn update(&mut self, measured: f64) {
        let variance = self.variance + 1.0;
        let gain = variance / (variance + 10.0);
        self.rate += gain * (measured - self.rate);
        self.variance = (1.0 - gain) * variance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_filter_is_six_requests_a_second_above_a_steady_rate_and_the_mended_one_a_standard_error()
    {
        let (mut published, mut mended) = (Filter::default(), Filter::default());
        for _ in 0..200 {
            published.biased(10.0);
            mended.mended(10.0);
        }
        assert!((published.biased(10.0) - 16.08).abs() < 0.01, "{published:?}");
        assert!((mended.mended(10.0) - 11.64).abs() < 0.01, "{mended:?}");
    }
}
