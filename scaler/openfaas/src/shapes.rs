//! JSON of the OpenFaaS provider API, as clients send and read it. Only shapes; nothing is checked here.

use std::collections::BTreeMap;

use base64::Engine as _;
use gpu_share::invalid::Invalid;
use serde::{Deserialize, Deserializer, Serialize};

/// Text by name.
pub type Map = BTreeMap<String, String>;

/// What a client asks to run.
///
/// Clients tell an absent member from an empty one by deep comparison, so empty ones are never written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionDeployment {
    /// Its name.
    pub service: String,
    /// The container image, or what stands for it.
    pub image: String,
    /// Its namespace; empty for the default.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Command line of the function's process.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub env_process: String,
    /// Its environment.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub env_vars: Map,
    /// Where it may run.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Secrets that it may read.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Its labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: Map,
    /// Its annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: Map,
    /// The most that it may use, by resource.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub limits: Map,
    /// What is kept for it, by resource.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub requests: Map,
    /// Its files can't be written, but for `/tmp`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub read_only_root_filesystem: bool,
}

/// What a client is told of a function: its deployment, under `name`, and how it is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// Its name.
    pub name: String,
    /// The container image, or what stands for it.
    pub image: String,
    /// Its namespace; empty for the default.
    pub namespace: String,
    /// Command line of the function's process.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub env_process: String,
    /// Its environment.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub env_vars: Map,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Secrets that it may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Its labels.
    pub labels: Map,
    /// Its annotations.
    pub annotations: Map,
    /// The most that it may use, by resource.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub limits: Map,
    /// What is kept for it, by resource.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub requests: Map,
    /// Its files can't be written, but for `/tmp`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only_root_filesystem: bool,
    /// Requests so far.
    pub invocation_count: u64,
    /// Replicas that are wanted.
    pub replicas: u32,
    /// Replicas that take requests.
    pub available_replicas: u32,
    /// RFC 3339.
    pub created_at: String,
    /// What it uses, if that was asked for and is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What the processes of a function use, summed over its replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Thousandths of a core.
    pub cpu: f64,
    /// Memory in use.
    pub total_memory_bytes: f64,
}

/// `POST /system/scale-function/{name}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleRequest {
    /// Replicas that are wanted.
    pub replicas: u32,
    /// Its namespace; empty for the default.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
}

/// `DELETE /system/functions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteRequest {
    /// The function.
    pub function_name: String,
    /// Its namespace; empty for the default.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
}

/// A secret as clients send it; lists carry no value.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for the default.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The value.
    #[serde(deserialize_with = "or_default", skip_serializing)]
    pub value: String,
    /// Base64; counts when `value` is empty.
    #[serde(deserialize_with = "or_default", skip_serializing)]
    pub raw_value: String,
}

impl Secret {
    /// The value, which is binary where it is no text.
    pub fn bytes(&self) -> Result<Vec<u8>, Invalid> {
        if !self.value.is_empty() {
            return Ok(self.value.clone().into_bytes());
        }
        let raw = base64::engine::general_purpose::STANDARD.decode(&self.raw_value);
        raw.map_err(|_| Invalid::new("rawValue", "not base64", "base64"))
    }
}

impl core::fmt::Debug for Secret {
    /// Without the value.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A namespace of functions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FunctionNamespace {
    /// Its name.
    pub name: String,
    /// Its annotations.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub annotations: Map,
    /// Its labels.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub labels: Map,
}

/// One line of a function's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMessage {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for the default.
    pub namespace: String,
    /// The replica.
    pub instance: String,
    /// RFC 3339, with a fraction.
    pub timestamp: String,
    /// The line.
    pub text: String,
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
