//! A model on few multiprocessors: VGG-16 at batch 8 on 5 % of the GPU takes ten times as long at a tenth of the time. A
//! hook that only holds launches back leaves it as fast as with all of the time.

use anyhow::{Context, Result};
use gpufn::audit::cell::{Container, Launch, Load, Mode};
use gpufn::audit::measure::Probe;
use gpufn::audit::stand::{Card, Programs, Stand};
use gpufn::figures::{Bar, Figure, short};
use tests::load::median;
use tests::programs;

use crate::Effort;

/// Model, batch and layers.
const WORDS: [&str; 4] = ["infer", "vgg16", "8", "16"];

/// How many times as long it takes.
pub(crate) async fn run(programs: &Programs, effort: &Effort) -> Result<Figure> {
    let stand = Stand::start(programs, &Card::Simulated, Mode::Mps).await?;
    let [whole, tenth] = [(100, effort.of(10, 20)), (10, effort.of(3, 8))];
    let (whole, tenth) = (inference(&stand, whole).await?, inference(&stand, tenth).await?);
    stand.stop().await;
    let ratio = tenth / whole;
    println!("VGG-16, batch 8, 5 % of the SMs: {} ms at 100 %, {} ms at 10 %", short(whole), short(tenth));
    let how = format!(
        "|ratio - 10| / 10 of the median time of an inference of VGG-16, batch 8, SM share 5 %, at 10 % and 100 % of the \
         time: {} ms and {} ms",
        short(tenth),
        short(whole)
    );
    Ok(Figure::new("hook-vgg16-tenfold-off-percent", 10.0 * (ratio - 10.0).abs(), "%", Bar::AtMost(5.0), how))
}

/// Median time of an inference under a quota, milliseconds.
async fn inference(stand: &Stand, (quota, count): (u8, u32)) -> Result<f64> {
    let container = Container { sm: 5, ..Container::new(quota, Load::new(1, Launch::Kernel)) };
    let bound = stand.bind(&format!("vgg-{quota}"), &container).await?;
    let mut command = stand.command(&programs::built("spin-client"), &bound);
    // The first one also loads its kernels and waits for the first right.
    command.args(WORDS).arg((count + 1).to_string());
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times = text.lines().filter_map(|line| line.strip_prefix("inference ")?.parse::<f64>().ok());
    let times: Vec<_> = times.skip(1).map(|micros| micros / 1e3).collect();
    stand.agent().handle().release(bound.binding.id).await?;
    median(times).with_context(|| format!("no inference was measured: {text}"))
}

/// A probe of a container under its binding.
pub(crate) async fn start(
    stand: &Stand,
    name: &str,
    container: &Container,
) -> Result<(Probe, gpu_share::protocol::Bound)> {
    let bound = stand.bind(name, container).await?;
    let mut command = stand.command(&crate::probe(), &bound);
    command.args(gpufn::audit::probe::arguments(&container.load));
    Ok((Probe::start(command).await?, bound))
}
