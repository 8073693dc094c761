//! Follows Deployments and pods at the API server, and puts them on the board.
//!
//! While it does not answer, what is known stays: replicas are read on, and those that have gone don't answer.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use gpu_share::names::label;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};

use super::board::Board;
use super::fleet::{Deployment, Pod, function_of, pod_of};
use super::metrics::Metrics;

/// The API server, as far as somebody may look at it.
#[derive(Clone)]
pub(super) struct Cluster {
    /// How to reach it.
    pub(super) client: Client,
    /// The only namespace that is looked at, or all.
    pub(super) namespace: Option<String>,
}

impl Cluster {
    /// Follows Deployments, until dropped. All of them: that its pods have opted in says only the template.
    pub(super) async fn follow_deployments(self, board: Arc<Board>, metrics: Arc<Metrics>) {
        let api: Api<apps::Deployment> = self.api();
        let mut events = pin!(watcher(api, Config::default()).default_backoff());
        let (mut listed, mut up) = (HashSet::new(), Up::new("Deployments", metrics));
        while let Some(event) = events.next().await {
            match up.says(event) {
                Some(Event::Apply(deployment) | Event::InitApply(deployment)) => {
                    if let Some((name, known)) = Deployment::of(&deployment) {
                        listed.insert(name.clone());
                        board.put(name, known);
                    } else if let Some(name) = function_of(&deployment) {
                        board.remove(&name);
                    }
                }
                Some(Event::Delete(deployment)) => {
                    if let Some(name) = function_of(&deployment) {
                        board.remove(&name);
                    }
                }
                Some(Event::Init) => listed.clear(),
                Some(Event::InitDone) => board.deployments_are(&std::mem::take(&mut listed)),
                None => {}
            }
        }
    }

    /// Follows pods that have opted in, until dropped.
    pub(super) async fn follow_pods(self, board: Arc<Board>, metrics: Arc<Metrics>) {
        let api: Api<core::Pod> = self.api();
        let opted_in = Config::default().labels(&format!("{}=true", label::ENABLED));
        let mut events = pin!(watcher(api, opted_in).default_backoff());
        let (mut listed, mut up) = (HashSet::new(), Up::new("pods", metrics));
        while let Some(event) = events.next().await {
            match up.says(event) {
                Some(Event::Apply(pod) | Event::InitApply(pod)) => {
                    if let Some((name, known)) = pod_of(&pod).zip(Pod::of(&pod)) {
                        listed.insert(name.clone());
                        board.put_pod(name, known);
                    }
                }
                Some(Event::Delete(pod)) => {
                    if let Some(name) = pod_of(&pod) {
                        board.remove_pod(&name);
                    }
                }
                Some(Event::Init) => listed.clear(),
                Some(Event::InitDone) => board.pods_are(&std::mem::take(&mut listed)),
                None => {}
            }
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// Whether the API server shows objects of a kind. That it does not is said once, not at every try.
struct Up {
    kind: &'static str,
    metrics: Arc<Metrics>,
    is_failing: bool,
}

impl Up {
    fn new(kind: &'static str, metrics: Arc<Metrics>) -> Self {
        Self { kind, metrics, is_failing: false }
    }

    fn says<T>(&mut self, event: Result<Event<T>, watcher::Error>) -> Option<Event<T>> {
        // Said before each try, not after one that succeeded.
        if matches!(event, Ok(Event::Init)) {
            return event.ok();
        }
        match (&event, self.is_failing) {
            (Err(error), false) => {
                tracing::warn!(kind = self.kind, %error, "the API server does not show them; trying again");
            }
            (Ok(_), true) => tracing::info!(kind = self.kind, "the API server shows them again"),
            _ => {}
        }
        self.is_failing = event.is_err();
        self.metrics.api_server_shows(self.kind, event.is_ok());
        event.ok()
    }
}
