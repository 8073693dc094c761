//! `gpufn profile --onnx`: what a model that nobody ran would take, from its file and the models that are shipped.
//!
//! Owns the file and what is told. What follows from it is the scaler's ([`scaler::profile::onnx`],
//! [`scaler::profile::predicted`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use gpu_share::invalid::Invalid;
use scaler::profile::onnx::{Counts, MOST_BYTES, Model};
use scaler::profile::prior::Example;
use scaler::profile::sheet::{Sample, Sheet};
use scaler::profile::{predicted, shipped};
use serde::Serialize;

use crate::figures::{number, short, table};

/// SM shares and batches of the table, percent and items.
const TOLD_SMS: [u8; 4] = [10, 25, 50, 100];
const TOLD_BATCHES: [u32; 2] = [1, 8];

/// What a file describes, and what follows from it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Described {
    /// What the model is fed with, one item.
    inputs: BTreeMap<String, Vec<u64>>,
    operators: BTreeMap<&'static str, Operators>,
    /// The architecture that it is taken for; none was named, or none is like it.
    family: Option<String>,
    /// The prediction.
    pub(super) profile: Sheet,
}

#[derive(Debug, Serialize)]
struct Operators {
    count: u64,
    macs: u64,
    weights: u64,
    reads: u64,
    writes: u64,
}

/// Reads the model in `file` and predicts it. `dimensions` are those that have only a name there.
pub(super) fn describe(
    file: &Path,
    dimensions: &[(String, u64)],
    family: Option<&str>,
) -> anyhow::Result<Described> {
    let measured = shipped::measured()?;
    let descriptions = shipped::descriptions()?;
    let examples: Vec<_> = measured
        .iter()
        .filter_map(|measured| Some(Example { measured, description: descriptions.get(&measured.model)? }))
        .collect();
    if let Some(family) = family {
        let families: BTreeSet<_> =
            examples.iter().map(|example| example.description.family.as_str()).collect();
        let allowed = || families.iter().copied().collect::<Vec<_>>().join(", ");
        ensure!(families.contains(family), Invalid::new("--family", family, allowed()));
    }
    let in_file = |error: Invalid| error.within(&file.display().to_string());
    let model = Model::read(&bytes(file)?, &dimensions.iter().cloned().collect()).map_err(in_file)?;
    let description = model.description(family.unwrap_or_default()).map_err(in_file)?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy().replace([',', '\n'], "_");
    let window_ms = gpu_share::quota::WINDOW.millis_f64();
    let profile = predicted::sheet(&name, &description, &examples, window_ms)?;
    let operators = model.operators.into_iter().map(|(kind, counts)| (kind, counts.into())).collect();
    let inputs = model.inputs.into_iter().collect();
    Ok(Described { inputs, operators, family: family.map(str::to_string), profile })
}

fn bytes(file: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("failed to read {}", file.display());
    let length = std::fs::metadata(file).with_context(failed)?.len();
    let allowed = format!("a file of at most {MOST_BYTES} bytes; weights may be in another one");
    ensure!(
        length <= MOST_BYTES,
        Invalid::new(file.display().to_string(), format!("{length} bytes"), allowed)
    );
    std::fs::read(file).with_context(failed)
}

impl From<Counts> for Operators {
    fn from(Counts { count, macs, weights, reads, writes }: Counts) -> Self {
        Self { count, macs, weights, reads, writes }
    }
}

impl Described {
    /// For people.
    pub(super) fn text(&self) -> String {
        let millions = |count: u64| short(number(count) / 1e6);
        let row = |(kind, all): (&&str, &Operators)| {
            let columns = [all.macs, all.weights, all.reads, all.writes].map(millions);
            [(*kind).to_string(), all.count.to_string()].into_iter().chain(columns).collect()
        };
        let rows: Vec<_> = self.operators.iter().map(row).collect();
        let head = ["operators", "count", "10⁶ MACs", "10⁶ weights", "10⁶ read", "10⁶ written"];
        let mut text = String::new();
        for (name, shape) in &self.inputs {
            // A String takes whatever is written to it.
            let _ = writeln!(text, "input    {} {}", name.escape_debug(), sizes(shape));
        }
        text + "\n" + &table(&head, &rows) + "\n" + &self.prediction()
    }

    fn prediction(&self) -> String {
        let place =
            |point: &&Sample| TOLD_SMS.contains(&point.place.sm) && TOLD_BATCHES.contains(&point.place.batch);
        let row = |point: &Sample| {
            let [low, high] = point.interval_ms.unwrap_or([point.latency_ms; 2]);
            let between = format!("{} to {} ms", short(low), short(high));
            vec![point.place.to_string(), format!("{} ms", short(point.latency_ms)), between]
        };
        let rows: Vec<_> = self.profile.points.iter().filter(place).map(row).collect();
        let kin = self.family.as_deref().map_or_else(
            || "no --family: nothing like it was measured".to_string(),
            |family| format!("of the family {family}"),
        );
        format!("{}predicted for a V100, {kin}\n", table(&["point", "predicted", "with 90 %"], &rows))
    }
}

fn sizes(shape: &[u64]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×")
}
