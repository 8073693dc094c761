//! A provider of OpenFaaS functions on Kubernetes: a function is a Deployment and a Service, with its part of a GPU where it asks
//! for one.
//!
//! It speaks the API that OpenFaaS' gateway expects behind it (`functions_provider_url`) and that faas-cli speaks. All state is
//! the cluster's: what is asked is read from the API server, and what requests need is followed by watches, so that no request
//! to a function waits for the API server unless there is no replica.
//!
//! | module | what it owns |
//! |---|---|
//! | `objects` | what is written for a function (pure) |
//! | `status` | what a client is told of a Deployment (pure) |
//! | `usage` | what its pods use (pure) |
//! | `functions` | which functions there are and where their replicas are, from watches |
//! | `cluster` | reading and writing at the API server, and its errors as answers |
//! | `watches` | following the API server |
//! | `wake` | requests that wait for a first replica, and who is told of them |
//! | `invoke` | a request to a function, there and back |
//! | `pod_logs` | lines of a function's pods, in order |
//! | `api` | the routes |
//! | `metrics` | what is exported |
//! | `cli`, `start` | options; start and end |
//!
//! Start reading at `objects`, then `wake`.

mod api;
pub(crate) mod cli;
mod cluster;
mod functions;
mod invoke;
mod metrics;
mod objects;
mod pod_logs;
mod start;
mod status;
mod usage;
mod wake;
mod watches;

use std::time::Duration;

use crate::webhook;

/// The label that names a pod's function, as faas-netes has it: its Deployments are taken over by their next deployment.
const FUNCTION: &str = "faas_function";
/// Whom the API server knows as the writer of a field.
const WRITER: &str = "gpufn-provider";
/// Where secrets are in a container; watchdogs look there.
const SECRETS: &str = "/var/openfaas/secrets";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// A gateway, which fills in what concerns itself.
    Provider,
    /// Clients such as faas-cli, straight: it answers as a gateway does.
    Gateway,
}

/// What holds for all functions.
#[derive(Clone, Debug)]
struct Settings {
    /// Namespace of functions that name none.
    namespace: String,
    /// No other namespace has functions.
    is_only: bool,
    role: Role,
    /// When the kubelet looks for a newer image: `Always`, `IfNotPresent` or `Never`.
    image_pull_policy: String,
    /// Functions don't run as root, and have no capabilities.
    non_root: bool,
    /// Port of the functions' watchdogs.
    port: u16,
    /// Paths by which a watchdog says that it lives, and that it is ready.
    health_path: String,
    ready_path: String,
    /// Longest time until a replica is ready.
    start: Duration,
    /// Longest time that a request waits for a first replica.
    hold: Duration,
    /// How parts of GPUs are counted, as the admission webhook does.
    gpus: webhook::Settings,
}

#[cfg(test)]
fn settings() -> Settings {
    Settings {
        namespace: openfaas::names::DEFAULT_NAMESPACE.into(),
        is_only: false,
        role: Role::Provider,
        image_pull_policy: "Always".into(),
        non_root: false,
        port: 8080,
        health_path: "/_/health".into(),
        ready_path: "/_/ready".into(),
        start: Duration::from_mins(10),
        hold: Duration::from_mins(1),
        gpus: webhook::settings(),
    }
}
