//! One pod: which container has the share, how many units that is, and what the pod must not have.

use std::collections::BTreeMap;

use gpu_share::annotations::{Aims, Shape};
use gpu_share::invalid::Invalid;
use gpu_share::names::{env, label};
use gpu_share::units::{Area, Quota, SmShare};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Denied, Settings};

/// By this annotation tools say which container is meant if none is named; service meshes set it beside theirs.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Seconds that a pod has to end if it says nothing.
const DEFAULT_GRACE: u64 = 30;
/// Resources that stand for whole GPUs.
const WHOLE_GPUS: [&str; 2] = ["nvidia.com/gpu", "nvidia.com/gpu.shared"];

pub(super) fn admit(pod: &Value, settings: &Settings) -> Result<Value, Denied> {
    let mut pod = pod.clone();
    if texts(&pod["metadata"]["labels"]).get(label::ENABLED).is_none_or(|value| value != "true") {
        return Ok(pod);
    }
    // From here on maps are maps and lists are lists, or are not there.
    Pod::deserialize(&pod).map_err(|error| Denied::Unreadable(error.to_string()))?;
    let annotations = texts(&pod["metadata"]["annotations"]);
    let shape = Shape::read(&annotations, settings.gpu_memory)?;
    let aims = Aims::read(&annotations)?;
    let spec = &mut pod["spec"];
    refuse_node(spec)?;
    let function = function(spec, &annotations, settings)?;
    give_units(spec, function, &shape, settings)?;
    for container in with_units(spec, settings) {
        refuse(&spec["containers"][container], settings)?;
        set_up(&mut spec["containers"][container], &aims);
    }
    if let Some(class) = &settings.runtime_class
        && spec["runtimeClassName"].is_null()
    {
        spec["runtimeClassName"] = json!(class);
    }
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(DEFAULT_GRACE);
    if grace < settings.grace_seconds {
        spec["terminationGracePeriodSeconds"] = json!(settings.grace_seconds);
    }
    if settings.steer {
        steer(spec, settings);
    }
    Ok(pod)
}

/// A map of texts; what is no text is left out, since the API server does not let it through either.
fn texts(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string()))).collect()
}

/// A pod that is on a node already has passed by the scheduler, which alone knows where there is room.
fn refuse_node(spec: &Value) -> Result<(), Denied> {
    match spec["nodeName"].as_str() {
        None | Some("") => Ok(()),
        Some(node) => {
            Err(Invalid::new("spec.nodeName", node, "nothing: the scheduler chooses the node").into())
        }
    }
}

/// The place of the container that has the share if none asks for units itself: the one that tools take, else the first.
/// `user-container` of a Knative service and the only container of an OpenFaaS function come first.
fn function(
    spec: &Value,
    annotations: &BTreeMap<String, String>,
    settings: &Settings,
) -> Result<Option<usize>, Denied> {
    let containers =
        spec["containers"].as_array().filter(|all| !all.is_empty()).ok_or(Denied::NoContainer)?;
    if !with_units(spec, settings).is_empty() {
        return Ok(None);
    }
    let named = annotations.get(DEFAULT_CONTAINER);
    let place = containers.iter().position(|one| named.is_some_and(|name| one["name"] == **name));
    Ok(Some(place.unwrap_or_default()))
}

/// Places of the containers that ask for units.
fn with_units(spec: &Value, settings: &Settings) -> Vec<usize> {
    let containers = spec["containers"].as_array().into_iter().flatten().enumerate();
    let asks = |one: &Value| {
        ["limits", "requests"].iter().any(|kind| !one["resources"][kind][&settings.resource].is_null())
    };
    containers.filter(|(_, one)| asks(one)).map(|(place, _)| place).collect()
}

/// Units for what the annotations ask for; a container that names its units keeps them.
fn give_units(
    spec: &mut Value,
    function: Option<usize>,
    shape: &Shape,
    settings: &Settings,
) -> Result<(), Denied> {
    let Some(place) = function else {
        return Ok(());
    };
    if shape.quota.is_none() && shape.memory.is_none() && shape.sm.is_none() {
        return Err(Denied::NoPart(settings.resource.clone()));
    }
    // As the node agent counts it: what is not asked for follows from the rest.
    let sm = shape.sm.unwrap_or(SmShare::WHOLE);
    let time = match (shape.quota, shape.memory) {
        (None, Some(_)) => Area::ZERO,
        (quota, _) => Area::of_time(sm, quota.unwrap_or(Quota::WHOLE)),
    };
    let memory = shape.memory.map_or(Area::ZERO, |memory| Area::of_memory(memory, settings.gpu_memory));
    let units = time.max(memory).units(settings.per_gpu).0.max(1).to_string();
    let resources = &mut spec["containers"][place]["resources"];
    for kind in ["limits", "requests"] {
        object(&mut resources[kind]).insert(settings.resource.clone(), json!(units));
    }
    Ok(())
}

/// What would make the share worthless.
fn refuse(container: &Value, settings: &Settings) -> Result<(), Denied> {
    let name = container["name"].as_str().unwrap_or_default();
    for kind in ["limits", "requests"] {
        let asked = &container["resources"][kind];
        if let Some(whole) =
            WHOLE_GPUS.iter().find(|whole| **whole != settings.resource && !asked[**whole].is_null())
        {
            return Err(Denied::Whole { container: name.into(), whole: (*whole).into() });
        }
        check_units(&asked[&settings.resource], &format!("container {name}, {kind}"), settings)?;
    }
    if container["securityContext"]["privileged"] == true {
        let field = format!("container {name}, securityContext.privileged");
        return Err(Invalid::new(field, true, "false: a privileged container sees whole GPUs").into());
    }
    Ok(())
}

/// Units as Kubernetes has them: a whole number, as text or number.
fn check_units(asked: &Value, place: &str, settings: &Settings) -> Result<(), Denied> {
    let text = match asked {
        Value::Null => return Ok(()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let most = settings.per_gpu.0;
    if text.parse().is_ok_and(|units| (1..=most).contains(&units)) {
        return Ok(());
    }
    let allowed = format!("a whole number from 1 to {most}, the units of a GPU");
    Err(Invalid::new(settings.resource.clone(), text, allowed).within(place).into())
}

/// What the watchdog is told, where the container does not say it itself: to refuse to start a function that should have a share
/// and has no binding, and how many inferences it may merge.
fn set_up(container: &mut Value, aims: &Aims) {
    let variables = list(&mut container["env"]);
    let mut tell = |name: &str, value: &str| {
        if !variables.iter().any(|one| one["name"] == name) {
            variables.push(json!({"name": name, "value": value}));
        }
    };
    tell(env::POLICY, "strict");
    if let Some(batch) = aims.batch {
        tell(env::MAX_BATCH_SIZE, &batch.to_string());
    }
}

/// A node whose emptiest GPU has room for the largest container. All alternatives that the pod itself names are narrowed.
fn steer(spec: &mut Value, settings: &Settings) {
    let units = |container: &Value| {
        let asked = &container["resources"]["limits"][&settings.resource];
        asked.as_u64().or_else(|| asked.as_str()?.parse().ok())
    };
    let containers = spec["containers"].as_array().into_iter().flatten();
    let Some(largest) = containers.filter_map(units).max().filter(|units| *units > 0) else { return };
    let wanted =
        json!({"key": label::MAX_FREE_UNITS, "operator": "Gt", "values": [(largest - 1).to_string()]});
    let affinity = object(&mut spec["affinity"]).entry("nodeAffinity").or_insert(Value::Null);
    let required =
        object(affinity).entry("requiredDuringSchedulingIgnoredDuringExecution").or_insert(Value::Null);
    let terms = list(object(required).entry("nodeSelectorTerms").or_insert(Value::Null));
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for term in terms {
        let expressions = list(object(term).entry("matchExpressions").or_insert(Value::Null));
        if !expressions.iter().any(|one| one["key"] == label::MAX_FREE_UNITS) {
            expressions.push(wanted.clone());
        }
    }
}

/// The map in a place where there is one or nothing.
fn object(place: &mut Value) -> &mut Map<String, Value> {
    if !place.is_object() {
        *place = json!({});
    }
    match place {
        Value::Object(map) => map,
        _ => unreachable!("it was made one"),
    }
}

/// The list in a place where there is one or nothing.
fn list(place: &mut Value) -> &mut Vec<Value> {
    if !place.is_array() {
        *place = json!([]);
    }
    match place {
        Value::Array(list) => list,
        _ => unreachable!("it was made one"),
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::units::{Bytes, Units};
    use proptest::prelude::*;

    use super::*;
    use crate::webhook::settings;

    #[allow(clippy::needless_pass_by_value)] // Made on the spot.
    fn pod(annotations: Value, containers: Value) -> Value {
        json!({
            "metadata": {"labels": {"gpufn.dev/enabled": "true"}, "annotations": annotations},
            "spec": {"containers": containers, "terminationGracePeriodSeconds": 30},
        })
    }

    fn units(pod: &Value, container: usize) -> (&Value, &Value) {
        let resources = &pod["spec"]["containers"][container]["resources"];
        (&resources["limits"]["gpufn.dev/gpu"], &resources["requests"]["gpufn.dev/gpu"])
    }

    #[test]
    fn how_many_inferences_may_be_merged_is_told_unless_the_container_says_it_itself() {
        let asked = json!({"gpufn.dev/sm": "50", "gpufn.dev/quota": "40", "gpufn.dev/batch": "8"});
        let own = json!([{"name": "max_batch_size", "value": "4"}]);
        for (env, size) in [(Value::Null, "8"), (own, "4")] {
            let containers = json!([{"name": "main", "env": env}]);
            let admitted = admit(&pod(asked.clone(), containers), &settings()).unwrap();
            let variables = admitted["spec"]["containers"][0]["env"].as_array().unwrap();
            let sizes: Vec<_> = variables.iter().filter(|one| one["name"] == "max_batch_size").collect();
            assert_eq!(sizes, [&json!({"name": "max_batch_size", "value": size})]);
        }
    }

    #[test]
    fn an_aim_that_can_not_be_read_is_refused_before_anything_runs() {
        for (name, value) in
            [("slo", "fast"), ("batch", "0"), ("replicas", "3..1"), ("policy", "best"), ("priority", "first")]
        {
            let mut asked = json!({"gpufn.dev/quota": "40"});
            asked[format!("gpufn.dev/{name}")] = json!(value);
            let refused = admit(&pod(asked, json!([{"name": "main"}])), &settings()).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("gpufn.dev/{name} is \"{value}\"")), "{refused}");
        }
    }

    #[test]
    fn a_pod_gets_the_units_of_its_annotations_and_what_every_pod_on_a_gpu_has() {
        let asked = json!({"gpufn.dev/sm": "50", "gpufn.dev/quota": "40", "gpufn.dev/memory": "3Gi"});
        let admitted = admit(&pod(asked, json!([{"name": "main"}])), &settings()).unwrap();
        // ⌈20 · max(50 % · 40 %, 3 of 16 GiB)⌉
        assert_eq!(units(&admitted, 0), (&json!("4"), &json!("4")));
        let spec = &admitted["spec"];
        assert_eq!(spec["runtimeClassName"], "nvidia");
        assert_eq!(spec["terminationGracePeriodSeconds"], 60);
        assert_eq!(spec["containers"][0]["env"], json!([{"name": "GPUFN_POLICY", "value": "strict"}]));
        let term = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            [0];
        let wanted = json!([{"key": "gpufn.dev/max-free-units", "operator": "Gt", "values": ["3"]}]);
        assert_eq!(term["matchExpressions"], wanted);
    }

    #[test]
    fn who_does_not_opt_in_stays_as_it_is() {
        for labels in [json!({}), Value::Null, json!({"gpufn.dev/enabled": "false"})] {
            let mut other = pod(json!({"gpufn.dev/quota": "x"}), json!([{"name": "main"}]));
            other["metadata"]["labels"] = labels;
            other["spec"]["nodeName"] = json!("node");
            assert_eq!(admit(&other, &settings()).unwrap(), other);
        }
    }

    #[test]
    fn units_that_a_container_names_stay_and_a_quota_beyond_them_is_a_grant() {
        let containers = json!([
            {"name": "sidecar"},
            {"name": "main", "resources": {"limits": {"gpufn.dev/gpu": 2}}, "env": [{"name": "GPUFN_POLICY", "value": "open"}]},
        ]);
        let admitted = admit(&pod(json!({"gpufn.dev/quota": "60"}), containers), &settings()).unwrap();
        assert_eq!(units(&admitted, 0), (&Value::Null, &Value::Null));
        assert_eq!(units(&admitted, 1).0, &json!(2));
        assert_eq!(admitted["spec"]["containers"][0]["env"], Value::Null);
        assert_eq!(
            admitted["spec"]["containers"][1]["env"],
            json!([{"name": "GPUFN_POLICY", "value": "open"}])
        );
    }

    #[test]
    fn a_meshs_sidecar_before_the_function_gets_nothing() {
        let asked = json!({"gpufn.dev/quota": "20", "kubectl.kubernetes.io/default-container": "main"});
        let admitted =
            admit(&pod(asked, json!([{"name": "istio-proxy"}, {"name": "main"}])), &settings()).unwrap();
        assert_eq!(units(&admitted, 0).0, &Value::Null);
        assert_eq!(units(&admitted, 1).0, &json!("4"));
    }

    #[test]
    fn alternatives_of_a_pods_own_affinity_are_each_narrowed() {
        let mut asked = pod(json!({"gpufn.dev/memory": "1Gi"}), json!([{"name": "main"}]));
        let zone =
            |name: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [name]}]});
        asked["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [zone("a"), zone("b")]}}, "podAntiAffinity": {}});
        let admitted = admit(&asked, &settings()).unwrap();
        let affinity = &admitted["spec"]["affinity"];
        let terms =
            &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        for place in 0..2 {
            let expressions = terms[place]["matchExpressions"].as_array().unwrap();
            assert_eq!((expressions.len(), &expressions[1]["values"]), (2, &json!(["1"])));
        }
        assert_eq!(affinity["podAntiAffinity"], json!({}));
    }

    #[test]
    fn what_must_not_run_is_refused_with_a_line_that_says_what_is_allowed() {
        let main = json!([{"name": "main"}]);
        let with = |field: &str, value: Value| {
            let mut asked = pod(json!({"gpufn.dev/quota": "20"}), json!([{"name": "main"}]));
            *asked
                .pointer_mut("/spec")
                .unwrap()
                .as_object_mut()
                .unwrap()
                .entry(field)
                .or_insert(Value::Null) = value;
            asked
        };
        let container = |fields: Value| {
            let mut one = json!({"name": "main"});
            one.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            with("containers", json!([one]))
        };
        let limit =
            |resource: &str, value: Value| container(json!({"resources": {"limits": {resource: value}}}));
        let cases = [
            (
                pod(json!({"gpufn.dev/sm": "0"}), main.clone()),
                "gpufn.dev/sm is \"0\", allowed is a whole number from 1 to 100 (percent)",
            ),
            (
                pod(json!({"gpufn.dev/sm": "101"}), main.clone()),
                "gpufn.dev/sm is \"101\", allowed is a whole number from 1 to 100 (percent)",
            ),
            (
                pod(json!({"gpufn.dev/sm": "x"}), main.clone()),
                "gpufn.dev/sm is \"x\", allowed is a whole number from 1 to 100 (percent)",
            ),
            (
                pod(json!({}), main),
                "the pod asks for no part of a GPU: set gpufn.dev/quota, gpufn.dev/memory or a limit of gpufn.dev/gpu",
            ),
            (
                with("containers", json!([])),
                "spec.containers is empty, allowed is a pod with a container for the function",
            ),
            (
                with("nodeName", json!("n1")),
                "spec.nodeName is \"n1\", allowed is nothing: the scheduler chooses the node",
            ),
            (
                container(json!({"securityContext": {"privileged": true}})),
                "container main, securityContext.privileged is \"true\", allowed is false: a privileged container sees whole GPUs",
            ),
            (
                limit("gpufn.dev/gpu", json!("21")),
                "container main, limits, gpufn.dev/gpu is \"21\", allowed is a whole number from 1 to 20, the units of a GPU",
            ),
            (
                limit("gpufn.dev/gpu", json!(0)),
                "container main, limits, gpufn.dev/gpu is \"0\", allowed is a whole number from 1 to 20, the units of a GPU",
            ),
            (
                limit("nvidia.com/gpu", json!(1)),
                "container main asks for nvidia.com/gpu beside a part of a GPU: have one or the other",
            ),
        ];
        for (asked, line) in cases {
            assert_eq!(admit(&asked, &settings()).unwrap_err().to_string(), line, "{asked}");
        }
    }

    prop_compose! {
        fn any_pod()(
            sm in prop::option::of(1_u8..=100), quota in prop::option::of(1_u8..=100), memory in prop::option::of(1_u64..=16),
            named in prop::option::of(1_u32..=20), sidecars in 0_usize..3, grace in prop::option::of(0_u64..200),
        ) -> Value {
            let texts = [
                ("gpufn.dev/sm", sm.map(|sm| sm.to_string())),
                ("gpufn.dev/quota", quota.map(|quota| quota.to_string())),
                ("gpufn.dev/memory", memory.map(|gib| format!("{gib}Gi"))),
            ];
            let annotations: Map<_, _> =
                texts.into_iter().filter_map(|(name, value)| Some((name.to_string(), json!(value?)))).collect();
            let mut main = json!({"name": "main"});
            if let Some(named) = named {
                main["resources"] = json!({"limits": {"gpufn.dev/gpu": named}});
            }
            let sidecars = (0..sidecars).map(|number| json!({"name": format!("sidecar-{number}")}));
            let containers: Vec<_> = std::iter::once(main).chain(sidecars).collect();
            let mut pod = pod(json!(annotations), json!(containers));
            pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            pod
        }
    }

    proptest! {
        #[test]
        fn who_is_admitted_again_gets_nothing_more(pod in any_pod()) {
            if let Ok(once) = admit(&pod, &settings()) {
                prop_assert_eq!(&admit(&once, &settings()).unwrap(), &once);
            }
        }

        #[test]
        fn no_pod_makes_it_panic(text in "[ -~]{0,30}", number in any::<i64>()) {
            for field in ["/metadata/annotations", "/spec", "/spec/containers", "/spec/containers/0", "/spec/affinity"] {
                let mut odd = pod(json!({"gpufn.dev/quota": text}), json!([{"name": "main", "resources": number}]));
                if let Some(place) = odd.pointer_mut(field) {
                    *place = json!([text, number]);
                }
                drop(admit(&odd, &settings()));
            }
            drop(admit(&json!(text), &settings()));
        }

        #[test]
        fn a_share_always_pays_for_what_its_annotations_ask(pod in any_pod()) {
            let Ok(admitted) = admit(&pod, &settings()) else { return Ok(()) };
            let shape = Shape::read(&texts(&pod["metadata"]["annotations"]), settings().gpu_memory).unwrap();
            if let Some(given) = units(&admitted, 0).0.as_str() {
                let given = given.parse::<u32>().unwrap();
                prop_assert!((1..=20).contains(&given));
                let memory = shape.memory.map_or(Area::ZERO, |memory| Area::of_memory(memory, Bytes::gib(16)));
                let time = shape.quota.map_or(Area::ZERO, |quota| Area::of_time(shape.sm.unwrap_or(SmShare::WHOLE), quota));
                prop_assert!(given >= time.max(memory).units(Units(20)).0);
            }
        }
    }
}
