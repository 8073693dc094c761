//! What a load costs on platforms that bill differently, and how fast each of them answers.
//!
//! Owns the cost model: pure functions of a workload and a price file. It reads no file and knows no price of its own.
//! It is the migration study of an IoT platform (Chadha et al., WoSC 2022, arXiv 2210.04212) made into a tool, with
//! GPUs and shares of them beside.
//!
//! | module | what it owns |
//! |---|---|
//! | [`load`] | the rates that are planned for |
//! | [`distribution`] | the times that requests take |
//! | [`prices`] | platforms and their prices, from a file |
//! | [`fleet`] | what an autoscaler pays for and what serves, with its delays |
//! | [`gpus`] | whole GPUs, and shares of them |
//! | [`nodes`] | nodes by the hour: Kubernetes with autoscalers, nodes of one's own |
//! | [`instances`] | instances as on Cloud Run, billed by request or by the time that they are there |
//! | [`bill`] | the lines of a bill, and what is free in a month |
//! | [`latency`] | how long requests take, over all steps of the load |
//! | [`break_even`] | rates at which two platforms cost the same |

pub mod bill;
pub mod break_even;
pub mod distribution;
pub mod fleet;
pub mod gpus;
pub mod instances;
pub mod latency;
pub mod load;
pub mod nodes;
pub mod prices;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gpu_share::annotations::Slo;
use gpu_share::invalid::Invalid;
use gpu_share::units::{Bytes, Nanos, Quota, SmShare};

use self::bill::Bill;
use self::distribution::Distribution;
use self::latency::{Latency, Servers, Service};
use self::load::Load;

/// Length of the steps in which autoscalers are followed, seconds.
const FINE: f64 = 1.0;

/// What is to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The rates.
    pub load: Load,
    /// Squared coefficient of variation of the times between arrivals; 1 for Poisson arrivals.
    pub arrival_scv: f64,
    /// Time that a request computes on one core, if it can run without a GPU.
    pub cpu: Option<Distribution>,
    /// Time of a request on a GPU, if it can run on one.
    pub gpu: Option<GpuTime>,
    /// Seconds of a request in which it holds neither core nor GPU: waiting for others, transfers.
    pub beside: f64,
    /// GPU memory of a replica.
    pub memory: Bytes,
    /// Smallest and largest quota of a share.
    pub quota: Quota,
    /// The largest.
    pub quota_limit: Quota,
    /// The objective by which GPUs and shares are sized.
    pub slo: Option<Slo>,
    /// Bytes that a request writes to the log.
    pub log_bytes: f64,
}

/// GPU time of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuTime {
    /// On a whole GPU.
    pub whole: Distribution,
    /// On each of the SM shares that may be chosen, one or more.
    pub shares: BTreeMap<SmShare, Distribution>,
}

impl GpuTime {
    /// Known on a whole GPU only: shares of it are of its time alone.
    pub fn whole_only(times: Distribution) -> Self {
        Self { shares: BTreeMap::from([(SmShare::WHOLE, times.clone())]), whole: times }
    }
}

/// How a platform runs a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// What it bills for the load once.
    pub bill: Bill,
    /// What runs, in words.
    pub runs: String,
    /// What was assumed, in words.
    pub assumptions: Vec<String>,
    /// The load in the steps in which it was followed.
    load: Load,
    servers: Vec<Servers>,
    services: Vec<Service>,
    /// Part of the requests that find no replica, and the seconds of a start.
    cold: (f64, f64),
}

impl Operation {
    /// Whether what serves at the end keeps up with what comes then.
    pub fn keeps_up(&self) -> bool {
        let last = self.load.rates().last().zip(self.servers.last());
        last.is_some_and(|(rate, servers)| {
            let held = self.services.get(servers.service).map_or(f64::INFINITY, |service| service.held);
            rate * held < f64::from(servers.count)
        })
    }

    /// How long requests take, with arrivals that are as variable as `arrival_scv`.
    pub fn latency(&self, arrival_scv: f64) -> Latency {
        let (part, seconds) = self.cold;
        Latency::of(&self.load, &self.servers, &self.services, arrival_scv).cold(part, seconds)
    }
}

/// Why a platform can't run a workload.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// Its time on a core is not known.
    #[error("runs on CPUs, and no CPU time is given")]
    NoCpuTime,
    /// Its time on a GPU is not known.
    #[error("runs on GPUs, and no GPU time is given")]
    NoGpuTime,
    /// The objective can't be kept.
    #[error("{slo} cannot be met: fastest is {:.1} ms", .fastest.millis_f64())]
    TooSlow {
        /// The objective.
        slo: Slo,
        /// The latency of a lone request.
        fastest: Nanos,
    },
    /// More comes than the platform bears at its most.
    #[error("does not keep up with {rate} requests a second")]
    TooMuch {
        /// Requests a second.
        rate: f64,
    },
    /// What it asks for is not to be had.
    #[error(transparent)]
    Wrong(Invalid),
}

/// Whole things that cover `quantity`; what is beyond any count is the largest.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Float casts saturate.
fn whole(quantity: f64) -> u32 {
    (quantity - 1e-9).ceil().max(0.0) as u32
}
