//! A real Kubernetes cluster of one node: etcd, API server, controller manager, scheduler, containerd and kubelet, as
//! processes of this machine, without Docker and without a package to install.
//!
//! The cluster lives in network, mount and process namespaces of its own. What it writes lies in memory that ends with
//! them, so whatever becomes of the process that started it, nothing of it stays but log files, and control groups that
//! are empty ([`remains`]).
//!
//! ```text
//! starter ([`host`])                        outside: owns the log folder, ends the cluster
//!   └ unshare
//!       └ init ([`init`])                   process 1 inside: reaps; when `node` ends, kills all and removes the groups
//!           ├ node ([`node`])               makes the file system, boots and watches the components
//!           │   └ etcd, kube-apiserver, …   ([`components`])
//!           └ what tests run on the node    by `nsenter`: `cluster exec`
//! ```
//!
//! If the starter dies, the standard input of `node` closes, and it ends; then `init` clears up. If `init` dies, the kernel
//! kills all that is inside.
//!
//! Tests run on the node, so that its API server, its pods and its folders are where they would be on a real one; there
//! they use [`tenant`], [`gpu_node`] where pods want GPUs, [`release`] where the agent is to be a pod too, and [`keda`].

pub mod account;
pub mod certificates;
pub mod components;
pub mod control;
pub mod front_end;
pub mod gpu_node;
pub mod host;
pub mod image;
pub mod init;
pub mod installed;
pub mod keda;
pub mod mounts;
pub mod node;
pub mod objects;
pub mod release;
pub mod remains;
pub mod service;
pub mod tenant;

use std::path::{Path, PathBuf};

/// The folder on the node that has all that belongs to the cluster. It is in memory.
pub const ROOT: &str = "/run/gpufn-cluster";
/// Address of the service `kubernetes`: the first of [`SERVICES`].
pub const API_ADDRESS: &str = "10.96.0.1";
/// Port of the API server, which is also the one of its service, since nothing is in between.
pub const API_PORT: u16 = 443;
/// Addresses of services.
pub const SERVICES: &str = "10.96.0.0/16";
/// Addresses of pods.
pub const PODS: &str = "10.244.0.0/24";
/// The node's name, and its address.
pub const NODE: &str = "127.0.0.1";

/// A path in [`ROOT`].
pub fn at(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
