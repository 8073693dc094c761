//! A deployment that passed every check, and what follows from it. A refused one leaves no trace.

use std::time::Duration;

use gpu_share::annotations::{Replicas, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names::{annotation, env};
use gpu_share::units::{Bytes, Nanos};
use scaler::profile::sheet::check_reachable;

use super::deployment::{FunctionDeployment, Map};
use super::identity::{self, FunctionId};
use super::image::{self, Program};

/// Bounds that OpenFaaS sets by label.
const SCALE_MIN: &str = "com.openfaas.scale.min";
const SCALE_MAX: &str = "com.openfaas.scale.max";
const SCALE_ZERO: &str = "com.openfaas.scale.zero";
const SCALE_ZERO_DURATION: &str = "com.openfaas.scale.zero-duration";

/// Idle time before a function with `com.openfaas.scale.zero` goes to zero, unless it says another.
const ZERO_DURATION: Duration = Duration::from_mins(15);

/// Kubernetes' bounds: label keys with their prefix, label values, annotations together.
const LABEL_KEY_MAX: usize = 253 + 1 + 63;
const LABEL_VALUE_MAX: usize = 63;
const ANNOTATIONS_MAX: usize = 256 << 10;

/// Longest request, unless `exec_timeout` says otherwise.
const EXEC_TIMEOUT: Duration = Duration::from_mins(1);

/// A checked deployment.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) id: FunctionId,
    pub(crate) deployment: FunctionDeployment,
    pub(crate) program: Program,
    /// What it asks of the GPU, if anything; its replica bounds are [`Self::replicas`].
    pub(crate) wish: Option<Wish>,
    /// Bounds of the number of replicas.
    pub(crate) replicas: Replicas,
    /// It listens on a port that the image or the deployment fixed, so one replica fits a machine.
    pub(crate) fixed_port: bool,
    /// Idle time after which it has no replica any more.
    pub(crate) zero_after: Option<Duration>,
    /// Longest request; `None` is without limit.
    pub(crate) exec_timeout: Option<Duration>,
    /// RFC 3339.
    pub(crate) created_at: String,
    /// Replicas of an older one are replaced.
    pub(crate) generation: u64,
}

/// What deployments are checked against.
pub(crate) struct Surroundings<'a> {
    /// Memory of the largest GPU.
    pub(crate) gpu_memory: Bytes,
    pub(crate) profiles: &'a Profiles,
    pub(crate) namespaces: &'a [String],
    /// Whether a secret exists in a namespace.
    pub(crate) has_secret: &'a dyn Fn(&str, &str) -> bool,
}

impl Spec {
    /// Checks a deployment; what is wrong first is named.
    pub(crate) fn check(
        mut deployment: FunctionDeployment,
        around: &Surroundings<'_>,
        created_at: String,
        generation: u64,
    ) -> Result<Self, Invalid> {
        if deployment.namespace.is_empty() {
            deployment.namespace = identity::DEFAULT_NAMESPACE.into();
        }
        check_names(&deployment, around)?;
        check_sizes(&deployment)?;
        for (field, resources) in [("limits", &deployment.limits), ("requests", &deployment.requests)] {
            resources.iter().try_for_each(|(key, value)| quantity(&format!("{field}.{key}"), value))?;
        }
        let program = image::read(&deployment.image, &deployment.env_process)?;
        let (bounds, zero_after) = label_bounds(&deployment.labels)?;
        let mut wish = Wish::read(&deployment.annotations, around.gpu_memory, around.profiles)?;
        wish.iter().try_for_each(|wish| check_objective(wish, around.profiles))?;
        let own = wish.as_ref().filter(|_| deployment.annotations.contains_key(annotation::REPLICAS));
        let mut replicas = own.map_or(bounds, |wish| wish.replicas);
        let fixed_port = fixed_port(&deployment, &program);
        if fixed_port {
            replicas = Replicas { min: replicas.min.min(1), max: 1 };
        }
        if let Some(wish) = &mut wish {
            wish.replicas = replicas;
        }
        let exec_timeout = exec_timeout(&deployment, &program)?;
        Ok(Self {
            id: FunctionId { namespace: deployment.namespace.clone(), name: deployment.service.clone() },
            deployment,
            program,
            wish,
            replicas,
            fixed_port,
            zero_after,
            exec_timeout,
            created_at,
            generation,
        })
    }

    /// Replicas of a new function, or of one that a request wakes from zero.
    pub(crate) fn first_replicas(&self) -> u32 {
        self.replicas.min.max(1)
    }

    /// The latest latency that keeps the objective.
    pub(crate) fn slo_bound(&self) -> Option<Nanos> {
        Some(self.wish.as_ref()?.slo?.bound)
    }

    /// What the function's processes get as environment, the deployment's own last.
    pub(crate) fn env(&self) -> Map {
        let merged = self.wish.as_ref().filter(|wish| wish.batch > 1);
        let mut all: Map =
            merged.map(|wish| (env::MAX_BATCH_SIZE.into(), wish.batch.to_string())).into_iter().collect();
        all.extend(self.program.env.clone());
        all.extend(self.deployment.env_vars.clone());
        all
    }
}

/// An objective that the profile says no share can keep is a mistake of whoever wrote it.
fn check_objective(wish: &Wish, profiles: &Profiles) -> Result<(), Invalid> {
    let profile = wish.model.as_ref().and_then(|model| profiles.get(model));
    let Some((slo, profile)) = wish.slo.zip(profile) else { return Ok(()) };
    check_reachable(annotation::SLO, &slo, profile)
}

fn check_names(deployment: &FunctionDeployment, around: &Surroundings<'_>) -> Result<(), Invalid> {
    identity::dns_label("service", &deployment.service)?;
    let namespace = &deployment.namespace;
    if !around.namespaces.contains(namespace) {
        return Err(Invalid::new("namespace", namespace, format!("one of {}", around.namespaces.join(", "))));
    }
    deployment.env_vars.keys().try_for_each(|name| identity::env_name(name))?;
    for (name, value) in &deployment.env_vars {
        if value.contains('\0') {
            return Err(Invalid::new(format!("envVars.{name}"), "text with a NUL", "text without NUL"));
        }
    }
    if deployment.env_process.contains('\0') {
        return Err(Invalid::new("envProcess", "text with a NUL", "a command line"));
    }
    for secret in &deployment.secrets {
        let known = identity::secret_name(secret).is_ok() && (around.has_secret)(namespace, secret);
        if !known {
            return Err(Invalid::new("secrets", secret, format!("secrets that exist in {namespace}")));
        }
    }
    Ok(())
}

fn check_sizes(deployment: &FunctionDeployment) -> Result<(), Invalid> {
    for (key, value) in &deployment.labels {
        if key.is_empty() || key.len() > LABEL_KEY_MAX {
            return Err(Invalid::new("label name", key, format!("1 to {LABEL_KEY_MAX} characters")));
        }
        if value.len() > LABEL_VALUE_MAX {
            return Err(Invalid::new(
                format!("label {key}"),
                value,
                format!("at most {LABEL_VALUE_MAX} characters"),
            ));
        }
    }
    let size: usize = deployment.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MAX {
        return Err(Invalid::new("annotations", size, format!("{ANNOTATIONS_MAX} bytes together")));
    }
    Ok(())
}

fn fixed_port(deployment: &FunctionDeployment, program: &Program) -> bool {
    ["upstream_url", "http_upstream_url"]
        .iter()
        .any(|name| deployment.env_vars.contains_key(*name) || program.env.contains_key(*name))
}

fn exec_timeout(deployment: &FunctionDeployment, program: &Program) -> Result<Option<Duration>, Invalid> {
    let Some(text) = deployment.env_vars.get("exec_timeout").or_else(|| program.env.get("exec_timeout"))
    else {
        return Ok(Some(EXEC_TIMEOUT));
    };
    let parsed = duration(text).ok_or_else(|| {
        Invalid::new("envVars.exec_timeout", text, "seconds, or a duration such as 500ms, 30s or 2m")
    })?;
    Ok(Some(parsed).filter(|timeout| !timeout.is_zero()))
}

fn label_bounds(labels: &Map) -> Result<(Replicas, Option<Duration>), Invalid> {
    let count = |key: &str| {
        let Some(text) = labels.get(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (0..=1000).contains(number));
        number.map(Some).ok_or_else(|| Invalid::new(key, text, "a whole number from 0 to 1000"))
    };
    let default = Replicas::default();
    let zero = labels.get(SCALE_ZERO).is_some_and(|text| text == "true");
    let min: u32 = count(SCALE_MIN)?.unwrap_or(default.min);
    let max = count(SCALE_MAX)?.unwrap_or_else(|| default.max.max(min));
    if max < min.max(1) {
        return Err(Invalid::new(SCALE_MAX, max, format!("{} ({SCALE_MIN}) or more", min.max(1))));
    }
    let after = labels.get(SCALE_ZERO_DURATION).map(|text| {
        duration(text).ok_or_else(|| Invalid::new(SCALE_ZERO_DURATION, text, "a duration such as 30s or 15m"))
    });
    let after = after.transpose()?.unwrap_or(ZERO_DURATION);
    let min = if zero { 0 } else { min };
    Ok((Replicas { min, max }, zero.then_some(after)))
}

/// Seconds as a whole number, or a duration of Go: numbers with units, one after the other.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let scale = match &rest[digits..unit] {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += rest[..digits].parse::<f64>().ok()? * scale;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A Kubernetes quantity: a number, and a suffix or none.
fn quantity(field: &str, text: &str) -> Result<(), Invalid> {
    const SUFFIXES: [&str; 14] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "n", "u", "m", "k", "M", "G", "T", "P"];
    let number = SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let dots = number.bytes().filter(|byte| *byte == b'.').count();
    let sound = digits > 0 && dots <= 1 && digits + dots == number.len();
    sound.then_some(()).ok_or_else(|| Invalid::new(field, text, "a quantity such as 500m, 1.5 or 256Mi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Spec, Invalid> {
        let profiles = Profiles::shipped();
        let around = Surroundings {
            gpu_memory: Bytes::gib(16),
            profiles: &profiles,
            namespaces: &["openfaas-fn".to_string()],
            has_secret: &|_, name| name == "known",
        };
        Spec::check(serde_json::from_str(json).unwrap(), &around, String::new(), 1)
    }

    #[test]
    fn the_watchdog_is_told_how_many_inferences_it_may_merge_unless_the_function_says_so_itself() {
        let size = |json: &str| check(json).unwrap().env().get("max_batch_size").cloned();
        let annotations = r#""annotations":{"gpufn.dev/sm":"50","gpufn.dev/batch":"8"}"#;
        let plain = format!(r#"{{"service":"a","image":"/bin/cat",{annotations}}}"#);
        assert_eq!(size(&plain).as_deref(), Some("8"));
        let own = plain.replace("}}", r#"},"envVars":{"max_batch_size":"4"}}"#);
        assert_eq!(size(&own).as_deref(), Some("4"));
        assert_eq!(size(r#"{"service":"a","image":"/bin/cat"}"#), None);
    }

    #[test]
    fn what_is_wrong_is_named_in_one_line() {
        let cases = [
            (r#"{"service":"A","image":"/bin/cat"}"#, "service is \"A\""),
            (r#"{"service":"a","image":"x/y:1"}"#, "image is \"x/y:1\", allowed is file://PATH"),
            (
                r#"{"service":"a","image":"/bin/cat","namespace":"x"}"#,
                "namespace is \"x\", allowed is one of",
            ),
            (r#"{"service":"a","image":"/bin/cat","envVars":{"A=B":"1"}}"#, "envVars is \"A=B\""),
            (r#"{"service":"a","image":"/bin/cat","secrets":["lost"]}"#, "secrets is \"lost\""),
            (r#"{"service":"a","image":"/bin/cat","secrets":["../x"]}"#, "secrets is \"../x\""),
            (r#"{"service":"a","image":"/bin/cat","limits":{"memory":"lots"}}"#, "limits.memory is \"lots\""),
            (r#"{"service":"a","image":"/bin/cat","annotations":{"gpufn.dev/sm":"0"}}"#, "gpufn.dev/sm is"),
            (
                r#"{"service":"a","image":"/bin/cat","labels":{"com.openfaas.scale.min":"-1"}}"#,
                "com.openfaas",
            ),
            (
                r#"{"service":"a","image":"/bin/cat","envVars":{"exec_timeout":"soon"}}"#,
                "envVars.exec_timeout",
            ),
        ];
        for (json, start) in cases {
            let error = check(json).unwrap_err().to_string();
            assert!(error.starts_with(start), "{json}: {error}");
            assert!(!error.contains('\n'));
        }
        let long = format!(r#"{{"service":"a","image":"/bin/cat","labels":{{"k":"{}"}}}}"#, "x".repeat(64));
        assert!(check(&long).is_err());
    }

    #[test]
    fn an_objective_below_the_fastest_configuration_is_refused() {
        let with = |slo: &str| {
            let annotations =
                format!(r#"{{"gpufn.dev/sm":"10","gpufn.dev/model":"vgg16","gpufn.dev/slo":"{slo}"}}"#);
            check(&format!(r#"{{"service":"a","image":"/bin/cat","annotations":{annotations}}}"#))
        };
        let error = with("p95<1ms").unwrap_err().to_string();
        assert!(
            error.contains("cannot be met: fastest is ") && error.ends_with(" ms on a whole GPU"),
            "{error}"
        );
        assert!(with("p95<100ms").is_ok());
    }

    #[test]
    fn labels_bound_the_replicas_unless_annotations_do() {
        let bounds = |json: &str| check(json).unwrap().replicas;
        let labels = r#""labels":{"com.openfaas.scale.min":"2","com.openfaas.scale.max":"4"}"#;
        let plain = bounds(&format!(r#"{{"service":"a","image":"/bin/cat",{labels}}}"#));
        assert_eq!(plain, Replicas { min: 2, max: 4 });
        let both = format!(
            r#"{{"service":"a","image":"/bin/cat",{labels},"annotations":{{"gpufn.dev/sm":"10","gpufn.dev/replicas":"0..3"}}}}"#
        );
        assert_eq!(bounds(&both), Replicas { min: 0, max: 3 });
        assert_eq!(check(&both).unwrap().wish.unwrap().replicas, Replicas { min: 0, max: 3 });
        let zero = r#"{"service":"a","image":"/bin/cat","labels":{"com.openfaas.scale.zero":"true"}}"#;
        assert_eq!(check(zero).unwrap().zero_after, Some(ZERO_DURATION));
        assert_eq!(bounds(zero).min, 0);
    }

    #[test]
    fn a_function_with_a_port_of_its_own_has_one_replica() {
        let json = r#"{"service":"a","image":"/bin/cat","envVars":{"upstream_url":"http://127.0.0.1:5000"}}"#;
        assert_eq!(check(json).unwrap().replicas.max, 1);
    }

    #[test]
    fn durations_are_those_of_go_or_seconds() {
        assert_eq!(duration("10"), Some(Duration::from_secs(10)));
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1.5h"), Some(Duration::from_mins(90)));
        for bad in ["", "x", "-1s", "1y", "s", "1.2.3s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_duration_and_no_quantity_makes_the_reader_panic(text in "\\PC{0,16}") {
            let _ = (duration(&text), quantity("limits.cpu", &text));
        }
    }
}
