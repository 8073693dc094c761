//! A release of one of the project's charts, by Helm, in a tenant's namespace.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use super::components::kubeconfig;
use crate::helm::{Helm, chart};

/// An installed chart, whose release has its name. It is uninstalled with this.
#[derive(Debug)]
pub struct Installed {
    chart: &'static str,
    namespace: String,
    values: Value,
    /// Where the values are written.
    file: PathBuf,
}

impl Installed {
    /// Installs a chart, and waits until what came of it is ready. The values are written to `file`.
    ///
    /// # Errors
    /// What Helm says if that fails.
    pub fn new(chart: &'static str, namespace: &str, values: Value, file: PathBuf) -> Result<Self> {
        let installed = Self { chart, namespace: namespace.into(), values, file };
        installed.put("install")?;
        Ok(installed)
    }

    /// Installs the same chart with further values in its place.
    ///
    /// # Errors
    /// What Helm says if that fails.
    pub fn upgrade(&mut self, values: &Value) -> Result<()> {
        merge(&mut self.values, values);
        self.put("upgrade").map(drop)
    }

    /// Puts back what was there before the last upgrade.
    ///
    /// # Errors
    /// What Helm says if that fails.
    pub fn roll_back(&self) -> Result<String> {
        self.helm(&["rollback", self.chart, "--wait=watcher", "--timeout", "120s"])
    }

    /// Runs the chart's own test.
    ///
    /// # Errors
    /// What Helm says if it fails.
    pub fn test(&self) -> Result<String> {
        self.helm(&["test", self.chart, "--timeout", "60s"])
    }

    /// Uninstalls it, once.
    ///
    /// # Errors
    /// What Helm says if it is not there.
    pub fn uninstall(&self) -> Result<String> {
        self.helm(&["uninstall", self.chart, "--wait"])
    }

    /// Gives the chart to Helm, with the release's values, and waits until what came of it is ready.
    fn put(&self, action: &str) -> Result<String> {
        std::fs::write(&self.file, self.values.to_string())?;
        let (values, chart) = (self.file.display().to_string(), chart(self.chart).display().to_string());
        self.helm(&[action, self.chart, &chart, "--values", &values, "--wait=watcher", "--timeout", "120s"])
    }

    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let config = kubeconfig("admin");
        let to = ["--namespace", &self.namespace, "--kubeconfig", &config];
        Helm::installed().run(&[arguments, &to].concat())
    }
}

impl Drop for Installed {
    /// What a release has outside its namespace does not end with that.
    fn drop(&mut self) {
        // A test may have done it already.
        drop(self.uninstall());
    }
}

/// Puts further values into values.
pub(super) fn merge(values: &mut Value, further: &Value) {
    match (values, further) {
        (Value::Object(values), Value::Object(further)) => {
            for (name, value) in further {
                merge(values.entry(name).or_insert(Value::Null), value);
            }
        }
        (values, further) => *values = further.clone(),
    }
}
