//! What a client is told of a function, read from its Deployment, which is the only record of it. Pure.

use gpu_share::names::{annotation, env};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use openfaas::names::FunctionId;
use openfaas::shapes::{FunctionDeployment, FunctionStatus, Map};

use super::objects::{PROCESS, SECRETS_VOLUME, WHOLE_GPUS};
use super::{FUNCTION, Settings};

/// Annotations of a part of a GPU; where there is one, units follow from them.
const PARTS: [&str; 3] = [annotation::SM, annotation::QUOTA, annotation::MEMORY];

/// The function that a Deployment runs; nothing if it runs none.
pub(super) fn id(deployment: &Deployment) -> Option<FunctionId> {
    let metadata = &deployment.metadata;
    let (name, namespace) = (metadata.name.clone()?, metadata.namespace.clone()?);
    let labels = deployment.spec.as_ref()?.template.metadata.as_ref()?.labels.as_ref()?;
    (labels.get(FUNCTION) == Some(&name)).then_some(FunctionId { namespace, name })
}

/// Replicas that are wanted.
pub(super) fn replicas(deployment: &Deployment) -> u32 {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    // One is what the API server takes for nothing.
    replicas.map_or(1, |replicas| u32::try_from(replicas).unwrap_or(0))
}

/// What was asked for, as far as the Deployment tells; nothing if it runs no function.
pub(super) fn deployed(deployment: &Deployment, settings: &Settings) -> Option<FunctionDeployment> {
    let FunctionId { namespace, name } = id(deployment)?;
    let template = &deployment.spec.as_ref()?.template;
    let metadata = template.metadata.clone().unwrap_or_default();
    let (labels, annotations) =
        (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    let pod = template.spec.as_ref()?;
    let container = pod.containers.iter().find(|one| one.name == name).or_else(|| pod.containers.first())?;
    let mut variables = variables(container);
    let has_part = PARTS.iter().any(|part| annotations.contains_key(*part));
    let shown = |quantities: Option<&std::collections::BTreeMap<String, Quantity>>| -> Map {
        let is_shown = |key: &str| {
            ["memory", "cpu"].contains(&key)
                || WHOLE_GPUS.contains(&key)
                || (key == settings.gpus.resource && !has_part)
        };
        let shown = quantities.into_iter().flatten().filter(|(key, _)| is_shown(key));
        shown.map(|(key, quantity)| (key.clone(), quantity.0.clone())).collect()
    };
    let resources = container.resources.as_ref();
    Some(FunctionDeployment {
        service: name,
        image: container.image.clone().unwrap_or_default(),
        namespace,
        env_process: variables.remove(PROCESS).unwrap_or_default(),
        env_vars: variables,
        constraints: constraints(pod),
        secrets: secrets(pod),
        labels,
        annotations,
        limits: shown(resources.and_then(|resources| resources.limits.as_ref())),
        requests: shown(resources.and_then(|resources| resources.requests.as_ref())),
        read_only_root_filesystem: container
            .security_context
            .as_ref()
            .and_then(|context| context.read_only_root_filesystem)
            .unwrap_or(false),
    })
}

/// The function's status after so many requests through here; nothing if it runs no function.
pub(super) fn status(deployment: &Deployment, settings: &Settings, requests: u64) -> Option<FunctionStatus> {
    let deployed = deployed(deployment, settings)?;
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas);
    let created = deployment.metadata.creation_timestamp.as_ref();
    Some(FunctionStatus {
        name: deployed.service,
        image: deployed.image,
        namespace: deployed.namespace,
        env_process: deployed.env_process,
        env_vars: deployed.env_vars,
        constraints: deployed.constraints,
        secrets: deployed.secrets,
        labels: deployed.labels,
        annotations: deployed.annotations,
        limits: deployed.limits,
        requests: deployed.requests,
        read_only_root_filesystem: deployed.read_only_root_filesystem,
        invocation_count: requests,
        replicas: replicas(deployment),
        available_replicas: available.map_or(0, |available| u32::try_from(available).unwrap_or(0)),
        // The time that Go takes for none.
        created_at: created.map_or_else(|| "0001-01-01T00:00:00Z".into(), |time| time.0.to_string()),
        usage: None,
    })
}

/// Variables that were asked for, without what comes with a part of a GPU.
fn variables(container: &Container) -> Map {
    let all = container.env.iter().flatten().filter(|variable| variable.name != env::POLICY);
    all.filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?))).collect()
}

fn constraints(pod: &PodSpec) -> Vec<String> {
    pod.node_selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect()
}

fn secrets(pod: &PodSpec) -> Vec<String> {
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == SECRETS_VOLUME);
    let sources = volume.and_then(|volume| volume.projected.as_ref()?.sources.as_ref());
    let mounted =
        sources.into_iter().flatten().filter_map(|source| Some(source.secret.as_ref()?.name.clone()));
    let pulling = pod.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone());
    mounted.chain(pulling).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::{objects, settings};

    /// The Deployment that is written for a function.
    fn written(wanted: &FunctionDeployment) -> Value {
        let secrets = objects::Secrets { mounted: wanted.secrets.clone(), for_pulling: Vec::new() };
        objects::deployment(wanted, &secrets, &settings()).unwrap()
    }

    fn read(deployment: Value) -> FunctionStatus {
        status(&serde_json::from_value(deployment).unwrap(), &settings(), 7).unwrap()
    }

    #[test]
    fn a_function_is_told_of_as_it_was_deployed() {
        let json = json!({
            "service": "f", "namespace": "fn", "image": "i:1", "envProcess": "cat", "envVars": {"A": "1"},
            "constraints": ["zone=a"], "secrets": ["key", "token"], "labels": {"app": "demo"},
            "annotations": {"gpufn.dev/quota": "20"}, "limits": {"memory": "128Mi", "cpu": "500m"},
            "requests": {"memory": "64Mi"}, "readOnlyRootFilesystem": true,
        });
        let wanted: FunctionDeployment = serde_json::from_value(json.clone()).unwrap();
        let mut told = serde_json::to_value(read(written(&wanted))).unwrap();
        assert_eq!(told["labels"]["faas_function"], "f");
        assert_eq!(told["labels"]["gpufn.dev/enabled"], "true");
        told["labels"] = json!({"app": "demo"});
        told["service"] = told["name"].clone();
        for (member, value) in json.as_object().unwrap() {
            assert_eq!(&told[member], value, "{member}");
        }
        assert_eq!(told["invocationCount"], 7);
    }

    #[test]
    fn what_was_not_asked_for_is_left_out_and_not_empty() {
        let wanted: FunctionDeployment =
            serde_json::from_value(json!({"service": "f", "namespace": "fn", "image": "i"})).unwrap();
        let told = serde_json::to_value(read(written(&wanted))).unwrap();
        for member in ["envVars", "limits", "requests", "constraints", "secrets", "usage"] {
            assert_eq!(told.get(member), None, "{member}");
        }
        assert_eq!(told["annotations"], json!({}));
    }

    #[test]
    fn replicas_are_those_wanted_and_those_that_take_requests() {
        let wanted: FunctionDeployment =
            serde_json::from_value(json!({"service": "f", "namespace": "fn", "image": "i"})).unwrap();
        let mut deployment = written(&wanted);
        deployment["spec"]["replicas"] = json!(3);
        deployment["status"] = json!({"availableReplicas": 2});
        deployment["metadata"]["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
        let told = read(deployment);
        assert_eq!((told.replicas, told.available_replicas), (3, 2));
        assert_eq!(told.created_at, "2026-01-02T03:04:05Z");
    }

    #[test]
    fn a_deployment_of_somebody_else_is_no_function() {
        let other = json!({
            "metadata": {"name": "f", "namespace": "fn"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"faas_function": "g"}}, "spec": {"containers": []}}},
        });
        let other: Deployment = serde_json::from_value(other).unwrap();
        assert_eq!((id(&other), status(&other, &settings(), 0)), (None, None));
    }
}
