//! `gpufn profile`: how long a deployed function takes by SM share and quota.
//!
//! Owns the command line and the files. What to measure next and what follows from it is the scaler's
//! ([`scaler::profile::sheet`]); a twin of the function is what is measured, so that the function itself goes on as
//! it is.
//!
//! | module | what it owns |
//! |---|---|
//! | `twin` | the function once more, at the share that is measured |
//! | `page` | the surface as a page of HTML |
//! | [`accuracy`] | `gpufn profile-figures`: how well models are predicted that were not seen |

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use gpu_share::annotations::Wish;
use gpu_share::invalid::Invalid;
use gpu_share::names::annotation;
use gpu_share::units::Bytes;
use scaler::profile::sheet::{Place, Sample, Sheet, check_reachable};

use self::twin::Twin;
use crate::audit::bar;
use crate::figures::{short, table};
use crate::load::{Interrupt, runtime};

pub mod accuracy;
mod page;
mod twin;

/// SM shares and quotas that may be measured, unless others are given, percent.
const SMS: [u8; 10] = [5, 10, 15, 20, 30, 40, 50, 60, 80, 100];
const QUOTAS: [u8; 5] = [20, 40, 60, 80, 100];
/// Bound of the mean error at points that were not measured for the profile, percent.
const EXACT: f64 = 3.0;

/// Arguments of `gpufn profile`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The function; it must be deployed, and have the annotation gpufn.dev/sm.
    function: String,
    /// Where `gpufn up` listens.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "OPENFAAS_URL")]
    gateway: String,
    /// File with the password of admin, if `gpufn up` runs with --auth.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The profile; if it exists already, what is in it is not measured again [default: FUNCTION-profile.yaml].
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The surface as a page of HTML [default: beside the profile].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Most points to measure.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(3..=1000))]
    probes: u32,
    /// Measure every SM share at every quota.
    #[arg(long, conflicts_with = "probes")]
    grid: bool,
    /// SM shares that may be measured, percent; those that find room beside what is deployed are.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=100), default_values_t = SMS)]
    sm: Vec<u8>,
    /// Quotas of --grid and --check, percent.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=100), default_values_t = QUOTAS)]
    quota: Vec<u8>,
    /// Requests that a point is the mean of.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(5..=100_000))]
    requests: u32,
    /// Afterwards measure the function's SM share at the quotas that were not, and hold the profile against it.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let out = args.out.clone().unwrap_or_else(|| format!("{}-profile.yaml", args.function).into());
    let html = args.html.clone().unwrap_or_else(|| out.with_extension("html"));
    let (sheet, twin, checked) = runtime()?.block_on(profile(&args, &out))?;
    std::fs::write(&html, page::html(&sheet))
        .with_context(|| format!("failed to write {}", html.display()))?;
    println!("{}", measured(&sheet));
    println!("profile  {}\nsurface  {}", out.display(), html.display());
    let exact = checked.is_empty() || say_check(&sheet, &checked);
    let keeps = say_objective(&sheet, &twin)?;
    Ok(if exact && keeps { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures what is not on the sheet yet, and points to check it by.
async fn profile(args: &Args, out: &Path) -> anyhow::Result<(Sheet, Twin, Vec<Sample>)> {
    let twin = Twin::of(&args.gateway, password(args)?, &args.function).await?;
    let sms = within_room(args, &twin)?;
    let interrupt = Interrupt::on_signal()?;
    let mut sheet = resume(out, &twin)?;
    let progress = bar(wanted_points(args, &sms));
    progress.set_position(sheet.points.len() as u64);
    let mut checked = Vec::new();
    let measured = async {
        while let Some(place) = next(args, &sms, &sheet, twin.sm) {
            progress.set_message(place.to_string());
            sheet.points.push(twin.sample(place, args.requests).await?);
            // Kept after every point: what is interrupted goes on from here.
            write(out, &sheet)?;
            progress.inc(1);
        }
        let places = args.quota.iter().map(|&quota| Place { batch: 1, sm: twin.sm, quota });
        let unseen =
            places.filter(|place| args.check && sheet.points.iter().all(|point| point.place != *place));
        for place in unseen.collect::<Vec<_>>() {
            progress.set_message(format!("check {place}"));
            checked.push(twin.sample(place, args.requests).await?);
        }
        anyhow::Ok(())
    };
    let ended = tokio::select! {
        ended = measured => ended,
        () = interrupt.stop.cancelled() => Err(anyhow::anyhow!("interrupted; the same command goes on from here")),
    };
    progress.finish_and_clear();
    let removed = twin.remove().await;
    ended?;
    removed?;
    // What was measured is held against what can be, once it is whole.
    Sheet::read(&sheet.to_yaml()?).with_context(|| out.display().to_string())?;
    Ok((sheet, twin, checked))
}

/// The SM shares that a twin finds room for beside what is deployed; says which are left out.
fn within_room(args: &Args, twin: &Twin) -> anyhow::Result<Vec<u8>> {
    let (sms, left_out): (Vec<_>, Vec<_>) = args.sm.iter().copied().partition(|&sm| sm <= twin.room);
    ensure!(
        twin.sm <= twin.room,
        "function {} has an SM share of {} %, and what is deployed leaves room for one of {} %",
        args.function,
        twin.sm,
        twin.room
    );
    if !left_out.is_empty() {
        let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
        println!(
            "not measured: SM shares {}: what is deployed leaves room for {} %",
            left_out.join(", "),
            twin.room
        );
    }
    Ok(sms)
}

fn wanted_points(args: &Args, sms: &[u8]) -> usize {
    if args.grid { sms.len() * args.quota.len() } else { args.probes as usize }
}

/// Where to measure next.
fn next(args: &Args, sms: &[u8], sheet: &Sheet, own: u8) -> Option<Place> {
    if args.grid {
        let mut places =
            sms.iter().flat_map(|&sm| args.quota.iter().map(move |&quota| Place { batch: 1, sm, quota }));
        return places.find(|place| sheet.points.iter().all(|point| point.place != *place));
    }
    sheet.next(1, own, sms).filter(|_| sheet.points.len() < args.probes as usize)
}

fn password(args: &Args) -> anyhow::Result<Option<String>> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
    };
    args.password_file.as_ref().map(read).transpose()
}

/// The sheet that is there already, or a new one.
fn resume(out: &Path, twin: &Twin) -> anyhow::Result<Sheet> {
    let text = match std::fs::read_to_string(out) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Sheet::new(&twin.model, &twin.gpu, twin.window_ms));
        }
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", out.display())),
    };
    let sheet = Sheet::read_part(&text).map_err(|error| error.within(&out.display().to_string()))?;
    let differs = [("model", &sheet.model, &twin.model), ("gpu", &sheet.gpu, &twin.gpu)];
    if let Some((field, kept, now)) = differs.into_iter().find(|(_, kept, now)| kept != now) {
        let allowed = format!("{now}, as the function has it; --out names another file");
        return Err(Invalid::new(format!("{}, {field}", out.display()), kept, allowed).into());
    }
    Ok(sheet)
}

fn write(out: &Path, sheet: &Sheet) -> anyhow::Result<()> {
    // Beside it first: an interrupt must not cost what is there.
    let new = out.with_extension("yaml.new");
    std::fs::write(&new, sheet.to_yaml()?)
        .and_then(|()| std::fs::rename(&new, out))
        .with_context(|| format!("failed to write {}", out.display()))
}

fn measured(sheet: &Sheet) -> String {
    let row = |point: &Sample| {
        let predicted = sheet.latency_ms(point.place).unwrap_or(f64::NAN);
        vec![
            point.place.to_string(),
            format!("{} ms", short(point.gpu_ms)),
            format!("{} ms", short(point.latency_ms)),
            format!("{} ms", short(predicted)),
        ]
    };
    let rows: Vec<_> = sheet.points.iter().map(row).collect();
    table(&["point", "GPU time", "latency", "by the profile"], &rows)
}

/// Says by how much the profile misses points that it has not seen; whether that is little enough.
fn say_check(sheet: &Sheet, checked: &[Sample]) -> bool {
    let misses = checked.iter().map(|point| {
        let predicted = sheet.latency_ms(point.place).unwrap_or(f64::NAN);
        (point, 100.0 * (predicted / point.latency_ms - 1.0))
    });
    let misses: Vec<_> = misses.collect();
    for (point, percent) in &misses {
        println!(
            "check    {}: {} ms, the profile is off by {} %",
            point.place,
            short(point.latency_ms),
            short(*percent)
        );
    }
    let count = f64::from(u32::try_from(misses.len()).unwrap_or(u32::MAX));
    let mean = misses.iter().map(|(_, percent)| percent.abs()).sum::<f64>() / count;
    println!("check    off by {} % in the mean, allowed are {EXACT} %", short(mean));
    mean <= EXACT
}

/// Says if the function's objective is one that no share can keep.
fn say_objective(sheet: &Sheet, twin: &Twin) -> anyhow::Result<bool> {
    let profiles = sheet.profiles()?;
    let mut annotations = twin.annotations.clone();
    annotations.remove(annotation::MODEL);
    // Only the objective is asked for, so any memory does.
    let wish = Wish::read(&annotations, Bytes::gib(16), &profiles)?;
    let (Some(slo), Some(surface)) = (wish.and_then(|wish| wish.slo), profiles.get(&sheet.model)) else {
        return Ok(true);
    };
    let reachable = check_reachable(annotation::SLO, &slo, surface);
    if let Err(error) = &reachable {
        println!("{error}");
    }
    Ok(reachable.is_ok())
}
