//! The profile of one function on one kind of GPU, where quotas share GPU time: a sheet of measured points, as YAML.
//!
//! Pure. GPU time depends on SM share and batch alone; a quota stretches it (see [`gpu_share::quota`]):
//!
//! ```text
//! latency(batch, sm, q) = max(e(batch, sm) + overhead, e(batch, sm) / q + phase · (1 − q) · window)
//! ```
//!
//! `e` is measured by the node's own account of GPU time; the two other terms follow from the latencies of all points. What a
//! request does beside GPU work adds to its latency only where the quota does not hold it up: meanwhile the quota flows in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use gpu_share::annotations::Slo;
use gpu_share::invalid::Invalid;
use gpu_share::latency::{Profiles, Surface};
use gpu_share::units::SmShare;
use serde::{Deserialize, Serialize};

/// What a sheet says that it is.
const API_VERSION: &str = "gpufn.dev/v1";
const KIND: &str = "Profile";
/// By how much more SMs may seem slower, or a larger batch faster, before it is an error of measurement.
const TOLERANCE: f64 = 1.1;
/// Points between which nothing more is to be learnt: what lies between them is known so well.
const KNOWN: f64 = 0.01;
/// Quotas that tell overhead and phase apart.
const QUOTAS: [u8; 3] = [100, 25, 50];
/// Share of the SMs that neighbours on the sheet handed to others are apart, percent.
const STEP: u8 = 5;

/// A sheet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sheet {
    api_version: String,
    kind: String,
    /// Name that functions give in `gpufn.dev/model`.
    pub model: String,
    /// The GPU, in words.
    pub gpu: String,
    /// Π, milliseconds.
    pub window_ms: f64,
    /// What was measured, or predicted.
    pub points: Vec<Sample>,
}

/// Where a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Items of one request.
    pub batch: u32,
    /// Percent.
    pub sm: u8,
    /// Percent.
    pub quota: u8,
}

/// One measured point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// GPU time of one request, milliseconds.
    pub gpu_ms: f64,
    /// Mean latency of one request that nothing delays, milliseconds.
    pub latency_ms: f64,
    /// Requests that both are means of; 1 if they are predicted.
    pub requests: u32,
    /// Milliseconds between which the latency lies with 90 %, if it is predicted and not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<[f64; 2]>,
}

/// What latencies have beside GPU time over quota.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Beside {
    /// Where the quota holds nothing up.
    overhead_ms: f64,
    /// Part of the time without right in one window that a request waits on average.
    phase: f64,
}

impl Sheet {
    /// A sheet without points.
    pub fn new(model: impl Into<String>, gpu: impl Into<String>, window_ms: f64) -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            model: model.into(),
            gpu: gpu.into(),
            window_ms,
            points: Vec::new(),
        }
    }

    /// Reads a sheet that is whole: every batch at the same SM shares, and no time that can't be.
    pub fn read(text: &str) -> Result<Self, Invalid> {
        let sheet = Self::read_part(text)?;
        sheet.check_whole()?;
        sheet.check_rising()?;
        Ok(sheet)
    }

    /// Reads a sheet to which points may still come.
    pub fn read_part(text: &str) -> Result<Self, Invalid> {
        let form = "a profile as `gpufn profile` writes it";
        let sheet: Self = serde_yaml::from_str(text).map_err(|error| Invalid::new("profile", error, form))?;
        let named = [("apiVersion", &sheet.api_version, API_VERSION), ("kind", &sheet.kind, KIND)];
        if let Some((field, value, allowed)) = named.into_iter().find(|(_, value, allowed)| value != allowed)
        {
            return Err(Invalid::new(field, value, allowed));
        }
        if sheet.model.is_empty() || sheet.model.contains([',', '\n']) {
            return Err(Invalid::new("model", &sheet.model, "a name without comma"));
        }
        positive("windowMs", sheet.window_ms)?;
        sheet.points.iter().enumerate().try_for_each(|(index, point)| {
            point.check().map_err(|error| error.within(&format!("point {}", index + 1)))
        })?;
        let mut places = BTreeSet::new();
        match sheet.points.iter().find(|point| !places.insert(point.place)) {
            Some(twice) => Err(Invalid::new("points", twice.place, "each point once")),
            None => Ok(sheet),
        }
    }

    /// The sheet as text.
    pub fn to_yaml(&self) -> Result<String, Invalid> {
        serde_yaml::to_string(self).map_err(|error| Invalid::new("profile", error, "what YAML can say"))
    }

    fn check_whole(&self) -> Result<(), Invalid> {
        let times = self.gpu_times();
        if times.is_empty() {
            return Err(Invalid::new("points", 0, "one point or more"));
        }
        let sms: BTreeSet<_> = times.values().flat_map(|row| row.keys().copied()).collect();
        let hole = times
            .iter()
            .find_map(|(batch, row)| Some((batch, sms.iter().find(|sm| !row.contains_key(*sm))?)));
        hole.map_or(Ok(()), |(batch, sm)| {
            let allowed = "every batch at the same SM shares: this point is missing";
            Err(Invalid::new("points", format!("batch {batch}, sm {sm}"), allowed))
        })
    }

    /// More SMs are not slower, a larger batch not faster, a larger quota not slower.
    fn check_rising(&self) -> Result<(), Invalid> {
        let times = self.gpu_times();
        let refused = |field: &str, at: String, ms: f64, least: bool, bound: f64| {
            let side = if least { "at least" } else { "at most" };
            Err(Invalid::new(format!("{field} at {at}"), format!("{ms:.3}"), format!("{side} {bound:.3} ms")))
        };
        for (batch, row) in &times {
            let mut least = f64::INFINITY;
            for (sm, &ms) in row {
                if ms > TOLERANCE * least {
                    return refused("gpuMs", format!("batch {batch}, sm {sm}"), ms, false, TOLERANCE * least);
                }
                least = least.min(ms);
            }
        }
        for ((_, small), (batch, large)) in times.iter().zip(times.iter().skip(1)) {
            for (sm, &ms) in large {
                let bound = small.get(sm).copied().unwrap_or_default() / TOLERANCE;
                if ms < bound {
                    return refused("gpuMs", format!("batch {batch}, sm {sm}"), ms, true, bound);
                }
            }
        }
        let mut points = self.points.clone();
        points.sort_by_key(|point| point.place);
        for pair in points.windows(2) {
            let [a, b] = [pair[0], pair[1]];
            let same = (a.place.batch, a.place.sm) == (b.place.batch, b.place.sm);
            if same && b.latency_ms > TOLERANCE * a.latency_ms {
                return refused(
                    "latencyMs",
                    b.place.to_string(),
                    b.latency_ms,
                    false,
                    TOLERANCE * a.latency_ms,
                );
            }
        }
        Ok(())
    }

    /// The position of the first point that took longer than one with fewer SMs or a smaller quota, by more than noise: the
    /// machine held it up, for nothing makes work shorter than it is.
    pub fn disturbed(&self) -> Option<usize> {
        let is_too_long = |point: &Sample, other: &Sample| {
            let (place, less) = (point.place, other.place);
            let fewer_sms = less.batch == place.batch && less.sm < place.sm;
            let less_time = (less.batch, less.sm) == (place.batch, place.sm) && less.quota < place.quota;
            fewer_sms && point.gpu_ms > TOLERANCE * other.gpu_ms
                || less_time && point.latency_ms > TOLERANCE * other.latency_ms
        };
        self.points.iter().position(|point| self.points.iter().any(|other| is_too_long(point, other)))
    }

    /// GPU time by batch and SM share: the mean over quotas, weighted by requests.
    fn gpu_times(&self) -> BTreeMap<u32, BTreeMap<u8, f64>> {
        let mut sums: BTreeMap<u32, BTreeMap<u8, (f64, f64)>> = BTreeMap::new();
        for point in &self.points {
            let sum = sums.entry(point.place.batch).or_default().entry(point.place.sm).or_default();
            let requests = f64::from(point.requests);
            *sum = (sum.0 + requests * point.gpu_ms, sum.1 + requests);
        }
        let mean = |row: BTreeMap<u8, (f64, f64)>| -> BTreeMap<u8, f64> {
            row.into_iter().map(|(sm, (sum, n))| (sm, sum / n)).collect()
        };
        sums.into_iter().map(|(batch, row)| (batch, mean(row))).collect()
    }

    /// GPU time of a request in milliseconds: linear in 1/SM between the SM shares that were measured, as work that
    /// every SM takes part in is; the nearest one's beyond them. `None` for a batch that was not measured.
    pub fn gpu_ms(&self, batch: u32, sm: u8) -> Option<f64> {
        Some(between(self.gpu_times().get(&batch)?, sm)?.0)
    }

    /// Mean latency in milliseconds of a request that nothing delays; `None` for a batch that was not measured.
    pub fn latency_ms(&self, place: Place) -> Option<f64> {
        let gpu = self.gpu_ms(place.batch, place.sm)?;
        Some(self.beside().latency_ms(gpu, fraction(place.quota), self.window_ms))
    }

    /// The overhead as the mean of points with the whole time, the phase by least squares of relative errors over those that
    /// their quota holds up; neither is negative.
    fn beside(&self) -> Beside {
        let whole = self.points.iter().filter(|point| point.place.quota == 100);
        let rests: Vec<_> = whole.map(|point| point.latency_ms - point.gpu_ms).collect();
        let count = f64::from(u32::try_from(rests.len()).unwrap_or(u32::MAX));
        let overhead_ms = (rests.iter().sum::<f64>() / count.max(1.0)).max(0.0);
        let (mut products, mut squares) = (0.0, 0.0);
        for point in &self.points {
            let quota = fraction(point.place.quota);
            let stretched = point.gpu_ms / quota;
            if stretched > point.gpu_ms + overhead_ms {
                let (phase, weight) = ((1.0 - quota) * self.window_ms, point.latency_ms.powi(-2));
                products += weight * phase * (point.latency_ms - stretched);
                squares += weight * phase * phase;
            }
        }
        let phase = if squares > 0.0 { (products / squares).max(0.0) } else { 0.0 };
        Beside { overhead_ms, phase }
    }

    /// Where to measure next, `None` if all that `sms` may tell is known: first how quotas stretch the SM share that the
    /// function has, then the ends of `sms`, then where two ways of drawing the surface disagree most.
    pub fn next(&self, batch: u32, own: u8, sms: &[u8]) -> Option<Place> {
        let is_new = |place: &Place| self.points.iter().all(|point| point.place != *place);
        let at = |sm: u8, quota: u8| Place { batch, sm, quota };
        let ends = [sms.iter().max(), sms.iter().min()].into_iter().flatten().map(|&sm| at(sm, 100));
        let wanted = QUOTAS.into_iter().map(|quota| at(own, quota)).chain(ends).find(is_new);
        wanted.or_else(|| {
            let times = self.gpu_times();
            let row = times.get(&batch)?;
            let doubt = |&&sm: &&u8| Some((between(row, sm)?.1, at(sm, 100)));
            let doubts = sms.iter().filter(|sm| !row.contains_key(*sm));
            let most = doubts.filter_map(|sm| doubt(&sm)).max_by(|a, b| a.0.total_cmp(&b.0))?;
            (most.0 > KNOWN).then_some(most.1)
        })
    }

    /// The profile as others read it: GPU time by batch and SM share.
    pub fn profiles(&self) -> Result<Profiles, Invalid> {
        let mut text = String::from("model,batch,sm,ms\n");
        for (batch, row) in self.gpu_times() {
            let steps = (1..=100 / STEP).map(|step| step * STEP);
            let sms: BTreeSet<_> = steps.chain(row.keys().copied()).collect();
            for sm in sms {
                let ms = between(&row, sm).map_or(0.0, |between| between.0);
                let _ = writeln!(text, "{},{batch},{sm},{ms}", self.model);
            }
        }
        Profiles::parse(&text)
    }
}

impl Beside {
    fn latency_ms(self, gpu_ms: f64, quota: f64, window_ms: f64) -> f64 {
        let held_up = gpu_ms / quota + self.phase * (1.0 - quota) * window_ms;
        held_up.max(gpu_ms + self.overhead_ms)
    }
}

impl Sample {
    fn check(&self) -> Result<(), Invalid> {
        let Place { batch, sm, quota } = self.place;
        let within = |field: &str, value: u32, most: u32| {
            let sound = (1..=most).contains(&value);
            sound.then_some(()).ok_or_else(|| Invalid::new(field, value, format!("1 to {most}")))
        };
        within("batch", batch, 1024)?;
        within("sm", sm.into(), 100)?;
        within("quota", quota.into(), 100)?;
        within("requests", self.requests, u32::MAX)?;
        positive("gpuMs", self.gpu_ms)?;
        positive("latencyMs", self.latency_ms)?;
        let Some([low, high]) = self.interval_ms else { return Ok(()) };
        let sound = 0.0 < low && low <= self.latency_ms && self.latency_ms <= high && high.is_finite();
        let allowed = || format!("two numbers above 0 around {} ms", self.latency_ms);
        sound.then_some(()).ok_or_else(|| Invalid::new("intervalMs", format!("[{low}, {high}]"), allowed()))
    }
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "batch {}, sm {}, quota {}", self.batch, self.sm, self.quota)
    }
}

fn positive(field: &str, value: f64) -> Result<(), Invalid> {
    let sound = value.is_finite() && value > 0.0;
    sound.then_some(()).ok_or_else(|| Invalid::new(field, value, "a number above 0"))
}

fn fraction(percent: u8) -> f64 {
    f64::from(percent) / 100.0
}

/// The time at `sm`, and how far (in its logarithm) it would be elsewhere on a straight line through the logarithms.
fn between(row: &BTreeMap<u8, f64>, sm: u8) -> Option<(f64, f64)> {
    match (row.range(..=sm).next_back(), row.range(sm..).next()) {
        (Some((&low, &a)), Some((&high, &b))) if low < high => {
            let inverse = |sm: u8| 1.0 / f64::from(sm);
            let part = (inverse(low) - inverse(sm)) / (inverse(low) - inverse(high));
            let ln = |sm: u8| f64::from(sm).ln();
            let ln_part = (ln(sm) - ln(low)) / (ln(high) - ln(low));
            let ms = a + part * (b - a);
            Some((ms, (ms.ln() - a.ln() - ln_part * (b.ln() - a.ln())).abs()))
        }
        (Some((_, &ms)), _) | (None, Some((_, &ms))) => Some((ms, 0.0)),
        (None, None) => None,
    }
}

/// Refuses an objective that no share of a GPU can keep, since one request on the whole GPU takes longer already.
pub fn check_reachable(field: &str, slo: &Slo, profile: &Surface) -> Result<(), Invalid> {
    let shares = (1..=100).filter_map(|percent| SmShare::from_percent(percent).ok());
    let fastest = shares.map(|sm| profile.gpu_time(sm, 1)).min().unwrap_or_default();
    if fastest <= slo.bound {
        return Ok(());
    }
    let ms = fastest.millis_f64();
    Err(Invalid::new(
        field,
        slo,
        format!("a longer one: cannot be met: fastest is {ms:.1} ms on a whole GPU"),
    ))
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Nanos;

    use super::*;

    fn sample(sm: u8, quota: u8, gpu_ms: f64) -> Sample {
        let latency_ms = Beside { overhead_ms: 2.0, phase: 0.5 }.latency_ms(gpu_ms, fraction(quota), 10.0);
        Sample { place: Place { batch: 1, sm, quota }, gpu_ms, latency_ms, requests: 50, interval_ms: None }
    }

    fn sheet(points: &[Sample]) -> Sheet {
        Sheet { points: points.to_vec(), ..Sheet::new("m", "a GPU", 10.0) }
    }

    #[test]
    fn eight_points_give_all_quotas_and_sm_shares_of_a_model_with_a_knee() {
        let truth = |sm: u8| 4.0 + 6.0 / fraction(sm).min(0.5);
        let sms: Vec<u8> = (1..=20).map(|step| 5 * step).collect();
        let mut sheet = sheet(&[]);
        while let Some(place) = sheet.next(1, 30, &sms).filter(|_| sheet.points.len() < 8) {
            sheet.points.push(sample(place.sm, place.quota, truth(place.sm)));
        }
        assert!(sheet.points.len() <= 8);
        let miss = |sm: u8, quota: u8| {
            let found = sheet.latency_ms(Place { batch: 1, sm, quota }).unwrap();
            (found / sample(sm, quota, truth(sm)).latency_ms - 1.0).abs()
        };
        let misses: Vec<_> = sms
            .iter()
            .flat_map(|&sm| (1..=10).map(move |tenth| (sm, 10 * tenth)))
            .map(|(s, q)| miss(s, q))
            .collect();
        assert!(misses.iter().sum::<f64>() / 200.0 < 0.01, "{misses:?}");
        assert!(
            (1..=10).all(|tenth| miss(30, 10 * tenth) < 1e-6),
            "the quotas of a measured SM share are exact"
        );
        assert_eq!(sheet.latency_ms(Place { batch: 2, sm: 50, quota: 50 }), None);
    }

    /// Measured by `gpufn profile resnet50 --check` on the simulated V100.
    #[test]
    fn quotas_that_were_measured_on_a_running_function_are_met_within_three_percent() {
        let measured = |(quota, latency_ms)| {
            let place = Place { batch: 1, sm: 10, quota };
            Sample { place, gpu_ms: 21.05, latency_ms, requests: 40, interval_ms: None }
        };
        let sheet = sheet(&[(100, 22.6), (25, 84.31), (50, 42.11)].map(measured));
        for (quota, latency_ms) in [(20, 105.0), (40, 52.6), (60, 35.1), (80, 26.3)] {
            let found = sheet.latency_ms(Place { batch: 1, sm: 10, quota }).unwrap();
            assert!(
                (found / latency_ms - 1.0).abs() < 0.03,
                "{quota} %: {found} ms, {latency_ms} ms measured"
            );
        }
    }

    #[test]
    fn a_sheet_is_read_as_it_is_written() {
        let sheet = sheet(&[sample(10, 100, 30.0), sample(50, 100, 10.0)]);
        assert_eq!(Sheet::read(&sheet.to_yaml().unwrap()).unwrap(), sheet);
        let profiles = sheet.profiles().unwrap();
        let surface = profiles.get("m").unwrap();
        assert_eq!(surface.gpu_time(SmShare::from_percent(50).unwrap(), 1), Nanos::from_millis(10));
    }

    #[test]
    fn what_can_not_be_is_named() {
        let read =
            |points: &[Sample]| Sheet::read(&sheet(points).to_yaml().unwrap()).unwrap_err().to_string();
        let good = sample(10, 100, 30.0);
        let two =
            |sm| Sample { place: Place { batch: 2, ..sample(sm, 100, 40.0).place }, ..sample(sm, 100, 40.0) };
        let cases = [
            (vec![], "points is \"0\""),
            (vec![good, sample(20, 100, 20.0), two(10)], "points is \"batch 2, sm 20\""),
            (
                vec![good, sample(20, 100, 40.0)],
                "gpuMs at batch 1, sm 20 is \"40.000\", allowed is at most 33.000 ms",
            ),
            (vec![Sample { gpu_ms: -1.0, ..good }], "point 1, gpuMs is \"-1\""),
            (vec![Sample { latency_ms: 0.0, ..good }], "point 1, latencyMs is \"0\""),
            (vec![good, good], "points is \"batch 1, sm 10, quota 100\", allowed is each point once"),
            (vec![Sample { requests: 0, ..good }], "point 1, requests is \"0\""),
            (vec![Sample { interval_ms: Some([40.0, 50.0]), ..good }], "point 1, intervalMs is \"[40, 50]\""),
            (
                vec![sample(10, 50, 30.0), Sample { latency_ms: 90.0, ..good }],
                "latencyMs at batch 1, sm 10, quota 100 is \"90.000\"",
            ),
        ];
        for (points, start) in cases {
            let error = read(&points);
            assert!(error.starts_with(start), "{start}: {error}");
        }
        let error = Sheet::read("model: m\n").unwrap_err().to_string();
        assert!(error.starts_with("profile is") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_point_that_the_machine_held_up_is_found_until_it_is_measured_again() {
        let good = [sample(10, 100, 20.0), sample(10, 50, 20.0), sample(20, 100, 12.0)];
        assert_eq!(sheet(&good).disturbed(), None);
        let mut slow = good;
        slow[0].latency_ms = 1.2 * slow[1].latency_ms;
        assert_eq!(sheet(&slow).disturbed(), Some(0));
        assert!(Sheet::read(&sheet(&slow).to_yaml().unwrap()).is_err());
        let mut busy = good;
        busy[2].gpu_ms = 23.0;
        assert_eq!(sheet(&busy).disturbed(), Some(2));
        busy[2] = good[2];
        assert_eq!(sheet(&busy).disturbed(), None);
    }

    #[test]
    fn an_objective_below_the_fastest_is_refused() {
        let profiles = sheet(&[sample(10, 100, 30.0), sample(50, 100, 10.0)]).profiles().unwrap();
        let slo = |ms| Slo { percentile: 0.95, bound: Nanos::from_millis(ms) };
        let surface = profiles.get("m").unwrap();
        assert!(check_reachable("gpufn.dev/slo", &slo(10), surface).is_ok());
        let error = check_reachable("gpufn.dev/slo", &slo(9), surface).unwrap_err().to_string();
        assert!(error.ends_with("cannot be met: fastest is 10.0 ms on a whole GPU"), "{error}");
    }
}
