//! The whole matrix in virtual time, on all processors.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gpu_share::units::Nanos;
use gpufn::audit::bar;
use gpufn::audit::cell::{KERNELS, Place};
use gpufn::audit::report::Row;
use gpufn::figures::{Bar, Figure, number, short};

use crate::Effort;
use crate::virtual_time::World;

/// Length of each cell, seconds.
pub(crate) const SECONDS: u32 = 10;

/// Every cell, in order.
pub(crate) fn run(effort: &Effort) -> Vec<Row> {
    let places = effort.of(Place::pairwise as fn() -> Vec<Place>, Place::all)();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let progress = bar(places.len());
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, place)) = at(&places, next.fetch_add(1, Ordering::Relaxed)) {
                    let row = cell(*place, SECONDS, index as u64);
                    rows.lock().expect("no thread panics with it").push((index, row));
                    progress.inc(1);
                }
            });
        }
    });
    progress.finish_and_clear();
    let mut rows = rows.into_inner().expect("no thread panics with it");
    rows.sort_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn at<T>(list: &[T], index: usize) -> Option<(usize, &T)> {
    list.get(index).map(|item| (index, item))
}

/// One cell in virtual time.
pub(crate) fn cell(place: Place, seconds: u32, seed: u64) -> Row {
    let mut world = World::new(&place.containers(), place.mode, seed);
    world.run_until(Nanos::from_secs(seconds.into()));
    Row::of(place, &world.seconds())
}

/// What the rows say together.
pub(crate) fn figures(rows: &[Row]) -> Vec<Figure> {
    let missed: Vec<_> = rows.iter().filter(|row| !row.ok()).collect();
    for row in missed.iter().take(20) {
        println!(
            "missed: {}: off by {} points, {} in a second",
            row.name,
            short(row.whole()),
            short(row.worst_second())
        );
    }
    let worst = |value: fn(&Row) -> f64| rows.iter().map(value).fold(0.0, f64::max);
    let how = format!(
        "{} cells of {SECONDS} s in virtual time, with the node agent's arbiter and the hook's accounting",
        rows.len()
    );
    vec![
        Figure::new(
            "hook-matrix-cells-missed",
            number(missed.len() as u64),
            "",
            Bar::AtMost(0.0),
            how.clone(),
        ),
        Figure::new("hook-matrix-worst-10s-pp", worst(Row::whole), "pp", Bar::AtMost(0.5), how.clone()),
        Figure::new(
            "hook-matrix-worst-second-of-allowed",
            rows.iter().map(second).fold(0.0, f64::max),
            "",
            Bar::AtMost(1.0),
            how + "; distance of a second over what is allowed, 2 points or one kernel",
        ),
    ]
}

fn second(row: &Row) -> f64 {
    row.containers.iter().map(|one| one.worst_second / (one.allowed_second + 0.01)).fold(0.0, f64::max)
}

/// Worst distances by way of sharing and kernel, over all quotas and ways to launch, as a table of a document.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut groups = BTreeMap::<(String, u8, u8), Vec<(f64, f64)>>::new();
    for row in rows {
        let Some(place) = row.place else { continue };
        let Some(column) = KERNELS.iter().position(|kernel| *kernel == place.kernel) else { continue };
        let key = (place.mode.to_string(), place.containers, place.processes);
        let cells = groups.entry(key).or_insert_with(|| vec![(0.0, 0.0); KERNELS.len()]);
        cells[column] = (cells[column].0.max(row.whole()), cells[column].1.max(row.worst_second()));
    }
    let line = |head: String, cells: Vec<String>| format!("| {head} | {} |\n", cells.join(" | "));
    let head =
        line("containers × processes, sharing".into(), KERNELS.iter().map(ToString::to_string).collect());
    let rule = format!("|---|{}\n", "--:|".repeat(KERNELS.len()));
    let lines = groups.into_iter().map(|((mode, containers, processes), cells)| {
        let cell = |(whole, second): &(f64, f64)| format!("{} / {}", short(*whole), short(*second));
        line(format!("{containers} × {processes}, {mode}"), cells.iter().map(cell).collect())
    });
    [head, rule].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_way_of_sharing_and_the_worst_of_each_kernel() {
        let place = Place::pairwise()[0];
        let off = |error: f64| {
            let seconds: Vec<_> =
                place.containers().iter().map(|one| vec![f64::from(one.quota) + error; 10]).collect();
            Row::of(place, &seconds)
        };
        let table = table(&[off(0.1), off(-0.3)]);
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.lines().last().unwrap().contains(" 0.3 / 0.3 |"), "{table}");
    }

    #[test]
    fn a_cell_of_one_program_is_within_the_bars() {
        let one = |place: &Place| place.containers == 1 && place.processes == 1;
        let row = cell(Place::pairwise().into_iter().find(one).unwrap(), 10, 1);
        assert!(row.ok(), "{row:?}");
    }
}
