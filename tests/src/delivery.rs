//! What part of a GPU's time clients got, as the simulated GPU itself counts it, against what they must get.
//!
//! While other programs have the processors, or the machine is slow to wake who sleeps, agent, GPU and clients lose GPU
//! time. Both are measured meanwhile and taken off what clients must get, up to a bound. What they may get at most stays.

use std::time::Duration;

use crate::node::Stats;
use crate::process::Process;
use crate::processors::Sample;
use crate::wait::until;
use crate::wakes::Wakes;

/// Time until queues of the start are settled.
pub const SETTLE: Duration = Duration::from_secs(1);
/// Longest time until debts of the start are: what was first measured on a busy machine may be much too long.
const REPAID: Duration = Duration::from_secs(20);
/// Who has run for so long since owes nothing any more, ns.
const RUN: u64 = 10_000_000;
/// Largest part of what they must get that a busy machine excuses.
const MOST_EXCUSED: f64 = 0.7;
/// Wakes within a second between one turn and the next: three turns in each window of 10 ms, and four wakes before each.
const WAKES: f64 = 1_200.0;
/// What a wake may take without an excuse.
const PROMPT: Duration = Duration::from_micros(25);
/// How often too little is watched before it counts.
const STRETCHES: usize = 3;

/// Where clients are watched.
pub trait Stand {
    /// What its simulated GPUs saw so far.
    fn stats(&self) -> Stats;

    /// Processor time up to now, with what belongs to the stand, and `clients`, as the test's own.
    fn processors(&self, clients: &[u32]) -> Sample;
}

/// The processes of a container and what they together must get of the time, percent.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Their numbers.
    pub pids: Vec<u32>,
    /// Less is wrong, unless the machine is busy.
    pub at_least: f64,
    /// More is wrong.
    pub at_most: f64,
}

impl Claim {
    /// Between two parts of the time.
    pub fn between<'a>(clients: impl IntoIterator<Item = &'a Process>, at_least: f64, at_most: f64) -> Self {
        Self { pids: clients.into_iter().map(Process::pid).collect(), at_least, at_most }
    }

    /// `percent`, give or take `tolerance`.
    pub fn exactly<'a>(clients: impl IntoIterator<Item = &'a Process>, percent: f64, tolerance: f64) -> Self {
        Self::between(clients, percent - tolerance, percent + tolerance)
    }
}

/// A stretch of time and what was delivered in it.
#[derive(Debug)]
pub struct Stretch {
    start: Stats,
    end: Stats,
    /// Part of the processors that others had.
    pub others: f64,
    /// Mean time in which this machine wakes a thread.
    wake: Duration,
}

impl Stretch {
    /// Watches for `span`.
    pub async fn watch(stand: &impl Stand, own: &[u32], span: Duration) -> Self {
        Self::during(stand, own, tokio::time::sleep(span)).await
    }

    /// Watches while `action` lasts.
    pub async fn during(stand: &impl Stand, own: &[u32], action: impl Future<Output = ()>) -> Self {
        let wakes = Wakes::watch();
        let (start, before) = (stand.stats(), stand.processors(own));
        action.await;
        let (end, others) = (stand.stats(), stand.processors(own).others_since(&before));
        Self { start, end, others, wake: wakes.mean() }
    }

    /// Part of the time that processes got together, percent.
    pub fn percent(&self, pids: &[u32]) -> f64 {
        100.0 * pids.iter().map(|&pid| self.end.part_since(&self.start, pid)).sum::<f64>()
    }

    /// Part of the time in which any kernel ran on GPU 0, percent.
    #[allow(clippy::cast_precision_loss)] // Differences of seconds, in nanoseconds.
    pub fn busy_percent(&self) -> f64 {
        let busy = self.end.gpus[0].busy_ns - self.start.gpus[0].busy_ns;
        100.0 * busy as f64 / (self.end.now_ns - self.start.now_ns) as f64
    }

    /// What of that which clients must get is due on a machine as busy and as slow to wake as this one was.
    pub fn due(&self) -> f64 {
        let waking = WAKES * self.wake.saturating_sub(PROMPT).as_secs_f64();
        1.0 - (self.others + waking).min(MOST_EXCUSED)
    }

    /// Prints what was delivered, and checks that all got what they must.
    pub fn check(&self, what: &str, claims: &[Claim]) {
        let got = self.got(claims);
        println!(
            "{what}: {got:.2?} % of the time; others had {:.1} % of the processors, a wake took {:?}",
            100.0 * self.others,
            self.wake
        );
        self.check_ceilings(what, claims);
        for (claim, got) in claims.iter().zip(got) {
            let at_least = claim.at_least * self.due();
            assert!(got >= at_least, "{what}: {got:.2} % where {at_least:.2} % are due");
        }
    }

    fn check_ceilings(&self, what: &str, claims: &[Claim]) {
        for (Claim { at_most, .. }, got) in claims.iter().zip(self.got(claims)) {
            assert!(got <= *at_most, "{what}: {got:.2} % where {at_most:.2} % are allowed");
        }
    }

    fn falls_short(&self, claims: &[Claim]) -> bool {
        claims.iter().zip(self.got(claims)).any(|(claim, got)| got < claim.at_least * self.due())
    }

    fn got(&self, claims: &[Claim]) -> Vec<f64> {
        claims.iter().map(|claim| self.percent(&claim.pids)).collect()
    }
}

/// Waits until queues and debts of the start of `pids` are settled.
pub async fn settle(stand: &impl Stand, pids: &[u32]) {
    tokio::time::sleep(SETTLE).await;
    let start = stand.stats();
    until("all to run", REPAID, async || {
        let now = stand.stats();
        pids.iter().all(|&pid| now.busy_ns(pid) >= start.busy_ns(pid) + RUN).then_some(())
    })
    .await;
}

/// Lets things settle, watches for `span`, and checks that all get what they must. Who gets too little is watched again, as a
/// neighbour on this machine's host takes time that nothing here shows; nobody ever may get too much.
pub async fn get_their_time(what: &str, stand: &impl Stand, span: Duration, claims: &[Claim]) {
    let own: Vec<_> = claims.iter().flat_map(|claim| claim.pids.iter().copied()).collect();
    settle(stand, &own).await;
    for _ in 1..STRETCHES {
        let stretch = Stretch::watch(stand, &own, span).await;
        if !stretch.falls_short(claims) {
            return stretch.check(what, claims);
        }
        println!("{what}: too little, watched again: {:.2?} %", stretch.got(claims));
        stretch.check_ceilings(what, claims);
    }
    Stretch::watch(stand, &own, span).await.check(what, claims);
}
