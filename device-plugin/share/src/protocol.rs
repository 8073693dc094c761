//! Messages on the node agent's two sockets.
//!
//! Containers (watchdog and hook) speak JSON lines on the one socket: [`FromContainer`] and [`ToContainer`]. One
//! connection is one process; when it ends, however it ends, the process holds nothing any more. Whoever binds and
//! grants speaks HTTP with JSON bodies on the other: [`Bind`], [`Bound`], [`SetGrant`], [`NodeStatus`], [`Event`].
//!
//! ```text
//! hook                                   node agent
//!  │ attach {binding, pid}                │
//!  │ ───────────────────────────────────► │
//!  │ ◄────────── attached {slot, pid}     │
//!  │ want                                 │  the page's slot turns odd: the right is held
//!  │ ───────────────────────────────────► │
//!  │       (launches; no message at all)  │
//!  │ yield {right, used, more}            │  nothing queued any more, or the slot turned even and all is done
//!  │ ───────────────────────────────────► │
//!  │ reserve {bytes} ───────────────────► │
//!  │ ◄────── reserved {granted}           │
//!  │ free {bytes} ──────────────────────► │
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, BindingId, GpuId, Owner};
use crate::ledger::Gpu;
use crate::share::Share;
use crate::units::{Bytes, Nanos, Quota, Units};

/// Longest line on the containers' socket, in bytes.
pub const MAX_LINE: usize = 4096;

/// A line from a process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum FromContainer {
    /// The watchdog asks whether its binding exists. Answered by [`ToContainer::Welcome`] or [`ToContainer::Refused`].
    Hello {
        /// The binding's name.
        binding: BindingId,
    },
    /// A process's hook joins its binding. Answered by [`ToContainer::Attached`] or [`ToContainer::Refused`].
    Attach {
        /// The binding's name.
        binding: BindingId,
        /// The process, as it knows itself.
        pid: u32,
        /// What it holds already (it attached to an earlier agent).
        memory: Bytes,
    },
    /// The process has work and no right to run. Not answered: the page's slot says when.
    Want,
    /// The process has nothing on the GPU any more, under the right it was given.
    Yield {
        /// The slot's word when the right was held.
        right: u32,
        /// GPU time that its work occupied under this right.
        used: Nanos,
        /// Kernels (and other GPU work) that it launched under this right.
        launches: u64,
        /// Time that its threads waited for this right.
        throttled: Nanos,
        /// It has more work, as [`FromContainer::Want`] says. In one message, or somebody else would run in between.
        #[serde(default)]
        more: bool,
        /// Ways to the GPU which its hook does not know that it was handed since it last told, and contexts that don't keep
        /// to the SM share. What goes there is not counted.
        #[serde(default)]
        unknown: u64,
    },
    /// The process is about to take memory. Answered by [`ToContainer::Reserved`].
    Reserve {
        /// How much.
        bytes: Bytes,
    },
    /// The process gave memory back, or could not take what it reserved.
    Free {
        /// How much.
        bytes: Bytes,
    },
}

/// A line to a process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum ToContainer {
    /// The binding exists.
    Welcome {
        /// The binding as it is now.
        binding: Binding,
    },
    /// The process is attached. The page's descriptor comes with the line (`page::handover`).
    Attached {
        /// Its slot in the page.
        slot: usize,
        /// Its number on the node, if the agent can see it. In a container it knows itself by another; management libraries
        /// list it by this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// Whether the memory may be taken, and what the binding's processes hold together after that.
    Reserved {
        /// Whether it may.
        granted: bool,
        /// Held now.
        used: Bytes,
        /// The most that may be held.
        limit: Bytes,
    },
    /// It can't be done; the connection ends.
    Refused {
        /// Why, in one line.
        error: String,
    },
}

/// `POST /v1/bindings`: bind a share. Answered 201 [`Bound`], 409 [`Problem`] when nothing has room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Whom it is for.
    pub owner: Owner,
    /// What it needs.
    pub share: Share,
}

/// A new binding, and how its container gets at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The binding.
    pub binding: Binding,
    /// Path of its page.
    pub page: PathBuf,
    /// Path of the containers' socket.
    pub socket: PathBuf,
    /// Environment that the container's processes need (see [`crate::names::env`]), complete.
    pub env: Vec<(String, String)>,
}

/// `PUT /v1/bindings/{id}/grant`: change the quota, 0 to park. Answered 200 [`Granted`], 404 [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetGrant {
    /// The quota wanted; more than the ceiling or the row's room allow is not given, 0 parks.
    pub quota: Quota,
}

/// What a grant came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The quota that the binding has now.
    pub grant: Quota,
}

/// What went wrong, in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Field, value and what is allowed, where it is about a value.
    pub error: String,
}

/// `GET /v1/status`: the whole node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// Units that a GPU is divided into.
    pub units_per_gpu: Units,
    /// Why nothing is heard of the GPUs, if so; their health is then what was known last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind: Option<String>,
    /// The GPUs, in the driver's order.
    pub gpus: Vec<GpuStatus>,
}

impl NodeStatus {
    /// The bindings of all GPUs.
    pub fn bindings(&self) -> impl Iterator<Item = &BindingStatus> {
        self.gpus.iter().flat_map(|gpu| &gpu.bindings)
    }

    /// The binding of this name.
    pub fn binding(&self, id: &BindingId) -> Option<&BindingStatus> {
        self.bindings().find(|one| one.binding.id == *id)
    }
}

/// Whether a GPU can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Health {
    /// Nothing is wrong with it.
    #[default]
    Healthy,
    /// Something may be wrong; it takes new bindings still.
    Suspect {
        /// What was seen.
        why: String,
    },
    /// It takes no new bindings. Those that it has go on as well as they can.
    Unhealthy {
        /// What was seen.
        why: String,
    },
    /// It was unhealthy, and has begun to answer as it should; it takes no new bindings yet.
    Probing {
        /// What was wrong.
        why: String,
    },
}

impl Health {
    /// Whether the GPU takes new bindings.
    pub fn takes_bindings(&self) -> bool {
        matches!(self, Self::Healthy | Self::Suspect { .. })
    }

    /// What was seen of a GPU that is not healthy.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Healthy => None,
            Self::Suspect { why } | Self::Unhealthy { why } | Self::Probing { why } => Some(why),
        }
    }
}

impl core::fmt::Display for Health {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Suspect { why } => write!(f, "suspect ({why})"),
            Self::Unhealthy { why } => write!(f, "unhealthy ({why})"),
            Self::Probing { why } => write!(f, "probing ({why})"),
        }
    }
}

/// One GPU and what is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuStatus {
    /// The GPU.
    pub gpu: Gpu,
    /// Whether it can be trusted.
    #[serde(default)]
    pub health: Health,
    /// Units that no floor and no grant covers.
    pub free_units: Units,
    /// The most units that one new binding could have, 0 if it takes none.
    #[serde(default)]
    pub largest_fit: Units,
    /// What is bound on it.
    pub bindings: Vec<BindingStatus>,
}

/// One binding and what it uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingStatus {
    /// The binding.
    pub binding: Binding,
    /// GPU time used, up to the end of its last hold.
    pub used: Nanos,
    /// Time waited for the right to run so far.
    pub throttled: Nanos,
    /// Memory held now.
    pub memory_used: Bytes,
    /// Processes attached now.
    pub processes: Vec<u32>,
    /// GPU work launched so far.
    pub launches: u64,
    /// Ways to the GPU that its processes were handed and their hooks do not know, and contexts that don't keep to the SM
    /// share. What goes there is not counted.
    pub unknown: u64,
    /// Faults that the driver reported (Xids) and that were traced to it.
    #[serde(default)]
    pub faults: u64,
}

/// `GET /v1/events`: one JSON line per event, from the moment of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A parked binding's process wanted to run; it has its floor again.
    Woken {
        /// Which.
        binding: BindingId,
        /// What it has now.
        grant: Quota,
    },
    /// A grant shrank because another binding needed its floor.
    Withdrawn {
        /// Which.
        binding: BindingId,
        /// What it has now.
        grant: Quota,
    },
    /// A process attached.
    Attached {
        /// To which binding.
        binding: BindingId,
        /// The process.
        pid: u32,
    },
    /// A GPU's health is another.
    Health {
        /// Which GPU.
        gpu: GpuId,
        /// How it is now.
        health: Health,
    },
    /// The driver reported an Xid.
    Xid {
        /// On which GPU.
        gpu: GpuId,
        /// Which.
        xid: u64,
        /// Whose fault it was, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binding: Option<BindingId>,
    },
    /// A process is gone, with all that it held.
    Detached {
        /// From which binding.
        binding: BindingId,
        /// The process.
        pid: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_they_are_documented() {
        let line = r#"{"op":"attach","binding":"b-1","pid":7,"memory":0}"#;
        let attach = serde_json::from_str::<FromContainer>(line).unwrap();
        assert_eq!(serde_json::to_string(&attach).unwrap(), line);
        assert_eq!(serde_json::to_string(&FromContainer::Want).unwrap(), r#"{"op":"want"}"#);
        assert!(serde_json::from_str::<FromContainer>(r#"{"op":"hello","binding":"../x"}"#).is_err());
    }
}
