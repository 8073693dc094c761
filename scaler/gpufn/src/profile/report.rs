//! What `gpufn profile` found: measured points beside the profile's own account of them, the check, and the objective.
//!
//! Pure. The same is told as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::names::annotation;
use gpu_share::units::Bytes;
use scaler::profile::sheet::{Place, Sample, Sheet, check_reachable};
use serde::Serialize;

use crate::figures::{number, short, table};

/// Bound of the mean error at points that were not measured for the profile, percent.
const EXACT: f64 = 3.0;

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    profile: Sheet,
    /// If it was asked for, and there was something to check by.
    check: Option<Check>,
    /// Why the function's objective can't be met, if so.
    objective: Option<String>,
}

/// The profile held against points that it has not seen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    points: Vec<Checked>,
    mean_off_percent: f64,
    allowed_percent: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    #[serde(flatten)]
    place: Place,
    latency_ms: f64,
    predicted_ms: f64,
    off_percent: f64,
}

impl Report {
    /// On a profile, points to check it by, and the function's annotations.
    pub(super) fn new(
        profile: Sheet,
        checked: &[Sample],
        annotations: &BTreeMap<String, String>,
    ) -> Result<Self, Invalid> {
        let check = (!checked.is_empty()).then(|| Check::new(&profile, checked));
        let objective = objective(&profile, annotations)?;
        Ok(Self { profile, check, objective })
    }

    /// The profile.
    pub(super) fn profile(&self) -> &Sheet {
        &self.profile
    }

    /// Whether the check is passed and the objective can be met.
    pub(super) fn is_ok(&self) -> bool {
        let exact = self.check.as_ref().is_none_or(|check| check.mean_off_percent <= check.allowed_percent);
        exact && self.objective.is_none()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let row = |point: &Sample| {
            let predicted = self.profile.latency_ms(point.place).unwrap_or(f64::NAN);
            let times = [point.gpu_ms, point.latency_ms, predicted].map(|ms| format!("{} ms", short(ms)));
            [point.place.to_string()].into_iter().chain(times).collect()
        };
        let rows: Vec<_> = self.profile.points.iter().map(row).collect();
        let mut text = table(&["point", "GPU time", "latency", "by the profile"], &rows);
        for line in self.check.iter().flat_map(Check::lines).chain(self.objective.clone()) {
            // A String takes whatever is written to it.
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

impl Check {
    fn new(profile: &Sheet, checked: &[Sample]) -> Self {
        let point = |sample: &Sample| {
            let Sample { place, latency_ms, .. } = *sample;
            let predicted_ms = profile.latency_ms(place).unwrap_or(f64::NAN);
            Checked {
                place,
                latency_ms,
                predicted_ms,
                off_percent: 100.0 * (predicted_ms / latency_ms - 1.0),
            }
        };
        let points: Vec<_> = checked.iter().map(point).collect();
        let sum: f64 = points.iter().map(|point| point.off_percent.abs()).sum();
        let mean_off_percent = sum / number(points.len() as u64);
        Self { points, mean_off_percent, allowed_percent: EXACT }
    }

    fn lines(&self) -> Vec<String> {
        let line = |point: &Checked| {
            let Checked { place, latency_ms, off_percent, .. } = point;
            format!(
                "check    {place}: {} ms, the profile is off by {} %",
                short(*latency_ms),
                short(*off_percent)
            )
        };
        let mean = format!(
            "check    off by {} % in the mean, allowed are {} %",
            short(self.mean_off_percent),
            self.allowed_percent
        );
        self.points.iter().map(line).chain([mean]).collect()
    }
}

/// Why no share of a GPU can keep the function's objective, if so.
fn objective(profile: &Sheet, annotations: &BTreeMap<String, String>) -> Result<Option<String>, Invalid> {
    let profiles = profile.profiles()?;
    let mut annotations = annotations.clone();
    annotations.remove(annotation::MODEL);
    // Only the objective is asked for, so any memory does.
    let wish = Wish::read(&annotations, Bytes::gib(16), &profiles)?;
    let (Some(slo), Some(surface)) = (wish.and_then(|wish| wish.slo), profiles.get(&profile.model)) else {
        return Ok(None);
    };
    let reachable = check_reachable(annotation::SLO, &slo, surface);
    Ok(reachable.err().map(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sm: u8, quota: u8, gpu_ms: f64, latency_ms: f64) -> Sample {
        Sample { place: Place { batch: 1, sm, quota }, gpu_ms, latency_ms, requests: 40, interval_ms: None }
    }

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new("m", "a GPU", 10.0);
        sheet.points = vec![sample(10, 100, 20.0, 22.0), sample(10, 50, 20.0, 40.0)];
        sheet
    }

    #[test]
    fn a_profile_that_misses_what_it_has_not_seen_is_not_ok() {
        let report =
            |latency_ms| Report::new(sheet(), &[sample(10, 25, 20.0, latency_ms)], &BTreeMap::new()).unwrap();
        assert!(report(80.0).is_ok());
        let off = report(100.0);
        assert!(!off.is_ok());
        assert!(off.text().contains("off by -20 %") && off.text().contains("off by 20 % in the mean"));
        let json = serde_json::to_value(&off).unwrap();
        assert_eq!(json["check"]["points"][0]["quota"], 25);
        assert_eq!(json["profile"]["points"][0]["gpuMs"], 20.0);
        assert!(json["objective"].is_null());
    }

    #[test]
    fn an_objective_that_can_not_be_met_is_told() {
        let annotations = |slo: &str| {
            [(annotation::SM, "10"), (annotation::SLO, slo)]
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .into()
        };
        assert!(Report::new(sheet(), &[], &annotations("p95<25ms")).unwrap().is_ok());
        let report = Report::new(sheet(), &[], &annotations("p95<15ms")).unwrap();
        assert!(!report.is_ok());
        assert!(
            report.text().ends_with("cannot be met: fastest is 20.0 ms on a whole GPU\n"),
            "{}",
            report.text()
        );
    }
}
