//! What the hook adds to a launch while the function has the right to run: the hook's own measurement, run by cargo and
//! read from what it prints. Nothing but the hook's code runs in it, no driver.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gpufn::figures::{Bar, Figure};

use crate::of_rounds;

/// The ignored test that measures, with the options that make it run and speak.
const MEASUREMENT: [&str; 10] = [
    "test",
    "--release",
    "--locked",
    "--package",
    "cuda-hook",
    "--lib",
    "--",
    "--ignored",
    "--nocapture",
    "fast_path",
];

/// Nanoseconds that a launch costs on the fast path.
pub(crate) fn fast_path(rounds: usize) -> Result<Figure> {
    let times: Vec<_> = (0..rounds).map(|_| measured()).collect::<Result<_>>()?;
    let how = "a launch within an open batch, hook alone, best of 20 times 1 000 000 launches";
    let (value, how) = of_rounds("hook-fast-path-ns", &times, "ns", how)?;
    Ok(Figure::new("hook-fast-path-ns", value, "ns", Bar::AtMost(25.0), how))
}

fn measured() -> Result<f64> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(MEASUREMENT).current_dir(workspace).output().context("cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "the hook's measurement ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    nanoseconds(&text).with_context(|| format!("no time per launch in {text:?}"))
}

/// The time in `… 12ns per launch`, as `Duration` prints it.
fn nanoseconds(text: &str) -> Option<f64> {
    let time = text.lines().find_map(|line| line.trim_end().strip_suffix(" per launch"))?;
    let time = time.rsplit(' ').next()?;
    let (number, scale) = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6)]
        .iter()
        .find_map(|(unit, scale)| Some((time.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_in_what_the_measurement_prints() {
        let printed = "\nrunning 1 test\ntest launch::tests::the_fast_path ... 12ns per launch\nok\n";
        assert_eq!(nanoseconds(printed), Some(12.0));
        assert_eq!(nanoseconds("1.5µs per launch\n"), Some(1500.0));
        for other in ["ok", "12 per launch", "ns per launch"] {
            assert_eq!(nanoseconds(other), None, "{other:?}");
        }
    }
}
