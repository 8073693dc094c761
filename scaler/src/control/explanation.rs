//! Why a function has what it has: what an on-call person asks first. Only the shape; who decides fills it, `gpufn explain` prints
//! it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::period::Past;
use crate::policy::{Explained, FunctionView, ReplicaState, ReplicaView};

/// Everything about one function at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Its name, `namespace/name`.
    pub function: String,
    /// Who decides; nothing if nobody does now.
    pub decided_by: Option<String>,
    /// Whether that is who answers. Another one knows only what it is told.
    pub is_deciding: bool,
    /// The objective, if it has one.
    pub slo: Option<String>,
    /// SM share in percent.
    pub sm_percent: u8,
    /// Guaranteed quota, and the most, in percent.
    pub floor_percent: f64,
    /// The most.
    pub ceiling_percent: f64,
    /// How long it has been watched, in seconds.
    pub watched_seconds: f64,
    /// What of it is not changed, and why.
    pub left_alone: Vec<LeftAlone>,
    /// Who else scales it.
    pub owners: Vec<String>,
    /// What is known of demand and requests, and the plans that were weighed.
    pub known: Option<Explained>,
    /// Its replicas.
    pub replicas: Vec<ReplicaNow>,
    /// Replicas that it needs a cold start from now, and why.
    pub need: Option<NeedNow>,
    /// What was done last, oldest first.
    pub past: Vec<Past>,
}

/// Something that is not changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// `raise`, `lower` or `replicas`.
    pub what: String,
    /// Why.
    pub why: String,
}

/// How many replicas are needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeedNow {
    /// So many, the last one as far as it is used.
    pub replicas: f64,
    /// Why.
    pub reason: String,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaNow {
    /// Its pod.
    pub name: String,
    /// `starting`, `ready`, `parked` or `draining`.
    pub state: String,
    /// The quota that it has, in percent.
    pub grant_percent: f64,
    /// The most that it could have beside the others in its row, in percent.
    pub room_percent: f64,
    /// Requests that it has.
    pub in_flight: u32,
    /// Who else has written its quota, so that it is left alone.
    pub written_by: Option<String>,
}

impl ReplicaNow {
    /// Those of a function, as the policy saw them.
    ///
    /// Of some, somebody else writes the quota.
    pub fn all(view: &FunctionView, written_by: &BTreeMap<String, String>) -> Vec<Self> {
        let name = |replica: &ReplicaView| replica.id.rsplit('/').next().unwrap_or_default().to_string();
        let now = |replica: &ReplicaView| Self {
            name: name(replica),
            state: state(replica.state).into(),
            grant_percent: replica.grant.percent(),
            room_percent: replica.room.percent(),
            in_flight: replica.in_flight,
            written_by: written_by.get(&name(replica)).cloned(),
        };
        view.replicas.iter().map(now).collect()
    }
}

fn state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Starting => "starting",
        ReplicaState::Ready => "ready",
        ReplicaState::Parked => "parked",
        ReplicaState::Draining => "draining",
    }
}
