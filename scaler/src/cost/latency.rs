//! How long requests take on servers whose number follows the load: the mixture over all steps of it.
//!
//! A step whose servers keep up is a queue in balance ([`crate::queueing`]). Where they don't, while a replica starts
//! for instance, requests wait as long as the servers need for what came before them, as if work were a fluid.

use std::collections::BTreeMap;

use super::distribution::Distribution;
use super::load::Load;
use crate::queueing::Queue;

/// Rates that differ by less share a queue: a step of the grid of rates.
const ALIKE: f64 = 1.02;
/// Pieces that a wait is cut into, and what each leaves of those that wait still: down to one in ten thousand.
const PIECES: i32 = 26;
const LEAVES: f64 = 0.7;
/// The busiest queue in balance that is looked at: a load this close to 1 does not stay long enough to be in balance.
const FULL: f64 = 0.995;
/// Times that a quantile is halved between.
const SEARCH: u32 = 50;

/// What serves in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Servers {
    /// How many.
    pub count: u32,
    /// Which of the services each gives, by its place.
    pub service: usize,
}

/// What one request asks of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Seconds for which it holds a server.
    pub held: f64,
    /// Squared coefficient of variation of these.
    pub held_scv: f64,
    /// How long it takes from the end of its wait.
    pub takes: Distribution,
}

/// The latency of all requests of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    parts: Vec<Part>,
}

/// Requests whose wait has one distribution.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    requests: f64,
    takes: Distribution,
    waits: Vec<Wait>,
}

/// A part `part` of the requests, that waits from `from` to `to` seconds, evenly spread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wait {
    part: f64,
    from: f64,
    to: f64,
}

/// What steps have in common that share a queue: the grid's rate, the servers, and which service they give.
type Kind = (i64, u32, usize);

/// Steps that share a queue: their requests, and the sum of the rates that each of these came at.
#[derive(Clone, Copy, Debug, Default)]
struct Alike {
    requests: f64,
    rates: f64,
}

impl Latency {
    /// Of `load` on `servers` (one for each of its steps), which give `services`, with arrivals that are as variable as
    /// `arrival_scv`.
    pub fn of(load: &Load, servers: &[Servers], services: &[Service], arrival_scv: f64) -> Self {
        let backlog = Backlog::of(load, servers, services);
        let mut queues: BTreeMap<Kind, Alike> = BTreeMap::new();
        let mut parts = Vec::new();
        for (step, (&rate, servers)) in load.rates().iter().zip(servers).enumerate() {
            let requests = rate * load.step();
            let Some(service) = services.get(servers.service).filter(|_| requests > 0.0) else { continue };
            if let Some((from, to)) = backlog.wait(step) {
                let waits = vec![Wait { part: 1.0, from, to }];
                parts.push(Part { requests, takes: service.takes.clone(), waits });
            } else {
                let alike = queues.entry((place(rate), servers.count, servers.service)).or_default();
                alike.requests += requests;
                alike.rates += requests * rate;
            }
        }
        for ((_, count, service), Alike { requests, rates }) in queues {
            let Some(service) = services.get(service) else { continue };
            let most = FULL * f64::from(count) / service.held.max(1e-12);
            let queue = Queue {
                servers: count,
                rate: (rates / requests).min(most),
                service: service.held,
                arrival_scv,
                service_scv: service.held_scv,
            };
            parts.push(Part { requests, takes: service.takes.clone(), waits: waits(&queue) });
        }
        Self { parts }
    }

    /// The same, with a part `part` of the requests that wait `seconds` until a replica has started, and for nothing else.
    #[must_use]
    pub fn cold(mut self, part: f64, seconds: f64) -> Self {
        for requests in &mut self.parts {
            requests.waits.iter_mut().for_each(|wait| wait.part *= 1.0 - part);
            requests.waits.push(Wait { part, from: seconds, to: seconds });
        }
        self
    }

    /// The latency in seconds that a part `part` of the requests does not exceed; infinite where they are never served.
    pub fn quantile(&self, part: f64) -> f64 {
        let beyond = (1.0 - part).clamp(0.0, 1.0);
        let mut most = 1e-3;
        while self.beyond(most) > beyond {
            most *= 2.0;
            if most > 1e9 {
                return f64::INFINITY;
            }
        }
        let mut least = 0.0;
        for _ in 0..SEARCH {
            let middle = f64::midpoint(least, most);
            if self.beyond(middle) > beyond { least = middle } else { most = middle }
        }
        most
    }

    /// Part of the requests that take longer than `bound` seconds.
    pub fn beyond(&self, bound: f64) -> f64 {
        let all: f64 = self.parts.iter().map(|part| part.requests).sum();
        let late: f64 = self.parts.iter().map(|part| part.requests * part.beyond(bound)).sum();
        if all > 0.0 { late / all } else { 0.0 }
    }
}

impl Part {
    fn beyond(&self, bound: f64) -> f64 {
        self.waits.iter().map(|wait| wait.part * wait.beyond(&self.takes, bound)).sum()
    }
}

impl Wait {
    /// Part of the requests that wait so, then take `takes`, and are longer than `bound` in all.
    ///
    /// With a wait spread evenly from a to b that is the mean of P(S > bound − w) over w, and the integral of P(S > y)
    /// from y is the excess at y.
    fn beyond(&self, takes: &Distribution, bound: f64) -> f64 {
        if self.to.is_infinite() {
            return 1.0;
        }
        if self.to - self.from < 1e-9 {
            return takes.beyond(bound - self.from);
        }
        let (shortest, longest) = (bound - self.to, bound - self.from);
        (takes.excess(shortest) - takes.excess(longest)) / (self.to - self.from)
    }
}

/// The wait in `queue` in pieces: none for those that find a server, then a part of the rest at a time.
fn waits(queue: &Queue) -> Vec<Wait> {
    let waiting = queue.wait_tail(0.0);
    let mut waits = vec![Wait { part: 1.0 - waiting, from: 0.0, to: 0.0 }];
    let (mut left, mut from) = (waiting, 0.0);
    for piece in 1..=PIECES {
        if left < 1e-7 {
            break;
        }
        let to = queue.wait_quantile(1.0 - waiting * LEAVES.powi(piece));
        // The last piece takes what is left.
        let part = if piece == PIECES { left } else { left * (1.0 - LEAVES) };
        waits.push(Wait { part, from, to });
        (left, from) = (left - part, to);
    }
    waits
}

/// Where `rate` is on the grid of rates; each stands for those below it, down to the next.
#[allow(clippy::cast_possible_truncation)] // Between the logarithms of 1e-12 and 1e6.
pub(super) fn place(rate: f64) -> i64 {
    (rate.max(1e-12).ln() / ALIKE.ln() - 1e-9).ceil() as i64
}

/// The rate at `place` of the grid.
#[allow(clippy::cast_precision_loss)] // A few thousand at most.
pub(super) fn rate_at(place: i64) -> f64 {
    (place as f64 * ALIKE.ln()).exp()
}

/// Work that servers have not come to, step by step.
struct Backlog {
    /// Seconds that a request of the step waits for it, at its begin and end; `None` where there is none.
    waits: Vec<Option<(f64, f64)>>,
}

impl Backlog {
    fn of(load: &Load, servers: &[Servers], services: &[Service]) -> Self {
        let rates = servers.iter().map(|servers| match services.get(servers.service) {
            Some(service) if service.held > 0.0 => f64::from(servers.count) / service.held,
            // Nothing is held: anything that serves serves all.
            Some(_) if servers.count > 0 => 1e12,
            _ => 0.0,
        });
        let capacity: Vec<_> = rates.map(|rate| rate * load.step()).collect();
        // What could be served until the end of each step, and what must have been.
        let ends: Vec<_> = capacity.iter().scan(0.0, |sum, more| add(sum, *more)).collect();
        let mut before = 0.0_f64;
        let mut begin = 0.0;
        let mut cursor = Cursor { step: 0 };
        let waits = load.rates().iter().zip(&capacity).enumerate().map(|(step, (&rate, &capacity))| {
            let arrived = rate * load.step();
            let after = (before + arrived - capacity).max(0.0);
            // Short of ρ = 1 the queue in balance tells the wait; from there on it has none.
            let behind = before > 1e-9 || after > 1e-9;
            #[allow(clippy::cast_precision_loss)] // Steps of a load.
            let now = step as f64;
            let first = cursor.reach(begin + before, &ends) - now;
            let last = cursor.peek(begin + capacity + after, &ends) - (now + 1.0);
            (before, begin) = (after, begin + capacity);
            behind.then(|| (first.max(0.0) * load.step(), last.max(0.0) * load.step()))
        });
        Self { waits: waits.collect() }
    }

    fn wait(&self, step: usize) -> Option<(f64, f64)> {
        self.waits.get(step).copied().flatten().map(|(a, b)| (a.min(b), a.max(b)))
    }
}

#[allow(clippy::unnecessary_wraps)] // As `scan` wants it.
fn add(sum: &mut f64, more: f64) -> Option<f64> {
    *sum += more;
    Some(*sum)
}

/// Finds when work has been served; it only ever looks forward.
#[derive(Clone, Copy)]
struct Cursor {
    step: usize,
}

impl Cursor {
    /// When, in steps, `work` has been served; after the last step servers go on as in it.
    fn reach(&mut self, work: f64, ends: &[f64]) -> f64 {
        while ends.get(self.step).is_some_and(|&end| end <= work) {
            self.step += 1;
        }
        self.time(work, ends)
    }

    /// The same for work that is further away, without moving.
    fn peek(self, work: f64, ends: &[f64]) -> f64 {
        let mut ahead = self;
        ahead.reach(work, ends)
    }

    #[allow(clippy::cast_precision_loss)] // Steps of a load.
    fn time(self, work: f64, ends: &[f64]) -> f64 {
        let last = ends.len().saturating_sub(1);
        let step = self.step.min(last);
        let begin = if step == 0 { 0.0 } else { ends[step - 1] };
        let capacity = ends[step] - begin;
        if work <= begin {
            return step as f64;
        }
        if capacity <= 0.0 { f64::INFINITY } else { step as f64 + (work - begin) / capacity }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(seconds: f64) -> Service {
        Service { held: seconds, held_scv: 0.0, takes: Distribution::constant(seconds).unwrap() }
    }

    fn latency(step: f64, rates: &[f64], counts: &[u32], seconds: f64) -> Latency {
        let load = Load::new(step, rates.to_vec()).unwrap();
        let servers: Vec<_> = counts.iter().map(|&count| Servers { count, service: 0 }).collect();
        Latency::of(&load, &servers, &[service(seconds)], 1.0)
    }

    #[test]
    fn a_lone_request_takes_its_service_time() {
        let latency = latency(60.0, &[0.001; 10], &[1; 10], 0.02);
        assert!((latency.quantile(0.5) - 0.02).abs() < 1e-6);
        assert!((latency.quantile(0.95) - 0.02).abs() < 1e-4, "{}", latency.quantile(0.95));
    }

    #[test]
    fn waits_of_an_exponential_queue_come_back_as_its_formula_has_them() {
        // M/M/1 at ρ = 0.7: the latency is exponential with mean S/(1 − ρ).
        let points = (0..=400).map(|step| {
            let part = f64::from(step) / 400.0;
            super::super::distribution::Point { part, seconds: -0.1 * (1.0 - part).max(1e-5).ln() }
        });
        let takes = Distribution::through(&points.collect::<Vec<_>>()).unwrap();
        let service = Service { held: 0.1, held_scv: 1.0, takes };
        let load = Load::new(60.0, vec![7.0]).unwrap();
        let latency = Latency::of(&load, &[Servers { count: 1, service: 0 }], &[service], 1.0);
        for part in [0.5, 0.95, 0.99] {
            let exact = -(0.1 / 0.3) * f64::ln(1.0 - part);
            let got = latency.quantile(part);
            assert!((got / exact - 1.0).abs() < 0.03, "p{part}: {got} for {exact}");
        }
    }

    #[test]
    fn while_nothing_serves_requests_wait_until_something_does_and_has_caught_up() {
        // 10 s without a server, then 2 requests a second can be served, and 1 comes.
        let rates: Vec<_> = (0..40).map(|_| 1.0).collect();
        let counts: Vec<_> = (0..40).map(|second| u32::from(second >= 10)).collect();
        let latency = latency(1.0, &rates, &counts, 0.5);
        // The wait falls from 10 s to none, evenly over the first 20 s: half of the requests see it.
        assert!((latency.quantile(0.999) - 10.5).abs() < 0.1, "{}", latency.quantile(0.999));
        assert!((latency.beyond(5.5) - 0.25).abs() < 0.03, "{}", latency.beyond(5.5));
    }

    #[test]
    fn what_is_never_served_takes_for_ever() {
        assert!(latency(1.0, &[1.0; 5], &[0; 5], 0.1).quantile(0.5).is_infinite());
    }

    #[test]
    fn too_few_servers_are_late_but_not_for_ever_once_the_load_is_over() {
        let latency = latency(10.0, &[20.0, 0.0, 0.0, 0.0], &[1; 4], 0.1);
        // 200 requests in 10 s, served in 20: the last one waits 10 s.
        assert!((latency.quantile(0.5) - 5.1).abs() < 0.2, "{}", latency.quantile(0.5));
        assert!(latency.quantile(1.0) < 10.5);
    }

    proptest! {
        #[test]
        fn a_larger_part_takes_longer_and_none_takes_less_than_its_service(
            rates in proptest::collection::vec(0.0..30.0_f64, 2..20), count in 1..5_u32, seconds in 0.001..0.3_f64,
        ) {
            prop_assume!(rates.iter().sum::<f64>() > 0.0);
            let latency = latency(5.0, &rates, &vec![count; rates.len()], seconds);
            let (p50, p95) = (latency.quantile(0.5), latency.quantile(0.95));
            prop_assert!(p50 <= p95 && p50 >= seconds - 1e-6, "{} {}", p50, p95);
        }

        #[test]
        fn more_servers_are_never_slower(rate in 0.1..30.0_f64, count in 1..6_u32, seconds in 0.001..0.3_f64) {
            // A queue that is hardly in balance would be slower in the long run than one that grows for a minute.
            prop_assume!(rate * seconds < 0.95 * f64::from(count));
            let of = |count| latency(60.0, &[rate], &[count], seconds).quantile(0.95);
            prop_assert!(of(count + 1) <= of(count) * 1.02 + 1e-6, "{} {}", of(count), of(count + 1));
        }

        #[test]
        fn a_rate_stands_on_the_grid_at_most_two_percent_above(rate in 1e-6..1e6_f64) {
            let grid = rate_at(place(rate));
            prop_assert!(grid >= rate * (1.0 - 1e-9) && grid <= rate * ALIKE * (1.0 + 1e-9));
        }
    }
}
