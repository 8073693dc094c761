//! How long one request takes on a replica at a grant: from the model's profile, corrected by what production shows.
//!
//! Owns the estimate and how uncertain it is. It knows no queue: waiting is of [`crate::queueing`].
//!
//! | module | what it owns |
//! |---|---|
//! | [`sheet`] | the profile of one function, measured by `gpufn profile`: points, checks, latency at any share |
//! | [`grid`] | measurements of many models at batches, SM shares and quotas |
//! | [`description`] | a model's operators |
//! | [`onnx`] | model files, read as descriptions |
//! | [`prior`] | what measured models let expect of another one |
//! | [`posterior`] | the surface of a model after some probes, with intervals |
//! | [`corrected`] | the same, corrected by latencies of production |
//! | [`design`] | which points to probe |
//! | [`rehearsal`] | measured models, predicted as if they were unseen: for probes and intervals |
//! | [`predicted`] | the profile of a model that nobody ran |
//! | [`completion`] | points that a measured model lacks |
//! | [`shipped`] | the models that are shipped |
//! | [`trial`] | how well all that predicts, by cross-validation |

pub mod completion;
pub mod corrected;
pub mod description;
pub mod design;
pub mod grid;
mod kinship;
mod latent;
mod matrix;
pub mod onnx;
pub mod posterior;
pub mod predicted;
pub mod prior;
pub mod rehearsal;
mod roofline;
pub mod sheet;
pub mod shipped;
mod trees;
pub mod trial;
#[cfg(test)]
mod unseen_tests;

use core::ops::RangeInclusive;

use gpu_share::annotations::Wish;
use gpu_share::latency::Profiles;
use gpu_share::quota::completion_bound;
use gpu_share::units::{Nanos, Quota};

use crate::queueing::Batching;

/// Requests that a profile counts as, against those observed.
const PROFILE_WEIGHT: f64 = 20.0;
/// Requests after which an old observation counts for 1/e.
const MEMORY: f64 = 200.0;
/// Requests that a function without a profile must have finished before its GPU time counts as known, and that make a
/// profile half as uncertain in variance.
const ENOUGH: f64 = 5.0;
/// Relative uncertainty of a profile before anything was observed: other card, other driver, other input.
const PROFILE_UNCERTAINTY: f64 = 0.15;
/// How far production may move a profile, as a factor; what is beyond is an error of measurement.
const CORRECTION: RangeInclusive<f64> = 0.25..=4.0;
/// Seconds beside the GPU before anything was observed: decoding, copies, the way through watchdog and gateway.
const OVERHEAD: f64 = 0.003;
/// Longest kernel that a request may have to wait for: kernels can't be preempted, and inference kernels are short.
const LONGEST_KERNEL: Nanos = Nanos::from_millis(2);
/// Part of a new observation in the running mean of the overhead.
const OVERHEAD_GAIN: f64 = 0.1;

/// What is learnt of a function's requests, one after the other.
#[derive(Clone, Debug)]
pub struct ServiceTime {
    /// Seconds of GPU time by the profile.
    profile: Option<f64>,
    batching: Batching,
    /// Seconds of GPU time and requests observed, old ones faded.
    used: f64,
    finished: f64,
    /// Seconds beside the GPU, and their mean deviation.
    overhead: f64,
    deviation: f64,
}

/// What one interval between two decisions showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// GPU time that the replicas used.
    pub used: Nanos,
    /// Requests that finished.
    pub finished: u64,
    /// The request that others disturbed least, if the grant was steady.
    pub undisturbed: Option<Undisturbed>,
}

/// A request that others disturbed little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undisturbed {
    /// Its latency.
    pub latency: Nanos,
    /// The most of the time that it can have had.
    pub quota: Quota,
    /// Whether no other was there. If one was, it may have waited: it shows only what the overhead is at most.
    pub alone: bool,
}

impl ServiceTime {
    /// Starts from the profile's GPU time of one request, or from nothing. Requests are merged as `batching` says.
    pub fn new(profile: Option<Nanos>, batching: Batching) -> Self {
        let profile = profile.map(Nanos::secs_f64).filter(|&seconds| seconds > 0.0);
        Self { profile, batching, used: 0.0, finished: 0.0, overhead: OVERHEAD, deviation: OVERHEAD }
    }

    /// Starts from what `profiles` say of a function's model, if they know it.
    pub fn of(wish: &Wish, profiles: &Profiles) -> Self {
        let surface = wish.model.as_deref().and_then(|model| profiles.get(model));
        let Some(surface) = surface else { return Self::unknown() };
        let time = |items| surface.gpu_time(wish.share.sm, items);
        Self::new(Some(time(1)), Batching::new(wish.batch, |items| time(items).secs_f64()))
    }

    /// Starts from nothing.
    pub fn unknown() -> Self {
        Self::new(None, Batching::NONE)
    }

    /// Takes in what was observed.
    pub fn observe(&mut self, seen: &Observation) {
        let finished = f64::from(u32::try_from(seen.finished).unwrap_or(u32::MAX));
        let keep = (-finished / MEMORY).exp();
        self.used = self.used * keep + seen.used.secs_f64();
        self.finished = self.finished * keep + finished;
        let Some(request) = seen.undisturbed.filter(|request| !request.quota.is_zero()) else { return };
        let Some(gpu) = self.gpu_seconds() else { return };
        let beside = (request.latency.secs_f64() - gpu / request.quota.fraction()).max(0.0);
        if request.alone || beside < self.overhead {
            self.deviation += OVERHEAD_GAIN * ((beside - self.overhead).abs() - self.deviation);
            self.overhead += OVERHEAD_GAIN * (beside - self.overhead);
        }
    }

    /// What is known now; `None` while a function without a profile has finished too few requests.
    pub fn estimate(&self) -> Option<Estimate> {
        let uncertainty = match self.profile {
            Some(_) => PROFILE_UNCERTAINTY / (1.0 + self.finished / ENOUGH).sqrt(),
            None => PROFILE_UNCERTAINTY / (self.finished / ENOUGH).max(1.0).sqrt(),
        };
        Some(Estimate {
            gpu: Nanos::from_secs_f64(self.gpu_seconds()?),
            uncertainty,
            overhead: Nanos::from_secs_f64(self.overhead),
            deviation: Nanos::from_secs_f64(self.deviation),
            batching: self.batching,
        })
    }

    /// How many times the profile's GPU time production takes; 1 without a profile.
    pub fn correction(&self) -> f64 {
        self.profile.zip(self.gpu_seconds()).map_or(1.0, |(profile, gpu)| gpu / profile)
    }

    /// GPU seconds of a request that is not merged.
    fn gpu_seconds(&self) -> Option<f64> {
        let Some(profile) = self.profile else {
            return (self.finished >= ENOUGH).then(|| self.used / self.finished);
        };
        // How many were merged is not seen: between none and full batches, what was used does not contradict the profile.
        let (single, full) = (self.used, self.used * self.batching.most_speed_up());
        let used = (profile * self.finished).max(single).min(full);
        let mixed = (PROFILE_WEIGHT * profile + used) / (PROFILE_WEIGHT + self.finished);
        Some(profile * (mixed / profile).clamp(*CORRECTION.start(), *CORRECTION.end()))
    }
}

/// What is known of the time of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// GPU time of one that is not merged with others.
    pub gpu: Nanos,
    /// Standard error of the GPU time, as a part of it.
    pub uncertainty: f64,
    /// Mean time beside the GPU.
    pub overhead: Nanos,
    /// Mean deviation of the time beside the GPU.
    pub deviation: Nanos,
    /// What merging requests saves.
    pub batching: Batching,
}

impl Estimate {
    /// Mean seconds that the GPU work of a request takes at `quota`; infinite at zero.
    pub fn held(&self, quota: Quota) -> f64 {
        self.gpu.secs_f64() / quota.fraction()
    }

    /// The time that a request which does not wait keeps to at `quota`, `None` at zero.
    ///
    /// The published bound `e/q + 2(1−q)Π` plus the longest kernel, at two standard errors of the GPU time, plus the
    /// time beside the GPU at two deviations.
    pub fn bound(&self, quota: Quota, window: Nanos) -> Option<Nanos> {
        self.bound_behind(LONGEST_KERNEL, quota, window)
    }

    /// The same while nobody else in the replica's row is at work, whose kernels it would have to wait for.
    pub fn lone_bound(&self, quota: Quota, window: Nanos) -> Option<Nanos> {
        self.bound_behind(Nanos::ZERO, quota, window)
    }

    fn bound_behind(&self, kernel: Nanos, quota: Quota, window: Nanos) -> Option<Nanos> {
        let gpu = Nanos::from_secs_f64(self.gpu.secs_f64() * (1.0 + 2.0 * self.uncertainty));
        let beside = self.overhead + self.deviation + self.deviation;
        completion_bound(gpu, quota, window, kernel).map(|time| time + beside)
    }

    /// Standard deviation in seconds of the time that GPU work takes at `quota`, by where in a window it begins: uniform
    /// over the window's idle part.
    pub fn phase(&self, quota: Quota, window: Nanos) -> f64 {
        (1.0 - quota.fraction()) * window.secs_f64() / 12.0_f64.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    #[test]
    fn production_moves_the_profile_and_narrows_it() {
        let mut service = ServiceTime::new(Some(Nanos::from_millis(20)), Batching::NONE);
        let before = service.estimate().unwrap();
        for _ in 0..100 {
            let used = Nanos::from_millis(60);
            service.observe(&Observation { used, finished: 2, undisturbed: None });
        }
        let after = service.estimate().unwrap();
        assert!((after.gpu.millis_f64() - 30.0).abs() < 2.0, "{after:?}");
        assert!(service.correction() > 1.3);
        assert!(after.uncertainty < before.uncertainty / 2.0);
    }

    #[test]
    fn what_merged_requests_use_does_not_contradict_the_profile_until_it_is_less_than_of_full_batches() {
        let batching = Batching { most: 4, marginal: 0.5 };
        for (used, expected) in [(20, 20.0), (15, 20.0), (13, 20.0), (30, 30.0), (5, 8.0)] {
            let mut service = ServiceTime::new(Some(Nanos::from_millis(20)), batching);
            for _ in 0..1_000 {
                let used = Nanos::from_millis(used);
                service.observe(&Observation { used, finished: 1, undisturbed: None });
            }
            let gpu = service.estimate().unwrap().gpu.millis_f64();
            assert!((gpu / expected - 1.0).abs() < 0.15, "{used} ms of each: {gpu}");
        }
    }

    #[test]
    fn a_function_without_a_profile_is_unknown_until_enough_requests_finished() {
        let mut service = ServiceTime::new(None, Batching::NONE);
        let one = Observation { used: Nanos::from_millis(12), finished: 1, undisturbed: None };
        service.observe(&one);
        assert_eq!(service.estimate(), None);
        for _ in 0..5 {
            service.observe(&one);
        }
        assert!((service.estimate().unwrap().gpu.millis_f64() - 12.0).abs() < 0.5);
    }

    #[test]
    fn an_error_of_measurement_moves_a_profile_only_so_far() {
        let mut service = ServiceTime::new(Some(Nanos::from_millis(20)), Batching::NONE);
        for _ in 0..100 {
            service.observe(&Observation { used: Nanos::from_secs(9), finished: 1, undisturbed: None });
        }
        assert!((service.correction() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn time_beside_the_gpu_is_learnt_from_requests_that_did_not_wait() {
        let mut service = ServiceTime::new(Some(Nanos::from_millis(20)), Batching::NONE);
        let (latency, quota) = (Nanos::from_millis(60), percent(40));
        let undisturbed = Some(Undisturbed { latency, quota, alone: true });
        for _ in 0..80 {
            service.observe(&Observation { used: Nanos::from_millis(20), finished: 1, undisturbed });
        }
        assert!((service.estimate().unwrap().overhead.millis_f64() - 10.0).abs() < 1.0);
    }

    #[test]
    fn a_request_that_may_have_waited_never_raises_the_overhead() {
        let mut service = ServiceTime::new(Some(Nanos::from_millis(20)), Batching::NONE);
        let undisturbed =
            Some(Undisturbed { latency: Nanos::from_millis(400), quota: percent(40), alone: false });
        let before = service.estimate().unwrap().overhead;
        service.observe(&Observation { used: Nanos::from_millis(20), finished: 1, undisturbed });
        assert_eq!(service.estimate().unwrap().overhead, before);
    }

    #[test]
    fn a_smaller_quota_stretches_the_mean_and_the_bound() {
        let estimate = ServiceTime::new(Some(Nanos::from_millis(20)), Batching::NONE).estimate().unwrap();
        assert!((estimate.held(percent(50)) - 0.040).abs() < 1e-9);
        assert!(
            estimate.bound(percent(25), Nanos::from_millis(10))
                > estimate.bound(percent(50), Nanos::from_millis(10))
        );
        assert_eq!(estimate.bound(Quota::ZERO, Nanos::from_millis(10)), None);
        assert!(estimate.held(Quota::ZERO).is_infinite());
    }
}
