//! The control loop: five times a second it looks at the node and the counters, asks the policy, and carries out what
//! it decides. The node's events come in between.
//!
//! Every call has a deadline; one that fails costs this round only.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use gpu_share::binding::{Binding, BindingId};
use gpu_share::protocol::{Event, NodeStatus};
use gpu_share::units::{Nanos, Quota};
use scaler::policy::{Action, Decision, FunctionView, ReplicaState, ReplicaView};
use tokio::time::MissedTickBehavior;

use super::function::Function;
use super::gateway;
use super::platform::Platform;
use super::replica::{Lease, Phase, Replica};

/// Time between two rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Reports in a row without a replica's binding after which the replica is replaced: the node has lost it.
const MISSING_MAX: u32 = 3;
/// Reports in a row with a binding that no replica has after which it is released. Longer than any call that makes one.
const ORPHAN_MAX: u32 = 15;
/// Wait before the node's events are asked for again.
const EVENTS_WAIT: Duration = Duration::from_millis(200);

/// Replicas that have a binding, with their functions.
type Bound = HashMap<BindingId, (Arc<Function>, Arc<Replica>)>;

/// Runs until `up` ends.
pub(crate) async fn run(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut orphans = HashMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => round(&platform, &mut orphans).await,
            () = platform.shutdown.cancelled() => return,
        }
    }
}

async fn round(platform: &Arc<Platform>, orphans: &mut HashMap<BindingId, u32>) {
    for function in platform.functions() {
        to_zero_when_idle(platform, &function);
    }
    let asked = platform.clock.now();
    let status = match platform.node.status().await {
        Ok(status) => Arc::new(status),
        Err(error) => {
            tracing::warn!(%error, "The node agent gave no report; nothing is decided in this round.");
            return;
        }
    };
    platform.note_status(status.clone());
    observe(platform, &status, asked);
    release_orphans(platform, &status, orphans).await;
    let views: Vec<_> =
        platform.functions().iter().filter_map(|function| view(platform, function, &status)).collect();
    let decisions = platform.policy.lock().decide(platform.clock.now(), &views);
    let replicas = by_instance(platform);
    join_all(decisions.into_iter().map(|decision| carry_out(platform, &replicas, decision))).await;
}

/// Takes in what the node reports of each replica.
fn observe(platform: &Platform, status: &NodeStatus, asked: Nanos) {
    let reported: HashMap<_, _> = status.bindings().map(|binding| (&binding.binding.id, binding)).collect();
    for (function, replica) in with_replicas(platform) {
        let now = platform.clock.now();
        let mut grant = None;
        if let Some(lease) = replica.lease().as_mut() {
            match reported.get(&lease.binding.id) {
                Some(binding) => {
                    lease.observe(binding, now);
                    // A report that was on its way when the grant changed says what is past.
                    grant = Some(binding.binding.grant).filter(|_| lease.changed < asked);
                }
                None => lease.missing += u32::from(lease.changed < asked),
            }
            if lease.missing >= MISSING_MAX {
                replica.end_at_once("the node lost its binding");
            }
        }
        if let Some(grant) = grant {
            follow(platform, &function, &replica, grant);
        }
    }
}

/// The node changed a grant by itself: it woke the replica, or took back what another needed.
fn follow(platform: &Platform, function: &Function, replica: &Replica, grant: Quota) {
    if replica.phase() == Phase::Parked {
        if !grant.is_zero() {
            gateway::woken(platform, function, replica, grant);
        }
        return;
    }
    let Some(before) = replica.note_grant(grant, platform.clock.now()) else { return };
    count_vertical(function, replica, before, grant);
    let change = (Some(before.percent()), Some(grant.percent()));
    let (action, reason) = if grant < before {
        ("withdraw", "another replica in its row needed its floor")
    } else {
        ("grant", "the node raised it by itself")
    };
    platform.record(function, Some(&replica.instance), action, change, reason);
}

/// Counts a change of a running replica's grant; to and from nothing is parking and waking.
fn count_vertical(function: &Function, replica: &Replica, before: Quota, after: Quota) {
    let runs = matches!(replica.phase(), Phase::Ready | Phase::Draining);
    if runs && !before.is_zero() && !after.is_zero() {
        function.counters.vertical.fetch_add(1, Relaxed);
    }
}

/// Releases bindings that no replica has: a call that bound one but whose answer was lost, or a run before this one.
async fn release_orphans(platform: &Platform, status: &NodeStatus, orphans: &mut HashMap<BindingId, u32>) {
    let known = by_binding(platform);
    let unknown: Vec<_> =
        status.bindings().map(|b| &b.binding.id).filter(|id| !known.contains_key(id)).collect();
    orphans.retain(|id, _| unknown.contains(&id));
    for id in unknown {
        let seen = orphans.entry(id.clone()).or_default();
        *seen += 1;
        if *seen >= ORPHAN_MAX {
            tracing::warn!(binding = %id, "A binding that no replica has is released.");
            if let Err(error) = platform.node.release(id).await {
                tracing::warn!(binding = %id, %error, "It could not be released yet.");
            }
        }
    }
}

/// What the policy sees of a function; `None` if it asks nothing of a GPU or is meant to have no replica.
fn view(platform: &Platform, function: &Function, status: &NodeStatus) -> Option<FunctionView> {
    let wish = function.spec().wish.clone()?;
    if function.wanted() == 0 {
        return None;
    }
    let now = platform.clock.now();
    let (arrivals, latencies) = function.traffic().take_undecided();
    let replicas = function.replicas();
    let views = replicas.iter().filter_map(|replica| {
        let mut lease = replica.lease();
        replica_view(replica, lease.as_mut()?, status, now)
    });
    let (cold_start, no_room) = {
        let health = function.health();
        (health.cold_start(), health.no_room)
    };
    Some(FunctionView {
        name: function.label.clone(),
        wish,
        gpu_memory: platform.gpu_memory(),
        window: platform.window,
        replicas: views.collect(),
        arrivals,
        held: function.counters.held.load(SeqCst),
        in_flight: function.counters.in_flight.load(SeqCst),
        latencies,
        cold_start,
        no_room,
    })
}

fn replica_view(
    replica: &Replica,
    lease: &mut Lease,
    status: &NodeStatus,
    now: Nanos,
) -> Option<ReplicaView> {
    let state = match replica.phase() {
        Phase::Starting => ReplicaState::Starting,
        Phase::Ready => ReplicaState::Ready,
        Phase::Parked => ReplicaState::Parked,
        Phase::Draining => ReplicaState::Draining,
        Phase::Gone => return None,
    };
    Some(ReplicaView {
        id: replica.instance.to_string(),
        state,
        share: lease.binding.share,
        gpu: status.gpus.iter().find(|gpu| gpu.gpu.id == lease.binding.gpu).map_or(0, |gpu| gpu.gpu.index),
        row: lease.binding.row,
        grant: lease.binding.grant,
        room: room(status, &lease.binding),
        in_flight: replica.in_flight(),
        age: now.since(replica.born),
        used: core::mem::take(&mut lease.undecided),
    })
}

/// The most that a binding could have now: what the others in its row leave, up to its ceiling.
fn room(status: &NodeStatus, of: &Binding) -> Quota {
    let others = status
        .bindings()
        .map(|binding| &binding.binding)
        .filter(|other| other.gpu == of.gpu && other.row == of.row && other.id != of.id)
        .fold(Quota::WHOLE, |left, other| left.saturating_sub(other.grant));
    others.min(of.share.ceiling).max(of.share.floor)
}

async fn carry_out(
    platform: &Arc<Platform>,
    replicas: &HashMap<String, (Arc<Function>, Arc<Replica>)>,
    decision: Decision,
) {
    let Decision { action, reason } = decision;
    match action {
        Action::Grant { replica, quota } => {
            if let Some((function, replica)) = replicas.get(&replica) {
                grant(platform, function, replica, quota, &reason).await;
            }
        }
        Action::Park { replica } => {
            if let Some((function, replica)) = replicas.get(&replica) {
                park(platform, function, replica, &reason).await;
            }
        }
        Action::Scale { function, replicas } => {
            let (name, namespace) = openfaas::names::split(&function, openfaas::names::DEFAULT_NAMESPACE);
            // A function that a client has just set to zero stays there until a request comes.
            if let Some(function) =
                platform.function(namespace, name).filter(|function| function.wanted() > 0)
            {
                let max = function.spec().replicas.max;
                platform.set_wanted(&function, replicas.min(max), &reason);
            }
        }
        Action::Stop { replica } => {
            if let Some((function, replica)) = replicas.get(&replica) {
                platform.stop(function, replica, &reason);
            }
        }
        // Policies that keep their own books of GPUs are for comparison: on this node the ledger does.
        Action::Start { .. } => {
            tracing::warn!(?action, reason, "A decision that only the simulator carries out is left out.");
        }
    }
}

async fn grant(platform: &Arc<Platform>, function: &Function, replica: &Replica, quota: Quota, reason: &str) {
    let Some(binding) = replica.lease().as_ref().map(|lease| lease.binding.id.clone()) else { return };
    let given = match platform.node.grant(&binding, quota).await {
        Ok(given) => given,
        Err(error) => {
            tracing::warn!(instance = %replica.instance, %quota, %error, "A grant could not be changed.");
            return;
        }
    };
    if replica.phase() == Phase::Parked {
        gateway::woken(platform, function, replica, given);
        return;
    }
    if let Some(before) = replica.note_grant(given, platform.clock.now()) {
        count_vertical(function, replica, before, given);
        let change = (Some(before.percent()), Some(given.percent()));
        platform.record(function, Some(&replica.instance), "grant", change, reason);
    }
}

async fn park(platform: &Arc<Platform>, function: &Arc<Function>, replica: &Arc<Replica>, reason: &str) {
    let Some(binding) = replica.lease().as_ref().map(|lease| lease.binding.id.clone()) else { return };
    // The phase first: a request that comes from now on finds it parked and wakes it, after the node has parked it.
    if replica.in_flight() > 0 || !replica.step(Phase::Ready, Phase::Parked) {
        return;
    }
    replica.waking.store(true, SeqCst);
    match platform.node.grant(&binding, Quota::ZERO).await {
        Ok(_) => {
            let before = replica.note_grant(Quota::ZERO, platform.clock.now()).unwrap_or_default();
            function.counters.parks.fetch_add(1, Relaxed);
            let change = (Some(before.percent()), Some(0.0));
            platform.record(function, Some(&replica.instance), "park", change, reason);
        }
        Err(error) => {
            tracing::warn!(instance = %replica.instance, %error, "A replica could not be parked.");
            replica.step(Phase::Parked, Phase::Ready);
        }
    }
    replica.waking.store(false, SeqCst);
    if replica.in_flight() > 0 && replica.phase() == Phase::Parked {
        // It came while the node was parking, and left the waking to us.
        gateway::wake(platform, function, replica);
    }
}

/// `com.openfaas.scale.zero` of a function that no policy looks after.
fn to_zero_when_idle(platform: &Platform, function: &Function) {
    let spec = function.spec();
    let Some(after) = spec.zero_after.filter(|_| spec.wish.is_none()) else { return };
    let busy = function.counters.in_flight.load(SeqCst) + function.counters.held.load(SeqCst) > 0;
    let newest = function.replicas().iter().map(|replica| replica.born).max().unwrap_or_default();
    let idle = platform.clock.now().since(function.traffic().last().max(newest));
    if !busy && function.wanted() > 0 && Duration::from(idle) >= after {
        platform.set_wanted(function, 0, &format!("no request for {:.0} s", idle.secs_f64()));
    }
}

/// Follows the node's events until `up` ends; asks again whenever the node agent comes back.
pub(crate) async fn follow_events(platform: Arc<Platform>) {
    loop {
        let followed = platform.node.events(|event| on_event(&platform, &event));
        tokio::select! {
            ended = followed => if let Err(error) = ended { tracing::debug!(%error, "The node's events ended."); },
            () = platform.shutdown.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(EVENTS_WAIT) => {}
            () = platform.shutdown.cancelled() => return,
        }
    }
}

fn on_event(platform: &Platform, event: &Event) {
    match event {
        Event::Woken { binding, grant } | Event::Withdrawn { binding, grant } => {
            if let Some((function, replica)) = by_binding(platform).get(binding) {
                follow(platform, function, replica, *grant);
            }
        }
        Event::Attached { .. } | Event::Detached { .. } | Event::Health { .. } | Event::Xid { .. } => {}
    }
}

/// Ends all replicas that use a GPU, at once: the GPU is not the one any more that they opened.
pub(crate) fn replace_gpu_replicas(platform: &Platform) {
    for (_, replica) in with_replicas(platform) {
        if replica.lease().is_some() {
            replica.end_at_once("the simulated GPU that it had open is gone");
        }
    }
}

fn with_replicas(platform: &Platform) -> Vec<(Arc<Function>, Arc<Replica>)> {
    let functions = platform.functions().into_iter();
    functions
        .flat_map(|function| function.replicas().into_iter().map(move |replica| (function.clone(), replica)))
        .collect()
}

fn by_binding(platform: &Platform) -> Bound {
    let pairs = with_replicas(platform).into_iter();
    pairs
        .filter_map(|(function, replica)| {
            let id = replica.lease().as_ref().map(|lease| lease.binding.id.clone())?;
            Some((id, (function, replica)))
        })
        .collect()
}

fn by_instance(platform: &Platform) -> HashMap<String, (Arc<Function>, Arc<Replica>)> {
    let pairs = with_replicas(platform).into_iter();
    pairs.map(|pair| (pair.1.instance.to_string(), pair)).collect()
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{GpuId, Owner};
    use gpu_share::ledger::{Gpu, Sharing};
    use gpu_share::protocol::{BindingStatus, GpuStatus, Health};
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, SmShare, Units};

    use super::*;

    fn percent(percent: u8) -> Quota {
        Quota::from_percent(percent).unwrap()
    }

    fn binding(id: &str, row: u32, grant: u8) -> Binding {
        let share = Share::new(SmShare::WHOLE, percent(10), percent(80), Bytes::ZERO).unwrap();
        Binding {
            id: id.to_string().try_into().unwrap(),
            owner: Owner::default(),
            gpu: GpuId("g".into()),
            share,
            grant: percent(grant),
            row,
        }
    }

    fn status(bindings: &[Binding]) -> NodeStatus {
        let of = |binding: &Binding| BindingStatus {
            binding: binding.clone(),
            used: Nanos::ZERO,
            throttled: Nanos::ZERO,
            memory_used: Bytes::ZERO,
            processes: vec![],
            launches: 0,
            unknown: 0,
            faults: 0,
        };
        let gpu = Gpu {
            id: GpuId("g".into()),
            index: 0,
            name: String::new(),
            memory: Bytes::gib(1),
            sharing: Sharing::Mps,
        };
        let gpu = GpuStatus {
            gpu,
            health: Health::Healthy,
            free_units: Units(0),
            largest_fit: Units(0),
            bindings: bindings.iter().map(of).collect(),
        };
        NodeStatus { version: String::new(), pid: 1, units_per_gpu: Units(20), blind: None, gpus: vec![gpu] }
    }

    #[test]
    fn room_is_what_the_row_leaves_up_to_the_ceiling_and_at_least_the_floor() {
        let (a, b, c) = (binding("a", 0, 20), binding("b", 0, 50), binding("c", 1, 80));
        let status = status(&[a.clone(), b.clone(), c.clone()]);
        assert_eq!(room(&status, &a), percent(50));
        assert_eq!(room(&status, &b), percent(80));
        assert_eq!(room(&status, &c), percent(80));
        let full = super::tests::status(&[a.clone(), binding("d", 0, 100)]);
        assert_eq!(room(&full, &a), percent(10));
    }
}
