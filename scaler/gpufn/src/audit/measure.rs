//! Runs the probes of one cell and counts what each container got, second by second.
//!
//! On a simulated GPU its own count is taken; on a real one, the kernels that were done and how long one of them takes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gpu_share::protocol::Bound;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cell::{Container, Load};
use super::probe;
use super::stand::{Stand, Stats};
use crate::figures::number;

/// Longest time until a probe is ready.
const START: Duration = Duration::from_mins(1);

/// Where a probe stood at a time: nanoseconds on the monotonic clock, and launches that were done.
type Mark = (u64, u64);

/// A running probe.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
    reader: Option<JoinHandle<Vec<Mark>>>,
}

impl Probe {
    /// Starts `command` and waits until it says that it is ready.
    pub async fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.spawn().context("failed to start a probe")?;
        let out = child.stdout.take().context("a probe has no output")?;
        let mut lines = BufReader::new(out).lines();
        let line =
            tokio::time::timeout(START, lines.next_line()).await.context("a probe does not start")??;
        ensure!(line.as_deref() == Some("ready"), "a probe ended before it was ready; see above");
        Ok(Self { child, lines: Some(lines), reader: None })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Lets it launch.
    pub async fn go(&mut self) -> anyhow::Result<()> {
        let words = self.child.stdin.as_mut().context("a probe has no input")?;
        words.write_all(b"go\n").await.context("a probe ended")?;
        let mut lines = self.lines.take().context("a probe runs already")?;
        self.reader = Some(tokio::spawn(async move {
            let mut marks = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                marks.extend(mark(&line));
            }
            marks
        }));
        Ok(())
    }

    /// The next line that it prints, before it was let go.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let lines = self.lines.as_mut().context("a probe runs already")?;
        lines.next_line().await?.context("a probe ended")
    }

    /// Gives it a line.
    pub async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let words = self.child.stdin.as_mut().context("a probe has no input")?;
        Ok(words.write_all(format!("{line}\n").as_bytes()).await?)
    }

    /// Ends it; what it said it had done.
    pub async fn stop(mut self) -> anyhow::Result<Vec<Mark>> {
        // It launches without an end, as programs do that are killed.
        self.child.start_kill().context("a probe ended by itself")?;
        self.child.wait().await?;
        Ok(match self.reader.take() {
            Some(reader) => reader.await?,
            None => Vec::new(),
        })
    }
}

/// `done NANOSECONDS LAUNCHES`.
fn mark(line: &str) -> Option<Mark> {
    let mut words = line.strip_prefix("done ")?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Measures cells on one stand.
#[derive(Debug)]
pub struct Bench<'a> {
    stand: &'a Stand,
    program: PathBuf,
    /// What a kernel that should take so many microseconds takes on this card, microseconds.
    lengths: BTreeMap<u32, f64>,
    cells: u32,
}

impl<'a> Bench<'a> {
    /// Probes are `gpufn audit-probe`; `program` is gpufn.
    pub fn new(stand: &'a Stand, program: PathBuf) -> Self {
        Self { stand, program, lengths: BTreeMap::new(), cells: 0 }
    }

    /// Part of each second that each container got, percent, from its first launch on.
    pub async fn run(&mut self, containers: &[Container], seconds: u32) -> anyhow::Result<Vec<Vec<f64>>> {
        self.calibrate(containers).await?;
        let (stand, program) = (self.stand, self.program.clone());
        let probe = |container: &Container, bound: &Bound| {
            let mut command = stand.command(&program, bound);
            command.args(probe::arguments(&container.load));
            command
        };
        self.run_programs(containers, seconds, probe).await
    }

    /// The same with other programs that speak as the probe does: `ready`, a line of input, `done …` now and then.
    pub async fn run_programs(
        &mut self,
        containers: &[Container],
        seconds: u32,
        program: impl Fn(&Container, &Bound) -> Command,
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        self.cells += 1;
        let (mut groups, mut bindings) = (Vec::new(), Vec::new());
        for (index, container) in containers.iter().enumerate() {
            let bound = self.stand.bind(&format!("c{}-{index}", self.cells), container).await?;
            let mut group = Vec::new();
            for _ in 0..container.processes {
                group.push(Probe::start(program(container, &bound)).await?);
            }
            bindings.push(bound.binding.id);
            groups.push(group);
        }
        let measured = if self.stand.is_simulated() {
            self.watch(&mut groups, seconds).await
        } else {
            self.count(&mut groups, containers, seconds).await
        };
        for probe in groups.into_iter().flatten() {
            // What it was stopped for has been measured, or the error is above.
            let _ = probe.stop().await;
        }
        for id in bindings {
            self.stand.agent().handle().release(id).await?;
        }
        measured
    }

    /// By the simulated GPU's own count.
    async fn watch(&self, groups: &mut [Vec<Probe>], seconds: u32) -> anyhow::Result<Vec<Vec<f64>>> {
        let pids: Vec<Vec<u32>> = groups.iter().map(|group| group.iter().map(Probe::pid).collect()).collect();
        let mut last = self.stand.stats()?;
        let start = Instant::now();
        for probe in groups.iter_mut().flatten() {
            probe.go().await?;
        }
        let mut windows = vec![Vec::new(); groups.len()];
        for second in 1..=seconds {
            tokio::time::sleep_until(start + Duration::from_secs(second.into())).await;
            let now = self.stand.stats()?;
            for (windows, pids) in windows.iter_mut().zip(&pids) {
                windows.push(part(&last, &now, pids));
            }
            last = now;
        }
        Ok(windows)
    }

    /// By the kernels that were done.
    async fn count(
        &self,
        groups: &mut Vec<Vec<Probe>>,
        containers: &[Container],
        seconds: u32,
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        let start = monotonic_ns();
        for probe in groups.iter_mut().flatten() {
            probe.go().await?;
        }
        tokio::time::sleep(Duration::from_secs(seconds.into()) + Duration::from_millis(200)).await;
        let mut windows = Vec::new();
        for (group, container) in core::mem::take(groups).into_iter().zip(containers) {
            let mut sums = vec![0.0; usize::try_from(seconds)?];
            for probe in group {
                let marks = probe.stop().await?;
                for (second, sum) in sums.iter_mut().enumerate() {
                    let from = start + second as u64 * 1_000_000_000;
                    *sum += self.done(&container.load, &marks, start, from, from + 1_000_000_000);
                }
            }
            windows.push(sums);
        }
        Ok(windows)
    }

    /// Percent of the time between two times that the launches done in it took.
    fn done(&self, load: &Load, marks: &[Mark], start: u64, from: u64, to: u64) -> f64 {
        let launches = launches_at(marks, start, to) - launches_at(marks, start, from);
        let per_round: f64 = load
            .kernels
            .iter()
            .map(|&micros| {
                let length = self.lengths.get(&micros).copied().unwrap_or_else(|| f64::from(micros));
                length * f64::from(Load::kernels_per_launch(load.launch, micros))
            })
            .sum();
        let each = per_round / number(load.kernels.len() as u64);
        100.0 * launches * each * 1e3 / number(to - from)
    }

    /// A kernel that should take `micros` takes `length` microseconds on this card.
    pub fn learn(&mut self, micros: u32, length: f64) {
        self.lengths.insert(micros, length);
    }

    /// Learns how long kernels really are, on a real card.
    async fn calibrate(&mut self, containers: &[Container]) -> anyhow::Result<()> {
        if self.stand.is_simulated() {
            return Ok(());
        }
        let all = containers.iter().flat_map(|container| container.load.kernels.clone());
        let unknown: Vec<_> = all.filter(|micros| !self.lengths.contains_key(micros)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut command = self.stand.unhooked(&self.program);
        command
            .args(probe::arguments(&Load { kernels: unknown, ..Load::new(1, super::cell::Launch::Kernel) }));
        let output = command.arg("--calibrate").output().await?;
        ensure!(output.status.success(), "the probe that measures kernels ended with {}", output.status);
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut words = line.split(' ').skip(1);
            if let (Some(micros), Some(length)) = (words.next(), words.next()) {
                self.lengths.insert(micros.parse()?, length.parse()?);
            }
        }
        Ok(())
    }
}

/// Part of the time between two looks in which kernels of `pids` ran, percent.
pub fn part(earlier: &Stats, later: &Stats, pids: &[u32]) -> f64 {
    let busy = later.busy_ns(pids).saturating_sub(earlier.busy_ns(pids));
    100.0 * number(busy) / number(later.now_ns.saturating_sub(earlier.now_ns).max(1))
}

/// Launches done at a time, evenly between two marks.
fn launches_at(marks: &[Mark], start: u64, at: u64) -> f64 {
    let mut before = (start, 0);
    for &(time, launches) in marks {
        if time >= at {
            let part = number(at.saturating_sub(before.0)) / number((time - before.0).max(1));
            return number(before.1) + part * number(launches.saturating_sub(before.1));
        }
        before = (time, launches);
    }
    number(before.1)
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_between_two_marks_are_taken_as_even() {
        let marks = [(1_000, 10), (2_000, 30)];
        let at = |time| launches_at(&marks, 500, time);
        assert!((at(500) - 0.0).abs() < 1e-9 && (at(750) - 5.0).abs() < 1e-9);
        assert!((at(1_500) - 20.0).abs() < 1e-9 && (at(9_000) - 30.0).abs() < 1e-9);
    }

    #[test]
    fn only_whole_lines_are_marks() {
        assert_eq!(mark("done 5 7"), Some((5, 7)));
        for other in ["ready", "done 5", "done x 7", "bye 5 7"] {
            assert_eq!(mark(other), None, "{other}");
        }
    }
}
