//! What a function asks for, read from its annotations.
//!
//! The same text is accepted in stack.yaml, a Knative service and a Deployment. What is wrong is refused with one
//! line that names the field, the value and what is allowed.

use core::fmt;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;
use crate::latency::Profiles;
use crate::names::annotation;
use crate::share::Share;
use crate::units::{Bytes, Nanos, Quota, SmShare};

/// Which scaling a function allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Vertical first, horizontal where that does not reach.
    #[default]
    Hybrid,
    /// The quota only.
    Vertical,
    /// The number of replicas only.
    Horizontal,
    /// None.
    Off,
}

/// Service level objective: `percentile` of the requests finish within `bound`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// In (0, 1), such as 0.95.
    pub percentile: f64,
    /// Longest latency that keeps the objective.
    pub bound: Nanos,
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}<{}ms", self.percentile * 100.0, self.bound.millis_f64())
    }
}

/// Smallest and largest number of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// At least so many; 0 allows the function to be removed when idle.
    pub min: u32,
    /// At most so many.
    pub max: u32,
}

impl Default for Replicas {
    /// One to eight, for functions that say nothing.
    fn default() -> Self {
        Self { min: 1, max: 8 }
    }
}

/// Whose requests come first where there are not enough GPUs for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Has what others leave, but never nothing.
    Low,
    /// Between the two.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// What a function asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// The share of each replica.
    pub share: Share,
    /// The objective, if it has one.
    pub slo: Option<Slo>,
    /// Which scaling is allowed.
    pub scaling: Scaling,
    /// Name of the profile, if the model has one.
    pub model: Option<String>,
    /// Largest batch, 1 if requests are not merged.
    pub batch: u32,
    /// Bounds of the number of replicas.
    pub replicas: Replicas,
    /// Whether others come first where there are not enough GPUs.
    #[serde(default)]
    pub priority: Priority,
}

impl Wish {
    /// Reads the annotations of a function that is to run on a GPU with `gpu_memory`.
    ///
    /// `None` if it asks for no share (no annotation `gpufn.dev/sm`, `…/quota` or `…/memory`). Left out, the SM share
    /// is whole, the quota is 100 %, the ceiling 100 %, and memory is the part of the card that the time is of the GPU.
    pub fn read(
        annotations: &BTreeMap<String, String>,
        gpu_memory: Bytes,
        profiles: &Profiles,
    ) -> Result<Option<Self>, Invalid> {
        // Every value is checked, also of a function without a share: a wrong one is a mistake, not a wish.
        let shape = Shape::read(annotations, gpu_memory)?;
        let sm = shape.sm.unwrap_or(SmShare::WHOLE);
        let floor = shape.quota.unwrap_or(Quota::WHOLE);
        let ceiling = shape.limit.unwrap_or(Quota::WHOLE);
        check_limit(annotations, annotation::QUOTA_LIMIT, floor, ceiling)?;
        let memory = shape.memory.unwrap_or_else(|| Bytes(gpu_memory.0 / 100 * u64::from(sm.percent())));
        let Aims { slo, scaling, batch, replicas, priority } = Aims::read(annotations)?;
        let wish = Self {
            share: Share::new(sm, floor, ceiling, memory)?,
            slo,
            scaling: scaling.unwrap_or_default(),
            model: text(annotations, annotation::MODEL).map(|model| known(model, profiles)).transpose()?,
            batch: batch.unwrap_or(1),
            replicas: replicas.unwrap_or_default(),
            priority: priority.unwrap_or_default(),
        };
        let asks = shape.sm.is_some() || shape.quota.is_some() || shape.memory.is_some();
        Ok(asks.then_some(wish))
    }
}

/// What annotations say of how a function is to be served, beside its share and its model; what they leave out is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Aims {
    /// The objective.
    pub slo: Option<Slo>,
    /// Which scaling is allowed.
    pub scaling: Option<Scaling>,
    /// Largest batch.
    pub batch: Option<u32>,
    /// Bounds of the number of replicas.
    pub replicas: Option<Replicas>,
    /// Whether others come first where there are not enough GPUs.
    pub priority: Option<Priority>,
}

impl Aims {
    /// Reads `annotations`; those of the share and the model are not looked at.
    pub fn read(annotations: &BTreeMap<String, String>) -> Result<Self, Invalid> {
        let parse_with = |key| text(annotations, key);
        Ok(Self {
            slo: parse_with(annotation::SLO).map(slo).transpose()?,
            scaling: parse_with(annotation::POLICY).map(scaling).transpose()?,
            batch: parse_with(annotation::BATCH).map(batch).transpose()?,
            replicas: parse_with(annotation::REPLICAS).map(replicas).transpose()?,
            priority: parse_with(annotation::PRIORITY).map(priority).transpose()?,
        })
    }
}

/// The form of a share as annotations have it; what they leave out is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// SM share.
    pub sm: Option<SmShare>,
    /// Guaranteed part of the time.
    pub quota: Option<Quota>,
    /// The most of the time, at least the quota.
    pub limit: Option<Quota>,
    /// Memory, at most the card's.
    pub memory: Option<Bytes>,
}

/// The names under which a form is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeNames {
    /// Of the SM share.
    pub sm: &'static str,
    /// Of the quota.
    pub quota: &'static str,
    /// Of the most of the time.
    pub limit: &'static str,
    /// Of the memory.
    pub memory: &'static str,
}

impl ShapeNames {
    /// Those of annotations.
    pub const ANNOTATIONS: Self = Self {
        sm: annotation::SM,
        quota: annotation::QUOTA,
        limit: annotation::QUOTA_LIMIT,
        memory: annotation::MEMORY,
    };
}

impl Shape {
    /// Reads what `annotations` say about a share on a GPU with `gpu_memory`; others are not looked at.
    pub fn read(annotations: &BTreeMap<String, String>, gpu_memory: Bytes) -> Result<Self, Invalid> {
        Self::read_named(ShapeNames::ANNOTATIONS, annotations, gpu_memory)
    }

    /// Reads what `texts` say under `names`, as [`Self::read`] does.
    pub fn read_named(
        names: ShapeNames,
        texts: &BTreeMap<String, String>,
        gpu_memory: Bytes,
    ) -> Result<Self, Invalid> {
        let parse_with = |key| text(texts, key);
        let shape = Self {
            sm: parse_with(names.sm).map(sm_share).transpose()?,
            quota: parse_with(names.quota).map(quota).transpose()?,
            limit: parse_with(names.limit).map(quota).transpose()?,
            memory: parse_with(names.memory).map(|pair| memory(pair, gpu_memory)).transpose()?,
        };
        if let (Some(quota), Some(limit)) = (shape.quota, shape.limit) {
            check_limit(texts, names.limit, quota, limit)?;
        }
        Ok(shape)
    }
}

/// An annotation's name and text, without what surrounds it.
fn text<'a>(annotations: &'a BTreeMap<String, String>, key: &'static str) -> Option<Pair<'a>> {
    annotations.get(key).map(|value| (key, value.trim()))
}

fn check_limit(
    texts: &BTreeMap<String, String>,
    key: &'static str,
    quota: Quota,
    limit: Quota,
) -> Result<(), Invalid> {
    if limit >= quota {
        return Ok(());
    }
    let value = text(texts, key).map_or("", |(_, value)| value);
    Err(Invalid::new(key, value, format!("the quota, {quota}, or more")))
}

/// Name of an annotation and its value.
type Pair<'a> = (&'static str, &'a str);

fn sm_share((key, value): Pair<'_>) -> Result<SmShare, Invalid> {
    let bad = || Invalid::new(key, value, "a whole number from 1 to 100 (percent)");
    SmShare::from_percent(value.parse().map_err(|_| bad())?).map_err(|_| bad())
}

fn quota((key, value): Pair<'_>) -> Result<Quota, Invalid> {
    let percent = value.parse().ok().filter(|percent| (1..=100).contains(percent));
    percent
        .and_then(|percent| Quota::from_percent(percent).ok())
        .ok_or_else(|| Invalid::new(key, value, "a whole number from 1 to 100 (percent)"))
}

fn batch((key, value): Pair<'_>) -> Result<u32, Invalid> {
    let batch = value.parse().ok().filter(|batch| (1..=1024).contains(batch));
    batch.ok_or_else(|| Invalid::new(key, value, "a whole number from 1 to 1024"))
}

fn scaling((key, value): Pair<'_>) -> Result<Scaling, Invalid> {
    match value {
        "hybrid" => Ok(Scaling::Hybrid),
        "vertical" => Ok(Scaling::Vertical),
        "horizontal" => Ok(Scaling::Horizontal),
        "off" => Ok(Scaling::Off),
        _ => Err(Invalid::new(key, value, "hybrid, vertical, horizontal or off")),
    }
}

fn priority((key, value): Pair<'_>) -> Result<Priority, Invalid> {
    match value {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err(Invalid::new(key, value, "low, normal or high")),
    }
}

fn known((key, value): Pair<'_>, profiles: &Profiles) -> Result<String, Invalid> {
    if profiles.get(value).is_some() {
        return Ok(value.into());
    }
    let models: Vec<_> = profiles.models().collect();
    Err(Invalid::new(key, value, format!("one of the profiles {}", models.join(", "))))
}

fn replicas((key, value): Pair<'_>) -> Result<Replicas, Invalid> {
    let bounds = value.split_once("..").and_then(|(min, max)| {
        let (min, max) = (min.parse().ok()?, max.parse().ok()?);
        (min <= max && (1..=1000).contains(&max)).then_some(Replicas { min, max })
    });
    bounds.ok_or_else(|| Invalid::new(key, value, "MIN..MAX with MIN at most MAX and MAX from 1 to 1000"))
}

/// A Kubernetes quantity in bytes: digits and one of the suffixes below, or none.
fn memory((key, value): Pair<'_>, gpu_memory: Bytes) -> Result<Bytes, Invalid> {
    const SUFFIXES: [(&str, u64); 6] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|&(suffix, factor)| Some((value.strip_suffix(suffix)?, factor)))
        .unwrap_or((value, 1));
    let bytes = Some(digits)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(factor))
        .filter(|&bytes| bytes > 0 && bytes <= gpu_memory.0);
    bytes.map(Bytes).ok_or_else(|| {
        let allowed = format!("an amount such as 512Mi or 2Gi, above 0 and at most the card's {gpu_memory}");
        Invalid::new(key, value, allowed)
    })
}

/// `p95<100ms`: a percentile in (0, 100), and a bound in ms or s.
fn slo((key, value): Pair<'_>) -> Result<Slo, Invalid> {
    let parsed =
        value.strip_prefix('p').and_then(|rest| rest.split_once('<')).and_then(|(percent, bound)| {
            let percent: f64 = percent.trim().parse().ok()?;
            let bound = bound.trim();
            let (number, scale) = bound
                .strip_suffix("ms")
                .map(|n| (n, 1e-3))
                .or_else(|| Some((bound.strip_suffix('s')?, 1.0)))?;
            let seconds: f64 = number.trim().parse::<f64>().ok()? * scale;
            let sound = percent > 0.0 && percent < 100.0 && seconds > 0.0 && seconds <= 3600.0;
            sound.then(|| Slo { percentile: percent / 100.0, bound: Nanos::from_secs_f64(seconds) })
        });
    parsed.ok_or_else(|| Invalid::new(key, value, "such as p95<100ms: a percentile below 100, then ms or s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wish>, Invalid> {
        let annotations =
            pairs.iter().map(|(key, value)| (format!("gpufn.dev/{key}"), (*value).to_string())).collect();
        Wish::read(&annotations, Bytes::gib(16), &Profiles::shipped())
    }

    #[test]
    fn a_complete_wish_is_read() {
        let wish = read(&[
            ("sm", "30"),
            ("quota", "20"),
            ("quota-limit", "80"),
            ("memory", "2Gi"),
            ("slo", "p95<100ms"),
            ("policy", "vertical"),
            ("model", "resnet50"),
            ("batch", "4"),
            ("replicas", "0..3"),
            ("priority", "high"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(wish.share.sm.percent(), 30);
        assert_eq!(wish.share.floor, Quota::from_percent(20).unwrap());
        assert_eq!(wish.share.ceiling, Quota::from_percent(80).unwrap());
        assert_eq!(wish.share.memory, Bytes::gib(2));
        assert_eq!(wish.slo.unwrap().to_string(), "p95<100ms");
        assert_eq!(wish.scaling, Scaling::Vertical);
        assert_eq!((wish.batch, wish.replicas), (4, Replicas { min: 0, max: 3 }));
        assert_eq!(wish.priority, Priority::High);
    }

    #[test]
    fn a_function_that_asks_for_nothing_has_no_wish() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("slo", "p99<1s")]), Ok(None));
    }

    #[test]
    fn every_bad_value_is_refused_in_one_line_with_field_value_and_what_is_allowed() {
        let cases = [
            ("sm", "0"),
            ("sm", "101"),
            ("sm", "x"),
            ("sm", "-1"),
            ("sm", ""),
            ("quota", "0"),
            ("quota", "1.5"),
            ("quota-limit", "200"),
            ("memory", "17Gi"),
            ("memory", "0"),
            ("memory", "2Ti"),
            ("memory", "+5"),
            ("memory", "99999999999999999999Gi"),
            ("policy", "fast"),
            ("slo", "p95"),
            ("slo", "p100<5ms"),
            ("slo", "p95<-5ms"),
            ("slo", "p95<nanms"),
            ("slo", "95<100ms"),
            ("model", "resnet"),
            ("batch", "0"),
            ("replicas", "3..1"),
            ("replicas", "1"),
            ("priority", "urgent"),
        ];
        for (field, value) in cases {
            let error = read(&[("sm", "30"), (field, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("gpufn.dev/{field} is {value:?}, allowed is ")), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_also_without_a_share() {
        assert!(read(&[("slo", "soon")]).is_err());
    }

    #[test]
    fn a_ceiling_below_the_floor_is_refused() {
        let error = read(&[("quota", "50"), ("quota-limit", "40")]).unwrap_err().to_string();
        assert_eq!(error, "gpufn.dev/quota-limit is \"40\", allowed is the quota, 50 %, or more");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(key in "(sm|quota|memory|slo|replicas|batch|priority)", value in "\\PC{0,24}") {
            let _ = read(&[(&key, &value)]);
        }
    }
}
