//! The chart of all parts.

use serde_json::Value;
use tests::helm::{Helm, chart};

use super::{CHARTS, objects};

/// What the chart renders with these values.
fn render(values: &str) -> anyhow::Result<String> {
    let folder = Helm::installed().with_dependencies("gpufn")?;
    Helm::installed().template(&folder.path().join("gpufn"), "1.36.0", values)
}

/// Kind and name of each object.
fn named(manifests: &str) -> Vec<String> {
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    let mut names: Vec<_> = objects(manifests).iter().map(name).collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn it_is_the_other_charts_under_their_own_names_and_each_can_be_left_out() {
    let all = named(&render("").unwrap());
    let parts = CHARTS.map(|part| part.render(&format!("fullnameOverride: {}", part.name)));
    let mut expected: Vec<_> = parts.iter().flat_map(|manifests| named(manifests)).collect();
    expected.sort();
    assert_eq!(all, expected);
    for (values, left) in [("scaler: {enabled: false}", &parts[0]), ("node: {enabled: false}", &parts[1])] {
        assert_eq!(named(&render(values).unwrap()), named(left));
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn parts_that_would_not_agree_are_refused() {
    for (values, said) in [
        ("gpufn-node: {units: 10}", "gpufn-scaler.webhook.units is 20, allowed is gpufn-node.units, 10"),
        ("gpufn-scaler: {window: 5ms}", "gpufn-scaler.window is 5ms, allowed is gpufn-node.window, 10ms"),
        (
            "gpufn-node: {resource: a.b/c}",
            "gpufn-scaler.webhook.resource is gpufn.dev/gpu, allowed is gpufn-node.resource",
        ),
        ("gpufn-node: {frontEnd: dra}", "gpufn-scaler.webhook.enabled is true, allowed is false"),
        ("gpufn-scaler: {replicas: 0}", "/replicas"),
        ("nodes: {enabled: false}", "'nodes' not allowed"),
    ] {
        let error = render(values).map(drop).expect_err(values).to_string();
        assert!(error.contains(said), "{values}: {error}");
    }
    let agree = "{gpufn-node: {units: 10}, gpufn-scaler: {webhook: {units: 10}}}";
    assert!(render(agree).is_ok());
    let without = "{gpufn-node: {units: 10}, scaler: {enabled: false}}";
    assert!(render(without).is_ok());
}

#[test]
fn its_parts_are_of_the_versions_that_are_here() {
    let read = |name: &str| -> Value {
        let path = chart(name).join("Chart.yaml");
        serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    for dependency in read("gpufn")["dependencies"].as_array().unwrap() {
        assert_eq!(read(dependency["name"].as_str().unwrap())["version"], dependency["version"]);
    }
}
