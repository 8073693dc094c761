//! Container instances that the platform starts and stops, as on Cloud Run: billed for the time in which requests run on
//! them, or for all the time that they are there.

use gpu_share::invalid::Invalid;
use serde::Deserialize;

use super::bill::{Bill, Charge};
use super::distribution::Distribution;
use super::fleet::Scaling;
use super::gpus::{Whole, one_each};
use super::latency::{Servers, Service};
use super::load::Load;
use super::nodes::{runs, tighter, whole_down};
use super::prices::{Price, amount, within};
use super::{FINE, Operation, Unfit, Workload, whole};

/// How requests that run at the same time on one instance are billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// The time of each.
    Each,
    /// The time in which any runs.
    Once,
}

/// What is free in a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Free {
    requests: f64,
    vcpu_seconds: f64,
    gib_seconds: f64,
}

impl Free {
    fn check(&self) -> Result<(), Invalid> {
        amount("free.requests", self.requests)?;
        amount("free.vcpuSeconds", self.vcpu_seconds)?;
        amount("free.gibSeconds", self.gib_seconds)
    }
}

/// Size of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    vcpu: f64,
    memory_gib: f64,
    /// Requests that it takes at a time.
    concurrency: u32,
    /// Part of its cores and of its concurrency that should be in use, by which the autoscaler goes.
    target: f64,
}

impl Size {
    fn check(&self) -> Result<(), Invalid> {
        within("size.vcpu", self.vcpu, 0.05, 256.0)?;
        within("size.memoryGib", self.memory_gib, 0.0, 4096.0)?;
        within("size.concurrency", f64::from(self.concurrency), 1.0, 1000.0)?;
        within("size.target", self.target, 0.01, 1.0)
    }

    /// Instances that `rate` needs.
    fn needed(&self, rate: f64, cpu: &Distribution, beside: f64) -> u32 {
        let by_cpu = rate * cpu.mean() / (self.target * self.vcpu);
        let by_place =
            rate * (self.slower() * cpu.mean() + beside) / (self.target * f64::from(self.concurrency));
        whole(by_cpu.max(by_place))
    }

    /// How many times longer a request computes on less than a core.
    fn slower(&self) -> f64 {
        1.0 / self.vcpu.min(1.0)
    }

    /// What each of `counts` instances serve, for each step.
    fn serve(&self, counts: &[u32], cpu: &Distribution, beside: f64) -> (Vec<Servers>, Vec<Service>) {
        let cpu = cpu.stretched(self.slower(), 0.0);
        let cores = whole_down(self.vcpu).max(1);
        let (each, service) = tighter(self.concurrency, cores, &cpu, beside);
        let servers = counts.iter().map(|&count| Servers { count: count.saturating_mul(each), service: 0 });
        (servers.collect(), vec![service])
    }
}

/// Billed by request and for the time in which requests run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // As the file has them.
pub struct Requests {
    /// Name of the platform.
    pub name: String,
    /// A million requests.
    million_requests: Price,
    /// A core for a second.
    vcpu_second: Price,
    /// A gibibyte of memory for a second.
    gib_second: Price,
    #[serde(default)]
    free: Free,
    size: Size,
    /// Step that times are rounded up to, milliseconds; 0 for none.
    round_ms: f64,
    overlap: Overlap,
    scaling: Scaling,
}

impl Requests {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        vec![
            ("millionRequests", &self.million_requests),
            ("vcpuSecond", &self.vcpu_second),
            ("gibSecond", &self.gib_second),
        ]
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.free.check()?;
        self.size.check()?;
        within("roundMs", self.round_ms, 0.0, 3_600_000.0)?;
        self.scaling.check()
    }

    /// What `requests` cost that kept instances for `seconds` in all.
    pub fn bill(&self, requests: f64, seconds: f64) -> Bill {
        let (price, free, size) = (self.million_requests.amount / 1e6, self.free, self.size);
        let charges = vec![
            Charge::new("requests", requests, price).free(free.requests),
            Charge::new("vCPU seconds", seconds * size.vcpu, self.vcpu_second.amount).free(free.vcpu_seconds),
            Charge::new("GiB seconds", seconds * size.memory_gib, self.gib_second.amount)
                .free(free.gib_seconds),
        ];
        Bill { charges }
    }

    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let cpu = work.cpu.as_ref().ok_or(Unfit::NoCpuTime)?;
        let load = work.load.refined(FINE);
        let needed: Vec<_> =
            load.rates().iter().map(|&rate| self.size.needed(rate, cpu, work.beside)).collect();
        let fleet = self.scaling.follow(&needed, load.step());
        let (servers, services) = self.size.serve(&fleet.serving, cpu, work.beside);
        let takes = cpu.stretched(self.size.slower(), work.beside);
        let there = self.scaling.there(&load);
        let billed = match self.overlap {
            Overlap::Each => load.requests() * takes.mean_rounded_up(self.round_ms / 1e3),
            Overlap::Once => busy_seconds(&load, &fleet.paid, &takes, self.round_ms / 1e3),
        };
        let overlap = match self.overlap {
            Overlap::Each => "each request's time is billed, also where several run on one instance",
            Overlap::Once => "the time in which an instance has any request is billed",
        };
        Ok(Operation {
            bill: self.bill(load.requests(), billed),
            runs: runs("instances", &fleet.paid, there),
            assumptions: vec![format!("{}: {overlap}; waits for a core are not billed", self.name)],
            cold: (1.0 - there, self.scaling.start_seconds),
            load,
            servers,
            services,
        })
    }
}

/// Seconds in which instances have any request, each rounded up to a multiple of `step`.
///
/// Requests that come at random and take S make an instance busy for `1 − exp(−λE[S])` of the time (M/G/∞). With each time
/// rounded up that is exact for requests that are alone, and never more than the time of each.
fn busy_seconds(load: &Load, counts: &[u32], takes: &Distribution, step: f64) -> f64 {
    let takes = takes.mean_rounded_up(step);
    let of_step = |(&rate, &count): (&f64, &u32)| {
        let count = f64::from(count.max(1));
        load.step() * count * -(-rate / count * takes).exp_m1()
    };
    load.rates().iter().zip(counts).map(of_step).sum()
}

/// Billed for the time in which instances run; with a GPU each, if that has a price.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instances {
    /// Name of the platform.
    pub name: String,
    /// A core for a second.
    vcpu_second: Price,
    /// A gibibyte of memory for a second.
    gib_second: Price,
    /// A GPU for a second, for instances that have one each.
    #[serde(default)]
    gpu_second: Option<Price>,
    /// Memory of the GPU.
    #[serde(default)]
    gpu_memory_gib: f64,
    #[serde(default)]
    free: Free,
    size: Size,
    scaling: Scaling,
}

impl Instances {
    pub(super) fn prices(&self) -> Vec<(&'static str, &Price)> {
        let gpu = self.gpu_second.as_ref().map(|price| ("gpuSecond", price));
        [("vcpuSecond", &self.vcpu_second), ("gibSecond", &self.gib_second)].into_iter().chain(gpu).collect()
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.free.check()?;
        self.size.check()?;
        if self.gpu_second.is_some() {
            within("gpuMemoryGib", self.gpu_memory_gib, 1.0, 4096.0)?;
        }
        self.scaling.check()
    }

    /// What instances cost that were there for `seconds` in all.
    pub fn bill(&self, seconds: f64) -> Bill {
        let (free, size) = (self.free, self.size);
        let gpu = self.gpu_second.as_ref().map(|price| Charge::new("GPU seconds", seconds, price.amount));
        let charges = [
            Charge::new("vCPU seconds", seconds * size.vcpu, self.vcpu_second.amount).free(free.vcpu_seconds),
            Charge::new("GiB seconds", seconds * size.memory_gib, self.gib_second.amount)
                .free(free.gib_seconds),
        ];
        Bill { charges: charges.into_iter().chain(gpu).collect() }
    }

    pub(super) fn operate(&self, work: &Workload) -> Result<Operation, Unfit> {
        let load = work.load.refined(FINE);
        let (fleet, servers, services) = if self.gpu_second.is_some() {
            let whole = Whole::of(work, self.gpu_memory_gib)?;
            let fleet = self.scaling.follow(&whole.needed(&load, self.scaling.most), load.step());
            let servers = one_each(&fleet.serving);
            (fleet, servers, vec![whole.service()])
        } else {
            let cpu = work.cpu.as_ref().ok_or(Unfit::NoCpuTime)?;
            let needed: Vec<_> =
                load.rates().iter().map(|&rate| self.size.needed(rate, cpu, work.beside)).collect();
            let fleet = self.scaling.follow(&needed, load.step());
            let (servers, services) = self.size.serve(&fleet.serving, cpu, work.beside);
            (fleet, servers, services)
        };
        let there = self.scaling.there(&load);
        let seconds = there * load.step() * fleet.paid.iter().map(|&count| f64::from(count)).sum::<f64>();
        Ok(Operation {
            bill: self.bill(seconds),
            runs: runs("instances", &fleet.paid, there),
            assumptions: vec![format!(
                "{}: an instance starts in {} s and is paid for {} s after it is needed",
                self.name, self.scaling.start_seconds, self.scaling.hold_seconds
            )],
            cold: (1.0 - there, self.scaling.start_seconds),
            load,
            servers,
            services,
        })
    }
}
