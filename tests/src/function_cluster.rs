//! A cluster as a provider of functions meets it: an API server that keeps Deployments, Services, Secrets, namespaces and pods,
//! and a node whose pods are servers on loopback addresses that answer as `crate::echo` does.
//!
//! Objects are applied, patched, deleted, listed and watched as by a real API server, as far as a provider does that; what is
//! asked beyond it is refused. It was shaped after a real one (Kubernetes 1.37).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::apiserver::changes::Changes;
use node::Node;

mod node;
mod routes;

/// Namespaces that are there from the start.
const NAMESPACES: [(&str, Option<&str>); 3] =
    [("openfaas-fn", Some("1")), ("staging-fn", Some("1")), ("kube-system", None)];

/// A cluster; its end is the end of this.
#[derive(Debug)]
pub struct FunctionCluster {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    content: Mutex<Content>,
    changes: [Changes; 5],
    node: Node,
    /// Pods become ready.
    is_ready: AtomicBool,
    /// Requests of a kind that were answered.
    scale_writes: AtomicU64,
}

/// A kind of objects, by the plural in its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployments,
    Services,
    Secrets,
    Namespaces,
    Pods,
}

/// Kind, namespace and name.
type Key = (Kind, String, String);

#[derive(Debug, Default)]
struct Content {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// What was applied last, by which fields that are applied no more are taken away.
    applied: BTreeMap<Key, Value>,
}

impl Kind {
    fn of(plural: &str) -> Option<Self> {
        Some(match plural {
            "deployments" => Self::Deployments,
            "services" => Self::Services,
            "secrets" => Self::Secrets,
            "namespaces" => Self::Namespaces,
            "pods" => Self::Pods,
            _ => return None,
        })
    }

    fn group(self) -> &'static str {
        if self == Self::Deployments { "apps/v1" } else { "v1" }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Deployments => "Deployment",
            Self::Services => "Service",
            Self::Secrets => "Secret",
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
        }
    }
}

impl FunctionCluster {
    /// One with the namespaces `openfaas-fn`, `staging-fn` and `kube-system`, of which the last has no functions.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            content: Mutex::default(),
            changes: Default::default(),
            node: Node::start().await,
            is_ready: AtomicBool::new(true),
            scale_writes: AtomicU64::new(0),
        });
        for (name, mark) in NAMESPACES {
            let mut metadata = json!({"name": name, "labels": {"kubernetes.io/metadata.name": name}});
            if let Some(mark) = mark {
                metadata["labels"]["openfaas"] = json!(mark);
            }
            shared.put(&(Kind::Namespaces, String::new(), name.into()), json!({"metadata": metadata}));
        }
        let router = routes::router(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, shared, server }
    }

    /// Writes a kubeconfig that names it.
    pub fn write_kubeconfig(&self, path: &Path) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "provider", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "provider"}}],
            "current-context": "fake",
        });
        std::fs::write(path, config.to_string()).expect("a kubeconfig can be written");
    }

    /// The port on which all its pods listen.
    pub fn port(&self) -> u16 {
        self.shared.node.port
    }

    /// An object as it is now; `kind` is the plural of its path.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = Kind::of(kind).expect("a kind that it knows");
        self.shared.content().objects.get(&(kind, namespace.into(), name.into())).cloned()
    }

    /// Puts an object there as somebody else would.
    pub fn put(&self, kind: &str, object: &Value) {
        let kind = Kind::of(kind).expect("a kind that it knows");
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_string();
        self.shared.put(&(kind, text("namespace"), text("name")), object.clone());
    }

    /// Whether pods become ready, from now on and those that wait.
    pub fn let_start(&self, may: bool) {
        self.shared.is_ready.store(may, Ordering::SeqCst);
        if may {
            self.shared.run_all();
        }
    }

    /// How often somebody changed a number of replicas.
    pub fn scale_writes(&self) -> u64 {
        self.shared.scale_writes.load(Ordering::SeqCst)
    }

    /// Names of a function's pods.
    pub fn pods(&self, namespace: &str, function: &str) -> Vec<String> {
        self.shared.pods(namespace, function)
    }
}

impl Drop for FunctionCluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an object as it is to be, and tells who watches.
    fn put(&self, key: &Key, mut object: Value) -> Value {
        let mut content = self.content();
        content.version += 1;
        let before = content.objects.get(key).cloned();
        object["apiVersion"] = json!(key.0.group());
        object["kind"] = json!(key.0.name());
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.2);
        if !key.1.is_empty() {
            metadata["namespace"] = json!(key.1);
        }
        metadata["resourceVersion"] = json!(content.version.to_string());
        let kept = |field: &str, fresh: Value| {
            before.as_ref().map_or(fresh, |before| before["metadata"][field].clone())
        };
        metadata["uid"] = kept("uid", json!(format!("uid-{}", content.version)));
        metadata["creationTimestamp"] = kept("creationTimestamp", json!("2026-01-02T03:04:05Z"));
        let is_same = before.as_ref().is_some_and(|before| before["spec"] == object["spec"]);
        let generation =
            before.as_ref().and_then(|before| before["metadata"]["generation"].as_u64()).unwrap_or(0);
        object["metadata"]["generation"] = json!(if is_same { generation } else { generation + 1 });
        let change = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.changes[key.0 as usize].add(change, &object);
        content.objects.insert(key.clone(), object.clone());
        object
    }

    fn remove(&self, key: &Key) -> Option<Value> {
        let mut content = self.content();
        let mut object = content.objects.remove(key)?;
        content.applied.remove(key);
        content.version += 1;
        object["metadata"]["resourceVersion"] = json!(content.version.to_string());
        self.changes[key.0 as usize].add("DELETED", &object);
        Some(object)
    }

    fn get(&self, key: &Key) -> Option<Value> {
        self.content().objects.get(key).cloned()
    }

    /// Objects of a kind, in a namespace or in all, that have a label.
    fn list(&self, kind: Kind, namespace: Option<&str>, selector: &str) -> Vec<Value> {
        let content = self.content();
        let here = content
            .objects
            .iter()
            .filter(|(key, _)| key.0 == kind && namespace.is_none_or(|namespace| key.1 == namespace));
        here.map(|(_, object)| object).filter(|object| is_selected(object, selector)).cloned().collect()
    }
}

/// Whether an object has the label that a selector names, with its value if it names one.
fn is_selected(object: &Value, selector: &str) -> bool {
    let labels = &object["metadata"]["labels"];
    match selector.split_once('=') {
        _ if selector.is_empty() => true,
        Some((name, value)) => labels[name] == value,
        None => !labels[selector].is_null(),
    }
}
