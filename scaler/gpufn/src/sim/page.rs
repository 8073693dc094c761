//! Runs as one page of HTML that needs nothing from anywhere: what each policy cost and missed, and how it went over time.
//!
//! Pure. Every text goes through `escape`.

use faas_sim::report::{Moment, Outcome};

use super::runs::Done;
use super::scenario::Scenario;
use super::show::{by_label, mean};
use crate::demo::chart::{Chart, Line, Mark, Scale, escape};
use crate::demo::series::Series;

const STYLE: &str = include_str!("../demo/page.css");

/// Size of a chart, pixels.
const SIZE: (f64, f64) = (400.0, 150.0);
/// Functions of a run that are drawn.
const MOST_FUNCTIONS: usize = 8;

/// The page.
pub(super) fn html(scenario: &Scenario, done: &[Done]) -> String {
    let title = escape(&format!("Simulated: {}", scenario.name));
    let timelines: String =
        by_label(done).iter().map(|(label, runs)| timeline(scenario, label, runs)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{title}</title><style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\
         <p class=\"soft\">{}</p>{}{timelines}\n</main></body></html>\n",
        escape(&scenario.about),
        rows(done),
    )
}

fn rows(done: &[Done]) -> String {
    let row = |(label, runs): (&str, Vec<&Done>)| {
        let cell = |text: String| format!("<td>{}</td>", escape(&text));
        format!(
            "<tr class=\"first\"><td class=\"text\">{}</td>{}{}{}{}</tr>",
            escape(label),
            cell(runs.len().to_string()),
            cell(mean(&runs, |report| report.total().violations_percent()).to_string()),
            cell(
                mean(&runs, |report| report.total().latency.quantile_ms(0.95).unwrap_or(f64::NAN))
                    .to_string()
            ),
            cell(mean(&runs, faas_sim::report::Report::mean_reserved).to_string()),
        )
    };
    let rows: String = by_label(done).into_iter().map(row).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>run</th><th>seeds</th><th>late or failed, %</th><th>p95, ms</th>\
         <th>GPUs kept from others, mean</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

/// The first of a label's runs over time.
fn timeline(scenario: &Scenario, label: &str, runs: &[&Done]) -> String {
    let Some(run) = runs.first() else { return String::new() };
    let functions = run.report.functions.iter().filter(|f| !f.timeline.is_empty()).take(MOST_FUNCTIONS);
    let columns: String = functions.map(|function| column(scenario, function, run.report.seconds)).collect();
    if columns.is_empty() {
        return String::new();
    }
    let title = escape(&format!("{label}, seed {}", run.seed));
    format!("<h2>{title}</h2><div class=\"columns\">{columns}</div>")
}

fn column(scenario: &Scenario, function: &Outcome, seconds: f64) -> String {
    let of = |value: &dyn Fn(&Moment) -> f64| {
        Series(function.timeline.iter().map(|moment| (moment.at, value(moment))).collect())
    };
    let wish = scenario.spec.functions.iter().find(|f| f.name == function.name).map(|f| &f.wish);
    let slo = wish.and_then(|wish| wish.slo).map(|slo| (slo.bound.millis_f64(), slo.to_string()));
    let chart = |title: &str, unit, scale, series: Series, rule| {
        let lines = vec![Line { name: title, class: "shared", mark: Mark::Step, series: &series }];
        let title = format!("{title} of {}", function.name);
        Chart { title, unit, seconds, scale, lines, rule, size: SIZE }.svg()
    };
    let figures = [
        ("Requests a second", chart("rate", "/s", Scale::Linear, of(&|m| m.rate), None)),
        ("95th percentile, ms", chart("p95", "ms", Scale::Log, of(&|m| m.p95_ms), slo)),
        ("GPUs kept from others", chart("reserved", "GPUs", Scale::Linear, of(&|m| m.reserved), None)),
        ("Replicas", chart("replicas", "", Scale::Count, of(&|m| f64::from(m.replicas)), None)),
    ];
    let figures: Vec<_> = figures
        .iter()
        .map(|(name, svg)| format!("<figure><figcaption>{name}</figcaption>{svg}</figure>"))
        .collect();
    let figures = figures.concat();
    format!("<div class=\"column\"><header><h3>{}</h3></header>{figures}</div>", escape(&function.name))
}
