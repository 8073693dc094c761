//! Carries out what is decided: quotas into pods' annotations, numbers into Deployments, each told in an event.
//!
//! Level-triggered: each control period says anew what is to be changed, and that replaces what still waits, so that a slow API
//! server gets the newest value only, once. So many a second and so many at a time; rises first, since what waits for one is
//! late. Nothing is sent while this scaler does not lead. What failed is not tried again: if it is still wanted, the next period
//! says so.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpu_share::names::annotation;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::board::Board;
use super::control::Shared;
use super::fleet::{FIELD_MANAGER, FunctionName, PodName};
use super::lead::Leadership;
use super::metrics::Metrics;
use crate::control::period::{Change, Direction, Past};

/// Writes at the same time.
const AT_ONCE: usize = 16;
/// Longest time for one write.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a write that failed: an API server that is down is not asked for each pod.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two events of one reason beside one function.
const EVENTS: Duration = Duration::from_secs(10);
/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Who reports events.
const REPORTER: &str = "gpufn.dev/scaler";

/// Something to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// A pod's quota.
    Quota(Change),
    /// A Deployment's replicas.
    Replicas {
        /// The function.
        function: FunctionName,
        /// How many it is told to have.
        from: u32,
        /// How many it is to have.
        to: u32,
        /// Why.
        reason: String,
    },
}

/// What is written at most once at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Pod(PodName),
    Deployment(FunctionName),
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Vec<(Subject, Write)>>,
    wake: Notify,
}

impl Outbox {
    /// This, and nothing else, is to be written.
    pub(super) fn replace(&self, writes: Vec<Write>) {
        let subjects = writes.into_iter().filter_map(|write| Some((write.subject()?, write)));
        // Taken from the end: replicas last, so that they go first, then rises.
        let mut waiting: Vec<_> = subjects.collect();
        waiting.sort_by_key(|(_, write)| std::cmp::Reverse(write.order()));
        let is_any = !waiting.is_empty();
        *self.lock() = waiting;
        if is_any {
            self.wake.notify_one();
        }
    }

    /// The next one whose subject is not being written.
    fn next(&self, under_way: &HashSet<Subject>) -> Option<(Subject, Write)> {
        let mut waiting = self.lock();
        let place = waiting.iter().rposition(|(subject, _)| !under_way.contains(subject))?;
        Some(waiting.remove(place))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Subject, Write)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    fn subject(&self) -> Option<Subject> {
        match self {
            Self::Quota(change) => {
                let (namespace, _) = change.function.split_once('/')?;
                Some(Subject::Pod(PodName { namespace: namespace.into(), name: change.pod.clone() }))
            }
            Self::Replicas { function, .. } => Some(Subject::Deployment(function.clone())),
        }
    }

    fn order(&self) -> Option<Direction> {
        match self {
            Self::Quota(change) => Some(change.direction),
            Self::Replicas { .. } => None,
        }
    }

    /// The function that it is about.
    fn function(&self) -> Option<FunctionName> {
        match self {
            Self::Quota(change) => {
                let (namespace, name) = change.function.split_once('/')?;
                Some(FunctionName { namespace: namespace.into(), name: name.into() })
            }
            Self::Replicas { function, .. } => Some(function.clone()),
        }
    }

    /// One word for metrics.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Self::Quota(change) => match change.direction {
                Direction::Raise => "raise",
                Direction::Lower => "lower",
                Direction::Park => "park",
            },
            Self::Replicas { .. } => "replicas",
        }
    }

    /// One word for events.
    fn event(&self) -> &'static str {
        match self.action() {
            "raise" => "GpuQuotaRaised",
            "lower" => "GpuQuotaLowered",
            "park" => "GpuQuotaParked",
            _ => "GpuReplicasChanged",
        }
    }

    /// What is changed, for people.
    fn what(&self) -> String {
        match self {
            Self::Quota(change) => format!("quota {} to {} %", change.from, change.percent),
            Self::Replicas { from, to, .. } => format!("replicas {from} to {to}"),
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Quota(change) => &change.reason,
            Self::Replicas { reason, .. } => reason,
        }
    }

    /// Its function, and that it was only told.
    pub(super) fn named(&self) -> (String, Past) {
        let function = self.function().map(|name| name.to_string()).unwrap_or_default();
        (function, self.past("told"))
    }

    /// What became of it.
    pub(super) fn past(&self, outcome: &str) -> Past {
        let subject = match self {
            Self::Quota(change) => change.pod.clone(),
            Self::Replicas { function, .. } => function.name.clone(),
        };
        let at = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        Past { at, subject, what: self.what(), reason: self.reason().into(), outcome: outcome.into() }
    }
}

/// Who writes.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) leadership: Arc<Leadership>,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: Arc<Shared>,
    /// Most writes a second.
    pub(super) rate: u32,
    pub(super) identity: String,
}

impl Writer {
    /// Writes what comes into `outbox`, until dropped.
    pub(super) async fn run(self, outbox: Arc<Outbox>) {
        let reporter = Reporter { controller: REPORTER.into(), instance: Some(self.identity.clone()) };
        let events = Arc::new(Events {
            recorder: Recorder::new(self.client.clone(), reporter),
            told: Mutex::default(),
        });
        // A second's worth at once, evenly after that.
        let spacing = Duration::from_secs(1) / self.rate.max(1);
        let mut due = Instant::now();
        let (mut under_way, mut tasks) = (HashSet::new(), JoinSet::<(Subject, bool)>::new());
        loop {
            let next = if tasks.len() < AT_ONCE { outbox.next(&under_way) } else { None };
            let Some((subject, write)) = next else {
                tokio::select! {
                    Some(done) = tasks.join_next() => {
                        if let Ok((subject, is_done)) = done {
                            under_way.remove(&subject);
                            if !is_done {
                                tokio::time::sleep(PAUSE).await;
                            }
                        }
                    }
                    () = outbox.wake.notified(), if tasks.len() < AT_ONCE => {}
                }
                continue;
            };
            due = (due + spacing).max(Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(due));
            tokio::time::sleep_until(due.into()).await;
            if !self.leadership.is_ours() {
                continue;
            }
            under_way.insert(subject.clone());
            let (writer, events) = (self.clone(), Arc::clone(&events));
            tasks.spawn(async move {
                let is_done = writer.carry_out(&subject, &write, &events).await;
                (subject, is_done)
            });
        }
    }

    /// Whether it was written.
    async fn carry_out(&self, subject: &Subject, write: &Write, events: &Events) -> bool {
        let written = self.metrics.writes();
        let result = match (subject, write) {
            (Subject::Pod(pod), Write::Quota(change)) => self.annotate(pod, change.percent).await,
            (Subject::Deployment(name), Write::Replicas { to, .. }) => self.scale(name, *to).await,
            _ => Ok(()),
        };
        drop(written);
        let function = write.function();
        let name = function.as_ref().map(ToString::to_string).unwrap_or_default();
        match &result {
            Ok(()) => {
                tracing::info!(
                    function = name,
                    action = write.action(),
                    what = write.what(),
                    reason = write.reason(),
                    "changed"
                );
                self.metrics.decided(write.action(), "done");
                self.shared.note(&name, write.past("done"));
                if let Some(function) = &function {
                    events.tell(write, &self.board.reference(function)).await;
                }
            }
            Err(error) => {
                tracing::warn!(
                    function = name,
                    action = write.action(),
                    what = write.what(),
                    error,
                    "not changed"
                );
                self.metrics.decided(write.action(), "failed");
                self.shared.note(&name, write.past(error));
            }
        }
        result.is_ok()
    }

    async fn annotate(&self, pod: &PodName, percent: u8) -> Result<(), String> {
        let patch = json!({"metadata": {"annotations": {annotation::QUOTA: percent.to_string()}}});
        let how = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        in_time(pods.patch_metadata(&pod.name, &how, &Patch::Merge(patch))).await?;
        self.board.asked(pod, percent);
        Ok(())
    }

    async fn scale(&self, name: &FunctionName, replicas: u32) -> Result<(), String> {
        let patch = json!({"spec": {"replicas": replicas}});
        let how = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), &name.namespace);
        in_time(deployments.patch_scale(&name.name, &how, &Patch::Merge(patch))).await
    }
}

/// A request's answer. What is gone meanwhile needs nothing written.
async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, request).await {
        Err(_) => Err(format!("no answer in {PATIENCE:?}")),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(result) => result.map(drop).map_err(|error| error.to_string()),
    }
}

/// Events beside functions. The API server's memory is small: of one reason one in a while, which Kubernetes' own rules make a
/// series of.
struct Events {
    recorder: Recorder,
    told: Mutex<HashMap<(String, &'static str), Instant>>,
}

impl Events {
    async fn tell(&self, write: &Write, regarding: &ObjectReference) {
        let key = (format!("{:?}/{:?}", regarding.namespace, regarding.name), write.event());
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.retain(|_, at| at.elapsed() < EVENTS);
            if told.contains_key(&key) {
                return;
            }
            told.insert(key, Instant::now());
        }
        let past = write.past("done");
        let event = Event {
            type_: EventType::Normal,
            reason: write.event().into(),
            note: Some(shortened(format!("{}: {}; {}", past.subject, past.what, past.reason))),
            action: "Scale".into(),
            secondary: None,
        };
        let published = tokio::time::timeout(PATIENCE, self.recorder.publish(&event, regarding)).await;
        if let Ok(Err(error)) = published {
            tracing::debug!(%error, "an event is not written");
        }
    }
}

fn shortened(mut note: String) -> String {
    let end = (0..=note.len().min(MAX_NOTE)).rev().find(|&end| note.is_char_boundary(end)).unwrap_or(0);
    note.truncate(end);
    note
}

#[cfg(test)]
mod tests {
    use gpu_share::units::Quota;

    use super::*;

    fn change(pod: &str, direction: Direction, percent: u8) -> Write {
        let (function, reason) = ("fn/resnet".into(), "because".into());
        Write::Quota(Change { function, pod: pod.into(), direction, from: Quota::ZERO, percent, reason })
    }

    fn pods(outbox: &Outbox, under_way: &HashSet<Subject>) -> Vec<String> {
        std::iter::from_fn(|| outbox.next(under_way)).map(|(_, write)| write.past("").subject).collect()
    }

    #[test]
    fn rises_go_first_and_what_is_not_wanted_any_more_is_not_written() {
        let outbox = Outbox::default();
        outbox.replace(vec![change("gone", Direction::Raise, 90)]);
        let lower = change("b", Direction::Lower, 20);
        let park = change("c", Direction::Park, 20);
        outbox.replace(vec![park, lower, change("a", Direction::Raise, 60)]);
        assert_eq!(pods(&outbox, &HashSet::new()), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_being_written_is_not_written_a_second_time() {
        let outbox = Outbox::default();
        let name = PodName { namespace: "fn".into(), name: "a".into() };
        outbox.replace(vec![change("a", Direction::Raise, 60), change("b", Direction::Raise, 60)]);
        assert_eq!(pods(&outbox, &HashSet::from([Subject::Pod(name)])), ["b"]);
        assert_eq!(pods(&outbox, &HashSet::new()), ["a"], "its newest value waits");
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert!(shortened("é".repeat(1_000)).len() <= MAX_NOTE);
    }
}
