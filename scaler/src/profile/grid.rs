//! The points at which models are measured and predicted, and the file that measurements are read from.
//!
//! Pure. The grid is that of the published measurements of `RaPP` (HAS-GPU, arXiv 2505.01968): batch, SM share, quota.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gpu_share::invalid::Invalid;

/// Batches, items.
pub const BATCHES: [u32; 4] = [1, 2, 4, 8];
/// SM shares, percent.
pub const SMS: [u32; 20] = [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100];
/// Quotas, percent.
pub const QUOTAS: [u32; 10] = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100];
/// Number of cells.
pub const CELLS: usize = BATCHES.len() * SMS.len() * QUOTAS.len();

/// One point of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    batch: usize,
    sm: usize,
    quota: usize,
}

impl Cell {
    /// The cell at a batch, an SM share and a quota in percent; refused if the grid has none there.
    pub fn at(batch: u32, sm: u32, quota: u32) -> Result<Self, Invalid> {
        let place = |field: &str, axis: &[u32], value: u32| {
            let listed = || axis.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            axis.iter().position(|&at| at == value).ok_or_else(|| Invalid::new(field, value, listed()))
        };
        Ok(Self {
            batch: place("batch", &BATCHES, batch)?,
            sm: place("sm", &SMS, sm)?,
            quota: place("quota", &QUOTAS, quota)?,
        })
    }

    /// All cells, quota fastest.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CELLS).map(|index| Self {
            batch: index / (SMS.len() * QUOTAS.len()),
            sm: index / QUOTAS.len() % SMS.len(),
            quota: index % QUOTAS.len(),
        })
    }

    /// Its place in [`Cell::all`].
    pub fn index(self) -> usize {
        (self.batch * SMS.len() + self.sm) * QUOTAS.len() + self.quota
    }

    /// Items.
    pub fn batch(self) -> u32 {
        BATCHES[self.batch]
    }

    /// Percent.
    pub fn sm(self) -> u32 {
        SMS[self.sm]
    }

    /// Percent.
    pub fn quota(self) -> u32 {
        QUOTAS[self.quota]
    }

    pub(super) fn batch_place(self) -> usize {
        self.batch
    }

    pub(super) fn sm_place(self) -> usize {
        self.sm
    }

    pub(super) fn quota_place(self) -> usize {
        self.quota
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}, {} % of the SMs, quota {} %", self.batch(), self.sm(), self.quota())
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where.
    pub cell: Cell,
    /// Natural logarithm of the latency in milliseconds: errors of latencies are relative.
    pub ln_ms: f64,
}

impl Point {
    /// A latency in milliseconds at a cell.
    pub fn new(cell: Cell, ms: f64) -> Result<Self, Invalid> {
        let sound = ms.is_finite() && ms > 0.0;
        sound.then(|| Self { cell, ln_ms: ms.ln() }).ok_or_else(|| Invalid::new("latency_ms", ms, POSITIVE))
    }
}

/// What was measured of one model, in the order of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Name of the model.
    pub model: String,
    /// At most one point for each cell.
    pub points: Vec<Point>,
}

impl Measured {
    /// The point at `cell`, if it was measured.
    pub fn at(&self, cell: Cell) -> Option<Point> {
        let place = self.points.binary_search_by_key(&cell.index(), |point| point.cell.index()).ok()?;
        self.points.get(place).copied()
    }

    /// Those of `cells` that were measured.
    pub fn among(&self, cells: &[Cell]) -> Vec<Point> {
        cells.iter().filter_map(|&cell| self.at(cell)).collect()
    }
}

/// First line of a file of measurements.
const HEAD: &str = "model,batch,sm,quota,latency_ms";
const POSITIVE: &str = "a number above 0";

/// Reads lines `model,batch,sm,quota,latency_ms` after a line with these names; lines that start with `#` are skipped.
///
/// Models come in the order of their names. A model may lack cells (a batch that does not fit into memory), but it
/// must not have one twice.
pub fn read(text: &str) -> Result<Vec<Measured>, Invalid> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    match lines.next() {
        Some((_, HEAD)) => {}
        head => return Err(Invalid::new("first line", head.map_or("", |line| line.1), HEAD)),
    }
    let mut models: BTreeMap<&str, BTreeMap<usize, Point>> = BTreeMap::new();
    for (index, line) in lines {
        let field = format!("line {}", index + 1);
        let (model, point) = measurement(line).map_err(|error| error.within(&field))?;
        if models.entry(model).or_default().insert(point.cell.index(), point).is_some() {
            return Err(Invalid::new(field, line, "each point of a model once"));
        }
    }
    let named = |(model, points): (&str, BTreeMap<usize, Point>)| Measured {
        model: model.into(),
        points: points.into_values().collect(),
    };
    Ok(models.into_iter().map(named).collect())
}

fn measurement(line: &str) -> Result<(&str, Point), Invalid> {
    let columns: Vec<_> = line.split(',').collect();
    let [model, batch, sm, quota, ms] = columns[..] else { return Err(Invalid::new("columns", line, HEAD)) };
    if model.is_empty() {
        return Err(Invalid::new("model", model, "a name"));
    }
    let whole =
        |field: &str, text: &str| text.parse().map_err(|_| Invalid::new(field, text, "a whole number"));
    let cell = Cell::at(whole("batch", batch)?, whole("sm", sm)?, whole("quota", quota)?)?;
    let ms = ms.parse().map_err(|_| Invalid::new("latency_ms", ms, POSITIVE))?;
    Ok((model, Point::new(cell, ms)?))
}

/// The SM shares that a list of cells needs: each one costs a restart of the process where MPS sets it.
pub fn sm_shares(cells: &[Cell]) -> usize {
    cells.iter().map(|cell| cell.sm()).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_numbered_as_they_are_listed() {
        assert!(Cell::all().enumerate().all(|(index, cell)| cell.index() == index));
        assert_eq!(Cell::all().count(), CELLS);
        let cell = Cell::at(4, 30, 70).unwrap();
        assert_eq!((cell.batch(), cell.sm(), cell.quota()), (4, 30, 70));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named_with_its_line() {
        let cases = [
            ("", "first line is"),
            ("model,batch\n", "first line is"),
            (
                "model,batch,sm,quota,latency_ms\nm,3,5,10,1\n",
                "line 2, batch is \"3\", allowed is 1, 2, 4, 8",
            ),
            ("model,batch,sm,quota,latency_ms\nm,1,7,10,1\n", "line 2, sm is \"7\""),
            ("model,batch,sm,quota,latency_ms\nm,1,5,0,1\n", "line 2, quota is \"0\""),
            ("model,batch,sm,quota,latency_ms\nm,1,5,10,-3\n", "line 2, latency_ms is \"-3\""),
            ("model,batch,sm,quota,latency_ms\nm,1,5,10,NaN\n", "line 2, latency_ms is \"NaN\""),
            ("model,batch,sm,quota,latency_ms\nm,1,5,10,fast\n", "line 2, latency_ms is \"fast\""),
            ("model,batch,sm,quota,latency_ms\n,1,5,10,1\n", "line 2, model is \"\""),
            ("model,batch,sm,quota,latency_ms\nm,1,5\n", "line 2, columns is"),
            ("model,batch,sm,quota,latency_ms\nm,1,5,10,1\nm,1,5,10,2\n", "line 3 is"),
        ];
        for (text, start) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{text:?}: {error}");
        }
    }

    #[test]
    fn models_come_by_name_and_points_by_cell() {
        let text = "model,batch,sm,quota,latency_ms\nb,1,5,20,2\na,8,5,10,4\nb,1,5,10,1\n";
        let models = read(text).unwrap();
        assert_eq!(models.iter().map(|model| model.model.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let cell = |quota| Cell::at(1, 5, quota).unwrap();
        assert_eq!(models[1].points.iter().map(|point| point.cell).collect::<Vec<_>>(), [cell(10), cell(20)]);
        assert!((models[1].at(cell(20)).unwrap().ln_ms - 2.0_f64.ln()).abs() < 1e-12);
        assert_eq!(models[1].at(cell(30)), None);
    }
}
