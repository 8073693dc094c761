//! A function's deployment, built up by name: the JSON that `faas-cli` would send.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::programs;

/// A deployment.
#[derive(Clone, Debug)]
pub struct Function {
    body: Map<String, Value>,
}

impl Function {
    /// An inference function: it loads its model onto the GPU and answers each request with one checked inference.
    pub fn inference(name: &str, model: &str) -> Self {
        Self::of(name, &programs::built("inference-function"))
            .env("model", model)
            .env("layers", "8")
            .env("weights_mib", "64")
            .annotation("gpufn.dev/model", model)
            .label("gpufn.dev/enabled", "true")
    }

    /// A function without a GPU, the tests' own `echo-function`.
    pub fn echo(name: &str) -> Self {
        Self::of(name, &programs::built("echo-function"))
    }

    fn of(name: &str, program: &Path) -> Self {
        let image = format!("file://{}", program.display());
        let body = json!({ "service": name, "image": image, "labels": {}, "annotations": {} });
        Self { body: body.as_object().cloned().unwrap_or_default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.body["service"].as_str().expect("a name is text")
    }

    /// SM share, percent.
    #[must_use]
    pub fn sm(self, percent: u8) -> Self {
        self.annotation("gpufn.dev/sm", &percent.to_string())
    }

    /// Quota floor and ceiling, percent.
    #[must_use]
    pub fn quota(self, floor: u8, ceiling: u8) -> Self {
        self.annotation("gpufn.dev/quota", &floor.to_string())
            .annotation("gpufn.dev/quota-limit", &ceiling.to_string())
    }

    /// GPU memory, a Kubernetes quantity.
    #[must_use]
    pub fn memory(self, quantity: &str) -> Self {
        self.annotation("gpufn.dev/memory", quantity)
    }

    /// Which scaling is allowed.
    #[must_use]
    pub fn policy(self, policy: &str) -> Self {
        self.annotation("gpufn.dev/policy", policy)
    }

    /// Its objective.
    #[must_use]
    pub fn slo(self, slo: &str) -> Self {
        self.annotation("gpufn.dev/slo", slo)
    }

    /// Bounds of the number of replicas.
    #[must_use]
    pub fn replicas(self, min: u32, max: u32) -> Self {
        self.annotation("gpufn.dev/replicas", &format!("{min}..{max}"))
    }

    /// Any annotation.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.member("annotations", key, value)
    }

    /// A label.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.member("labels", key, value)
    }

    /// An environment variable.
    #[must_use]
    pub fn env(self, key: &str, value: &str) -> Self {
        self.member("envVars", key, value)
    }

    /// A secret that it reads.
    #[must_use]
    pub fn secret(mut self, name: &str) -> Self {
        let secrets = self.body.entry("secrets").or_insert_with(|| json!([]));
        secrets.as_array_mut().expect("secrets are a list").push(name.into());
        self
    }

    /// Any member of the deployment, right or wrong.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.body.insert(key.into(), value);
        self
    }

    /// The deployment.
    pub fn json(&self) -> Value {
        Value::Object(self.body.clone())
    }

    fn member(mut self, map: &str, key: &str, value: &str) -> Self {
        let members = self.body.entry(map).or_insert_with(|| json!({}));
        members
            .as_object_mut()
            .expect("labels, annotations and variables are maps")
            .insert(key.into(), value.into());
        self
    }
}
