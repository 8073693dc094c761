//! What an audit found, cell by cell, as JSON and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cell::{Place, QUOTAS};
use super::verdict::Verdict;
use crate::figures::{Machine, short, table};

/// One cell that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Where it stands in the matrix, if it is part of it.
    pub place: Option<Place>,
    /// Its containers, in order.
    pub containers: Vec<Verdict>,
}

impl Row {
    /// A cell of the matrix, from what each container got, second by second.
    pub fn of(place: Place, seconds: &[Vec<f64>]) -> Self {
        let sets = place.containers().into_iter().map(|container| f64::from(container.quota));
        let containers =
            sets.zip(seconds).map(|(set, got)| Verdict::new(set, got, place.longest())).collect();
        Self { name: place.to_string(), place: Some(place), containers }
    }

    /// Whether every container is within the bars.
    pub fn ok(&self) -> bool {
        !self.containers.is_empty() && self.containers.iter().all(|verdict| verdict.ok)
    }

    /// Largest distance of any container over the whole time, percentage points.
    pub fn whole(&self) -> f64 {
        self.containers.iter().map(Verdict::whole).fold(0.0, f64::max)
    }

    /// Largest distance of any container in any second, percentage points.
    pub fn worst_second(&self) -> f64 {
        self.containers.iter().map(|verdict| verdict.worst_second).fold(0.0, f64::max)
    }

    /// How much of what is allowed is used up: at most 1 where the bars are kept.
    pub fn strain(&self) -> f64 {
        let strain = |verdict: &Verdict| {
            (verdict.worst_second / verdict.allowed_second).max(verdict.whole() / verdict.allowed_whole)
        };
        self.containers.iter().map(strain).fold(0.0, f64::max)
    }

    fn cells(&self) -> Vec<String> {
        let list = |value: fn(&Verdict) -> f64| {
            self.containers.iter().map(|verdict| short(value(verdict))).collect::<Vec<_>>().join(" / ")
        };
        let ok = if self.ok() { "ok" } else { "NOT OK" };
        vec![
            self.name.clone(),
            list(|verdict| verdict.set),
            list(|verdict| verdict.got),
            short(self.whole()),
            short(self.worst_second()),
            ok.into(),
        ]
    }
}

/// All cells of an audit.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: Machine,
    /// Length of each cell, seconds.
    pub seconds: u32,
    /// How delivered time was counted.
    pub how: &'static str,
    /// The cells.
    pub rows: Vec<Row>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

impl Report {
    /// Whether every cell is within the bars.
    pub fn ok(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::ok)
    }

    /// As text.
    pub fn table(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::cells).collect();
        table(&["cell", "set, %", "got, %", "off, points", "worst second", ""], &rows)
    }

    /// In a sentence.
    pub fn summary(&self) -> String {
        let kept = self.rows.iter().filter(|row| row.ok()).count();
        let worst = |value: fn(&Row) -> f64| self.rows.iter().map(value).fold(0.0, f64::max);
        format!(
            "{kept} of {} cells within the bars; off by at most {} points over {} s, {} in a second",
            self.rows.len(),
            short(worst(Row::whole)),
            self.seconds,
            short(worst(Row::worst_second))
        )
    }
}

/// Cells of the matrix of one way of sharing: under it, by what is launched, a value for each quota.
pub(crate) type Group<'a> = BTreeMap<String, [Option<&'a Row>; QUOTAS.len()]>;

/// The cells by mode, containers and processes.
pub(crate) fn groups(rows: &[Row]) -> BTreeMap<String, Group<'_>> {
    let mut groups = BTreeMap::<String, Group<'_>>::new();
    for row in rows {
        let Some(place) = row.place else { continue };
        let Some(column) = QUOTAS.iter().position(|&quota| quota == place.quota) else { continue };
        let title = format!(
            "{}, {} container{} of {} process{}",
            place.mode,
            place.containers,
            if place.containers == 1 { "" } else { "s" },
            place.processes,
            if place.processes == 1 { "" } else { "es" }
        );
        // In the order of the lengths, not of their names.
        let line = format!("{:?}\u{0}{}, {}", place.kernel, place.kernel, place.launch.name());
        groups.entry(title).or_default().entry(line).or_default()[column] = Some(row);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::cell::{Kernel, Launch, Mode};

    pub(crate) fn place(quota: u8, containers: u8) -> Place {
        let kernel = Kernel::Micros(1_000);
        Place { quota, kernel, launch: Launch::Kernel, containers, processes: 1, mode: Mode::Exclusive }
    }

    #[test]
    fn a_cell_is_kept_only_if_every_container_is() {
        let row = Row::of(place(30, 2), &[vec![30.0; 10], vec![66.0; 10]]);
        assert!(row.ok() && row.strain() < 0.01);
        let row = Row::of(place(30, 2), &[vec![30.0; 10], vec![60.0; 10]]);
        assert!(!row.ok() && row.strain() > 1.0);
        assert!((row.whole() - 6.0).abs() < 1e-9);
    }

    #[test]
    fn an_audit_of_nothing_keeps_nothing() {
        let machine = Machine { cpu: "c".into(), cores: 2, gpu: "g".into() };
        let report = Report { machine, seconds: 10, how: "", rows: Vec::new(), left_out: Vec::new() };
        assert!(!report.ok());
    }

    #[test]
    fn cells_stand_under_their_way_of_sharing_and_quota() {
        let rows = [
            Row::of(place(30, 1), &[vec![30.0; 10]]),
            Row::of(place(30, 2), &[vec![30.0; 10], vec![66.0; 10]]),
        ];
        let groups = groups(&rows);
        assert_eq!(groups.len(), 2);
        let group = &groups["exclusive, 1 container of 1 process"];
        let cells = group.values().next().unwrap();
        assert_eq!(cells.iter().position(Option::is_some), QUOTAS.iter().position(|&quota| quota == 30));
    }
}
