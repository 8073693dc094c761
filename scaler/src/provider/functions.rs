//! Which functions there are, how many replicas each should have and where they are: what the watches showed last, and what was
//! written through here since. Every request to a function looks here, and nowhere else while there is a replica.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use gpu_share::names::label;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1 as core;
use openfaas::checks;
use openfaas::names::FunctionId;
use tokio::sync::watch;

use super::{FUNCTION, Settings, objects, status};

/// Time for which a replica is left alone that could not be reached.
const SHUN: Duration = Duration::from_secs(1);

/// All functions.
#[derive(Debug)]
pub(super) struct Functions {
    all: RwLock<HashMap<FunctionId, Arc<Function>>>,
    /// Namespaces that have functions.
    namespaces: RwLock<BTreeSet<String>>,
    /// Kinds of objects that the API server has shown all of.
    listed: [AtomicBool; 3],
    settings: Arc<Settings>,
}

/// A kind of objects that is followed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Deployments,
    Pods,
    Namespaces,
}

/// One function.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) id: FunctionId,
    /// `name.namespace`, as in metric labels.
    pub(super) label: String,
    state: RwLock<State>,
    /// Rises whenever a request that waits should look again.
    changed: watch::Sender<u64>,
    /// Requests that came.
    pub(super) requests: AtomicU64,
    /// Those that wait for a replica.
    pub(super) held: watch::Sender<u32>,
    /// A first replica is being asked for.
    pub(super) is_waking: AtomicBool,
    turn: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    facts: Option<Facts>,
    pods: BTreeMap<String, Pod>,
}

/// What matters of a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Rises with every change, also where another takes its name.
    version: u64,
    /// Replicas that are wanted.
    pub(super) replicas: u32,
    /// Replicas that it starts with.
    pub(super) first: u32,
    /// Longest request; `None` is without limit.
    pub(super) exec_timeout: Option<Duration>,
    /// Its pods have opted in, so that the scaler knows it.
    pub(super) has_share: bool,
}

/// A replica.
#[derive(Clone, Debug, Default)]
struct Pod {
    /// Where it is, while it is ready for requests and not about to end.
    ready_at: Option<IpAddr>,
    /// It could not be reached, and is left alone until then.
    shunned_until: Option<Instant>,
    in_flight: Arc<AtomicU32>,
}

/// A request's place at a replica, until the answer has ended.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) address: IpAddr,
    in_flight: Arc<AtomicU32>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Facts {
    /// What matters of a Deployment; nothing if it runs no function.
    pub(super) fn of(deployment: &Deployment, settings: &Settings) -> Option<Self> {
        let deployed = status::deployed(deployment, settings)?;
        // What somebody else wrote counts as nothing said where it can't be read.
        let bounds = objects::replicas(&deployed, settings).unwrap_or_default();
        let exec_timeout = checks::exec_timeout(&deployed.env_vars).unwrap_or(Some(checks::EXEC_TIMEOUT));
        Some(Self {
            version: version(deployment),
            replicas: status::replicas(deployment),
            first: bounds.min.max(1),
            exec_timeout,
            has_share: deployed.labels.get(label::ENABLED).is_some_and(|value| value == "true"),
        })
    }
}

impl Functions {
    /// None yet; the default namespace has functions.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let namespaces = RwLock::new([settings.namespace.clone()].into());
        Self { all: RwLock::default(), namespaces, listed: Default::default(), settings }
    }

    /// Whether the API server has shown everything.
    pub(super) fn is_listed(&self) -> bool {
        self.listed.iter().all(|one| one.load(Ordering::Relaxed))
    }

    /// All objects of a kind were shown.
    pub(super) fn listed(&self, kind: Kind) {
        self.listed[kind as usize].store(true, Ordering::Relaxed);
    }

    /// A function.
    pub(super) fn get(&self, id: &FunctionId) -> Option<Arc<Function>> {
        if !self.has_namespace(&id.namespace) {
            return None;
        }
        read(&self.all).get(id).filter(|function| function.facts().is_some()).cloned()
    }

    /// Requests to a function so far.
    pub(super) fn requests(&self, id: &FunctionId) -> u64 {
        read(&self.all).get(id).map_or(0, |function| function.requests.load(Ordering::Relaxed))
    }

    /// All functions, for metrics.
    pub(super) fn all(&self) -> Vec<Arc<Function>> {
        read(&self.all).values().filter(|function| function.facts().is_some()).cloned().collect()
    }

    /// Takes note of a Deployment as it is now, or was a moment ago.
    pub(super) fn put(&self, deployment: &Deployment) {
        let Some((id, facts)) = status::id(deployment).zip(Facts::of(deployment, &self.settings)) else {
            return;
        };
        self.change(&id, |state| {
            if state.facts.as_ref().is_none_or(|known| known.version <= facts.version) {
                state.facts = Some(facts);
            }
        });
    }

    /// A Deployment, as it was last, is no more.
    pub(super) fn remove(&self, deployment: &Deployment) {
        let Some(id) = status::id(deployment) else { return };
        self.forget(&id, |state| {
            if state.facts.as_ref().is_some_and(|known| known.version <= version(deployment)) {
                state.facts = None;
            }
        });
    }

    /// A function was removed through here.
    pub(super) fn removed(&self, id: &FunctionId) {
        self.forget(id, |state| state.facts = None);
    }

    /// These are all Deployments.
    pub(super) fn deployments_are(&self, listed: &HashSet<FunctionId>) {
        let gone: Vec<_> = read(&self.all).keys().filter(|id| !listed.contains(*id)).cloned().collect();
        for id in &gone {
            self.removed(id);
        }
        self.listed(Kind::Deployments);
    }

    /// Takes note of a pod.
    pub(super) fn put_pod(&self, pod: &core::Pod) {
        let Some((id, name)) = pod_of(pod) else { return };
        let ready_at = ready_at(pod);
        self.change(&id, |state| state.pods.entry(name).or_default().ready_at = ready_at);
    }

    /// A pod is no more.
    pub(super) fn remove_pod(&self, id: &FunctionId, name: &str) {
        self.forget(id, |state| drop(state.pods.remove(name)));
    }

    /// These are all pods.
    pub(super) fn pods_are(&self, listed: &HashSet<(FunctionId, String)>) {
        let functions: Vec<_> = read(&self.all).values().cloned().collect();
        for function in functions {
            let gone: Vec<_> = function
                .pods()
                .into_iter()
                .filter(|name| !listed.contains(&(function.id.clone(), name.clone())))
                .collect();
            for name in &gone {
                self.remove_pod(&function.id, name);
            }
        }
        self.listed(Kind::Pods);
    }

    /// Whether a namespace has functions.
    pub(super) fn has_namespace(&self, name: &str) -> bool {
        read(&self.namespaces).contains(name)
    }

    /// Namespaces that have functions, by name.
    pub(super) fn namespaces(&self) -> Vec<String> {
        read(&self.namespaces).iter().cloned().collect()
    }

    /// A namespace has functions from now on.
    pub(super) fn put_namespace(&self, name: &str) {
        write(&self.namespaces).insert(name.into());
    }

    /// A namespace has none any more; the default one always has.
    pub(super) fn remove_namespace(&self, name: &str) {
        if name != self.settings.namespace {
            write(&self.namespaces).remove(name);
        }
    }

    /// These are all namespaces that have functions, beside the default one.
    pub(super) fn namespaces_are(&self, mut listed: BTreeSet<String>) {
        listed.insert(self.settings.namespace.clone());
        *write(&self.namespaces) = listed;
        self.listed(Kind::Namespaces);
    }

    /// Changes what is known of a function, which may be new.
    fn change(&self, id: &FunctionId, change: impl FnOnce(&mut State)) {
        // While the map is held, so that nobody forgets the function meanwhile.
        let all = read(&self.all);
        if let Some(function) = all.get(id) {
            return function.change(change);
        }
        drop(all);
        let mut all = write(&self.all);
        all.entry(id.clone()).or_insert_with(|| Arc::new(Function::new(id.clone()))).change(change);
    }

    /// Changes what is known of a function, and forgets it where neither Deployment nor pods are left.
    fn forget(&self, id: &FunctionId, change: impl FnOnce(&mut State)) {
        let mut all = write(&self.all);
        let Some(function) = all.get(id) else { return };
        function.change(change);
        if function.is_nothing() {
            all.remove(id);
        }
    }
}

/// The version that the API server gives to each change of any object; they rise.
fn version(deployment: &Deployment) -> u64 {
    let version = deployment.metadata.resource_version.as_ref();
    version.and_then(|version| version.parse().ok()).unwrap_or(u64::MAX)
}

impl Function {
    fn new(id: FunctionId) -> Self {
        Self {
            label: id.to_string(),
            id,
            state: RwLock::default(),
            changed: watch::Sender::new(0),
            requests: AtomicU64::new(0),
            held: watch::Sender::new(0),
            is_waking: AtomicBool::new(false),
            turn: AtomicU64::new(0),
        }
    }

    /// What matters of its Deployment; nothing once that is gone.
    pub(super) fn facts(&self) -> Option<Facts> {
        read(&self.state).facts.clone()
    }

    /// Names of its pods.
    pub(super) fn pods(&self) -> Vec<String> {
        read(&self.state).pods.keys().cloned().collect()
    }

    /// A place at the replica that has the fewest requests, of equal ones in turn.
    pub(super) fn seat(&self) -> Option<Seat> {
        let state = read(&self.state);
        let now = Instant::now();
        let reachable = state.pods.values().filter(|pod| pod.shunned_until.is_none_or(|until| until <= now));
        let ready: Vec<_> = reachable.filter_map(|pod| Some((pod.ready_at?, &pod.in_flight))).collect();
        let turn =
            usize::try_from(self.turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0) % ready.len().max(1);
        let in_turn = ready.iter().skip(turn).chain(ready.iter().take(turn));
        let &(address, in_flight) = in_turn.min_by_key(|(_, in_flight)| in_flight.load(Ordering::Relaxed))?;
        in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Seat { address, in_flight: Arc::clone(in_flight) })
    }

    /// A replica could not be reached: it has just gone, or its node has. Others are taken for a while.
    pub(super) fn shun(&self, address: IpAddr) {
        let until = Some(Instant::now() + SHUN);
        let mut state = write(&self.state);
        state
            .pods
            .values_mut()
            .filter(|pod| pod.ready_at == Some(address))
            .for_each(|pod| pod.shunned_until = until);
    }

    /// Tells of every moment at which a request that waits should look again.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Lets requests that wait look again.
    pub(super) fn notify(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut write(&self.state));
        self.notify();
    }

    fn is_nothing(&self) -> bool {
        let state = read(&self.state);
        state.facts.is_none() && state.pods.is_empty()
    }
}

/// The function that a pod is of, and its name.
pub(super) fn pod_of(pod: &core::Pod) -> Option<(FunctionId, String)> {
    let metadata = &pod.metadata;
    let name = metadata.labels.as_ref()?.get(FUNCTION)?.clone();
    Some((FunctionId { namespace: metadata.namespace.clone()?, name }, metadata.name.clone()?))
}

/// Where a pod is, while it is ready for requests and not about to end.
fn ready_at(pod: &core::Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let is_ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let address = status.pod_ip.as_ref()?.parse().ok();
    address.filter(|_| is_ready && pod.metadata.deletion_timestamp.is_none())
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::settings;

    fn functions() -> Functions {
        Functions::new(Arc::new(settings()))
    }

    fn id(name: &str) -> FunctionId {
        FunctionId { namespace: "openfaas-fn".into(), name: name.into() }
    }

    fn deployment(replicas: u32, version: u64) -> Deployment {
        let labels =
            json!({"faas_function": "f", "gpufn.dev/enabled": "true", "com.openfaas.scale.min": "2"});
        let deployment = json!({
            "metadata": {"namespace": "openfaas-fn", "name": "f", "resourceVersion": version.to_string()},
            "spec": {"replicas": replicas, "selector": {}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "f", "image": "i", "env": [{"name": "exec_timeout", "value": "5s"}]}]},
            }},
        });
        serde_json::from_value(deployment).unwrap()
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> core::Pod {
        let mut pod = json!({
            "metadata": {"namespace": "openfaas-fn", "name": name, "labels": {"faas_function": "f"}},
            "status": {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_function_is_there_while_its_deployment_is() {
        let functions = functions();
        functions.put_pod(&pod("f-1", |_| {}));
        assert!(functions.get(&id("f")).is_none(), "a pod alone is no function");
        functions.put(&deployment(1, 1));
        let facts = functions.get(&id("f")).unwrap().facts().unwrap();
        assert_eq!((facts.replicas, facts.first, facts.has_share), (1, 2, true));
        assert_eq!(facts.exec_timeout, Some(Duration::from_secs(5)));
        functions.remove(&deployment(1, 2));
        assert!(functions.get(&id("f")).is_none());
        functions.remove_pod(&id("f"), "f-1");
        assert!(read(&functions.all).is_empty(), "nothing is left of it");
    }

    #[test]
    fn what_was_written_through_here_is_not_undone_by_what_is_shown_late() {
        let functions = functions();
        functions.put(&deployment(1, 2));
        functions.put(&deployment(0, 1));
        assert_eq!(functions.get(&id("f")).unwrap().facts().unwrap().replicas, 1);
        functions.remove(&deployment(0, 1));
        assert!(functions.get(&id("f")).is_some(), "that was another of its name");
        functions.put(&deployment(0, 3));
        assert_eq!(functions.get(&id("f")).unwrap().facts().unwrap().replicas, 0);
        functions.removed(&id("f"));
        assert!(functions.get(&id("f")).is_none());
    }

    #[test]
    fn a_function_in_a_namespace_that_has_none_is_not_there() {
        let functions = functions();
        let mut other = deployment(1, 1);
        other.metadata.namespace = Some("kube-system".into());
        functions.put(&other);
        let id = FunctionId { namespace: "kube-system".into(), name: "f".into() };
        assert!(functions.get(&id).is_none());
        functions.put_namespace("kube-system");
        assert!(functions.get(&id).is_some());
        functions.namespaces_are(BTreeSet::new());
        assert_eq!(functions.namespaces(), ["openfaas-fn"]);
    }

    #[test]
    fn requests_go_to_the_ready_replica_that_has_the_fewest() {
        let functions = functions();
        functions.put(&deployment(3, 1));
        functions.put_pod(&pod("f-1", |_| {}));
        functions.put_pod(&pod("f-2", |pod| pod["status"]["podIP"] = json!("10.0.0.8")));
        functions.put_pod(&pod("f-3", |pod| pod["status"]["conditions"] = json!([])));
        functions
            .put_pod(&pod("f-4", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")));
        let function = functions.get(&id("f")).unwrap();
        let seats: Vec<_> = (0..4).map(|_| function.seat().unwrap()).collect();
        let at = |address: &str| seats.iter().filter(|seat| seat.address.to_string() == address).count();
        assert_eq!((at("10.0.0.7"), at("10.0.0.8")), (2, 2));
        drop(seats);
        function.shun("10.0.0.7".parse().unwrap());
        let seats: Vec<_> = (0..2).map(|_| function.seat().unwrap().address.to_string()).collect();
        assert_eq!(seats, ["10.0.0.8", "10.0.0.8"]);
        functions.pods_are(&HashSet::new());
        assert!(function.seat().is_none());
    }
}
