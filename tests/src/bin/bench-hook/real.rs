//! A subset of the matrix in which every two values meet, with real processes on the simulated GPU, beside the same cells
//! in virtual time.

use anyhow::{Context, Result};
use gpufn::audit::bar;
use gpufn::audit::cell::{MODES, Place};
use gpufn::audit::measure::Bench;
use gpufn::audit::report::Row;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, number, short, table};

use crate::{Effort, matrix, probe};

/// One of so many cells is run with `--quick`: a prime, so that all values are met.
const QUICK_ONE_OF: usize = 7;

/// Runs both, and compares them.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let places: Vec<_> = Place::pairwise().into_iter().step_by(effort.of(QUICK_ONE_OF, 1)).collect();
    let seconds = effort.of(3, matrix::SECONDS);
    let progress = bar(places.len());
    let mut pairs = Vec::new();
    for mode in MODES {
        let stand = Stand::start(programs, &Card::Simulated, mode).await?;
        let mut bench = Bench::new(&stand, probe());
        for (index, place) in places.iter().enumerate().filter(|(_, place)| place.mode == mode) {
            progress.set_message(place.to_string());
            let got = bench.run(&place.containers(), seconds).await.with_context(|| place.to_string())?;
            pairs.push((Row::of(*place, &got), matrix::cell(*place, seconds, index as u64)));
            progress.inc(1);
        }
        stand.stop().await;
    }
    progress.finish_and_clear();
    println!("{}", lines(&pairs));
    Ok(figures(&pairs, seconds))
}

/// Largest distance between what a container got in real and in virtual time, percentage points.
fn difference((real, computed): &(Row, Row)) -> f64 {
    let pairs = real.containers.iter().zip(&computed.containers);
    pairs.map(|(real, computed)| (real.got - computed.got).abs()).fold(0.0, f64::max)
}

fn lines(pairs: &[(Row, Row)]) -> String {
    let list = |row: &Row| row.containers.iter().map(|one| short(one.got)).collect::<Vec<_>>().join(" / ");
    let line = |pair: &(Row, Row)| {
        let (real, computed) = pair;
        let ok = if real.ok() { "ok" } else { "NOT OK" };
        vec![
            real.name.clone(),
            list(real),
            list(computed),
            short(real.worst_second()),
            short(difference(pair)),
            ok.to_string(),
        ]
    };
    table(
        &["cell", "real, %", "virtual, %", "worst second off", "real from virtual", ""],
        &pairs.iter().map(line).collect::<Vec<_>>(),
    )
}

fn figures(pairs: &[(Row, Row)], seconds: u32) -> Vec<Figure> {
    let missed = number(pairs.iter().filter(|(real, _)| !real.ok()).count() as u64);
    let worst = |value: &dyn Fn(&(Row, Row)) -> f64| pairs.iter().map(value).fold(0.0, f64::max);
    let how = format!(
        "{} cells of {seconds} s, real processes on the simulated GPU, every two values of the axes meet",
        pairs.len()
    );
    vec![
        Figure::new("hook-real-cells-missed", missed, "", Bar::AtMost(0.0), how.clone()),
        Figure::new(
            "hook-real-worst-10s-pp",
            worst(&|pair| pair.0.whole()),
            "pp",
            Bar::AtMost(0.5),
            how.clone(),
        ),
        Figure::new(
            "hook-real-from-virtual-worst-pp",
            worst(&difference),
            "pp",
            Bar::AtMost(1.0),
            how + "; largest distance of a container's share from that in virtual time",
        ),
    ]
}
