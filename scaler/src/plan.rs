//! Which grants and how many replicas keep an objective, and the cheapest of them.
//!
//! Owns the test of feasibility and the search over it; where there are not enough GPUs, [`pool`] divides them. It decides
//! nothing over time: when to change is the policy's.

use core::ops::RangeInclusive;

use gpu_share::annotations::Slo;
use gpu_share::share::Share;
use gpu_share::units::{Area, Bytes, Nanos, Quota};

use crate::demand::Recent;
use crate::profile::Estimate;
use crate::queueing::replay::{self, Servers};
use crate::queueing::{Batching, Queue, Slack};

pub mod pool;

/// Busiest that a queue may be planned, whatever the formulas say: near 1 a small error of the rate is a long queue.
const BUSIEST: f64 = 0.9;
/// Part of the misses that the objective allows which may come from more load than forecast.
pub const FORECAST_PART: f64 = 0.2;
/// Part of them which may come from waiting at the load that is forecast.
///
/// What is left, three fifths, is for what no plan foresees: a rate that jumps and is not borne until another replica has
/// started, cold starts, failures.
pub const WAIT_PART: f64 = 0.2;
/// Part of the granted time that is planned to be used where there is no objective.
const UTILISATION: f64 = 0.7;
/// Distance of the quotas that are tried, in parts per million.
const STEP: u32 = 50_000;

/// What a plan has to bear.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Requests a second.
    pub rate: f64,
    /// Squared coefficient of variation of the times between arrivals.
    pub arrival_scv: f64,
    /// Arrivals of late: a plan must bear these too, made faster or slower so that their highest rate is `rate`.
    pub recent: Option<&'a Recent>,
}

impl Load<'_> {
    /// Whether enough is known of recent arrivals to replay them.
    fn is_replayed(&self) -> bool {
        self.recent
            .is_some_and(|recent| recent.arrivals().is_some() && self.rate > 0.0 && recent.peak() > 0.0)
    }

    /// Whether at most a part `most` of the recent arrivals would be late at `servers`, if enough is known of them.
    fn is_borne(&self, servers: &Servers, slacks: &[Slack], most: f64) -> bool {
        let Some(recent) = self.recent.filter(|_| self.is_replayed()) else { return true };
        let stretch = recent.peak() / self.rate;
        recent.arrivals().is_none_or(|arrivals| servers.keep(arrivals, stretch, slacks, most))
    }
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

/// Where one replica is, as far as a plan needs it.
///
/// Between floor and ceiling a node lends the time that nobody in a row uses, so what a replica is granted counts only
/// while others in its row are at work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// The most that it can be granted.
    pub cap: Quota,
    /// What it gets while nobody else in its row is at work.
    pub alone: Quota,
    /// Part of the time that somebody else in its row is at work, 0 to 1.
    pub contended: f64,
}

impl Place {
    /// A place of which nothing is known but that it may be granted up to `cap`: what is granted is all that counts.
    pub fn guaranteed(cap: Quota) -> Self {
        Self { cap, alone: cap, contended: 1.0 }
    }
}

/// A replica with a grant.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Server {
    quota: Quota,
    alone: Quota,
    contended: f64,
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

/// Why replicas don't bear a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// There are none.
    NoReplica,
    /// They would be at work for a larger part of the time than is planned for.
    Busy {
        /// That part; above 1 they never catch up.
        part: f64,
        /// The most that is planned for.
        most: f64,
    },
    /// A larger part of the requests would wait too long than the objective leaves for that.
    Late {
        /// That part.
        part: f64,
        /// The most.
        most: f64,
    },
    /// The bursts of the last minute would have waited too long.
    Bursts,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let percent = |part: &f64| 100.0 * part;
        match self {
            Self::NoReplica => f.write_str("no replica"),
            Self::Busy { part, most } => {
                write!(
                    f,
                    "busy for {:.0} % of the time, planned are at most {:.0} %",
                    percent(part),
                    percent(most)
                )
            }
            Self::Late { part, most } => {
                write!(
                    f,
                    "{:.1} % would wait too long, planned are at most {:.1} %",
                    percent(part),
                    percent(most)
                )
            }
            Self::Bursts => f.write_str("the bursts of the last minute would have waited too long"),
        }
    }
}

impl Problem<'_> {
    /// Whether replicas in `places` at `quota` keep the objective under `load`.
    ///
    /// By the union bound, a part `(1 − percentile)` may be spent on these: load above the forecast ([`FORECAST_PART`] of
    /// it, the caller's), requests that wait too long ([`WAIT_PART`]), service longer than its bound (next to nothing,
    /// since the bound is a guarantee), and what no plan foresees. An objective that even the ceiling can't keep for a lone
    /// request, and no objective at all, are planned by utilisation.
    pub fn feasible(&self, places: &[Place], quota: Quota, load: Load<'_>) -> bool {
        self.refusal(places, quota, load).is_none()
    }

    /// Why replicas in `places` at `quota` don't keep the objective under `load`; nothing if they do.
    pub fn refusal(&self, places: &[Place], quota: Quota, load: Load<'_>) -> Option<Refusal> {
        let servers = self.servers(places, quota);
        let Some(queue) = self.queue(&servers, load) else {
            return (load.rate > 0.0).then_some(Refusal::NoReplica);
        };
        let busy = |most: f64| {
            let part = queue.load() / self.estimate.batching.most_speed_up();
            (part > most).then_some(Refusal::Busy { part, most })
        };
        let Some(slo) = self.slo.filter(|slo| self.reachable(slo)) else { return busy(UTILISATION) };
        if let Some(busy) = busy(BUSIEST) {
            return Some(busy);
        }
        // What is replayed says more of bursts than two moments do.
        let arrival_scv = if load.is_replayed() { load.arrival_scv.min(1.0) } else { load.arrival_scv };
        let (slacks, most) = (self.slacks(&servers, slo), budget(&slo));
        let servers = self.merging(&queue);
        let part = if servers.batching == Batching::NONE {
            Queue { arrival_scv, ..queue }.waits().map_or(1.0, |waits| waits.late(&slacks))
        } else {
            servers.late(&replay::expected(arrival_scv), 1.0 / load.rate, &slacks)
        };
        if part > most {
            return Some(Refusal::Late { part, most });
        }
        (!load.is_borne(&servers, &slacks, most)).then_some(Refusal::Bursts)
    }

    /// The servers of `queue`, with what they merge.
    fn merging(&self, queue: &Queue) -> Servers {
        Servers { count: queue.servers, service: queue.service, batching: self.estimate.batching }
    }

    /// How long which part of the requests may wait: by total probability over replicas, and over whether others in the row
    /// are at work. Requests go where the fewest are, so each replica has as many.
    fn slacks(&self, servers: &[Server], slo: Slo) -> Vec<Slack> {
        let mut slacks: Vec<Slack> = Vec::with_capacity(2);
        let mut add = |bound: Option<Nanos>, part: f64| {
            let seconds = bound.map_or(-1.0, |bound| slo.bound.secs_f64() - bound.secs_f64());
            // Replicas with the same share have the same: each is counted once.
            match slacks.iter_mut().find(|slack| slack.seconds.to_bits() == seconds.to_bits()) {
                Some(slack) => slack.part += part,
                None => slacks.push(Slack { seconds, part }),
            }
        };
        for server in servers {
            if server.contended > 0.0 {
                add(self.estimate.bound(server.quota, self.window), server.contended);
            }
            if server.contended < 1.0 {
                add(self.estimate.lone_bound(server.alone, self.window), 1.0 - server.contended);
            }
        }
        let servers = count(servers.len()).max(1.0);
        for slack in &mut slacks {
            slack.part /= servers;
        }
        slacks
    }

    /// The latency in seconds that the objective's percentile (or 95 %) of the requests keeps to; infinite if none.
    pub fn latency(&self, places: &[Place], quota: Quota, load: Load<'_>) -> f64 {
        let percentile = self.slo.map_or(0.95, |slo| slo.percentile);
        let servers = self.servers(places, quota);
        let bound = |server: &Server| {
            let rare = server.contended <= WAIT_PART * (1.0 - percentile);
            if rare {
                self.estimate.lone_bound(server.alone, self.window)
            } else {
                self.estimate.bound(server.quota, self.window)
            }
        };
        let bounds: Option<Vec<_>> = servers.iter().map(bound).collect();
        let (Some(queue), Some(slowest)) =
            (self.queue(&servers, load), bounds.and_then(|bounds| bounds.into_iter().max()))
        else {
            return f64::INFINITY;
        };
        let most = 1.0 - WAIT_PART * (1.0 - percentile);
        let wait = if self.estimate.batching == Batching::NONE || load.rate <= 0.0 {
            queue.wait_quantile(most)
        } else {
            self.merging(&queue).wait(&replay::expected(load.arrival_scv), 1.0 / load.rate, most)
        };
        wait + slowest.secs_f64()
    }

    /// The smallest quota of the grid (floor, then every 5 %, then the ceiling) with which replicas in `places` bear `load`,
    /// `None` if none. It is looked for first beside `near`, such as what was found a moment ago.
    pub fn level(&self, places: &[Place], load: Load<'_>, near: Option<Quota>) -> Option<Quota> {
        let grid = self.grid();
        let start = near.map_or(grid.len() / 2, |near| grid.partition_point(|&quota| quota < near));
        self.least(&grid, start, places, load)
    }

    /// The first quota of `grid` with which replicas in `places` bear `load`: a larger quota is never worse, so it is looked
    /// for at `start`, beside that, and then by halving what is left.
    fn least(&self, grid: &[Quota], start: usize, places: &[Place], load: Load<'_>) -> Option<Quota> {
        let (mut least, mut most) = (0, grid.len());
        let (mut next, mut is_first) = (start, true);
        while least < most {
            let at = next.clamp(least, most - 1);
            let bears = self.feasible(places, grid[at], load);
            if bears {
                most = at;
            } else {
                least = at + 1;
            }
            next = match (core::mem::take(&mut is_first), bears) {
                (true, true) => at.saturating_sub(1),
                (true, false) => at + 1,
                _ => usize::midpoint(least, most),
            };
        }
        grid.get(least).copied()
    }

    /// The cheapest plan that bears `load` with a number of replicas in `counts`, `None` if none does.
    ///
    /// The first replicas are in `places`, of further ones nothing is known. Exact over the grid: counts end where
    /// their floors alone cost no less than the best plan, and quotas where they do. It is looked for first beside `near`,
    /// such as the plan of a moment ago.
    pub fn cheapest(
        &self,
        places: &[Place],
        counts: RangeInclusive<u32>,
        load: Load<'_>,
        near: Option<Plan>,
    ) -> Option<Plan> {
        let (floor, grid) = (self.share.dominant(self.gpu_memory).ppm(), self.grid());
        let mut best: Option<Plan> = None;
        for replicas in counts {
            if best.is_some_and(|best| best.cost.ppm() <= floor * u64::from(replicas)) {
                break;
            }
            let places = self.extended(places, replicas);
            if self.is_hopeless(&places, load) {
                continue;
            }
            let cheaper = best.map_or(grid.len(), |best| {
                grid.partition_point(|&quota| self.cost(&places, quota) < best.cost)
            });
            let start = match near {
                Some(near) if near.replicas == replicas => grid.partition_point(|&quota| quota < near.quota),
                None if best.is_none() => grid.len() / 2,
                // Most likely it bears the load at no quota.
                _ => grid.len(),
            };
            if let Some(quota) = self.least(&grid[..cheaper], start, &places, load) {
                best = Some(Plan { replicas, quota, cost: self.cost(&places, quota) });
            }
        }
        best
    }

    /// Sum of the dominant shares of replicas in `places` at `quota`.
    pub fn cost(&self, places: &[Place], quota: Quota) -> Area {
        let grants = places.iter().map(|place| self.granted(place, quota));
        grants.map(|grant| self.share.dominant_at(grant, self.gpu_memory)).sum()
    }

    /// `places` cut or lengthened to `replicas`: a new replica may get up to the ceiling.
    pub fn extended(&self, places: &[Place], replicas: u32) -> Vec<Place> {
        let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
        let new = Place::guaranteed(self.share.ceiling);
        places.iter().copied().chain(core::iter::repeat(new)).take(wanted).collect()
    }

    /// What a replica gets at `quota`: at least its floor, at most its cap.
    pub fn granted(&self, place: &Place, quota: Quota) -> Quota {
        quota.min(place.cap).max(self.share.floor)
    }

    fn servers(&self, places: &[Place], quota: Quota) -> Vec<Server> {
        let server = |place: &Place| {
            let quota = self.granted(place, quota);
            Server { quota, alone: place.alone.max(quota), contended: place.contended.clamp(0.0, 1.0) }
        };
        places.iter().map(server).collect()
    }

    /// The quotas that are tried, in rising order.
    pub(crate) fn grid(&self) -> Vec<Quota> {
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

    /// Whether lone requests in `place` at the most that it can have keep the objective, or none could anywhere.
    pub fn serves(&self, place: &Place) -> bool {
        let Some(slo) = self.slo.filter(|slo| self.reachable(slo)) else { return true };
        let keeps = |bound: Option<Nanos>| bound.is_some_and(|bound| bound <= slo.bound);
        keeps(self.estimate.bound(place.cap, self.window))
            || (place.contended <= budget(&slo) && keeps(self.estimate.lone_bound(place.alone, self.window)))
    }

    /// Mean seconds that a request holds a replica.
    pub fn held(&self, place: &Place, quota: Quota) -> f64 {
        self.servers(core::slice::from_ref(place), quota).iter().map(|server| self.moments(server).0).sum()
    }

    /// First two moments of the time that a request holds a replica.
    ///
    /// That is the time of its GPU work: what is beside it, decoding and the way there and back, goes on while the GPU
    /// works on others.
    fn moments(&self, server: &Server) -> (f64, f64) {
        let at = |quota: Quota| {
            let (mean, phase) = (self.estimate.held(quota), self.estimate.phase(quota, self.window));
            (mean, mean * mean + phase * phase)
        };
        if server.contended <= 0.0 {
            return at(server.alone);
        }
        let ((slow, slow_square), (fast, fast_square)) = (at(server.quota), at(server.alone));
        let mixed = |slow: f64, fast: f64| server.contended * slow + (1.0 - server.contended) * fast;
        (mixed(slow, fast), mixed(slow_square, fast_square))
    }

    /// All replicas behind one queue, each as fast as they are on average: requests go where the fewest are.
    fn queue(&self, servers: &[Server], load: Load<'_>) -> Option<Queue> {
        let number = u32::try_from(servers.len()).ok().filter(|&number| number > 0)?;
        let (mut speed, mut spread) = (0.0, 0.0);
        for server in servers {
            let (mean, square) = self.moments(server);
            speed += 1.0 / mean.max(1e-9);
            spread += (square / (mean * mean).max(1e-18) - 1.0).max(0.0);
        }
        Some(Queue {
            servers: number,
            rate: load.rate,
            service: f64::from(number) / speed.max(1e-9),
            arrival_scv: load.arrival_scv,
            service_scv: spread / f64::from(number),
        })
    }

    /// Whether replicas in `places` can't bear the mean of `load` even at the most that they can have.
    fn is_hopeless(&self, places: &[Place], load: Load<'_>) -> bool {
        let most: f64 = places.iter().map(|place| place.cap.max(place.alone).fraction()).sum();
        load.rate * self.estimate.gpu.secs_f64() > most * self.estimate.batching.most_speed_up()
    }
}

/// Part of the requests that may be late by waiting.
fn budget(slo: &Slo) -> f64 {
    WAIT_PART * (1.0 - slo.percentile)
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
