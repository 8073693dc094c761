//! Latency of a model on one kind of GPU: how long a batch occupies the GPU at a given SM share.
//!
//! The simulated GPU, the scaler and the simulator evaluate the same surface; only the scaler corrects it.

use std::collections::BTreeMap;

use crate::invalid::Invalid;
use crate::units::{Nanos, SmShare};

/// The profiles that gpufn ships, measured on a V100 (see the head of the file for the sources).
const V100: &str = include_str!("../profiles/v100.csv");

/// GPU time of one model over SM share and batch.
///
/// Between measured points it is linear; outside of them it is the value at the nearest edge, scaled by the batch
/// above the largest one measured (a larger batch is at best as efficient as the largest measured).
#[derive(Clone, Debug, PartialEq)]
pub struct Surface {
    /// Seconds by SM share (percent), by batch.
    seconds: BTreeMap<u32, BTreeMap<u8, f64>>,
}

impl Surface {
    /// GPU time of a batch of `batch` items at `sm`.
    pub fn gpu_time(&self, sm: SmShare, batch: u32) -> Nanos {
        let batch = batch.max(1);
        let at = |row: &BTreeMap<u8, f64>| interpolate(row, sm.percent());
        let below = self.seconds.range(..=batch).next_back();
        let above = self.seconds.range(batch..).next();
        let seconds = match (below, above) {
            (Some((&low, row)), Some((&high, next))) if low < high => {
                let part = f64::from(batch - low) / f64::from(high - low);
                at(row) + part * (at(next) - at(row))
            }
            (Some((&largest, row)), None) => at(row) * f64::from(batch) / f64::from(largest),
            (Some((_, row)), _) | (None, Some((_, row))) => at(row),
            (None, None) => 0.0,
        };
        Nanos::from_secs_f64(seconds)
    }
}

/// Value at `x`, linear between the neighbours in `row`, constant beyond its ends.
fn interpolate(row: &BTreeMap<u8, f64>, x: u8) -> f64 {
    match (row.range(..=x).next_back(), row.range(x..).next()) {
        (Some((&low, &a)), Some((&high, &b))) if low < high => {
            a + f64::from(x - low) / f64::from(high - low) * (b - a)
        }
        (Some((_, &value)), _) | (None, Some((_, &value))) => value,
        (None, None) => 0.0,
    }
}

/// Profiles of many models on one kind of GPU, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profiles(BTreeMap<String, Surface>);

impl Profiles {
    /// The profiles that gpufn ships: `resnet50`, `convnext_base`, `vgg16` and `bert` on a V100.
    pub fn shipped() -> Self {
        // A test reads the same text, so a file that does not parse never leaves the build.
        Self::parse(V100).unwrap_or_default()
    }

    /// Reads lines `model,batch,sm,ms` after a line with these names; lines that start with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
        match lines.next() {
            Some((_, "model,batch,sm,ms")) => {}
            head => return Err(Invalid::new("profile head", head.map_or("", |h| h.1), "model,batch,sm,ms")),
        }
        let mut profiles = Self::default();
        for (index, line) in lines {
            let bad = || Invalid::new(format!("profile line {}", index + 1), line, POINT);
            let [model, batch, sm, ms]: [&str; 4] =
                line.split(',').collect::<Vec<_>>().try_into().map_err(|_| bad())?;
            let batch: u32 = batch.parse().ok().filter(|&b| b > 0).ok_or_else(bad)?;
            let sm = sm.parse().ok().and_then(|sm| SmShare::from_percent(sm).ok()).ok_or_else(bad)?;
            let ms: f64 = ms.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms > 0.0).ok_or_else(bad)?;
            if model.is_empty() {
                return Err(bad());
            }
            let surface =
                profiles.0.entry(model.into()).or_insert_with(|| Surface { seconds: BTreeMap::new() });
            surface.seconds.entry(batch).or_default().insert(sm.percent(), ms / 1e3);
        }
        Ok(profiles)
    }

    /// These profiles, and `others` over them.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// The profile of `model`.
    pub fn get(&self, model: &str) -> Option<&Surface> {
        self.0.get(model)
    }

    /// Names of the models, in order.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// What a point of a profile looks like.
const POINT: &str = "a name, a batch from 1, an SM share from 1 to 100 and milliseconds above 0";

#[cfg(test)]
mod tests {
    use super::*;

    fn sm(percent: u8) -> SmShare {
        SmShare::from_percent(percent).unwrap()
    }

    #[test]
    fn the_shipped_profiles_hold_the_four_models_of_the_demo() {
        let profiles = Profiles::parse(V100).unwrap();
        let models: Vec<_> = profiles.models().collect();
        assert_eq!(models, ["bert", "convnext_base", "resnet50", "vgg16"]);
        let vgg = profiles.get("vgg16").unwrap();
        assert_eq!(vgg.gpu_time(sm(10), 8), Nanos::from_micros(126_367));
    }

    #[test]
    fn between_points_time_is_linear_and_beyond_them_it_is_the_edge() {
        let text = "model,batch,sm,ms\nm,1,10,20\nm,1,20,10\nm,4,10,50\nm,4,20,25\n";
        let profiles = Profiles::parse(text).unwrap();
        let surface = profiles.get("m").unwrap();
        assert_eq!(surface.gpu_time(sm(15), 1), Nanos::from_millis(15));
        assert_eq!(surface.gpu_time(sm(10), 2), Nanos::from_millis(30));
        assert_eq!(surface.gpu_time(sm(5), 1), Nanos::from_millis(20));
        assert_eq!(surface.gpu_time(sm(90), 1), Nanos::from_millis(10));
        assert_eq!(surface.gpu_time(sm(20), 8), Nanos::from_millis(50));
    }

    #[test]
    fn a_profile_stands_over_an_older_one_of_its_name() {
        let parse = |text: &str| Profiles::parse(&format!("model,batch,sm,ms\n{text}\n")).unwrap();
        let profiles = parse("a,1,10,5\nb,1,10,6").with(parse("a,1,10,7"));
        let time = |model: &str| profiles.get(model).unwrap().gpu_time(sm(10), 1);
        assert_eq!((time("a"), time("b")), (Nanos::from_millis(7), Nanos::from_millis(6)));
    }

    #[test]
    fn a_bad_line_is_named() {
        for line in ["m,1,10", "m,0,10,5", "m,1,101,5", "m,1,10,nan", "m,1,10,-1", ",1,10,5", "m,1,10,5,6"] {
            let error = Profiles::parse(&format!("model,batch,sm,ms\n{line}\n")).unwrap_err();
            assert!(error.to_string().starts_with("profile line 2 is"), "{line}: {error}");
        }
    }
}
