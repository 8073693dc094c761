//! The kubelet's protocols as Rust, made from `proto/` by the build script. Both sides of each, so that a test can be a
//! kubelet.

/// The device-plugin API.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The pod-resources API.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.
pub mod podresources {
    tonic::include_proto!("v1");
}

/// Version of the device-plugin API.
pub const VERSION: &str = "v1beta1";
/// Socket in the kubelet's folder on which plugins register.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// What the kubelet calls a device that containers may get.
pub const HEALTHY: &str = "Healthy";
/// What it calls one that they may not.
pub const UNHEALTHY: &str = "Unhealthy";
