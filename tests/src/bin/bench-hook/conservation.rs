//! Time that nobody claims goes to whoever wants it, and comes back when it is claimed: three containers with floors of
//! 30 % and ceilings of 100 %, in virtual and in real time.

use std::time::Duration;

use anyhow::Result;
use gpu_share::units::Nanos;
use gpufn::audit::cell::{Container, Launch, Load, Mode};
use gpufn::audit::measure::part;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, short};

use crate::Effort;
use crate::inference::start;
use crate::virtual_time::{Change, World};

const FLOOR: f64 = 0.30;
/// By so much later than it wakes a container has its floor.
const TWO_WINDOWS: Nanos = Nanos::from_millis(20);
/// For so long after the others stop it is watched what the first one gets.
const LATER: Nanos = Nanos::from_secs(5);
/// For so long after they wake it is watched whether the others have it.
const WATCHED: u64 = 300;

fn container() -> Container {
    Container { ceiling: 100, ..Container::new(30, Load::new(1_000, Launch::Kernel)) }
}

/// Both.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = in_virtual_time();
    figures.extend(in_real_time(programs, effort).await?);
    Ok(figures)
}

fn in_virtual_time() -> Vec<Figure> {
    let mut world = World::idle(&[container(), container(), container()], Mode::Exclusive, 1);
    let (woken, end) = (Nanos::from_secs(5), Nanos::from_secs(16));
    world.change(Nanos::ZERO, Change::Start(0));
    for other in [1, 2] {
        world.change(woken, Change::Start(other));
        world.change(end, Change::Stop(other));
    }
    world.run_until(woken);
    let alone = percent(world.used(0), woken);
    let mut short_of = Nanos::ZERO;
    for ms in 1..=WATCHED {
        world.run_until(woken + Nanos::from_millis(ms));
        let due = Nanos::from_secs_f64(FLOOR * Nanos::from_millis(ms).since(TWO_WINDOWS).secs_f64());
        short_of = [1, 2].iter().map(|&other| due.since(world.used(other))).fold(short_of, Nanos::max);
    }
    let from = woken + Nanos::from_secs(1);
    world.run_until(from);
    let before = [0, 1, 2].map(|index| world.used(index));
    world.run_until(end);
    let thirds = [0, 1, 2].map(|index| percent(world.used(index).since(before[index]), end.since(from)));
    // What the others leave when they stop is lent at once.
    let left = world.used(0);
    world.run_until(end + LATER);
    let alone = alone.min(percent(world.used(0).since(left), LATER));
    println!(
        "unused time, virtual: alone {} %, woken short of the floor by {} ms, three {} %",
        short(alone),
        short(short_of.millis_f64()),
        thirds.map(short).join(" / ")
    );
    let how = "virtual time, floors 30 %, ceilings 100 %, 1 ms kernels";
    let off = thirds.iter().map(|third| (third - 100.0 / 3.0).abs()).fold(0.0, f64::max);
    vec![
        Figure::new(
            "hook-virtual-alone-percent",
            alone,
            "%",
            Bar::AtLeast(98.0),
            format!("{how}; one launches alone"),
        ),
        Figure::new(
            "hook-virtual-woken-short-ms",
            short_of.millis_f64(),
            "ms",
            Bar::AtMost(1.0),
            format!(
                "{how}; most that a woken one lacks of its floor, from two windows after it woke on; one kernel"
            ),
        ),
        Figure::new(
            "hook-virtual-thirds-off-pp",
            off,
            "pp",
            Bar::AtMost(1.0),
            format!("{how}; all three launch"),
        ),
    ]
}

fn percent(used: Nanos, of: Nanos) -> f64 {
    100.0 * used.secs_f64() / of.secs_f64()
}

async fn in_real_time(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let stand = Stand::start(programs, &Card::Simulated, Mode::Exclusive).await?;
    let span = Duration::from_secs(effort.of(2, 6));
    let mut probes = Vec::new();
    for name in ["a", "b", "c"] {
        probes.push(start(&stand, name, &container()).await?.0);
    }
    let pids: Vec<_> = probes.iter().map(|probe| [probe.pid()]).collect();
    let (mut others, mut first) = (probes.split_off(1), probes);
    first[0].go().await?;
    // From here on it has had time to learn what its kernels cost.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let alone = over(&stand, &pids, span).await?[0];
    for probe in &mut others {
        probe.go().await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let thirds = over(&stand, &pids, span).await?;
    for probe in first.into_iter().chain(others) {
        probe.stop().await?;
    }
    stand.stop().await;
    let list = thirds.iter().map(|&third| short(third)).collect::<Vec<_>>().join(" / ");
    println!("unused time, real: alone {} %, three {list} %", short(alone));
    let how = "real processes on the simulated GPU, floors 30 %, ceilings 100 %, 1 ms kernels";
    let off = thirds.iter().map(|third| (third - 100.0 / 3.0).abs()).fold(0.0, f64::max);
    Ok(vec![
        Figure::new(
            "hook-alone-percent",
            alone,
            "%",
            Bar::AtLeast(98.0),
            format!("{how}; one launches alone"),
        ),
        Figure::new("hook-thirds-off-pp", off, "pp", Bar::AtMost(1.0), format!("{how}; all three: {list} %")),
    ])
}

/// Percent of the next `span` that each of the processes gets.
async fn over(stand: &Stand, pids: &[[u32; 1]], span: Duration) -> Result<Vec<f64>> {
    let before = stand.stats()?;
    tokio::time::sleep(span).await;
    let after = stand.stats()?;
    Ok(pids.iter().map(|pids| part(&before, &after, pids)).collect())
}
