//! Runs side by side, one for each core, with a progress bar.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use faas_sim::cluster::Cluster;
use faas_sim::report::Report;
use gpu_share::invalid::Invalid;

use super::policies::{is_launch_gated, policy};
use super::scenario::Scenario;
use crate::audit::bar;

/// One run that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Runs of one label are shown together.
    pub(super) label: String,
    pub(super) policy: String,
    pub(super) seed: u64,
    pub(super) scenario: Scenario,
}

/// What came of one.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) label: String,
    pub(super) seed: u64,
    pub(super) report: Report,
    /// Time that the simulation took, in seconds.
    pub(super) took: f64,
}

impl Run {
    /// Runs it.
    pub(super) fn run(&self) -> Result<Done, Invalid> {
        let spec = self.scenario.under(is_launch_gated(&self.policy), self.seed);
        let cluster = Cluster::new(&spec, policy(&self.policy, &self.scenario, self.seed)?)?;
        let started = Instant::now();
        let report = cluster.run();
        let took = started.elapsed().as_secs_f64();
        Ok(Done { label: self.label.clone(), seed: self.seed, report, took })
    }
}

/// Runs all, in any order; what came of them is in theirs.
pub(super) fn run_all(runs: &[Run]) -> Result<Vec<Done>, Invalid> {
    // A name that is wrong is said before anything runs.
    for run in runs {
        policy(&run.policy, &run.scenario, run.seed)?;
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let progress = bar(runs.len());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = runs.get(index) else { return };
            let done = run.run();
            found.lock().unwrap_or_else(PoisonError::into_inner).push((index, done));
            progress.inc(1);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(runs.len());
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    progress.finish_and_clear();
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, done)| done).collect()
}
