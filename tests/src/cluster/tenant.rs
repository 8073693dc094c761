//! What a test has of a cluster: a namespace of its own, whose pods it creates and looks at. It must run on the node.

use std::fmt::{self, Write as _};
use std::mem;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::components::{Component, kubeconfig};
use super::control::{self, Request};
use super::image::Image;
use super::{NODE, at, node};
use crate::wait::until;

/// Longest time until a pod is what a test waits for.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time between two looks at whether pods are gone.
const GLANCE: Duration = Duration::from_millis(200);

/// Lines of a pod's log that are shown when a test fails.
const TAIL: i64 = 40;

/// A namespace in the cluster. It is deleted with this.
pub struct Tenant {
    name: String,
    client: Client,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tenant {
    /// A new namespace, in which pods can be created.
    pub async fn new() -> Self {
        let kubeconfig = kubeconfig("admin");
        assert!(
            Path::new(&kubeconfig).is_file(),
            "this runs on a cluster's node only: `make e2e`, or `cluster exec`"
        );
        let client = node::client(Path::new(&kubeconfig)).await.expect("the node's own kubeconfig is right");
        let wanted = serde_json::from_value(json!({"metadata": {"generateName": "test-"}}));
        let created = Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &wanted.expect("a namespace"))
            .await
            .unwrap_or_else(|error| panic!("creating a namespace: {error}"));
        let tenant = Self { name: created.metadata.name.unwrap_or_default(), client };
        let accounts: Api<ServiceAccount> = Api::namespaced(tenant.client(), &tenant.name);
        until("the default service account", PATIENCE, async || accounts.get("default").await.ok()).await;
        tenant
    }

    /// For what this has no function of.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// The node.
    pub async fn node(&self) -> Node {
        let node = Api::all(self.client()).get(NODE).await;
        node.unwrap_or_else(|error| panic!("the node: {error}"))
    }

    /// Creates a pod.
    pub async fn create(&self, pod: &Pod) {
        let created = self.pods().create(&PostParams::default(), pod).await;
        created.unwrap_or_else(|error| panic!("creating {:?}: {error}", pod.metadata.name));
    }

    /// Deletes a pod, and waits until it is gone.
    pub async fn delete(&self, name: &str) {
        let deleted = self.pods().delete(name, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("deleting {name}: {error}"));
        until(&format!("the end of {name}"), PATIENCE, async || {
            self.pods().get_opt(name).await.is_ok_and(|pod| pod.is_none()).then_some(())
        })
        .await;
    }

    /// A pod as it is now.
    pub async fn pod(&self, name: &str) -> Pod {
        self.pods().get(name).await.unwrap_or_else(|error| panic!("pod {name}: {error}"))
    }

    /// Waits until `is_it` says that the pod is what was waited for. Where it doesn't become that, the test fails with what
    /// the cluster says of it.
    pub async fn until(&self, name: &str, what: &str, is_it: impl Fn(&Pod) -> bool) -> Pod {
        let look = until(what, PATIENCE, async || Some(self.pod(name).await).filter(&is_it));
        tokio::select! {
            // The description comes just before the time is up.
            biased;
            pod = look => pod,
            () = tokio::time::sleep(PATIENCE.saturating_sub(Duration::from_secs(1))) => {
                panic!("{name} is not {what}:\n{}", self.describe(name).await)
            }
        }
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, name: &str) -> Pod {
        self.until(name, "ready", is_ready).await
    }

    /// Waits until a pod has done its work, and gives what it printed.
    pub async fn succeeded(&self, name: &str) -> String {
        self.until(name, "done", |pod| phase(pod) == "Succeeded").await;
        self.logs(name).await
    }

    /// What a pod printed so far.
    pub async fn logs(&self, name: &str) -> String {
        let logs = self.pods().logs(name, &LogParams::default()).await;
        logs.unwrap_or_else(|error| panic!("logs of {name}: {error}"))
    }

    /// The pods of all namespaces.
    pub async fn pods_of_all(&self) -> Vec<Pod> {
        let pods = Api::<Pod>::all(self.client()).list(&ListParams::default()).await;
        pods.unwrap_or_else(|error| panic!("all pods: {error}")).items
    }

    /// What the cluster has to say of a pod.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = Api::<Event>::namespaced(self.client(), &self.name).list(&of_pod).await;
        let events = events.unwrap_or_else(|error| panic!("events of {name}: {error}"));
        let text = |event: Event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        };
        events.items.into_iter().map(text).collect()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(), &self.name)
    }

    async fn describe(&self, name: &str) -> String {
        let status = serde_json::to_string_pretty(&self.pod(name).await.status).unwrap_or_default();
        // A pod whose container never ran has none.
        let logs =
            self.pods().logs(name, &LogParams { tail_lines: Some(TAIL), ..LogParams::default() }).await;
        let lines = self.events(name).await.into_iter().chain(logs.ok());
        lines.fold(status, |mut text, line| {
            let _ = write!(text, "\n{line}");
            text
        })
    }
}

impl Drop for Tenant {
    /// Deletes it, and waits until its pods are gone: a claim is given back only while its driver lives, which a test ends next.
    fn drop(&mut self) {
        let name = self.name.clone();
        after_all(&format!("namespace {name}"), async move {
            let client = node::client(Path::new(&kubeconfig("admin"))).await?;
            Api::<Namespace>::all(client.clone()).delete(&name, &DeleteParams::default()).await?;
            let pods = Api::<Pod>::namespaced(client, &name);
            let are_gone = async || -> Result<()> {
                while !pods.list(&ListParams::default()).await?.items.is_empty() {
                    sleep(GLANCE).await;
                }
                Ok(())
            };
            timeout(PATIENCE, are_gone()).await.context("its pods stay")?
        });
    }
}

/// A component of the cluster that a test has killed. It is started again with [`Outage::end`], or when the test fails.
#[derive(Debug)]
#[must_use]
pub struct Outage(Component);

impl Outage {
    /// Kills a component, as a crash would.
    pub async fn begin(component: Component) -> Self {
        ask(Request::Kill(component)).await.unwrap_or_else(|error| panic!("{}: {error:#}", component.name()));
        Self(component)
    }

    /// Starts it again.
    pub async fn end(self) {
        let component = self.0;
        mem::forget(self);
        ask(Request::Start(component))
            .await
            .unwrap_or_else(|error| panic!("{}: {error:#}", component.name()));
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let component = self.0;
        after_all(component.name(), async move { ask(Request::Start(component)).await });
    }
}

/// Asks the supervisor of the node that this process is on.
async fn ask(request: Request) -> Result<()> {
    control::ask(&at(control::SOCKET), request).await.map(drop)
}

/// Does what must be done also when a test fails. Its own runtime can't any more.
pub(super) fn after_all(what: &str, work: impl Future<Output = Result<()>> + Send + 'static) {
    let work = thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
    });
    if let Ok(Err(error)) = work.join() {
        eprintln!("{what}: {error:#}");
    }
}

/// Gives an image to the node.
pub fn load(image: &Image) {
    image.load(Path::new("ctr")).unwrap_or_else(|error| panic!("{error:#}"));
}

/// A pod of one container, which runs once and is gone a second after it is deleted; `spec` is merged into its own.
pub fn pod(name: &str, image: &Image, container: &Value) -> Pod {
    let mut main = json!({"name": "main", "image": image.name(), "imagePullPolicy": "Never"});
    for (key, value) in container.as_object().into_iter().flatten() {
        main[key] = value.clone();
    }
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [main]});
    let pod = json!({"metadata": {"name": name}, "spec": spec});
    serde_json::from_value(pod).unwrap_or_else(|error| panic!("pod {name}: {error}"))
}

/// `Pending`, `Running`, `Succeeded` or `Failed`.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether it takes requests.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A pod's address, once it has one.
pub fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}
