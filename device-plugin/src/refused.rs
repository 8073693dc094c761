//! Why a call of the kubelet is not carried out, by either front end: in one line for people, in one word for metrics.

use gpu_share::binding::GpuId;
use gpu_share::units::Bytes;

use crate::dra::claim::ClaimError;
use crate::kubelet::device::DeviceId;
use crate::owner::ControlError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The node has no such device.
    #[error("device {0} is not of this node, allowed are those that the plugin lists")]
    UnknownDevice(DeviceId),
    /// Nobody was given the devices together.
    #[error("devices {0} were not allocated together by this agent; delete the pod, so that it gets others")]
    NotAllocated(String),
    /// What a claim says is wrong.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A claim can't be read at the API server.
    #[error("the claim is not known: {0}")]
    UnknownClaim(String),
    /// Another claim has its name now.
    #[error("the claim's UID is {asked:?}, allowed is {found:?}: it was made anew")]
    OtherClaim {
        /// UID that the kubelet says.
        asked: String,
        /// UID at the API server.
        found: String,
    },
    /// No GPU has any room.
    #[error("no GPU takes a new container: {0}")]
    NoRoom(String),
    /// There is less memory than is needed.
    #[error("GPU {gpu} has {free} left where {needed} are needed; it is tried again until there is more")]
    NoMemory {
        /// The GPU.
        gpu: GpuId,
        /// What is left.
        free: Bytes,
        /// What is needed.
        needed: Bytes,
    },
    /// The owner refuses.
    #[error(transparent)]
    Owner(#[from] ControlError),
    /// What the container's runtime reads can't be written.
    #[error("the CDI file can't be written: {0}")]
    Inject(std::io::Error),
}

impl Refused {
    /// The reason as a label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownDevice(_) => "unknown_device",
            Self::NotAllocated(_) => "not_allocated",
            Self::Claim(_) => "invalid_claim",
            Self::UnknownClaim(_) | Self::OtherClaim { .. } => "unknown_claim",
            Self::NoRoom(_) | Self::Owner(ControlError::Refused(_)) => "no_room",
            Self::NoMemory { .. } => "no_memory",
            Self::Owner(ControlError::Mps(_)) => "mps",
            Self::Owner(ControlError::Stopped) => "stopping",
            Self::Owner(ControlError::State(_)) | Self::Inject(_) => "state_folder",
        }
    }
}
