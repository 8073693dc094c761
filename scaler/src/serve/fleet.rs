//! Deployments and pods, as far as the need of a function depends on them. Pure: who follows them is `cluster`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use gpu_share::names::{annotation, label};
use gpu_share::units::{Nanos, Quota};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;

/// What is set before annotations of ours.
const PREFIX: &str = "gpufn.dev/";
/// The label by which a `ReplicaSet` tells its pods from those of others of the same Deployment, and which ends its name.
const HASH: &str = "pod-template-hash";

/// A function: the Deployment that runs it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FunctionName {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of a function's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Deployment {
    /// Replicas that there are, ready or not.
    pub(super) replicas: u32,
    /// Annotations of ours: those of the pods go before its own.
    pub(super) annotations: BTreeMap<String, String>,
}

impl Deployment {
    /// What matters of a Deployment; nothing if its pods have not opted in.
    pub(super) fn of(deployment: &apps::Deployment) -> Option<(FunctionName, Self)> {
        let template = deployment.spec.as_ref()?.template.metadata.as_ref()?;
        let labels = template.labels.as_ref()?;
        if labels.get(label::ENABLED).map(String::as_str) != Some("true") {
            return None;
        }
        let own = deployment.metadata.annotations.iter().flatten();
        let annotations = own.chain(template.annotations.iter().flatten());
        let replicas = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let known = Self {
            replicas: u32::try_from(replicas).unwrap_or(0),
            annotations: annotations
                .filter(|(key, _)| key.starts_with(PREFIX))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        Some((function_of(deployment)?, known))
    }
}

/// The function that a Deployment runs.
pub(super) fn function_of(deployment: &apps::Deployment) -> Option<FunctionName> {
    let (namespace, name) = (deployment.metadata.namespace.clone()?, deployment.metadata.name.clone()?);
    Some(FunctionName { namespace, name })
}

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// The name of a pod.
pub(super) fn pod_of(pod: &core::Pod) -> Option<PodName> {
    Some(PodName { namespace: pod.metadata.namespace.clone()?, name: pod.metadata.name.clone()? })
}

/// What is known of a replica of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) function: FunctionName,
    /// Where it is, while it is ready for requests and not about to end.
    pub(super) ready_at: Option<IpAddr>,
    /// Time from its creation until it was ready.
    pub(super) started_in: Option<Nanos>,
    /// Whether it is about to end.
    pub(super) is_ending: bool,
    pub(super) place: Place,
}

/// Where a replica is and what it has there, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: Option<String>,
    /// UUID of its GPU, as the node agent wrote it.
    pub(super) gpu: Option<String>,
    /// Its quota, as the node agent wrote it.
    pub(super) grant: Option<Quota>,
}

impl Place {
    /// Of several containers the first one that has a share counts.
    fn of(pod: &core::Pod) -> Self {
        let written = |key| pod.metadata.annotations.as_ref()?.get(key)?.split(',').next();
        let grant = written(annotation::GRANT).and_then(|grant| {
            let percent: f64 = grant.rsplit('=').next()?.trim().parse().ok()?;
            Some(Quota::saturating_from_fraction(percent / 100.0))
        });
        let gpu = written(annotation::GPU).filter(|gpu| !gpu.is_empty());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        Self { node, gpu: gpu.map(str::to_string), grant }
    }
}

impl Pod {
    /// What matters of a pod; nothing if no Deployment made it.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let function =
            FunctionName { namespace: pod.metadata.namespace.clone()?, name: deployment_of(pod)?.into() };
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let ready = conditions.into_iter().find(|one| one.type_ == "Ready" && one.status == "True");
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        let is_ready = ready.is_some() && !is_ending;
        let address = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let started_in = ready.and_then(|ready| {
            let began = pod.metadata.creation_timestamp.as_ref()?.0.as_nanosecond();
            let span = ready.last_transition_time.as_ref()?.0.as_nanosecond().checked_sub(began)?;
            u64::try_from(span).ok().map(Nanos)
        });
        let ready_at = address.filter(|_| is_ready);
        Some(Self { function, ready_at, started_in, is_ending, place: Place::of(pod) })
    }
}

/// The Deployment that a pod is of: its `ReplicaSet`'s name without the hash at the end, which saves following `ReplicaSet`s.
fn deployment_of(pod: &core::Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let set = owners.iter().find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet")?;
    let hash = pod.metadata.labels.as_ref()?.get(HASH)?;
    set.name.strip_suffix(hash)?.strip_suffix('-')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Option<Pod> {
        let mut pod = json!({
            "metadata": {
                "namespace": "fn", "name": "resnet-6b8-x", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"pod-template-hash": "6b8"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "resnet-6b8", "uid": "1", "controller": true,
                }],
            },
            "status": {
                "podIP": "10.0.0.7",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:04Z"},
                ],
            },
        });
        change(&mut pod);
        Pod::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_is_of_the_deployment_that_its_replica_set_is_named_after() {
        let pod = pod(|_| {}).unwrap();
        assert_eq!(pod.function.to_string(), "fn/resnet");
        assert_eq!(pod.ready_at, Some("10.0.0.7".parse().unwrap()));
        assert_eq!(pod.started_in, Some(Nanos::from_secs(4)));
    }

    #[test]
    fn a_pod_that_ends_or_is_not_ready_is_not_read() {
        let ends = pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z"));
        assert_eq!(ends.unwrap().ready_at, None);
        let starts = pod(|pod| pod["status"]["conditions"][0]["status"] = json!("False"));
        assert_eq!(starts.unwrap().ready_at, None);
    }

    #[test]
    fn a_pod_is_where_the_node_agent_says() {
        let place = |grant: &str, gpu: &str| {
            let annotations = json!({"gpufn.dev/grant": grant, "gpufn.dev/gpu": gpu});
            pod(|pod| {
                pod["metadata"]["annotations"] = annotations;
                pod["spec"] = json!({"nodeName": "a", "containers": []});
            })
            .unwrap()
            .place
        };
        let (node, gpu) = (Some("a".to_string()), Some("GPU-1".to_string()));
        let quota = |percent| Quota::from_percent(percent).ok();
        assert_eq!(place("40", "GPU-1"), Place { node: node.clone(), gpu: gpu.clone(), grant: quota(40) });
        assert_eq!(
            place("main=30,other=5", "GPU-1,GPU-2"),
            Place { node: node.clone(), gpu, grant: quota(30) }
        );
        assert_eq!(place("much", ""), Place { node, gpu: None, grant: None });
    }

    #[test]
    fn a_pod_of_nobody_is_no_replica() {
        assert_eq!(pod(|pod| pod["metadata"]["ownerReferences"] = json!([])), None);
        assert_eq!(pod(|pod| pod["metadata"]["labels"] = json!({"pod-template-hash": "other"})), None);
    }

    #[test]
    fn a_deployment_counts_when_its_pods_opt_in() {
        let deployment = |labels: Value| {
            let deployment = json!({
                "metadata": {"namespace": "fn", "name": "resnet", "annotations": {"gpufn.dev/sm": "10", "other": "x"}},
                "spec": {
                    "selector": {}, "template": {"metadata": {"labels": labels, "annotations": {"gpufn.dev/sm": "20"}}},
                },
                "status": {"replicas": 3},
            });
            Deployment::of(&serde_json::from_value(deployment).unwrap())
        };
        assert_eq!(deployment(json!({})), None);
        let (name, known) = deployment(json!({"gpufn.dev/enabled": "true"})).unwrap();
        assert_eq!((name.to_string().as_str(), known.replicas), ("fn/resnet", 3));
        assert_eq!(known.annotations, BTreeMap::from([("gpufn.dev/sm".into(), "20".into())]));
    }
}
