//! `gpufn profile`: how long a function takes by SM share and quota, measured, or predicted from its model's file.
//!
//! Owns the command line and the files. What to measure next and what follows from it is the scaler's
//! ([`scaler::profile::sheet`]); a twin of the function is what is measured, so that the function itself goes on as
//! it is.
//!
//! | module | what it owns |
//! |---|---|
//! | `twin` | the function once more, at the share that is measured |
//! | `describe` | what a model that nobody ran would take |
//! | `report` | what was found, as text and as JSON |
//! | `page` | the surface as a page of HTML |
//! | [`accuracy`] | `gpufn profile-figures`: how well models are predicted that were not seen |

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use gpu_share::invalid::Invalid;
use scaler::profile::sheet::{Place, Sample, Sheet};
use serde::Serialize;

use self::report::Report;
use self::twin::Twin;
use crate::audit::bar;
use crate::load::{Interrupt, runtime};

pub mod accuracy;
mod describe;
mod page;
mod report;
mod twin;

/// SM shares and quotas that may be measured, unless others are given, percent.
const SMS: [u8; 10] = [5, 10, 15, 20, 30, 40, 50, 60, 80, 100];
const QUOTAS: [u8; 5] = [20, 40, 60, 80, 100];

/// Points that are measured once more, since something held them up.
const REPEATS: u32 = 3;
/// What to do about a point that can't be.
const AGAIN: &str = "a measurement was disturbed; the same command measures it again";

/// Arguments of `gpufn profile`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The function; it must be deployed, and have the annotation gpufn.dev/sm.
    #[arg(required_unless_present = "onnx")]
    function: Option<String>,
    /// A model in the ONNX format: predict what it would take on a V100, and run nothing.
    #[arg(long, value_name = "FILE", conflicts_with = "function")]
    onnx: Option<PathBuf>,
    /// Size of a dimension that only has a name in the file of --onnx; the first one of an input is its batch.
    #[arg(long, value_name = "NAME=SIZE", requires = "onnx", value_parser = dimension)]
    dim: Vec<(String, u64)>,
    /// The architecture that the model of --onnx is a variant of, such as resnet.
    #[arg(long, requires = "onnx")]
    family: Option<String>,
    /// Where `gpufn up` listens.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "OPENFAAS_URL")]
    gateway: String,
    /// File with the password of admin, if `gpufn up` runs with --auth.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The profile; what is in it already is not measured again [default: FUNCTION-profile.yaml, MODEL-predicted.yaml].
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The surface as a page of HTML [default: beside the profile].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Most points to measure.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(3..=1000))]
    probes: u32,
    /// Measure every SM share at every quota, as the profiler of FaST-GShare does.
    #[arg(long, conflicts_with = "probes")]
    exhaustive: bool,
    /// SM shares that may be measured, percent; those that find room beside what is deployed are.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=100), default_values_t = SMS)]
    sm: Vec<u8>,
    /// Quotas of --exhaustive and --check, percent.
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
    match (&args.function, &args.onnx) {
        (Some(function), _) => measure(&args, function),
        (None, Some(file)) => predict(&args, file),
        // Clap asks for one of them.
        (None, None) => Err(Invalid::new("FUNCTION", "", "a function that is deployed").into()),
    }
}

/// Measures a function.
fn measure(args: &Args, function: &str) -> anyhow::Result<ExitCode> {
    let out = args.out(function, "profile");
    let (sheet, twin, checked) = runtime()?.block_on(profile(args, function, &out))?;
    let report = Report::new(sheet, &checked, &twin.annotations)?;
    tell(args, &out, report.profile(), &report, &report.text())?;
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Predicts a model.
fn predict(args: &Args, file: &Path) -> anyhow::Result<ExitCode> {
    let described = describe::describe(file, &args.dim, args.family.as_deref())?;
    let out = args.out(&file.file_stem().unwrap_or_default().to_string_lossy(), "predicted");
    write(&out, &described.profile)?;
    tell(args, &out, &described.profile, &described, &described.text())?;
    Ok(ExitCode::SUCCESS)
}

/// Draws the surface, and prints what was found.
fn tell(args: &Args, out: &Path, sheet: &Sheet, json: &impl Serialize, text: &str) -> anyhow::Result<()> {
    let html = args.html.clone().unwrap_or_else(|| out.with_extension("html"));
    std::fs::write(&html, page::html(sheet))
        .with_context(|| format!("failed to write {}", html.display()))?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(json)?)?;
    } else {
        writeln!(stdout, "{text}\nprofile  {}\nsurface  {}", out.display(), html.display())?;
    }
    Ok(())
}

impl Args {
    /// Where the profile of `name` is, measured or predicted.
    fn out(&self, name: &str, kind: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| format!("{name}-{kind}.yaml").into())
    }
}

/// A dimension's name and size.
fn dimension(text: &str) -> Result<(String, u64), Invalid> {
    let pair = text.rsplit_once('=').and_then(|(name, size)| {
        let size = size.parse().ok().filter(|size| (1..=1 << 20).contains(size))?;
        (!name.is_empty()).then(|| (name.to_string(), size))
    });
    pair.ok_or_else(|| Invalid::new("--dim", text, "NAME=SIZE with a size from 1 to 1048576"))
}

/// Measures what is not on the sheet yet, and points to check it by.
async fn profile(args: &Args, function: &str, out: &Path) -> anyhow::Result<(Sheet, Twin, Vec<Sample>)> {
    let twin = Twin::of(&args.gateway, password(args)?, function).await?;
    let sms = within_room(args, function, &twin)?;
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
        for _ in 0..REPEATS {
            let Some(index) = sheet.disturbed() else { break };
            let place = sheet.points[index].place;
            progress.suspend(|| eprintln!("{place} is measured again: less of the GPU took shorter"));
            sheet.points[index] = twin.sample(place, args.requests).await?;
            write(out, &sheet)?;
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
    Sheet::read(&sheet.to_yaml()?)
        .map_err(|error| error.within(&out.display().to_string()))
        .context(AGAIN)?;
    Ok((sheet, twin, checked))
}

/// The SM shares that a twin finds room for beside what is deployed; says which are left out.
fn within_room(args: &Args, function: &str, twin: &Twin) -> anyhow::Result<Vec<u8>> {
    let (sms, left_out): (Vec<_>, Vec<_>) = args.sm.iter().copied().partition(|&sm| sm <= twin.room);
    ensure!(
        twin.sm <= twin.room,
        "function {function} has an SM share of {} %, and what is deployed leaves room for one of {} %",
        twin.sm,
        twin.room
    );
    if !left_out.is_empty() {
        let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
        let left_out = left_out.join(", ");
        eprintln!(
            "SM shares {left_out} % are not measured: what is deployed leaves room for {} %",
            twin.room
        );
    }
    Ok(sms)
}

fn wanted_points(args: &Args, sms: &[u8]) -> usize {
    if args.exhaustive { sms.len() * args.quota.len() } else { args.probes as usize }
}

/// Where to measure next.
fn next(args: &Args, sms: &[u8], sheet: &Sheet, own: u8) -> Option<Place> {
    if args.exhaustive {
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
