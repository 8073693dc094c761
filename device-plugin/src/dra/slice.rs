//! The node's GPUs as the scheduler sees them: one device for each in a `ResourceSlice`, which many claims may have a part of.
//!
//! | of a device | value |
//! |---|---|
//! | capacity `compute` | 100: percent of the GPU's time on all of its multiprocessors; claims consume whole percents |
//! | capacity `memory` | the card's, in steps of 1 MiB |
//! | attributes | `uuid`, `productName`, `index`, `sharing` (`mps`, `exclusive`), and as far as known `multiprocessors`, `cudaComputeCapability`, `driverVersion`, and Kubernetes' own `resource.kubernetes.io/pciBusID`, `…/numaNode` |
//! | taint | `gpufn.dev/unhealthy`, `NoSchedule`, while the GPU takes no new containers |
//!
//! A claim that asks for no amount has the whole of it. KEP-5075 has it so for capacities without a request policy; one with a
//! policy may have any `default`, and this is the whole too: a claim that was written for whole GPUs keeps its meaning, and a
//! claim can't ask for "an amount", so that a smaller one would give some functions a tenth of a GPU unawares. What grants above
//! floors use is not taken from the capacity: floors beat grants, so it is there for whoever comes. Pure.
//!
//! Source: KEP-4381 (slices), KEP-5075 (consumable capacity), KEP-5055 (taints).

use std::collections::BTreeMap;

use gpu_share::binding::GpuId;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::names::dra::{COMPUTE, DRIVER, MEMORY, UNHEALTHY};
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceAttribute, DeviceCapacity, DeviceTaint,
    ResourcePool, ResourceSlice, ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;

use super::claim::WHOLE_COMPUTE;
use super::quantity;
use crate::inventory::Traits;
use crate::kubelet::device::short_name;

/// Most devices of a slice that may have taints (`ResourceSliceMaxDevicesWithAdvancedFeatures`).
pub const MAX_DEVICES: usize = 64;

/// A GPU, and since when it takes no new containers, if it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The GPU.
    pub gpu: Gpu,
    /// What kind it is.
    pub traits: Traits,
    /// Since when it is not healthy.
    pub unhealthy: Option<Timestamp>,
}

/// Name of a GPU's device: the same after every restart.
pub fn device_name(gpu: &GpuId) -> String {
    format!("gpu-{}", short_name(gpu))
}

/// Name of the slice of `node`.
pub fn slice_name(node: &str) -> String {
    format!("{node}-{DRIVER}")
}

/// The devices of `cards`.
pub fn devices(cards: &[Card]) -> Vec<Device> {
    cards.iter().map(device).collect()
}

/// The slice of `node`, whose object has this `uid`: it goes when the node goes. It is the only one of its pool, which has the
/// node's name.
pub fn slice(node: &str, uid: &str, generation: i64, devices: Vec<Device>) -> ResourceSlice {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: uid.into(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    ResourceSlice {
        metadata: ObjectMeta {
            name: Some(slice_name(node)),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: ResourceSliceSpec {
            driver: DRIVER.into(),
            node_name: Some(node.into()),
            pool: ResourcePool { name: node.into(), generation, resource_slice_count: 1 },
            devices: Some(devices),
            ..ResourceSliceSpec::default()
        },
    }
}

fn device(card: &Card) -> Device {
    let gpu = &card.gpu;
    let compute = |percent: u64| Quantity(percent.to_string());
    let memory = quantity::mebibytes(gpu.memory);
    let capacity = BTreeMap::from([
        (COMPUTE.into(), capacity(compute(WHOLE_COMPUTE), compute(1))),
        (MEMORY.into(), capacity(memory, Quantity("1Mi".into()))),
    ]);
    let taint = |since: Timestamp| DeviceTaint {
        key: UNHEALTHY.into(),
        effect: "NoSchedule".into(),
        time_added: Some(Time(since)),
        ..DeviceTaint::default()
    };
    Device {
        name: device_name(&gpu.id),
        allow_multiple_allocations: Some(true),
        attributes: Some(attributes(card)),
        capacity: Some(capacity),
        taints: card.unhealthy.map(|since| vec![taint(since)]),
        ..Device::default()
    }
}

/// All of `whole` in steps of `step`; who asks for no amount has all of it.
fn capacity(whole: Quantity, step: Quantity) -> DeviceCapacity {
    let range = CapacityRequestPolicyRange { min: step.clone(), max: Some(whole.clone()), step: Some(step) };
    let policy = CapacityRequestPolicy {
        default: Some(whole.clone()),
        valid_range: Some(range),
        ..CapacityRequestPolicy::default()
    };
    DeviceCapacity { value: whole, request_policy: Some(policy) }
}

fn attributes(card: &Card) -> BTreeMap<String, DeviceAttribute> {
    let (gpu, traits) = (&card.gpu, &card.traits);
    let text = |value: &str| {
        let short = value.chars().take(MAX_TEXT).collect();
        DeviceAttribute { string: Some(short), ..DeviceAttribute::default() }
    };
    let number = |value: u32| DeviceAttribute { int: Some(value.into()), ..DeviceAttribute::default() };
    let version = |value| DeviceAttribute { version: Some(value), ..DeviceAttribute::default() };
    let sharing = match gpu.sharing {
        Sharing::Mps => "mps",
        Sharing::Exclusive => "exclusive",
    };
    let known = [
        ("uuid", Some(text(&gpu.id.0))),
        ("productName", Some(text(&gpu.name))),
        ("index", Some(number(gpu.index))),
        ("sharing", Some(text(sharing))),
        ("multiprocessors", traits.multiprocessors.map(number)),
        (
            "cudaComputeCapability",
            traits.capability.map(|(major, minor)| version(format!("{major}.{minor}.0"))),
        ),
        ("driverVersion", traits.driver.as_deref().and_then(semantic).map(version)),
        (PCI_BUS_ID, traits.address.as_deref().map(text)),
        (NUMA_NODE, traits.numa.map(number)),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

/// Standard names, by which a claim can ask for devices of several drivers near each other (`matchAttribute`). Source:
/// `k8s.io/dynamic-resource-allocation/deviceattribute` 0.37. A GPU that is near no node has no such attribute: it would
/// match every other.
const PCI_BUS_ID: &str = "resource.kubernetes.io/pciBusID";
const NUMA_NODE: &str = "resource.kubernetes.io/numaNode";

/// Longest text of an attribute (`DeviceAttributeMaxValueLength`).
const MAX_TEXT: usize = 64;

/// A driver's version in the form that selectors compare (semver.org): three numbers without zeros before them.
fn semantic(version: &str) -> Option<String> {
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    match numbers[..] {
        [major, minor] => Some(format!("{major}.{minor}.0")),
        [major, minor, patch] => Some(format!("{major}.{minor}.{patch}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Bytes;
    use serde_json::json;

    use super::*;

    fn card(unhealthy: Option<Timestamp>) -> Card {
        let gpu = Gpu {
            id: GpuId("GPU-1".into()),
            index: 1,
            name: "Tesla V100".into(),
            memory: Bytes(Bytes::gib(16).0 + 7),
            sharing: Sharing::Mps,
        };
        let driver = Some("535.104.05".into());
        let (address, numa) = (Some("0000:51:00.0".into()), Some(1));
        let traits = Traits { multiprocessors: Some(80), capability: Some((7, 0)), driver, address, numa };
        Card { gpu, traits, unhealthy }
    }

    #[test]
    fn a_slice_reads_as_the_api_has_it() {
        let since = "2026-11-30T12:00:00Z".parse().unwrap();
        let slice = slice("node-1", "uid-1", 3, devices(&[card(Some(since))]));
        let policy = |whole: &str, step: &str| {
            let range = json!({"min": step, "max": whole, "step": step});
            json!({"value": whole, "requestPolicy": {"default": whole, "validRange": range}})
        };
        let wanted = json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {
                "name": "node-1-gpu.gpufn.dev",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-1", "controller": true},
                ],
            },
            "spec": {
                "driver": "gpu.gpufn.dev",
                "nodeName": "node-1",
                "pool": {"name": "node-1", "generation": 3, "resourceSliceCount": 1},
                "devices": [{
                    "name": device_name(&GpuId("GPU-1".into())),
                    "allowMultipleAllocations": true,
                    "attributes": {
                        "uuid": {"string": "GPU-1"},
                        "productName": {"string": "Tesla V100"},
                        "index": {"int": 1},
                        "sharing": {"string": "mps"},
                        "multiprocessors": {"int": 80},
                        "cudaComputeCapability": {"version": "7.0.0"},
                        "driverVersion": {"version": "535.104.5"},
                        "resource.kubernetes.io/pciBusID": {"string": "0000:51:00.0"},
                        "resource.kubernetes.io/numaNode": {"int": 1},
                    },
                    "capacity": {"compute": policy("100", "1"), "memory": policy("16Gi", "1Mi")},
                    "taints": [
                        {"key": "gpufn.dev/unhealthy", "effect": "NoSchedule", "timeAdded": "2026-11-30T12:00:00Z"},
                    ],
                }],
            },
        });
        assert_eq!(serde_json::to_value(slice).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let unknown = Card { traits: Traits::default(), ..card(None) };
        let device = devices(&[unknown]).remove(0);
        let names: Vec<_> = device.attributes.unwrap().into_keys().collect();
        assert_eq!(names, ["index", "productName", "sharing", "uuid"]);
        assert_eq!(device.taints, None);
        assert_eq!((semantic("simulated"), semantic("550.54").as_deref()), (None, Some("550.54.0")));
    }
}
