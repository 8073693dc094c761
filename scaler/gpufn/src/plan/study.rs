//! `gpufn plan-figures`: the cost model against the bills of a published study, run by run.
//!
//! Owns the file of runs and the bars. Prices are those of the study's price file, the same for every endpoint.

use std::path::PathBuf;
use std::process::ExitCode;

use gpu_share::invalid::Invalid;
use scaler::cost::bill::Bill;
use scaler::cost::break_even::meetings;
use scaler::cost::prices::{Platform, Prices};

use super::input::in_file;
use crate::figures::{Bar, Figure, Figures, Machine, number, table};

/// Break-even rates that the study's numbers give, in whole requests a second: mean latency in milliseconds, Cloud Run
/// against two nodes of Kubernetes, against five of OpenWhisk.
const PUBLISHED: [(f64, f64, f64); 6] = [
    (25.0, 414.0, 959.0),
    (50.0, 282.0, 652.0),
    (100.0, 172.0, 398.0),
    (250.0, 79.0, 183.0),
    (500.0, 42.0, 96.0),
    (1000.0, 21.0, 50.0),
];
/// Largest error of a run by the hour, and of one by request, percent.
const BY_THE_HOUR: f64 = 0.5;
const BY_REQUEST: f64 = 2.0;

/// Arguments of `gpufn plan-figures`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// CSV file of runs (columns `endpoint`, `workload`, `deployment`, `duration_s`, `requests`, `avg_ms`, `base_nodes`,
    /// `third_node_s`, `run_cost_ct`, `cost_per_1000_ct`, `suspect`, in any order and with others between).
    #[arg(long, value_name = "FILE", default_value = "scaler/prices/iot-study-2022.csv")]
    data: PathBuf,
    /// YAML file of the prices that they were billed at [default: the shipped file of the study].
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Folder of the figures.
    #[arg(long, value_name = "DIR", default_value = "target/figures")]
    figures: PathBuf,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // As all commands are called.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let prices =
        args.prices.as_deref().map_or_else(|| Ok(Prices::study()?), |path| in_file(path, Prices::read))?;
    let model = Model::of(&prices)?;
    let runs = in_file(&args.data, read)?;
    let compared: Vec<_> =
        runs.iter().filter(|run| !run.suspect).map(|run| Compared::of(run, &model)).collect();
    let figures = Figures {
        name: "planner",
        figures: figures(&compared, &runs, &model)?,
        machine: Machine::here("none"),
    };
    let file = figures.write(&args.figures)?;
    println!("{}\n{}", by_run(&compared), figures.table());
    println!("figures  {}", file.display());
    Ok(if figures.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a run was deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deployment {
    /// Kubernetes, or OpenWhisk on five nodes: paid by the hour.
    Kubernetes,
    OpenWhisk,
    /// Paid by request.
    CloudRun,
}

/// One run of the study.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    name: String,
    /// Endpoint and workload.
    what: String,
    deployment: Deployment,
    seconds: f64,
    requests: f64,
    latency: f64,
    /// Seconds of nodes that were billed.
    node_seconds: f64,
    /// As the study has them, cent.
    cost: f64,
    per_1000: f64,
    suspect: bool,
}

/// The platforms of the study.
struct Model<'a> {
    gke: &'a scaler::cost::nodes::Nodes,
    openwhisk: &'a scaler::cost::nodes::OwnNodes,
    cloud_run: &'a scaler::cost::instances::Requests,
}

impl<'a> Model<'a> {
    fn of(prices: &'a Prices) -> Result<Self, Invalid> {
        let (gke, openwhisk, cloud_run) =
            (prices.platform("gke")?, prices.platform("openwhisk")?, prices.platform("cloud-run")?);
        match (gke, openwhisk, cloud_run) {
            (Platform::Nodes(gke), Platform::OwnNodes(openwhisk), Platform::Requests(cloud_run)) => {
                Ok(Self { gke, openwhisk, cloud_run })
            }
            _ => {
                Err(Invalid::new("models", "others", "gke: nodes, openwhisk: own-nodes, cloud-run: requests"))
            }
        }
    }

    /// The bill of `run`.
    fn bill(&self, run: &Run) -> Bill {
        match run.deployment {
            Deployment::Kubernetes => self.gke.bill(run.node_seconds, run.seconds),
            Deployment::OpenWhisk => self.openwhisk.bill(run.seconds),
            Deployment::CloudRun => self.cloud_run.bill(run.requests, run.requests * run.latency),
        }
    }

    /// The rate at which what costs `an_hour` and Cloud Run at a mean latency of `latency` seconds cost the same.
    fn break_even(&self, an_hour: f64, latency: f64) -> f64 {
        let of_requests = |rate: f64| self.cloud_run.bill(3600.0 * rate, 3600.0 * rate * latency).cost();
        let found = meetings(|rate| of_requests(rate) - an_hour);
        found.first().map_or(f64::NAN, |&(rate, _)| rate)
    }
}

/// A run and how far the model is from it, percent.
struct Compared {
    name: String,
    deployment: Deployment,
    cost: f64,
    of_cost: f64,
    of_per_1000: f64,
}

impl Compared {
    fn of(run: &Run, model: &Model<'_>) -> Self {
        let cost = 100.0 * model.bill(run).cost();
        let per_1000 = 1e3 * cost / run.requests;
        Self {
            name: run.name.clone(),
            deployment: run.deployment,
            cost,
            of_cost: off(cost, run.cost),
            of_per_1000: off(per_1000, run.per_1000),
        }
    }

    /// The larger of both errors.
    fn worst(&self) -> f64 {
        self.of_cost.abs().max(self.of_per_1000.abs())
    }
}

fn off(got: f64, wanted: f64) -> f64 {
    100.0 * (got / wanted - 1.0)
}

fn figures(compared: &[Compared], runs: &[Run], model: &Model<'_>) -> Result<Vec<Figure>, Invalid> {
    let by_request = |compared: &&Compared| compared.deployment == Deployment::CloudRun;
    let hourly: Vec<_> = compared.iter().filter(|compared| !by_request(compared)).collect();
    let requests: Vec<_> = compared.iter().filter(by_request).collect();
    if hourly.is_empty() || requests.is_empty() {
        return Err(Invalid::new("runs", compared.len(), "one or more by the hour and by request"));
    }
    let left_out = runs.len() - compared.len();
    let how = |count: usize, bar: f64| {
        format!(
            "of {count} runs: cost of the run and of 1000 requests both within {bar} % of the study's; {left_out} suspect \
             runs left out"
        )
    };
    let met: Vec<_> = runs.iter().filter(|run| !run.suspect).collect();
    let (pairs, pairs_off) = pairs(&met, model);
    Ok(vec![
        Figure::new(
            "runs-by-the-hour-met",
            met_percent(&hourly, BY_THE_HOUR),
            "%",
            Bar::AtLeast(97.0),
            how(hourly.len(), BY_THE_HOUR),
        ),
        Figure::new(
            "runs-by-request-met",
            met_percent(&requests, BY_REQUEST),
            "%",
            Bar::AtLeast(100.0),
            how(requests.len(), BY_REQUEST),
        ),
        Figure::new(
            "break-even-runs-off",
            pairs_off,
            "%",
            Bar::AtMost(1.0),
            format!(
                "the worst of {pairs} pairs of runs of one endpoint and workload; the rate from the study's own costs"
            ),
        ),
        Figure::new(
            "break-even-published-off",
            published_off(model),
            "%",
            Bar::AtMost(1.0),
            "the worst of 12 rates, beyond the half request that their rounding may be off",
        ),
    ])
}

fn met_percent(compared: &[&Compared], bar: f64) -> f64 {
    let met = compared.iter().filter(|compared| compared.worst() <= bar).count();
    100.0 * number(met as u64) / number(compared.len() as u64)
}

/// Pairs of a run by the hour and one by request, of the same endpoint and workload: how many, and the largest error of
/// the model's break-even rate, percent.
fn pairs(runs: &[&Run], model: &Model<'_>) -> (usize, f64) {
    let by_request = |run: &&&Run| run.deployment == Deployment::CloudRun;
    let of_pair = |hourly: &Run, request: &Run| {
        let theirs = hourly.cost / hourly.seconds / (request.per_1000 / 1e3);
        let an_hour = 3600.0 / hourly.seconds * model.bill(hourly).cost();
        off(model.break_even(an_hour, request.latency), theirs).abs()
    };
    let requests = runs.iter().filter(by_request);
    let all = requests.flat_map(|request| {
        let hourly = runs.iter().filter(move |run| !by_request(run) && run.what == request.what);
        hourly.map(move |hourly| of_pair(hourly, request))
    });
    // No pair is no figure: a maximum of nothing would be a perfect one.
    all.fold((0, f64::NAN), |(count, worst), off| {
        (count + 1, if off > worst || count == 0 { off } else { worst })
    })
}

/// The largest error of a published rate beyond its rounding, percent.
fn published_off(model: &Model<'_>) -> f64 {
    let hour = 3600.0;
    let (gke, openwhisk) = (model.gke.bill(2.0 * hour, hour).cost(), model.openwhisk.bill(hour).cost());
    let off = |an_hour: f64, latency_ms: f64, rate: f64| {
        let beyond = (model.break_even(an_hour, latency_ms / 1e3) - rate).abs() - 0.5;
        100.0 * beyond.max(0.0) / rate
    };
    PUBLISHED
        .iter()
        .flat_map(|&(ms, of_gke, of_openwhisk)| [off(gke, ms, of_gke), off(openwhisk, ms, of_openwhisk)])
        .fold(0.0, f64::max)
}

fn by_run(compared: &[Compared]) -> String {
    let row = |compared: &Compared| {
        vec![
            compared.name.clone(),
            format!("{:.4}", compared.cost),
            format!("{:.3} %", compared.of_cost),
            format!("{:.3} %", compared.of_per_1000),
        ]
    };
    table(&["run", "cost ct", "off", "1000 requests off"], &compared.iter().map(row).collect::<Vec<_>>())
}

/// Reads runs; columns are found by their names.
fn read(text: &str) -> Result<Vec<Run>, Invalid> {
    const COLUMNS: [&str; 11] = [
        "endpoint",
        "workload",
        "deployment",
        "duration_s",
        "requests",
        "avg_ms",
        "base_nodes",
        "third_node_s",
        "run_cost_ct",
        "cost_per_1000_ct",
        "suspect",
    ];
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    let head = lines.next().map_or("", |(_, line)| line.trim_end());
    let names: Vec<_> = head.split(',').collect();
    let mut places = [0; COLUMNS.len()];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let found = names.iter().position(|name| *name == column);
        *place = found.ok_or_else(|| Invalid::new("head", head, format!("a column {column}")))?;
    }
    let runs = lines.map(|(index, line)| {
        let cells: Vec<_> = line.trim_end().split(',').collect();
        let row = places.map(|place| cells.get(place).copied().unwrap_or_default());
        let bad = |allowed: &str| Invalid::new(format!("line {}", index + 1), line, allowed);
        // A remark may have commas of its own.
        if cells.len() < names.len() || (cells.len() > names.len() && places[10] != names.len() - 1) {
            return Err(bad(&format!("{} cells", names.len())));
        }
        parse(row).ok_or_else(|| bad("a deployment GKE-…, OW or GCR, and numbers above 0"))
    });
    let runs: Vec<_> = runs.collect::<Result<_, _>>()?;
    if runs.is_empty() { Err(Invalid::new("runs", 0, "one or more")) } else { Ok(runs) }
}

fn parse(row: [&str; 11]) -> Option<Run> {
    let [endpoint, workload, deployment, seconds, requests, latency, nodes, third, cost, per_1000, suspect] =
        row;
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    let above = |text: &str| number(text).filter(|number| *number > 0.0);
    let kind = match deployment {
        "OW" => Deployment::OpenWhisk,
        "GCR" => Deployment::CloudRun,
        other if other.starts_with("GKE") => Deployment::Kubernetes,
        _ => return None,
    };
    let duration = above(seconds)?;
    let node_seconds = match kind {
        Deployment::CloudRun => 0.0,
        Deployment::Kubernetes | Deployment::OpenWhisk => above(nodes)? * duration + number(third)?,
    };
    Some(Run {
        name: format!("{endpoint} {workload} {deployment}"),
        what: format!("{endpoint} {workload}"),
        deployment: kind,
        seconds: duration,
        requests: above(requests)?,
        latency: above(latency)? / 1e3,
        node_seconds,
        cost: above(cost)?,
        per_1000: above(per_1000)?,
        suspect: !suspect.trim().is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: &str = include_str!("../../../prices/iot-study-2022.csv");

    #[test]
    fn the_runs_of_the_study_are_met() {
        let prices = Prices::study().unwrap();
        let model = Model::of(&prices).unwrap();
        let runs = read(RUNS).unwrap();
        assert_eq!((runs.len(), runs.iter().filter(|run| run.suspect).count()), (60, 5));
        let compared: Vec<_> =
            runs.iter().filter(|run| !run.suspect).map(|run| Compared::of(run, &model)).collect();
        let figures = figures(&compared, &runs, &model).unwrap();
        assert!(figures.iter().all(|figure| figure.ok), "{figures:?}");
        assert_eq!(by_run(&compared).lines().count(), 57);
    }

    #[test]
    fn a_price_that_is_off_by_a_percent_is_noticed() {
        let text = include_str!("../../../prices/iot-study-2022.yaml");
        for (right, wrong) in [("0.3166524", "0.3198189"), ("0.000009122", "0.0000095")] {
            let prices = Prices::read(&text.replace(right, wrong)).unwrap();
            let model = Model::of(&prices).unwrap();
            let runs = read(RUNS).unwrap();
            let compared: Vec<_> =
                runs.iter().filter(|run| !run.suspect).map(|run| Compared::of(run, &model)).collect();
            assert!(figures(&compared, &runs, &model).unwrap().iter().any(|figure| !figure.ok), "{wrong}");
        }
    }

    #[test]
    fn the_cells_that_the_source_has_wrong_would_be_missed() {
        let prices = Prices::study().unwrap();
        let model = Model::of(&prices).unwrap();
        let runs = read(RUNS).unwrap();
        let wrong =
            runs.iter().filter(|run| run.suspect && Compared::of(run, &model).worst() > BY_REQUEST).count();
        assert_eq!(wrong, 3, "what is printed wrong; the others are copies that agree with themselves");
    }

    #[test]
    fn a_wrong_file_is_refused_by_line() {
        let head = "endpoint,workload,deployment,duration_s,requests,failed,avg_ms,base_nodes,third_node_s,run_cost_ct,cost_per_1000_ct,suspect";
        let good = "a,linear,GKE-50,1800,100,0,10,2,0,36.1643,361.643,";
        assert_eq!(
            read(&format!("# source\n{head}\n{good}copied, from b\n")).unwrap()[0].name,
            "a linear GKE-50"
        );
        for (from, to) in
            [("GKE-50", "AWS"), ("1800", "0"), ("100,0", "-1,0"), ("36.1643", "nan"), ("36.1643,", "")]
        {
            let error = read(&format!("{head}\n{}\n", good.replace(from, to))).unwrap_err().to_string();
            assert!(error.starts_with("line 2 is"), "{to}: {error}");
        }
        let error = read(&head.replace("avg_ms", "mean")).unwrap_err().to_string();
        assert!(error.ends_with("allowed is a column avg_ms"), "{error}");
        assert!(read(head).is_err());
    }
}
