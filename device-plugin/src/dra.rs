//! The front end for dynamic resource allocation (DRA): the scheduler chooses the GPU and counts what a claim consumes of it,
//! and the kubelet says for which claim it asks. The other front end for the same ledger is [`crate::kubelet`]; a node has one
//! of them.
//!
//! ```text
//!   API server                        kubelet                                container runtime
//!   ▲           │ claims, with        │ finds the socket in `plugins_registry`,  ▲ CDI file of the binding
//!   │ resource  │ what the scheduler  │ asks for the driver's name               │
//!   │ slice     │ allocated           │ NodePrepareResources,                  inject
//!   │           ▼                     ▼ NodeUnprepareResources                 ▲
//!  publish    claim ───parts───► preparer ◄───────────── driver ◄── registration│
//!   ▲                             │   │ └────────────────────────────────────────┘
//!   └── slice ◄─── health         │   └─► grants, events (as with the other front end)
//!                                 ▼ bind_on, reshape, release
//!                               owner: ledger, arbiter, pages (the same as without Kubernetes)
//! ```
//!
//! 1. **Slice.** Each GPU is a device that many claims may have a part of ([`mod@slice`]); an unhealthy one is tainted. The
//!    kubelet deletes the node's slices when it starts and when the driver stays away for 30 s, so they are watched, and
//!    written again.
//! 2. **Prepare.** The claim is read at the API server ([`claim`]), each of its parts becomes a binding on the GPU that the
//!    scheduler chose, and a CDI device. Called again, it answers the same. What is wrong is told in the answer, which the
//!    kubelet shows beside the pod and tries again.
//! 3. **Unprepare** gives everything back.
//! 4. **Claims that are gone** while no kubelet knew of them (its own checkpoint was lost) are found by looking at the API
//!    server now and then, and released unless something of them runs.
//!
//! A binding says which claim it is of, so that an agent that starts again goes on from the ledger's checkpoint alone.
//!
//! Only version v1 of the kubelet's API is served. A kubelet that has only v1beta1 (before 1.34) comes with an API server that
//! knows nothing of devices with several allocations.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`quantity`] | Kubernetes' numbers (pure) |
//! | [`config`] | the configuration in a claim (pure) |
//! | [`claim`] | what a claim has of which GPU (pure) |
//! | [`held`] | which bindings stand for which claim (pure) |
//! | [`mod@slice`] | GPUs as devices for the scheduler (pure) |
//! | `publish` | the slice at the API server |
//! | `preparer` | claims and bindings, and the calls to the owner |
//! | `driver` | the services that the kubelet calls |
//! | `health` | the GPUs' health for the kubelet |
//! | `registration` | the socket that the kubelet finds |
//! | `serve` | all of it from start to stop |
//! | [`api`] | the kubelet's protocols |

pub mod api;
pub mod claim;
pub mod config;
mod driver;
mod health;
pub mod held;
mod preparer;
mod publish;
pub mod quantity;
mod registration;
pub(crate) mod serve;
pub mod slice;
