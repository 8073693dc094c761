//! Keeps each function at its wanted number of replicas, and carries each replica through its life.
//!
//! One task per function decides ([`plan`], pure), one task per replica acts. A replica that is slow or broken holds up
//! nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use gpu_share::binding::Owner;
use gpu_share::protocol::{Bind, Bound};
use gpu_share::units::Nanos;
use tokio::time::Instant;

use super::function::Function;
use super::gateway;
use super::platform::Platform;
use super::replica::{Lease, Phase, Replica};
use super::runtime::{Launch, Launched};
use super::spec::Spec;

/// A replica that lived shorter than this died young.
const YOUNG: Nanos = Nanos::from_secs(10);
/// Wait before the next start after the first early death; it doubles with each.
const FIRST_WAIT: Nanos = Nanos::from_millis(100);
const LONGEST_WAIT: Nanos = Nanos::from_secs(10);
/// Wait before the next start where there was no binding to be had.
const BIND_WAIT: Nanos = Nanos::from_millis(500);
/// Longest time from the start of a replica until it is ready.
const START: Duration = Duration::from_mins(1);
/// Longest time that a draining replica finishes what it has.
const DRAIN: Duration = Duration::from_secs(10);

/// What is to be done about the number of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    start: u32,
    /// Positions of replicas to drain.
    drain: Vec<usize>,
}

/// A replica as the plan sees it.
#[derive(Clone, Copy, Debug)]
struct Brief {
    /// Of the present deployment.
    current: bool,
    ready: bool,
    draining: bool,
}

/// Replicas of an earlier deployment go only as those of the present one become ready, unless there is no room for
/// both; of too many, the newest go first. `replicas` are oldest first.
fn plan(wanted: u32, no_room: bool, replicas: &[Brief]) -> Plan {
    let wanted = wanted as usize;
    let at = |keep: fn(&Brief) -> bool| -> Vec<usize> {
        let live = replicas.iter().enumerate().filter(|(_, brief)| !brief.draining && keep(brief));
        live.map(|(index, _)| index).collect()
    };
    let current = at(|brief| brief.current);
    let old = at(|brief| !brief.current);
    let ready = current.iter().filter(|&&index| replicas[index].ready).count();
    let mut drain: Vec<_> = current.iter().skip(wanted).copied().collect();
    let mut surplus = (ready.min(wanted) + old.len()).saturating_sub(wanted);
    if no_room && current.len() < wanted {
        surplus = surplus.max(1);
    }
    drain.extend(old.into_iter().take(surplus));
    let start = u32::try_from(wanted.saturating_sub(current.len())).unwrap_or(u32::MAX);
    Plan { start, drain }
}

/// Keeps a function at its wanted number of replicas until it is removed; then until its last replica has ended.
pub(crate) async fn keep(platform: Arc<Platform>, function: Arc<Function>) {
    loop {
        let next = reconcile(&platform, &function);
        let wait = async {
            match next {
                Some(at) => tokio::time::sleep_until(platform.clock.instant(at).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = function.reconcile.notified() => {}
            () = wait => {}
            () = function.removed.cancelled() => break,
            () = platform.shutdown.cancelled() => break,
        }
    }
    for replica in function.replicas() {
        replica.drain.cancel();
    }
}

/// Starts and drains what the plan says; returns when to look again, if not before.
fn reconcile(platform: &Arc<Platform>, function: &Arc<Function>) -> Option<Nanos> {
    // Held until what it asks for is under way: no replica is stopped between the two looks.
    let wanted = function.lock_wanted();
    let spec = function.spec();
    let replicas = function.replicas();
    let briefs: Vec<_> = replicas
        .iter()
        .map(|replica| Brief {
            current: replica.generation == spec.generation,
            ready: replica.phase().serves(),
            draining: replica.drain.is_cancelled()
                || matches!(replica.phase(), Phase::Draining | Phase::Gone),
        })
        .collect();
    let (no_room, not_before) = {
        let health = function.health();
        (health.no_room, health.not_before)
    };
    let plan = plan(*wanted, no_room, &briefs);
    for index in plan.drain {
        replicas[index].drain.cancel();
    }
    let now = platform.clock.now();
    if plan.start > 0 && now < not_before {
        return Some(not_before);
    }
    for _ in 0..plan.start {
        start(platform, function, spec.clone(), now);
    }
    None
}

fn start(platform: &Arc<Platform>, function: &Arc<Function>, spec: Arc<Spec>, now: Nanos) {
    let instance = format!("{}-{:06x}", spec.id.name, rand::random::<u32>() & 0xff_ffff);
    let replica = Arc::new(Replica::new(&instance, spec.generation, now));
    function.add_replica(replica.clone());
    let life = Life { platform: platform.clone(), function: function.clone(), spec, replica };
    platform.tasks.spawn(async move { life.run().await });
}

/// How a replica ended.
enum End {
    /// As it was told to.
    Drained,
    /// It has no binding yet: there is no room for its share, or the node agent is away.
    Waits { no_room: bool, reason: String },
    /// By itself, or it never came up.
    Died(String),
}

/// One replica's life.
struct Life {
    platform: Arc<Platform>,
    function: Arc<Function>,
    spec: Arc<Spec>,
    replica: Arc<Replica>,
}

impl Life {
    async fn run(self) {
        let end = self.live().await;
        self.replica.enter(Phase::Gone);
        self.replica.gone.cancel();
        self.function.drop_replica(&self.replica);
        self.release().await;
        self.note(&end);
        self.function.notify_waiting();
        self.function.reconcile.notify_one();
    }

    async fn live(&self) -> End {
        let binding_env = match self.bind().await {
            Ok(env) => env,
            Err(end) => return end,
        };
        self.count();
        let order = Launch {
            spec: self.spec.clone(),
            instance: self.replica.instance.clone(),
            binding_env,
            log: self.function.log.clone(),
        };
        let launched = match self.platform.runtime.launch(order).await {
            Ok(launched) => launched,
            Err(error) => return End::Died(error),
        };
        let _ = self.replica.address.set(launched.address);
        if let Some(pid) = launched.pid {
            let _ = self.replica.watchdog.set(pid);
        }
        tokio::select! {
            reason = launched.end() => return End::Died(self.with_last_line(reason)),
            () = self.replica.kill.cancelled() => return self.killed(&launched).await,
            () = self.replica.drain.cancelled() => return stop(&launched).await,
            ready = tokio::time::timeout(START, self.until_ready()) => if ready.is_err() {
                let reason = format!("not ready within {} s", START.as_secs());
                stop(&launched).await;
                return End::Died(self.with_last_line(reason));
            }
        }
        self.serve(&launched).await
    }

    /// Binds its share, if it has a wish; returns the environment that comes with it.
    async fn bind(&self) -> Result<Vec<(String, String)>, End> {
        let Some(wish) = &self.spec.wish else { return Ok(Vec::new()) };
        let share = self.platform.policy.lock().share(wish, self.platform.gpu_memory());
        let owner = Owner {
            namespace: self.spec.id.namespace.clone(),
            function: self.spec.id.name.clone(),
            instance: self.replica.instance.to_string(),
            ..Owner::default()
        };
        let Bound { binding, env, .. } = self
            .platform
            .node
            .bind(&Bind { owner, share })
            .await
            .map_err(|error| End::Waits { no_room: error.is_no_room(), reason: error.to_string() })?;
        let status = self.platform.status();
        let gpus = status.iter().flat_map(|status| &status.gpus);
        let memory = gpus.map(|gpu| &gpu.gpu).find(|gpu| gpu.id == binding.gpu).map(|gpu| gpu.memory);
        let memory = memory.unwrap_or_else(|| self.platform.gpu_memory());
        *self.replica.lease() = Some(Lease::new(binding, memory, self.platform.clock.now()));
        Ok(env)
    }

    /// Counts a replica that has its share and starts now; one that waits for room has not started.
    fn count(&self) {
        let counters = &self.function.counters;
        if counters.started.fetch_add(1, Relaxed) >= counters.initial.load(Relaxed) {
            counters.cold_starts.fetch_add(1, Relaxed);
        }
    }

    /// Asks `/_/ready` until it says yes.
    async fn until_ready(&self) {
        let Some(address) = self.replica.address.get() else { return };
        let mut wait = Duration::from_millis(10);
        while !gateway::is_ready(&self.platform.client, *address).await {
            tokio::time::sleep(wait).await;
            wait = (wait * 3 / 2).min(Duration::from_millis(50));
        }
    }

    async fn serve(&self, launched: &Launched) -> End {
        let took = self.platform.clock.now().since(self.replica.born);
        self.function.health().note_cold_start(took);
        self.replica.step(Phase::Starting, Phase::Ready);
        let reason = format!("ready after {:.2} s", took.secs_f64());
        self.record("start", &reason);
        self.function.notify_waiting();
        self.function.reconcile.notify_one();
        tokio::select! {
            reason = launched.end() => End::Died(self.with_last_line(reason)),
            () = self.replica.kill.cancelled() => self.killed(launched).await,
            () = self.replica.drain.cancelled() => {
                self.replica.enter(Phase::Draining);
                self.finish_requests(launched).await;
                stop(launched).await
            }
        }
    }

    async fn killed(&self, launched: &Launched) -> End {
        launched.kill.cancel();
        let reason = launched.end().await;
        End::Died(self.replica.fate().map_or(reason, str::to_string))
    }

    async fn finish_requests(&self, launched: &Launched) {
        let deadline = Instant::now() + DRAIN;
        loop {
            let emptied = self.replica.emptied.notified();
            if self.replica.in_flight() == 0 {
                return;
            }
            tokio::select! {
                () = emptied => {}
                _ = launched.end() => return,
                () = self.replica.kill.cancelled() => return,
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    /// Ends the binding and settles what it came to. What cannot be released now, the control loop releases later.
    async fn release(&self) {
        let lease = self.replica.lease().take();
        let Some(mut lease) = lease else { return };
        if let Err(error) = self.platform.node.release(&lease.binding.id).await {
            tracing::warn!(binding = %lease.binding.id, %error, "A binding could not be released yet.");
        }
        let used = lease.meter.used();
        lease.meter.advance(used, self.platform.clock.now());
        self.function.settle(lease.meter.totals());
    }

    /// Takes note of the end, and of when the next start may be.
    fn note(&self, end: &End) {
        let now = self.platform.clock.now();
        let age = now.since(self.replica.born);
        match end {
            End::Drained => self.record("stop", &format!("after {:.0} s", age.secs_f64())),
            End::Waits { no_room, reason } => {
                let mut health = self.function.health();
                health.not_before = now + BIND_WAIT;
                health.no_room = *no_room;
                health.problem = Some(reason.clone());
            }
            End::Died(reason) => {
                self.record("died", reason);
                let mut health = self.function.health();
                health.failures = if age < YOUNG { health.failures + 1 } else { 0 };
                health.not_before = now + wait_after(health.failures);
                health.no_room = false;
                health.problem = (health.failures > 0).then(|| {
                    let times = if health.failures == 1 {
                        "once".into()
                    } else {
                        format!("{} times", health.failures)
                    };
                    format!("a replica died young {times} in a row: {reason}")
                });
            }
        }
    }

    fn record(&self, action: &str, reason: &str) {
        self.platform.record(&self.function, Some(&self.replica.instance), action, (None, None), reason);
    }

    /// The reason, with the last thing that the replica wrote.
    fn with_last_line(&self, reason: String) -> String {
        let (lines, _) = self.function.log.since(0);
        let last =
            lines.iter().rev().find(|line| line.instance == self.replica.instance && !line.text.is_empty());
        match last {
            Some(line) => format!("{reason}: {}", line.text.chars().take(200).collect::<String>()),
            None => reason,
        }
    }
}

/// Ends a replica in good order and waits until it has.
async fn stop(launched: &Launched) -> End {
    launched.stop.cancel();
    launched.end().await;
    End::Drained
}

/// Wait before the next start after so many early deaths in a row.
fn wait_after(failures: u32) -> Nanos {
    match failures {
        0 => Nanos::ZERO,
        n => Nanos((FIRST_WAIT.0 << (n - 1).min(10)).min(LONGEST_WAIT.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Brief = Brief { current: false, ready: true, draining: false };
    const READY: Brief = Brief { current: true, ready: true, draining: false };
    const STARTING: Brief = Brief { current: true, ready: false, draining: false };
    const LEAVING: Brief = Brief { current: true, ready: true, draining: true };

    #[test]
    fn missing_replicas_start_and_the_newest_of_too_many_go() {
        assert_eq!(plan(2, false, &[READY]), Plan { start: 1, drain: vec![] });
        assert_eq!(plan(1, false, &[READY, STARTING]), Plan { start: 0, drain: vec![1] });
        assert_eq!(plan(1, false, &[LEAVING]), Plan { start: 1, drain: vec![] });
        assert_eq!(plan(0, false, &[READY, READY]), Plan { start: 0, drain: vec![0, 1] });
    }

    #[test]
    fn an_old_replica_goes_when_a_new_one_is_ready_or_nothing_else_makes_room() {
        assert_eq!(plan(1, false, &[OLD]), Plan { start: 1, drain: vec![] });
        assert_eq!(plan(1, false, &[OLD, STARTING]), Plan::default());
        assert_eq!(plan(1, false, &[OLD, READY]), Plan { start: 0, drain: vec![0] });
        assert_eq!(plan(1, true, &[OLD]), Plan { start: 1, drain: vec![0] });
        assert_eq!(plan(0, false, &[OLD]), Plan { start: 0, drain: vec![0] });
    }

    #[test]
    fn waits_double_up_to_ten_seconds() {
        let waits: Vec<_> = (0..10).map(|failures| wait_after(failures).millis_f64()).collect();
        let want = [0.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0, 10_000.0, 10_000.0];
        assert_eq!(waits, want);
    }

    proptest::proptest! {
        #[test]
        fn a_plan_reaches_the_wanted_number_and_never_drains_twice(
            wanted in 0u32..6, no_room: bool, kinds in proptest::collection::vec(0u8..4, 0..8),
        ) {
            let briefs: Vec<_> = kinds.iter().map(|kind| [OLD, READY, STARTING, LEAVING][*kind as usize]).collect();
            let plan = plan(wanted, no_room, &briefs);
            let current = briefs.iter().filter(|brief| brief.current && !brief.draining).count();
            let drained = plan.drain.iter().filter(|&&index| briefs[index].current).count();
            proptest::prop_assert_eq!(current + plan.start as usize - drained, wanted as usize);
            let mut unique = plan.drain.clone();
            unique.sort_unstable();
            unique.dedup();
            proptest::prop_assert_eq!(unique.len(), plan.drain.len());
            proptest::prop_assert!(plan.drain.iter().all(|&index| !briefs[index].draining));
        }
    }
}
