//! KEDA itself, on the cluster's node: its operator, which asks scalers and takes Deployments from none to one and back, and
//! its adapter, by which the autoscaler reads what scalers say.
//!
//! ```text
//! test ─ ScaledObject ─► API server ◄──────────────── operator ── gRPC ─► gpufn-scaler
//!                         ▲   │ API service            ▲
//!          autoscaler ────┘   └──────────► adapter ────┘ gRPC, mutual TLS
//! ```
//!
//! Both are processes of the node, which reach a scaler on loopback and one in a pod alike. Their kinds, their account and its
//! rights are those of KEDA's own files; what differs is that their certificates are made here, and that the API server finds
//! the adapter by the name `localhost`. One KEDA at a time: the API service is the cluster's.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::components::kubeconfig;
use super::tenant::{Tenant, after_all};
use super::{account, certificates, node, objects};
use crate::go::{self, Program};
use crate::port;
use crate::process::Process;
use crate::wait::until;

/// Longest time until it is ready: seconds, but minutes on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(3);
/// Longest time until it has let its objects go.
const END: Duration = Duration::from_mins(1);
/// Time between two looks whether they are gone.
const GLANCE: Duration = Duration::from_millis(100);
/// Namespace and account that KEDA's own files name.
const NAMESPACE: &str = "keda";
const ACCOUNT: &str = "keda-operator";
/// The service by which the API server finds the adapter.
const SERVICE: &str = "keda-metrics-apiserver";
/// The API that the adapter serves.
const API: &str = "v1beta1.external.metrics.k8s.io";

/// Files of KEDA that say what it has at the API server, in the order in which they are needed.
const FILES: [&str; 12] = [
    "general/namespace.yaml",
    "service_account/service_account.yaml",
    "rbac/role.yaml",
    "rbac/role_binding.yaml",
    "metrics-server/role.yaml",
    "metrics-server/role_binding.yaml",
    "crd/bases/eventing.keda.sh_cloudeventsources.yaml",
    "crd/bases/eventing.keda.sh_clustercloudeventsources.yaml",
    "crd/bases/keda.sh_clustertriggerauthentications.yaml",
    "crd/bases/keda.sh_triggerauthentications.yaml",
    "crd/bases/keda.sh_scaledjobs.yaml",
    "crd/bases/keda.sh_scaledobjects.yaml",
];

/// A running KEDA. All `ScaledObject`s end with it.
#[derive(Debug)]
pub struct Keda {
    _operator: Process,
    _adapter: Process,
    _folder: TempDir,
}

impl Keda {
    /// Starts it, and waits until the autoscaler can ask it.
    pub async fn start(tenant: &Tenant) -> Self {
        let client = tenant.client();
        let files = go::keda_files().unwrap_or_else(|error| panic!("KEDA's files: {error:#}"));
        for file in FILES {
            objects::apply_file(&client, &files.join("config").join(file)).await;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let at = |name: &str| folder.path().join(name);
        let names = ["127.0.0.1", "localhost", &format!("{SERVICE}.{NAMESPACE}.svc")];
        let written = certificates::write_pair(folder.path(), &names);
        written.unwrap_or_else(|error| panic!("KEDA's certificates: {error:#}"));
        account::write_kubeconfig(&client, NAMESPACE, ACCOUNT, &at("kubeconfig")).await;

        let ports = Ports::take();
        let operator = Process::spawn(&mut ports.operator(folder.path()), &at("operator.log"));
        ports.until_healthy().await;
        let adapter = Process::spawn(&mut ports.adapter(folder.path()), &at("adapter.log"));
        let authority = std::fs::read(at("ca.crt")).expect("it has been written");
        objects::apply(&client, &service()).await;
        let api = api(ports.adapter, &authority);
        objects::apply(&client, &api).await;
        let keda = Self { _operator: operator, _adapter: adapter, _folder: folder };
        until("KEDA's adapter", PATIENCE, async || {
            objects::get(&client, &api).await.filter(is_available).map(drop)
        })
        .await;
        keda
    }
}

impl Drop for Keda {
    /// While it is there to let go of its objects, and so that no API is left that nobody serves: either would hold up the
    /// end of namespaces.
    fn drop(&mut self) {
        after_all("KEDA", async move {
            let client = node::client(Path::new(&kubeconfig("admin"))).await?;
            timeout(END, end_all(&client)).await.context("ScaledObjects stay")??;
            Api::<APIService>::all(client).delete(API, &DeleteParams::default()).await?;
            Ok(())
        });
    }
}

/// Deletes all `ScaledObject`s, and waits until they are gone.
async fn end_all(client: &Client) -> Result<()> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject"));
    let all = Api::<DynamicObject>::all_with(client.clone(), &kind);
    for object in all.list(&ListParams::default()).await? {
        let namespace = object.metadata.namespace.unwrap_or_default();
        let own = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind);
        own.delete(&object.metadata.name.unwrap_or_default(), &DeleteParams::default()).await?;
    }
    while !all.list(&ListParams::default()).await?.items.is_empty() {
        sleep(GLANCE).await;
    }
    Ok(())
}

/// A process of the node is no endpoint; a name is.
fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    })
}

/// As KEDA's own file has it, but for the port and the authority.
fn api(port: u16, authority: &[u8]) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API},
        "spec": {
            "service": {"name": SERVICE, "namespace": NAMESPACE, "port": port},
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "caBundle": k8s_openapi::ByteString(authority.to_vec()),
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    })
}

fn is_available(api: &DynamicObject) -> bool {
    let conditions = api.data["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Available" && one["status"] == "True")
}

/// Where its parts listen, on loopback.
struct Ports {
    /// The operator, for the adapter.
    values: u16,
    health: u16,
    metrics: u16,
    /// The adapter, for the API server.
    adapter: u16,
    adapter_metrics: u16,
}

impl Ports {
    fn take() -> Self {
        let take = || port::free().expect("a port is free");
        Self { values: take(), health: take(), metrics: take(), adapter: take(), adapter_metrics: take() }
    }

    /// How the operator is started, with what it needs in `folder`.
    fn operator(&self, folder: &Path) -> Command {
        let mut command = command(Program::KedaOperator, folder);
        command.arg("--cert-dir").arg(folder);
        for (name, port) in [
            ("metrics-service-bind-address", self.values),
            ("health-probe-bind-address", self.health),
            ("metrics-bind-address", self.metrics),
        ] {
            command.arg(format!("--{name}=127.0.0.1:{port}"));
        }
        command
    }

    /// The same of the adapter.
    fn adapter(&self, folder: &Path) -> Command {
        let mut command = command(Program::KedaAdapter, folder);
        let path = |name: &str| folder.join(name).display().to_string();
        let kubeconfig = path("kubeconfig");
        for (name, value) in [
            ("bind-address", "127.0.0.1"),
            ("secure-port", &self.adapter.to_string()),
            ("port", &self.adapter_metrics.to_string()),
            ("metrics-service-address", &format!("127.0.0.1:{}", self.values)),
            ("cert-dir", &path("")),
            ("client-ca-file", &path("ca.crt")),
            ("tls-cert-file", &path("tls.crt")),
            ("tls-private-key-file", &path("tls.key")),
            ("authentication-kubeconfig", &kubeconfig),
            ("authorization-kubeconfig", &kubeconfig),
            ("lister-kubeconfig", &kubeconfig),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        command
    }

    async fn until_healthy(&self) {
        let url = format!("http://127.0.0.1:{}/readyz", self.health);
        until("KEDA's operator", PATIENCE, async || {
            let answer = reqwest::get(&url).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }
}

fn command(program: Program, folder: &Path) -> Command {
    let built = go::built(program).unwrap_or_else(|error| panic!("{program:?}: {error:#}"));
    let mut command = Command::new(built);
    command.env("KUBECONFIG", folder.join("kubeconfig")).env("WATCH_NAMESPACE", "");
    command.env("POD_NAMESPACE", NAMESPACE).env("KEDA_CLUSTER_OBJECT_NAMESPACE", NAMESPACE);
    command
}
