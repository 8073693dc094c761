//! The API server: pods' annotations come from there; events, grants and the node's label go there.
//!
//! Only metadata is watched, and only of this node's pods that have opted in. All of it may be away for any time: nothing
//! here is waited for by the kubelet for long, and what could not be shown is shown later.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use gpu_share::binding::Binding;
use gpu_share::names::{annotation, label};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::{Mutex, mpsc, watch};

use super::claims::PodName;
use crate::metrics::Metrics;

/// Longest time for one request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a request that failed.
const PAUSE: Duration = Duration::from_secs(5);
/// Who reports events.
const REPORTER: &str = "gpufn.dev/node";
/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// A pod's annotations.
pub(crate) type Annotations = BTreeMap<String, String>;

/// What the API server should show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The most units that one new container could have.
    pub(crate) max_free: usize,
    /// Of each pod: its grant in percent, and its GPU.
    pub(crate) grants: BTreeMap<PodName, Grant>,
}

/// What a pod has now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Quota in percent; for several containers `name=percent`, separated by commas.
    pub(crate) quota: String,
    /// UUID of the GPU, or several.
    pub(crate) gpu: String,
    /// Number of the row there, or several as those of `quota`.
    pub(crate) row: String,
}

impl Grant {
    /// What the pod of `parts`, each a name and a binding, has.
    pub(crate) fn of(parts: &[(&str, &Binding)]) -> Self {
        let percent = |binding: &Binding| format!("{}", (binding.grant.percent() * 10.0).round() / 10.0);
        let gpus: BTreeSet<_> = parts.iter().map(|(_, binding)| binding.gpu.0.as_str()).collect();
        let of = |say: &dyn Fn(&Binding) -> String| match parts {
            [(_, one)] => say(one),
            several => {
                let each: Vec<_> = several.iter().map(|(name, one)| format!("{name}={}", say(one))).collect();
                each.join(",")
            }
        };
        let (quota, row) = (of(&percent), of(&|binding| binding.row.to_string()));
        Self { quota, gpu: gpus.into_iter().collect::<Vec<_>>().join(","), row }
    }
}

/// Something that an operator must know about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) pod: PodName,
    /// One word for machines.
    pub(crate) reason: &'static str,
    /// One line for people.
    pub(crate) note: String,
}

/// Notices that wait for an API server; more are dropped.
const NOTICES: usize = 256;

/// Where notices go: at once to the log, and to whoever puts them beside their pods.
#[derive(Debug)]
pub(crate) struct Notices {
    to: mpsc::Sender<Notice>,
    metrics: Arc<Metrics>,
}

impl Notices {
    /// The way to the second.
    pub(crate) fn channel(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Notice>) {
        let (to, receiver) = mpsc::channel(NOTICES);
        (Self { to, metrics }, receiver)
    }

    /// Tells something about a pod.
    pub(crate) fn tell(&self, pod: &PodName, reason: &'static str, note: String) {
        tracing::warn!(namespace = pod.namespace, pod = pod.name, reason, note, "pod");
        self.metrics.front_end.event(reason);
        // Without an API server nobody reads them; the log has them.
        let _ = self.to.try_send(Notice { pod: pod.clone(), reason, note });
    }
}

/// Who is told of this node's pods.
pub(crate) trait Follower: Send + 'static {
    /// A pod's annotations are known, or changed.
    fn annotated(&mut self, pod: PodName, annotations: Annotations) -> impl Future<Output = ()> + Send;
    /// A pod is gone from the API server.
    fn forgotten(&mut self, pod: &PodName);
}

/// The API server, as this node's agent uses it.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    node: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The API server that the environment names (a service account's, or `KUBECONFIG`), for the node named `node`. It need
    /// not answer yet.
    pub(crate) async fn infer(node: String) -> Result<Self, kube::Error> {
        Ok(Self { client: Client::try_default().await?, node })
    }

    /// To ask for what only one front end asks for.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The node's name.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// A pod's annotations.
    pub(crate) async fn annotations(&self, pod: &PodName) -> Result<Annotations, String> {
        Ok(asked(&self.metadata(pod).await?))
    }

    async fn metadata(&self, pod: &PodName) -> Result<PartialObjectMeta<Pod>, String> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        in_time(pods.get_metadata(&pod.name)).await
    }

    /// Tells `follower` of this node's pods, until dropped.
    pub(crate) async fn follow(&self, follower: Arc<Mutex<impl Follower>>) {
        let pods = Api::<PartialObjectMeta<Pod>>::all(self.client.clone());
        let own = watcher::Config::default()
            .fields(&format!("spec.nodeName={}", self.node))
            .labels(&format!("{}=true", label::ENABLED));
        let mut events = pin!(watcher(pods, own).default_backoff());
        let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
        let mut failing = false;
        while let Some(event) = events.next().await {
            // Said once, not at every try.
            match (&event, failing) {
                (Err(error), false) => {
                    tracing::warn!(%error, "the API server does not show pods; trying again");
                }
                (Ok(_), true) => tracing::info!("the API server shows pods again"),
                _ => {}
            }
            failing = event.is_err();
            let Ok(event) = event else { continue };
            match event {
                watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                    let name = name(&pod);
                    known.insert(name.clone());
                    listed.insert(name.clone());
                    follower.lock().await.annotated(name, asked(&pod)).await;
                }
                watcher::Event::Delete(pod) => {
                    let name = name(&pod);
                    known.remove(&name);
                    follower.lock().await.forgotten(&name);
                }
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitDone => {
                    let mut follower = follower.lock().await;
                    known.difference(&listed).for_each(|pod| follower.forgotten(pod));
                    known.clone_from(&listed);
                }
            }
        }
    }

    /// Shows what is published and what is to be noticed, until dropped.
    pub(crate) async fn show(
        &self,
        mut published: watch::Receiver<Published>,
        mut notices: mpsc::Receiver<Notice>,
    ) {
        let mut shown = Shown::default();
        let mut is_shown = false;
        loop {
            let wanted = published.borrow_and_update().clone();
            if !is_shown {
                is_shown = self.show_all(&wanted, &mut shown).await;
            }
            tokio::select! {
                changed = published.changed() => match changed {
                    Ok(()) => is_shown = false,
                    Err(_) => return,
                },
                Some(notice) = notices.recv() => self.report(&notice).await,
                () = tokio::time::sleep(PAUSE), if !is_shown => {}
            }
        }
    }

    /// Whether all of it could be shown.
    async fn show_all(&self, wanted: &Published, shown: &mut Shown) -> bool {
        let mut all = true;
        if shown.max_free != Some(wanted.max_free) {
            let labels =
                json!({"metadata": {"labels": {label::MAX_FREE_UNITS: wanted.max_free.to_string()}}});
            let nodes = Api::<Node>::all(self.client.clone());
            let result =
                in_time(nodes.patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(labels)))
                    .await;
            shown.max_free = result.is_ok().then_some(wanted.max_free);
            all &= said(result, "the node's label is not written");
        }
        for (pod, grant) in &wanted.grants {
            if shown.grants.get(pod) != Some(grant) {
                let result = self.annotate(pod, grant).await;
                if result.is_ok() {
                    shown.grants.insert(pod.clone(), grant.clone());
                }
                all &= said(result, "a pod's grant is not written");
            }
        }
        shown.grants.retain(|pod, _| wanted.grants.contains_key(pod));
        all
    }

    async fn annotate(&self, pod: &PodName, grant: &Grant) -> Result<(), String> {
        let annotations = json!({
            annotation::GRANT: grant.quota, annotation::GPU: grant.gpu, annotation::ROW: grant.row,
        });
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let how = PatchParams::default();
        match tokio::time::timeout(PATIENCE, pods.patch_metadata(&pod.name, &how, &patch)).await {
            Err(_) => Err(format!("no answer in {PATIENCE:?}")),
            // Gone meanwhile: nothing is left to be written.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            Ok(result) => result.map(drop).map_err(|error| error.to_string()),
        }
    }

    /// Puts a notice beside the pod. One that can't be is in the log.
    async fn report(&self, notice: &Notice) {
        let reported = async {
            let pod = self.metadata(&notice.pod).await?;
            let events = Api::<Event>::namespaced(self.client.clone(), &notice.pod.namespace);
            in_time(events.create(&PostParams::default(), &self.event(notice, &pod))).await
        };
        said(reported.await, "an event is not written");
    }

    fn event(&self, notice: &Notice, pod: &PartialObjectMeta<Pod>) -> Event {
        let now = Timestamp::now();
        let regarding = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(notice.pod.name.clone()),
            namespace: Some(notice.pod.namespace.clone()),
            uid: pod.uid(),
            ..ObjectReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(format!("{}.{:x}", notice.pod.name, now.as_nanosecond())),
            namespace: Some(notice.pod.namespace.clone()),
            ..ObjectMeta::default()
        };
        Event {
            action: Some("Share".into()),
            event_time: Some(MicroTime(now)),
            metadata,
            note: Some(shortened(&notice.note)),
            reason: Some(notice.reason.into()),
            regarding: Some(regarding),
            reporting_controller: Some(REPORTER.into()),
            reporting_instance: Some(self.node.clone()),
            type_: Some("Warning".into()),
            ..Event::default()
        }
    }
}

/// What the API server has of what was published.
#[derive(Debug, Default)]
struct Shown {
    max_free: Option<usize>,
    grants: BTreeMap<PodName, Grant>,
}

pub(crate) async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    let answer = tokio::time::timeout(PATIENCE, request).await;
    answer.map_err(|_| format!("no answer in {PATIENCE:?}"))?.map_err(|error| error.to_string())
}

fn said<T>(result: Result<T, String>, what: &str) -> bool {
    result.inspect_err(|error| tracing::warn!(error, "{what}")).is_ok()
}

fn name(pod: &PartialObjectMeta<Pod>) -> PodName {
    PodName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() }
}

/// What somebody asks for, without what this agent wrote itself.
fn asked(pod: &PartialObjectMeta<Pod>) -> Annotations {
    const ASKED: [&str; 4] = [annotation::SM, annotation::QUOTA, annotation::QUOTA_LIMIT, annotation::MEMORY];
    let asked = pod.annotations().iter().filter(|(key, _)| ASKED.contains(&key.as_str()));
    asked.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn shortened(note: &str) -> String {
    let end = (0..=note.len().min(MAX_NOTE)).rev().find(|&end| note.is_char_boundary(end)).unwrap_or(0);
    note[..end].into()
}
