//! What the hook costs: instructions and time of a launch, and how much longer a program takes that launches as fast as
//! it can. The hook's own tests measure it, on a driver that does nothing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use gpufn::figures::{Bar, Figure};

/// What runs the hook's measurements and makes them speak.
const MEASUREMENT: [&str; 10] = [
    "test",
    "--release",
    "--locked",
    "--package",
    "cuda-hook",
    "--test",
    "regressions",
    "--",
    "--ignored",
    "--nocapture",
];

/// All of it.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let mut figures = fast_path()?;
    figures.push(storm()?);
    Ok(figures)
}

/// What the measurement prints, its judgement left to the bars here.
fn measure(name: &str) -> Result<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(MEASUREMENT).arg(name).current_dir(workspace).output().context("cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn fast_path() -> Result<Vec<Figure>> {
    let valgrind = Command::new("valgrind").arg("--version").output();
    if valgrind.is_err() {
        println!("valgrind is not here: instructions of a launch are not counted");
        return Ok(Vec::new());
    }
    let text = measure("fast_path")?;
    let (instructions, nanos) = measured(&text).with_context(|| format!("no instructions in {text:?}"))?;
    let how = "a launch into an open batch, on a driver that does nothing; above the direct call";
    Ok(vec![
        Figure::new(
            "hook-launch-instructions",
            instructions,
            "",
            Bar::AtMost(60.0),
            format!("{how}, counted by callgrind"),
        ),
        Figure::new("hook-launch-ns", nanos, "ns", Bar::AtMost(10.0), format!("{how}, best of 7")),
    ])
}

/// The numbers in `… 58.0 instructions, 5.25 ns (direct …`.
fn measured(text: &str) -> Option<(f64, f64)> {
    text.lines().find_map(|line| {
        let (instructions, rest) = line.split_once(" instructions, ")?;
        let nanos = rest.split_once(" ns")?.0;
        Some((instructions.rsplit(' ').next()?.parse().ok()?, nanos.parse().ok()?))
    })
}

/// How far the time of a storm behind the hook, with all of the GPU's time, is from its time without, percent.
fn storm() -> Result<Figure> {
    let text = measure("storm")?;
    let (median, spread) = ratio(&text).with_context(|| format!("no ratio in {text:?}"))?;
    println!("a storm of kernels of 2 µs takes {median} times as long behind the hook {spread}");
    let how = format!(
        "time of 100,000 kernels of 2 µs, launched as fast as it goes, to the end of the last, behind the hook against \
         directly, the GPU a count of nanoseconds in the program: median of 11 {spread}"
    );
    Ok(Figure::new("hook-storm-off-percent", 100.0 * (median - 1.0).abs(), "%", Bar::AtMost(1.0), how))
}

/// The number and the spread in `a storm takes 1.0012 times as long (1.0004 to 1.0100)`.
fn ratio(text: &str) -> Option<(f64, &str)> {
    let (median, spread) = text.split_once("a storm takes ")?.1.split_once(" times as long ")?;
    Some((median.parse().ok()?, spread.lines().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_found_in_what_the_measurement_prints() {
        let printed = "\nrunning 1 test\n58.0 instructions, 5.25 ns (direct 2.96 ns)\ntest x ... ok\n";
        assert_eq!(measured(printed), Some((58.0, 5.25)));
        assert_eq!(measured("test x ... 58.0 instructions, 5.25 ns (direct"), Some((58.0, 5.25)));
        assert_eq!(measured("nothing"), None);
        let printed =
            "\nrunning 1 test\na storm takes 1.0012 times as long (1.0004 to 1.0100)\ntest x ... ok\n";
        assert_eq!(ratio(printed), Some((1.0012, "(1.0004 to 1.0100)")));
    }
}
