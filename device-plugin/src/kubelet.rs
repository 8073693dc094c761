//! The front end for the kubelet as a device plugin: it makes units of GPUs a resource of the node, and bindings of what pods
//! get of it. What `crate::dra`, the other front end, needs too is here: `cluster`, `inject`, `recovery`, `socket`, [`serve`].
//!
//! # Who calls whom, with what
//!
//! ```text
//!   API server                     kubelet                                    container runtime
//!   ▲        │ pods of this node   │ ▲                                          ▲ CDI file of the binding
//!   │ events,│ with their          │ │ Register(socket, resource)               │ (environment, mounts)
//!   │ grants,│ annotations         │ └────────────── registration               │
//!   │ label  ▼                     │ GetPreferredAllocation, Allocate,         inject
//!   └───── cluster                 ▼ ListAndWatch, PreStartContainer            ▲
//!             │ ▲                plugin ──who has these devices?──► podresources│
//!   annotated │ │ notices,         │ prefer, allocate, start            │      │
//!             ▼ │ published        ▼                          listed    │      │
//!            ┌──┴──────────────────────────────────────────────────┐◄────┘      │
//!   health ─►│ allocator: claims (devices ↔ binding), entitlements ├────────────┘
//!            └──┬──────────────────────────────────────────────────┘
//!               │ bind_on, reshape, release, offers, status
//!               ▼
//!             owner: ledger, arbiter, pages (the same as without Kubernetes)
//! ```
//!
//! 1. **Allocate** brings device ids and nothing else. The allocator finds the claim that they are, or makes one: a binding
//!    on one GPU that holds the memory which the units stand for, and no time yet. It does not fail for want of room while
//!    any GPU has some: a pod that fails here is replaced without a pause, thousands of times an hour (Kubernetes #108152).
//! 2. **`PreStartContainer`** comes before each start of each container. Only now the kubelet's own list says whose the
//!    devices are. The pod's annotations give the form of its share ([`entitlement`]), and the binding takes it on, as
//!    exactly as its neighbours allow ([`crate::fit`]). An error here is retried by the kubelet with a pause, so this is the
//!    place to refuse.
//! 3. The **reconciler** compares claims with the kubelet's list: what that does not show for a while, and of which nothing
//!    runs, is released. The kubelet never tells that devices are free.
//! 4. **Once a second**, and when a GPU's health changes, the list of devices is compared with the ledger ([`advert`]) and
//!    streamed if it differs: what grants above floors use is withdrawn from the scheduler's sight.
//! 5. **Annotations that change** reach the page at once, also of a running pod: that is how a share grows in Kubernetes.
//!
//! Nothing that the kubelet waits for asks NVML or the API server, nor writes outside the state folder, but
//! `PreStartContainer`: it writes the CDI file, and asks the API server for at most two seconds for a pod that the watch has
//! not shown yet. Without an API server everything works but what annotations say.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`device`] | names of devices (pure) |
//! | [`choose`] | which devices, and which GPU (pure) |
//! | [`claims`] | which binding stands for which devices (pure) |
//! | [`entitlement`] | what units and annotations give (pure) |
//! | [`advert`] | what the kubelet is told (pure) |
//! | `allocator` | all of these together, and the calls to the owner |
//! | `plugin` | the service that the kubelet calls |
//! | `registration` | registering, and again |
//! | `socket` | sockets in the kubelet's folders |
//! | `podresources` | the kubelet's list |
//! | `cluster` | pods' annotations, events, grants and the node's label at the API server |
//! | `recovery` | bindings that only containers know of |
//! | `inject`, [`install`] | what a container gets: CDI file or mounts, the hook library |
//! | [`serve`] | all of it from start to stop |
//! | [`api`] | the kubelet's protocols |

pub mod advert;
pub(crate) mod allocator;
pub mod api;
pub mod choose;
pub mod claims;
pub(crate) mod cluster;
pub mod device;
pub mod entitlement;
pub(crate) mod inject;
pub mod install;
mod plugin;
mod podresources;
pub(crate) mod recovery;
mod registration;
pub mod resource;
pub mod serve;
pub(crate) mod socket;

pub use inject::Form;

use std::collections::BTreeMap;

use gpu_share::binding::GpuId;

/// GPUs that take no new containers, each with the reason.
pub(crate) type Unhealthy = BTreeMap<GpuId, String>;
