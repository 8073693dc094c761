//! What is known of each function now: its Deployment and pods, what they showed, what was asked.
//!
//! Writers are `cluster`, `sampler` and `web`; whoever asks reads. A lock is held for as long as one need takes to be judged,
//! never while something is waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::latency::Profiles;
use gpu_share::units::{Bytes, Nanos};
use serde::Serialize;
use tokio::sync::watch;

use super::clock::Clock;
use super::decisions::Decisions;
use super::fleet::{Deployment, FunctionName, Pod, PodName};
use super::overview::{self, FunctionSummary, Overview, ReplicaSummary};
use crate::keda::metadata::Terms;
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
    deployments_listed: AtomicBool,
    pods_listed: AtomicBool,
    /// What was told to KEDA, and why.
    pub(super) decisions: Decisions,
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
            deployments_listed: AtomicBool::new(false),
            pods_listed: AtomicBool::new(false),
            decisions: Decisions::default(),
        }
    }

    /// Whether it is known which functions there are.
    pub(super) fn is_listed(&self) -> bool {
        self.deployments_listed.load(Relaxed) && self.pods_listed.load(Relaxed)
    }

    /// A Deployment is there, or has changed.
    pub(super) fn put(&self, name: FunctionName, deployment: Deployment) {
        if let Some(entry) = self.entry(&name) {
            entry.change(deployment, &self.settings, self.clock.now());
            return;
        }
        let entry = Entry::new(name.clone(), deployment, &self.settings, self.clock.now());
        write(&self.functions).insert(name, Arc::new(entry));
    }

    /// A Deployment is gone, or has opted out.
    pub(super) fn remove(&self, name: &FunctionName) {
        write(&self.functions).remove(name);
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
        let starts = self.starts();
        for entry in self.entries() {
            let reading = readings.get(&entry.name);
            let is_ready = roster.get(&entry.name).is_some_and(|replicas| !replicas.is_empty());
            let cold_start = starts.get(&entry.name).copied().unwrap_or(self.settings.cold_start);
            entry.observe(reading, is_ready, cold_start, self.clock.now());
        }
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
    fn new(name: FunctionName, deployment: Deployment, settings: &Settings, now: Nanos) -> Self {
        let wish = wish(&deployment, settings);
        let watched = watched(&wish, settings, now);
        let (starting, held, asked, told) = (None, None, BTreeMap::new(), None);
        let state = Mutex::new(State { deployment, wish, watched, starting, held, asked, told });
        Self { name, state, changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, deployment: Deployment, settings: &Settings, now: Nanos) {
        let mut state = self.lock();
        if state.deployment == deployment {
            return;
        }
        let wish = wish(&deployment, settings);
        if wish != state.wish {
            // Another model or share: what was learnt holds no more.
            state.watched = watched(&wish, settings, now);
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
            quota_percent: latest.grant.map(gpu_share::units::Quota::percent),
            gpu_milliseconds_per_request: state.watched.estimate().map(|estimate| estimate.gpu.millis_f64()),
            slo: slo.map(|slo| slo.to_string()),
            needs: state.asked.iter().map(|(asker, terms)| (asker.clone(), told(terms))).collect(),
        }
    }
}

impl State {
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
            gpu_memory: settings.gpu_memory,
            window: settings.window,
        };
        self.watched.need(&scene, terms)
    }
}

fn wish(deployment: &Deployment, settings: &Settings) -> Result<Option<Wish>, Invalid> {
    Wish::read(&deployment.annotations, settings.gpu_memory, &settings.profiles)
}

fn watched(wish: &Result<Option<Wish>, Invalid>, settings: &Settings, now: Nanos) -> Watched {
    Watched::new(now, wish.as_ref().ok().and_then(Option::as_ref), &settings.profiles)
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
