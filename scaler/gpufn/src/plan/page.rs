//! A plan as one page of HTML that needs nothing from anywhere: costs by rate as a chart, and all tables.
//!
//! Pure. Every text goes through `escape`.

use std::fmt::Write as _;

use super::report::{CurveRow, PriceRow, Report, amount};
use crate::demo::chart::escape;
use crate::figures::short;

const STYLE: &str = include_str!("../demo/page.css");
/// Colours of the curves, one for each platform, and again from the start.
const COLOURS: [&str; 8] =
    ["#1f6feb", "#b4530a", "#14733b", "#b42332", "#7a3db8", "#0b7285", "#8a6d00", "#6b7280"];
/// Size of the drawing and the room around the plot, pixels.
const SIZE: (f64, f64) = (900.0, 420.0);
const ROOM: (f64, f64) = (70.0, 44.0);

/// The page.
pub(super) fn html(report: &Report) -> String {
    let list = |items: &[String]| {
        items.iter().fold(String::new(), |all, item| all + &format!("<li>{}</li>", escape(item)))
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>Plan</title><style>{STYLE}{}</style></head><body><main>\n<h1>What this load would cost</h1>\
         <p class=\"soft\">{}</p>{}<h2>Cost of a month by constant rate</h2><p class=\"legend\">{}</p>\
         <div class=\"wide\"><figure>{}</figure></div>{}<h2>Assumed</h2><ul>{}</ul><h2>Prices</h2>{}\n</main></body></html>\n",
        colours(),
        escape(&head(report)),
        platforms(report),
        legend(&report.curves),
        chart(report),
        break_evens(report),
        list(&report.assumptions),
        prices(report),
    )
}

fn head(report: &Report) -> String {
    format!(
        "{} requests in {} s: {} a second in the mean, {} at most. A month repeats that. Costs are in {}.",
        short(report.load.requests),
        short(report.load.seconds),
        amount(report.load.mean_rps),
        amount(report.load.peak_rps),
        report.currency
    )
}

/// A table of `rows` under `head`.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |cells: &[String]| {
        cells.iter().fold(String::new(), |all, cell| all + &format!("<td>{}</td>", escape(cell)))
    };
    let head = head.iter().fold(String::new(), |all, title| all + &format!("<th>{}</th>", escape(title)));
    let rows = rows
        .into_iter()
        .fold(String::new(), |all, row| all + &format!("<tr class=\"first\">{}</tr>", cells(&row)));
    format!("<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
}

fn platforms(report: &Report) -> String {
    let late = report.slo.is_some();
    let mut head = vec!["platform", "a month", "1000 requests", "p50 ms", "p95 ms"];
    let title = report.slo.as_ref().map(|slo| format!("later than {slo}"));
    head.extend(title.as_deref());
    head.push("what runs");
    let rows = report.platforms.iter().map(|row| {
        let mut cells = row.cells(late);
        cells.push(row.runs.clone());
        cells
    });
    let out = report.left_out.iter().fold(String::new(), |all, out| {
        all + &format!("<p class=\"soft\">Left out: {} {}.</p>", escape(&out.name), escape(&out.why))
    });
    format!("<h2>Platforms</h2>{}{out}", table(&head, rows))
}

fn break_evens(report: &Report) -> String {
    if report.break_evens.is_empty() {
        return String::new();
    }
    let row = |row: &super::report::BreakEvenRow| {
        vec![row.below.clone(), amount(row.rate_rps), row.above.clone(), row.again()]
    };
    let rows = report.break_evens.iter().map(row);
    format!(
        "<h2>Break-even rates</h2>{}",
        table(&["cheaper below", "requests a second", "cheaper above", ""], rows)
    )
}

fn prices(report: &Report) -> String {
    let row = |price: &PriceRow| {
        let PriceRow { platform, of, amount, date, source } = price;
        vec![platform.clone(), (*of).to_string(), amount.to_string(), date.clone(), source.clone()]
    };
    table(&["platform", "of", "amount", "on", "source"], report.prices.iter().map(row))
}

fn colours() -> String {
    COLOURS.iter().enumerate().fold(String::new(), |mut all, (place, colour)| {
        // A String takes whatever is written to it.
        let _ = write!(
            all,
            "svg .k{place}{{fill:none;stroke:{colour};stroke-width:1.8}}i.k{place}{{background:{colour}}}"
        );
        all
    })
}

fn class(place: usize) -> String {
    format!("k{}", place % COLOURS.len())
}

fn legend(curves: &[CurveRow]) -> String {
    curves.iter().enumerate().fold(String::new(), |all, (place, curve)| {
        all + &format!("<span><i class=\"dot {}\"></i>{}</span>", class(place), escape(&curve.platform))
    })
}

/// Where values are on the drawing: both axes are logarithmic.
struct Frame {
    rates: (f64, f64),
    costs: (f64, f64),
}

impl Frame {
    fn x(&self, rate: f64) -> f64 {
        ROOM.0 + along(rate, self.rates) * (SIZE.0 - 2.0 * ROOM.0)
    }

    fn y(&self, cost: f64) -> f64 {
        SIZE.1 - ROOM.1 - along(cost, self.costs) * (SIZE.1 - 2.0 * ROOM.1)
    }
}

/// Part of the way from one end to the other at `value`, on a logarithmic scale.
fn along(value: f64, (least, most): (f64, f64)) -> f64 {
    ((value.max(least) / least).ln() / (most / least).ln()).clamp(0.0, 1.0)
}

fn chart(report: &Report) -> String {
    let points = || report.curves.iter().flat_map(|curve| &curve.points);
    let most = points().map(|point| point.1).fold(1.0, f64::max);
    let rates = points().map(|point| point.0);
    let rates = rates.fold((f64::INFINITY, 0.0_f64), |(low, high), rate| (low.min(rate), high.max(rate)));
    // What is free or next to it would stretch the axis over many decades that say nothing.
    let frame = Frame {
        rates: if rates.0 < rates.1 { rates } else { (1e-5, 1e4) },
        costs: ((most * 1e-6).max(0.01).min(most / 10.0), most * 1.2),
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" aria-label=\"Cost of a month by constant rate\">",
        SIZE.0, SIZE.1
    );
    draw_axes(&mut svg, &frame);
    for (place, curve) in report.curves.iter().enumerate() {
        draw_curve(&mut svg, &frame, &class(place), curve);
    }
    draw_rate(&mut svg, &frame, report.load.mean_rps);
    svg + "</svg>"
}

/// Powers of ten within both ends.
fn decades((least, most): (f64, f64)) -> impl Iterator<Item = f64> {
    (-6..12).map(|power| 10_f64.powi(power)).filter(move |tick| (least..=most).contains(tick))
}

fn draw_axes(svg: &mut String, frame: &Frame) {
    let (right, bottom) = (SIZE.0 - ROOM.0, SIZE.1 - ROOM.1);
    for tick in decades(frame.rates) {
        let (x, y) = (frame.x(tick), bottom + 18.0);
        let _ = write!(svg, "<text class=\"mid\" x=\"{x:.1}\" y=\"{y:.1}\">{tick}</text>");
    }
    for tick in decades(frame.costs) {
        let (y, left) = (frame.y(tick), ROOM.0);
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        let (x, y, tick) = (left - 6.0, y + 3.5, amount(tick));
        let _ = write!(svg, "<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{tick}</text>");
    }
    let (middle, foot) = (SIZE.0 / 2.0, SIZE.1 - 6.0);
    let _ = write!(svg, "<text class=\"mid\" x=\"{middle}\" y=\"{foot}\">requests a second</text>");
}

fn draw_curve(svg: &mut String, frame: &Frame, class: &str, curve: &CurveRow) {
    let paid: Vec<_> = curve.points.iter().filter(|point| point.1 >= frame.costs.0).collect();
    let Some((first, rest)) = paid.split_first() else { return };
    let mut path = format!("M{:.1} {:.1}", frame.x(first.0), frame.y(first.1));
    for (rate, cost) in rest {
        let _ = write!(path, "L{:.1} {:.1}", frame.x(*rate), frame.y(*cost));
    }
    let name = escape(&curve.platform);
    let _ = write!(svg, "<path class=\"{class}\" d=\"{path}\"><title>{name}</title></path>");
}

/// Marks the mean rate of the load.
fn draw_rate(svg: &mut String, frame: &Frame, rate: f64) {
    let (x, bottom) = (frame.x(rate), SIZE.1 - ROOM.1);
    let _ = write!(
        svg,
        "<line class=\"rule\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\"><title>mean of this load: {} a second\
         </title></line>",
        ROOM.1,
        amount(rate)
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;
    use crate::demo::chart::tests::assert_well_formed;

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_from_anywhere() {
        let mut report = example();
        report.platforms[0].runs = "<b>\"two\"</b>".into();
        let page = html(&report);
        assert_well_formed(page.split_once('\n').unwrap().1);
        for outside in ["http:", "https:", "url(", "@import", "<script", "src=", "<b>"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<path class=\"k").count(), report.curves.len());
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn nothing_to_show_is_no_broken_page() {
        let mut report = example();
        (report.curves, report.platforms, report.break_evens) = (vec![], vec![], vec![]);
        let page = html(&report);
        assert_well_formed(page.split_once('\n').unwrap().1);
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
