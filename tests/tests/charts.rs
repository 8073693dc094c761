//! The charts as Helm reads them: what they render is what each version of Kubernetes knows, what is wrong is refused, and
//! what they promise of rights, metrics and values is so. `make test-charts` installs Helm.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "charts/node.rs"]
mod node;
#[path = "charts/pages.rs"]
mod pages;
#[path = "charts/scaler.rs"]
mod scaler;
#[path = "charts/umbrella.rs"]
mod umbrella;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use tests::helm::{Helm, chart, files};

/// Versions that the charts are for.
const VERSIONS: [&str; 8] = ["1.30.0", "1.31.0", "1.32.0", "1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0"];

/// The charts of single parts.
const CHARTS: [&Chart; 2] = [&node::CHART, &scaler::CHART];

/// A chart, and what is tried with it.
struct Chart {
    name: &'static str,
    sets: &'static [Set],
    /// Values that its schema refuses, each with the path that it names.
    refused: &'static [(&'static str, &'static str)],
    /// Values that need another one, each with that one's path.
    incomplete: &'static [(&'static str, &'static str)],
    /// The README with the metrics of its program.
    metrics: &'static str,
    /// Values with which there are alerts.
    alerts: &'static str,
}

/// Values by the name of what is expected of them.
struct Set {
    name: &'static str,
    values: &'static str,
    /// The first of the versions that it is for.
    since: usize,
}

impl Chart {
    fn render(&self, values: &str) -> String {
        self.render_for("1.36.0", values)
    }

    fn render_for(&self, kubernetes: &str, values: &str) -> String {
        let rendered = self.try_render(kubernetes, values);
        rendered.unwrap_or_else(|error| panic!("{}, {values}: {error:#}", self.name))
    }

    fn try_render(&self, kubernetes: &str, values: &str) -> anyhow::Result<String> {
        Helm::installed().template(&chart(self.name), kubernetes, values)
    }

    /// What Helm says of values that it must refuse.
    fn refusal(&self, values: &str) -> String {
        match self.try_render("1.36.0", values) {
            Ok(_) => panic!("{}: {values} is not refused", self.name),
            Err(error) => error.to_string(),
        }
    }
}

fn objects(manifests: &str) -> Vec<Value> {
    let documents = manifests.split("\n---\n");
    let parsed = documents.map(|text| serde_yaml::from_str::<Value>(text).unwrap());
    parsed.filter(|object| !object.is_null()).collect()
}

fn of_kind(manifests: &str, kind: &str) -> Value {
    let found: Vec<_> = objects(manifests).into_iter().filter(|object| object["kind"] == kind).collect();
    let [one] = <[Value; 1]>::try_from(found).unwrap_or_else(|found| panic!("{} of {kind}", found.len()));
    one
}

/// Rights as `verb resource group`, each once.
fn rights(rules: &Value) -> BTreeSet<String> {
    let of = |rule: &Value, name: &str| -> Vec<String> {
        rule[name].as_array().unwrap().iter().map(|one| one.as_str().unwrap().into()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in rules.as_array().unwrap() {
        let group = of(rule, "apiGroups").join(",");
        for resource in of(rule, "resources") {
            rights.extend(of(rule, "verbs").iter().map(|verb| format!("{verb} {resource} {group}")));
        }
    }
    rights
}

/// The same of rights that are written down.
fn named(rights: &[&str]) -> BTreeSet<String> {
    rights.iter().map(ToString::to_string).collect()
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn what_is_rendered_is_what_was_looked_at() {
    for (chart, set) in CHARTS.iter().flat_map(|chart| chart.sets.iter().map(move |set| (chart, set))) {
        let path = files().join("rendered").join(chart.name).join(set.name).with_extension("yaml");
        let rendered = chart.render(set.values);
        if std::env::var_os("RENEW").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &rendered).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        let first = expected.lines().zip(rendered.lines()).find(|(expected, rendered)| expected != rendered);
        assert!(
            expected == rendered,
            "{} is not what is rendered, from {first:?} on; look at the change, then RENEW=1 make test-charts",
            path.display()
        );
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn each_version_of_kubernetes_knows_every_field() {
    for (chart, set) in CHARTS.iter().flat_map(|chart| chart.sets.iter().map(move |set| (chart, set))) {
        for version in &VERSIONS[set.since..] {
            let known = Helm::installed().validate(version, &chart.render_for(version, set.values));
            known.unwrap_or_else(|error| panic!("{}, {} for {version}: {error:#}", chart.name, set.name));
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn the_validator_would_have_refused_a_field_that_is_not_there() {
    let wrong = node::CHART.render("").replacen("updateStrategy:", "updateStrategies:", 1);
    let error = Helm::installed().validate("1.36.0", &wrong).unwrap_err().to_string();
    assert!(error.contains("updateStrategies"), "{error}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn the_linter_finds_nothing() {
    for name in CHARTS.map(|chart| chart.name) {
        let said = Helm::installed().run(&["lint", "--strict", chart(name).to_str().unwrap()]).unwrap();
        assert!(said.contains("0 chart(s) failed"), "{said}");
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn a_wrong_value_is_refused_by_its_name() {
    for chart in CHARTS {
        assert!(chart.refused.len() >= 20);
        for (values, name) in chart.refused {
            let error = chart.refusal(values);
            let named =
                error.contains(&format!("'/{name}'")) || error.contains(&format!("'{name}' not allowed"));
            assert!(named, "{values}: {error}");
        }
        for (values, name) in chart.incomplete {
            let error = chart.refusal(values);
            assert!(error.contains(&format!("{name}: needed with")), "{values}: {error}");
        }
    }
}

/// Each value with its path and its schema. A map that has no names of its own is one value.
fn values<'a>(
    value: &'a Value,
    schema: &'a Value,
    path: &str,
    into: &mut Vec<(String, &'a Value, &'a Value)>,
) {
    let Some(names) = schema["properties"].as_object() else {
        assert!(schema["description"].is_string(), "the schema does not know {path}");
        return into.push((path.into(), value, schema));
    };
    for (name, value) in value.as_object().unwrap_or_else(|| panic!("{path} is no map")) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let schema = names.get(name).unwrap_or_else(|| panic!("the schema does not know {path}"));
        values(value, schema, &path, into);
    }
}

#[test]
fn the_readme_tells_of_each_value_with_its_default_and_what_the_schema_says() {
    for name in ["gpufn", "gpufn-node", "gpufn-scaler"] {
        let read = |file: &str| fs::read_to_string(chart(name).join(file)).unwrap();
        let defaults: Value = serde_yaml::from_str(&read("values.yaml")).unwrap();
        let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
        let mut expected = Vec::new();
        values(&defaults, &schema, "", &mut expected);

        let readme = read("README.md");
        let rows = readme.lines().filter(|line| line.starts_with("| `")).map(|row| {
            let cells: Vec<_> = row.trim_matches('|').splitn(3, '|').map(str::trim).collect();
            <[&str; 3]>::try_from(cells).unwrap_or_else(|cells| panic!("{cells:?}"))
        });
        let rows: BTreeMap<_, _> = rows.map(|[path, default, meaning]| (path, (default, meaning))).collect();
        let paths: BTreeSet<_> = expected.iter().map(|(path, ..)| format!("`{path}`")).collect();
        assert_eq!(rows.keys().map(ToString::to_string).collect::<BTreeSet<_>>(), paths);
        for (path, value, schema) in expected {
            let (default, meaning) = rows[&*format!("`{path}`")];
            assert_eq!(&serde_json::from_str::<Value>(default.trim_matches('`')).unwrap(), value, "{path}");
            assert_eq!(Some(meaning), schema["description"].as_str(), "{path}");
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn alerts_ask_for_metrics_that_the_program_has_and_say_what_to_do() {
    for chart in CHARTS {
        let rules = of_kind(&chart.render(chart.alerts), "PrometheusRule");
        let readme = fs::read_to_string(tests::helm::chart("..").join(chart.metrics)).unwrap();
        let alerts = rules["spec"]["groups"][0]["rules"].as_array().unwrap();
        assert!(alerts.len() >= 6);
        for alert in alerts {
            let words = alert["expr"].as_str().unwrap().split(|c: char| !c.is_alphanumeric() && c != '_');
            let metrics: Vec<_> = words.filter(|word| word.starts_with("gpufn_")).collect();
            assert!(!metrics.is_empty(), "{alert}");
            for metric in metrics {
                let listed = |name: &str| readme.contains(&format!("| `{name}` |"));
                let series = ["_bucket", "_count", "_sum"];
                let of_histogram =
                    series.iter().find_map(|end| metric.strip_suffix(end)).is_some_and(|name| {
                        listed(name) && readme.contains(&format!("| `{name}` | histogram |"))
                    });
                assert!(listed(metric) || of_histogram, "{metric} is no metric of the program");
            }
            assert!(alert["annotations"]["runbook"].as_str().is_some_and(|text| text.len() > 80), "{alert}");
        }
    }
}
