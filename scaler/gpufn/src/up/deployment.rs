//! JSON of the OpenFaaS provider API, as clients send and read it. Only shapes; nothing is checked here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Text by name.
pub(crate) type Map = BTreeMap<String, String>;

/// What a client asks to run.
///
/// Clients tell an absent member from an empty one by deep comparison, so empty ones are never written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FunctionDeployment {
    pub(crate) service: String,
    pub(crate) image: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) env_process: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) env_vars: Map,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) constraints: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: Map,
    #[serde(deserialize_with = "or_default")]
    pub(crate) annotations: Map,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) limits: Map,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) requests: Map,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub(crate) read_only_root_filesystem: bool,
}

/// What a client is told of a function: its deployment, under `name`, and how it is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionStatus {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) env_process: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) env_vars: Map,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) constraints: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<String>,
    pub(crate) labels: Map,
    pub(crate) annotations: Map,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) limits: Map,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) requests: Map,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) read_only_root_filesystem: bool,
    pub(crate) invocation_count: u64,
    pub(crate) replicas: u32,
    pub(crate) available_replicas: u32,
    pub(crate) created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
}

/// What the processes of a function use, summed over its replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// Thousandths of a core.
    pub(crate) cpu: f64,
    pub(crate) total_memory_bytes: f64,
}

/// `POST /system/scale-function/{name}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ScaleRequest {
    pub(crate) replicas: u32,
    #[serde(deserialize_with = "or_default")]
    pub(crate) namespace: String,
}

/// `DELETE /system/functions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteRequest {
    pub(crate) function_name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) namespace: String,
}

/// A secret as clients send it; lists carry no value.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Secret {
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(deserialize_with = "or_default", skip_serializing)]
    pub(crate) value: String,
    /// Base64; counts when `value` is empty.
    #[serde(deserialize_with = "or_default", skip_serializing)]
    pub(crate) raw_value: String,
}

/// A namespace of functions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FunctionNamespace {
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) annotations: Map,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub(crate) labels: Map,
}

/// One line of a function's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogMessage {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) instance: String,
    pub(crate) timestamp: String,
    pub(crate) text: String,
}

/// `null` reads as empty: encoders in Go write it for an empty map or list.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature is serde's.
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_member_reads_as_an_empty_one() {
        let text =
            r#"{"service":"a","image":"/bin/cat","labels":null,"envVars":null,"secrets":null,"limits":null}"#;
        let read: FunctionDeployment = serde_json::from_str(text).unwrap();
        assert_eq!(read.service, "a");
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(written, r#"{"service":"a","image":"/bin/cat","labels":{},"annotations":{}}"#);
    }

    #[test]
    fn a_secret_is_never_written_with_its_value() {
        let secret =
            Secret { name: "k".into(), value: "v".into(), raw_value: "dg==".into(), ..Secret::default() };
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#"{"name":"k"}"#);
    }
}
