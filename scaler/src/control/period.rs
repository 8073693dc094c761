//! One control period: what is seen becomes views, the policy decides, and its decisions become changed annotations.
//!
//! Owns what has to be remembered between two periods for that. Where a period shows too little of a function (too few of its
//! watchdogs answered), the policy sees what was there before, and nothing of what it decides is carried out: no news is no
//! reason to change a grant.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use gpu_share::annotations::{Scaling, Wish};
use gpu_share::latency::Profiles;
use gpu_share::share::Share;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};
use serde::{Deserialize, Serialize};

use super::explanation::{Explanation, ReplicaNow};
use super::owners::Left;
use super::reading::{Durations, Readings};
use super::standing::Standing;
use crate::policy::{Action, Decision, FunctionView, Gpufn, Policy, ReplicaState, ReplicaView, Tuning};
use crate::traffic::{Interval, Meter};

/// A function is watched for so long before anything about it is changed: a scaler that has just begun to lead knows only the
/// present grants, and leaves them. As long as the steady rate takes to be known within a third.
pub const WATCHED: Nanos = Nanos::from_secs(3);
/// It is watched for so long before a grant is lowered: an average over 4 s has what came before by then.
pub const KNOWN: Nanos = Nanos::from_secs(10);
/// A function without replicas is shown to the policy for so long after it had some, so that what was learnt counts when they
/// come back.
const REMEMBERED: Nanos = Nanos::from_secs(600);
/// A function that can't be read is shown for so long as it was.
const BELIEVED: Nanos = Nanos::from_secs(30);
/// Seconds over which late requests are counted.
const COUNTED: f64 = 60.0;
/// Changes of a function that are remembered for explanations.
const PAST: usize = 16;

/// What does not change.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Memory of the GPUs.
    pub gpu_memory: Bytes,
    /// Π on the nodes.
    pub window: Nanos,
}

/// One function at one moment, as the API server shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name, `namespace/name`.
    pub name: String,
    /// What it asks for.
    pub wish: Wish,
    /// Its pods.
    pub replicas: Vec<Replica>,
    /// Requests that wait in front of it.
    pub held: u32,
    /// How long a cold start takes.
    pub cold_start: Nanos,
    /// What of it may be changed.
    pub left: Left,
}

/// One pod of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its pod's name.
    pub pod: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// The quota that its annotation asks for, in percent, if it has one.
    pub asked: Option<u8>,
    /// What the node's agent says that it has.
    pub grant: Option<Quota>,
    /// UUID of its GPU and its row there, once it is bound.
    pub place: Option<(String, u32)>,
    /// Time since it was created.
    pub age: Nanos,
    /// It found no room on any node.
    pub is_unschedulable: bool,
    /// Who else has written its quota, if somebody has.
    pub written_by: Option<String>,
}

/// An annotation to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The function, `namespace/name`.
    pub function: String,
    /// The pod.
    pub pod: String,
    /// Which way.
    pub direction: Direction,
    /// What it has now.
    pub from: Quota,
    /// The value to be written, in percent.
    pub percent: u8,
    /// Why, in one line.
    pub reason: String,
}

/// Which way a grant goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Up.
    Raise,
    /// Down.
    Lower,
    /// To the floor, since nothing comes. A pod keeps what its units pay for: nobody else could have them, and the arbiter
    /// lends the time meanwhile.
    Park,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// What it was about: a pod, or the function's replicas.
    pub subject: String,
    /// What was changed.
    pub what: String,
    /// Why.
    pub reason: String,
    /// `done`, `told` (a dry run), or why it was not done.
    pub outcome: String,
}

/// Decides in every control period, for as long as this scaler leads.
#[derive(Debug)]
pub struct Controller {
    policy: Gpufn,
    settings: Settings,
    functions: HashMap<String, Known>,
    gpus: Gpus,
    past: HashMap<String, VecDeque<Past>>,
}

/// Numbers of GPUs, by UUID.
#[derive(Debug, Default)]
struct Gpus {
    numbers: HashMap<String, u32>,
    /// Replicas in this period that are not bound yet.
    unbound: u32,
}

/// What is remembered of one function.
#[derive(Debug)]
struct Known {
    meter: Meter,
    durations: BTreeMap<String, Durations>,
    /// GPU seconds that each replica had used.
    used: BTreeMap<String, f64>,
    /// Its GPUs are used in turns, so that a part of the SMs is a part of the time.
    in_turns: bool,
    /// Since when it is watched, and when it was read last and had replicas last.
    since: Option<Nanos>,
    read: Nanos,
    present: Nanos,
    view: FunctionView,
    /// Pods whose quota somebody else writes, and who.
    written_by: BTreeMap<String, String>,
    /// Requests of the last minute that were later than the objective allows, and all; older ones fade.
    late: f64,
    ended: f64,
    is_fresh: bool,
}

impl Controller {
    /// One that has seen nothing.
    pub fn new(profiles: Profiles, settings: Settings) -> Self {
        Self {
            policy: Gpufn::new(profiles, Tuning::default()),
            settings,
            functions: HashMap::new(),
            gpus: Gpus::default(),
            past: HashMap::new(),
        }
    }

    /// What to change at `now`, rises first.
    pub fn decide(&mut self, now: Nanos, seen: &[Seen], readings: &HashMap<String, Readings>) -> Vec<Change> {
        self.look(now, seen, readings);
        let shown: Vec<FunctionView> = seen
            .iter()
            .filter_map(|seen| self.functions.get(&seen.name))
            .filter(|known| known.is_shown(now))
            .map(|known| known.view.clone())
            .collect();
        let decisions = self.policy.decide(now, &shown);
        let replicas: HashMap<_, _> = seen
            .iter()
            .flat_map(|seen| {
                seen.replicas.iter().map(move |replica| (id(&seen.name, &replica.pod), (seen, replica)))
            })
            .collect();
        let change = |decision: Decision| {
            let (Action::Grant { replica, .. } | Action::Park { replica }) = &decision.action else {
                return None;
            };
            let &(seen, replica) = replicas.get(replica)?;
            self.functions.get(&seen.name)?.change(now, seen, replica, decision)
        };
        let mut changes: Vec<_> = decisions.into_iter().filter_map(change).collect();
        changes.sort_by_key(|change| change.direction);
        changes
    }

    /// Brings what is known of each function up to date.
    fn look(&mut self, now: Nanos, seen: &[Seen], readings: &HashMap<String, Readings>) {
        let names: HashSet<&str> = seen.iter().map(|seen| seen.name.as_str()).collect();
        self.functions.retain(|name, _| names.contains(name.as_str()));
        self.past.retain(|name, _| names.contains(name.as_str()));
        self.gpus.unbound = 0;
        for one in seen {
            let settings = self.settings;
            let known =
                self.functions.entry(one.name.clone()).or_insert_with(|| Known::new(now, one, settings));
            known.look(now, one, readings.get(&one.name), &mut self.gpus);
        }
        self.make_room(seen);
    }

    /// What each replica could have: what the others in its row leave.
    fn make_room(&mut self, seen: &[Seen]) {
        let mut rows: HashMap<(u32, u32), u32> = HashMap::new();
        let views = seen.iter().filter_map(|seen| self.functions.get(&seen.name)).map(|known| &known.view);
        for replica in views.flat_map(|view| &view.replicas) {
            *rows.entry((replica.gpu, replica.row)).or_default() += replica.grant.ppm();
        }
        for one in seen {
            let Some(known) = self.functions.get_mut(&one.name) else { continue };
            for replica in &mut known.view.replicas {
                let taken = rows.get(&(replica.gpu, replica.row)).copied().unwrap_or_default();
                let left = Quota::WHOLE.ppm().saturating_sub(taken.saturating_sub(replica.grant.ppm()));
                let left = Quota::from_ppm(left).unwrap_or(Quota::WHOLE);
                replica.room = left.min(replica.share.ceiling).max(replica.share.floor);
            }
        }
    }

    /// Remembers what became of a change of a function.
    pub fn note(&mut self, function: &str, past: Past) {
        let all = self.past.entry(function.into()).or_default();
        if all.len() == PAST {
            all.pop_front();
        }
        all.push_back(past);
    }

    /// What was done to a function, oldest first.
    pub fn past(&self, function: &str) -> Vec<Past> {
        self.past.get(function).map(|all| all.iter().cloned().collect()).unwrap_or_default()
    }

    /// From now on it also knows these profiles.
    pub fn learn(&mut self, profiles: Profiles) {
        self.policy.learn(profiles);
    }

    /// What a function has.
    pub fn standing(&self, function: &str) -> Option<Standing> {
        let known = self.functions.get(function)?;
        let explained = self.policy.explain(&known.view);
        let chosen = explained.iter().flat_map(|explained| &explained.candidates).find(|one| one.is_chosen);
        let name = |replica: &ReplicaView| replica.id.rsplit('/').next().unwrap_or_default().to_string();
        let replicas = &known.view.replicas;
        Some(Standing {
            ready: replicas.iter().filter(|replica| replica.state == ReplicaState::Ready).count(),
            rate: explained.as_ref().map_or(0.0, |explained| explained.rate),
            forecast: explained.as_ref().map_or(0.0, |explained| explained.ready_for),
            planned: chosen.map(|chosen| chosen.quota_percent),
            late: known.late,
            ended: known.ended,
            slo: known.view.wish.slo.map(|slo| slo.to_string()),
            grants: replicas.iter().map(|replica| (name(replica), replica.grant.percent())).collect(),
        })
    }

    /// Fills in what is known of a function.
    pub fn explain(&self, now: Nanos, explanation: &mut Explanation) {
        let name = explanation.function.as_str();
        explanation.past = self.past.get(name).map(|all| all.iter().cloned().collect()).unwrap_or_default();
        let Some(known) = self.functions.get(name) else { return };
        explanation.watched_seconds = known.since.map_or(0.0, |since| now.since(since).secs_f64());
        explanation.known = self.policy.explain(&known.view);
        explanation.replicas = ReplicaNow::all(&known.view, &known.written_by);
    }
}

impl Known {
    fn new(now: Nanos, seen: &Seen, settings: Settings) -> Self {
        Self {
            meter: Meter::default(),
            durations: BTreeMap::new(),
            used: BTreeMap::new(),
            in_turns: false,
            since: None,
            read: now,
            present: now,
            view: FunctionView {
                name: seen.name.clone(),
                wish: seen.wish.clone(),
                gpu_memory: settings.gpu_memory,
                window: settings.window,
                replicas: Vec::new(),
                arrivals: 0,
                held: 0,
                in_flight: 0,
                latencies: Vec::new(),
                cold_start: seen.cold_start,
                no_room: false,
            },
            written_by: BTreeMap::new(),
            late: 0.0,
            ended: 0.0,
            is_fresh: false,
        }
    }

    /// Whether the policy is to see it.
    fn is_shown(&self, now: Nanos) -> bool {
        now.since(self.read) <= BELIEVED && now.since(self.present) <= REMEMBERED
    }

    fn look(&mut self, now: Nanos, seen: &Seen, readings: Option<&Readings>, gpus: &mut Gpus) {
        if !seen.replicas.is_empty() {
            self.present = now;
        }
        let interval = readings.and_then(|readings| self.meter.advance(&readings.counted).ok());
        self.is_fresh = interval.is_some();
        let latencies = readings.filter(|_| self.is_fresh).map(|readings| self.take_in(now, readings));
        if let Some(ceiling) = readings.and_then(|readings| readings.ceiling) {
            self.in_turns = are_in_turns(&seen.wish.share, ceiling);
        }
        let others = seen.replicas.iter().filter_map(|one| Some((one.pod.clone(), one.written_by.clone()?)));
        self.written_by = others.collect();
        let wish = self.wish(&seen.wish);
        if wish.share != self.view.wish.share {
            // What was learnt holds for another share.
            self.since = self.since.map(|_| now);
        }
        let counted = readings.map(|readings| &readings.counted);
        let replicas = seen.replicas.iter().map(|replica| {
            let shown = counted.and_then(|counted| counted.replicas.get(&replica.pod));
            let (gpu, row) = gpus.place(replica);
            let grant = shown.and_then(|shown| shown.grant).or(replica.grant).unwrap_or(wish.share.floor);
            ReplicaView {
                id: id(&seen.name, &replica.pod),
                state: replica.state,
                share: wish.share,
                gpu,
                row,
                grant,
                room: wish.share.ceiling,
                in_flight: shown.map_or(0, |shown| whole(shown.in_flight)),
                age: replica.age,
                used: self.use_of(&replica.pod, shown.and_then(|shown| shown.used)),
            }
        });
        let replicas: Vec<_> = replicas.collect();
        if let Some(counted) = counted.filter(|_| self.is_fresh) {
            let used = counted.replicas.iter().filter_map(|(pod, shown)| Some((pod.clone(), shown.used?)));
            self.used = used.collect();
        }
        let Interval { arrivals, in_flight, .. } = interval.unwrap_or_default();
        self.view = FunctionView {
            replicas,
            arrivals,
            held: seen.held,
            in_flight: if self.is_fresh { whole(in_flight) } else { self.view.in_flight },
            latencies: latencies.unwrap_or_default(),
            cold_start: seen.cold_start,
            no_room: seen.replicas.iter().any(|replica| replica.is_unschedulable),
            wish,
            name: self.view.name.clone(),
            ..self.view
        };
    }

    /// Latencies of the requests that ended since the reading before. Those of a replica that is new here are past.
    fn take_in(&mut self, now: Nanos, readings: &Readings) -> Vec<Nanos> {
        let keep = (-now.since(self.read).secs_f64() / COUNTED).exp();
        self.read = now;
        self.since = self.since.or(Some(now));
        let latencies: Vec<_> = readings
            .durations
            .iter()
            .filter_map(|(pod, durations)| Some(durations.since(self.durations.get(pod)?)))
            .flatten()
            .collect();
        self.durations.clone_from(&readings.durations);
        let is_late = |latency: &&Nanos| self.view.wish.slo.is_some_and(|slo| **latency > slo.bound);
        self.late = self.late * keep + number(latencies.iter().filter(is_late).count());
        self.ended = self.ended * keep + number(latencies.len());
        latencies
    }

    /// GPU time that a replica has used since the reading before.
    fn use_of(&self, pod: &str, used: Option<f64>) -> Nanos {
        let since = used.zip(self.used.get(pod)).map(|(used, before)| (used - before).max(0.0));
        since.map_or(Nanos::ZERO, Nanos::from_secs_f64)
    }

    /// What the policy is shown as the wish. How many replicas there are is not its business here: KEDA or
    /// [`super::replicas`] says that, by what it needs ahead.
    fn wish(&self, wish: &Wish) -> Wish {
        let share = if self.in_turns { in_turns(&wish.share) } else { wish.share };
        let scaling = match wish.scaling {
            Scaling::Hybrid | Scaling::Vertical => Scaling::Vertical,
            Scaling::Horizontal | Scaling::Off => Scaling::Off,
        };
        Wish { share, scaling, ..wish.clone() }
    }

    /// What a decision means for a pod's annotation, if it may be carried out and changes anything.
    fn change(&self, now: Nanos, seen: &Seen, replica: &Replica, decision: Decision) -> Option<Change> {
        let view = self.view.replicas.iter().find(|view| view.id == id(&seen.name, &replica.pod))?;
        let share = &self.view.wish.share;
        let (quota, is_park) = match decision.action {
            Action::Grant { quota, .. } => (quota, false),
            Action::Park { .. } => (share.floor, true),
            _ => return None,
        };
        let percent = self.percent(quota, &seen.wish.share);
        let watched = self.since.map_or(Nanos::ZERO, |since| now.since(since));
        let is_bound = replica.place.is_some() && replica.state == ReplicaState::Ready;
        if !self.is_fresh || !is_bound || replica.written_by.is_some() || replica.asked == Some(percent) {
            return None;
        }
        let direction = match (quota > view.grant, is_park) {
            (_, true) => Direction::Park,
            (true, false) => Direction::Raise,
            (false, false) => Direction::Lower,
        };
        let (allowed, after) = match direction {
            Direction::Raise => (&seen.left.raise, WATCHED),
            Direction::Lower | Direction::Park => (&seen.left.lower, KNOWN),
        };
        (allowed.is_ok() && watched >= after).then(|| Change {
            function: seen.name.clone(),
            pod: replica.pod.clone(),
            direction,
            from: view.grant,
            percent,
            reason: decision.reason,
        })
    }

    /// A quota as the annotation says it: whole percent of the time on the SM share that was asked for, rounded up.
    fn percent(&self, quota: Quota, asked: &Share) -> u8 {
        let sm = if self.in_turns { u32::from(asked.sm.percent()) } else { 100 };
        let percent = |ppm: u32| u8::try_from(ppm.div_ceil(10_000)).unwrap_or(100);
        let wanted = u8::try_from(quota.ppm().div_ceil(sm.max(1) * 100)).unwrap_or(100);
        wanted.clamp(percent(asked.floor.ppm()), percent(asked.ceiling.ppm()))
    }
}

/// The name of a replica, as the policy has it.
fn id(function: &str, pod: &str) -> String {
    format!("{function}/{pod}")
}

impl Gpus {
    /// The number of a replica's GPU, and its row. One that is not bound yet is alone in a row that nobody has.
    fn place(&mut self, replica: &Replica) -> (u32, u32) {
        let Some((uuid, row)) = &replica.place else {
            self.unbound += 1;
            return (u32::MAX, self.unbound);
        };
        if let Some(&number) = self.numbers.get(uuid) {
            return (number, *row);
        }
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX - 1);
        self.numbers.insert(uuid.clone(), number);
        (number, *row)
    }
}

/// Whether a binding with this ceiling is of a GPU that is used in turns: the node's agent gives a part of the time there
/// for what is asked as a part of the SMs.
fn are_in_turns(asked: &Share, ceiling: Quota) -> bool {
    let off = |share: &Share| share.ceiling.ppm().abs_diff(ceiling.ppm());
    asked.sm != SmShare::WHOLE && off(&in_turns(asked)) < off(asked)
}

/// The same as all of the SMs for a part of the time, as the node's agent has it.
fn in_turns(share: &Share) -> Share {
    let part = |quota: Quota| {
        let ppm = u64::from(quota.ppm()) * u64::from(share.sm.percent()) / 100;
        Quota::from_ppm(u32::try_from(ppm).unwrap_or(u32::MAX).max(1)).unwrap_or(Quota::WHOLE)
    };
    Share { sm: SmShare::WHOLE, floor: part(share.floor), ceiling: part(share.ceiling), ..*share }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate, which is meant.
fn whole(number: f64) -> u32 {
    number.round() as u32
}

#[cfg(test)]
mod tests;
