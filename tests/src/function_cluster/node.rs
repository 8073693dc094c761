//! The controllers and the node: as many pods as a Deployment wants, each a server on a loopback address of its own, and what
//! each has written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::{Key, Kind, Shared};
use crate::echo;

/// A label of functions' pods.
const FUNCTION: &str = "faas_function";
/// The first lines of a pod were written at this moment, each a second after the one before it.
const MORNING: &str = "2026-01-02T03:04:";

/// The node.
#[derive(Debug)]
pub(super) struct Node {
    /// The port of all pods.
    pub(super) port: u16,
    /// The part of loopback that its pods have.
    network: [u8; 2],
    /// Holds the port on the first address, so that nobody else takes the others.
    _first: TcpListener,
    next: AtomicU32,
    running: Mutex<BTreeMap<String, Pod>>,
}

/// A running pod.
#[derive(Debug)]
struct Pod {
    server: AbortHandle,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Node {
    pub(super) async fn start() -> Self {
        let random: u16 = rand::random();
        let network = [64 | (random.to_be_bytes()[0] & 63), random.to_be_bytes()[1]];
        let first = TcpListener::bind((Ipv4Addr::new(127, network[0], network[1], 1), 0)).await;
        let first = first.expect("a port is free");
        let port = first.local_addr().expect("a listener has an address").port();
        Self { port, network, _first: first, next: AtomicU32::new(2), running: Mutex::default() }
    }

    /// Runs a pod with these variables; its address.
    fn run(&self, pod: &str, variables: BTreeMap<String, String>) -> IpAddr {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let last = u8::try_from(number % 250).expect("it is less").saturating_add(2);
        let address = Ipv4Addr::new(127, self.network[0], self.network[1], last);
        let listener = std::net::TcpListener::bind((address, self.port)).expect("the address is its own");
        listener.set_nonblocking(true).expect("a socket can be told so");
        let listener = TcpListener::from_std(listener).expect("a socket can be used");
        let lines = Arc::new(Mutex::new(vec!["2026/01/02 03:04:00 Forking fprocess.".to_string()]));
        let said = Arc::clone(&lines);
        let router =
            Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let (variables, said) = (variables.clone(), Arc::clone(&said));
                async move {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {uri}"));
                    echo::answer(|name| variables.get(name).cloned(), method, uri, headers, body).await
                }
            });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        let server = server.abort_handle();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(pod.into(), Pod { server, lines });
        address.into()
    }

    fn end(&self, pod: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = running.remove(pod) {
            pod.server.abort();
        }
    }

    /// What a running pod has written, with the time before each line.
    pub(super) fn log(&self, pod: &str) -> Option<Vec<String>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = running.get(pod)?.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stamped = lines.iter().enumerate();
        Some(stamped.map(|(second, line)| format!("{MORNING}{:02}.5Z {line}", second % 60)).collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().for_each(|pod| pod.server.abort());
    }
}

impl Shared {
    /// Names of a function's pods.
    pub(super) fn pods(&self, namespace: &str, function: &str) -> Vec<String> {
        let pods = self.list(Kind::Pods, Some(namespace), &format!("{FUNCTION}={function}"));
        pods.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_string())).collect()
    }

    /// Does for all Deployments what controllers and the node do.
    pub(super) fn run_all(&self) {
        for deployment in self.list(Kind::Deployments, None, FUNCTION) {
            let text = |field: &str| deployment["metadata"][field].as_str().unwrap_or_default().to_string();
            self.run(&(Kind::Deployments, text("namespace"), text("name")));
        }
    }

    /// As many pods as a Deployment wants, of its present template, and its status.
    pub(super) fn run(&self, key: &Key) {
        let Some(mut deployment) = self.get(key) else { return };
        let (namespace, name) = (key.1.as_str(), key.2.as_str());
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).expect("a number of pods");
        let template = deployment["spec"]["template"].clone();
        for pod in self.list(Kind::Pods, Some(namespace), &format!("{FUNCTION}={name}")) {
            let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default().to_string();
            let is_surplus = self.pods(namespace, name).len() > wanted;
            if is_surplus || pod["metadata"]["template"] != template {
                self.end_pod(namespace, &pod_name);
            }
        }
        while self.pods(namespace, name).len() < wanted {
            self.make_pod(namespace, name, &template);
        }
        let is_ready = self.is_ready.load(Ordering::SeqCst);
        if is_ready {
            self.pods(namespace, name).iter().for_each(|pod| self.start_pod(namespace, pod));
        }
        let ready = self.list(Kind::Pods, Some(namespace), &format!("{FUNCTION}={name}"));
        let ready = ready.iter().filter(|pod| !pod["status"]["podIP"].is_null()).count();
        deployment["status"] =
            json!({"replicas": wanted, "readyReplicas": ready, "availableReplicas": ready});
        self.put(key, deployment);
    }

    fn make_pod(&self, namespace: &str, function: &str, template: &Value) {
        let number = self.node.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{function}-6b8c9-{number}");
        let mut metadata = template["metadata"].clone();
        // Only to know it by.
        metadata["template"] = template.clone();
        let pod = json!({"metadata": metadata, "spec": template["spec"], "status": {}});
        self.put(&(Kind::Pods, namespace.into(), name), pod);
    }

    fn start_pod(&self, namespace: &str, name: &str) {
        let key = (Kind::Pods, namespace.to_string(), name.to_string());
        let Some(mut pod) = self.get(&key) else { return };
        if !pod["status"]["podIP"].is_null() {
            return;
        }
        let env = pod["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let variables = env.iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect();
        let address = self.node.run(name, variables);
        pod["status"] = json!({"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]});
        self.put(&key, pod);
    }

    fn end_pod(&self, namespace: &str, name: &str) {
        self.node.end(name);
        self.remove(&(Kind::Pods, namespace.into(), name.into()));
    }

    /// All pods of a function end, as its Deployment is no more.
    pub(super) fn end_all(&self, namespace: &str, function: &str) {
        self.pods(namespace, function).iter().for_each(|pod| self.end_pod(namespace, pod));
    }
}
