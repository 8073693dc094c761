//! The request rates that are planned for: constant within steps of equal length, and repeated without end.

use gpu_share::invalid::Invalid;

/// Most steps: a month of quarter minutes.
const MOST_STEPS: usize = 200_000;
/// Most steps that a load is refined to.
const FINE_STEPS: f64 = 20_000.0;
/// Highest rate, requests a second.
const MOST_RPS: f64 = 1e6;

/// Request rates over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Length of a step, seconds.
    step: f64,
    /// Requests a second in each.
    rates: Vec<f64>,
}

impl Load {
    /// `rates` in requests a second, each for `step` seconds.
    pub fn new(step: f64, rates: Vec<f64>) -> Result<Self, Invalid> {
        if !step.is_finite() || step <= 0.0 {
            return Err(Invalid::new("step of the load", step, "seconds above 0"));
        }
        if rates.len() > MOST_STEPS {
            return Err(Invalid::new("steps of the load", rates.len(), format!("at most {MOST_STEPS}")));
        }
        if let Some(rate) = rates.iter().find(|rate| !(0.0..=MOST_RPS).contains(*rate)) {
            return Err(Invalid::new("rate", rate, format!("0 to {MOST_RPS} requests a second")));
        }
        let load = Self { step, rates };
        if load.requests() > 0.0 {
            Ok(load)
        } else {
            Err(Invalid::new("requests of the load", 0, "more than 0"))
        }
    }

    /// `rate` requests a second, always.
    pub fn constant(rate: f64) -> Result<Self, Invalid> {
        Self::new(3600.0, vec![rate])
    }

    /// The same in shorter steps, as short as `step` seconds if 20,000 of them are enough.
    ///
    /// What an autoscaler does within a step is not seen, and a step of a minute would make a start of a second one. A
    /// load that never changes needs no steps.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Small counts.
    pub fn refined(&self, step: f64) -> Self {
        if self.always().is_some() {
            return self.clone();
        }
        let step = step.max(self.seconds() / FINE_STEPS);
        let parts = (self.step / step).round().max(1.0);
        let rates = self.rates.iter().flat_map(|&rate| core::iter::repeat_n(rate, parts as usize));
        Self { step: self.step / parts, rates: rates.collect() }
    }

    /// The rate, if it never changes.
    pub fn always(&self) -> Option<f64> {
        let same = self.rates.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
        self.rates.first().copied().filter(|_| same)
    }

    /// Length of a step, seconds.
    pub fn step(&self) -> f64 {
        self.step
    }

    /// Requests a second in each step.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Its length in seconds.
    #[allow(clippy::cast_precision_loss)] // At most MOST_STEPS.
    pub fn seconds(&self) -> f64 {
        self.step * self.rates.len() as f64
    }

    /// Requests in it.
    pub fn requests(&self) -> f64 {
        self.step * self.rates.iter().sum::<f64>()
    }

    /// Mean rate, requests a second.
    pub fn mean(&self) -> f64 {
        self.requests() / self.seconds()
    }

    /// Highest rate, requests a second.
    pub fn peak(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_counts_its_requests() {
        let load = Load::new(60.0, vec![0.0, 2.0, 4.0]).unwrap();
        assert_eq!((load.seconds(), load.requests(), load.mean(), load.peak()), (180.0, 360.0, 2.0, 4.0));
    }

    #[test]
    fn a_load_in_shorter_steps_is_the_same_load() {
        let load = Load::new(60.0, vec![0.0, 2.0, 4.0]).unwrap();
        let fine = load.refined(1.0);
        assert_eq!((fine.step(), fine.rates().len()), (1.0, 180));
        assert_eq!((fine.requests(), fine.seconds()), (load.requests(), load.seconds()));
        let day = Load::new(60.0, (0..1440).map(f64::from).collect()).unwrap().refined(1.0);
        assert!(day.rates().len() <= 21_600 && day.step() <= 5.0, "{}", day.step());
    }

    #[test]
    fn a_load_without_requests_and_what_is_no_rate_is_refused() {
        for (step, rates) in [
            (1.0, vec![]),
            (1.0, vec![0.0, 0.0]),
            (1.0, vec![-1.0]),
            (1.0, vec![f64::NAN]),
            (1.0, vec![2e6]),
            (0.0, vec![1.0]),
            (f64::INFINITY, vec![1.0]),
        ] {
            assert!(Load::new(step, rates.clone()).is_err(), "{step} {rates:?}");
        }
        assert_eq!(
            Load::constant(0.0).unwrap_err().to_string(),
            "requests of the load is \"0\", allowed is more than 0"
        );
    }
}
