//! What a function's pods use, as the cluster's metrics server tells (`metrics.k8s.io`). Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use openfaas::shapes::Usage;
use serde::Deserialize;

/// What one pod uses.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodMetrics {
    metadata: ObjectMeta,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

/// What one container uses.
#[derive(Clone, Debug, Deserialize)]
struct ContainerMetrics {
    usage: std::collections::BTreeMap<String, Quantity>,
}

impl kube::Resource for PodMetrics {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> std::borrow::Cow<'_, str> {
        "PodMetrics".into()
    }

    fn group((): &()) -> std::borrow::Cow<'_, str> {
        "metrics.k8s.io".into()
    }

    fn version((): &()) -> std::borrow::Cow<'_, str> {
        "v1beta1".into()
    }

    fn plural((): &()) -> std::borrow::Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// All pods together.
pub(super) fn of(pods: &[PodMetrics]) -> Usage {
    let sum = |resource: &str| {
        let used = pods.iter().flat_map(|pod| &pod.containers).filter_map(|one| one.usage.get(resource));
        used.filter_map(|quantity| number(&quantity.0)).sum::<f64>()
    };
    Usage { cpu: sum("cpu") * 1_000.0, total_memory_bytes: sum("memory") }
}

/// A quantity in units of its kind: cores, or bytes.
fn number(text: &str) -> Option<f64> {
    const SCALES: [(&str, f64); 11] = [
        ("Ki", 1_024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
    ];
    let found = SCALES.iter().find_map(|(suffix, scale)| Some((text.strip_suffix(suffix)?, *scale)));
    let (digits, scale) = found.unwrap_or((text, 1.0));
    Some(digits.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_summed_in_millicores_and_bytes() {
        let pod = |cpu: &str, memory: &str| {
            let usage = json!({"cpu": cpu, "memory": memory});
            serde_json::from_value(json!({"metadata": {}, "containers": [{"name": "f", "usage": usage}]}))
                .unwrap()
        };
        let usage = of(&[pod("250m", "1Mi"), pod("1500000n", "512Ki"), pod("soon", "x")]);
        assert!((usage.cpu - 251.5).abs() < 1e-9, "{usage:?}");
        assert!((usage.total_memory_bytes - 1_572_864.0).abs() < f64::EPSILON);
    }
}
