//! Which grants and how many replicas keep an objective, and the cheapest of them.
//!
//! Owns the test of feasibility and the search over it. It decides nothing over time: when to change is the policy's.

use core::ops::RangeInclusive;

use gpu_share::annotations::Slo;
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota};

use crate::profile::Estimate;
use crate::queueing::Queue;

/// Busiest that a queue may be planned, whatever the formulas say: near 1 a small error of the rate is a long queue.
const BUSIEST: f64 = 0.9;
/// Part of the misses that the objective allows which may come from more load than forecast; the rest is the queue's.
///
/// The smaller one is, the wider the forecast, and the larger the other, the smaller the grant: a rate's quantile rises
/// slowly towards the tail, a wait's does not.
pub const FORECAST_PART: f64 = 0.2;
/// Part of the granted time that is planned to be used where there is no objective.
const UTILISATION: f64 = 0.7;
/// Distance of the quotas that are tried, in parts per million.
const STEP: u32 = 50_000;

/// What a plan has to bear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Squared coefficient of variation of the times between arrivals.
    pub arrival_scv: f64,
}

/// One function, as far as a plan needs it.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Time of one request.
    pub estimate: &'a Estimate,
    /// Share of each replica: the floor and ceiling of its grant.
    pub share: &'a Share,
    /// Objective, if there is one.
    pub slo: Option<Slo>,
    /// Π on the nodes.
    pub window: Nanos,
    /// Memory of the GPU.
    pub gpu_memory: Bytes,
}

/// A feasible choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of replicas.
    pub replicas: u32,
    /// Quota of each, or the most that it can have if that is less.
    pub quota: Quota,
    /// Sum of the dominant shares.
    pub cost: Area,
}

impl Problem<'_> {
    /// Whether replicas that are granted `quotas` keep the objective under `load`.
    ///
    /// By the union bound, a part `(1 − percentile)` may be spent on three things: load above the forecast
    /// ([`FORECAST_PART`] of it, the caller's), requests that wait too long (the rest), and service longer than its
    /// bound (next to nothing, since the bound is a guarantee). An objective that even the ceiling can't keep for a lone request, and no objective at
    /// all, are planned by utilisation.
    pub fn feasible(&self, quotas: &[Quota], load: Load) -> bool {
        let Some(slack) = self.slack(quotas) else { return load.rate <= 0.0 };
        let Some(slo) = self.slo.filter(|slo| self.reachable(slo)) else {
            return self.utilised(quotas, load.rate);
        };
        let Some(queue) = self.queue(quotas, load) else { return false };
        slack >= 0.0
            && queue.load() <= BUSIEST
            && queue.wait_tail(slack) <= (1.0 - FORECAST_PART) * (1.0 - slo.percentile)
    }

    /// The latency in seconds that the objective's percentile (or 95 %) of the requests keeps to; infinite if none.
    pub fn latency(&self, quotas: &[Quota], load: Load) -> f64 {
        let percentile = self.slo.map_or(0.95, |slo| slo.percentile);
        let least = quotas.iter().copied().min().unwrap_or(Quota::ZERO);
        let (Some(queue), Some(bound)) = (self.queue(quotas, load), self.estimate.bound(least, self.window))
        else {
            return f64::INFINITY;
        };
        queue.wait_quantile(FORECAST_PART + (1.0 - FORECAST_PART) * percentile) + bound.secs_f64()
    }

    /// The smallest quota of the grid with which replicas that can have at most `caps` bear `load`, `None` if none.
    ///
    /// A larger quota is never worse, so the grid (floor, then every 5 %, then the ceiling) is searched by halving.
    pub fn level(&self, caps: &[Quota], load: Load) -> Option<Quota> {
        let grid = self.grid();
        let holds = |quota: &Quota| self.feasible(&self.grants(*quota, caps), load);
        grid.get(grid.partition_point(|quota| !holds(quota))).copied()
    }

    /// The cheapest plan that bears `load` with a number of replicas in `counts`, `None` if none does.
    ///
    /// The first replicas can have at most `caps`, further ones up to the ceiling. Exact over the grid: counts end
    /// where their floors alone cost more than the best plan.
    pub fn cheapest(&self, caps: &[Quota], counts: RangeInclusive<u32>, load: Load) -> Option<Plan> {
        let floor = self.share.dominant(self.gpu_memory).ppm();
        let mut best: Option<Plan> = None;
        for replicas in counts.skip_while(|&n| self.hopeless(n, load)) {
            if best.is_some_and(|best| best.cost.ppm() < floor * u64::from(replicas)) {
                break;
            }
            let caps = self.extended(caps, replicas);
            let Some(quota) = self.level(&caps, load) else { continue };
            let grants = self.grants(quota, &caps);
            let cost = grants.iter().map(|&grant| self.share.dominant_at(grant, self.gpu_memory)).sum();
            if best.is_none_or(|best| cost < best.cost) {
                best = Some(Plan { replicas, quota, cost });
            }
        }
        best
    }

    /// `caps` cut or lengthened to `replicas`: a new replica may get up to the ceiling.
    pub fn extended(&self, caps: &[Quota], replicas: u32) -> Vec<Quota> {
        let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
        caps.iter().copied().chain(core::iter::repeat(self.share.ceiling)).take(wanted).collect()
    }

    /// What each of the replicas gets at `quota`: at least its floor, at most its cap.
    pub fn grants(&self, quota: Quota, caps: &[Quota]) -> Vec<Quota> {
        caps.iter().map(|&cap| quota.min(cap).max(self.share.floor)).collect()
    }

    /// The quotas that are tried, in rising order.
    fn grid(&self) -> Vec<Quota> {
        let (floor, ceiling) = (self.share.floor.ppm(), self.share.ceiling.ppm());
        let multiples = (floor / STEP + 1..).map(|n| n * STEP).take_while(|&ppm| ppm < ceiling);
        let mut grid: Vec<Quota> = core::iter::once(floor)
            .chain(multiples)
            .chain(core::iter::once(ceiling))
            .filter_map(|ppm| Quota::from_ppm(ppm).ok())
            .collect();
        grid.dedup();
        grid
    }

    /// Whether a lone request keeps `slo` at the ceiling.
    fn reachable(&self, slo: &Slo) -> bool {
        self.estimate.bound(self.share.ceiling, self.window).is_some_and(|bound| bound <= slo.bound)
    }

    /// Whether a lone request on a replica at `quota` keeps the objective, or none could.
    pub fn serves(&self, quota: Quota) -> bool {
        let Some(slo) = self.slo.filter(|slo| self.reachable(slo)) else { return true };
        self.estimate.bound(quota, self.window).is_some_and(|bound| bound <= slo.bound)
    }

    /// Seconds that a request may wait at the slowest of the replicas and still keep the objective.
    fn slack(&self, quotas: &[Quota]) -> Option<f64> {
        let bound = self.estimate.bound(quotas.iter().copied().min()?, self.window)?;
        Some(self.slo.map_or(0.0, |slo| slo.bound.secs_f64() - bound.secs_f64()))
    }

    /// All replicas behind one queue, each as fast as they are on average: requests go where the fewest are.
    fn queue(&self, quotas: &[Quota], load: Load) -> Option<Queue> {
        let servers = u32::try_from(quotas.len()).ok().filter(|&servers| servers > 0)?;
        let speed: f64 = quotas.iter().map(|&quota| 1.0 / self.estimate.mean_seconds(quota).max(1e-9)).sum();
        let least = quotas.iter().copied().min()?;
        Some(Queue {
            servers,
            rate: load.rate,
            service: f64::from(servers) / speed.max(1e-9),
            arrival_scv: load.arrival_scv,
            service_scv: self.estimate.scv(least, self.window),
        })
    }

    fn utilised(&self, quotas: &[Quota], rate: f64) -> bool {
        let granted: f64 = quotas.iter().map(|quota| quota.fraction()).sum();
        rate * self.estimate.gpu.secs_f64() <= UTILISATION * granted
    }

    /// Whether `replicas` can't bear the mean of `load` even at the ceiling.
    fn hopeless(&self, replicas: u32, load: Load) -> bool {
        let ceiling = self.share.ceiling.fraction();
        load.rate * self.estimate.gpu.secs_f64() > f64::from(replicas) * ceiling
    }
}

#[cfg(test)]
mod tests;
