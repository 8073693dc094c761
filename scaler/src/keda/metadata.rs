//! The metadata of a trigger: which function is meant, and on what terms.
//!
//! Pure. The metadata is a tenant's text: everything in it is checked, and what is wrong is refused in one line that names key,
//! value and what is allowed.

use std::collections::{BTreeMap, HashMap};

use gpu_share::annotations::{Aims, Slo};
use gpu_share::invalid::Invalid;
use gpu_share::names::annotation;

/// What a trigger asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Name of the function's Deployment.
    pub function: String,
    /// The objective, instead of the function's own.
    pub slo: Option<Slo>,
    /// Requests that a replica works on at once, where nothing is known of how long they take; else the function's batch.
    pub concurrency: Option<f64>,
    /// Value of the metric above which there should be replicas.
    pub activation: f64,
    /// Most replicas that are thought of; else the function's own bound.
    pub most: Option<u32>,
}

/// Keys that are ours.
const KEYS: [&str; 6] = ["function", "namespace", "slo", "concurrency", "activationTarget", "maxReplicas"];

/// Keys that are KEDA's: it reads them itself, and sends them along. `tlsCertFile` is of old.
const KEDAS: [&str; 7] =
    ["scalerAddress", "enableTLS", "unsafeSsl", "caCert", "tlsClientCert", "tlsClientKey", "tlsCertFile"];

/// What KEDA leaves at the end of a key whose value it took from the target's environment.
const FROM_ENV: &str = "FromEnv";

/// Longest name of a function: that of a DNS label, as its Service has.
const LONGEST: usize = 63;
/// Most replicas that a trigger may think of.
const MOST_REPLICAS: u32 = 1_000;

impl Terms {
    /// Reads the metadata of a trigger of a `ScaledObject` in `namespace`. A plain key goes before one from the environment.
    pub fn read(namespace: &str, metadata: &HashMap<String, String>) -> Result<Self, Invalid> {
        let ours = ours(metadata)?;
        let text = |key: &'static str| ours.get(key).map(|value| (key, *value));
        if let Some((key, value)) = text("namespace").filter(|&(_, value)| value != namespace) {
            return Err(Invalid::new(key, value, format!("that of the ScaledObject, {namespace:?}")));
        }
        Ok(Self {
            function: text("function").map_or_else(|| function(("function", "")), function)?,
            slo: text("slo").map(slo).transpose()?,
            concurrency: text("concurrency").map(|pair| number(pair, 0.01, 10_000.0)).transpose()?,
            activation: text("activationTarget")
                .map(|pair| number(pair, 0.0, 1e7))
                .transpose()?
                .unwrap_or(0.0),
            most: text("maxReplicas").map(most).transpose()?,
        })
    }
}

/// Our keys and their values, without what surrounds them.
fn ours(metadata: &HashMap<String, String>) -> Result<BTreeMap<&'static str, &str>, Invalid> {
    let mut ours = BTreeMap::new();
    for (key, value) in metadata {
        let (name, is_plain) = match key.strip_suffix(FROM_ENV) {
            Some(name) => (name, false),
            None => (key.as_str(), true),
        };
        if KEDAS.contains(&name) {
            continue;
        }
        let Some(known) = KEYS.into_iter().find(|known| *known == name) else {
            return Err(Invalid::new("a key of the metadata", key, format!("one of {}", KEYS.join(", "))));
        };
        if is_plain {
            ours.insert(known, value.trim());
        } else {
            ours.entry(known).or_insert_with(|| value.trim());
        }
    }
    Ok(ours)
}

/// A key and its value.
type Pair<'a> = (&'static str, &'a str);

fn function((key, value): Pair<'_>) -> Result<String, Invalid> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = value.as_bytes();
    let is_name = (1..=LONGEST).contains(&value.len())
        && bytes.iter().copied().all(is_inner)
        && bytes.first().zip(bytes.last()).is_some_and(|(first, last)| *first != b'-' && *last != b'-');
    let allowed = "the name of a Deployment: 1 to 63 of a-z, 0-9 and -, no - at either end";
    if is_name { Ok(value.into()) } else { Err(Invalid::new(key, value, allowed)) }
}

fn slo((key, value): Pair<'_>) -> Result<Slo, Invalid> {
    // The one reader of objectives is that of annotations.
    let annotations = BTreeMap::from([(annotation::SLO.into(), value.into())]);
    let aims = Aims::read(&annotations).map_err(|bad| bad.in_field(key))?;
    aims.slo.ok_or_else(|| Invalid::new(key, value, "an objective such as p95<100ms"))
}

fn number((key, value): Pair<'_>, least: f64, most: f64) -> Result<f64, Invalid> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| Invalid::new(key, value, format!("a number from {least} to {most}")))
}

fn most((key, value): Pair<'_>) -> Result<u32, Invalid> {
    let number = value.parse().ok().filter(|number| (1..=MOST_REPLICAS).contains(number));
    number.ok_or_else(|| Invalid::new(key, value, format!("a whole number from 1 to {MOST_REPLICAS}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Terms, Invalid> {
        let metadata = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Terms::read("fn", &metadata)
    }

    #[test]
    fn terms_are_read() {
        let terms = read(&[
            ("scalerAddress", "gpufn-scaler.gpufn:9090"),
            ("function", "resnet"),
            ("namespace", "fn"),
            ("slo", "p95<100ms"),
            ("concurrency", "4"),
            ("activationTarget", "20"),
            ("maxReplicas", "30"),
        ])
        .unwrap();
        assert_eq!(terms.function, "resnet");
        assert_eq!(terms.slo.unwrap().to_string(), "p95<100ms");
        assert_eq!((terms.concurrency, terms.activation, terms.most), (Some(4.0), 20.0, Some(30)));
    }

    #[test]
    fn what_keda_reads_itself_is_let_pass() {
        let terms = read(&[
            ("function", "f"),
            ("enableTLS", "true"),
            ("unsafeSsl", "maybe"),
            ("caCert", "-----"),
            ("tlsClientCert", ""),
            ("tlsClientKey", "\u{0}"),
            ("scalerAddressFromEnv", "x"),
        ]);
        assert_eq!(terms.unwrap().function, "f");
    }

    #[test]
    fn a_value_from_the_environment_counts_where_there_is_no_plain_one() {
        assert_eq!(read(&[("functionFromEnv", "resnet")]).unwrap().function, "resnet");
        assert_eq!(read(&[("functionFromEnv", "resnet"), ("function", "bert")]).unwrap().function, "bert");
    }

    #[test]
    fn every_wrong_value_is_refused_in_one_line_with_key_value_and_what_is_allowed() {
        let cases = [
            ("function", ""),
            ("function", "Upper"),
            ("function", "-x"),
            ("function", "x-"),
            ("function", "a.b"),
            ("function", "../x"),
            ("namespace", "kube-system"),
            ("slo", "soon"),
            ("slo", ""),
            ("slo", "p95<-1ms"),
            ("concurrency", "0"),
            ("concurrency", "nan"),
            ("concurrency", "many"),
            ("activationTarget", "-1"),
            ("activationTarget", "inf"),
            ("maxReplicas", "0"),
            ("maxReplicas", "1.5"),
        ];
        for (key, value) in cases {
            let mut metadata = HashMap::from([("function".to_string(), "f".to_string())]);
            metadata.insert(key.into(), value.into());
            let error = Terms::read("fn", &metadata).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} is {value:?}, allowed is ")), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_missing_function_and_an_unknown_key_are_named() {
        assert!(read(&[]).unwrap_err().to_string().starts_with("function is \"\", allowed is the name"));
        let unknown = read(&[("function", "f"), ("functon", "g")]).unwrap_err().to_string();
        assert!(
            unknown.starts_with("a key of the metadata is \"functon\", allowed is one of function,"),
            "{unknown}"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            key in "(function|namespace|slo|concurrency|activationTarget|maxReplicas|\\PC{0,8})(FromEnv)?",
            value in "\\PC{0,24}",
        ) {
            let _ = read(&[("function", "f"), (&key, &value)]);
        }
    }
}
