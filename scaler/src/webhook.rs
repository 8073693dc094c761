//! What a pod that opts in gets before it is created: units of GPUs for what its annotations ask for, the watchdog's promise
//! not to start without them, and a node with that much on one GPU.
//!
//! A pod is taken as it comes, with fields that no version of ours knows. What it is given is written once: who is admitted
//! again gets nothing more. Pure.

mod pod;
pub mod review;

use gpu_share::invalid::Invalid;
use gpu_share::units::{Bytes, Units};
use serde_json::Value;

/// What a cluster's GPUs are like, and what every pod on one gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the extended resource.
    pub resource: String,
    /// Units that a GPU is divided into.
    pub per_gpu: Units,
    /// Memory of the smallest GPU: what memory is in units.
    pub gpu_memory: Bytes,
    /// Runtime class of pods that name none.
    pub runtime_class: Option<String>,
    /// Seconds that a pod has at least to end, for its watchdog to answer what it has.
    pub grace_seconds: u64,
    /// Whether the node is to have one GPU with room for all units of a container.
    pub steer: bool,
}

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// An annotation or a field can't be read, or is not allowed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It has another form than a pod's.
    #[error("the pod can't be read: {0}")]
    Unreadable(String),
    /// It opts in, and asks for nothing.
    #[error("the pod asks for no part of a GPU: set gpufn.dev/quota, gpufn.dev/memory or a limit of {0}")]
    NoPart(String),
    /// It has no container that could have a share.
    #[error("spec.containers is empty, allowed is a pod with a container for the function")]
    NoContainer,
    /// A container asks for a whole GPU beside its part of one.
    #[error("container {container} asks for {whole} beside a part of a GPU: have one or the other")]
    Whole {
        /// The container.
        container: String,
        /// The resource of whole GPUs.
        whole: String,
    },
}

/// The pod with what it is given. One that does not opt in stays as it is.
///
/// # Errors
/// Why it must not run as it is.
pub fn admit(pod: &Value, settings: &Settings) -> Result<Value, Denied> {
    pod::admit(pod, settings)
}

#[cfg(test)]
pub(crate) fn settings() -> Settings {
    Settings {
        resource: "gpufn.dev/gpu".into(),
        per_gpu: Units(20),
        gpu_memory: Bytes::gib(16),
        runtime_class: Some("nvidia".into()),
        grace_seconds: 60,
        steer: true,
    }
}
