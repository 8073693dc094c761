//! The chart of the node agent.

use serde_json::{Value, json};

use super::{Chart, Set, VERSIONS, named, of_kind, rights};

/// The first version that has claims.
const CLAIMS: usize = 4;

pub(super) const CHART: Chart = Chart {
    name: "gpufn-node",
    sets: &[
        Set { name: "default", values: "", since: 0 },
        Set { name: "claims", values: "{frontEnd: dra, mps: {mode: start}}", since: CLAIMS },
        Set {
            name: "neighbours",
            values: "{mps: {mode: use, pipeDirectory: /run/mps}, inject: classic, gpuKind: '', runtimeClassName: ''}",
            since: 0,
        },
        Set { name: "everything", values: EVERYTHING, since: 0 },
    ],
    refused: &[
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
    ],
    incomplete: &[
        ("mps: {mode: use}", "mps.pipeDirectory"),
        ("serviceAccount: {create: false}", "serviceAccount.name"),
    ],
    metrics: "device-plugin/README.md",
    alerts: EVERYTHING,
};

const EVERYTHING: &str = "
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
";

#[test]
#[ignore = "needs Helm: make test-charts"]
fn claims_are_refused_on_a_kubernetes_that_has_none() {
    let error = CHART.try_render(VERSIONS[CLAIMS - 1], "frontEnd: dra").unwrap_err().to_string();
    assert!(error.contains("frontEnd: dra needs Kubernetes 1.34, this is v1.33.0"), "{error}");
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn an_agent_that_reads_no_kernel_log_has_no_capability_and_never_the_hosts_network() {
    for set in &CHART.sets[..3] {
        let pod = &of_kind(&CHART.render(set.values), "DaemonSet")["spec"]["template"]["spec"];
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(
            (&security["readOnlyRootFilesystem"], &security["privileged"]),
            (&json!(true), &Value::Null)
        );
        assert_eq!(pod["hostNetwork"], Value::Null);
    }
    let everything = of_kind(&CHART.render(EVERYTHING), "DaemonSet");
    let security = &everything["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(security["privileged"], true);
}

#[test]
#[ignore = "needs Helm: make test-charts"]
fn no_right_is_a_wildcard_and_each_is_one_that_the_agents_readme_names() {
    let plugin = named(&[
        "get pods ",
        "list pods ",
        "watch pods ",
        "patch pods ",
        "patch nodes ",
        "create events events.k8s.io",
    ]);
    let claims = named(&[
        "get nodes ",
        "get resourceclaims resource.k8s.io",
        "list resourceslices resource.k8s.io",
        "watch resourceslices resource.k8s.io",
        "create resourceslices resource.k8s.io",
        "patch resourceslices resource.k8s.io",
        "delete resourceslices resource.k8s.io",
    ]);
    let rendered = |values| rights(&of_kind(&CHART.render(values), "ClusterRole")["rules"]);
    assert_eq!(rendered(""), plugin);
    assert_eq!(rendered("frontEnd: dra"), &plugin | &claims);
}
