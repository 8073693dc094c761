//! Deployments and pods, as far as the need of a function depends on them. Pure: who follows them is `cluster`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use gpu_share::names::{annotation, label};
use gpu_share::units::{Nanos, Quota};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

use crate::control::period::Replica;
use crate::keda::metadata::Terms;
use crate::policy::ReplicaState;

/// The name under which the API server notes what this scaler writes.
pub(super) const FIELD_MANAGER: &str = "gpufn-scaler";
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

impl FunctionName {
    /// The terms on which it is asked for where no `ScaledObject` names others.
    pub(super) fn own_terms(&self) -> Terms {
        Terms { function: self.name.clone(), slo: None, concurrency: None, activation: 0.0, most: None }
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of a function's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Deployment {
    /// Its UID.
    pub(super) uid: String,
    /// Replicas that there are, ready or not.
    pub(super) replicas: u32,
    /// Replicas that it is told to have.
    pub(super) wanted: u32,
    /// Who made it and keeps it as it is, by kind and name.
    pub(super) controller: Option<String>,
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
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let mut owners = deployment.metadata.owner_references.iter().flatten();
        let controller = owners.find(|owner| owner.controller == Some(true));
        let known = Self {
            uid: deployment.metadata.uid.clone().unwrap_or_default(),
            replicas: u32::try_from(replicas).unwrap_or(0),
            wanted: u32::try_from(wanted).unwrap_or(0),
            controller: controller.map(|owner| format!("{} {}", owner.kind, owner.name)),
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
    /// When it was created, in nanoseconds since the epoch.
    pub(super) created: i128,
    /// It is about to end.
    pub(super) is_ending: bool,
    /// It found no room on any node.
    pub(super) is_unschedulable: bool,
    /// The quota that its annotation asks for, in percent.
    pub(super) asked: Option<u8>,
    /// What the node's agent says that it has.
    pub(super) grant: Option<Quota>,
    /// Its GPU and its row there.
    pub(super) place: Option<(String, u32)>,
    /// Who else than this scaler and its creator wrote its quota.
    pub(super) written_by: Option<String>,
    pub(super) shown: Shown,
}

/// Where a replica is and what it has there, as people are shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) node: Option<String>,
    /// UUID of its GPU, as the node agent wrote it.
    pub(super) gpu: Option<String>,
    /// Its quota, as the node agent wrote it.
    pub(super) grant: Option<Quota>,
}

impl Shown {
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
    /// What matters of a pod; nothing if no Deployment made it, or it has ended.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let function =
            FunctionName { namespace: pod.metadata.namespace.clone()?, name: deployment_of(pod)?.into() };
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let conditions = || status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let ready = conditions().find(|one| one.type_ == "Ready" && one.status == "True");
        let unschedulable = |one: &core::PodCondition| {
            one.type_ == "PodScheduled"
                && one.status == "False"
                && one.reason.as_deref() == Some("Unschedulable")
        };
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        let address = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let created = pod.metadata.creation_timestamp.as_ref().map_or(0, |created| created.0.as_nanosecond());
        let started_in = ready.and_then(|ready| {
            let span = ready.last_transition_time.as_ref()?.0.as_nanosecond().checked_sub(created)?;
            u64::try_from(span).ok().map(Nanos)
        });
        let annotation =
            |key| pod.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
        // Of a pod with several shares there is no one grant; its row is that of the only one.
        let grant = annotation(annotation::GRANT).and_then(percent);
        let gpu = annotation(annotation::GPU).filter(|gpu| !gpu.contains(','));
        let row = annotation(annotation::ROW).map_or(Some(0), |row| row.parse().ok());
        Some(Self {
            function,
            ready_at: address.filter(|_| ready.is_some() && !is_ending),
            started_in: started_in.filter(|_| created > 0),
            created,
            is_ending,
            is_unschedulable: conditions().any(unschedulable),
            asked: annotation(annotation::QUOTA).and_then(|quota| quota.trim().parse().ok()),
            grant,
            place: grant.and(gpu).zip(row).map(|(gpu, row)| (gpu.into(), row)),
            written_by: writer(pod),
            shown: Shown::of(pod),
        })
    }
}

impl Pod {
    /// The pod as the control loop sees it at `wall`, nanoseconds since the epoch.
    pub(super) fn seen(&self, name: &str, wall: i128) -> Replica {
        let state = match (self.is_ending, self.ready_at) {
            (true, _) => ReplicaState::Draining,
            (false, Some(_)) => ReplicaState::Ready,
            (false, None) => ReplicaState::Starting,
        };
        Replica {
            pod: name.into(),
            state,
            asked: self.asked,
            grant: self.grant,
            place: self.place.clone(),
            age: Nanos(u64::try_from(wall - self.created).unwrap_or(0)),
            is_unschedulable: self.is_unschedulable,
            written_by: self.written_by.clone(),
        }
    }
}

/// The quota that the replicas of each function can have on average, where its ceiling is known: up to that, as far as others
/// in their rows leave room. Where a node's agent gave less than was asked for, it gives less of the ceiling too.
pub(super) fn reaches<'a>(
    pods: &(impl Iterator<Item = &'a Pod> + Clone),
    ceilings: &HashMap<FunctionName, Quota>,
) -> HashMap<FunctionName, Quota> {
    let bound = || pods.clone().filter_map(|pod| Some((pod, pod.place.as_ref()?, pod.grant?)));
    let mut rows: HashMap<&(String, u32), u32> = HashMap::new();
    for (_, place, grant) in bound() {
        *rows.entry(place).or_default() += grant.ppm();
    }
    let mut sums: HashMap<&FunctionName, (f64, f64)> = HashMap::new();
    for (pod, place, grant) in bound().filter(|(pod, ..)| pod.ready_at.is_some()) {
        let Some(ceiling) = ceilings.get(&pod.function) else { continue };
        let asked = pod.asked.map_or_else(|| grant.fraction(), |asked| f64::from(asked) / 100.0);
        let given = if asked > 0.0 { (grant.fraction() / asked).min(1.0) } else { 1.0 };
        let others = rows.get(place).map_or(0, |row| row - grant.ppm());
        let room = Quota::WHOLE.ppm().saturating_sub(others);
        let reach = (ceiling.fraction() * given).min(f64::from(room) / 1e6).max(grant.fraction());
        let (sum, count) = sums.entry(&pod.function).or_default();
        (*sum, *count) = (*sum + reach, *count + 1.0);
    }
    let mean = |(name, (sum, count)): (&FunctionName, (f64, f64))| {
        (name.clone(), Quota::saturating_from_fraction(sum / count))
    };
    sums.into_iter().map(mean).collect()
}

/// A grant as the node's agent writes it: percent, with a decimal.
fn percent(text: &str) -> Option<Quota> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent: f64| Quota::saturating_from_fraction(percent / 100.0))
}

/// Who else has written the quota of a pod: not its creator, whose value is the template's, and not a scaler.
///
/// The API server notes who wrote a field last (Kubernetes' documentation, "Server-Side Apply", field management).
fn writer(pod: &core::Pod) -> Option<String> {
    let wrote = |entry: &&ManagedFieldsEntry, path: &[&str]| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        path.iter().try_fold(fields?, |at, key| at.get(key)).map(drop)
    };
    let quota = format!("f:{}", annotation::QUOTA);
    let other = pod.metadata.managed_fields.iter().flatten().find(|entry| {
        wrote(entry, &["f:metadata", "f:annotations", &quota]).is_some()
            && wrote(entry, &["f:metadata", "f:ownerReferences"]).is_none()
            && entry.manager.as_deref() != Some(FIELD_MANAGER)
    });
    other.map(|entry| entry.manager.clone().unwrap_or_else(|| "somebody".into()))
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
            .shown
        };
        let (node, gpu) = (Some("a".to_string()), Some("GPU-1".to_string()));
        let quota = |percent| Quota::from_percent(percent).ok();
        assert_eq!(place("40", "GPU-1"), Shown { node: node.clone(), gpu: gpu.clone(), grant: quota(40) });
        assert_eq!(
            place("main=30,other=5", "GPU-1,GPU-2"),
            Shown { node: node.clone(), gpu, grant: quota(30) }
        );
        assert_eq!(place("much", ""), Shown { node, gpu: None, grant: None });
    }

    #[test]
    fn what_a_pod_has_is_what_the_node_s_agent_wrote() {
        let bound = pod(|pod| {
            pod["metadata"]["annotations"] = json!({
                "gpufn.dev/quota": "40", "gpufn.dev/grant": "35.5", "gpufn.dev/gpu": "GPU-1", "gpufn.dev/row": "2",
            });
        });
        let bound = bound.unwrap();
        assert_eq!((bound.asked, bound.grant.map(Quota::ppm)), (Some(40), Some(355_000)));
        assert_eq!(bound.place, Some(("GPU-1".into(), 2)));
        let several = pod(|pod| {
            pod["metadata"]["annotations"] =
                json!({"gpufn.dev/grant": "a=20,b=30", "gpufn.dev/gpu": "GPU-1"});
        });
        assert_eq!(several.unwrap().place, None, "no one grant to be changed");
        assert_eq!(pod(|pod| pod["status"]["phase"] = json!("Failed")), None);
    }

    #[test]
    fn replicas_can_have_their_ceiling_as_far_as_others_in_the_row_leave_room() {
        let bound = |asked: u8, grant: &str, gpu: &str| {
            let bound = pod(|pod| {
                pod["metadata"]["annotations"] = json!({
                    "gpufn.dev/quota": asked.to_string(), "gpufn.dev/grant": grant, "gpufn.dev/gpu": gpu,
                });
            });
            bound.unwrap()
        };
        let percent = |percent: u8| Quota::from_percent(percent).unwrap();
        let name = FunctionName { namespace: "fn".into(), name: "resnet".into() };
        let ceilings = HashMap::from([(name.clone(), percent(80))]);
        let reach = |pods: &[Pod]| reaches(&pods.iter(), &ceilings)[&name];
        assert_eq!(reach(&[bound(20, "20", "GPU-1")]), percent(80));
        assert_eq!(
            reach(&[bound(20, "20", "GPU-1"), bound(60, "60", "GPU-1")]),
            percent(60),
            "40 % and 80 %"
        );
        assert_eq!(
            reach(&[bound(20, "10", "GPU-1")]),
            percent(40),
            "used in turns, half of the SMs is half of the time"
        );
        assert_eq!(reaches(&[bound(20, "20", "GPU-1")].iter(), &HashMap::new()), HashMap::new());
    }

    #[test]
    fn a_quota_that_somebody_else_wrote_is_told_apart() {
        let fields = |manager: &str, more: &str| {
            json!({"manager": manager, "operation": "Update", "fieldsV1": {
                "f:metadata": {"f:annotations": {"f:gpufn.dev/quota": {}}, more: {}},
            }})
        };
        let written =
            |entries: Value| pod(|pod| pod["metadata"]["managedFields"] = entries).unwrap().written_by;
        assert_eq!(written(json!([fields("kube-controller-manager", "f:ownerReferences")])), None);
        assert_eq!(written(json!([fields("gpufn-scaler", "f:labels")])), None);
        assert_eq!(written(json!([fields("kubectl-annotate", "f:labels")])), Some("kubectl-annotate".into()));
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
