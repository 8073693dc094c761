//! The kubelet's protocols for drivers as Rust, made from `proto/` by the build script. Both sides of each, so that a test can
//! be a kubelet.

/// The API for drivers of dynamic resource allocation.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.
pub mod v1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// The API by which the kubelet comes to know plugins.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// The API for drivers that tell of their devices' health.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/health/v1.rs"));
}

/// Kind of plugin that a driver is.
pub const KIND: &str = "DRAPlugin";
/// The services that a driver offers, as they are named at its registration.
pub const SERVICES: [&str; 2] = ["v1.DRAPlugin", "v1.DRAResourceHealth"];
