//! Our own kind of object: the profile of a function and its objective, and in its status what it has and why.
//!
//! Owns the shape, which is also what the API server checks. A function names one by `gpufn.dev/model`; it goes before a shipped
//! profile of the same name. The definition for the API server is in the chart, printed by `gpufn-scaler crd`. Pure.

use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a profile says.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "gpufn.dev",
    version = "v1alpha1",
    kind = "GPUFunctionProfile",
    plural = "gpufunctionprofiles",
    shortname = "gfp",
    namespaced,
    status = "Status",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.ready"}"#,
    printcolumn = r#"{"name":"Replicas","type":"integer","jsonPath":".status.replicas"}"#,
    printcolumn = r#"{"name":"Quota","type":"string","jsonPath":".status.quota"}"#,
    printcolumn = r#"{"name":"Rate","type":"string","jsonPath":".status.rate"}"#,
    printcolumn = r#"{"name":"SLO","type":"string","jsonPath":".status.slo"}"#,
    printcolumn = r#"{"name":"Late","type":"string","jsonPath":".status.late"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ProfileSpec {
    /// A shipped profile or one of --profiles by its name, instead of points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// GPU time of a request, measured; between the points it is linear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// The objective of functions that name none themselves, such as p95<100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<String>,
}

/// One measured point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Requests that were merged.
    // The API server knows no unsigned formats.
    #[schemars(range(min = 1, max = 1024), extend("format" = "int32"))]
    pub batch: u32,
    /// SM share in percent.
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub sm: u8,
    /// GPU time of the batch.
    #[schemars(range(min = 0))]
    pub milliseconds: f64,
}

/// What the functions that name a profile have now, as the scaler that leads sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The version of the profile that this is about.
    pub observed_generation: i64,
    /// Replicas that are ready, of those that there are.
    pub ready: String,
    /// Replicas that there are.
    #[schemars(extend("format" = "int32"))]
    pub replicas: u32,
    /// The quotas that they have.
    pub quota: String,
    /// Requests a second.
    pub rate: String,
    /// The objective.
    pub slo: String,
    /// Part of the requests of the last minute that were later than the objective allows.
    pub late: String,
    /// The functions, by name.
    pub functions: Vec<FunctionStatus>,
    /// `Accepted`: whether the profile can be read.
    pub conditions: Vec<Condition>,
}

/// One function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// Its name.
    pub name: String,
    /// Requests a second now.
    pub rate: f64,
    /// Requests a second that its grants are to bear.
    pub forecast: f64,
    /// The quota that each replica that serves needs, in percent; nothing before a request has shown what it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_quota: Option<f64>,
    /// What its replicas have.
    pub grants: Vec<GrantStatus>,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantStatus {
    /// Its pod.
    pub pod: String,
    /// Its quota in percent.
    pub quota: f64,
}

/// A condition, as Kubernetes has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// One line.
    pub message: String,
    /// When the status changed.
    pub last_transition_time: String,
}

/// Where a profile's times come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Times {
    /// From another profile, of this name.
    Known(String),
    /// From its own points.
    Own(Profiles),
}

impl ProfileSpec {
    /// The times, its own ones under `name`, where `known` are those that may be named.
    pub fn times(&self, name: &str, known: &Profiles) -> Result<Times, Invalid> {
        match (&self.model, self.points.as_slice()) {
            (Some(model), []) if known.get(model).is_some() => Ok(Times::Known(model.clone())),
            (Some(model), []) => {
                let models: Vec<_> = known.models().collect();
                Err(Invalid::new("spec.model", model, format!("one of the profiles {}", models.join(", "))))
            }
            (None, [_, ..]) => {
                let line =
                    |point: &Point| format!("{name},{},{},{}\n", point.batch, point.sm, point.milliseconds);
                let lines: String = self.points.iter().map(line).collect();
                let own = Profiles::parse(&format!("model,batch,sm,ms\n{lines}"));
                own.map(Times::Own).map_err(|bad| bad.in_field("spec.points"))
            }
            _ => Err(Invalid::new("spec", "neither or both", "either a model or points")),
        }
    }
}

/// The definition for the API server, as YAML.
pub fn definition() -> Result<String, serde_yaml::Error> {
    let head = "# Made by `gpufn-scaler crd`; do not edit.\n";
    Ok(head.to_string() + &serde_yaml::to_string(&GPUFunctionProfile::crd())?)
}

#[cfg(test)]
mod tests {
    use gpu_share::units::{Nanos, SmShare};

    use super::*;

    fn point(sm: u8, milliseconds: f64) -> Point {
        Point { batch: 1, sm, milliseconds }
    }

    #[test]
    fn the_definition_that_is_shipped_is_the_one_that_is_made() {
        let file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/gpufn-scaler/crds/gpufunctionprofiles.yaml");
        let shipped = std::fs::read_to_string(file).unwrap_or_default();
        assert_eq!(
            shipped,
            definition().unwrap(),
            "gpufn-scaler crd > charts/gpufn-scaler/crds/gpufunctionprofiles.yaml"
        );
    }

    #[test]
    fn points_are_a_profile_and_so_is_a_known_model() {
        let half = SmShare::from_percent(50).unwrap();
        let spec = ProfileSpec { points: vec![point(50, 20.0), point(100, 12.0)], ..ProfileSpec::default() };
        let Ok(Times::Own(own)) = spec.times("fn/own@1", &Profiles::default()) else { panic!("{spec:?}") };
        assert_eq!(own.get("fn/own@1").unwrap().gpu_time(half, 1), Nanos::from_millis(20));
        let named = ProfileSpec { model: Some("resnet50".into()), ..ProfileSpec::default() };
        assert_eq!(named.times("x", &Profiles::shipped()), Ok(Times::Known("resnet50".into())));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let cases = [
            (ProfileSpec::default(), "spec is \"neither or both\""),
            (ProfileSpec { model: Some("no".into()), ..ProfileSpec::default() }, "spec.model is \"no\""),
            (ProfileSpec { points: vec![point(0, 1.0)], ..ProfileSpec::default() }, "spec.points"),
            (ProfileSpec { points: vec![point(50, -1.0)], ..ProfileSpec::default() }, "spec.points"),
        ];
        for (spec, said) in cases {
            let error = spec.times("x", &Profiles::shipped()).unwrap_err().to_string();
            assert!(error.starts_with(said) && !error.contains('\n'), "{error}");
        }
    }
}
