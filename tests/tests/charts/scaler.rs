//! The chart of scaler and webhook.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::{Chart, Set, named, objects, of_kind, rights};

pub(super) const CHART: Chart = Chart {
    name: "gpufn-scaler",
    sets: &[
        Set { name: "default", values: "", since: 0 },
        Set {
            name: "one-namespace",
            values: "{namespace: fn, replicas: 1, source: prometheus, prometheusUrl: 'http://prometheus.monitoring:9090', \
                     webhook: {enabled: false}}",
            since: 0,
        },
        Set { name: "everything", values: EVERYTHING, since: 0 },
    ],
    refused: &[
        ("replica: 2", "replica"),
        ("replicas: 0", "replicas"),
        ("replicas: '2'", "replicas"),
        ("namespace: Fn", "namespace"),
        ("source: logs", "source"),
        ("watchdogPort: 80810", "watchdogPort"),
        ("prometheusUrl: prometheus:9090", "prometheusUrl"),
        ("period: soon", "period"),
        ("stale: 30", "stale"),
        ("coldStart: ''", "coldStart"),
        ("window: 10m", "window"),
        ("gpuMemory: 80GB", "gpuMemory"),
        ("vertical: 'yes'", "vertical"),
        ("controlPeriod: 50ms", "controlPeriod"),
        ("leaseDuration: 1m", "leaseDuration"),
        ("writes: 0", "writes"),
        ("tls: {secret: tls}", "secret"),
        ("tls: {secretName: Tls_1}", "tls/secretName"),
        ("webhook: {units: 30}", "webhook/units"),
        ("webhook: {resource: gpu}", "webhook/resource"),
        ("webhook: {failurePolicy: fail}", "webhook/failurePolicy"),
        ("webhook: {timeoutSeconds: 31}", "webhook/timeoutSeconds"),
        ("webhook: {graceSeconds: 1m}", "webhook/graceSeconds"),
        ("webhook: {certificate: {authority: /tls/ca.crt}}", "webhook/certificate/authority"),
        ("address: '::'", "address"),
        ("image: {digest: sha256-1}", "image/digest"),
        ("log: {format: logfmt}", "log/format"),
        ("networkPolicy: {keda: keda}", "networkPolicy/keda"),
        ("podLabels: {team: 1}", "podLabels/team"),
    ],
    incomplete: &[
        ("source: prometheus", "prometheusUrl"),
        ("source: gateway", "gatewayUrl"),
        ("tls: {clients: true}", "tls.secretName"),
        ("webhook: {certificate: {secretName: tls}}", "webhook.certificate.authority"),
        ("serviceAccount: {create: false}", "serviceAccount.name"),
    ],
    metrics: "scaler/README.md",
    alerts: EVERYTHING,
};

const EVERYTHING: &str = "
image: {registry: registry.example, digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}
imagePullSecrets: [{name: registry}]
replicas: 3
source: gateway
gatewayUrl: http://gateway.openfaas:8082/metrics
period: 2s
profilesConfigMap: profiles
vertical: false
horizontal: false
dryRun: true
controlPeriod: 1s
writes: 20
leaseDuration: 30s
tls: {secretName: keda-tls, clients: true}
webhook:
  runtimeClassName: nvidia
  steering: false
  namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system]}]}
  certificate:
    secretName: webhook-tls
    authority: |
      -----BEGIN CERTIFICATE-----
      MIIB
      -----END CERTIFICATE-----
log: {level: debug, format: text}
serviceAccount: {name: scaler, annotations: {example.com/role: scaler}}
metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}, prometheusRule: {enabled: true}}
networkPolicy: {enabled: true, http: [{namespaceSelector: {matchLabels: {name: openfaas}}}]}
extraEnv: [{name: RUST_BACKTRACE, value: '1'}]
nodeSelector: {kubernetes.io/os: linux}
affinity: {nodeAffinity: {}}
tolerations: [{operator: Exists}]
podAnnotations: {example.com/team: a}
podLabels: {team: a}
";

/// Rights of the table in the scaler's README; `left` says which rows, by their last cell.
fn in_readme(left: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let readme = fs::read_to_string(tests::helm::chart("../scaler/README.md")).unwrap();
    let section = readme.split("### What it may do\n").nth(1).unwrap().split("\n#").next().unwrap();
    let mut rights = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [group, resource, verbs, why] = cells[..] else { panic!("{row}") };
        let (group, resource) = (group.trim_matches('`').replace("core", ""), resource.trim_matches('`'));
        if left(why) && !resource.starts_with("leases") {
            rights.extend(verbs.split(", ").map(|verb| format!("{verb} {resource} {group}")));
        }
    }
    assert!(rights.len() > 10, "{rights:?}");
    rights
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn the_only_rights_are_those_that_the_scalers_readme_names_and_in_one_namespace_if_so_wanted() {
    let all = in_readme(|_| true);
    let rights_with = |values: &str| rights(&of_kind(&CHART.render(values), "ClusterRole")["rules"]);
    assert_eq!(rights_with(""), all);
    let less = |option: &str| in_readme(|why| !why.contains(option));
    assert_eq!(rights_with("vertical: false"), less("--no-vertical"));
    assert_eq!(rights_with("horizontal: false"), less("--no-horizontal"));
    let told = less("--dry-run").into_iter().filter(|right| !right.contains("events")).collect();
    assert_eq!(rights_with("dryRun: true"), told);

    let one = objects(&CHART.render("namespace: fn"));
    let roles: Vec<_> = one.iter().filter(|object| object["kind"] == "Role").collect();
    let [role, lease] = roles[..] else { panic!("{} roles", roles.len()) };
    assert_eq!((rights(&role["rules"]), role["metadata"]["namespace"].as_str()), (all, Some("fn")));
    assert!(one.iter().all(|object| object["kind"] != "ClusterRole"));
    let leases = named(
        &["create", "get", "update"]
            .map(|verb| format!("{verb} leases coordination.k8s.io"))
            .each_ref()
            .map(String::as_str),
    );
    assert_eq!((rights(&lease["rules"]), lease["metadata"]["namespace"].as_str()), (leases, Some("gpufn")));
    assert_eq!(lease["rules"][1]["resourceNames"], json!([role["metadata"]["name"]]));
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn each_pod_is_what_the_restricted_level_allows_and_the_webhooks_has_no_account() {
    for set in CHART.sets {
        let rendered = objects(&CHART.render(set.values));
        let workloads =
            rendered.iter().filter(|object| object["kind"] == "Deployment" || object["kind"] == "Pod");
        for object in workloads {
            let pod =
                if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
            let container = &pod["containers"][0]["securityContext"];
            let either = |name: &str| [&pod["securityContext"][name], &container[name]].map(Value::clone);
            assert!(either("runAsNonRoot").contains(&json!(true)), "{object}");
            assert!(either("seccompProfile").contains(&json!({"type": "RuntimeDefault"})), "{object}");
            assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(container["allowPrivilegeEscalation"], false);
            assert_eq!(container["readOnlyRootFilesystem"], true);
            assert!(["hostNetwork", "hostPID", "hostIPC"].iter().all(|host| pod[host].is_null()));
            let is_scaler = pod["containers"][0]["name"] == "scaler";
            assert_eq!(pod["automountServiceAccountToken"] == false, !is_scaler, "{object}");
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn every_argument_is_one_that_the_programs_readme_lists() {
    let readme = fs::read_to_string(tests::helm::chart("../scaler/README.md")).unwrap();
    for set in CHART.sets {
        for object in
            objects(&CHART.render(set.values)).iter().filter(|object| object["kind"] == "Deployment")
        {
            let container = &object["spec"]["template"]["spec"]["containers"][0];
            let arguments =
                container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
            for option in arguments.skip(1).map(|argument| argument.split('=').next().unwrap()) {
                assert!(readme.contains(&format!("`{option}`")), "{option}");
            }
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn what_may_come_in_is_what_the_policy_says_and_nothing_else() {
    let policies = objects(&CHART.render("networkPolicy: {enabled: true, http: [{podSelector: {}}]}"));
    let policies: Vec<_> = policies.iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
    let of = |component: &str| {
        let selected = |policy: &&&Value| {
            policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
        };
        &policies.iter().find(selected).unwrap()["spec"]
    };
    assert_eq!((policies.len(), &of("scaler")["policyTypes"]), (2, &json!(["Ingress"])));
    let ports = |spec: &Value| -> Vec<(Value, usize)> {
        let rules = spec["ingress"].as_array().unwrap().iter();
        rules
            .map(|rule| (rule["ports"][0]["port"].clone(), rule["from"].as_array().map_or(0, Vec::len)))
            .collect()
    };
    assert_eq!(ports(of("scaler")), [(json!("grpc"), 1), (json!("http"), 2)]);
    assert_eq!(ports(of("webhook")), [(json!("https"), 0)]);
}
