//! `gpufn profile-figures`: how well latencies of models are predicted that were not seen, on measured data.
//!
//! Owns the files, the folds and the bars. What is learnt and chosen is the scaler's ([`scaler::profile::trial`]).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use gpu_share::invalid::Invalid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use scaler::profile::description::{self, Description};
use scaler::profile::design::Terms;
use scaler::profile::grid::{self, BATCHES, CELLS, Cell, Measured, QUOTAS, SMS};
use scaler::profile::predicted;
use scaler::profile::prior::{Example, Prior};
use scaler::profile::trial::{Outcome, Trial, hidden_cells};

use crate::audit::bar;
use crate::figures::{Bar, Figure, Figures, Machine, number, short, table};

/// Parts that models are cut into; each is predicted from the others.
const FOLDS: usize = 5;
/// Part of the cells of each model that are hidden for the figure on configurations.
const HIDDEN: f64 = 0.1;
/// Models that `RaPP` was most likely tested on as unseen: the two of its data that its published split does not list,
/// with their siblings in training.
const SIBLINGS: [&str; 2] = ["efficientnet_b6", "efficientnet_b7"];
/// Probes of the figures, and the SM shares that they may be at.
const ANY: usize = SMS.len();
const TERMS: [Terms; 5] = [
    Terms { probes: 0, sm_shares: ANY },
    Terms { probes: 6, sm_shares: ANY },
    Terms { probes: 11, sm_shares: ANY },
    Terms { probes: 6, sm_shares: 4 },
    Terms { probes: 11, sm_shares: 4 },
];
/// Places in [`TERMS`].
const DESCRIBED: usize = 0;
const SIX: usize = 1;
const ELEVEN: usize = 2;
const SIX_OF_FOUR: usize = 3;
const ELEVEN_OF_FOUR: usize = 4;
/// Predictions that are timed.
const TIMED: u32 = 2_000_000;

/// Arguments of `gpufn profile-figures`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// CSV file of the models to predict, `model,batch,sm,quota,latency_ms`; those of --examples are learnt from too
    /// [default: those of --examples].
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// CSV file of the models that are shipped.
    #[arg(long, value_name = "FILE", default_value = "scaler/profiles/has-gpu-latency.csv")]
    examples: PathBuf,
    /// CSV file that describes the models.
    #[arg(long, value_name = "FILE", default_value = "scaler/profiles/operators.csv")]
    descriptions: PathBuf,
    /// Folder of the figures.
    #[arg(long, value_name = "DIR", default_value = "target/figures")]
    figures: PathBuf,
    /// Ways to cut the models into five parts, each with other models in them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    repeats: u64,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let descriptions =
        description::read(&text(&args.descriptions)?).map_err(|e| in_file(&e, &args.descriptions))?;
    let shipped = models(&args.examples)?;
    let tested = args.data.as_deref().map_or_else(|| Ok(shipped.clone()), models)?;
    let others: Vec<_> =
        shipped.into_iter().filter(|model| tested.iter().all(|tested| tested.model != model.model)).collect();
    let tested = examples(&tested, &descriptions)?;
    let others = examples(&others, &descriptions)?;
    let found = Found::of(&tested, &others, &args)?;
    let figures = Figures { name: "profile", figures: found.figures(&args), machine: Machine::here("none") };
    let file = figures.write(&args.figures)?;
    println!("{}\n{}", found.by_model(), figures.table());
    println!("figures  {}", file.display());
    Ok(if figures.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

fn models(path: &Path) -> anyhow::Result<Vec<Measured>> {
    Ok(grid::read(&text(path)?).map_err(|error| in_file(&error, path))?)
}

fn in_file(error: &Invalid, path: &Path) -> Invalid {
    error.clone().within(&path.display().to_string())
}

fn examples<'a>(
    models: &'a [Measured],
    descriptions: &'a BTreeMap<String, Description>,
) -> Result<Vec<Example<'a>>, Invalid> {
    let example = |measured: &'a Measured| {
        let description = descriptions.get(&measured.model);
        let missing = || Invalid::new("model", &measured.model, "a model that --descriptions describes");
        Ok(Example { measured, description: description.ok_or_else(missing)? })
    };
    models.iter().map(example).collect()
}

/// One independent part of the work.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// The models of one part, from those of the others.
    Fold { repeat: u64, part: usize },
    /// The model of one sibling, from all others.
    Sibling(usize),
    /// The hidden cells of all models.
    Hidden,
    /// The intervals of models that nobody ran, from the models that are shipped.
    Factors,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    /// By fold and model: how well it was predicted, in the order of [`TERMS`].
    unseen: Vec<Vec<Outcome>>,
    siblings: Vec<Outcome>,
    hidden: Vec<(String, f64)>,
    /// Factors of intervals as `gpufn profile --onnx` has them, and as they should be; none where other models are tried.
    factors: Option<[(f64, f64); 2]>,
    nanoseconds: f64,
    learnt_from: usize,
}

impl Found {
    fn of(tested: &[Example<'_>], others: &[Example<'_>], args: &Args) -> anyhow::Result<Self> {
        let folds =
            (0..args.repeats).flat_map(|repeat| (0..FOLDS).map(move |part| Job::Fold { repeat, part }));
        let siblings =
            tested.iter().enumerate().filter(|(_, e)| SIBLINGS.contains(&e.measured.model.as_str()));
        // What is kept is of the shipped models.
        let factors = args.data.is_none().then_some(Job::Factors);
        let single = siblings.map(|(index, _)| Job::Sibling(index)).chain([Job::Hidden]).chain(factors);
        let jobs: Vec<_> = single.chain(folds).collect();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Ok(Self::default())));
        let progress = bar(jobs.len());
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = do_job(*job, tested, others);
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match done {
                    Ok(done) => {
                        if let Ok(found) = found.as_mut() {
                            found.take_in(done);
                        }
                    }
                    Err(error) => *found = Err(error),
                }
                progress.inc(1);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
            (0..threads).for_each(|_| drop(scope.spawn(work)));
        });
        progress.finish_and_clear();
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?;
        found.nanoseconds = time_of_a_prediction(tested)?;
        found.learnt_from = others.len();
        found.unseen.sort_by(|a, b| name(a).cmp(name(b)));
        Ok(found)
    }

    fn take_in(&mut self, done: Self) {
        self.unseen.extend(done.unseen);
        self.siblings.extend(done.siblings);
        self.hidden.extend(done.hidden);
        self.factors = self.factors.or(done.factors);
    }

    fn figures(&self, args: &Args) -> Vec<Figure> {
        let models = self.hidden.len();
        let learnt = match self.learnt_from {
            0 => String::new(),
            others => format!(", and {others} others to learn from"),
        };
        let folds = format!(
            "{FOLDS}-fold over {models} models{learnt}, cut {} times; probes and intervals chosen inside the fold",
            args.repeats
        );
        let percent = |id: &str, value: f64, bar: Bar, how: &str| Figure::new(id, value, "%", bar, how);
        let hidden = self.hidden.iter().map(|(_, error)| error);
        let sibling = percent(
            "mape-sibling-11-probes",
            mean(self.siblings.iter().map(|outcome| &outcome.mape)),
            Bar::AtMost(4.0),
            &format!("{} from all other models", joined(self.siblings.iter().map(|o| o.model.as_str()))),
        );
        let mut figures = vec![
            percent(
                "mape-unseen-configurations",
                mean(hidden),
                Bar::AtMost(2.6),
                &format!("a tenth of the points of each of {models} models hidden at random"),
            ),
            percent("mape-unseen-models-11-probes", self.mape(ELEVEN), Bar::AtMost(6.3), &folds),
            percent("mape-unseen-models-6-probes", self.mape(SIX), Bar::AtMost(7.5), &folds),
            percent("mape-unseen-models-description", self.mape(DESCRIBED), Bar::AtMost(18.0), &folds),
            percent("mape-unseen-models-11-probes-4-sm-shares", self.mape(ELEVEN_OF_FOUR), Bar::Any, &folds),
            percent("mape-unseen-models-6-probes-4-sm-shares", self.mape(SIX_OF_FOUR), Bar::Any, &folds),
            percent("interval-90-held-11-probes", self.held(ELEVEN), Bar::Within(87.0, 93.0), &folds),
            percent("interval-90-held-6-probes", self.held(SIX), Bar::Within(87.0, 93.0), &folds),
            percent("interval-90-held-worst-model-11-probes", self.worst(ELEVEN), Bar::AtLeast(75.0), &folds),
            percent("interval-90-held-worst-model-6-probes", self.worst(SIX), Bar::Any, &folds),
            Figure::new(
                "prediction-time",
                self.nanoseconds / 1e3,
                "us",
                Bar::AtMost(1.0),
                "mean of predictions at batches, SM shares and quotas drawn at random, one core",
            ),
        ];
        // A file need not have one.
        if !self.siblings.is_empty() {
            figures.push(sibling);
        }
        figures.extend(self.factors.iter().flatten().zip(["kin", "strangers"]).map(|(factor, of)| {
            let &(kept, needed) = factor;
            let how =
                format!("{kept} in `gpufn profile --onnx`, {needed:.3} by rehearsals of {models} models");
            Figure::new(
                format!("interval-factor-{of}-off"),
                (needed - kept).abs(),
                "",
                Bar::AtMost(0.01),
                how,
            )
        }));
        figures
    }

    fn mape(&self, way: usize) -> f64 {
        mean(self.unseen.iter().filter_map(|ways| ways.get(way)).map(|outcome| &outcome.mape))
    }

    fn held(&self, way: usize) -> f64 {
        100.0 * mean(self.unseen.iter().filter_map(|ways| ways.get(way)).map(|outcome| &outcome.held))
    }

    /// Of the models, each in the mean over the cuts, the one whose intervals held least.
    fn worst(&self, way: usize) -> f64 {
        let mut models: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for outcome in self.unseen.iter().filter_map(|ways| ways.get(way)) {
            models.entry(&outcome.model).or_default().push(outcome.held);
        }
        100.0 * models.values().map(mean).fold(1.0, f64::min)
    }

    /// Each model, once for each cut.
    fn by_model(&self) -> String {
        let row = |ways: &Vec<Outcome>| {
            let errors = ways.iter().map(|outcome| short(outcome.mape));
            let held = ways.get(ELEVEN).map(|outcome| short(100.0 * outcome.held));
            std::iter::once(name(ways).to_string()).chain(errors).chain(held).collect::<Vec<_>>()
        };
        let rows: Vec<_> = self.unseen.iter().map(row).collect();
        table(&["model", "described", "6", "11", "6 of 4 SM", "11 of 4 SM", "held by 90 %, 11"], &rows)
    }
}

fn do_job(job: Job, tested: &[Example<'_>], others: &[Example<'_>]) -> Result<Found, Invalid> {
    let without = |out: &[usize]| -> Vec<Example<'_>> {
        let rest =
            tested.iter().enumerate().filter(|(index, _)| !out.contains(index)).map(|(_, example)| *example);
        rest.chain(others.iter().copied()).collect()
    };
    match job {
        Job::Fold { repeat, part } => {
            let mut order: Vec<_> = (0..tested.len()).collect();
            order.shuffle(&mut StdRng::seed_from_u64(repeat));
            let out: Vec<_> = order.into_iter().skip(part).step_by(FOLDS).collect();
            let trial = Trial::prepare(&without(&out), &TERMS)?;
            Ok(Found {
                unseen: out.iter().map(|&index| trial.of(tested[index])).collect(),
                ..Found::default()
            })
        }
        Job::Sibling(index) => {
            let trial = Trial::prepare(&without(&[index]), &TERMS[ELEVEN..=ELEVEN])?;
            Ok(Found { siblings: trial.of(tested[index]), ..Found::default() })
        }
        Job::Hidden => {
            let mut random = StdRng::seed_from_u64(0);
            let mask: Vec<bool> = (0..tested.len() * CELLS).map(|_| random.random_bool(HIDDEN)).collect();
            let is_hidden = |index: usize, cell: Cell| mask.get(index * CELLS + cell.index()) == Some(&true);
            let mut hidden = hidden_cells(&[tested, others].concat(), is_hidden)?;
            hidden.truncate(tested.len());
            Ok(Found { hidden, ..Found::default() })
        }
        Job::Factors => Ok(Found { factors: Some(predicted::factors(tested)?), ..Found::default() }),
    }
}

/// Nanoseconds of one prediction.
fn time_of_a_prediction(examples: &[Example<'_>]) -> Result<f64, Invalid> {
    let prior = Prior::learn(examples)?;
    let surface = prior.predict(examples[0].description, &[]);
    let mut random = StdRng::seed_from_u64(0);
    let mut between =
        |axis: &[u32]| random.random_range(f64::from(axis[0])..=f64::from(axis[axis.len() - 1]));
    let asked: Vec<_> = (0..1024).map(|_| (between(&BATCHES), between(&SMS), between(&QUOTAS))).collect();
    let started = Instant::now();
    for &(batch, sm, quota) in asked.iter().cycle().take(TIMED as usize) {
        black_box(surface.latency_ms(black_box(batch), black_box(sm), black_box(quota)));
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(TIMED))
}

fn name(ways: &[Outcome]) -> &str {
    ways.first().map_or("", |outcome| outcome.model.as_str())
}

fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(" and ")
}

/// NaN if there are none.
fn mean<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let (count, sum) = values.into_iter().fold((0_u64, 0.0), |(count, sum), value| (count + 1, sum + value));
    sum / number(count)
}
