//! A profile as one page of HTML that needs nothing from anywhere: latency over SM share, a line for each quota.
//!
//! Pure. Every text goes through `escape`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use scaler::profile::sheet::{Place, Sample, Sheet};

use crate::demo::chart::escape;
use crate::figures::short;

const STYLE: &str = include_str!("../demo/page.css");
const OWN_STYLE: &str = "svg .curve{fill:none;stroke:var(--shared);stroke-width:1.6}svg .point{fill:var(--whole)}\
     svg .interval{stroke:var(--whole);stroke-width:1}";
/// Quotas that have a line, percent.
const QUOTAS: [u8; 4] = [10, 25, 50, 100];
/// Size of the drawing and the room around the plot, pixels.
const SIZE: (f64, f64) = (900.0, 420.0);
const ROOM: (f64, f64) = (64.0, 40.0);

/// The page.
pub(super) fn html(sheet: &Sheet) -> String {
    let batches: BTreeSet<_> = sheet.points.iter().map(|point| point.place.batch).collect();
    let charts = batches.iter().fold(String::new(), |all, &batch| {
        all + &format!(
            "<h2>Batch {batch}</h2><div class=\"wide\"><figure>{}</figure></div>",
            chart(sheet, batch)
        )
    });
    let dots = if sheet.points.iter().any(|point| point.interval_ms.is_some()) {
        "a dot for each predicted point and a bar for where it lies with 90 %"
    } else {
        "a dot for each measured point"
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{title}</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>\n<h1>{title}</h1>\
         <p class=\"soft\">Mean latency of one request that nothing delays, by share of the SMs; a line for each quota, \
         {dots}. Both axes are logarithmic.</p>{charts}{}\n</main></body></html>\n",
        points(&sheet.points),
        title = escape(&format!("Profile of {} on {}", sheet.model, sheet.gpu)),
    )
}

/// Where values are on the drawing: both axes are logarithmic.
struct Frame {
    low: f64,
    high: f64,
}

/// Where an SM share is.
fn x(sm: u8) -> f64 {
    ROOM.0 + f64::from(sm).ln() / 100_f64.ln() * (SIZE.0 - 2.0 * ROOM.0)
}

impl Frame {
    fn y(&self, ms: f64) -> f64 {
        let part = (ms / self.low).ln() / (self.high / self.low).ln();
        SIZE.1 - ROOM.1 - part.clamp(0.0, 1.0) * (SIZE.1 - 2.0 * ROOM.1)
    }
}

fn chart(sheet: &Sheet, batch: u32) -> String {
    let curve = |quota: u8| -> Vec<(u8, f64)> {
        let least = sheet.points.iter().map(|point| point.place.sm).min().unwrap_or(1);
        (least..=100).filter_map(|sm| Some((sm, sheet.latency_ms(Place { batch, sm, quota })?))).collect()
    };
    let curves = QUOTAS.map(|quota| (quota, curve(quota)));
    let dots: Vec<_> = sheet.points.iter().filter(|point| point.place.batch == batch).collect();
    let values = curves.iter().flat_map(|(_, curve)| curve.iter().map(|point| point.1));
    let ends = dots.iter().flat_map(|dot| dot.interval_ms.unwrap_or([dot.latency_ms; 2]));
    let values: Vec<_> = values.chain(ends).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min).max(1e-3) / 1.2;
    let high = values.iter().copied().fold(0.0, f64::max).max(2.0 * low) * 1.2;
    let frame = Frame { low, high };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" aria-label=\"Latency by SM share and quota\">",
        SIZE.0, SIZE.1
    );
    draw_axes(&mut svg, &frame);
    for (quota, curve) in &curves {
        draw_curve(&mut svg, &frame, *quota, curve);
    }
    for dot in dots {
        let (x, y) = (x(dot.place.sm), frame.y(dot.latency_ms));
        let text = escape(&format!("{}: {} ms", dot.place, short(dot.latency_ms)));
        // A String takes whatever is written to it.
        if let Some([low, high]) = dot.interval_ms.map(|ends| ends.map(|end| frame.y(end))) {
            let _ = write!(
                svg,
                "<line class=\"interval\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
            );
        }
        let _ = write!(
            svg,
            "<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{text}</title></circle>"
        );
    }
    svg + "</svg>"
}

fn draw_axes(svg: &mut String, frame: &Frame) {
    let (right, bottom) = (SIZE.0 - ROOM.0, SIZE.1 - ROOM.1);
    for sm in [1, 2, 5, 10, 20, 50, 100] {
        let x = x(sm);
        let _ = write!(svg, "<text class=\"mid\" x=\"{x:.1}\" y=\"{:.1}\">{sm} %</text>", bottom + 20.0);
    }
    let steps = [1.0, 2.0, 5.0].into_iter();
    let ticks = (-3..6).flat_map(|decade| steps.clone().map(move |step| step * 10_f64.powi(decade)));
    for tick in ticks.filter(|tick| (frame.low..=frame.high).contains(tick)) {
        let y = frame.y(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            ROOM.0
        );
        let (x, y, tick) = (ROOM.0 - 6.0, y + 3.5, short(tick));
        let _ = write!(svg, "<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{tick} ms</text>");
    }
}

fn draw_curve(svg: &mut String, frame: &Frame, quota: u8, curve: &[(u8, f64)]) {
    let Some(&(last, ms)) = curve.last() else { return };
    let steps = curve.iter().enumerate().map(|(index, &(sm, ms))| {
        let letter = if index == 0 { 'M' } else { 'L' };
        format!("{letter}{:.1} {:.1}", x(sm), frame.y(ms))
    });
    let path = steps.collect::<String>();
    let _ = write!(svg, "<path class=\"curve\" d=\"{path}\"><title>quota {quota} %</title></path>");
    let (x, y) = (x(last) + 6.0, frame.y(ms) + 3.5);
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{quota} %</text>");
}

fn points(points: &[Sample]) -> String {
    let rows = points.iter().fold(String::new(), |all, point| {
        let Place { batch, sm, quota } = point.place;
        let (gpu, latency) = (short(point.gpu_ms), short(point.latency_ms));
        let of = match point.interval_ms {
            Some([low, high]) => format!("{} to {} ms with 90 %", short(low), short(high)),
            None => format!("{} requests", point.requests),
        };
        all + &format!(
            "<tr class=\"first\"><td>{batch}</td><td>{sm} %</td><td>{quota} %</td><td>{gpu} ms</td><td>{latency} ms</td>\
             <td>{of}</td></tr>"
        )
    });
    format!(
        "<h2>Points</h2><div class=\"scroll\"><table><thead><tr><th>batch</th><th>SMs</th><th>quota</th>\
         <th>GPU time</th><th>latency</th><th>mean of</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::chart::tests::assert_well_formed;

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_from_anywhere() {
        let mut sheet = Sheet::new("a <model>", "a \"GPU\"", 10.0);
        for (sm, gpu_ms) in [(5, 100.0), (50, 12.0), (100, 9.0)] {
            let place = Place { batch: 1, sm, quota: 100 };
            sheet.points.push(Sample {
                place,
                gpu_ms,
                latency_ms: gpu_ms + 2.0,
                requests: 40,
                interval_ms: None,
            });
        }
        let page = html(&sheet);
        assert_well_formed(page.split_once('\n').unwrap().1);
        for outside in ["http:", "https:", "//", "url(", "@import", "<script", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("class=\"curve\"").count(), QUOTAS.len());
        assert_eq!(page.matches("class=\"point\"").count(), 3);
        assert!(!page.contains("NaN") && page.contains("a &lt;model&gt;"));
        assert!(!page.contains("class=\"interval\""));
        sheet.points[0].interval_ms = Some([80.0, 130.0]);
        let page = html(&sheet);
        assert_well_formed(page.split_once('\n').unwrap().1);
        assert!(page.matches("class=\"interval\"").count() == 1 && page.contains("80 to 130 ms with 90 %"));
        assert!(html(&Sheet::new("m", "g", 10.0)).contains("Points"));
    }
}
