//! The configuration that comes with a claim or its device class: in which form the share is that the claim has.
//!
//! ```yaml
//! apiVersion: gpufn.dev/v1alpha1
//! kind: Share
//! sm: 50            # percent of the multiprocessors; else all
//! quota: 40         # percent of the time that is guaranteed; else what the claim's compute comes to
//! quotaLimit: 80    # percent of the time at most; else 100
//! memory: 3Gi       # at most what the claim has; else that
//! ```
//!
//! The API server knows nothing of its form (it is opaque), so it is checked here, and a mistake is told when the claim is
//! prepared. Pure.

use std::collections::BTreeMap;

use gpu_share::annotations::{Shape, ShapeNames};
use gpu_share::invalid::Invalid;
use gpu_share::names::dra::{CONFIG_KIND, CONFIG_VERSION};
use gpu_share::units::Bytes;
use serde_json::{Map, Value};

const NAMES: ShapeNames = ShapeNames { sm: "sm", quota: "quota", limit: "quotaLimit", memory: "memory" };

/// The form that `configurations` ask for on a GPU with `gpu_memory`. Where several say something of a field, the last counts.
pub fn shape<'a>(
    configurations: impl IntoIterator<Item = &'a Value>,
    gpu_memory: Bytes,
) -> Result<Shape, Invalid> {
    let mut texts = BTreeMap::new();
    for configuration in configurations {
        texts.extend(fields(configuration).map_err(in_configuration)?);
    }
    Shape::read_named(NAMES, &texts, gpu_memory).map_err(in_configuration)
}

fn in_configuration(invalid: Invalid) -> Invalid {
    invalid.within("configuration")
}

/// The fields of one configuration as text.
fn fields(configuration: &Value) -> Result<BTreeMap<String, String>, Invalid> {
    let Value::Object(object) = configuration else {
        return Err(Invalid::new("parameters", configuration, "an object"));
    };
    expect(object, "apiVersion", CONFIG_VERSION)?;
    expect(object, "kind", CONFIG_KIND)?;
    let others = object.iter().filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str()));
    others.map(|(name, value)| Ok((name.clone(), text(name, value)?))).collect()
}

fn expect(object: &Map<String, Value>, name: &str, allowed: &str) -> Result<(), Invalid> {
    match object.get(name) {
        Some(Value::String(value)) if value == allowed => Ok(()),
        Some(Value::String(value)) => Err(Invalid::new(name, value, allowed)),
        other => Err(Invalid::new(name, other.unwrap_or(&Value::Null), allowed)),
    }
}

/// A number or a text, as people write both.
fn text(name: &str, value: &Value) -> Result<String, Invalid> {
    if ![NAMES.sm, NAMES.quota, NAMES.limit, NAMES.memory].contains(&name) {
        return Err(Invalid::new("field", name, "sm, quota, quotaLimit or memory"));
    }
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(Invalid::new(name, other, "a number or a text")),
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Quota;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(fields: &Value) -> Value {
        let mut configuration = json!({"apiVersion": "gpufn.dev/v1alpha1", "kind": "Share"});
        let object = configuration.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        configuration
    }

    fn read(configurations: &[Value]) -> Result<Shape, Invalid> {
        shape(configurations, Bytes::gib(16))
    }

    #[test]
    fn a_complete_configuration_is_read_from_numbers_and_from_text() {
        let numbers = json!({"sm": 50, "quota": 40, "quotaLimit": 80, "memory": 3_221_225_472_u64});
        let text = json!({"sm": "50", "quota": "40", "quotaLimit": "80", "memory": "3Gi"});
        let percent = |percent| Some(Quota::from_percent(percent).unwrap());
        for fields in [numbers, text] {
            let shape = read(&[one(&fields)]).unwrap();
            assert_eq!(shape.sm.unwrap().percent(), 50);
            assert_eq!((shape.quota, shape.limit), (percent(40), percent(80)));
            assert_eq!(shape.memory, Some(Bytes::gib(3)));
        }
        assert_eq!(read(&[]), Ok(Shape::default()));
    }

    #[test]
    fn a_claim_says_more_than_its_class() {
        let (class, claim) = (one(&json!({"sm": 50, "quotaLimit": 60})), one(&json!({"sm": 30})));
        let shape = read(&[class, claim]).unwrap();
        assert_eq!((shape.sm.unwrap().percent(), shape.limit.unwrap().percent()), (30, 60.0));
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line_with_field_value_and_what_is_allowed() {
        let cases = [
            (one(&json!({"sm": 0})), "sm is \"0\", allowed is a whole number from 1 to 100 (percent)"),
            (one(&json!({"sm": 12.5})), "sm is \"12.5\", allowed is a whole number from 1 to 100 (percent)"),
            (one(&json!({"sm": [1]})), "sm is \"[1]\", allowed is a number or a text"),
            (
                one(&json!({"quota": 101})),
                "quota is \"101\", allowed is a whole number from 1 to 100 (percent)",
            ),
            (
                one(&json!({"quota": 50, "quotaLimit": 40})),
                "quotaLimit is \"40\", allowed is the quota, 50 %, or more",
            ),
            (
                one(&json!({"memory": "17Gi"})),
                "memory is \"17Gi\", allowed is an amount such as 512Mi or 2Gi, above 0 and at most the card's 16.0 GiB",
            ),
            (
                one(&json!({"quotaLimt": 1})),
                "field is \"quotaLimt\", allowed is sm, quota, quotaLimit or memory",
            ),
            (
                json!({"apiVersion": "gpufn.dev/v1", "kind": "Share"}),
                "apiVersion is \"gpufn.dev/v1\", allowed is gpufn.dev/v1alpha1",
            ),
            (json!({"apiVersion": "gpufn.dev/v1alpha1"}), "kind is \"null\", allowed is Share"),
            (json!("sm"), "parameters is \"\\\"sm\\\"\", allowed is an object"),
        ];
        for (configuration, said) in cases {
            let error = read(&[configuration]).unwrap_err().to_string();
            assert_eq!(error, format!("configuration, {said}"));
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("(sm|quota|quotaLimit|memory|\\PC{0,6})", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_a_form_or_one_line(value in value()) {
            let shaped = if value.is_object() { one(&value) } else { value };
            if let Err(error) = read(&[shaped]) {
                let line = error.to_string();
                prop_assert!(!line.contains('\n') && line.contains(", allowed is "), "{}", line);
            }
        }

        #[test]
        fn what_is_allowed_is_given_as_it_is(sm in 1u8..=100, quota in 1u8..=100, more in 0u8..=100, mib in 1u64..=16384) {
            let limit = quota.saturating_add(more).min(100);
            let fields = json!({"sm": sm, "quota": quota.to_string(), "quotaLimit": limit, "memory": format!("{mib}Mi")});
            let shape = read(&[one(&fields)]).unwrap();
            let percent = |percent| Some(Quota::from_percent(percent).unwrap());
            prop_assert_eq!(shape.sm.map(gpu_share::units::SmShare::percent), Some(sm));
            prop_assert_eq!((shape.quota, shape.limit), (percent(quota), percent(limit)));
            prop_assert_eq!(shape.memory, Some(Bytes::mib(mib)));
        }
    }
}
