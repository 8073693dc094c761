//! All functions of this machine, and what every part of `up` needs to act on them.
//!
//! Deploying is checked first and carried out after: a refused deployment changes nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::protocol::NodeStatus;
use gpu_share::units::{Bytes, Nanos};
use scaler::policy::Policy;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use super::decisions::Decisions;
use super::function::Function;
use super::lifecycle;
use super::logbook::{LogBook, timestamp};
use super::metrics::Metrics;
use super::node::Node;
use super::replica::Replica;
use super::runtime::Runtime;
use super::spec::{Spec, Surroundings};
use super::store::{Kept, Store};
use crate::view::DecisionRecord;
use openfaas::calls::{self, HttpClient};
use openfaas::names::FunctionId;
use openfaas::shapes::FunctionDeployment;

/// Why a function is not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlatformError {
    #[error("unable to find function {0}")]
    Missing(FunctionId),
    #[error("function {0} already exists")]
    Exists(FunctionId),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("failed to keep the deployment: {0}")]
    Io(#[from] std::io::Error),
}

/// What `up` consists of.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) clock: Clock,
    pub(crate) node: Node,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) policy: Brain,
    pub(crate) profiles: Profiles,
    /// Π of the node.
    pub(crate) window: Nanos,
    /// Longest time that a request is held.
    pub(crate) hold: Duration,
    pub(crate) store: Store,
    pub(crate) decisions: Decisions,
    pub(crate) metrics: Metrics,
    pub(crate) client: HttpClient,
    pub(crate) tasks: TaskTracker,
    /// `up` is ending.
    pub(crate) shutdown: CancellationToken,
    functions: RwLock<Functions>,
    /// What the node last said.
    status: RwLock<Option<Arc<NodeStatus>>>,
    generations: AtomicU64,
    deploying: Mutex<()>,
}

/// Functions by namespace, then name.
type Functions = HashMap<String, HashMap<String, Arc<Function>>>;

/// The policy; decisions are made one at a time.
pub(crate) struct Brain(Mutex<Box<dyn Policy>>);

impl core::fmt::Debug for Brain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Brain").field(&self.lock().name()).finish()
    }
}

impl Brain {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn Policy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a platform is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) node: Node,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) store: Store,
    pub(crate) profiles: Profiles,
    pub(crate) window: Nanos,
    pub(crate) hold: Duration,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Platform {
    /// A platform without functions.
    pub(crate) fn new(parts: Parts, policy: Box<dyn Policy>) -> anyhow::Result<Self> {
        Ok(Self {
            clock: Clock::start(),
            node: parts.node,
            runtime: parts.runtime,
            policy: Brain(Mutex::new(policy)),
            profiles: parts.profiles,
            window: parts.window,
            hold: parts.hold,
            store: parts.store,
            decisions: Decisions::default(),
            metrics: Metrics::new()?,
            client: calls::client(),
            tasks: parts.tasks,
            shutdown: parts.shutdown,
            functions: RwLock::default(),
            status: RwLock::default(),
            generations: AtomicU64::new(1),
            deploying: Mutex::default(),
        })
    }

    /// A new function.
    pub(crate) fn create(self: &Arc<Self>, deployment: FunctionDeployment) -> Result<(), PlatformError> {
        let _one = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        let spec = self.check(deployment, timestamp(OffsetDateTime::now_utc()))?;
        if self.function(&spec.id.namespace, &spec.id.name).is_some() {
            return Err(PlatformError::Exists(spec.id));
        }
        let replicas = spec.first_replicas();
        self.keep(&spec, replicas)?;
        self.add(spec, replicas);
        Ok(())
    }

    /// Another deployment of a function that exists.
    pub(crate) fn update(&self, deployment: FunctionDeployment) -> Result<(), PlatformError> {
        let _one = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spec = self.check(deployment, String::new())?;
        let function = self.require(&spec.id.namespace, &spec.id.name)?;
        spec.created_at.clone_from(&function.spec().created_at);
        self.keep(&spec, function.wanted())?;
        function.update(spec);
        Ok(())
    }

    /// Ends a function; its replicas finish what they have.
    pub(crate) fn delete(&self, namespace: &str, name: &str) -> Result<(), PlatformError> {
        let _one = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        let function = self.require(namespace, name)?;
        self.store.forget(&function.id)?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.get_mut(namespace).and_then(|names| names.remove(name));
        drop(functions);
        function.removed.cancel();
        function.notify_waiting();
        self.metrics.forget(&function.label);
        Ok(())
    }

    /// The number of replicas that a client wants.
    pub(crate) fn scale(&self, namespace: &str, name: &str, replicas: u32) -> Result<(), PlatformError> {
        let function = self.require(namespace, name)?;
        let spec = function.spec();
        if replicas > spec.replicas.max.max(1000) {
            return Err(Invalid::new("replicas", replicas, "0 to 1000").into());
        }
        if spec.fixed_port && replicas > 1 {
            return Err(
                Invalid::new("replicas", replicas, "0 or 1, since upstream_url fixes its port").into()
            );
        }
        self.keep(&spec, replicas)?;
        self.set_wanted(&function, replicas, "asked for through the API");
        Ok(())
    }

    /// Sets the wanted number of replicas and says why.
    pub(crate) fn set_wanted(&self, function: &Function, replicas: u32, reason: &str) {
        if let Some(before) = function.want(replicas) {
            self.record(function, None, "scale", (Some(before.into()), Some(replicas.into())), reason);
        }
    }

    /// Ends a replica, which is then one fewer that is wanted, and says why.
    pub(crate) fn stop(&self, function: &Function, replica: &Replica, reason: &str) {
        if let Some(before) = function.stop(replica) {
            let after = before.saturating_sub(1);
            self.record(function, None, "scale", (Some(before.into()), Some(after.into())), reason);
        }
    }

    /// Brings back what a former run had.
    pub(crate) fn restore(self: &Arc<Self>) {
        for kept in self.store.deployments() {
            let name = kept.deployment.service.clone();
            match self.check(kept.deployment, kept.created_at) {
                Ok(spec) => {
                    let replicas = kept.replicas.min(spec.replicas.max);
                    self.add(spec, replicas);
                }
                Err(error) => {
                    tracing::error!(function = name, %error, "A kept deployment is not allowed any more; it does not run.");
                }
            }
        }
    }

    fn check(&self, deployment: FunctionDeployment, created_at: String) -> Result<Spec, Invalid> {
        let around = Surroundings {
            gpu_memory: self.gpu_memory(),
            profiles: &self.profiles,
            namespaces: &self.store.namespaces(),
            has_secret: &|namespace, name| self.store.has_secret(namespace, name),
        };
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        Spec::check(deployment, &around, created_at, generation)
    }

    fn keep(&self, spec: &Spec, replicas: u32) -> std::io::Result<()> {
        let kept =
            Kept { deployment: spec.deployment.clone(), created_at: spec.created_at.clone(), replicas };
        self.store.keep(&spec.id, &kept)
    }

    fn add(self: &Arc<Self>, spec: Spec, replicas: u32) {
        let FunctionId { namespace, name } = spec.id.clone();
        let log = LogBook::new(Some(&self.store.folder.log(&namespace, &name)));
        let function = Arc::new(Function::new(spec, replicas, Arc::new(log)));
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.entry(namespace).or_default().insert(name, function.clone());
        drop(functions);
        self.tasks.spawn(lifecycle::keep(self.clone(), function));
    }

    /// A function.
    pub(crate) fn function(&self, namespace: &str, name: &str) -> Option<Arc<Function>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(namespace)?.get(name).cloned()
    }

    /// A function, or the error that it is not there.
    pub(crate) fn require(&self, namespace: &str, name: &str) -> Result<Arc<Function>, PlatformError> {
        self.function(namespace, name).ok_or_else(|| {
            PlatformError::Missing(FunctionId { namespace: namespace.into(), name: name.into() })
        })
    }

    /// All functions, by name.
    pub(crate) fn functions(&self) -> Vec<Arc<Function>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = functions.values().flat_map(HashMap::values).cloned().collect();
        all.sort_by(|a, b| (&a.id.name, &a.id.namespace).cmp(&(&b.id.name, &b.id.namespace)));
        all
    }

    /// What the node last said.
    pub(crate) fn status(&self) -> Option<Arc<NodeStatus>> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_status(&self, status: Arc<NodeStatus>) {
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// Memory of the largest GPU.
    pub(crate) fn gpu_memory(&self) -> Bytes {
        let status = self.status();
        let memories = status.iter().flat_map(|status| &status.gpus).map(|gpu| gpu.gpu.memory);
        memories.max().unwrap_or_default()
    }

    /// Adds to the record of decisions.
    pub(crate) fn record(
        &self,
        function: &Function,
        instance: Option<&str>,
        action: &str,
        (from, to): (Option<f64>, Option<f64>),
        reason: &str,
    ) {
        let record = DecisionRecord {
            function: function.id.short(),
            instance: instance.map(str::to_string),
            action: action.into(),
            from,
            to,
            reason: reason.into(),
            ..DecisionRecord::default()
        };
        self.decisions.add(self.clock.now(), record);
    }
}

/// A namespace as a request names it, or the default.
pub(crate) fn or_default_namespace(namespace: &str) -> &str {
    if namespace.is_empty() { openfaas::names::DEFAULT_NAMESPACE } else { namespace }
}
