//! How long a batch takes on a share of a GPU, as it was measured: over batch, SM share and quota.
//!
//! Between points it is linear, beyond them it is the value at the edge; a batch above the largest one measured takes as
//! long as that one for each item.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::units::{Nanos, Quota, SmShare};

/// Window of the published launch gate, 40 ms, and what it keeps back of each token, 1 ms, in milliseconds.
const GATE: f64 = 40.0;
const KEPT_BACK: f64 = 1.0;
/// By how much a point may be beside its neighbour in the wrong direction. Published measurements are, by up to 3.1: hosts
/// are slower for some stretches of SM shares.
const TOLERANCE: f64 = 4.0;

/// The measured latency of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Surface {
    batches: Vec<u32>,
    sms: Vec<u32>,
    quotas: Vec<u32>,
    /// Milliseconds by batch, SM share and quota.
    latency: Vec<f64>,
}

/// One measured point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Items.
    pub batch: u32,
    /// SM share in percent.
    pub sm: u32,
    /// Quota in percent.
    pub quota: u32,
    /// Milliseconds.
    pub latency: f64,
}

impl Surface {
    /// The surface through `points`, which must be one for each batch, SM share and quota that occur.
    pub fn new(model: &str, points: &[Point]) -> Result<Self, Invalid> {
        let axis = |of: fn(&Point) -> u32| -> Vec<u32> {
            points.iter().map(of).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let (batches, sms, quotas) = (axis(|p| p.batch), axis(|p| p.sm), axis(|p| p.quota));
        let mut surface =
            Self { latency: vec![f64::NAN; batches.len() * sms.len() * quotas.len()], batches, sms, quotas };
        for point in points {
            let place = |axis: &[u32], value| axis.binary_search(&value).unwrap_or(0);
            let (batch, sm) = (place(&surface.batches, point.batch), place(&surface.sms, point.sm));
            let index = surface.index(batch, sm, place(&surface.quotas, point.quota));
            surface.latency[index] = point.latency;
        }
        surface.check().map_err(|error| error.within(&format!("profile of {model}")))?;
        Ok(surface)
    }

    /// One point for each batch, SM share and quota that occur, and none that is far slower than one of a smaller batch,
    /// more of the SMs or more of the time allows.
    fn check(&self) -> Result<(), Invalid> {
        if self.latency.is_empty() {
            return Err(Invalid::new("points", 0, "one or more"));
        }
        for (batch, sm, quota) in self.places() {
            let ms = self.latency[self.index(batch, sm, quota)];
            let place = self.place(batch, sm, quota);
            if ms.is_nan() {
                let allowed = "one point for each batch, SM share and quota that occur";
                return Err(Invalid::new("point", format!("none at {place}"), allowed));
            }
            let before = |batch, sm, quota| self.latency[self.index(batch, sm, quota)];
            let slower = sm.checked_sub(1).map(|sm| before(batch, sm, quota));
            let slower = slower.into_iter().chain(quota.checked_sub(1).map(|quota| before(batch, sm, quota)));
            let most = slower.fold(f64::INFINITY, f64::min) * TOLERANCE;
            let least = batch.checked_sub(1).map_or(0.0, |batch| before(batch, sm, quota)) / TOLERANCE;
            if !(least..=most).contains(&ms) {
                let allowed = format!("{least:.3} to {most:.3} ms, as its neighbours are");
                return Err(Invalid::new(format!("latency at {place}"), format!("{ms:.3}"), allowed));
            }
        }
        Ok(())
    }

    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (sms, quotas) = (self.sms.len(), self.quotas.len());
        (0..self.latency.len()).map(move |at| (at / (sms * quotas), at / quotas % sms, at % quotas))
    }

    fn place(&self, batch: usize, sm: usize, quota: usize) -> String {
        format!("batch {}, sm {}, quota {}", self.batches[batch], self.sms[sm], self.quotas[quota])
    }

    /// What a batch of `batch` occupies the GPU for at SM share `sm`.
    pub fn gpu_time(&self, sm: SmShare, batch: u32) -> Nanos {
        millis(self.at(batch, f64::from(sm.percent()), 100.0))
    }

    /// How long a batch takes where the launches of kernels are gated and not the GPU's time.
    ///
    /// Where only the whole quota was measured, the launches last as long as the kernels, and the gate lets them through
    /// for all but 1 ms of each token.
    pub fn gated(&self, sm: SmShare, quota: Quota, batch: u32) -> Nanos {
        let sm = f64::from(sm.percent());
        if self.quotas.len() > 1 {
            return millis(self.at(batch, sm, quota.percent()));
        }
        let (whole, q) = (self.at(batch, sm, 100.0), quota.fraction());
        let token = (q * GATE - KEPT_BACK).max(0.1);
        millis(whole + ((whole / token).ceil() - 1.0).max(0.0) * (1.0 - q) * GATE)
    }

    /// Points with the whole quota, as batch, SM share and milliseconds.
    pub fn whole(&self) -> impl Iterator<Item = (u32, u32, f64)> {
        let last = self.quotas.len() - 1;
        self.batches.iter().enumerate().flat_map(move |(b, &batch)| {
            self.sms.iter().enumerate().map(move |(s, &sm)| (batch, sm, self.latency[self.index(b, s, last)]))
        })
    }

    fn at(&self, batch: u32, sm: f64, quota: f64) -> f64 {
        let largest = self.batches[self.batches.len() - 1];
        let factor = (f64::from(batch) / f64::from(largest)).max(1.0);
        let (b, s, q) =
            (between(&self.batches, f64::from(batch)), between(&self.sms, sm), between(&self.quotas, quota));
        let along_quota = |b: usize, s: usize| mixed(q, |q| self.latency[self.index(b, s, q)]);
        factor * mixed(b, |b| mixed(s, |s| along_quota(b, s)))
    }

    fn index(&self, batch: usize, sm: usize, quota: usize) -> usize {
        (batch * self.sms.len() + sm) * self.quotas.len() + quota
    }
}

fn millis(ms: f64) -> Nanos {
    Nanos::from_secs_f64(ms / 1e3)
}

/// The places of `axis` that `value` lies between, and how far it is from the first.
fn between(axis: &[u32], value: f64) -> (usize, usize, f64) {
    let above = axis.partition_point(|&point| f64::from(point) < value).min(axis.len() - 1);
    let below = above.saturating_sub(1);
    let (low, high) = (f64::from(axis[below]), f64::from(axis[above]));
    let part = if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
    (below, above, part)
}

fn mixed((below, above, part): (usize, usize, f64), value: impl Fn(usize) -> f64) -> f64 {
    let low = value(below);
    low + part * (value(above) - low)
}

/// Surfaces by model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surfaces(BTreeMap<String, Arc<Surface>>);

/// Columns of a file of surfaces.
const HEAD: &str = "model,batch,sm,quota,latency_ms";
const POINT: &str = "a name, a batch from 1, SM share and quota from 1 to 100, and milliseconds above 0";

impl Surfaces {
    /// Reads lines `model,batch,sm,quota,latency_ms` after a line with these names; lines that start with `#` are
    /// skipped. A model with a hole is refused, unless other batches of it are complete: those that are not are left
    /// out.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        let head = lines.next().map_or("", |(_, line)| line);
        if head != HEAD {
            return Err(Invalid::new("head of the profiles", head, HEAD));
        }
        let mut points: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
        for (index, line) in lines {
            let (model, point) = point(line)
                .ok_or_else(|| Invalid::new(format!("line {} of the profiles", index + 1), line, POINT))?;
            points.entry(model).or_default().push(point);
        }
        let surface = |(model, points): (&str, Vec<Point>)| {
            Ok((model.to_string(), Arc::new(Surface::new(model, &complete(points))?)))
        };
        Ok(Self(points.into_iter().map(surface).collect::<Result<_, Invalid>>()?))
    }

    /// The GPU times of `profiles`, which say nothing of quotas.
    pub fn of_profiles(text: &str) -> Result<Self, Invalid> {
        Profiles::parse(text)?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).skip(1);
        let with_quota = lines.filter_map(|line| {
            let (point, ms) = line.rsplit_once(',')?;
            Some(format!("{point},100,{ms}\n"))
        });
        Self::parse(&core::iter::once(format!("{HEAD}\n")).chain(with_quota).collect::<String>())
    }

    /// These, and `others` over them.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// The surface of `model`, or which there are.
    pub fn find(&self, model: &str) -> Result<Arc<Surface>, Invalid> {
        self.0.get(model).cloned().ok_or_else(|| {
            let names: Vec<_> = self.0.keys().map(String::as_str).collect();
            Invalid::new("model", model, format!("one of {}", names.join(", ")))
        })
    }

    /// What a policy is told of these models: the time that each batch occupies the GPU.
    pub fn profiles(&self) -> Result<Profiles, Invalid> {
        let points = self.0.iter().flat_map(|(model, surface)| {
            surface.whole().map(move |(batch, sm, ms)| format!("{model},{batch},{sm},{ms}\n"))
        });
        Profiles::parse(
            &core::iter::once("model,batch,sm,ms\n".to_string()).chain(points).collect::<String>(),
        )
    }
}

fn point(line: &str) -> Option<(&str, Point)> {
    let cells: Vec<_> = line.split(',').map(str::trim).collect();
    let [model, batch, sm, quota, latency]: [&str; 5] = cells.try_into().ok()?;
    let percent = |text: &str| text.parse().ok().filter(|percent| (1..=100).contains(percent));
    let point = Point {
        batch: batch.parse().ok().filter(|&batch| batch > 0)?,
        sm: percent(sm)?,
        quota: percent(quota)?,
        latency: latency.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms > 0.0)?,
    };
    (!model.is_empty()).then_some((model, point))
}

/// The points of batches that have as many as the fullest.
fn complete(points: Vec<Point>) -> Vec<Point> {
    let count = |batch: u32| points.iter().filter(|point| point.batch == batch).count();
    let counts: BTreeMap<u32, usize> = points.iter().map(|point| (point.batch, 0)).collect();
    let counts: BTreeMap<u32, usize> = counts.into_keys().map(|batch| (batch, count(batch))).collect();
    let most = counts.values().copied().max().unwrap_or(0);
    points.into_iter().filter(|point| counts.get(&point.batch) == Some(&most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sm(percent: u8) -> SmShare {
        SmShare::from_percent(percent).unwrap()
    }

    fn quota(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    fn surfaces(lines: &str) -> Result<Surfaces, Invalid> {
        Surfaces::parse(&format!("{HEAD}\n{lines}"))
    }

    #[test]
    fn latency_is_linear_between_points_and_constant_beyond_them() {
        let lines = "m,1,10,50,40\nm,1,10,100,20\nm,1,20,50,30\nm,1,20,100,10\n\
                     m,3,10,50,80\nm,3,10,100,60\nm,3,20,50,50\nm,3,20,100,30\n";
        let surface = surfaces(lines).unwrap().find("m").unwrap();
        assert_eq!(surface.gpu_time(sm(15), 1), Nanos::from_millis(15));
        assert_eq!(surface.gpu_time(sm(10), 2), Nanos::from_millis(40));
        assert_eq!(surface.gpu_time(sm(5), 1), Nanos::from_millis(20));
        assert_eq!(surface.gpu_time(sm(20), 6), Nanos::from_millis(60));
        assert_eq!(surface.gated(sm(20), quota(75), 1), Nanos::from_millis(20));
        assert_eq!(surface.gated(sm(20), quota(10), 1), Nanos::from_millis(30));
    }

    #[test]
    fn without_measured_quotas_the_gate_stretches_launches_by_the_windows_that_it_is_shut() {
        let surface = Surfaces::of_profiles("model,batch,sm,ms\nm,1,100,20\n").unwrap().find("m").unwrap();
        assert_eq!(surface.gated(SmShare::WHOLE, Quota::WHOLE, 1), Nanos::from_millis(20));
        // 19 ms of each token: one time shut for 20 ms.
        assert_eq!(surface.gated(SmShare::WHOLE, quota(50), 1), Nanos::from_millis(40));
    }

    #[test]
    fn a_hole_and_a_bad_line_are_refused() {
        let error = surfaces("m,1,10,50,40\nm,1,20,100,20\n").unwrap_err().to_string();
        let hole =
            "profile of m, point is \"none at batch 1, sm 10, quota 100\", allowed is one point for each";
        assert!(error.starts_with(hole), "{error}");
        for line in
            ["m,1,10,50", "m,0,10,50,1", "m,1,0,50,1", "m,1,10,101,1", "m,1,10,50,-1", "m,1,10,50,nan"]
        {
            let error = surfaces(line).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of the profiles is "), "{error}");
        }
    }

    #[test]
    fn a_point_that_can_not_be_is_refused_and_the_noise_of_measurements_is_not() {
        assert!(surfaces("m,1,10,100,20\nm,1,20,100,60\n").is_ok());
        let cases = [
            ("m,1,10,100,20\nm,1,20,100,90\n", "latency at batch 1, sm 20, quota 100 is \"90.000\""),
            ("m,1,10,50,20\nm,1,10,100,90\n", "latency at batch 1, sm 10, quota 100 is \"90.000\""),
            ("m,1,10,100,50\nm,2,10,100,9\n", "latency at batch 2, sm 10, quota 100 is \"9.000\""),
        ];
        for (lines, start) in cases {
            let error = surfaces(lines).unwrap_err().to_string();
            assert!(error.starts_with(&format!("profile of m, {start}")), "{error}");
        }
    }

    #[test]
    fn a_batch_that_was_not_measured_throughout_is_left_out() {
        let lines = "m,1,10,100,20\nm,1,20,100,10\nm,8,10,100,90\n";
        let surface = surfaces(lines).unwrap().find("m").unwrap();
        assert_eq!(surface.gpu_time(sm(10), 2), Nanos::from_millis(40));
    }

    #[test]
    fn a_policy_is_told_the_same_times() {
        let surfaces = surfaces("m,1,10,100,20\nm,1,20,100,10\n").unwrap();
        let profiles = surfaces.profiles().unwrap();
        for percent in [10, 15, 20] {
            let told = profiles.get("m").unwrap().gpu_time(sm(percent), 1);
            assert_eq!(told, surfaces.find("m").unwrap().gpu_time(sm(percent), 1));
        }
    }
}
