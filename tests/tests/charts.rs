//! The charts as Helm reads them: what they render is what each version of Kubernetes knows, what is wrong is refused, and
//! what they promise of rights, metrics and values is so. `make test-charts` installs Helm.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use tests::helm::{Helm, chart, files};

/// Versions that the chart is for.
const VERSIONS: [&str; 8] = ["1.30.0", "1.31.0", "1.32.0", "1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0"];
/// The first that has claims.
const CLAIMS: usize = 4;

/// Sets of values by the name of what is expected of them.
const VALUES: [(&str, &str); 4] = [
    ("default", ""),
    ("claims", "{frontEnd: dra, mps: {mode: start}}"),
    ("neighbours", "{mps: {mode: use, pipeDirectory: /run/mps}, inject: classic, gpuKind: '', runtimeClassName: ''}"),
    (
        "everything",
        "
image: {registry: registry.example, digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}
imagePullSecrets: [{name: registry}]
kernelLog: true
ignoreXids: [31, 79]
containerEnv: {CUDA_CACHE_DISABLE: '1'}
extraEnv: [{name: RUST_BACKTRACE, value: '1'}]
extraVolumes: [{name: extra, emptyDir: {}}]
extraVolumeMounts: [{name: extra, mountPath: /extra}]
serviceAccount: {name: agent, annotations: {example.com/role: gpu}}
metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}, prometheusRule: {enabled: true}}
networkPolicy: {enabled: true, from: [{namespaceSelector: {matchLabels: {name: monitoring}}}]}
nodeSelector: {nvidia.com/gpu.present: 'true'}
affinity: {nodeAffinity: {}}
maxUnavailable: 10%
podAnnotations: {example.com/team: a}
podLabels: {team: a}
",
    ),
];

fn render(values: &str) -> String {
    render_for("1.36.0", values)
}

fn render_for(kubernetes: &str, values: &str) -> String {
    let rendered = Helm::installed().template(&chart("gpufn-node"), kubernetes, values);
    rendered.unwrap_or_else(|error| panic!("{values}: {error:#}"))
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

#[test]
#[ignore = "needs Helm: make test-charts"]
fn what_is_rendered_is_what_was_looked_at() {
    for (name, values) in VALUES {
        let path = files().join("rendered").join(name).with_extension("yaml");
        let rendered = render(values);
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
    for (name, values) in VALUES {
        let versions = if name == "claims" { &VERSIONS[CLAIMS..] } else { &VERSIONS };
        for version in versions {
            let known = Helm::installed().validate(version, &render_for(version, values));
            known.unwrap_or_else(|error| panic!("{name} for {version}: {error:#}"));
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn the_validator_would_have_refused_a_field_that_is_not_there() {
    let wrong = render("").replacen("updateStrategy:", "updateStrategies:", 1);
    let error = Helm::installed().validate("1.36.0", &wrong).unwrap_err().to_string();
    assert!(error.contains("updateStrategies"), "{error}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn claims_are_refused_on_a_kubernetes_that_has_none() {
    let rendered = Helm::installed().template(&chart("gpufn-node"), VERSIONS[CLAIMS - 1], "frontEnd: dra");
    let error = rendered.unwrap_err().to_string();
    assert!(error.contains("frontEnd: dra needs Kubernetes 1.34, this is v1.33.0"), "{error}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn the_linter_finds_nothing() {
    let chart = chart("gpufn-node");
    let said = Helm::installed().run(&["lint", "--strict", chart.to_str().unwrap()]).unwrap();
    assert!(said.contains("0 chart(s) failed"), "{said}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn a_wrong_value_is_refused_by_its_name() {
    let wrong = [
        ("unit: 20", "unit"),
        ("units: '20'", "units"),
        ("units: 30", "units"),
        ("smallest: 0", "smallest"),
        ("frontEnd: csi", "frontEnd"),
        ("resource: gpu", "resource"),
        ("sharing: time", "sharing"),
        ("mps: {mode: true}", "mps/mode"),
        ("mps: {pipeDirectory: relative}", "mps/pipeDirectory"),
        ("window: 10", "window"),
        ("grace: soon", "grace"),
        ("inject: env", "inject"),
        ("gpuKind: nvidia", "gpuKind"),
        ("driver: {library: libcuda.so}", "driver/library"),
        ("ignoreXids: ['31']", "ignoreXids/0"),
        ("kernelLog: 'yes'", "kernelLog"),
        ("containerEnv: {A: 1}", "containerEnv/A"),
        ("image: {digest: sha256-1}", "image/digest"),
        ("image: {pullPolicy: Sometimes}", "image/pullPolicy"),
        ("paths: {state: run/gpufn}", "paths/state"),
        ("metrics: {address: '9101:'}", "metrics/address"),
        ("metrics: {serviceMonitor: {enable: true}}", "metrics/serviceMonitor"),
        ("maxUnavailable: 0", "maxUnavailable"),
        ("nodeSelector: {gpu: true}", "nodeSelector/gpu"),
    ];
    for (values, name) in wrong {
        let refused = Helm::installed().template(&chart("gpufn-node"), "1.36.0", values);
        let error = refused.map(|_| ()).expect_err(values).to_string();
        let named = error.contains(&format!("'/{name}'")) || error.contains(&format!("'{name}' not allowed"));
        assert!(named, "{values}: {error}");
    }
    for (values, name) in [
        ("mps: {mode: use}", "mps.pipeDirectory"),
        ("serviceAccount: {create: false}", "serviceAccount.name"),
    ] {
        let refused = Helm::installed().template(&chart("gpufn-node"), "1.36.0", values);
        let error = refused.map(|_| ()).expect_err(values).to_string();
        assert!(error.contains(&format!("{name}: needed with")), "{values}: {error}");
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
    let read = |name: &str| fs::read_to_string(chart("gpufn-node").join(name)).unwrap();
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
    let paths: Vec<_> = expected.iter().map(|(path, ..)| format!("`{path}`")).collect();
    assert_eq!(rows.keys().collect::<Vec<_>>(), paths.iter().collect::<Vec<_>>());
    for ((path, (default, meaning)), (_, value, schema)) in rows.into_iter().zip(expected) {
        assert_eq!(&serde_json::from_str::<Value>(default.trim_matches('`')).unwrap(), value, "{path}");
        assert_eq!(Some(meaning), schema["description"].as_str(), "{path}");
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn an_agent_that_reads_no_kernel_log_has_no_capability_and_never_the_hosts_network() {
    for (_, values) in &VALUES[..3] {
        let pod = &of_kind(&render(values), "DaemonSet")["spec"]["template"]["spec"];
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(
            (&security["readOnlyRootFilesystem"], &security["privileged"]),
            (&json!(true), &Value::Null)
        );
        assert_eq!(pod["hostNetwork"], Value::Null);
    }
    let everything = of_kind(&render(VALUES[3].1), "DaemonSet");
    let security = &everything["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(security["privileged"], true);
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn no_right_is_a_wildcard_and_each_is_one_that_the_agents_readme_names() {
    let right = |rules: &Value| {
        let rules = rules.as_array().unwrap().iter();
        let flat = rules.flat_map(|rule| {
            let of = |name: &str| -> Vec<String> {
                rule[name].as_array().unwrap().iter().map(|one| one.as_str().unwrap().into()).collect()
            };
            let (groups, verbs) = (of("apiGroups"), of("verbs"));
            of("resources").into_iter().flat_map(move |resource| {
                let group = groups.join(",");
                verbs
                    .clone()
                    .into_iter()
                    .map(move |verb| format!("{verb} {resource} {group}"))
                    .collect::<Vec<_>>()
            })
        });
        flat.collect::<BTreeSet<_>>()
    };
    let of_pods = ["get pods ", "list pods ", "watch pods ", "patch pods "];
    let plugin = [&of_pods[..], &["patch nodes ", "create events events.k8s.io"]].concat();
    let slices = ["list", "watch", "create", "patch", "delete"]
        .map(|verb| format!("{verb} resourceslices resource.k8s.io"));
    let mut claims: BTreeSet<String> = plugin.iter().map(ToString::to_string).collect();
    claims.extend(slices);
    claims.extend(["get nodes ".to_string(), "get resourceclaims resource.k8s.io".to_string()]);
    assert_eq!(
        right(&of_kind(&render(""), "ClusterRole")["rules"]),
        plugin.iter().map(ToString::to_string).collect()
    );
    assert_eq!(right(&of_kind(&render("frontEnd: dra"), "ClusterRole")["rules"]), claims);
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn alerts_ask_for_metrics_that_the_agent_has_and_say_what_to_do() {
    let rules = of_kind(&render(VALUES[3].1), "PrometheusRule");
    let readme = fs::read_to_string(chart("../device-plugin/README.md")).unwrap();
    let alerts = rules["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(alerts.len() >= 6);
    for alert in alerts {
        let words = alert["expr"].as_str().unwrap().split(|c: char| !c.is_alphanumeric() && c != '_');
        let metrics: Vec<_> = words.filter(|word| word.starts_with("gpufn_")).collect();
        assert!(!metrics.is_empty(), "{alert}");
        for metric in metrics {
            assert!(readme.contains(&format!("| `{metric}` |")), "{metric} is no metric of the agent");
        }
        assert!(alert["annotations"]["runbook"].as_str().is_some_and(|text| text.len() > 80), "{alert}");
    }
}
