//! What KEDA asks and is told.
//!
//! Owns the metadata of a trigger and the encoding of a need as a metric. Pure: who serves it is [`crate::serve`], and how many
//! replicas are needed is [`crate::need`]'s to say.

pub mod metadata;
pub mod metric;

#[cfg(test)]
pub(crate) mod hpa;

/// KEDA's protocol as Rust, made from `proto/` by the build script. Both sides of it, so that a test can be KEDA.
#[cfg(feature = "serve")]
pub mod api {
    #![allow(missing_docs, clippy::pedantic, unreachable_pub)] // Generated.

    tonic::include_proto!("externalscaler");

    /// The protocol, described for reflection.
    pub const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/externalscaler.bin"));
}
