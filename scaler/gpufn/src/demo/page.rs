//! The report as one page of HTML that needs nothing from anywhere.
//!
//! Pure. Every text goes through `escape`; the page is well-formed XML but for its first line.

use std::fmt::Write;

use super::chart::{Chart, Line, Mark, Scale, escape};
use super::report::{Report, Row, Run};
use super::series::FunctionSeries;
use crate::figures::short;

const STYLE: &str = include_str!("page.css");

/// Sizes of the charts, pixels.
const WIDE: (f64, f64) = (1240.0, 190.0);
const SMALL: (f64, f64) = (290.0, 140.0);

/// The page.
pub(super) fn html(report: &Report) -> String {
    let body = [
        head(report),
        cards(report),
        comparison(report),
        reserved(report),
        columns(report),
        checks(report),
        foot(report),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>gpufn: four functions on one GPU</title><style>{STYLE}</style></head>\
         <body><main>\n{}\n</main></body></html>\n",
        body.join("\n")
    )
}

/// What `show` makes of each of `items`, one behind the other.
fn joined<T>(items: impl IntoIterator<Item = T>, show: impl Fn(T) -> String) -> String {
    items.into_iter().fold(String::new(), |all, item| all + &show(item))
}

fn head(report: &Report) -> String {
    let whole = report.whole.functions.len();
    format!(
        "<h1>Four functions on one GPU, against a GPU for each replica</h1>\
         <p class=\"soft\">The same {} requests over {} s, twice: first with gpufn (policy {}) on one GPU that {whole} \
         functions share and whose slices change while they run, then with whole GPUs (policy {}), as KServe and Knative \
         give them out. The GPU is simulated: {}.</p>",
        report.shared.total.requests,
        short(report.seconds),
        escape(&report.shared.policy),
        escape(&report.whole.policy),
        escape(&report.figures.machine.gpu),
    )
}

fn cards(report: &Report) -> String {
    let (shared, whole) = (&report.shared.total, &report.whole.total);
    let kept = report.figures.figures.iter().filter(|figure| figure.ok).count();
    let cards = [
        (
            format!("{} %", short(report.reserved_percent_of_whole)),
            format!(
                "of the GPU-seconds that whole GPUs reserve: {} against {}",
                short(shared.reserved_gpu_seconds),
                short(whole.reserved_gpu_seconds)
            ),
        ),
        (
            format!("{} %", short(shared.late_percent)),
            format!("of the requests late or failed; {} % with whole GPUs", short(whole.late_percent)),
        ),
        (
            format!("${:.4}", shared.cost_per_1000),
            format!(
                "for 1,000 requests against ${:.4}, at ${} a GPU-hour",
                whole.cost_per_1000, report.gpu_hour_price
            ),
        ),
        (
            report.shared.vertical_with_same_pid.to_string(),
            "slices resized while the process went on running".to_string(),
        ),
        (
            format!("{} · {} · {}", shared.horizontal, shared.parks, shared.wakes),
            "changes of replica counts · replicas parked · woken".to_string(),
        ),
        (format!("{kept} of {}", report.figures.figures.len()), "bars kept, see below".to_string()),
    ];
    let cards = cards.iter().map(|(value, text)| {
        format!("<li class=\"card\"><b>{}</b><span>{}</span></li>", escape(value), escape(text))
    });
    format!("<ul class=\"cards\">{}</ul>", cards.collect::<String>())
}

fn comparison(report: &Report) -> String {
    const HEAD: [&str; 13] = [
        "requests",
        "failed",
        "late %",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "GPU-s reserved",
        "GPU-s used",
        "$ per 1,000",
        "vertical",
        "horizontal",
        "cold starts",
        "parks / wakes",
    ];
    let head: String = joined(HEAD, |title| format!("<th>{title}</th>"));
    let mut rows = String::new();
    let totals = [(&report.shared.total, &report.whole.total)];
    for (shared, whole) in report.shared.functions.iter().zip(&report.whole.functions).chain(totals) {
        rows += &row(&shared.function, &report.shared, "shared", shared);
        rows += &row("", &report.whole, "whole", whole);
    }
    format!(
        "<h2>Comparison</h2><div class=\"scroll\"><table><thead><tr><th>function</th><th class=\"text\">run</th>{head}\
         </tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn row(name: &str, run: &Run, class: &str, row: &Row) -> String {
    let mut cells = vec![row.requests.to_string(), row.failed.to_string()];
    cells.extend(row.measured("–"));
    cells.push(format!("{} / {}", row.parks, row.wakes));
    let kind = match (name.is_empty(), row.function == "total") {
        (false, false) => "first",
        (false, true) => "first total",
        (true, true) => "total",
        (true, false) => "next",
    };
    let cells: String = joined(cells, |cell| format!("<td>{}</td>", escape(&cell)));
    let (name, label) = (escape(name), escape(run.label));
    format!(
        "<tr class=\"{kind}\"><td>{name}</td><td class=\"text\"><i class=\"dot {class}\"></i>{label}</td>{cells}</tr>"
    )
}

fn reserved(report: &Report) -> String {
    let line = |run: &'static str, class, series| Line { name: run, class, mark: Mark::Area, series };
    let chart = Chart {
        title: "GPUs reserved over time in both runs".into(),
        unit: "GPUs",
        seconds: report.seconds,
        scale: Scale::Linear,
        lines: vec![
            line(report.whole.label, "whole", &report.whole.reserved_gpus),
            line(report.shared.label, "shared", &report.shared.reserved_gpus),
        ],
        rule: None,
        size: WIDE,
    };
    format!(
        "<h2>GPUs reserved over time</h2>{}<figure class=\"wide\"><figcaption>GPUs kept from others: for each replica \
         the largest of its memory share, its SM share times its grant, and its SM share times the time it used\
         </figcaption>{}</figure>",
        legend(report, false),
        chart.svg()
    )
}

fn legend(report: &Report, all: bool) -> String {
    let entry =
        |class: &str, text: &str| format!("<span><i class=\"dot {class}\"></i>{}</span>", escape(text));
    let mut legend = entry("shared", report.shared.label) + &entry("whole", report.whole.label);
    if all {
        legend += &entry("used", &format!("GPU time used, {}", report.shared.label));
        legend += &entry("slo", "objective");
    }
    format!("<p class=\"legend\">{legend}</p>")
}

fn columns(report: &Report) -> String {
    let columns: String =
        (0..report.shared.functions.len()).filter_map(|index| column(report, index)).collect();
    format!("<h2>Each function over time</h2>{}<div class=\"columns\">{columns}</div>", legend(report, true))
}

fn column(report: &Report, index: usize) -> Option<String> {
    let name = &report.shared.functions.get(index)?.function;
    let (shared, whole) = (report.shared.series.get(index)?, report.whole.series.get(index)?);
    let (_, load) = report.scenario.loads.get(index)?;
    let objective = report.objectives.get(index)?;
    let charts = joined(charts(report, shared, whole, objective), |(caption, chart)| {
        format!("<figure><figcaption>{caption}</figcaption>{}</figure>", chart.svg())
    });
    Some(format!(
        "<section class=\"column\"><header><h3>{}</h3><p class=\"soft\">{} · load {}</p></header>{charts}</section>",
        escape(name),
        escape(objective),
        escape(load)
    ))
}

fn charts<'a>(
    report: &'a Report,
    shared: &'a FunctionSeries,
    whole: &'a FunctionSeries,
    objective: &str,
) -> [(&'static str, Chart<'a>); 4] {
    let chart = |title: &str, unit, scale, lines| Chart {
        title: title.into(),
        unit,
        seconds: report.seconds,
        scale,
        lines,
        rule: None,
        size: SMALL,
    };
    let line = |name: &'a str, class, mark, series| Line { name, class, mark, series };
    let (one, other) = (report.shared.label, report.whole.label);
    let rate = vec![line("rate", "rate", Mark::Area, &shared.rate_rps)];
    let grant = vec![
        line("used", "used", Mark::Area, &shared.used_percent),
        line("grant", "shared", Mark::Step, &shared.grant_percent),
    ];
    let replicas = vec![
        line(other, "whole", Mark::Step, &whole.replicas),
        line(one, "shared", Mark::Step, &shared.replicas),
    ];
    let latency = vec![
        line(other, "whole", Mark::Line, &whole.p95_ms),
        line(one, "shared", Mark::Line, &shared.p95_ms),
    ];
    let bound = objective.split_once('<').and_then(|(_, bound)| bound.strip_suffix("ms")?.parse().ok());
    let mut latency = chart("95th percentile of the latency", "ms", Scale::Log, latency);
    latency.rule = bound.map(|bound: f64| (bound, objective.to_string()));
    [
        ("requests per second", chart("request rate", "per second", Scale::Linear, rate)),
        ("grant and use, % of the time on its SMs", chart("grant and use", "%", Scale::Linear, grant)),
        ("replicas", chart("replicas", "", Scale::Count, replicas)),
        ("95th percentile, ms, logarithmic", latency),
    ]
}

fn checks(report: &Report) -> String {
    let mut rows = String::new();
    for figure in &report.figures.figures {
        let (class, word) = if figure.ok { ("ok", "ok") } else { ("not", "not ok") };
        let value = format!("{} {}", short(figure.value), figure.unit);
        let _ = write!(
            rows,
            "<tr class=\"first\"><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td>\
             <td class=\"text how\">{}</td></tr>",
            escape(&figure.id),
            escape(value.trim_end()),
            escape(&figure.bar),
            escape(&figure.how)
        );
    }
    format!(
        "<h2>What must hold</h2><div class=\"scroll\"><table><thead><tr><th>figure</th><th>value</th><th>bar</th><th></th>\
         <th class=\"text\">how it is measured</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn foot(report: &Report) -> String {
    let machine = &report.figures.machine;
    let scenario = &report.scenario;
    format!(
        "<footer><p>Measured on {}, {} cores, GPU: {}. Request times are drawn from a Poisson process (seed {}) on rates of \
         the HAS-GPU experiments (Gu et al., Euro-Par 2025), whose steps of 5 s last {} s here; both runs get the same times. \
         Latency is measured at the client from the planned start of each request and includes the HTTP path; percentiles \
         are of the requests that were answered, failed ones count as late. The price of a GPU-hour, ${}, is a parameter of \
         the command, not a quotation.</p></footer>",
        escape(&machine.cpu),
        machine.cores,
        escape(&machine.gpu),
        scenario.seed,
        short(5.0 * scenario.time_scale),
        report.gpu_hour_price
    )
}

#[cfg(test)]
mod tests {
    use super::super::chart::tests::assert_well_formed;
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_from_anywhere() {
        let page = html(&report(20.0));
        assert_well_formed(page.split_once('\n').unwrap().1);
        for outside in ["http:", "https:", "//", "url(", "@import", "<script", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf "));
        assert_eq!(page.matches("<svg ").count(), 17);
    }

    #[test]
    fn names_from_outside_are_escaped() {
        let page = html(&report(20.0));
        assert!(page.contains("a &lt;cpu&gt;") && !page.contains("a <cpu>"));
    }

    #[test]
    fn a_bar_that_is_not_kept_is_said() {
        assert!(!html(&report(20.0)).contains(">not ok<"));
        assert!(html(&report(150.0)).contains(">not ok<"));
    }
}
