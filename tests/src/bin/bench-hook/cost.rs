//! What the hook costs: instructions and time of a launch, and how much longer a program takes that launches as fast as
//! it can.

use std::path::Path;
use std::process::Command;

use ::tests::load::median;
use anyhow::{Context, Result, ensure};
use gpufn::audit::cell::{Container, Launch, Load, Mode};
use gpufn::audit::measure::Probe;
use gpufn::audit::probe;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, short};

use crate::Effort;

/// The hook's own measurement, with the options that make it run and speak.
const MEASUREMENT: [&str; 11] = [
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
    "fast_path",
];
/// Length of the kernels of the program that launches as fast as it can, microseconds.
const KERNEL: u32 = 2;

/// All of it.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Vec<Figure>> {
    let mut figures = fast_path()?;
    figures.push(storm(programs, effort).await?);
    Ok(figures)
}

fn fast_path() -> Result<Vec<Figure>> {
    let valgrind = Command::new("valgrind").arg("--version").output();
    if valgrind.is_err() {
        println!("valgrind is not here: instructions of a launch are not counted");
        return Ok(Vec::new());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(MEASUREMENT).current_dir(workspace).output().context("cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (instructions, nanos) = measured(&text).with_context(|| {
        format!("no instructions in {text:?}: {}", String::from_utf8_lossy(&output.stderr))
    })?;
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

/// How far its time behind the hook, with all of the GPU's time, is from its time without, percent.
async fn storm(programs: &Programs, effort: &Effort) -> Result<Figure> {
    let (rounds, launches) = (effort.of(5, 11), effort.of(20_000, 100_000));
    let stand = Stand::start(programs, &Card::Simulated, Mode::Exclusive).await?;
    let bound = stand.bind("storm", &Container::new(100, Load::new(KERNEL, Launch::Kernel))).await?;
    let (mut behind, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        direct.push(launch_all(stand.unhooked(&crate::probe()), launches).await?);
        behind.push(launch_all(stand.command(&crate::probe(), &bound), launches).await?);
    }
    stand.stop().await;
    let (behind, direct) = (median(behind), median(direct));
    let (behind, direct) = (behind.context("no round")?, direct.context("no round")?);
    println!(
        "{launches} launches of {KERNEL} µs: {} ms, behind the hook {} ms",
        short(direct),
        short(behind)
    );
    let how = format!(
        "median time of {launches} launches of {KERNEL} µs as fast as it can, behind the hook against directly, {rounds} \
         rounds in turn: {} ms and {} ms",
        short(behind),
        short(direct)
    );
    // A program that is faster behind the hook shows that something else was measured, not that the hook costs nothing.
    let off = 100.0 * (behind / direct - 1.0).abs();
    Ok(Figure::new("hook-storm-off-percent", off, "%", Bar::AtMost(1.0), how))
}

/// Milliseconds.
async fn launch_all(mut command: tokio::process::Command, launches: u32) -> Result<f64> {
    command.args(probe::arguments(&Load::new(KERNEL, Launch::Kernel)));
    command.arg("--storm").arg(launches.to_string());
    let mut probe = Probe::start(command).await?;
    probe.tell("go").await?;
    let line = probe.line().await?;
    let nanos = line.strip_prefix("storm ").and_then(|nanos| nanos.parse::<f64>().ok());
    ensure!(nanos.is_some(), "a probe said {line:?}");
    Ok(nanos.unwrap_or(f64::NAN) / 1e6)
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
    }
}
