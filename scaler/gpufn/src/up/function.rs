//! One function: its deployment, its replicas, its counters, and the requests that wait for a replica.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gpu_share::units::Nanos;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::accounting::Totals;
use super::logbook::LogBook;
use super::replica::{Replica, Seat};
use super::routing::{self, Candidate};
use super::spec::Spec;
use super::traffic::Traffic;
use openfaas::names::FunctionId;

/// Cold starts that the estimate rests on.
const COLD_STARTS: usize = 20;
/// Cold start of a function that never had one: a process, a context on the GPU and a small model.
const COLD_START: Nanos = Nanos::from_millis(1_500);

/// One function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) id: FunctionId,
    /// `name.namespace`, as in metric labels.
    pub(crate) label: String,
    spec: RwLock<Arc<Spec>>,
    /// Held also by whoever holds it against the replicas: which of them drain and how many there should be change in one
    /// step.
    wanted: Mutex<u32>,
    replicas: RwLock<Vec<Arc<Replica>>>,
    pub(crate) counters: Counters,
    traffic: Mutex<Traffic>,
    health: Mutex<Health>,
    /// GPU-seconds of replicas that ended.
    ended: Mutex<Totals>,
    /// Rises whenever a request that waits should look again.
    changed: watch::Sender<u64>,
    /// Its keeper should look again.
    pub(crate) reconcile: Notify,
    pub(crate) removed: CancellationToken,
    pub(crate) log: Arc<LogBook>,
}

/// Counts since it was deployed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) vertical: AtomicU64,
    pub(crate) horizontal: AtomicU64,
    pub(crate) parks: AtomicU64,
    pub(crate) wakes: AtomicU64,
    pub(crate) cold_starts: AtomicU64,
    pub(crate) held: AtomicU32,
    pub(crate) in_flight: AtomicU32,
    /// Replicas started so far, and how many of them the deployment itself asked for.
    pub(crate) started: AtomicU64,
    pub(crate) initial: AtomicU64,
}

/// How starting replicas goes.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Replicas in a row that died young or could not start.
    pub(crate) failures: u32,
    /// No start before this.
    pub(crate) not_before: Nanos,
    /// Why there are fewer replicas than wanted.
    pub(crate) problem: Option<String>,
    /// The last start found no room on a GPU.
    pub(crate) no_room: bool,
    cold_starts: Vec<Nanos>,
}

impl Function {
    /// A function with no replica yet.
    pub(crate) fn new(spec: Spec, wanted: u32, log: Arc<LogBook>) -> Self {
        let counters = Counters { initial: AtomicU64::new(wanted.into()), ..Counters::default() };
        Self {
            label: spec.id.to_string(),
            id: spec.id.clone(),
            spec: RwLock::new(Arc::new(spec)),
            wanted: Mutex::new(wanted),
            replicas: RwLock::default(),
            counters,
            traffic: Mutex::default(),
            health: Mutex::default(),
            ended: Mutex::default(),
            changed: watch::Sender::new(0),
            reconcile: Notify::new(),
            removed: CancellationToken::new(),
            log,
        }
    }

    /// The deployment that counts now.
    pub(crate) fn spec(&self) -> Arc<Spec> {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another deployment; replicas of the one before are replaced.
    pub(crate) fn update(&self, spec: Spec) {
        let mut wanted = self.lock_wanted();
        if *wanted > 0 {
            *wanted = (*wanted).clamp(spec.first_replicas(), spec.replicas.max);
        }
        // The new generation's first replicas are the deployment's own, no cold starts.
        let first = self.counters.started.load(Relaxed) + u64::from(*wanted);
        self.counters.initial.store(first, Relaxed);
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spec);
        *self.health() = Health::default();
        self.reconcile.notify_one();
    }

    pub(crate) fn wanted(&self) -> u32 {
        *self.lock_wanted()
    }

    /// The wanted number of replicas, which stays, and no replica is stopped, while this is held.
    pub(crate) fn lock_wanted(&self) -> MutexGuard<'_, u32> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the wanted number of replicas; returns the one before if it is another.
    pub(crate) fn want(&self, replicas: u32) -> Option<u32> {
        self.change_wanted(&mut self.lock_wanted(), replicas)
    }

    /// From zero to as many replicas as it starts with; returns that number if it was zero.
    pub(crate) fn want_some(&self) -> Option<u32> {
        let first = self.spec().first_replicas();
        let mut wanted = self.lock_wanted();
        if *wanted > 0 {
            return None;
        }
        self.change_wanted(&mut wanted, first);
        Some(first)
    }

    /// Tells a replica to finish what it has and end, and wants one fewer; returns the number before, if it is another.
    ///
    /// One step: who looked in between would start another in its place, or drain the newest as well. One that drains
    /// already, or is of an earlier deployment, is not among those that are wanted.
    pub(crate) fn stop(&self, replica: &Replica) -> Option<u32> {
        let mut wanted = self.lock_wanted();
        let counts = !replica.drain.is_cancelled() && replica.generation == self.spec().generation;
        replica.drain.cancel();
        let fewer = wanted.saturating_sub(u32::from(counts));
        self.change_wanted(&mut wanted, fewer)
    }

    fn change_wanted(&self, wanted: &mut u32, replicas: u32) -> Option<u32> {
        let before = core::mem::replace(wanted, replicas);
        if before == replicas {
            return None;
        }
        self.counters.horizontal.fetch_add(1, Relaxed);
        self.reconcile.notify_one();
        Some(before)
    }

    /// Its replicas, oldest first.
    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add_replica(&self, replica: Arc<Replica>) {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).push(replica);
    }

    pub(crate) fn drop_replica(&self, replica: &Arc<Replica>) {
        let mut replicas = self.replicas.write().unwrap_or_else(PoisonError::into_inner);
        replicas.retain(|other| !Arc::ptr_eq(other, replica));
    }

    /// A place for a request at the replica that has the fewest.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        loop {
            let candidates = replicas.iter().map(|replica| {
                let phase = replica.phase();
                let parked = phase == super::replica::Phase::Parked;
                phase.serves().then(|| Candidate { parked, in_flight: replica.in_flight() })
            });
            // No seat there means that it has just begun to drain, and is no candidate any more.
            let chosen = replicas.get(routing::choose(candidates)?)?;
            if let Some(seat) = chosen.seat() {
                return Some(seat);
            }
        }
    }

    /// Replicas that serve.
    pub(crate) fn available(&self) -> u32 {
        let serving = self.replicas().iter().filter(|replica| replica.phase().serves()).count();
        u32::try_from(serving).unwrap_or(u32::MAX)
    }

    /// Tells of every moment at which a request that waits should look again.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn notify_waiting(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    pub(crate) fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a replica came to that has ended.
    pub(crate) fn settle(&self, totals: Totals) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) += totals;
    }

    /// GPU-seconds of all its replicas so far.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for replica in self.replicas() {
            totals += replica.lease().as_ref().map(|lease| lease.meter.totals()).unwrap_or_default();
        }
        totals
    }
}

impl Health {
    /// Takes note of how long a replica took to be ready.
    pub(crate) fn note_cold_start(&mut self, took: Nanos) {
        if self.cold_starts.len() == COLD_STARTS {
            self.cold_starts.remove(0);
        }
        self.cold_starts.push(took);
        (self.problem, self.no_room) = (None, false);
    }

    /// 95th percentile of recent cold starts, or a default.
    pub(crate) fn cold_start(&self) -> Nanos {
        let mut sorted = self.cold_starts.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(COLD_START)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Wake};

    use super::*;
    use crate::up::fakes::World;

    /// Notes at the moment at which a replica is told to drain whether the wanted number can be looked at.
    struct Look {
        function: Arc<Function>,
        could: AtomicBool,
    }

    impl Wake for Look {
        fn wake(self: Arc<Self>) {
            self.could.store(self.function.wanted.try_lock().is_ok(), Relaxed);
        }
    }

    #[tokio::test]
    async fn nobody_looks_between_the_end_of_a_replica_and_one_fewer_that_is_wanted() {
        let world = World::start().await;
        world.deploy("f", "").await;
        // The same function once more, which nobody keeps.
        let spec = (*world.function("f").spec()).clone();
        let generation = spec.generation;
        let function = Arc::new(Function::new(spec, 2, Arc::new(LogBook::new(None))));
        let replica = Replica::new("i", generation, Nanos::ZERO);
        let look = Arc::new(Look { function: function.clone(), could: AtomicBool::new(true) });
        let waker = look.clone().into();
        let drained = pin!(replica.drain.cancelled());
        assert!(drained.poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(function.stop(&replica), Some(2));
        assert!(!look.could.load(Relaxed), "a look would have found two wanted and one less there");
        assert_eq!(function.wanted(), 1);
        assert_eq!(function.stop(&replica), None, "it drains already");
        let outdated = Replica::new("old", generation - 1, Nanos::ZERO);
        assert_eq!(function.stop(&outdated), None, "it is not among those that are wanted");
        assert!(outdated.drain.is_cancelled());
        assert_eq!(function.wanted(), 1);
    }

    #[test]
    fn the_cold_start_is_the_95th_percentile_of_the_last_twenty() {
        let mut health = Health::default();
        assert_eq!(health.cold_start(), COLD_START);
        for seconds in 1..=30 {
            health.note_cold_start(Nanos::from_secs(seconds));
        }
        assert_eq!(health.cold_start(), Nanos::from_secs(29));
    }
}
