//! The audit as one page of HTML that needs nothing from anywhere: a heat map for each way of sharing.
//!
//! Pure. Every text goes through `escape`.

use super::cell::QUOTAS;
use super::report::{Group, Report, Row, groups};
use crate::demo::chart::escape;
use crate::figures::short;

const STYLE: &str = include_str!("../demo/page.css");
const HEAT: &str = include_str!("heatmap.css");
/// Steps of the colours within the bars.
const STEPS: f64 = 5.0;

/// The page.
pub fn html(report: &Report) -> String {
    let maps = joined(groups(&report.rows), |(title, group)| map(&title, &group));
    let others = joined(report.rows.iter().filter(|row| row.place.is_none()), other);
    let others = if others.is_empty() {
        others
    } else {
        format!(
            "<h2>Other programs</h2><div class=\"scroll\"><table><thead><tr><th>cell</th><th>set</th><th>got</th>\
             <th>worst second off</th><th></th></tr></thead><tbody>{others}</tbody></table></div>"
        )
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>gpufn audit</title><style>{STYLE}{HEAT}</style></head><body><main>\n{}{maps}{others}{}\n\
         </main></body></html>\n",
        head(report),
        foot(report)
    )
}

/// What `show` makes of each of `items`, one behind the other.
fn joined<T>(items: impl IntoIterator<Item = T>, show: impl Fn(T) -> String) -> String {
    items.into_iter().fold(String::new(), |all, item| all + &show(item))
}

fn head(report: &Report) -> String {
    format!(
        "<h1>What share of the GPU programs got, against what was set</h1><p class=\"soft\">{}.</p>\
         <p class=\"soft\">A cell shows how far, in percentage points, the container that is furthest off was from what \
         it was set: over {} s, and in its worst second. The colour shows how much of what is allowed that uses up (2 \
         points or one kernel in a second, 0.5 over ten); beyond it is marked with ✕.</p><p class=\"legend\">{}</p>",
        escape(&report.summary()),
        report.seconds,
        legend()
    )
}

fn legend() -> String {
    let steps = ["0 to 20 %", "to 40 %", "to 60 %", "to 80 %", "to 100 %"];
    let swatch = |class: &str, text: &str| format!("<span><i class=\"swatch {class}\"></i>{text}</span>");
    joined(steps.iter().enumerate(), |(step, text)| swatch(&format!("h{step}"), text))
        + &swatch("over", "beyond")
}

fn map(title: &str, group: &Group<'_>) -> String {
    let head = joined(QUOTAS, |quota| format!("<th>{quota} %</th>"));
    let lines = joined(group, |(line, cells)| {
        let name = line.split('\u{0}').nth(1).unwrap_or(line);
        let cells = joined(cells, |cell| cell.map_or("<td></td>".into(), heat));
        format!("<tr class=\"first\"><td>{}</td>{cells}</tr>", escape(name))
    });
    format!(
        "<h2>{}</h2><div class=\"scroll\"><table class=\"heat\"><thead><tr><th>kernels</th>{head}</tr></thead>\
         <tbody>{lines}</tbody></table></div>",
        escape(title)
    )
}

fn heat(row: &Row) -> String {
    let got: Vec<_> = row
        .containers
        .iter()
        .map(|one| format!("set {} %, got {} %", short(one.set), short(one.got)))
        .collect();
    let class = if row.ok() { step(row.strain()) } else { "over" };
    let mark = if row.ok() { "" } else { "✕ " };
    format!(
        "<td class=\"{class}\" title=\"{}\">{mark}{}<small>{}</small></td>",
        escape(&format!("{}\n{}", row.name, got.join("\n"))),
        short(row.whole()),
        short(row.worst_second())
    )
}

fn step(strain: f64) -> &'static str {
    match strain * STEPS {
        strain if strain < 1.0 => "h0",
        strain if strain < 2.0 => "h1",
        strain if strain < 3.0 => "h2",
        strain if strain < 4.0 => "h3",
        _ => "h4",
    }
}

fn other(row: &Row) -> String {
    let list = |value: fn(&super::verdict::Verdict) -> f64| {
        row.containers.iter().map(|one| short(value(one)) + " %").collect::<Vec<_>>().join(" / ")
    };
    let (class, word) = if row.ok() { ("ok", "ok") } else { ("not", "not ok") };
    format!(
        "<tr class=\"first\"><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
        escape(&row.name),
        list(|one| one.set),
        list(|one| one.got),
        short(row.worst_second())
    )
}

fn foot(report: &Report) -> String {
    let left_out = joined(&report.left_out, |why| format!("<p>{}</p>", escape(why)));
    let machine = &report.machine;
    format!(
        "<footer>{left_out}<p>Measured on {}, {} cores, GPU: {}. {}.</p></footer>",
        escape(&machine.cpu),
        machine.cores,
        escape(&machine.gpu),
        escape(report.how)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::cell::Place;
    use crate::audit::verdict::Verdict;
    use crate::demo::chart::tests::assert_well_formed;
    use crate::figures::Machine;

    fn report(error: f64) -> Report {
        let place = |place: Place| {
            let got = |set: u8| vec![f64::from(set) + error; 10];
            let seconds: Vec<_> = place.containers().iter().map(|container| got(container.quota)).collect();
            Row::of(place, &seconds)
        };
        let mut rows: Vec<_> = Place::pairwise().into_iter().map(place).collect();
        let containers = vec![Verdict::new(30.0, &[30.0; 10], 1)];
        rows.push(Row { name: "PyTorch <1>".into(), place: None, containers });
        let machine = Machine { cpu: "a <cpu>".into(), cores: 2, gpu: "g".into() };
        Report { machine, seconds: 10, how: "counted", rows, left_out: vec!["no <MPS>".into()] }
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_from_anywhere() {
        let page = html(&report(0.1));
        assert_well_formed(page.split_once('\n').unwrap().1);
        for outside in ["http:", "https:", "//", "url(", "@import", "<script", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("a &lt;cpu&gt;") && page.contains("no &lt;MPS&gt;"));
        assert!(page.contains("class=\"h1\"") && !page.contains("✕ "));
    }

    #[test]
    fn a_cell_beyond_the_bars_is_marked() {
        assert!(html(&report(3.0)).contains("class=\"over\""));
    }
}
