//! What of a deployment is looked at whoever runs it: its names, sizes and quantities, the bounds of its replicas, and how long
//! a request may take. What is wrong first is named.

use std::time::Duration;

use gpu_share::annotations::Replicas;
use gpu_share::invalid::Invalid;

use crate::names;
use crate::shapes::{FunctionDeployment, Map};

/// Bounds that OpenFaaS sets by label.
const SCALE_MIN: &str = "com.openfaas.scale.min";
const SCALE_MAX: &str = "com.openfaas.scale.max";
const SCALE_ZERO: &str = "com.openfaas.scale.zero";
const SCALE_ZERO_DURATION: &str = "com.openfaas.scale.zero-duration";

/// Idle time before a function with `com.openfaas.scale.zero` goes to zero, unless it says another.
pub const ZERO_DURATION: Duration = Duration::from_mins(15);
/// Longest request, unless `exec_timeout` says otherwise.
pub const EXEC_TIMEOUT: Duration = Duration::from_mins(1);
/// Most replicas that are ever asked for.
pub const REPLICAS_MAX: u32 = 1_000;

/// Kubernetes' bound of all annotations together, in bytes.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// Checks the names and sizes in a deployment, whose namespace is known.
pub fn deployment(deployment: &FunctionDeployment) -> Result<(), Invalid> {
    names::dns_label("service", &deployment.service)?;
    deployment.env_vars.keys().try_for_each(|name| names::env_name(name))?;
    for (name, value) in &deployment.env_vars {
        if value.contains('\0') {
            return Err(Invalid::new(format!("envVars.{name}"), "text with a NUL", "text without NUL"));
        }
    }
    if deployment.env_process.contains('\0') {
        return Err(Invalid::new("envProcess", "text with a NUL", "a command line"));
    }
    deployment
        .secrets
        .iter()
        .try_for_each(|secret| names::secret_name(secret).map_err(|invalid| invalid.in_field("secrets")))?;
    replicas(&deployment.labels)?;
    labels(&deployment.labels)?;
    annotations(&deployment.annotations)?;
    for (field, resources) in [("limits", &deployment.limits), ("requests", &deployment.requests)] {
        resources.iter().try_for_each(|(key, value)| quantity(&format!("{field}.{key}"), value))?;
    }
    Ok(())
}

/// Checks names and values of labels.
pub fn labels(labels: &Map) -> Result<(), Invalid> {
    labels.iter().try_for_each(|(key, value)| {
        names::qualified("label name", key)?;
        names::label_value(&format!("label {key}"), value)
    })
}

/// Checks names of annotations, and how large they are together.
pub fn annotations(annotations: &Map) -> Result<(), Invalid> {
    annotations.keys().try_for_each(|key| names::qualified("annotation name", key))?;
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MAX {
        return Err(Invalid::new("annotations", size, format!("{ANNOTATIONS_MAX} bytes together")));
    }
    Ok(())
}

/// A Kubernetes quantity: a number, and a suffix or none.
pub fn quantity(field: &str, text: &str) -> Result<(), Invalid> {
    const SUFFIXES: [&str; 14] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "n", "u", "m", "k", "M", "G", "T", "P"];
    let number = SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let dots = number.bytes().filter(|byte| *byte == b'.').count();
    let sound = digits > 0 && dots <= 1 && digits + dots == number.len();
    sound.then_some(()).ok_or_else(|| Invalid::new(field, text, "a quantity such as 500m, 1.5 or 256Mi"))
}

/// How many replicas labels allow, and the idle time after which there is none any more.
pub fn replicas(labels: &Map) -> Result<(Replicas, Option<Duration>), Invalid> {
    let count = |key: &str| {
        let Some(text) = labels.get(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (0..=REPLICAS_MAX).contains(number));
        number
            .map(Some)
            .ok_or_else(|| Invalid::new(key, text, format!("a whole number from 0 to {REPLICAS_MAX}")))
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

/// A time that a variable of the deployment names, if it is there.
pub fn time(variables: &Map, name: &str) -> Result<Option<Duration>, Invalid> {
    let Some(text) = variables.get(name) else { return Ok(None) };
    let wrong =
        || Invalid::new(format!("envVars.{name}"), text, "seconds, or a duration such as 500ms, 30s or 2m");
    duration(text).map(Some).ok_or_else(wrong)
}

/// Longest request of a function with these variables; `None` is without limit.
pub fn exec_timeout(variables: &Map) -> Result<Option<Duration>, Invalid> {
    let named = time(variables, "exec_timeout")?;
    Ok(Some(named.unwrap_or(EXEC_TIMEOUT)).filter(|timeout| !timeout.is_zero()))
}

/// Seconds as a whole number, or a duration of Go: numbers with units, one after the other.
pub fn duration(text: &str) -> Option<Duration> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(json: &str) -> Result<(), String> {
        deployment(&serde_json::from_str(json).unwrap()).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn what_is_wrong_is_refused_in_one_line_that_begins_with_the_field() {
        let cases = [
            (r#"{"service":"","image":"i"}"#, "service is \"\""),
            (r#"{"service":"a","image":"i","envVars":{"A=B":"x"}}"#, "envVars is \"A=B\""),
            (r#"{"service":"a","image":"i","secrets":["../x"]}"#, "secrets is \"../x\""),
            (r#"{"service":"a","image":"i","labels":{"a b":"x"}}"#, "label name is \"a b\""),
            (r#"{"service":"a","image":"i","labels":{"a":"x;y"}}"#, "label a is \"x;y\""),
            (r#"{"service":"a","image":"i","annotations":{"a\nb":"x"}}"#, "annotation name is \"a\\nb\""),
            (r#"{"service":"a","image":"i","limits":{"memory":"lots"}}"#, "limits.memory is \"lots\""),
            (r#"{"service":"a","image":"i","requests":{"cpu":"-1"}}"#, "requests.cpu is \"-1\""),
        ];
        for (json, start) in cases {
            let error = check(json).unwrap_err();
            assert!(error.starts_with(start), "{json}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn labels_bound_the_replicas() {
        let bounds = |labels: &[(&str, &str)]| {
            replicas(&labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
        };
        let both = bounds(&[(SCALE_MIN, "2"), (SCALE_MAX, "4")]).unwrap();
        assert_eq!(both, (Replicas { min: 2, max: 4 }, None));
        assert_eq!(bounds(&[(SCALE_MIN, "12")]).unwrap().0.max, 12);
        let zero = bounds(&[(SCALE_ZERO, "true")]).unwrap();
        assert_eq!((zero.0.min, zero.1), (0, Some(ZERO_DURATION)));
        for wrong in [(SCALE_MIN, "-1"), (SCALE_MIN, "1001"), (SCALE_MAX, "0"), (SCALE_ZERO_DURATION, "soon")]
        {
            assert!(bounds(&[wrong]).is_err(), "{wrong:?}");
        }
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

    proptest! {
        #[test]
        fn no_duration_and_no_quantity_makes_the_reader_panic(text in "\\PC{0,16}") {
            let _ = (duration(&text), quantity("limits.cpu", &text));
        }

        #[test]
        fn a_quantity_is_a_number_with_a_suffix_of_kubernetes(number in 0_u32..100_000, place in 0_usize..4) {
            let suffix = ["", "m", "Mi", "G"][place];
            let text = format!("{number}{suffix}");
            prop_assert_eq!(quantity("limits.cpu", &text), Ok(()));
            for wrong in [format!("{text}x"), format!("-{text}"), format!("{text} ")] {
                prop_assert!(quantity("limits.cpu", &wrong).is_err());
            }
        }

        #[test]
        fn a_label_that_is_let_through_is_one_word(key in "\\PC{0,12}|[a-z./-]{0,12}", value in "(?s).{0,12}") {
            if labels(&Map::from([(key.clone(), value.clone())])).is_ok() {
                prop_assert!(![key, value].concat().contains(char::is_whitespace));
            }
        }
    }
}
