//! Rates, latencies and processor time of all programs under the same loads, in turns.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use gpufn::figures::{Bar, Figure, short, table};
use tests::load::median;

use crate::target::{LARGE, Target, haproxy, nginx_proxy, upstream, watchdog, watchdog_with};
use crate::wrk::{Load, load};
use crate::{Cli, is_installed};

const OURS: &str = "fwatchdog";
const PEER: &str = "of-watchdog";

/// One load of one program in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    load: Load,
    /// Processor time for each request, in microseconds.
    cpu: f64,
}

/// Samples by load and program, one for each round.
#[derive(Debug, Default)]
struct Samples(BTreeMap<(&'static str, &'static str), Vec<Sample>>);

/// A way to ask.
#[derive(Clone, Copy, Debug)]
struct Work {
    name: &'static str,
    path: &'static str,
    connections: u32,
    is_upload: bool,
}

const WORKS: [Work; 5] = [
    Work { name: "c64", path: "/x", connections: 64, is_upload: false },
    Work { name: "c8", path: "/x", connections: 8, is_upload: false },
    Work { name: "c1", path: "/x", connections: 1, is_upload: false },
    Work { name: "download", path: "/large", connections: 2, is_upload: false },
    Work { name: "upload", path: "/upload", connections: 2, is_upload: true },
];

const FORK: Work = Work { name: "fork", path: "/", connections: 8, is_upload: false };

/// All figures under load.
pub(crate) fn figures(cli: &Cli) -> Result<Vec<Figure>> {
    let targets = targets(cli)?;
    let mut samples = Samples::default();
    for round in 1..=cli.rounds {
        for work in WORKS {
            for target in &targets {
                let sample = sample(target, work, cli.seconds)?;
                println!("round {round}: {} {}: {}", work.name, target.name, shown(&sample));
                samples.add(work, target, sample);
            }
        }
    }
    let peak =
        targets.iter().find(|target| target.name == OURS).context("nothing was measured")?.memory("VmHWM")?;
    drop(targets);
    if let Some(peer) = &cli.peer {
        let forks = [fork(OURS, &cli.watchdog)?, fork(PEER, peer)?];
        for _ in 0..cli.rounds {
            for target in &forks {
                samples.add(FORK, target, sample(target, FORK, cli.seconds)?);
            }
        }
    }
    println!("\n{}", samples.table());
    let mut figures = samples.figures(cli)?;
    figures.extend(samples.line_rates()?);
    figures.push(Figure::new("peak-memory", peak, "MiB", Bar::AtMost(12.0), "VmHWM after all loads"));
    Ok(figures)
}

fn targets(cli: &Cli) -> Result<Vec<Target>> {
    let upstream = upstream()?;
    let port = upstream.port();
    let mut targets = vec![upstream, watchdog(OURS, &cli.watchdog, port)?, nginx_proxy(port)?];
    if let Some(peer) = &cli.peer {
        targets.push(watchdog(PEER, peer, port)?);
    }
    if is_installed("haproxy") {
        targets.push(haproxy(port)?);
    }
    Ok(targets)
}

fn fork(name: &'static str, program: &std::path::Path) -> Result<Target> {
    watchdog_with(name, program, &[("mode", "streaming"), ("fprocess", "/bin/true")], "/_/health")
}

fn sample(target: &Target, work: Work, seconds: u32) -> Result<Sample> {
    let script = work.is_upload.then(|| format!("wrk.method = 'POST'; wrk.body = string.rep('x', {LARGE})"));
    let before = target.server.processor_time();
    let load = load(&target.url(work.path), work.connections, seconds, script.as_deref())?;
    Ok(Sample { load, cpu: (target.server.processor_time() - before) * 1e6 / load.requests })
}

fn shown(sample: &Sample) -> String {
    let Sample { load, cpu } = sample;
    let [rate, p50, p99, cpu] = [load.rate, load.p50, load.p99, *cpu].map(short);
    format!("{rate}/s, p50 {p50} us, p99 {p99} us, {cpu} us of processor time each")
}

impl Samples {
    fn add(&mut self, work: Work, target: &Target, sample: Sample) {
        self.0.entry((work.name, target.name)).or_default().push(sample);
    }

    fn of(&self, work: &'static str, program: &'static str) -> &[Sample] {
        self.0.get(&(work, program)).map_or(&[], Vec::as_slice)
    }

    /// The medians of everything.
    fn table(&self) -> String {
        let rows = self.0.iter().map(|((work, program), samples)| {
            let of =
                |value: fn(&Sample) -> f64| median(samples.iter().map(value)).map(short).unwrap_or_default();
            let (rate, cpu) = (of(|sample| sample.load.rate), of(|sample| sample.cpu));
            let (p50, p99) = (of(|sample| sample.load.p50), of(|sample| sample.load.p99));
            vec![(*work).to_string(), (*program).to_string(), rate, p50, p99, cpu]
        });
        table(&["load", "program", "req/s", "p50 us", "p99 us", "cpu us"], &rows.collect::<Vec<_>>())
    }

    /// The median over rounds of `value` of ours and the other's samples, and what the direct way took.
    fn ratio(
        &self,
        work: &'static str,
        other: &'static str,
        value: impl Fn(&Sample, &Sample, &Sample) -> f64,
    ) -> Result<f64> {
        let (ours, others) = (self.of(work, OURS), self.of(work, other));
        // Fork modes have no upstream; nothing asks for its samples then.
        let direct = if self.of(work, "direct").is_empty() { ours } else { self.of(work, "direct") };
        let rounds =
            ours.iter().zip(others).zip(direct).map(|((ours, other), direct)| value(ours, other, direct));
        median(rounds.filter(|value| value.is_finite()))
            .with_context(|| format!("{work}: no samples of {other}"))
    }

    /// What large bodies would take of a line, in Gbit/s: as the direct way has no line either, the ratio to it compares
    /// copies in memory.
    fn line_rates(&self) -> Result<Vec<Figure>> {
        let how = "median of all rounds, bodies of 10 MiB on 2 connections; a line of 10 Gbit/s is filled";
        let rate = |work: &'static str| -> Result<Figure> {
            let rates = self.of(work, OURS).iter().map(|sample| sample.load.rate);
            let per_second = median(rates).with_context(|| format!("{work}: no samples"))?;
            let gigabits = per_second * f64::from(u32::try_from(LARGE)?) * 8.0 / 1e9;
            Ok(Figure::new(format!("{work}-10mib-line"), gigabits, "Gbit/s", Bar::AtLeast(10.0), how))
        };
        Ok(vec![rate("download")?, rate("upload")?])
    }

    fn figures(&self, cli: &Cli) -> Result<Vec<Figure>> {
        let how = format!("median of {} rounds of {} s, wrk with one thread", cli.rounds, cli.seconds);
        let mut figures = Vec::new();
        let mut push =
            |id: &str, value: f64, bar: Bar| figures.push(Figure::new(id, value, "x", bar, how.as_str()));
        let rate = |ours: &Sample, other: &Sample, _: &Sample| ours.load.rate / other.load.rate;
        let cpu = |ours: &Sample, other: &Sample, _: &Sample| ours.cpu / other.cpu;
        let to_direct = |ours: &Sample, _: &Sample, direct: &Sample| ours.load.rate / direct.load.rate;
        push("rate-c64-to-nginx", self.ratio("c64", "nginx", rate)?, Bar::AtLeast(0.85));
        push("cpu-c64-to-nginx", self.ratio("c64", "nginx", cpu)?, Bar::AtMost(1.15));
        push("download-10mib-to-direct", self.ratio("download", "direct", to_direct)?, Bar::AtLeast(0.8));
        push("upload-10mib-to-direct", self.ratio("upload", "direct", to_direct)?, Bar::AtLeast(0.8));
        if cli.peer.is_some() {
            let added = |time: fn(&Load) -> f64| {
                move |ours: &Sample, other: &Sample, direct: &Sample| {
                    (time(&ours.load) - time(&direct.load)) / (time(&other.load) - time(&direct.load))
                }
            };
            push("rate-c64-to-peer", self.ratio("c64", PEER, rate)?, Bar::AtLeast(2.5));
            push("rate-c8-to-peer", self.ratio("c8", PEER, rate)?, Bar::AtLeast(2.0));
            push("added-p50-c1-to-peer", self.ratio("c1", PEER, added(|load| load.p50))?, Bar::AtMost(0.5));
            push("added-p99-c64-to-peer", self.ratio("c64", PEER, added(|load| load.p99))?, Bar::AtMost(0.5));
            push("cpu-c64-to-peer", self.ratio("c64", PEER, cpu)?, Bar::AtMost(0.4));
            push("download-10mib-to-peer", self.ratio("download", PEER, rate)?, Bar::AtLeast(1.0));
            push("upload-10mib-to-peer", self.ratio("upload", PEER, rate)?, Bar::AtLeast(1.0));
            push("fork-rate-to-peer", self.ratio("fork", PEER, rate)?, Bar::AtLeast(1.5));
        }
        Ok(figures)
    }
}
