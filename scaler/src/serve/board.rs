//! What is known of each function now: its Deployment and pods, what they showed, what was asked.
//!
//! Writers are `cluster`, `sampler`, `web` and `outbox`; whoever asks reads. A lock is held for as long as one need takes to be judged,
//! never while something is waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use gpu_share::annotations::{Replicas, Wish};
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::names::annotation;
use gpu_share::units::{Bytes, Nanos, Quota};
use k8s_openapi::api::core::v1::ObjectReference;
use serde::Serialize;
use tokio::sync::watch;

use super::clock::Clock;
use super::decisions::Decisions;
use super::fleet::{self, Deployment, FunctionName, Pod, PodName};
use super::overview::{self, FunctionSummary, Overview, ReplicaSummary};
use crate::control::explanation as why;
use crate::control::owners::{self, Kind, Left, Owner, Pause};
use crate::control::period::Seen;
use crate::keda::metadata::Terms;
use crate::kind::{GPUFunctionProfile, Times};
use crate::need::{Need, Scene, Watched};
use crate::traffic::Reading;

/// What was held in front of a function is forgotten after so long, or who told it and died would keep it active.
const HELD_FOR: Nanos = Nanos::from_secs(10);
/// Replicas are believed to be starting for so long.
const STARTING: Nanos = Nanos::from_secs(600);
/// Longest cold start that is believed: what looks longer was ready before, and then not for a while.
const LONGEST_START: Nanos = Nanos::from_secs(300);
/// `ScaledObject`s of one function that are remembered for explanations.
const ASKED: usize = 16;

/// A `GPUFunctionProfile`, as far as functions that name it depend on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub(super) generation: i64,
    /// The name that its times have here, and they themselves where they are its own.
    pub(super) times: Result<(String, Profiles), Invalid>,
    /// The objective of functions that name none.
    pub(super) slo: Option<String>,
}

impl Model {
    /// What matters of one called `name`, where `known` profiles may be named by it.
    pub(super) fn of(name: &FunctionName, profile: &GPUFunctionProfile, known: &Profiles) -> Self {
        let generation = profile.metadata.generation.unwrap_or_default();
        // Another version is another model: what was learnt by the one before holds no more.
        let own = format!("{name}@{generation}");
        let times = profile.spec.times(&own, known).map(|times| match times {
            Times::Known(model) => (model, Profiles::default()),
            Times::Own(profiles) => (own, profiles),
        });
        Self { generation, times, slo: profile.spec.slo.clone() }
    }
}

/// Objects of one kind that scale Deployments: by their names, whose they are and what they say.
pub(super) type Owned = HashMap<FunctionName, (FunctionName, Owner)>;

/// What one control period works on.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Functions that ask for a share.
    pub(super) seen: Vec<Seen>,
    /// Those of them whose number of replicas may be written.
    pub(super) counted: Vec<Counted>,
    /// Their pods that can be read.
    pub(super) roster: HashMap<String, Vec<Replica>>,
}

/// A function whose number of replicas may be written.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) name: FunctionName,
    pub(super) bounds: Replicas,
    /// Replicas that its Deployment is told to have.
    pub(super) wanted: u32,
    pub(super) cold_start: Nanos,
    pub(super) need: Need,
}

/// Functions, each with its replicas that can be read.
pub(super) type Roster = HashMap<FunctionName, Vec<Replica>>;

/// A replica that is ready for requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    /// Its pod's name.
    pub(super) name: String,
    /// Its pod's address.
    pub(super) address: IpAddr,
}

/// What does not change while the service runs.
#[derive(Debug)]
pub(super) struct Settings {
    /// Known models.
    pub(super) profiles: Profiles,
    /// Memory of the GPUs.
    pub(super) gpu_memory: Bytes,
    /// Π on the nodes.
    pub(super) window: Nanos,
    /// How long a cold start takes where no replica has shown it.
    pub(super) cold_start: Nanos,
    /// What was read so long ago is not told any more.
    pub(super) stale: Nanos,
    /// Whether the source shows a function that has no replica.
    pub(super) shows_empty: bool,
}

/// All functions.
#[derive(Debug)]
pub(super) struct Board {
    settings: Settings,
    clock: Clock,
    functions: RwLock<HashMap<FunctionName, Arc<Entry>>>,
    pods: RwLock<HashMap<PodName, Pod>>,
    /// Who else scales Deployments, by kind and name; a kind that was not shown yet is missing.
    owners: RwLock<HashMap<Kind, Owned>>,
    /// Profiles of functions, by name.
    models: RwLock<HashMap<FunctionName, Model>>,
    deployments_listed: AtomicBool,
    pods_listed: AtomicBool,
    /// What was told to KEDA, and why.
    pub(super) decisions: Decisions,
    grants_follow: AtomicBool,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    /// The API server has not shown yet which functions there are.
    #[error("the API server has not shown Deployments and pods yet")]
    NotListed,
    /// There is no such function.
    #[error(
        "function is {0:?}, allowed is a Deployment whose pods have the label gpufn.dev/enabled: \"true\", in the namespace \
         of the ScaledObject"
    )]
    NoFunction(String),
    /// What the function asks for is wrong.
    #[error("the function's annotations are wrong: {0}")]
    Wish(Invalid),
    /// Its replicas were not read yet.
    #[error("the replicas of {0} have not been read yet")]
    NotRead(FunctionName),
    /// Its replicas were not read for too long.
    #[error("the replicas of {function} were last read {ago:.0} s ago, too long to tell what is needed")]
    Stale { function: FunctionName, ago: f64 },
}

/// One function.
#[derive(Debug)]
pub(super) struct Entry {
    name: FunctionName,
    state: Mutex<State>,
    /// Told when the need may have changed.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    deployment: Deployment,
    wish: Result<Option<Wish>, Invalid>,
    watched: Watched,
    /// Since when there are replicas of which none is ready.
    starting: Option<Nanos>,
    /// Requests in front of it, and until when that counts.
    held: Option<(u32, Nanos)>,
    /// The quota that its replicas can have, where grants follow the load.
    reach: Option<Quota>,
    /// On what terms `ScaledObject`s asked last, by their names.
    asked: BTreeMap<String, Terms>,
    /// Replicas that were told last.
    told: Option<f64>,
}

/// A function for people: what is known, and what follows for each `ScaledObject` that asked.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    namespace: String,
    name: String,
    replicas: u32,
    held: u32,
    /// Whether its need can be told now.
    is_known: bool,
    read_ago_seconds: f64,
    arrivals_per_second: f64,
    forecast_per_second: f64,
    in_flight: f64,
    waiting: f64,
    oldest_wait_seconds: f64,
    quota_percent: Option<f64>,
    gpu_milliseconds_per_request: Option<f64>,
    slo: Option<String>,
    needs: BTreeMap<String, Told>,
}

/// What a `ScaledObject` is told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Told {
    Need(Need),
    Unknown { error: String },
}

impl Board {
    /// Nothing is known yet.
    pub(super) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            functions: RwLock::default(),
            pods: RwLock::default(),
            owners: RwLock::default(),
            models: RwLock::default(),
            deployments_listed: AtomicBool::new(false),
            pods_listed: AtomicBool::new(false),
            decisions: Decisions::default(),
            grants_follow: AtomicBool::new(false),
        }
    }

    /// What does not change.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether it is known which functions there are.
    pub(super) fn is_listed(&self) -> bool {
        self.deployments_listed.load(Relaxed) && self.pods_listed.load(Relaxed)
    }

    /// A Deployment is there, or has changed.
    pub(super) fn put(&self, name: FunctionName, deployment: Deployment) {
        let wish = self.wish(&name, &deployment);
        let fresh = self.watched(&wish);
        if let Some(entry) = self.entry(&name) {
            entry.change(deployment, wish, fresh, self.clock.now());
            return;
        }
        let entry = Entry::new(name.clone(), deployment, wish, fresh);
        write(&self.functions).insert(name, Arc::new(entry));
    }

    /// A Deployment is gone, or has opted out.
    pub(super) fn remove(&self, name: &FunctionName) {
        write(&self.functions).remove(name);
    }

    /// What a function asks for; a profile that it names is one of its namespace, or one that is known.
    fn wish(&self, name: &FunctionName, deployment: &Deployment) -> Result<Option<Wish>, Invalid> {
        let Settings { gpu_memory, profiles, .. } = &self.settings;
        let model = deployment.annotations.get(annotation::MODEL).map(|model| model.trim());
        let named = model.map(|model| FunctionName { namespace: name.namespace.clone(), name: model.into() });
        let models = read(&self.models);
        let Some(model) = named.and_then(|named| models.get(&named)) else {
            return Wish::read(&deployment.annotations, *gpu_memory, profiles);
        };
        let (known_as, own) = model.times.as_ref().map_err(Clone::clone)?;
        let mut annotations = deployment.annotations.clone();
        annotations.insert(annotation::MODEL.into(), known_as.clone());
        if let Some(slo) = &model.slo {
            annotations.entry(annotation::SLO.into()).or_insert_with(|| slo.clone());
        }
        Wish::read(&annotations, *gpu_memory, if own.get(known_as).is_some() { own } else { profiles })
    }

    /// What is remembered of a function that asks for this, in the beginning.
    fn watched(&self, wish: &Result<Option<Wish>, Invalid>) -> Watched {
        let wish = wish.as_ref().ok().and_then(Option::as_ref);
        let model = wish.and_then(|wish| wish.model.as_deref());
        let models = read(&self.models);
        let mut own = models.values().filter_map(|model| model.times.as_ref().ok()).map(|(_, own)| own);
        let own = own.find(|own| model.is_some_and(|model| own.get(model).is_some()));
        Watched::new(self.clock.now(), wish, own.unwrap_or(&self.settings.profiles))
    }

    /// A profile is there, or has changed.
    pub(super) fn put_model(&self, name: FunctionName, model: &Model) {
        let namespace = name.namespace.clone();
        let before = write(&self.models).insert(name, model.clone());
        // Most changes are of the status, which is our own.
        if before.as_ref() != Some(model) {
            self.read_wishes(&namespace);
        }
    }

    /// A profile is gone.
    pub(super) fn remove_model(&self, name: &FunctionName) {
        write(&self.models).remove(name);
        self.read_wishes(&name.namespace);
    }

    /// All profiles have been shown: others are gone.
    pub(super) fn models_are(&self, models: HashMap<FunctionName, Model>) {
        let before = std::mem::replace(&mut *write(&self.models), models);
        let namespaces: HashSet<_> =
            before.keys().chain(read(&self.models).keys()).map(|name| name.namespace.clone()).collect();
        for namespace in &namespaces {
            self.read_wishes(namespace);
        }
    }

    /// All profiles.
    pub(super) fn models(&self) -> HashMap<FunctionName, Model> {
        read(&self.models).clone()
    }

    /// Functions of a namespace, each with the name of the profile that its Deployment names.
    pub(super) fn named_models(&self) -> Vec<(FunctionName, String)> {
        let named = |entry: Arc<Entry>| {
            let model = entry.lock().deployment.annotations.get(annotation::MODEL)?.trim().to_string();
            Some((entry.name.clone(), model))
        };
        self.entries().into_iter().filter_map(named).collect()
    }

    /// Reads anew what the functions of a namespace ask for.
    fn read_wishes(&self, namespace: &str) {
        for entry in self.entries().into_iter().filter(|entry| entry.name.namespace == namespace) {
            let deployment = entry.lock().deployment.clone();
            let wish = self.wish(&entry.name, &deployment);
            let fresh = self.watched(&wish);
            entry.change(deployment, wish, fresh, self.clock.now());
        }
    }

    /// The profiles by which the times of functions are known, those of the cluster included.
    pub(super) fn profiles(&self) -> Profiles {
        let own = read(&self.models);
        let own = own.values().filter_map(|model| model.times.as_ref().ok()).map(|(_, own)| own.clone());
        own.fold(Profiles::default(), Profiles::with)
    }

    /// All Deployments have been shown: others are gone.
    pub(super) fn deployments_are(&self, names: &HashSet<FunctionName>) {
        write(&self.functions).retain(|name, _| names.contains(name));
        self.deployments_listed.store(true, Relaxed);
    }

    /// A pod is there, or has changed.
    pub(super) fn put_pod(&self, name: PodName, pod: Pod) {
        write(&self.pods).insert(name, pod);
    }

    /// A pod is gone.
    pub(super) fn remove_pod(&self, name: &PodName) {
        write(&self.pods).remove(name);
    }

    /// All pods have been shown: others are gone.
    pub(super) fn pods_are(&self, names: &HashSet<PodName>) {
        write(&self.pods).retain(|name, _| names.contains(name));
        self.pods_listed.store(true, Relaxed);
    }

    /// An object scales a Deployment, or has changed.
    pub(super) fn put_owner(&self, kind: Kind, name: FunctionName, owned: (FunctionName, Owner)) {
        write(&self.owners).entry(kind).or_default().insert(name, owned);
    }

    /// An object scales none any more.
    pub(super) fn remove_owner(&self, kind: Kind, name: &FunctionName) {
        write(&self.owners).entry(kind).or_default().remove(name);
    }

    /// All objects of a kind have been shown: others are gone.
    pub(super) fn owners_are(&self, kind: Kind, owned: Owned) {
        write(&self.owners).insert(kind, owned);
    }

    /// Whether it is known who else scales what.
    pub(super) fn are_owners_listed(&self) -> bool {
        let owners = read(&self.owners);
        super::owner::KINDS.iter().all(|kind| owners.contains_key(kind))
    }

    /// Who else scales each function.
    fn owners(&self) -> HashMap<FunctionName, Vec<Owner>> {
        let mut all: HashMap<FunctionName, Vec<Owner>> = HashMap::new();
        for (target, owner) in read(&self.owners).values().flat_map(HashMap::values) {
            all.entry(target.clone()).or_default().push(owner.clone());
        }
        for owners in all.values_mut() {
            owners.sort();
        }
        all
    }

    /// A pod's quota was written: what the API server will show.
    pub(super) fn asked(&self, name: &PodName, percent: u8) {
        if let Some(pod) = write(&self.pods).get_mut(name) {
            pod.asked = Some(percent);
        }
    }

    /// A function's Deployment, as events name it.
    pub(super) fn reference(&self, name: &FunctionName) -> ObjectReference {
        ObjectReference {
            api_version: Some("apps/v1".into()),
            kind: Some("Deployment".into()),
            namespace: Some(name.namespace.clone()),
            name: Some(name.name.clone()),
            uid: self.entry(name).map(|entry| entry.lock().deployment.uid.clone()),
            ..ObjectReference::default()
        }
    }

    /// Why a function has what it has, as far as any scaler knows.
    pub(super) fn why(&self, name: &FunctionName) -> Option<why::Explanation> {
        let (entry, owners) = (self.entry(name)?, self.owners().remove(name).unwrap_or_default());
        let mut explanation = why::Explanation { function: name.to_string(), ..why::Explanation::default() };
        let state = entry.lock();
        explanation.owners = owners.iter().map(|owner| format!("{:?} {}", owner.kind, owner.name)).collect();
        let mut leave = |what: &str, why: Result<(), String>| {
            if let Err(why) = why {
                explanation.left_alone.push(why::LeftAlone { what: what.into(), why });
            }
        };
        match &state.wish {
            Err(invalid) => leave("all", Err(invalid.to_string())),
            Ok(None) => leave("all", Err("it asks for no share of a GPU".into())),
            Ok(Some(wish)) => {
                let left = state.left(wish, &owners);
                leave("raise", left.raise);
                leave("lower", left.lower);
                leave("replicas", left.replicas);
                explanation.slo = wish.slo.map(|slo| slo.to_string());
                explanation.sm_percent = wish.share.sm.percent();
                explanation.floor_percent = wish.share.floor.percent();
                explanation.ceiling_percent = wish.share.ceiling.percent();
            }
        }
        let (now, settings) = (self.clock.now(), &self.settings);
        explanation.need = state.check(&entry, settings, now).is_ok().then(|| {
            let Need { equivalents, reason, .. } = state.need(&name.own_terms(), settings, now);
            why::NeedNow { replicas: equivalents, reason }
        });
        Some(explanation)
    }

    /// What the control loop works on; `wall` is the time in nanoseconds since the epoch. What functions need is judged only
    /// where numbers of replicas are looked at.
    pub(super) fn stage(&self, wall: i128, with_counts: bool) -> Stage {
        let (owners, starts, now) = (self.owners(), self.starts(), self.clock.now());
        let mut work = Stage::default();
        let mut places = HashMap::new();
        for entry in self.entries() {
            let state = entry.lock();
            let Ok(Some(wish)) = &state.wish else { continue };
            let cold_start = starts.get(&entry.name).copied().unwrap_or(self.settings.cold_start);
            let left = state.left(wish, owners.get(&entry.name).map(Vec::as_slice).unwrap_or_default());
            if with_counts && left.replicas.is_ok() && state.check(&entry, &self.settings, now).is_ok() {
                work.counted.push(Counted {
                    name: entry.name.clone(),
                    bounds: wish.replicas,
                    wanted: state.deployment.wanted,
                    cold_start,
                    need: state.need(&entry.name.own_terms(), &self.settings, now),
                });
            }
            places.insert(entry.name.clone(), work.seen.len());
            work.roster.insert(entry.name.to_string(), Vec::new());
            work.seen.push(Seen {
                name: entry.name.to_string(),
                wish: wish.clone(),
                replicas: Vec::new(),
                held: state.held(now),
                cold_start,
                left,
            });
        }
        for (name, pod) in read(&self.pods).iter() {
            let Some(seen) = places.get(&pod.function).and_then(|&place| work.seen.get_mut(place)) else {
                continue;
            };
            seen.replicas.push(pod.seen(&name.name, wall));
            if let Some((address, replicas)) = pod.ready_at.zip(work.roster.get_mut(&seen.name)) {
                replicas.push(Replica { name: name.name.clone(), address });
            }
        }
        work
    }

    /// All functions, each with its replicas that can be read now.
    pub(super) fn roster(&self) -> Roster {
        let mut roster: Roster =
            read(&self.functions).keys().map(|name| (name.clone(), Vec::new())).collect();
        for (name, pod) in read(&self.pods).iter() {
            if let Some((address, replicas)) = pod.ready_at.zip(roster.get_mut(&pod.function)) {
                replicas.push(Replica { name: name.name.clone(), address });
            }
        }
        roster
    }

    /// Takes in what was read of those in `roster`.
    pub(super) fn observe(&self, roster: &Roster, readings: &HashMap<FunctionName, Reading>) {
        let (starts, reaches) = (self.starts(), self.reaches());
        for entry in self.entries() {
            let reading = readings.get(&entry.name);
            let is_ready = roster.get(&entry.name).is_some_and(|replicas| !replicas.is_empty());
            let cold_start = starts.get(&entry.name).copied().unwrap_or(self.settings.cold_start);
            entry.lock().reach = reaches.get(&entry.name).copied();
            entry.observe(reading, is_ready, cold_start, self.clock.now());
        }
    }

    /// Somebody leads who makes grants follow the load, or nobody does.
    pub(super) fn grants_follow(&self, do_follow: bool) {
        self.grants_follow.store(do_follow, Relaxed);
    }

    /// The quota that the replicas of each function can have, where its grants follow the load.
    fn reaches(&self) -> HashMap<FunctionName, Quota> {
        if !self.grants_follow.load(Relaxed) || !self.are_owners_listed() {
            return HashMap::new();
        }
        let owners = self.owners();
        let ceiling = |entry: &Arc<Entry>| {
            let state = entry.lock();
            let wish = state.wish.as_ref().ok()?.as_ref()?;
            let owners = owners.get(&entry.name).map(Vec::as_slice).unwrap_or_default();
            state.left(wish, owners).raise.ok()?;
            Some((entry.name.clone(), wish.share.ceiling))
        };
        let ceilings = self.entries().iter().filter_map(ceiling).collect();
        fleet::reaches(&read(&self.pods).values(), &ceilings)
    }

    /// How long the replicas of each function took to start: the middle one.
    fn starts(&self) -> HashMap<FunctionName, Nanos> {
        let mut starts: HashMap<FunctionName, Vec<Nanos>> = HashMap::new();
        for pod in read(&self.pods).values() {
            if let Some(started_in) = pod.started_in.filter(|&span| span <= LONGEST_START) {
                starts.entry(pod.function.clone()).or_default().push(started_in);
            }
        }
        let middle = |mut spans: Vec<Nanos>| {
            let place = spans.len() / 2;
            *spans.select_nth_unstable(place).1
        };
        starts.into_iter().map(|(name, spans)| (name, middle(spans))).collect()
    }

    /// So many requests wait in front of a function. Whether there is such a function.
    pub(super) fn hold(&self, name: &FunctionName, held: u32) -> bool {
        let Some(entry) = self.entry(name) else { return false };
        entry.lock().held = Some((held, self.clock.now() + HELD_FOR));
        entry.changed.send_replace(());
        true
    }

    /// What the function that is meant needs; `asker` is the `ScaledObject` that asks.
    pub(super) fn need(&self, namespace: &str, asker: &str, terms: &Terms) -> Result<Need, Unknown> {
        let (entry, now) = (self.meant(namespace, terms)?, self.clock.now());
        let (need, before) = entry.need(asker, terms, &self.settings, now)?;
        let needed = need.equivalents.ceil();
        // Parts of a replica change all the time.
        if before.map(f64::ceil) != Some(needed) {
            self.decisions.needs(now, &entry.name, before.map(f64::ceil), needed, &need.reason);
        }
        Ok(need)
    }

    /// The replicas that the function has now.
    pub(super) fn present(&self, namespace: &str, terms: &Terms) -> Result<u32, Unknown> {
        Ok(self.meant(namespace, terms)?.lock().deployment.replicas)
    }

    /// To be told when the need of a function may have changed; closed when the function is gone.
    pub(super) fn follow(&self, namespace: &str, terms: &Terms) -> Result<watch::Receiver<()>, Unknown> {
        Ok(self.meant(namespace, terms)?.changed.subscribe())
    }

    fn meant(&self, namespace: &str, terms: &Terms) -> Result<Arc<Entry>, Unknown> {
        let name = FunctionName { namespace: namespace.into(), name: terms.function.clone() };
        match self.entry(&name) {
            _ if !self.is_listed() => Err(Unknown::NotListed),
            Some(entry) => Ok(entry),
            None => Err(Unknown::NoFunction(terms.function.clone())),
        }
    }

    /// All functions, in the order of their names.
    pub(super) fn explain_all(&self) -> Vec<Explanation> {
        let mut entries = self.entries();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries.iter().map(|entry| entry.explain(&self.settings, self.clock.now())).collect()
    }

    /// One function.
    pub(super) fn explain(&self, name: &FunctionName) -> Option<Explanation> {
        Some(self.entry(name)?.explain(&self.settings, self.clock.now()))
    }

    /// What the web page shows.
    pub(super) fn overview(&self) -> Overview {
        let (now, memory) = (self.clock.now(), self.settings.gpu_memory);
        let mut pods: HashMap<FunctionName, Vec<(PodName, Pod)>> = HashMap::new();
        for (name, pod) in read(&self.pods).iter() {
            pods.entry(pod.function.clone()).or_default().push((name.clone(), pod.clone()));
        }
        let mut entries = self.entries();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let summary = |entry: &Arc<Entry>| {
            let mut pods = pods.remove(&entry.name).unwrap_or_default();
            pods.sort_unstable_by(|a, b| a.0.name.cmp(&b.0.name));
            entry.summary(&pods, &self.settings, now)
        };
        let functions: Vec<_> = entries.iter().map(summary).collect();
        let server = format!("gpufn-scaler {}", env!("CARGO_PKG_VERSION"));
        Overview { server, uptime_s: now.secs_f64(), gpus: overview::gpus(&functions, memory), functions }
    }

    /// How many functions there are, and how many of them can be told of.
    pub(super) fn count(&self) -> (usize, usize) {
        let (entries, now) = (self.entries(), self.clock.now());
        let known =
            entries.iter().filter(|entry| entry.lock().check(entry, &self.settings, now).is_ok()).count();
        (entries.len(), known)
    }

    fn entry(&self, name: &FunctionName) -> Option<Arc<Entry>> {
        read(&self.functions).get(name).cloned()
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        read(&self.functions).values().cloned().collect()
    }
}

impl Entry {
    fn new(
        name: FunctionName,
        deployment: Deployment,
        wish: Result<Option<Wish>, Invalid>,
        watched: Watched,
    ) -> Self {
        let (starting, held, reach, asked, told) = (None, None, None, BTreeMap::new(), None);
        let state = Mutex::new(State { deployment, wish, watched, starting, held, reach, asked, told });
        Self { name, state, changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what there is now. What is `fresh` is to be remembered from now on if it asks for something else.
    fn change(
        &self,
        deployment: Deployment,
        wish: Result<Option<Wish>, Invalid>,
        fresh: Watched,
        now: Nanos,
    ) {
        let mut state = self.lock();
        if state.deployment == deployment && state.wish == wish {
            return;
        }
        if wish != state.wish {
            // Another model or share: what was learnt holds no more.
            state.watched = fresh;
            state.wish = wish;
        }
        if state.deployment.replicas == 0 && deployment.replicas > 0 {
            state.starting = Some(now);
        }
        state.deployment = deployment;
        drop(state);
        self.changed.send_replace(());
    }

    fn observe(&self, reading: Option<&Reading>, is_ready: bool, cold_start: Nanos, now: Nanos) {
        let mut state = self.lock();
        state.starting = match (state.deployment.replicas > 0 && !is_ready, state.starting) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
        let Some(reading) = reading else { return };
        let was_busy = state.watched.is_busy();
        if let Err(error) = state.watched.observe(reading, cold_start) {
            tracing::debug!(function = %self.name, %error, "too few replicas answered; what was read before counts");
            return;
        }
        let may_differ = was_busy || state.watched.is_busy();
        drop(state);
        if may_differ {
            self.changed.send_replace(());
        }
    }

    /// The need, and the replicas that were told before.
    fn need(
        &self,
        asker: &str,
        terms: &Terms,
        settings: &Settings,
        now: Nanos,
    ) -> Result<(Need, Option<f64>), Unknown> {
        let mut state = self.lock();
        if state.asked.get(asker) != Some(terms)
            && (state.asked.len() < ASKED || state.asked.contains_key(asker))
        {
            state.asked.insert(asker.into(), terms.clone());
        }
        state.check(self, settings, now)?;
        let need = state.need(terms, settings, now);
        let before = state.told.replace(need.equivalents);
        Ok((need, before))
    }

    fn summary(&self, pods: &[(PodName, Pod)], settings: &Settings, now: Nanos) -> FunctionSummary {
        let state = self.lock();
        let wish = state.wish.as_ref().ok().and_then(Option::as_ref);
        let slo = wish.and_then(|wish| wish.slo);
        let replica = |(name, pod): &(PodName, Pod)| ReplicaSummary::of(name, pod, wish, settings.gpu_memory);
        FunctionSummary {
            name: self.name.name.clone(),
            namespace: self.name.namespace.clone(),
            model: wish.and_then(|wish| wish.model.clone()),
            policy: wish.map(|wish| wish.scaling),
            slo: slo.map(|slo| slo.to_string()),
            slo_bound_ms: slo.map(|slo| slo.bound.millis_f64()),
            replicas_wanted: state.deployment.replicas,
            replicas_needed: state.told,
            rate_rps: state.watched.expected().rate,
            forecast_rps: state.watched.expected().cold,
            in_flight: state.watched.latest().in_flight,
            held: state.held(now),
            problem: state.check(self, settings, now).err().map(|unknown| unknown.to_string()),
            replicas: pods.iter().map(replica).collect(),
        }
    }

    fn explain(&self, settings: &Settings, now: Nanos) -> Explanation {
        let state = self.lock();
        let told = |terms: &Terms| match state.check(self, settings, now) {
            Ok(()) => Told::Need(state.need(terms, settings, now)),
            Err(unknown) => Told::Unknown { error: unknown.to_string() },
        };
        let (latest, forecast) = (state.watched.latest(), state.watched.expected());
        let slo = state.wish.as_ref().ok().and_then(|wish| wish.as_ref()?.slo);
        Explanation {
            namespace: self.name.namespace.clone(),
            name: self.name.name.clone(),
            replicas: state.deployment.replicas,
            held: state.held(now),
            is_known: state.check(self, settings, now).is_ok(),
            read_ago_seconds: now.since(state.watched.read()).secs_f64(),
            arrivals_per_second: forecast.rate,
            forecast_per_second: forecast.cold,
            in_flight: latest.in_flight,
            waiting: latest.waiting,
            oldest_wait_seconds: latest.oldest,
            quota_percent: latest.grant.map(Quota::percent),
            gpu_milliseconds_per_request: state.watched.estimate().map(|estimate| estimate.gpu.millis_f64()),
            slo: slo.map(|slo| slo.to_string()),
            needs: state.asked.iter().map(|(asker, terms)| (asker.clone(), told(terms))).collect(),
        }
    }
}

impl State {
    /// What of the function is left to us, given who else scales it.
    fn left(&self, wish: &Wish, owners: &[Owner]) -> Left {
        let controller = self.deployment.controller.as_ref();
        let controller = controller.map(|name| Owner {
            kind: Kind::Controller,
            name: name.clone(),
            pause: Pause::default(),
        });
        let owners: Vec<_> = owners.iter().cloned().chain(controller).collect();
        owners::left(wish.scaling, self.deployment.annotations.contains_key(annotation::REPLICAS), &owners)
    }

    fn held(&self, now: Nanos) -> u32 {
        self.held.filter(|&(_, until)| now < until).map_or(0, |(held, _)| held)
    }

    fn is_starting(&self, now: Nanos) -> bool {
        self.starting.is_some_and(|since| now.since(since) < STARTING)
    }

    /// Whether what is known is enough to tell what is needed.
    fn check(&self, entry: &Entry, settings: &Settings, now: Nanos) -> Result<(), Unknown> {
        if let Err(invalid) = &self.wish {
            return Err(Unknown::Wish(invalid.clone()));
        }
        // Where there is no replica that could be read, nothing is missing.
        let is_empty = self.deployment.replicas == 0 && !settings.shows_empty;
        let ago = now.since(self.watched.read());
        let function = entry.name.clone();
        match self.watched.is_read() {
            _ if is_empty || self.starting.is_some() => Ok(()),
            false => Err(Unknown::NotRead(function)),
            true if ago > settings.stale => Err(Unknown::Stale { function, ago: ago.secs_f64() }),
            true => Ok(()),
        }
    }

    fn need(&self, terms: &Terms, settings: &Settings, now: Nanos) -> Need {
        let scene = Scene {
            now,
            wish: self.wish.as_ref().ok().and_then(Option::as_ref),
            present: self.deployment.replicas,
            is_starting: self.is_starting(now),
            held: self.held(now),
            reach: self.reach,
            gpu_memory: settings.gpu_memory,
            window: settings.window,
        };
        self.watched.need(&scene, terms)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A span of the library as one of the clock's.
pub(super) fn nanos(span: Duration) -> Nanos {
    Nanos(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}
