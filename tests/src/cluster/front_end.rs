//! A front end before the functions of a cluster, as the scaler's README wants one: each request goes to the replica that has
//! the fewest, and while there is none it is held, which the scaler is told.
//!
//! It knows replicas as a Service does, by what the API server says of pods, and like one it does not try again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::Config;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use super::gpu_node::PORT;
use super::tenant::{Tenant, address, is_ready};
use crate::load::Target;

/// Time between two looks for a first replica.
const GLANCE: Duration = Duration::from_millis(20);
/// How often it says what it holds: what is older than ten seconds counts no more.
const REPEAT: Duration = Duration::from_secs(2);

/// The label by which a `ReplicaSet` tells its pods from others of its Deployment, and which ends its name.
const HASH: &str = "pod-template-hash";
/// The port of the proxy that Knative has before a function.
const QUEUE: &str = "queue-port";

/// The front end of one namespace; a function is called by its Deployment's name. It ends with the test's runtime.
#[derive(Clone)]
pub struct FrontEnd(Arc<Shared>);

struct Shared {
    namespace: String,
    pods: Store<Pod>,
    client: reqwest::Client,
    /// Where the scaler listens for HTTP.
    scaler: String,
    /// Requests that replicas have, by the pods' names.
    busy: Mutex<HashMap<String, usize>>,
    /// Requests that wait for a first replica, by function.
    held: Mutex<BTreeMap<String, u32>>,
    changed: Notify,
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEnd").field("held", &self.0.held).finish_non_exhaustive()
    }
}

impl FrontEnd {
    /// Before all functions of a tenant. `scaler` is the URL of the scaler's HTTP.
    pub async fn start(tenant: &Tenant, scaler: &str) -> Self {
        let (pods, writer) = reflector::store();
        let watched = watcher(Api::<Pod>::namespaced(tenant.client(), tenant.namespace()), Config::default());
        let events = reflector::reflector(writer, watched.default_backoff());
        tokio::spawn(async move {
            let mut events = pin!(events);
            // While the API server does not answer, what is known stays.
            while events.next().await.is_some() {}
        });
        pods.wait_until_ready().await.expect("the reflector runs");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client can be made");
        let front_end = Self(Arc::new(Shared {
            namespace: tenant.namespace().into(),
            pods,
            client,
            scaler: scaler.into(),
            busy: Mutex::default(),
            held: Mutex::default(),
            changed: Notify::new(),
        }));
        tokio::spawn(Arc::clone(&front_end.0).tell());
        front_end
    }
}

impl Target for FrontEnd {
    async fn invoke(&self, function: &str) -> reqwest::Result<u16> {
        let (replica, address) = self.0.replica(function).await;
        let _busy = Counted::new(&self.0, &replica);
        let answer = self.0.client.post(format!("http://{address}/")).send().await?;
        let status = answer.status().as_u16();
        answer.bytes().await?;
        Ok(status)
    }
}

impl Shared {
    /// The replica of a function that has the fewest requests; waits for one if there is none.
    async fn replica(&self, function: &str) -> (String, String) {
        if let Some(found) = self.idlest(function) {
            return found;
        }
        let _held = Held::new(self, function);
        loop {
            if let Some(found) = self.idlest(function) {
                return found;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    fn idlest(&self, function: &str) -> Option<(String, String)> {
        let busy = lock(&self.busy);
        let serves =
            |pod: &Pod| is_of(pod, function) && pod.metadata.deletion_timestamp.is_none() && is_ready(pod);
        let pods = self.pods.state().into_iter().filter(|pod| serves(pod));
        let found = pods.min_by_key(|pod| (busy.get(&pod.name_any()).copied(), pod.name_any()))?;
        Some((found.name_any(), format!("{}:{}", address(&found)?, port(&found))))
    }

    /// Tells the scaler what is held, at once and then every now and then. One that is not there is told later.
    async fn tell(self: Arc<Self>) {
        let mut told = BTreeMap::new();
        loop {
            let held = lock(&self.held).clone();
            for (function, &count) in &held {
                if count > 0 || told.get(function) != Some(&count) {
                    let url = format!("{}/v1/functions/{}/{function}/held", self.scaler, self.namespace);
                    let _ = self.client.put(url).json(&json!({"held": count})).send().await;
                }
            }
            told = held;
            let _ = tokio::time::timeout(REPEAT, self.changed.notified()).await;
        }
    }
}

/// Whether a Deployment has made a pod.
fn is_of(pod: &Pod, deployment: &str) -> bool {
    let sets = pod.owner_references().iter().filter(|owner| owner.kind == "ReplicaSet");
    let hash = pod.labels().get(HASH).map(String::as_str).unwrap_or_default();
    sets.into_iter()
        .any(|set| set.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')) == Some(deployment))
}

/// Where a pod takes requests.
fn port(pod: &Pod) -> i32 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.find(|port| port.name.as_deref() == Some(QUEUE)).map_or(PORT, |port| port.container_port)
}

/// A request that a replica has.
struct Counted<'a>(&'a Shared, &'a str);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared, replica: &'a str) -> Self {
        *lock(&shared.busy).entry(replica.into()).or_default() += 1;
        Self(shared, replica)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *lock(&self.0.busy).entry(self.1.into()).or_default() -= 1;
    }
}

/// A request that waits for a first replica.
struct Held<'a>(&'a Shared, &'a str);

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, function: &'a str) -> Self {
        *lock(&shared.held).entry(function.into()).or_default() += 1;
        shared.changed.notify_one();
        Self(shared, function)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *lock(&self.0.held).entry(self.1.into()).or_default() -= 1;
        self.0.changed.notify_one();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
