//! When the single requests of a trace start.
//!
//! Pure: the same trace, arrivals and seed give the same times.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::trace::Trace;

/// How requests follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// Independent of each other (a Poisson process with the trace's rate).
    #[default]
    Poisson,
    /// Evenly spaced at the trace's rate.
    Even,
}

/// Start times of the requests of `trace`, rising. Each of its seconds lasts `time_scale` seconds; rates stay.
pub fn schedule(trace: &Trace, time_scale: f64, arrivals: Arrivals, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    // A time-varying process is a constant one of rate 1 whose clock is the expected number of requests so far.
    let mut next = match arrivals {
        Arrivals::Poisson => exponential(&mut random),
        Arrivals::Even => 0.5,
    };
    let (mut times, mut start, mut expected) = (Vec::new(), 0.0, 0.0);
    for segment in trace.segments() {
        let seconds = segment.seconds * time_scale;
        let slope = (segment.to - segment.from) / seconds;
        let requests = seconds * f64::midpoint(segment.from, segment.to);
        while next < expected + requests {
            let after = time_of(next - expected, segment.from, slope).clamp(0.0, seconds);
            times.push(Duration::from_secs_f64(start + after));
            next += match arrivals {
                Arrivals::Poisson => exponential(&mut random),
                Arrivals::Even => 1.0,
            };
        }
        expected += requests;
        start += seconds;
    }
    times
}

/// When `requests` are expected since the start of a segment whose rate is `rate` there and grows by `slope` per second.
///
/// The root of `rate·t + slope·t²/2 = requests`, in the form that stays exact for a small slope.
fn time_of(requests: f64, rate: f64, slope: f64) -> f64 {
    let root = (rate * rate + 2.0 * slope * requests).max(0.0).sqrt();
    2.0 * requests / (rate + root).max(f64::MIN_POSITIVE)
}

fn exponential(random: &mut StdRng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::load::trace::Traces;

    fn trace(steps: &[(f64, f64, bool)]) -> Trace {
        let mut text = String::from("trace,shape,step,start_s,duration_s,rps\n");
        let mut start = 0.0;
        for (step, (seconds, rps, ramp)) in steps.iter().enumerate() {
            let shape = if *ramp { "ramp" } else { "hold" };
            writeln!(text, "t,{shape},{step},{start},{seconds},{rps}").unwrap();
            start += seconds;
        }
        Traces::parse(&text).unwrap().find("t").unwrap()
    }

    #[test]
    fn even_arrivals_are_evenly_spaced() {
        let times = schedule(&trace(&[(2.0, 5.0, false)]), 1.0, Arrivals::Even, 0);
        let expected: Vec<_> = (0..10).map(|k| Duration::from_millis(100 + 200 * k)).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn a_silent_step_has_no_requests() {
        let times = schedule(
            &trace(&[(5.0, 10.0, false), (5.0, 0.0, false), (5.0, 10.0, false)]),
            1.0,
            Arrivals::Poisson,
            7,
        );
        let silent = Duration::from_secs(5)..Duration::from_secs(10);
        assert!(!times.is_empty() && times.iter().all(|time| !silent.contains(time)));
    }

    #[test]
    fn a_ramp_has_a_quarter_of_its_requests_in_its_first_half() {
        let times = schedule(&trace(&[(100.0, 200.0, true)]), 1.0, Arrivals::Even, 0);
        let early = times.iter().filter(|time| time.as_secs_f64() < 50.0).count();
        assert_eq!((times.len(), early), (10_000, 2_500));
    }

    proptest! {
        #[test]
        fn times_are_sorted_and_as_many_as_the_rate_says(
            steps in proptest::collection::vec((0.5..20.0_f64, 0.0..80.0_f64, any::<bool>()), 1..12),
            scale in 0.1..2.0_f64,
            seed in any::<u64>(),
        ) {
            let trace = trace(&steps);
            let expected = trace.requests() * scale;
            for arrivals in [Arrivals::Poisson, Arrivals::Even] {
                let times = schedule(&trace, scale, arrivals, seed);
                prop_assert!(times.is_sorted());
                prop_assert!(times.iter().all(|t| t.as_secs_f64() <= trace.seconds() * scale + 1e-6));
                prop_assert_eq!(&times, &schedule(&trace, scale, arrivals, seed));
                // Seven standard deviations of a Poisson count; even arrivals miss by the rounding only.
                let slack = match arrivals { Arrivals::Poisson => 7.0 * expected.sqrt() + 5.0, Arrivals::Even => 1.0 };
                #[allow(clippy::cast_precision_loss)] // A few thousand.
                let count = times.len() as f64;
                prop_assert!((count - expected).abs() <= slack, "{} of {}", count, expected);
            }
        }
    }
}
