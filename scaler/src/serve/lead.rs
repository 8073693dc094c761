//! Leads while this scaler holds the Lease: a record at the API server, kept by the rules of [`crate::control::election`].
//!
//! Who asks whether it leads asks the clock too: a scaler that was halted, or whose API server is gone, leads no more once its
//! time is over, whether or not it has noticed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gpu_share::units::Nanos;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::clock::Clock;
use super::metrics::Metrics;
use crate::control::election::{Election, Record, Step, Terms};

/// Longest time until the Lease is given back at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether this scaler leads, for all who write.
#[derive(Debug)]
pub(super) struct Leadership {
    clock: Clock,
    /// When it ends, on that clock; 0 while another one leads.
    until: AtomicU64,
    holder: Mutex<Option<String>>,
}

impl Leadership {
    /// Nobody leads yet.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, until: AtomicU64::new(0), holder: Mutex::default() }
    }

    /// Whether it leads now.
    pub(super) fn is_ours(&self) -> bool {
        self.clock.now() < Nanos(self.until.load(Relaxed))
    }

    /// Who leads, as far as is known.
    pub(super) fn holder(&self) -> Option<String> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, election: &Election) {
        self.until.store(election.leads_until().unwrap_or(Nanos::ZERO).0, Relaxed);
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = election.holder().map(Into::into);
    }
}

/// Where the Lease is, and who stands for it.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) lease: String,
    /// A name that no other scaler has.
    pub(super) identity: String,
    pub(super) terms: Terms,
    /// Told whether there is somebody who makes grants follow the load.
    pub(super) board: Arc<Board>,
    /// Whether whoever leads does that: all scalers side by side have the same options.
    pub(super) grants: bool,
}

impl Candidate {
    /// Stands for election until `stop`, then gives the Lease back.
    pub(super) async fn run(
        self,
        leadership: Arc<Leadership>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        let clock = leadership.clock;
        let leases = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let mut election = Election::new(self.identity.clone(), self.terms);
        let mut is_failing = false;
        loop {
            let tried = tokio::select! {
                // A try that hangs must not outlast the deadline.
                tried = tokio::time::timeout(self.terms.retry().into(), self.stand(&leases, &mut election, clock)) => {
                    tried.unwrap_or_else(|_| Err("no answer".into()))
                }
                () = stop.cancelled() => break,
            };
            match (&tried, is_failing) {
                (Err(error), false) => {
                    tracing::warn!(
                        lease = self.lease,
                        error,
                        "the Lease can't be read or written; trying again"
                    );
                }
                (Ok(()), true) => tracing::info!(lease = self.lease, "the Lease is there again"),
                _ => {}
            }
            is_failing = tried.is_err();
            let led = leadership.is_ours();
            leadership.note(&election);
            self.board.grants_follow(self.grants && election.holder().is_some());
            let leads = leadership.is_ours();
            metrics.leads(leads);
            if led != leads {
                tracing::info!(leads, holder = leadership.holder(), "the leader has changed");
            }
            tokio::select! {
                () = tokio::time::sleep(self.terms.retry().into()) => {}
                () = stop.cancelled() => break,
            }
        }
        election.resign();
        leadership.note(&election);
        metrics.leads(false);
        // It may be ours without our having heard of it yet.
        if tokio::time::timeout(FAREWELL, self.give_back(&leases)).await.is_err() {
            tracing::debug!(
                "the Lease could not be given back in time; another one takes it when it has run out"
            );
        }
    }

    /// Looks at the Lease once, and writes it where that is its turn.
    async fn stand(&self, leases: &Api<Lease>, election: &mut Election, clock: Clock) -> Result<(), String> {
        let found = leases.get_opt(&self.lease).await.map_err(|error| error.to_string())?;
        let step = election.see(clock.now(), found.as_ref().map(record));
        if step == Step::Wait {
            return Ok(());
        }
        let (sent, now) = (clock.now(), Timestamp::now());
        let record = election.record(now.to_string());
        let how = PostParams::default();
        // The version that was seen goes along, so that of two who write at once one is refused.
        let lease = self.lease(found.as_ref(), &record, now, step);
        let written = match step {
            Step::Create => leases.create(&how, &lease).await,
            Step::Take | Step::Renew | Step::Wait => leases.replace(&self.lease, &how, &lease).await,
        };
        match written {
            Ok(written) => {
                election.wrote(sent, self::record(&written));
                Ok(())
            }
            // Another one was faster; what it wrote is seen at the next look.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn lease(&self, found: Option<&Lease>, record: &Record, now: Timestamp, step: Step) -> Lease {
        let acquired = found.and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
        let acquired = acquired.filter(|_| step == Step::Renew).unwrap_or(MicroTime(now));
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() },
            |found| found.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(record.holder.clone()),
            lease_duration_seconds: Some(whole_seconds(record.duration)),
            acquire_time: Some(acquired),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(record.transitions),
            ..found.and_then(|lease| lease.spec.clone()).unwrap_or_default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Says that nobody holds it, so that another one need not wait.
    async fn give_back(&self, leases: &Api<Lease>) {
        let Ok(Some(mut lease)) = leases.get_opt(&self.lease).await else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            // As client-go does, so that a reader that waits for the duration waits briefly.
            spec.lease_duration_seconds = Some(1);
            if let Err(error) = leases.replace(&self.lease, &PostParams::default(), &lease).await {
                tracing::debug!(%error, "the Lease was not given back");
            }
        }
    }
}

/// What a Lease says.
fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    Record {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        duration: Nanos::from_secs(u64::try_from(seconds).unwrap_or(0)),
        renewed: spec
            .and_then(|spec| spec.renew_time.as_ref())
            .map(|at| at.0.to_string())
            .unwrap_or_default(),
        transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
    }
}

/// A Lease counts in whole seconds.
fn whole_seconds(span: Nanos) -> i32 {
    i32::try_from(span.0 / Nanos::from_secs(1).0).unwrap_or(i32::MAX).max(1)
}

/// A name for this process that no other has: the host's, and what differs between processes there.
pub(super) fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "gpufn-scaler" } else { host.trim() };
    format!("{host}_{}_{:x}", std::process::id(), Timestamp::now().as_nanosecond())
}
