//! What is written for a function: its Deployment and its Service. Pure.
//!
//! Replica counts are in neither: they belong to whoever scales. Each object is applied whole, and fields of others stay.

use std::time::Duration;

use gpu_share::annotations::{Replicas, Shape, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names::{annotation, label};
use openfaas::shapes::{FunctionDeployment, Map};
use openfaas::{checks, names};
use serde_json::{Value, json};

use super::{FUNCTION, SECRETS, Settings};
use crate::webhook::{Denied, admit};

/// Resources that stand for whole GPUs, as the API names them.
pub(super) const WHOLE_GPUS: [&str; 3] = ["nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu"];
/// The command line of the function's process, to its watchdog.
pub(super) const PROCESS: &str = "fprocess";
/// Names of volumes.
pub(super) const SECRETS_VOLUME: &str = "secrets";
const TEMP_VOLUME: &str = "temp";
/// Annotations by which a function names other paths for its probes, and an account.
const HEALTH_PATH: &str = "com.openfaas.health.http.path";
const READY_PATH: &str = "com.openfaas.ready.http.path";
const ACCOUNT: &str = "com.openfaas.serviceaccount";
/// User of functions that don't run as root, as OpenFaaS has it.
const USER: u32 = 12_000;
/// What `healthcheck_interval` and `write_timeout` are where nothing is said, by of-watchdog's documentation.
const WATCHDOG_TIME: Duration = Duration::from_secs(30);
/// Time that a pod has to end beyond what its watchdog takes: the kubelet's part.
const MARGIN: Duration = Duration::from_secs(5);
/// Longest time that a pod has to end.
const GRACE_MAX: Duration = Duration::from_hours(1);

/// Why there are no objects for a deployment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// A member is not allowed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Its part of a GPU can't be given.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// Secrets of a function: those that it reads, and those by which its image is pulled.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    pub(super) mounted: Vec<String>,
    pub(super) for_pulling: Vec<String>,
}

/// Checks all that can be seen from the deployment alone.
pub(super) fn check(wanted: &FunctionDeployment, settings: &Settings) -> Result<(), Unfit> {
    checks::deployment(wanted)?;
    names::image(&wanted.image)?;
    deployment(wanted, &Secrets::default(), settings).map(drop)
}

/// How many replicas it may have: by annotation, else by label.
pub(super) fn replicas(wanted: &FunctionDeployment, settings: &Settings) -> Result<Replicas, Invalid> {
    let (bounds, _) = checks::replicas(&wanted.labels)?;
    // Which profiles there are knows the scaler.
    let mut annotations = wanted.annotations.clone();
    annotations.remove(annotation::MODEL);
    let wish = Wish::read(&annotations, settings.gpus.gpu_memory, &Profiles::default())?;
    let own = wish.filter(|_| annotations.contains_key(annotation::REPLICAS));
    Ok(own.map_or(bounds, |wish| wish.replicas))
}

/// The Deployment.
pub(super) fn deployment(
    wanted: &FunctionDeployment,
    secrets: &Secrets,
    settings: &Settings,
) -> Result<Value, Unfit> {
    replicas(wanted, settings)?;
    let template = admit(&template(wanted, secrets, settings)?, &settings.gpus)?;
    let has_gpu = uses_gpu(&template, settings);
    // A new pod beside the old ones would wait for ever where all GPUs are taken.
    let (surge, unavailable) = if has_gpu { (0, 1) } else { (1, 0) };
    Ok(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": wanted.service, "namespace": wanted.namespace,
            "labels": {FUNCTION: wanted.service}, "annotations": wanted.annotations,
        },
        "spec": {
            "selector": {"matchLabels": {FUNCTION: wanted.service}},
            "strategy": {
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
            },
            "template": template,
        },
    }))
}

/// The Service, which goes with the Deployment that has this `uid`.
pub(super) fn service(wanted: &FunctionDeployment, uid: &str, settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": wanted.service, "namespace": wanted.namespace,
            "labels": {FUNCTION: wanted.service}, "annotations": wanted.annotations,
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": wanted.service, "uid": uid,
            }],
        },
        "spec": {
            "type": "ClusterIP", "selector": {FUNCTION: wanted.service},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080, "targetPort": settings.port}],
        },
    })
}

fn template(wanted: &FunctionDeployment, secrets: &Secrets, settings: &Settings) -> Result<Value, Invalid> {
    let mut spec = json!({
        "containers": [container(wanted, settings)?],
        "enableServiceLinks": false,
        "automountServiceAccountToken": wanted.annotations.contains_key(ACCOUNT),
        "terminationGracePeriodSeconds": grace(wanted, settings)?.as_secs(),
    });
    if let Some(account) = wanted.annotations.get(ACCOUNT) {
        names::secret_name(account).map_err(|invalid| invalid.in_field(ACCOUNT))?;
        spec["serviceAccountName"] = json!(account);
    }
    if !wanted.constraints.is_empty() {
        spec["nodeSelector"] = json!(node_selector(&wanted.constraints)?);
    }
    if !secrets.for_pulling.is_empty() {
        let names = secrets.for_pulling.iter().map(|name| json!({"name": name}));
        spec["imagePullSecrets"] = names.collect();
    }
    if settings.non_root {
        spec["securityContext"] =
            json!({"runAsNonRoot": true, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}});
    }
    add_volumes(&mut spec, wanted, secrets);
    Ok(
        json!({"metadata": {"labels": labels(wanted, settings)?, "annotations": wanted.annotations}, "spec": spec}),
    )
}

/// Labels of its pods. Who asks for a part of a GPU opts in.
fn labels(wanted: &FunctionDeployment, settings: &Settings) -> Result<Map, Invalid> {
    let mut labels = wanted.labels.clone();
    if let Some(other) = labels.insert(FUNCTION.into(), wanted.service.clone())
        && other != wanted.service
    {
        let allowed = format!("{:?}, the function's name", wanted.service);
        return Err(Invalid::new(format!("label {FUNCTION}"), other, allowed));
    }
    if asks_for_a_part(wanted, settings)? {
        labels.entry(label::ENABLED.into()).or_insert_with(|| "true".into());
    }
    Ok(labels)
}

fn asks_for_a_part(wanted: &FunctionDeployment, settings: &Settings) -> Result<bool, Invalid> {
    let shape = Shape::read(&wanted.annotations, settings.gpus.gpu_memory)?;
    let names_units =
        [&wanted.limits, &wanted.requests].iter().any(|map| map.contains_key(&settings.gpus.resource));
    Ok(shape.sm.is_some() || shape.quota.is_some() || shape.memory.is_some() || names_units)
}

fn uses_gpu(template: &Value, settings: &Settings) -> bool {
    let limits = &template["spec"]["containers"][0]["resources"]["limits"];
    WHOLE_GPUS.iter().any(|whole| !limits[whole].is_null()) || !limits[&settings.gpus.resource].is_null()
}

fn container(wanted: &FunctionDeployment, settings: &Settings) -> Result<Value, Invalid> {
    let mut security = json!({
        "readOnlyRootFilesystem": wanted.read_only_root_filesystem, "allowPrivilegeEscalation": false,
    });
    if settings.non_root {
        security["capabilities"] = json!({"drop": ["ALL"]});
    }
    let mut container = json!({
        "name": wanted.service,
        "image": wanted.image,
        "imagePullPolicy": settings.image_pull_policy,
        "ports": [{"name": "http", "containerPort": settings.port, "protocol": "TCP"}],
        "securityContext": security,
    });
    let mut variables = wanted.env_vars.clone();
    if !wanted.env_process.is_empty() {
        variables.insert(PROCESS.into(), wanted.env_process.clone());
    }
    if !variables.is_empty() {
        container["env"] =
            variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    for (kind, asked) in [("limits", &wanted.limits), ("requests", &wanted.requests)] {
        if !asked.is_empty() {
            container["resources"][kind] = json!(resources(kind, asked, settings)?);
        }
    }
    add_probes(&mut container, wanted, settings)?;
    Ok(container)
}

/// Resources as they were asked for; what does not exist would keep the pod waiting for ever.
fn resources<'a>(kind: &str, asked: &'a Map, settings: &Settings) -> Result<&'a Map, Invalid> {
    let unit = settings.gpus.resource.as_str();
    let known = ["memory", "cpu", unit].into_iter().chain(WHOLE_GPUS).collect::<Vec<_>>();
    match asked.keys().find(|key| !known.contains(&key.as_str())) {
        Some(other) => Err(Invalid::new(kind, other, known.join(", "))),
        None => Ok(asked),
    }
}

/// A start may take as long as loading a model does; after it a watchdog that does not answer is started again.
fn add_probes(
    container: &mut Value,
    wanted: &FunctionDeployment,
    settings: &Settings,
) -> Result<(), Invalid> {
    let probe = |name: &'static str, usual: &str| {
        let path = wanted.annotations.get(name).map_or(usual, String::as_str);
        let sound = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        let get = json!({"path": path, "port": settings.port, "scheme": "HTTP"});
        sound.then_some(get).ok_or_else(|| Invalid::new(name, path, "a path such as /_/ready"))
    };
    let live = probe(HEALTH_PATH, &settings.health_path)?;
    let ready = probe(READY_PATH, &settings.ready_path)?;
    container["startupProbe"] = json!({
        "httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 1,
        "failureThreshold": settings.start.as_secs().max(1),
    });
    container["readinessProbe"] =
        json!({"httpGet": ready, "periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 3});
    container["livenessProbe"] =
        json!({"httpGet": live, "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3});
    Ok(())
}

fn add_volumes(spec: &mut Value, wanted: &FunctionDeployment, secrets: &Secrets) {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    if !secrets.mounted.is_empty() {
        let sources: Vec<_> = secrets.mounted.iter().map(|name| json!({"secret": {"name": name}})).collect();
        volumes.push(json!({"name": SECRETS_VOLUME, "projected": {"sources": sources}}));
        mounts.push(json!({"name": SECRETS_VOLUME, "mountPath": SECRETS, "readOnly": true}));
    }
    if wanted.read_only_root_filesystem {
        volumes.push(json!({"name": TEMP_VOLUME, "emptyDir": {}}));
        mounts.push(json!({"name": TEMP_VOLUME, "mountPath": "/tmp"}));
    }
    if !volumes.is_empty() {
        spec["volumes"] = json!(volumes);
        spec["containers"][0]["volumeMounts"] = json!(mounts);
    }
}

/// `key=value`, also with spaces and as `==`, as constraints are written.
fn node_selector(constraints: &[String]) -> Result<Map, Invalid> {
    let pair = |constraint: &String| {
        let allowed = "KEY=VALUE, a label of a node";
        let wrong = || Invalid::new("constraints", constraint, allowed);
        let (key, value) =
            constraint.split_once("==").or_else(|| constraint.split_once('=')).ok_or_else(wrong)?;
        let (key, value) = (key.trim(), value.trim());
        names::qualified("constraints", key).map_err(|_| wrong())?;
        names::label_value("constraints", value).map_err(|_| wrong())?;
        Ok((key.to_string(), value.to_string()))
    };
    constraints.iter().map(pair).collect()
}

/// Time that a pod has to end: what its watchdog takes to be left alone by requests and to answer those it has.
fn grace(wanted: &FunctionDeployment, settings: &Settings) -> Result<Duration, Invalid> {
    let named = |name, usual| Ok::<_, Invalid>(checks::time(&wanted.env_vars, name)?.unwrap_or(usual));
    let write = named("write_timeout", WATCHDOG_TIME)?;
    let drain =
        named("healthcheck_interval", WATCHDOG_TIME)? + write.max(named("exec_timeout", Duration::ZERO)?);
    let least = Duration::from_secs(settings.gpus.grace_seconds);
    Ok((drain + MARGIN).clamp(least, GRACE_MAX.max(least)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::settings;

    fn wanted(json: &Value) -> FunctionDeployment {
        let mut wanted: FunctionDeployment = serde_json::from_value(json.clone()).unwrap();
        wanted.namespace = "openfaas-fn".into();
        wanted
    }

    fn made(json: &Value) -> Value {
        let secrets = Secrets { mounted: wanted(json).secrets, for_pulling: Vec::new() };
        deployment(&wanted(json), &secrets, &settings()).unwrap()
    }

    #[test]
    fn a_function_is_a_deployment_of_one_container_with_its_environment_in_order() {
        let made = made(&json!({
            "service": "f", "image": "registry.local/f:1", "envProcess": "cat", "envVars": {"Z": "1", "A": "2"},
            "labels": {"app": "demo"}, "annotations": {"topic": "orders"}, "constraints": ["zone=a", "node.gpu == true"],
            "secrets": ["key"], "limits": {"memory": "128Mi"}, "requests": {"cpu": "50m"}, "readOnlyRootFilesystem": true,
        }));
        assert_eq!(made["spec"]["replicas"], Value::Null, "replicas are whose scales");
        let (spec, metadata) = (&made["spec"]["template"]["spec"], &made["spec"]["template"]["metadata"]);
        assert_eq!(metadata["labels"], json!({"app": "demo", "faas_function": "f"}));
        assert_eq!(metadata["annotations"], made["metadata"]["annotations"]);
        let container = &spec["containers"][0];
        let env = json!([{"name": "A", "value": "2"}, {"name": "Z", "value": "1"}, {"name": "fprocess", "value": "cat"}]);
        assert_eq!(container["env"], env);
        assert_eq!(
            container["resources"],
            json!({"limits": {"memory": "128Mi"}, "requests": {"cpu": "50m"}})
        );
        assert_eq!(spec["nodeSelector"], json!({"zone": "a", "node.gpu": "true"}));
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/var/openfaas/secrets");
        assert_eq!(container["volumeMounts"][1]["mountPath"], "/tmp");
        assert_eq!(spec["volumes"][0]["projected"]["sources"], json!([{"secret": {"name": "key"}}]));
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/_/health");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/_/ready");
        assert_eq!(made["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    }

    #[test]
    fn a_part_of_a_gpu_opts_in_and_has_the_units_that_the_webhook_would_give() {
        let annotations = json!({"gpufn.dev/sm": "50", "gpufn.dev/quota": "40", "gpufn.dev/memory": "3Gi"});
        let made = made(&json!({"service": "f", "image": "i", "annotations": annotations}));
        let template = &made["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["gpufn.dev/enabled"], "true");
        assert_eq!(template["spec"]["containers"][0]["resources"]["limits"]["gpufn.dev/gpu"], "4");
        assert_eq!(made["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
        assert_eq!(
            &admit(template, &settings().gpus).unwrap(),
            template,
            "the webhook changes nothing any more"
        );
    }

    #[test]
    fn a_pod_has_as_long_to_end_as_its_watchdog_takes() {
        let grace = |env: Value| {
            let made = made(&json!({"service": "f", "image": "i", "envVars": env}));
            made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap()
        };
        assert_eq!(grace(json!({})), 65);
        assert_eq!(grace(json!({"healthcheck_interval": "1s", "write_timeout": "2s"})), 60);
        assert_eq!(
            grace(json!({"healthcheck_interval": "30s", "write_timeout": "2m", "exec_timeout": "10s"})),
            155
        );
        assert_eq!(grace(json!({"write_timeout": "100h"})), 3600);
    }

    #[test]
    fn functions_that_may_not_be_root_keep_to_the_restricted_pod_standard() {
        let settings = Settings { non_root: true, ..settings() };
        let wanted = wanted(&json!({"service": "f", "image": "i"}));
        let made = deployment(&wanted, &Secrets::default(), &settings).unwrap();
        let spec = &made["spec"]["template"]["spec"];
        let context =
            json!({"runAsNonRoot": true, "runAsUser": 12000, "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(spec["securityContext"], context);
        assert_eq!(spec["containers"][0]["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"], false);
    }

    #[test]
    fn what_no_cluster_would_run_is_refused_in_one_line() {
        let cases = [
            (json!({"image": ""}), "image is \"\""),
            (json!({"image": "$(id)"}), "image is \"$(id)\""),
            (json!({"constraints": ["gpu"]}), "constraints is \"gpu\", allowed is KEY=VALUE"),
            (json!({"constraints": ["a b=c"]}), "constraints is \"a b=c\""),
            (json!({"limits": {"x.y/z": "1"}}), "limits is \"x.y/z\", allowed is memory, cpu, gpufn.dev/gpu"),
            (json!({"labels": {"faas_function": "g"}}), "label faas_function is \"g\""),
            (json!({"labels": {"com.openfaas.scale.min": "x"}}), "com.openfaas.scale.min is \"x\""),
            (json!({"annotations": {"gpufn.dev/quota": "0"}}), "gpufn.dev/quota is \"0\""),
            (json!({"annotations": {"gpufn.dev/slo": "fast"}}), "gpufn.dev/slo is \"fast\""),
            (
                json!({"annotations": {"com.openfaas.ready.http.path": "x y"}}),
                "com.openfaas.ready.http.path is",
            ),
            (
                json!({"annotations": {"com.openfaas.serviceaccount": "../x"}}),
                "com.openfaas.serviceaccount is",
            ),
            (json!({"envVars": {"write_timeout": "soon"}}), "envVars.write_timeout is \"soon\""),
            (json!({"labels": {"gpufn.dev/enabled": "true"}}), "the pod asks for no part of a GPU"),
            (
                json!({"annotations": {"gpufn.dev/quota": "20"}, "limits": {"nvidia.com/gpu": "1"}}),
                "container f asks for nvidia.com/gpu beside a part of a GPU",
            ),
        ];
        for (members, start) in cases {
            let mut json = json!({"service": "f", "image": "i"});
            json.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            let error = check(&wanted(&json), &settings()).unwrap_err().to_string();
            assert!(error.starts_with(start) && !error.contains('\n'), "{json}: {error}");
        }
    }

    #[test]
    fn annotations_bound_the_replicas_before_labels_do() {
        let labels = json!({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "4"});
        let by_label = wanted(&json!({"service": "f", "image": "i", "labels": labels}));
        assert_eq!(replicas(&by_label, &settings()).unwrap(), Replicas { min: 2, max: 4 });
        let annotations =
            json!({"gpufn.dev/sm": "10", "gpufn.dev/replicas": "0..3", "gpufn.dev/model": "mine"});
        let both =
            wanted(&json!({"service": "f", "image": "i", "labels": labels, "annotations": annotations}));
        assert_eq!(replicas(&both, &settings()).unwrap(), Replicas { min: 0, max: 3 });
    }

    proptest! {
        #[test]
        fn no_deployment_makes_it_panic(
            name in "\\PC{0,12}|[a-z-]{0,12}", value in "(?s).{0,12}", constraint in "[a-z =!/]{0,12}|\\PC{0,12}",
            kind in prop::sample::select(vec!["labels", "annotations", "limits", "requests", "envVars"]),
        ) {
            let mut json = json!({"service": "f", "image": "i", "constraints": [constraint]});
            json[kind] = json!({name: value});
            if check(&wanted(&json), &settings()).is_ok() {
                let selector = made(&json)["spec"]["template"]["spec"]["nodeSelector"].clone();
                prop_assert_eq!(selector.as_object().map(serde_json::Map::len), Some(1));
            }
        }

        #[test]
        fn what_a_function_asks_for_is_given_whether_the_webhook_is_there_or_not(
            sm in 1_u8..=100, quota in 1_u8..=100, memory in 1_u64..=16,
        ) {
            let annotations = json!({
                "gpufn.dev/sm": sm.to_string(), "gpufn.dev/quota": quota.to_string(), "gpufn.dev/memory": format!("{memory}Gi"),
            });
            let template = made(&json!({"service": "f", "image": "i", "annotations": annotations}))["spec"]["template"].clone();
            prop_assert_eq!(&admit(&template, &settings().gpus).unwrap(), &template);
        }
    }
}
