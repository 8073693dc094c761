//! Objects that scale Deployments, as far as it matters which: KEDA's, Kubernetes' own autoscalers, VPA's. Pure.

use std::collections::BTreeMap;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};

use super::fleet::FunctionName;
use crate::control::owners::{Kind, Owner, Pause};

/// The kinds that are looked for at the API server.
pub(super) const KINDS: [Kind; 3] =
    [Kind::ScaledObject, Kind::HorizontalPodAutoscaler, Kind::VerticalPodAutoscaler];

/// How the API server names a kind.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version, name) = match kind {
        Kind::ScaledObject => ("keda.sh", "v1alpha1", "ScaledObject"),
        Kind::VerticalPodAutoscaler => ("autoscaling.k8s.io", "v1", "VerticalPodAutoscaler"),
        Kind::HorizontalPodAutoscaler | Kind::Controller => ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural(kind))
}

/// The plural in the API server's paths.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::ScaledObject => "scaledobjects",
        Kind::VerticalPodAutoscaler => "verticalpodautoscalers",
        Kind::HorizontalPodAutoscaler | Kind::Controller => "horizontalpodautoscalers",
    }
}

/// The namespace and name of an object.
pub(super) fn name(object: &DynamicObject) -> Option<FunctionName> {
    Some(FunctionName { namespace: object.metadata.namespace.clone()?, name: object.metadata.name.clone()? })
}

/// The Deployment that an object scales, and as what; nothing if it scales none.
pub(super) fn of(kind: Kind, object: &DynamicObject) -> Option<(FunctionName, Owner)> {
    let spec = object.data.get("spec")?;
    let target =
        spec.get(if kind == Kind::VerticalPodAutoscaler { "targetRef" } else { "scaleTargetRef" })?;
    let text = |key: &str| target.get(key).and_then(|value| value.as_str()).filter(|value| !value.is_empty());
    if text("kind").unwrap_or("Deployment") != "Deployment" {
        return None;
    }
    let mode = spec.get("updatePolicy").and_then(|policy| policy.get("updateMode")?.as_str());
    if kind == Kind::VerticalPodAutoscaler && mode == Some("Off") {
        // It only recommends.
        return None;
    }
    let none = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&none);
    let pause = if kind == Kind::ScaledObject { Pause::of(annotations) } else { Pause::default() };
    let own = name(object)?;
    let target = FunctionName { namespace: own.namespace, name: text("name")?.into() };
    Some((target, Owner { kind, name: own.name, pause }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn owned(kind: Kind, spec: &Value, annotations: &Value) -> Option<(FunctionName, Owner)> {
        let metadata = json!({"namespace": "fn", "name": "so", "annotations": annotations});
        of(kind, &serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    #[test]
    fn the_deployment_that_is_scaled_is_named() {
        let spec = json!({"scaleTargetRef": {"name": "resnet"}});
        let paused = json!({"autoscaling.keda.sh/paused": "true"});
        let (target, owner) = owned(Kind::ScaledObject, &spec, &paused).unwrap();
        assert_eq!((target.to_string().as_str(), owner.name.as_str()), ("fn/resnet", "so"));
        assert!(owner.pause.growth && owner.pause.shrinkage);
        let set = json!({"scaleTargetRef": {"kind": "StatefulSet", "name": "resnet"}});
        assert_eq!(owned(Kind::HorizontalPodAutoscaler, &set, &json!({})), None);
    }

    #[test]
    fn a_vertical_autoscaler_that_only_recommends_owns_nothing() {
        let spec = |mode: &str| json!({"targetRef": {"kind": "Deployment", "name": "resnet"}, "updatePolicy": {"updateMode": mode}});
        assert_eq!(owned(Kind::VerticalPodAutoscaler, &spec("Off"), &json!({})), None);
        assert!(owned(Kind::VerticalPodAutoscaler, &spec("InPlaceOrRecreate"), &json!({})).is_some());
    }
}
