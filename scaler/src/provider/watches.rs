//! Follows Deployments, pods and namespaces of functions at the API server.
//!
//! While it does not answer, what is known stays: requests go on to the replicas that there were.

use std::collections::{BTreeSet, HashSet};
use std::pin::pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Config, Error, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};

use super::functions::{Functions, Kind, pod_of};
use super::metrics::Metrics;
use super::{FUNCTION, Settings, status};

/// What is followed, and by whom.
#[derive(Clone)]
pub(super) struct Watches {
    pub(super) client: Client,
    pub(super) settings: Arc<Settings>,
    pub(super) functions: Arc<Functions>,
    pub(super) metrics: Arc<Metrics>,
}

impl Watches {
    /// Follows Deployments of functions, until dropped.
    pub(super) async fn follow_deployments(self) {
        let events = watcher(self.api::<Deployment>(), Config::default().labels(FUNCTION));
        let mut listed = HashSet::new();
        self.follow("deployments", events, |event| match event {
            Event::Apply(deployment) | Event::InitApply(deployment) => {
                listed.extend(status::id(&deployment));
                self.functions.put(&deployment);
            }
            Event::Delete(deployment) => self.functions.remove(&deployment),
            Event::Init => listed.clear(),
            Event::InitDone => self.functions.deployments_are(&std::mem::take(&mut listed)),
        })
        .await;
    }

    /// Follows pods of functions, until dropped.
    pub(super) async fn follow_pods(self) {
        let events = watcher(self.api::<Pod>(), Config::default().labels(FUNCTION));
        let mut listed = HashSet::new();
        self.follow("pods", events, |event| match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                listed.extend(pod_of(&pod));
                self.functions.put_pod(&pod);
            }
            Event::Delete(pod) => {
                if let Some((id, name)) = pod_of(&pod) {
                    self.functions.remove_pod(&id, &name);
                }
            }
            Event::Init => listed.clear(),
            Event::InitDone => self.functions.pods_are(&std::mem::take(&mut listed)),
        })
        .await;
    }

    /// Follows namespaces that have functions, until dropped.
    pub(super) async fn follow_namespaces(self) {
        if self.settings.is_only {
            return self.functions.listed(Kind::Namespaces);
        }
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let events = watcher(api, Config::default().labels("openfaas=1"));
        let mut listed = BTreeSet::new();
        self.follow("namespaces", events, |event| match event {
            Event::Apply(one) | Event::InitApply(one) if one.metadata.deletion_timestamp.is_none() => {
                listed.insert(one.name_any());
                self.functions.put_namespace(&one.name_any());
            }
            Event::Apply(one) | Event::InitApply(one) | Event::Delete(one) => {
                self.functions.remove_namespace(&one.name_any());
            }
            Event::Init => listed.clear(),
            Event::InitDone => self.functions.namespaces_are(std::mem::take(&mut listed)),
        })
        .await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if self.settings.is_only {
            Api::namespaced(self.client.clone(), &self.settings.namespace)
        } else {
            Api::all(self.client.clone())
        }
    }

    /// Passes events on. That the API server does not answer is said once, not at every try.
    async fn follow<T: Send + 'static>(
        &self,
        kind: &'static str,
        events: impl Stream<Item = Result<Event<T>, Error>> + Send,
        mut apply: impl FnMut(Event<T>),
    ) {
        let mut events = pin!(events.default_backoff());
        let mut is_failing = false;
        while let Some(event) = events.next().await {
            match event {
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(kind, %error, "the API server does not show them; trying again");
                    }
                    is_failing = true;
                    self.metrics.api_server_shows(kind, false);
                }
                // Said before each try, not after one that succeeded.
                Ok(Event::Init) => apply(Event::Init),
                Ok(event) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(kind, "the API server shows them again");
                    }
                    self.metrics.api_server_shows(kind, true);
                    apply(event);
                }
            }
        }
    }
}
