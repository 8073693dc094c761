//! Follows Deployments and pods at the API server, and puts them on the board.
//!
//! While it does not answer, what is known stays: replicas are read on, and those that have gone don't answer.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use gpu_share::names::label;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};

use super::board::{Board, Model};
use super::fleet::{Deployment, FunctionName, Pod, function_of, pod_of};
use super::metrics::Metrics;
use super::owner;
use crate::control::owners::Kind;
use crate::kind::GPUFunctionProfile;

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
                Some(Event::Apply(pod) | Event::InitApply(pod)) => match (pod_of(&pod), Pod::of(&pod)) {
                    (Some(name), Some(known)) => {
                        listed.insert(name.clone());
                        board.put_pod(name, known);
                    }
                    // It has ended.
                    (Some(name), None) => board.remove_pod(&name),
                    (None, _) => {}
                },
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

    /// Follows those objects of a kind that scale Deployments, until dropped. Where the API server knows no such kind, there
    /// are none.
    pub(super) async fn follow_owners(self, kind: Kind, board: Arc<Board>, metrics: Arc<Metrics>) {
        let resource = owner::resource(kind);
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let mut events = pin!(watcher(api, Config::default()).default_backoff());
        let (mut listed, mut up) = (HashMap::new(), Up::new(owner::plural(kind), metrics));
        while let Some(event) = events.next().await {
            if event.as_ref().is_err_and(is_unknown_kind) {
                board.owners_are(kind, HashMap::new());
                continue;
            }
            match up.says(event) {
                Some(Event::Apply(object)) => match (owner::name(&object), owner::of(kind, &object)) {
                    (Some(name), Some(owned)) => board.put_owner(kind, name, owned),
                    (Some(name), None) => board.remove_owner(kind, &name),
                    (None, _) => {}
                },
                Some(Event::InitApply(object)) => {
                    listed.extend(owner::name(&object).zip(owner::of(kind, &object)));
                }
                Some(Event::Delete(object)) => {
                    if let Some(name) = owner::name(&object) {
                        board.remove_owner(kind, &name);
                    }
                }
                Some(Event::Init) => listed.clear(),
                Some(Event::InitDone) => board.owners_are(kind, std::mem::take(&mut listed)),
                None => {}
            }
        }
    }

    /// Follows profiles of functions, until dropped. Where the API server knows no such kind, there are none.
    pub(super) async fn follow_profiles(self, board: Arc<Board>, metrics: Arc<Metrics>) {
        let api: Api<GPUFunctionProfile> = self.api();
        let name = |profile: &GPUFunctionProfile| {
            let (namespace, name) = (profile.metadata.namespace.clone()?, profile.metadata.name.clone()?);
            Some(FunctionName { namespace, name })
        };
        let read = |profile: &GPUFunctionProfile| {
            let name = name(profile)?;
            let model = Model::of(&name, profile, &board.settings().profiles);
            Some((name, model))
        };
        let mut events = pin!(watcher(api, Config::default()).default_backoff());
        let (mut listed, mut up) = (HashMap::new(), Up::new("gpufunctionprofiles", metrics));
        while let Some(event) = events.next().await {
            if event.as_ref().is_err_and(is_unknown_kind) {
                continue;
            }
            match up.says(event) {
                Some(Event::Apply(profile)) => {
                    if let Some((name, model)) = read(&profile) {
                        board.put_model(name, &model);
                    }
                }
                Some(Event::InitApply(profile)) => listed.extend(read(&profile)),
                Some(Event::Delete(profile)) => {
                    if let Some(name) = name(&profile) {
                        board.remove_model(&name);
                    }
                }
                Some(Event::Init) => listed.clear(),
                Some(Event::InitDone) => board.models_are(std::mem::take(&mut listed)),
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

/// Whether the API server has no such kind: it is not installed.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
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
