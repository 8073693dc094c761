//! What a resource claim has of this node's GPUs: the scheduler's allocation and the configuration, read as shares.
//!
//! ```text
//!   compute consumed ÷ SM share ─► quota that is backed ─┐ floor = the quota asked for, at most what is backed
//!   memory consumed ─────────────► memory at most        ├─► share
//!   configuration: sm, quota, quotaLimit, memory ────────┘ ceiling = the limit asked for, else all of the time
//! ```
//!
//! What is guaranteed never exceeds what the claim consumed of the device, by which the scheduler counts; a configuration that
//! asks for more is refused. Pure.

use std::collections::BTreeMap;

use gpu_share::annotations::Shape;
use gpu_share::binding::{ClaimPart, GpuId, Owner};
use gpu_share::invalid::Invalid;
use gpu_share::ledger::{Gpu, Sharing};
use gpu_share::names::dra::{COMPUTE, DRIVER, MEMORY};
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Quota, SmShare};
use k8s_openapi::api::resource::v1::{
    DeviceAllocationResult, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimConsumerReference,
};
use serde_json::Value;

use super::slice::device_name;
use super::{config, quantity};
use crate::kubelet::entitlement::{backed, in_turns};

/// Percent of a GPU that a device's compute is.
pub const WHOLE_COMPUTE: u64 = 100;
/// Millionths of a GPU in a percent of it.
const PPM_PER_PERCENT: u64 = 10_000;

/// What a claim has of one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The request of the claim, without the name of a sub-request: that is what containers name.
    pub request: String,
    /// The device, as the node's resource slice names it.
    pub device: String,
    /// Which of the device's allocations, if it has several at once.
    pub share_id: Option<String>,
    /// The GPU.
    pub gpu: GpuId,
    /// The share of it.
    pub share: Share,
}

/// Why a claim is not prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The scheduler has not given it anything.
    #[error("the claim is not allocated")]
    NotAllocated,
    /// It has a device that is not of this node.
    #[error("device {pool}/{device} is not of this node, allowed are those of its pool, {own}")]
    UnknownDevice {
        /// Pool that it is said to be in.
        pool: String,
        /// The device.
        device: String,
        /// The node's pool.
        own: String,
    },
    /// It asks for access beside what others consume.
    #[error("request {0} asks for admin access, allowed are requests without it: a share is for containers")]
    AdminAccess(String),
    /// A container would get several shares.
    #[error("request {request} has {devices} devices, allowed is 1: a container has one share of one GPU")]
    Several {
        /// The request.
        request: String,
        /// Devices that it was given.
        devices: usize,
    },
    /// Something that it says is wrong.
    #[error("request {request}: {invalid}")]
    Invalid {
        /// The request.
        request: String,
        /// What is wrong.
        invalid: Invalid,
    },
}

/// What `claim` has of the `gpus` of the node whose pool is `pool`; what it has of other drivers is not looked at.
pub fn parts(claim: &ResourceClaim, pool: &str, gpus: &[Gpu]) -> Result<Vec<Part>, ClaimError> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices =
        allocation.and_then(|allocation| allocation.devices.as_ref()).ok_or(ClaimError::NotAllocated)?;
    let results: Vec<_> = results(devices).collect();
    for result in &results {
        let of_request = results.iter().filter(|other| other.request == result.request).count();
        if of_request > 1 {
            return Err(ClaimError::Several { request: result.request.clone(), devices: of_request });
        }
    }
    results.into_iter().map(|result| part(result, devices, pool, gpus)).collect()
}

/// Whom a part of a claim is for. Of several pods that share the claim, the first counts.
pub fn owner(claim: &ResourceClaim, part: &Part) -> Owner {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (metadata, name) = (&claim.metadata, text(&claim.metadata.name));
    let mut consumers = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    let pod = consumers.find(|consumer| is_pod(consumer));
    Owner {
        namespace: text(&metadata.namespace),
        function: name.clone(),
        instance: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
        claim: Some(Box::new(ClaimPart {
            uid: text(&metadata.uid),
            name,
            request: part.request.clone(),
            share: part.share_id.clone(),
        })),
        ..Owner::default()
    }
}

/// Whether the allocation of `claim` has `part` of it on `gpu`.
pub fn has(claim: &ResourceClaim, part: &ClaimPart, gpu: &GpuId) -> bool {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(results).any(|result| {
        without_subrequest(&result.request) == part.request
            && result.share_id == part.share
            && result.device == device_name(gpu)
    })
}

fn is_pod(consumer: &ResourceClaimConsumerReference) -> bool {
    consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or_default().is_empty()
}

fn results(devices: &DeviceAllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    devices.results.iter().flatten().filter(|result| result.driver == DRIVER)
}

fn part(
    result: &DeviceRequestAllocationResult,
    devices: &DeviceAllocationResult,
    pool: &str,
    gpus: &[Gpu],
) -> Result<Part, ClaimError> {
    if result.admin_access == Some(true) {
        return Err(ClaimError::AdminAccess(result.request.clone()));
    }
    let gpu = gpus.iter().find(|gpu| result.pool == pool && device_name(&gpu.id) == result.device);
    let gpu = gpu.ok_or_else(|| ClaimError::UnknownDevice {
        pool: result.pool.clone(),
        device: result.device.clone(),
        own: pool.into(),
    })?;
    let in_request = |invalid| ClaimError::Invalid { request: result.request.clone(), invalid };
    let shape = config::shape(configurations(devices, &result.request), gpu.memory).map_err(in_request)?;
    let consumed = consumed(result, gpu).map_err(in_request)?;
    Ok(Part {
        request: without_subrequest(&result.request).into(),
        device: result.device.clone(),
        share_id: result.share_id.clone(),
        gpu: gpu.id.clone(),
        share: share(&consumed, gpu, &shape).map_err(in_request)?,
    })
}

fn without_subrequest(request: &str) -> &str {
    request.split_once('/').map_or(request, |(request, _)| request)
}

/// This driver's configurations for `request`, the class's before the claim's.
fn configurations<'a>(
    devices: &'a DeviceAllocationResult,
    request: &'a str,
) -> impl Iterator<Item = &'a Value> {
    let own = devices.config.iter().flatten().filter_map(move |configuration| {
        let requests = configuration.requests.as_deref().unwrap_or_default();
        let names_it = |name: &String| name == request || name == without_subrequest(request);
        let opaque = configuration.opaque.as_ref().filter(|opaque| opaque.driver == DRIVER)?;
        (requests.is_empty() || requests.iter().any(names_it))
            .then_some((configuration.source == "FromClaim", &opaque.parameters.0))
    });
    let (of_claim, of_class): (Vec<_>, Vec<_>) = own.partition(|(is_of_claim, _)| *is_of_claim);
    of_class.into_iter().chain(of_claim).map(|(_, parameters)| parameters)
}

/// What the scheduler counts a part as.
#[derive(Clone, Copy, Debug)]
struct Consumed {
    /// Percent of the GPU.
    compute: u64,
    memory: Bytes,
}

/// Without a count the device is the claim's alone: so it is where the API server does not know of consumable capacity.
fn consumed(result: &DeviceRequestAllocationResult, gpu: &Gpu) -> Result<Consumed, Invalid> {
    let none = BTreeMap::new();
    let counted = result.consumed_capacity.as_ref().unwrap_or(&none);
    let read = |name: &str, whole: u64| {
        let Some(text) = counted.get(name) else { return Ok(whole) };
        let value = quantity::parse(&text.0).filter(|value| (1..=whole).contains(value));
        value.ok_or_else(|| {
            Invalid::new(format!("consumed {name}"), &text.0, format!("above 0 and at most {whole}"))
        })
    };
    Ok(Consumed { compute: read(COMPUTE, WHOLE_COMPUTE)?, memory: Bytes(read(MEMORY, gpu.memory.0)?) })
}

fn share(consumed: &Consumed, gpu: &Gpu, asked: &Shape) -> Result<Share, Invalid> {
    let sm = asked.sm.unwrap_or(SmShare::WHOLE);
    let backed = backed(consumed.compute * PPM_PER_PERCENT, sm);
    let limit = asked.limit.unwrap_or(Quota::WHOLE);
    let floor = asked.quota.unwrap_or_else(|| backed.min(limit));
    if floor > backed {
        let allowed =
            format!("at most {backed}, which {} % of the GPU are of {sm} of its SMs", consumed.compute);
        return Err(Invalid::new("configuration, quota", floor, allowed));
    }
    let memory = asked.memory.unwrap_or(consumed.memory);
    if memory > consumed.memory {
        let allowed = format!("at most the {} that the claim has", consumed.memory);
        return Err(Invalid::new("configuration, memory", memory, allowed));
    }
    let share = Share::new(sm, floor, limit.max(floor), memory)?;
    Ok(match gpu.sharing {
        Sharing::Mps => share,
        Sharing::Exclusive => in_turns(&share),
    })
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Units;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn gpu(name: &str, sharing: Sharing) -> Gpu {
        Gpu { id: GpuId(name.into()), index: 0, name: "a".into(), memory: Bytes::gib(16), sharing }
    }

    fn gpus() -> [Gpu; 2] {
        [gpu("GPU-1", Sharing::Mps), gpu("GPU-2", Sharing::Mps)]
    }

    /// An allocation of a device of the first GPU, changed by `changes`.
    fn result(request: &str, changes: &Value) -> Value {
        let device = device_name(&GpuId("GPU-1".into()));
        let mut result = json!({
            "request": request, "driver": "gpu.gpufn.dev", "pool": "node-1", "device": device, "shareID": "s-1",
            "consumedCapacity": {"compute": "25", "memory": "4Gi"},
        });
        result.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        result
    }

    fn claim(results: &[Value], config: &[Value]) -> ResourceClaim {
        serde_json::from_value(json!({
            "metadata": {"namespace": "fn", "name": "claim-1", "uid": "u-1"},
            "spec": {},
            "status": {
                "allocation": {"devices": {"results": results, "config": config}},
                "reservedFor": [{"resource": "pods", "name": "pod-1", "uid": "p-1"}],
            },
        }))
        .unwrap()
    }

    fn configured(source: &str, requests: &[&str], fields: &Value) -> Value {
        let mut parameters = json!({"apiVersion": "gpufn.dev/v1alpha1", "kind": "Share"});
        parameters.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let opaque = json!({"driver": "gpu.gpufn.dev", "parameters": parameters});
        json!({"source": source, "requests": requests, "opaque": opaque})
    }

    fn read(results: &[Value], config: &[Value]) -> Result<Vec<Part>, ClaimError> {
        parts(&claim(results, config), "node-1", &gpus())
    }

    fn only(config: &[Value]) -> Share {
        read(&[result("gpu", &json!({}))], config).unwrap()[0].share
    }

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    #[test]
    fn without_a_configuration_a_claim_has_what_it_consumed() {
        let part = read(&[result("gpu", &json!({}))], &[]).unwrap().remove(0);
        assert_eq!((part.gpu.0.as_str(), part.request.as_str()), ("GPU-1", "gpu"));
        assert_eq!(part.share_id.as_deref(), Some("s-1"));
        let Share { sm, floor, ceiling, memory } = part.share;
        assert_eq!((sm, floor, ceiling, memory), (SmShare::WHOLE, percent(25), Quota::WHOLE, Bytes::gib(4)));
    }

    #[test]
    fn where_nothing_is_counted_the_device_is_the_claims_alone() {
        let whole = result("gpu", &json!({"consumedCapacity": null, "shareID": null}));
        assert_eq!(read(&[whole], &[]).unwrap()[0].share, Share::whole_gpu(Bytes::gib(16)));
    }

    #[test]
    fn a_part_of_the_multiprocessors_has_so_much_more_of_the_time() {
        let share = only(&[configured("FromClaim", &[], &json!({"sm": 50}))]);
        assert_eq!((share.sm.percent(), share.floor), (50, percent(50)));
        let share = only(&[configured(
            "FromClaim",
            &[],
            &json!({"sm": 50, "quota": 20, "quotaLimit": 80, "memory": "1Gi"}),
        )]);
        assert_eq!((share.floor, share.ceiling, share.memory), (percent(20), percent(80), Bytes::gib(1)));
        let share = only(&[configured("FromClaim", &[], &json!({"sm": 10}))]);
        assert_eq!(share.floor, Quota::WHOLE, "there is no more than all of the time");
    }

    #[test]
    fn in_turns_a_part_of_the_multiprocessors_is_a_part_of_the_time() {
        let config = [configured("FromClaim", &[], &json!({"sm": 50, "quota": 40}))];
        let claim = claim(&[result("gpu", &json!({}))], &config);
        let share = parts(&claim, "node-1", &[gpu("GPU-1", Sharing::Exclusive)]).unwrap()[0].share;
        assert_eq!((share.sm, share.floor, share.ceiling), (SmShare::WHOLE, percent(20), percent(50)));
    }

    #[test]
    fn the_claims_configuration_counts_more_than_the_classs_whatever_the_order_and_only_for_its_requests() {
        let config = [
            configured("FromClaim", &["gpu"], &json!({"sm": 30})),
            configured("FromClass", &[], &json!({"sm": 50, "quotaLimit": 60})),
            configured("FromClaim", &["other"], &json!({"sm": 90})),
            json!({"source": "FromClaim", "opaque": {"driver": "gpu.example.com", "parameters": {"sm": 1}}}),
        ];
        let share = only(&config);
        assert_eq!((share.sm.percent(), share.ceiling), (30, percent(60)));
    }

    #[test]
    fn a_sub_request_is_known_by_the_name_of_its_request() {
        let config = [configured("FromClaim", &["gpu"], &json!({"sm": 30}))];
        let part = read(&[result("gpu/large", &json!({}))], &config).unwrap().remove(0);
        assert_eq!((part.request.as_str(), part.share.sm.percent()), ("gpu", 30));
    }

    #[test]
    fn what_a_claim_has_of_other_drivers_is_not_looked_at() {
        let other = result("gpu", &json!({"driver": "gpu.example.com"}));
        assert_eq!(read(&[other], &[]), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_with_a_claim_is_told_in_one_line() {
        let of = |changes: &Value, fields: &Value| {
            let config = [configured("FromClaim", &[], fields)];
            read(&[result("gpu", changes)], &config).unwrap_err().to_string()
        };
        let none = json!({});
        assert_eq!(
            of(&none, &json!({"quota": 40})),
            "request gpu: configuration, quota is \"40 %\", allowed is at most 25 %, which 25 % of the GPU are of 100 % of its SMs"
        );
        assert_eq!(
            of(&none, &json!({"memory": "5Gi"})),
            "request gpu: configuration, memory is \"5.0 GiB\", allowed is at most the 4.0 GiB that the claim has"
        );
        assert_eq!(
            of(&none, &json!({"size": 1})),
            "request gpu: configuration, field is \"size\", allowed is sm, quota, quotaLimit or memory"
        );
        assert_eq!(
            of(&json!({"consumedCapacity": {"compute": "101"}}), &none),
            "request gpu: consumed compute is \"101\", allowed is above 0 and at most 100"
        );
        assert_eq!(
            of(&json!({"pool": "node-2"}), &none),
            format!(
                "device node-2/{} is not of this node, allowed are those of its pool, node-1",
                device_name(&GpuId("GPU-1".into()))
            )
        );
        assert!(of(&json!({"adminAccess": true}), &none).starts_with("request gpu asks for admin access"));
        let several = [result("gpu", &none), result("gpu", &json!({"shareID": "s-2"}))];
        assert_eq!(
            read(&several, &[]).unwrap_err().to_string(),
            "request gpu has 2 devices, allowed is 1: a container has one share of one GPU"
        );
        let unallocated = ResourceClaim { status: None, ..claim(&[], &[]) };
        assert_eq!(parts(&unallocated, "node-1", &gpus()), Err(ClaimError::NotAllocated));
    }

    #[test]
    fn a_part_is_for_the_first_pod_that_the_claim_is_reserved_for() {
        let claim = claim(&[result("gpu", &json!({}))], &[]);
        let part = parts(&claim, "node-1", &gpus()).unwrap().remove(0);
        let owner = owner(&claim, &part);
        assert_eq!((owner.namespace.as_str(), owner.instance.as_str()), ("fn", "pod-1"));
        let claim = owner.claim.unwrap();
        assert_eq!(
            (claim.uid.as_str(), claim.name.as_str(), claim.request.as_str()),
            ("u-1", "claim-1", "gpu")
        );
    }

    proptest! {
        #[test]
        fn what_is_guaranteed_never_exceeds_what_was_consumed(
            compute in 1u8..=100, mib in 1u64..=16384, sm in prop::option::of(1u8..=100),
            quota in prop::option::of(1u8..=100), limit in prop::option::of(1u8..=100),
            exclusive: bool,
        ) {
            let mut fields = json!({});
            for (name, value) in [("sm", sm), ("quota", quota), ("quotaLimit", limit)] {
                if let Some(value) = value {
                    fields[name] = json!(value);
                }
            }
            let consumed = json!({"consumedCapacity": {"compute": compute.to_string(), "memory": format!("{mib}Mi")}});
            let claim = claim(&[result("gpu", &consumed)], &[configured("FromClaim", &[], &fields)]);
            let sharing = if exclusive { Sharing::Exclusive } else { Sharing::Mps };
            if let Ok(parts) = parts(&claim, "node-1", &[gpu("GPU-1", sharing)]) {
                let share = parts[0].share;
                prop_assert!(share.dominant(Bytes::gib(16)).units(Units(100)).0 <= u32::from(compute).max(
                    u32::try_from((mib * 100).div_ceil(16384)).unwrap()));
                prop_assert!(u64::from(share.floor.ppm()) * u64::from(share.sm.percent()) <= u64::from(compute) * 1_000_000);
                prop_assert_eq!(share.memory, Bytes::mib(mib));
            }
        }
    }
}
