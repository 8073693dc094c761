//! How long requests wait for one of n equal replicas behind one queue, in closed form.
//!
//! Owns the formulas and their sources. It knows nothing of GPUs or objectives; what formulas can't say of bursts,
//! [`replay`] does.

pub mod replay;

/// Requests that n equal servers take from one queue, first come, first served.
///
/// Two moments describe each side: a mean, and the squared coefficient of variation (variance over mean squared; 1 for
/// Poisson arrivals, 0 for a constant).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queue {
    /// Servers, at least 1.
    pub servers: u32,
    /// Arrivals a second.
    pub rate: f64,
    /// Mean service time in seconds.
    pub service: f64,
    /// Squared coefficient of variation of the times between arrivals.
    pub arrival_scv: f64,
    /// Squared coefficient of variation of the service time.
    pub service_scv: f64,
}

impl Queue {
    /// ρ: part of the time that a server is busy. At 1 or above the queue grows without end.
    pub fn load(&self) -> f64 {
        self.rate * self.service / f64::from(self.servers.max(1))
    }

    /// Probability that a request waits at all.
    ///
    /// Erlang's C, exact for Poisson arrivals and exponential service, and for one server for any service. Arrivals in
    /// bursts meet more busy servers than the mean says: the power `2/(1 + c_a²)` covers what simulations show (8
    /// servers, ρ = 0.5, `c_a²` = 4: 0.25 simulated, 0.06 by Erlang, 0.32 here).
    pub fn wait_probability(&self) -> f64 {
        let waits = erlang_c(self.servers, self.rate * self.service);
        if self.arrival_scv > 1.0 { waits.powf(2.0 / (1.0 + self.arrival_scv)) } else { waits }
    }

    /// Probability that a request waits for more than `seconds`.
    ///
    /// Allen and Cunneen's tail `C·exp(−2n(1−ρ)t / ((c_a² + c_s²)·S))`, exact for M/M/n. Near-constant service falls
    /// off faster: there the exponent `2(1−ρ)` becomes the root of the M/D/n queue (Tijms, A First Course in Stochastic
    /// Models, 9.6). The two are mixed by how constant the service and how Poisson the arrivals are.
    pub fn wait_tail(&self, seconds: f64) -> f64 {
        self.waits().map_or(1.0, |waits| waits.beyond(seconds))
    }

    /// The wait in seconds that a part `percentile` of the requests does not exceed; infinite in a queue that grows.
    pub fn wait_quantile(&self, percentile: f64) -> f64 {
        let beyond = (1.0 - percentile).clamp(1e-9, 1.0);
        let Some(tail) = self.waits() else { return if beyond < 1.0 { f64::INFINITY } else { 0.0 } };
        if tail.beyond(0.0) <= beyond {
            return 0.0;
        }
        let mut most = self.service.max(1e-9);
        while tail.beyond(most) > beyond {
            most *= 2.0;
            if most > 1e9 {
                return f64::INFINITY;
            }
        }
        let mut least = 0.0;
        for _ in 0..60 {
            let middle = 0.5 * (least + most);
            if tail.beyond(middle) > beyond { least = middle } else { most = middle }
        }
        most
    }

    /// How long requests wait, worked out once for many times; nothing in a queue that grows.
    pub fn waits(&self) -> Option<Waits> {
        if self.rate <= 0.0 || self.service <= 0.0 {
            return Some(Waits::default());
        }
        let load = self.load();
        if load.is_nan() || load >= 1.0 {
            return None;
        }
        let spread = (self.arrival_scv + self.service_scv).max(0.05);
        let root = constant_service_root(load);
        Some(Waits {
            any: self.wait_probability(),
            constancy: (1.0 - self.service_scv).clamp(0.0, 1.0) / self.arrival_scv.max(1.0),
            // With eˣ as the equation has it.
            factor: (1.0 - load) / (load * (load + root - 1.0)),
            constant: root,
            variable: 2.0 * (1.0 - load),
            scale: f64::from(self.servers) / (spread * self.service),
        })
    }

    /// Mean wait in seconds: Pollaczek and Khinchine's, exact for one server and Poisson arrivals, scaled to n servers
    /// and other arrivals by Allen and Cunneen; infinite in a queue that grows.
    pub fn mean_wait(&self) -> f64 {
        let load = self.load();
        if self.rate <= 0.0 {
            return 0.0;
        }
        if load.is_nan() || load >= 1.0 {
            return f64::INFINITY;
        }
        let variability = 0.5 * (self.arrival_scv + self.service_scv);
        let waits = erlang_c(self.servers, self.rate * self.service);
        waits * variability * self.service / (f64::from(self.servers.max(1)) * (1.0 - load))
    }
}

/// What merging requests saves: a server takes up to `most` of those that wait at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batching {
    /// Requests in a full batch, at least 1.
    pub most: u32,
    /// What each request beyond the first adds, as a part of the time that one alone takes: 0 to 1.
    pub marginal: f64,
}

impl Batching {
    /// Requests are taken one by one.
    pub const NONE: Self = Self { most: 1, marginal: 1.0 };

    /// Batches of up to `most`, which take as long as `seconds` says of each size.
    ///
    /// On the line through the ends: where small batches take as long as one request, because launching their kernels
    /// takes longest, it is above what they take.
    pub fn new(most: u32, seconds: impl Fn(u32) -> f64) -> Self {
        let (one, full) = (seconds(1), seconds(most));
        if most <= 1 || one <= 0.0 {
            return Self::NONE;
        }
        Self { most, marginal: ((full / one - 1.0) / f64::from(most - 1)).clamp(0.0, 1.0) }
    }

    /// How long a batch of `items` takes, as a multiple of what one alone does.
    pub fn time(&self, items: u32) -> f64 {
        1.0 + self.marginal * f64::from(items.clamp(1, self.most) - 1)
    }

    /// Requests that batches of `items` serve in the time of one alone.
    pub fn speed_up(&self, items: u32) -> f64 {
        f64::from(items.clamp(1, self.most)) / self.time(items)
    }

    /// The same of full ones.
    pub fn most_speed_up(&self) -> f64 {
        self.speed_up(self.most)
    }
}

/// How long a part of the requests may wait before they are late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slack {
    /// Seconds; below 0 if they are late without waiting.
    pub seconds: f64,
    /// The part, 0 to 1.
    pub part: f64,
}

/// How long requests of a queue wait: `any · (constancy · factor·exp(−constant·t) + (1 − constancy) · exp(−variable·t))` in
/// scaled time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    any: f64,
    constancy: f64,
    factor: f64,
    constant: f64,
    variable: f64,
    scale: f64,
}

impl Waits {
    /// Probability that a request waits for more than `seconds`: certain for less than none.
    pub fn beyond(&self, seconds: f64) -> f64 {
        if seconds < 0.0 {
            return 1.0;
        }
        let scaled = self.scale * seconds;
        let constant = (self.factor * (-self.constant * scaled).exp()).min(1.0);
        let variable = (-self.variable * scaled).exp();
        (self.any * (self.constancy * constant + (1.0 - self.constancy) * variable)).clamp(0.0, 1.0)
    }

    /// Part of the requests that wait for longer than they may.
    pub fn late(&self, slacks: &[Slack]) -> f64 {
        slacks.iter().map(|slack| slack.part * self.beyond(slack.seconds)).sum()
    }
}

/// Erlang's C: the probability that all of `servers` are busy under an offered load of `offered` (rate times service).
///
/// By the recursion of Erlang's B, which neither overflows nor loses digits; 1 when the queue grows without end.
pub fn erlang_c(servers: u32, offered: f64) -> f64 {
    let servers = servers.max(1);
    let load = offered / f64::from(servers);
    if load.is_nan() || load >= 1.0 {
        return 1.0;
    }
    if offered <= 0.0 {
        return 0.0;
    }
    let mut blocked = 1.0;
    for server in 1..=servers {
        blocked = offered * blocked / (f64::from(server) + offered * blocked);
    }
    blocked / (1.0 - load * (1.0 - blocked))
}

/// The root x > 0 of `ρ(eˣ − 1) = x`: the waits of M/D/n fall off like `exp(−x·n·t/S)`. Near ρ = 1 it is `2(1−ρ)`.
///
/// Newton's steps on `ln(1 + x/ρ) − x`, which is concave: from above they stay above, and away from x = 0, where the equation
/// holds too. `−2 ln ρ` is above, since sinh is above its argument, and near for all ρ.
fn constant_service_root(load: f64) -> f64 {
    let load = load.max(1e-300);
    let mut root = -2.0 * load.ln();
    for _ in 0..20 {
        let step = ((root / load).ln_1p() - root) / (1.0 / (load + root) - 1.0);
        if step.is_nan() || step <= 1e-12 * root {
            break;
        }
        root -= step;
    }
    root.max(1e-6)
}

#[cfg(test)]
mod tests;
