//! The cells on which other systems were measured before: quotas, kernels and grids, ways to launch, a program that never
//! waits, and two programs beside each other. The first second counts.

use anyhow::{Context, Result};
use gpufn::audit::bar;
use gpufn::audit::cell::{Container, Launch, Load, Mode, Wait};
use gpufn::audit::measure::Bench;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, number, short, table};

use crate::{Effort, hami, probe};

const QUOTAS: [u8; 4] = [10, 30, 50, 80];
/// Microseconds.
const KERNELS: [u32; 6] = [50, 200, 1_000, 5_000, 20_000, 50_000];
/// A grid of one wave on a card of 132 multiprocessors with eight blocks each, however long the kernel.
const ONE_WAVE: u32 = 1_056;
/// Blocks for each microsecond of a kernel whose blocks live 20 µs.
const W20_PER_MICROSECOND: f64 = 52.8;

/// One cell.
struct Cell {
    name: String,
    containers: Vec<Container>,
    /// Most that the mean, and that a second, may be off, percentage points.
    bars: (f64, f64),
}

impl Cell {
    fn new(name: String, containers: Vec<Container>) -> Self {
        let lengths = containers.iter().map(|container| container.load.longest());
        let (longest, shortest) = (lengths.clone().max().unwrap_or(0), lengths.min().unwrap_or(0));
        let second = if shortest < 1_000 { 2.0 } else { 1.0 };
        Self { name, containers, bars: (0.5, f64::max(second, f64::from(longest) / 1e4)) }
    }
}

fn cells(effort: &Effort) -> Vec<Cell> {
    let mut cells = Vec::new();
    for quota in QUOTAS {
        for micros in KERNELS {
            for (grid, blocks) in [("one wave", ONE_WAVE), ("W20", w20(micros))] {
                let load = Load { blocks, ..Load::new(micros, Launch::Kernel) };
                let name = format!("{quota} %, {} ms, {grid}", f64::from(micros) / 1e3);
                cells.push(Cell::new(name, vec![Container::new(quota, load)]));
            }
        }
    }
    for launch in [Launch::Extended, Launch::Graph, Launch::Cooperative] {
        let containers = vec![Container::new(30, Load::new(1_000, launch))];
        cells.push(Cell::new(format!("30 %, 1 ms, {}", launch.name()), containers));
    }
    for micros in [1_000, 5_000] {
        let load = Load { wait: Wait::Never, ..Load::new(micros, Launch::Kernel) };
        let name = format!("30 %, {} ms, never waits", micros / 1_000);
        cells.push(Cell::new(name, vec![Container::new(30, load)]));
    }
    for other in [1_000, 20_000] {
        let [first, second] = [(30, 1_000), (60, other)].map(|(quota, micros)| {
            Container::new(quota, Load { blocks: w20(micros), ..Load::new(micros, Launch::Kernel) })
        });
        cells.push(Cell::new(
            format!("30 % with 1 ms beside 60 % with {} ms", other / 1_000),
            vec![first, second],
        ));
    }
    let every = effort.of(7, 1);
    cells.into_iter().step_by(every).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A number of blocks, far below 2^32.
fn w20(micros: u32) -> u32 {
    (f64::from(micros) * W20_PER_MICROSECOND) as u32
}

/// What the containers of a cell got, second by second, and how far that is off.
struct Got {
    seconds: Vec<Vec<f64>>,
    mean: f64,
    second: f64,
}

impl Got {
    fn new(cell: &Cell, seconds: Vec<Vec<f64>>) -> Self {
        let (mut worst_mean, mut worst_second) = (0.0_f64, 0.0_f64);
        for (container, seconds) in cell.containers.iter().zip(&seconds) {
            let set = f64::from(container.quota);
            worst_mean = worst_mean.max((mean(seconds) - set).abs());
            worst_second = seconds.iter().map(|second| (second - set).abs()).fold(worst_second, f64::max);
        }
        Self { seconds, mean: worst_mean, second: worst_second }
    }

    fn ok(&self, cell: &Cell) -> bool {
        self.mean <= cell.bars.0 + 0.01 && self.second <= cell.bars.1 + 0.01
    }

    fn text(&self) -> String {
        let each = self.seconds.iter().map(|seconds| {
            let (least, most) = seconds.iter().fold((f64::MAX, 0.0_f64), |(l, m), &s| (l.min(s), m.max(s)));
            format!("{} ({}–{})", short(mean(seconds)), short(least), short(most))
        });
        each.collect::<Vec<_>>().join(" / ")
    }
}

fn mean(seconds: &[f64]) -> f64 {
    seconds.iter().sum::<f64>() / number(seconds.len() as u64)
}

/// Runs the cells, and those of HAMi-core beside them if it is there.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let (cells, seconds) = (cells(effort), effort.of(3, 8));
    let stand = Stand::start(programs, &Card::Simulated, Mode::Exclusive).await?;
    let mut bench = Bench::new(&stand, probe());
    let progress = bar(cells.len());
    let (mut lines, mut ours) = (Vec::new(), Vec::new());
    let mut theirs = Vec::new();
    for cell in &cells {
        progress.set_message(cell.name.clone());
        let got = bench.run(&cell.containers, seconds).await.with_context(|| cell.name.clone())?;
        let got = Got::new(cell, got);
        let mut line =
            vec![cell.name.clone(), got.text(), if got.ok(cell) { "ok" } else { "NOT OK" }.to_string()];
        if let Some(library) = &effort.hami {
            let peer = hami::run(&stand, &mut bench, library, &cell.containers, seconds).await;
            let peer = Got::new(cell, peer.with_context(|| format!("HAMi-core, {}", cell.name))?);
            line.push(peer.text());
            theirs.push(peer);
        }
        lines.push(line);
        ours.push(got);
        progress.inc(1);
    }
    progress.finish_and_clear();
    stand.stop().await;
    println!("{}", table(&["cell", "got, % (seconds from–to)", "", "HAMi-core"], &lines));
    Ok(figures(&cells, &ours, &theirs, seconds))
}

fn figures(cells: &[Cell], ours: &[Got], theirs: &[Got], seconds: u32) -> Vec<Figure> {
    let missed = cells.iter().zip(ours).filter(|(cell, got)| !got.ok(cell)).count();
    let worst = |all: &[Got], value: fn(&Got) -> f64| all.iter().map(value).fold(0.0, f64::max);
    let peer = match theirs {
        [] => String::new(),
        _ => format!(
            "; HAMi-core in the same run: off by up to {} points in the mean, {} in a second",
            short(worst(theirs, |got| got.mean)),
            short(worst(theirs, |got| got.second))
        ),
    };
    let count = cells.len();
    let how = format!("{count} cells of {seconds} s on the simulated GPU, from the first launch on{peer}");
    vec![
        Figure::new("hook-anchors-missed", number(missed as u64), "", Bar::AtMost(0.0), how.clone()),
        Figure::new("hook-anchors-worst-mean-pp", worst(ours, |got| got.mean), "pp", Bar::AtMost(0.5), how),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_kernels_have_the_wider_bar_and_long_ones_that_of_a_kernel() {
        let cell =
            |micros| Cell::new(String::new(), vec![Container::new(30, Load::new(micros, Launch::Kernel))]);
        for (micros, bar) in [(50, 2.0), (1_000, 1.0), (5_000, 1.0), (50_000, 5.0)] {
            assert!((cell(micros).bars.1 - bar).abs() < 1e-9, "{micros} µs");
        }
    }

    #[test]
    fn the_first_second_counts() {
        let cell = Cell::new(String::new(), vec![Container::new(30, Load::new(1_000, Launch::Kernel))]);
        assert!(Got::new(&cell, vec![vec![30.0; 8]]).ok(&cell));
        let mut seconds = vec![30.0; 8];
        seconds[0] = 16.0;
        assert!(!Got::new(&cell, vec![seconds]).ok(&cell));
    }
}
