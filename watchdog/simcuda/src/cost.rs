//! How long a kernel takes: from the profile of its model, from a cost table, or by default. Pure.

use gpu_share::latency::Profiles;
use gpu_share::units::{Nanos, SmShare};

/// What a kernel takes that no rule knows.
const DEFAULT: Nanos = Nanos::from_micros(10);

/// The kernel that runs as many microseconds as its first argument says.
pub const SPIN: &str = "spin_us";

/// A kernel launch, as far as its duration depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'a str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// The first argument, for [`SPIN`].
    pub argument: u32,
}

/// Why a cost table is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cost table line {line} is {text:?}, allowed is a pattern, nanoseconds and, optionally, nanoseconds per block"
)]
pub struct CostError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What it holds.
    pub text: String,
}

/// One line of a cost table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    pattern: String,
    base: u64,
    per_block: u64,
}

/// All rules by which the duration of a kernel is found.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    profiles: Profiles,
    table: Vec<Row>,
}

impl Costs {
    /// Rules from the profiles of models alone.
    pub fn new(profiles: Profiles) -> Self {
        Self { profiles, table: Vec::new() }
    }

    /// Adds a cost table: lines `pattern ns [ns_per_block]`, of which the first that matches counts. `*` stands for
    /// any characters; empty lines and those that start with `#` are skipped.
    pub fn with_table(mut self, text: &str) -> Result<Self, CostError> {
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let row = parse_row(line).ok_or_else(|| CostError { line: index + 1, text: line.into() })?;
            self.table.push(row);
        }
        Ok(self)
    }

    /// How long `launch` runs on `sm` of the GPU.
    pub fn time(&self, launch: &Launch<'_>, sm: SmShare) -> Nanos {
        self.profile_time(launch, sm)
            .or_else(|| (launch.kernel == SPIN).then(|| Nanos::from_micros(u64::from(launch.argument))))
            .or_else(|| self.table_time(launch))
            .unwrap_or(DEFAULT)
    }

    /// `<model>_layer` with the number of layers in `grid.x` and the batch in `grid.z`: one layer's part.
    fn profile_time(&self, launch: &Launch<'_>, sm: SmShare) -> Option<Nanos> {
        let surface = self.profiles.get(launch.kernel.strip_suffix("_layer")?)?;
        let [layers, _, batch] = launch.grid;
        Some(Nanos(surface.gpu_time(sm, batch).0 / u64::from(layers.max(1))))
    }

    fn table_time(&self, launch: &Launch<'_>) -> Option<Nanos> {
        let row = self.table.iter().find(|row| matches(&row.pattern, launch.kernel))?;
        let blocks = launch.grid.iter().fold(1_u64, |blocks, &n| blocks.saturating_mul(u64::from(n)));
        Some(Nanos(row.base.saturating_add(row.per_block.saturating_mul(blocks))))
    }
}

fn parse_row(line: &str) -> Option<Row> {
    let mut words = line.split_whitespace();
    let pattern = words.next()?.to_owned();
    let base = words.next()?.parse().ok()?;
    let per_block = words.next().map_or(Ok(0), str::parse).ok()?;
    words.next().is_none().then_some(Row { pattern, base, per_block })
}

/// Whether `name` is `pattern` with every `*` replaced by some characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    // `split` gives at least one part.
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn launch(kernel: &str, grid: [u32; 3]) -> Launch<'_> {
        Launch { kernel, grid, argument: 700 }
    }

    #[test]
    fn all_layers_of_a_model_take_what_its_profile_says() {
        let costs = Costs::new(Profiles::shipped());
        let sm = SmShare::from_percent(10).unwrap();
        let layer = costs.time(&launch("vgg16_layer", [16, 1, 8]), sm);
        let whole = Profiles::shipped().get("vgg16").unwrap().gpu_time(sm, 8);
        assert!(whole.0.abs_diff(layer.0 * 16) < 16, "{whole:?} {layer:?}");
        assert!(costs.time(&launch("vgg16_layer", [16, 1, 8]), SmShare::WHOLE) < layer);
    }

    #[test]
    fn the_first_line_of_the_table_that_matches_counts() {
        let text = "# comment\n\ngemm_*_nn 1000 10\n*gemm* 5000\n* 7\n";
        let costs = Costs::default().with_table(text).unwrap();
        let time = |name, grid| costs.time(&launch(name, grid), SmShare::WHOLE).0;
        assert_eq!(time("gemm_f16_nn", [2, 3, 4]), 1240);
        assert_eq!(time("sgemm", [2, 3, 4]), 5000);
        assert_eq!(time("other", [1, 1, 1]), 7);
        assert_eq!(time(SPIN, [1, 1, 1]), 700_000);
    }

    #[test]
    fn a_kernel_that_no_rule_knows_takes_ten_microseconds() {
        let costs = Costs::new(Profiles::shipped());
        assert_eq!(costs.time(&launch("nobody_layer", [1, 1, 1]), SmShare::WHOLE), DEFAULT);
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in ["name", "name x", "name 1 x", "name 1 2 3", "name -1"] {
            let error = Costs::default().with_table(&format!("# head\n{bad}\n")).unwrap_err();
            assert_eq!(error, CostError { line: 2, text: bad.into() });
        }
    }

    proptest! {
        #[test]
        fn a_pattern_made_from_a_name_matches_it(parts in prop::collection::vec("[a-c]{0,3}", 1..5), fill in "[a-c]{0,3}") {
            let pattern = parts.join("*");
            prop_assert!(matches(&pattern, &parts.join(&fill)));
        }

        #[test]
        fn any_table_is_read_or_refused_without_a_panic(text in "[ -~\n]{0,80}") {
            let _ = Costs::default().with_table(&text);
        }
    }
}
