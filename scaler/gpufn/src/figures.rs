//! Measured figures with their bars, as every measuring command writes and prints them.
//!
//! Owns the form of `target/figures/<name>.json` and of tables on the terminal. It measures nothing itself.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What a figure must keep to be `ok`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
    /// From so much to so much.
    Within(f64, f64),
    /// Anything: the figure is told, not judged.
    Any,
}

impl Bar {
    /// Whether `value` keeps it. What is not a number does not.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Within(least, most) => (least..=most).contains(&value),
            Self::Any => value.is_finite(),
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Within(least, most) => write!(f, "{least} to {most}"),
            Self::Any => write!(f, "none"),
        }
    }
}

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its name, the same from run to run.
    pub id: String,
    /// What was measured, in `unit`.
    pub value: f64,
    /// Unit, empty for a count.
    pub unit: &'static str,
    /// The bar, such as `<= 5`.
    pub bar: String,
    /// Whether the bar is kept.
    pub ok: bool,
    /// How it was measured.
    pub how: String,
}

impl Figure {
    /// `value` held against `bar`.
    pub fn new(
        id: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Bar,
        how: impl Into<String>,
    ) -> Self {
        Self { id: id.into(), value, unit, bar: bar.to_string(), ok: bar.holds(value), how: how.into() }
    }
}

/// The machine that figures were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Model of the processor, as the kernel names it.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The GPU, in words.
    pub gpu: String,
}

impl Machine {
    /// This machine, with `gpu` in words.
    pub fn here(gpu: impl Into<String>) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { cpu: cpu_model(&info), cores, gpu: gpu.into() }
    }
}

/// Model of the processor in the text of `/proc/cpuinfo`.
fn cpu_model(info: &str) -> String {
    let value = |key: &str| {
        info.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_string())
        })
    };
    value("model name").or_else(|| value("CPU part")).unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// All figures of one command.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Name of the command, and of the file.
    pub name: &'static str,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Where they were measured.
    pub machine: Machine,
}

impl Figures {
    /// Whether every bar is kept.
    pub fn all_ok(&self) -> bool {
        self.figures.iter().all(|figure| figure.ok)
    }

    /// Writes `<folder>/<name>.json`.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, text + "\n")?;
        Ok(path)
    }

    /// The same as a table.
    pub fn table(&self) -> String {
        let rows: Vec<_> = self
            .figures
            .iter()
            .map(|figure| {
                let value = format!("{} {}", short(figure.value), figure.unit);
                let ok = if figure.ok { "ok" } else { "NOT OK" };
                vec![figure.id.clone(), value.trim_end().to_string(), figure.bar.clone(), ok.to_string()]
            })
            .collect();
        table(&["figure", "value", "bar", ""], &rows)
    }
}

/// `value` with at most three decimals, fewer where they say nothing.
pub fn short(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A count as a number that can be divided.
#[allow(clippy::cast_precision_loss)] // Counts of requests and changes stay far below 2^53.
pub fn number(count: u64) -> f64 {
    count as f64
}

/// Columns under `head`: the first one to the left, the others to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|title| title.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let titles: Vec<_> = head.iter().map(ToString::to_string).collect();
    let rule: Vec<_> = widths.iter().map(|&width| "─".repeat(width)).collect();
    let body = rows.iter().map(|row| line(row));
    [line(&titles), line(&rule)].into_iter().chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_ok_only_if_its_bar_is_kept() {
        assert!(Figure::new("a", 20.0, "", Bar::AtLeast(20.0), "").ok);
        assert!(!Figure::new("a", 1.01, "%", Bar::AtMost(1.0), "").ok);
        assert!(!Figure::new("a", f64::NAN, "%", Bar::AtMost(1.0), "").ok);
        assert_eq!(Bar::AtMost(1.0).to_string(), "<= 1");
        assert!(Figure::new("a", 90.0, "%", Bar::Within(87.0, 93.0), "").ok);
        assert!(!Figure::new("a", 93.1, "%", Bar::Within(87.0, 93.0), "").ok);
        assert!(!Figure::new("a", f64::NAN, "%", Bar::Any, "").ok);
    }

    #[test]
    fn the_file_has_the_form_that_is_collected() {
        let machine = Machine { cpu: "c".into(), cores: 2, gpu: "simulated V100".into() };
        let figures = vec![Figure::new("late", 0.5, "%", Bar::AtMost(1.0), "four functions")];
        let figures = Figures { name: "demo", figures, machine };
        let folder = tempfile::tempdir().unwrap();
        let path = figures.write(folder.path()).unwrap();
        assert_eq!(path, folder.path().join("demo.json"));
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "name": "demo",
            "figures": [{"id": "late", "value": 0.5, "unit": "%", "bar": "<= 1", "ok": true, "how": "four functions"}],
            "machine": {"cpu": "c", "cores": 2, "gpu": "simulated V100"},
        });
        assert_eq!(read, expected);
        assert!(figures.all_ok());
        assert_eq!(figures.table().lines().last(), Some("late    0.5 %  <= 1  ok"));
    }

    #[test]
    fn the_processor_is_named_as_the_kernel_names_it() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        assert_eq!(cpu_model(""), std::env::consts::ARCH);
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (0.126, "0.13"), (12.0, "12"), (12.34, "12.3"), (1234.5, "1234"), (100.0, "100")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
