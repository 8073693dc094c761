//! A binding: a share bound to one container on one GPU.

use core::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;
use crate::share::Share;
use crate::units::{Area, Bytes, Quota};

/// Name of a binding: 1 to 32 lower-case letters, digits and dashes.
///
/// It names a folder and is what a container shows to the node agent, so whoever makes one takes it from a
/// source that cannot be guessed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BindingId(String);

impl BindingId {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 32;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BindingId {
    type Error = Invalid;

    fn try_from(name: String) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=Self::MAX_LEN).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name))
        } else {
            Err(Invalid::new("binding", name, "1 to 32 lower-case letters, digits and dashes"))
        }
    }
}

impl From<BindingId> for String {
    fn from(id: BindingId) -> Self {
        id.0
    }
}

impl fmt::Display for BindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// UUID of a GPU, as NVML prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GpuId(pub String);

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a binding is for, as people know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Namespace of the function.
    pub namespace: String,
    /// Name of the function.
    pub function: String,
    /// Name of the replica (in Kubernetes, the pod).
    pub instance: String,
    /// In Kubernetes, the container of the pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// In Kubernetes, the devices that the kubelet counts for it. Shared: many, and told often.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub devices: Arc<[Arc<str>]>,
    /// In Kubernetes, the claim that it was allocated to, if it was asked for by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Box<ClaimPart>>,
}

/// What one allocation of a device is to the resource claim that it was made for (`ResourceClaim`, `resource.k8s.io/v1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimPart {
    /// The claim's UID.
    pub uid: String,
    /// The claim's name, in the owner's namespace.
    pub name: String,
    /// The request in it.
    pub request: String,
    /// Which of the device's allocations, if it has several at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}

/// A share bound to one container on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Its name.
    pub id: BindingId,
    /// Whom it is for.
    pub owner: Owner,
    /// The GPU that it is on, for as long as it lives.
    pub gpu: GpuId,
    /// What was asked for.
    pub share: Share,
    /// The quota that it has now: between floor and ceiling, or zero while parked.
    pub grant: Quota,
    /// Which of the GPU's rows it runs in; rows run beside each other, members of a row one after the other.
    pub row: u32,
}

impl Binding {
    /// Whether it gave its time back and keeps only its memory.
    pub fn is_parked(&self) -> bool {
        self.grant.is_zero()
    }

    /// Its cost at the present grant on a GPU with `gpu_memory`.
    pub fn cost(&self, gpu_memory: Bytes) -> Area {
        self.share.dominant_at(self.grant, gpu_memory)
    }
}
