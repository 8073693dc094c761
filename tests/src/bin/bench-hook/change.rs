//! How soon a grant that is changed works, while its program has more to do than it may: 30 % and 60 % in turn.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gpu_share::page::Snapshot;
use gpu_share::units::{Nanos, Quota};
use gpufn::audit::cell::{Container, Launch, Load, Mode};
use gpufn::audit::measure::part;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, number, short};

use crate::Effort;
use crate::inference::start;
use crate::virtual_time::{Change, World};

/// The two grants, percent.
const GRANTS: [u8; 2] = [60, 30];
/// What its rival has meanwhile, percent.
const RIVAL: [u8; 2] = [36, 66];
/// What each of the two is to get: half of the 4 % that nobody has a claim to is lent to each, since their floors are one.
const DUE: [f64; 2] = [62.0, 32.0];
/// After so long a change works: 1 ms, and what was queued under the old grant (2 ms and a kernel).
const SETTLED: Duration = Duration::from_millis(4);
/// For so long what it delivers is counted, three windows.
const COUNTED: Duration = Duration::from_millis(30);

fn container() -> Container {
    Container { ceiling: 100, ..Container::new(30, Load::new(1_000, Launch::Kernel)) }
}

/// Both.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = vec![in_virtual_time()?];
    figures.extend(in_real_time(programs, effort).await?);
    Ok(figures)
}

/// Mean of what each grant delivers right after it is set.
fn in_virtual_time() -> Result<Figure> {
    let changes = 1_000;
    let mut world = World::new(&[container(), container()], Mode::Exclusive, 1);
    let mut at = Nanos::from_secs(1);
    let mut sums = [0.0; 2];
    for change in 0..changes {
        let turn = change % 2;
        let mut grants = [(0, GRANTS[turn]), (1, RIVAL[turn])];
        // Who gets less goes first: more fits only then.
        if turn == 0 {
            grants.reverse();
        }
        for (container, grant) in grants {
            world.change(at, Change::Grant(container, Quota::from_percent(grant)?));
        }
        let from = at + Nanos::from(SETTLED);
        world.run_until(from);
        let before = world.used(0);
        at = from + Nanos::from(COUNTED);
        world.run_until(at);
        sums[turn] += world.used(0).since(before).secs_f64() / COUNTED.as_secs_f64();
    }
    let means = sums.map(|sum| 200.0 * sum / number(changes as u64));
    println!("grant change, virtual: 60 % delivers {} %, 30 % {} %", short(means[0]), short(means[1]));
    let how = format!(
        "virtual time, {changes} changes between 30 and 60 %, a rival's the other way; mean over the 30 ms that begin 4 ms \
         after a grant is set (1 ms and what was queued): {} % of 62, {} % of 32, 2 of each lent",
        short(means[0]),
        short(means[1])
    );
    Ok(Figure::new("hook-virtual-grant-off-pp", off(means), "pp", Bar::AtMost(2.0), how))
}

async fn in_real_time(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let changes = effort.of(100, 1_000);
    let stand = Stand::start(programs, &Card::Simulated, Mode::Exclusive).await?;
    let (mut one, bound) = start(&stand, "changed", &container()).await?;
    let (mut rival, other) = start(&stand, "rival", &container()).await?;
    one.go().await?;
    rival.go().await?;
    let handle = stand.agent().handle();
    let (mut seen, mut sums) = (Vec::new(), [0.0; 2]);
    let pid = one.pid();
    for change in 0..changes {
        let turn = change % 2;
        let (grant, rest) = (Quota::from_percent(GRANTS[turn])?, Quota::from_percent(RIVAL[turn])?);
        if turn == 0 {
            handle.set_grant(other.binding.id.clone(), rest).await?;
        }
        let set = Instant::now();
        let granted = handle.set_grant(bound.binding.id.clone(), grant).await?;
        ensure!(granted.grant == grant, "{grant} was asked for, {} given", granted.grant);
        seen.push(until_shown(&bound.page, grant, set)?);
        if turn == 1 {
            handle.set_grant(other.binding.id.clone(), rest).await?;
        }
        tokio::time::sleep(SETTLED).await;
        let before = stand.stats()?;
        tokio::time::sleep(COUNTED).await;
        sums[turn] += part(&before, &stand.stats()?, &[pid]);
    }
    one.stop().await?;
    rival.stop().await?;
    stand.stop().await;
    seen.sort();
    let p99 = seen.get(seen.len() * 99 / 100).copied().context("no change was measured")?.as_secs_f64() * 1e3;
    let means = sums.map(|sum| 2.0 * sum / number(changes as u64));
    println!(
        "grant change, real: shown after {} ms (p99), delivers {} %",
        short(p99),
        means.map(short).join(" and ")
    );
    Ok(figures(changes, p99, means))
}

fn figures(changes: usize, p99: f64, means: [f64; 2]) -> Vec<Figure> {
    let how = format!(
        "{changes} changes between 30 and 60 % of a program that always has more to do, a rival's the other way"
    );
    vec![
        Figure::new(
            "hook-grant-shown-p99-ms",
            p99,
            "ms",
            Bar::AtMost(1.0),
            format!("{how}; from the call to the page of its container"),
        ),
        Figure::new(
            "hook-grant-off-pp",
            off(means),
            "pp",
            Bar::AtMost(2.0),
            format!(
                "{how}; mean over the 30 ms that begin 4 ms after a grant is set (1 ms and what was queued): {} % of \
                 62, {} % of 32, 2 of each lent",
                short(means[0]),
                short(means[1])
            ),
        ),
    ]
}

/// How far the worse of the two is from what is due.
fn off(means: [f64; 2]) -> f64 {
    means.iter().zip(DUE).map(|(got, due)| (got - due).abs()).fold(0.0, f64::max)
}

/// How long after `set` the page shows `grant`.
fn until_shown(page: &Path, grant: Quota, set: Instant) -> Result<Duration> {
    loop {
        let shown = Snapshot::parse(&std::fs::read(page)?)?.limits.grant;
        if shown == grant {
            return Ok(set.elapsed());
        }
        ensure!(set.elapsed() < Duration::from_secs(2), "the page still shows {shown}");
    }
}
